"""How much better the best choice is expected to be after a measurement."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ppl_ext.designs.acquisitions.conditioning import log_weights
from ppl_ext.designs.acquisitions.functions import Draws, Gaussian, as_functions, as_rows, check_noise
from ppl_ext.designs.acquisitions.improvement import mean_above
from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count, check_key, described


class KnowledgeGradient(eqx.Module):
    r"""How much greater the greatest posterior mean is expected to be after a measurement.

    .. math:: a(x) = \mathbb{E}_{y \mid x} \max_{x'} \mathbb{E}[f(x') \mid y] - \max_{x'} \mathbb{E} f(x')

    Unlike an improvement it counts what a noisy measurement says of all other candidates. The measurement is
    imagined in one of two ways.

    - ``"reweighted"``, for draws of any law: y is a draw's value plus noise, and the posterior mean that of
      the draws with weights :math:`N(y; f_s(x), \sigma^2)`. The draws must be many where the noise is small
      against their spread: with few that agree with y the gain is that of single draws, and too large.
    - ``"gaussian"``: as if the function were a Gaussian process with the draws' mean and covariance. The gain
      is then that of the upper hull of lines :math:`\mu(x') + \tilde\sigma(x', x) z`, exact over
      :math:`z \sim N(0, 1)`, with :math:`\tilde\sigma(x', x) = k(x', x) / \sqrt{k(x, x) + \sigma^2}`. A
      ``MultivariateNormal`` is always served so.

    :param noise: the standard deviation of a measurement.
    :param fantasies: how measurements are imagined.
    :param num_fantasies: how many, of those ``"reweighted"`` and of pending ones.
    :param rng_key: for these.
    :return: called with functions, and maybe ``pending`` candidates, (n,) gains of all of them together.
    :raises ArgumentError: for a noise that is not above zero, or an unknown way.
    :raises ArgumentTypeError: for a missing key.

    >>> import numpyro.distributions as dist
    >>> law = dist.Normal(jnp.zeros(2), jnp.array([2.0, 1.0])).to_event(1)
    >>> print(KnowledgeGradient(noise=1.0)(law).round(4))  # 4/√5 and 1/√2 times E max(Z, 0)
    [0.7136 0.2821]

    Source: Frazier, Powell, Dayanik 2009, "The knowledge-gradient policy for correlated normal beliefs";
    Frazier 2018, "A tutorial on Bayesian optimization".
    """

    noise: Any
    fantasies: str = eqx.field(default="reweighted", static=True)
    num_fantasies: int = eqx.field(default=128, static=True)
    rng_key: Any = None

    def __check_init__(self):
        check_noise("KnowledgeGradient: noise", self.noise)
        check_count("KnowledgeGradient: num_fantasies", self.num_fantasies)
        if self.fantasies not in ("reweighted", "gaussian"):
            raise ArgumentError(
                f"KnowledgeGradient: fantasies must be 'reweighted' or 'gaussian', got "
                f"{described(self.fantasies)}."
            )

    def __call__(self, functions: Any, pending: Any = ()) -> jax.Array:
        where = "KnowledgeGradient"
        known = as_functions(where, functions)
        rows = as_rows(f"{where}: pending", pending, known.num_candidates)
        if isinstance(known, Draws) and self.fantasies == "reweighted":
            return self._of_draws(known.values, rows)
        if isinstance(known, Draws):
            mean = known.values.mean(0)
            known = Gaussian(mean, (known.values - mean).T / (len(known.values) - 1) ** 0.5)
        if not len(rows):
            return _gains(known.mean, known.covariance, self.noise)
        check_key(f"{where}: rng_key", self.rng_key)
        after = known.given(rows, self.noise)
        covariance = after.root @ after.root.T
        z = jax.random.normal(self.rng_key, (self.num_fantasies, len(rows)))
        means = known.mean + z @ after.moves.T
        at_best = means[:, known.mean.argmax()]  # a martingale: its mean is the best of today
        already = (means.max(1) - at_best).mean()
        return already + jax.lax.map(lambda mean: _gains(mean, covariance, self.noise), means).mean(0)

    def _of_draws(self, values: jax.Array, rows: jax.Array) -> jax.Array:
        check_key("KnowledgeGradient: rng_key", self.rng_key)
        num, best = len(values), values.mean(0).argmax()
        fantasies = Fantasies(self.rng_key, num, self.num_fantasies, len(rows) + 1, self.noise)

        def gain(candidate):
            weights = fantasies.weights(values[:, jnp.append(rows, candidate)])
            means = weights @ values
            return (means.max(1) - means[:, best]).mean()

        return jax.lax.map(gain, jnp.arange(values.shape[1]))


class Fantasies:
    """Imagined measurements of k candidates: each is one of the draws, plus noise, the same noises for all
    candidates.
    """

    def __init__(self, rng_key: jax.Array, num_draws: int, num: int, k: int, noise: Any):
        of_draws, of_noise = jax.random.split(rng_key)
        # draws in turn, so that all count alike
        order = jax.random.permutation(of_draws, num_draws)
        self.whose = order[jnp.arange(num) % num_draws]
        self.noises = noise * jax.random.normal(of_noise, (num, k))
        self.noise = noise

    def weights(self, values: jax.Array) -> jax.Array:
        """Weights (num, S) of draws with these values (S, k) at the candidates, after each measurement."""
        seen = values[self.whose] + self.noises
        return jax.nn.softmax(jax.vmap(lambda y: log_weights(values, y, self.noise))(seen), axis=-1)


def _gains(mean: jax.Array, covariance: jax.Array, noise: Any) -> jax.Array:
    """What measuring each candidate gains, under a normal law."""
    spread = jnp.sqrt(jnp.maximum(covariance.diagonal(), 0.0) + noise**2)
    return jax.lax.map(lambda slopes: hull_gain(mean, slopes), (covariance / spread).T)


def hull_gain(intercepts: jax.Array, slopes: jax.Array) -> jax.Array:
    r"""E max_i (a_i + b_i Z) - max_i a_i over a standard normal Z.

    .. math:: \sum_i (b_{i+1} - b_i) \, f(-|c_i|), \qquad f(z) = \varphi(z) + z \Phi(z)

    over the lines of the upper hull by increasing slope, which meet at :math:`c_i`; each line knows by itself
    from where to where it is the highest.

    >>> print(hull_gain(jnp.zeros(2), jnp.array([0.0, 1.0])).round(4))
    0.3989

    Source: Frazier, Powell, Dayanik 2009.
    """
    order = jnp.lexsort((intercepts, slopes))
    a, b = intercepts[order], slopes[order]
    steeper = b - b[:, None]  # (i, j): how much steeper j is than i
    # of lines with one slope only the highest counts, which comes last
    low = (steeper == 0) & (jnp.arange(len(a)) > jnp.arange(len(a))[:, None])
    meet = (a[:, None] - a) / jnp.where(steeper == 0, 1.0, steeper)
    until = jnp.where(steeper > 0, meet, jnp.inf)
    since = jnp.where(steeper < 0, meet, -jnp.inf).max(1)
    end = until.min(1)
    on_hull = (since < end) & jnp.isfinite(end) & ~low.any(1)
    # the next line: the steepest of those that meet there
    next_slope = jnp.where(until == end[:, None], b, -jnp.inf).max(1)
    end = jnp.where(on_hull, end, 0.0)
    gained = jnp.where(on_hull, next_slope - b, 0.0) * mean_above(-jnp.abs(end))
    return gained.sum()
