"""Stochastic gradient Hamiltonian Monte Carlo, plain and scale-adapted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError
from ppl_ext.infer.sgmcmc.kernel import DEFAULT_INIT, SGState, StochasticGradientKernel
from ppl_ext.infer.sgmcmc.potential import Values
from ppl_ext.runtime.arguments import check_count, check_number, described

LEAST_NOISE = 1e-16
"""Variance of the noise where the gradient's own is already more than the chain should get."""


class Scale(NamedTuple):
    """By site: ``window`` τ, ``mean`` g and ``square`` V, the running averages of the gradient and of its
    square. All start at 1.
    """

    window: Values
    mean: Values
    square: Values


class SGHMC(StochasticGradientKernel):
    r"""Hamiltonian Monte Carlo with friction on minibatch gradients, for NumPyro's ``MCMC``.

    With :math:`\tilde g` the estimated gradient of the potential, :math:`\eta` the step size, a the friction
    and T the temperature,

    .. math:: v &\leftarrow (1 - a) v - \eta^2 M^{-1} \tilde g + \mathcal{N}(0, 2 \eta^2 a M^{-1} T - B),
        \qquad z \leftarrow z + v

    Plain (``adapt=None``): M = 1, B = 0. Scale-adapted: :math:`M^{-1} = V^{-1/2}` with V the gradient's mean
    square in each coordinate, :math:`B = \eta^4` is the noise that the gradient brings itself, and the
    variance of what is added is at least 1e-16. In the warm-up, and only there,

    .. math:: \rho = \frac{1}{\tau + 1}, \quad \tau \leftarrow \tau + 1 - \frac{\tau g^2}{V},
        \quad g \leftarrow (1 - \rho) g + \rho \tilde g, \quad V \leftarrow (1 - \rho) V + \rho \tilde g^2

    with the old g and V in τ. Afterwards V stays, so that the chain has one stationary law.

    There is no Metropolis step: that law is the posterior to the power 1/T only as the step size goes to
    zero. Where the posterior is normal with precision H, the stationary covariance solves a linear equation;
    to first order a variance is too large by :math:`\eta^2 M^{-1} H / (4 - 2 a)` of it, and by
    :math:`(\eta^4 M^{-2} \mathrm{Var}(\tilde g) - B) / (2 \eta^2 a M^{-1} T)`, which is the gradient's noise.
    Smaller steps and larger batches make both small.

    :param model: a NumPyro model with continuous latent sites. Plates with a ``subsample_size`` draw new rows
        at every step.
    :param batch_size: for a model without such plates: rows of its arguments that a step sees; see
        :func:`~ppl_ext.infer.sgmcmc.minibatch.find_rows`. ``None``: the plates' own, or all data.
    :param step_size: η, or a function of the number of the step: :class:`~ppl_ext.infer.Cyclical`,
        :class:`~ppl_ext.infer.Decay` or one of optax. With ``adapt="scale"`` η is about the size of a move
        relative to the scale of each coordinate.
    :param friction: a, in (0, 1].
    :param adapt: ``"scale"``: M from the gradients of the warm-up. ``None``: M = 1.
    :param temperature: T; 1 is the posterior, below 1 a sharper ("cold") one, 0 descends without noise.
    :param resample_every: draw the momentum anew from :math:`\mathcal{N}(0, \eta^2 M^{-1} T)` every so many
        steps; ``None``: never.
    :param num_steps: steps a draw, warm-up included. ``thinning`` of ``MCMC`` leaves out draws too, but
        NumPyro computes the deterministic sites, which are on all of the data, before it throws a draw away.
    :param clip: the largest norm of the gradient over the number of rows; larger ones are scaled down.
        ``None``: no bound.
    :param init_strategy: one of NumPyro's.
    :raises ArgumentError: if a setting is out of range, or ``batch_size`` does not fit the model.
    :raises ModelError: when run, if the model has a discrete latent site, none at all, or one in a subsampled
        plate.

    ``extra_fields`` of ``MCMC.run`` may ask for ``potential_energy``, ``step_size``, ``sampling``,
    ``adapt_state.square``.

    Sources: Chen, Fox, Guestrin 2014, eq. 13 to 15; Springenberg, Klein, Falkner, Hutter 2016, "Bayesian
    optimization with robust Bayesian neural networks", eq. 8 to 10.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", y.shape[0]):
    ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> kernel = SGHMC(model, batch_size=10, step_size=0.02, friction=0.1)
    >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=200, thinning=10, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.linspace(-1.0, 3.0, 100))
    >>> mcmc.get_samples()["mu"].shape
    (20,)
    """

    def __init__(
        self,
        model: Callable,
        *,
        batch_size: int | None = None,
        step_size: float | Callable[[Any], Any] = 0.01,
        friction: float = 0.01,
        adapt: str | None = "scale",
        temperature: float = 1.0,
        resample_every: int | None = None,
        num_steps: int = 1,
        clip: float | None = None,
        init_strategy: Callable = DEFAULT_INIT,
    ):
        super().__init__(model, batch_size, step_size, temperature, num_steps, clip, init_strategy)
        check_number("SGHMC: friction", friction)
        if not 0.0 < friction <= 1.0:
            raise ArgumentError(f"SGHMC: friction must be in (0, 1], got {described(friction)}.")
        if adapt is not None and not (isinstance(adapt, str) and adapt == "scale"):
            raise ArgumentError(f"SGHMC: adapt must be 'scale' or None, got {described(adapt)}.")
        if resample_every is not None:
            check_count("SGHMC: resample_every", resample_every)
        self._friction, self._adapt, self._resample_every = float(friction), adapt, resample_every

    def begin(self, z: Values) -> tuple[Values, Scale | None]:
        ones = jax.tree.map(jnp.ones_like, z)
        return jax.tree.map(jnp.zeros_like, z), Scale(ones, ones, ones) if self._adapt else None

    def move(self, state: SGState, gradient: Values, noise: Values, step_size, temperature, key):
        scale = state.adapt_state
        if scale is not None:
            scale = _adapted(scale, gradient, state.i < self._num_warmup)
            inverse = jax.tree.map(jax.lax.rsqrt, scale.square)
        else:
            inverse = jax.tree.map(jnp.ones_like, gradient)
        a, squared = self._friction, step_size**2
        # The scale's square is the gradient's noise, if most of it is noise: brought along, it is taken off
        # what is added.
        own, least = (squared**2, LEAST_NOISE) if scale is not None else (0.0, 0.0)

        def push(v, g, m, x):
            variance = jnp.maximum(2.0 * squared * a * m * temperature - own, least)
            return (1.0 - a) * v - squared * m * g + jnp.sqrt(variance) * x

        momentum = state.momentum
        if self._resample_every is not None:
            anew = state.i % self._resample_every == 0
            momentum = self._resampled(anew, momentum, inverse, step_size, temperature, key)
        momentum = jax.tree.map(push, momentum, gradient, inverse, noise)
        return momentum, momentum, scale

    @staticmethod
    def _resampled(anew: jax.Array, momentum: Values, inverse: Values, step_size, temperature, key) -> Values:
        def draw():
            keys = jax.random.split(key, len(inverse))
            return {
                name: step_size * jnp.sqrt(m * temperature) * jax.random.normal(k, m.shape, m.dtype)
                for k, (name, m) in zip(keys, sorted(inverse.items()), strict=True)
            }

        return jax.lax.cond(anew, draw, lambda: momentum)


def _adapted(scale: Scale, gradient: Values, warm: jax.Array) -> Scale:
    """One step of the running averages, where ``warm``."""

    def one(tau, g, square, new):
        rho = 1.0 / (tau + 1.0)
        window = tau + 1.0 - tau * g**2 / square
        mean, mean_square = (1.0 - rho) * g + rho * new, (1.0 - rho) * square + rho * new**2
        return tuple(jnp.where(warm, x, old) for x, old in ((window, tau), (mean, g), (mean_square, square)))

    found = {
        name: one(scale.window[name], scale.mean[name], scale.square[name], g) for name, g in gradient.items()
    }
    return Scale(*({name: x[i] for name, x in found.items()} for i in range(3)))
