"""Stochastic gradient Langevin dynamics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.infer.sgmcmc.kernel import DEFAULT_INIT, SGState, StochasticGradientKernel
from ppl_ext.infer.sgmcmc.potential import Values


class SGLD(StochasticGradientKernel):
    r"""Langevin dynamics on minibatch gradients, for NumPyro's ``MCMC``.

    .. math:: z \leftarrow z - \eta \tilde g + \mathcal{N}(0, 2 \eta T)

    with :math:`\tilde g` the estimated gradient of the potential, η the step size and T the temperature.
    There is no Metropolis step: where the posterior is normal with precision H, the stationary variance is
    :math:`(2 T + \eta \mathrm{Var}(\tilde g)) / (H (2 - \eta H))` in each direction, which is T / H only as η
    goes to zero.

    :param model: a NumPyro model with continuous latent sites. Plates with a ``subsample_size`` draw new rows
        at every step.
    :param batch_size: for a model without such plates: rows of its arguments that a step sees; see
        :func:`~ppl_ext.infer.sgmcmc.minibatch.find_rows`. ``None``: the plates' own, or all data.
    :param step_size: η, or a function of the number of the step: :class:`~ppl_ext.infer.Cyclical`,
        :class:`~ppl_ext.infer.Decay` or one of optax.
    :param temperature: as for :class:`~ppl_ext.infer.SGHMC`.
    :param num_steps: as for :class:`~ppl_ext.infer.SGHMC`.
    :param clip: as for :class:`~ppl_ext.infer.SGHMC`.
    :param init_strategy: as for :class:`~ppl_ext.infer.SGHMC`.
    :raises ArgumentError: if a setting is out of range, or ``batch_size`` does not fit the model.
    :raises ModelError: when run, if the model has a discrete latent site, none at all, or one in a subsampled
        plate.

    Source: Welling and Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics", eq. 4, with η
    for half their ε.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from ppl_ext.infer import Decay
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", y.shape[0], subsample_size=10):
    ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, event_dim=0))
    >>> mcmc = MCMC(SGLD(model, step_size=Decay(1e-3)), num_warmup=100, num_samples=200, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.linspace(-1.0, 3.0, 100))
    >>> mcmc.get_samples()["mu"].shape
    (200,)
    """

    def __init__(
        self,
        model: Callable,
        *,
        batch_size: int | None = None,
        step_size: float | Callable[[Any], Any] = 1e-4,
        temperature: float = 1.0,
        num_steps: int = 1,
        clip: float | None = None,
        init_strategy: Callable = DEFAULT_INIT,
    ):
        super().__init__(model, batch_size, step_size, temperature, num_steps, clip, init_strategy)

    def begin(self, z: Values) -> tuple[Values, None]:
        return {}, None

    def move(self, state: SGState, gradient: Values, noise: Values, step_size, temperature, key):
        spread = jnp.sqrt(2.0 * step_size * temperature)
        return jax.tree.map(lambda g, x: spread * x - step_size * g, gradient, noise), {}, None
