"""Which of many things are on: a law over all patterns, summed exactly (Xia, Tsang, Lau 2023)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution, Gamma, constraints

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count, check_number


class Support(eqx.Module):
    r"""n switches, each on or off: independent, or a stationary Markov chain, where neighbours are alike.

    .. math:: p(s_1 = 1) = \pi, \qquad p(s_{i+1} = 1 \mid s_i = 1) = q, \qquad
        p(s_{i+1} = 1 \mid s_i = 0) = \pi\, \frac{1 - q}{1 - \pi}

    Sums over all :math:`2^n` patterns are exact and cost n: the chain is eliminated from its first switch to
    its last.

    :param size: n; a chain has at least 2.
    :param activity: :math:`\pi`, the share that is on, in (0, 1).
    :param stay: q, in (0, 1); None: independent switches.
    :raises ArgumentError: for a chain of one switch, or probabilities out of their range.

    >>> chain = Support(3, 0.2, stay=0.8)
    >>> # one of which the data say nothing, between two that are likely on
    >>> [f"{p:.3f}" for p in chain.marginals(jnp.array([4.0, 0.0, 4.0]))]
    ['0.989', '0.973', '0.989']

    Source: Xia, Tsang, Lau 2023, "Structured Bayesian compression for deep neural networks based on the
    Turbo-VBI approach" (arXiv:2302.10483).
    """

    size: int = eqx.field(static=True)
    activity: float = eqx.field(static=True)
    stay: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_count("Support: size", self.size)
        for name, value in (("activity", self.activity), ("stay", self.stay)):
            if value is not None:
                check_number(f"Support: {name}", value)
                if not 0.0 < value < 1.0:
                    raise ArgumentError(f"Support: {name} must lie between 0 and 1, got {value}.")
        if self.stay is None:
            return
        if self.size == 1:
            raise ArgumentError(
                "Support: a chain of one switch has no neighbours. Leave stay out, which makes switches "
                "independent."
            )
        if self.activity * (1.0 - self.stay) >= 1.0 - self.activity:
            raise ArgumentError(
                f"Support: with activity {self.activity} a switch that is on must stay on with a probability "
                f"above {2.0 - 1.0 / self.activity:.3g}, got stay {self.stay}."
            )

    def log_normaliser(self, log_odds: jax.Array) -> jax.Array:
        r""":math:`\log \mathbb{E}_s \exp \sum_i s_i \ell_i`, (...), from evidence (..., n) for being on."""
        off, on = jnp.log1p(-self.activity), jnp.log(self.activity)
        if self.stay is None:
            return jnp.sum(jnp.logaddexp(off, on + log_odds), -1)
        rise = self.activity * (1.0 - self.stay) / (1.0 - self.activity)
        # [from, to]
        moves = jnp.log(jnp.array([[1.0 - rise, rise], [1.0 - self.stay, self.stay]], log_odds.dtype))
        first, *_ = evidence = jnp.moveaxis(jnp.stack([jnp.zeros_like(log_odds), log_odds], -1), -2, 0)

        def step(past, now):
            return logsumexp(past[..., :, None] + moves, axis=-2) + now, None

        last, _ = jax.lax.scan(step, jnp.stack([off, on]) + first, evidence[1:])
        return logsumexp(last, axis=-1)

    def marginals(self, log_odds: Any) -> jax.Array:
        """The probability of each to be on, given evidence (..., n): the slope of the log normaliser."""
        return jax.grad(lambda x: jnp.sum(self.log_normaliser(x)))(jnp.asarray(log_odds, float))

    def sample(self, rng_key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Patterns of 0 and 1, ``(*sample_shape, n)``."""
        uniform = jax.random.uniform(rng_key, (self.size, *sample_shape))
        if self.stay is None:
            return jnp.moveaxis(uniform < self.activity, 0, -1).astype(float)
        rise = self.activity * (1.0 - self.stay) / (1.0 - self.activity)

        stay = self.stay

        def step(past, u):
            now = u < jnp.where(past, stay, rise)
            return now, now

        first = uniform[0] < self.activity
        _, rest = jax.lax.scan(step, first, uniform[1:])
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -1).astype(float)


class SupportedPrecision(Distribution):
    r"""Precisions that are small where a switch is on and large where it is off, the switches summed out.

    .. math:: p(\rho) = \sum_s p(s) \prod_i \mathrm{Gamma}(\rho_i; a, b)^{s_{g(i)}}\,
        \mathrm{Gamma}(\rho_i; a, \bar b)^{1 - s_{g(i)}}

    :param support: the law of the switches.
    :param active_rate: b; ``silent_rate`` :math:`\bar b` is smaller.
    :param shape: a.
    :param width: how many precisions, next to each other, a switch has: g(i) = i // width.

    >>> law = SupportedPrecision(Support(2, 0.5), 3.0, 3e-4, shape=3.0)
    >>> law.support_given(jnp.array([1.0, 1e4])).round(3).tolist()
    [1.0, 0.0]

    Source: as of :class:`Support`.
    """

    arg_constraints = {"active_rate": constraints.positive, "silent_rate": constraints.positive}
    support = constraints.independent(constraints.positive, 1)
    pytree_data_fields = ("active_rate", "silent_rate")
    pytree_aux_fields = ("switches", "shape_", "width")

    def __init__(self, support: Support, active_rate, silent_rate, *, shape: float = 3.0, width: int = 1):
        self.switches, self.shape_, self.width = support, shape, width
        self.active_rate, self.silent_rate = jnp.asarray(active_rate), jnp.asarray(silent_rate)
        super().__init__((), (support.size * width,), validate_args=False)

    def _log_odds(self, value):
        ratio = self._gamma(self.active_rate).log_prob(value) - self._gamma(self.silent_rate).log_prob(value)
        return ratio.reshape(*value.shape[:-1], self.switches.size, self.width).sum(-1)

    def _gamma(self, rate):
        return Gamma(self.shape_, rate, validate_args=False)

    def log_prob(self, value):
        silent = self._gamma(self.silent_rate).log_prob(value).sum(-1)
        return silent + self.switches.log_normaliser(self._log_odds(value))

    def support_given(self, value: Any) -> jax.Array:
        """The probability of each switch to be on, given all precisions."""
        return self.switches.marginals(self._log_odds(jnp.asarray(value)))

    def given_weights(self, squares: Any) -> tuple[jax.Array, jax.Array]:
        r"""What weights :math:`w_i \sim \mathcal{N}(0, 1 / \rho_i)` of these (expected) squares say: the
        probability of each switch to be on, and the mean of each precision, both exact.

        .. math:: \ell_i = a \log \frac{b}{\bar b} - \big(a + \tfrac12\big)
            \log \frac{b + w_i^2 / 2}{\bar b + w_i^2 / 2}, \qquad
            \mathbb{E}[\rho_i \mid s_i = 1] = \frac{a + \frac12}{b + w_i^2 / 2}

        This is the step of variational Bayes for switches and precisions together, given the law of the
        weights.
        """
        a, half = self.shape_, 0.5 * jnp.asarray(squares)
        on, off = self.active_rate + half, self.silent_rate + half
        log_odds = a * jnp.log(self.active_rate / self.silent_rate) - (a + 0.5) * jnp.log(on / off)
        grouped = log_odds.reshape(*half.shape[:-1], self.switches.size, self.width).sum(-1)
        found = self.switches.marginals(grouped)
        share = jnp.repeat(found, self.width, -1)
        return found, (a + 0.5) * (share / on + (1.0 - share) / off)

    def sample(self, key, sample_shape=()):
        first, second = jax.random.split(key)
        on = jnp.repeat(self.switches.sample(first, sample_shape), self.width, -1)
        return self._gamma(jnp.where(on > 0, self.active_rate, self.silent_rate)).sample(second)
