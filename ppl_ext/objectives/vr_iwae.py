"""The VR-IWAE bound (Daudel, Benton, Shi, Doucet 2023, eq. 4)."""

from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.objectives.doubly_reparameterized import DoublyReparameterized
from ppl_ext.objectives.renyi import Renyi


@objective
def VRIWAE(model, guide, alpha: float = 0.5, num_particles: int = 8, doubly_reparameterized: bool = False):
    r"""A lower bound for every K and 0 ≤ α < 1, from the importance-weighted one (α = 0) to the ELBO (α → 1).

    .. math:: \tfrac{1}{1 - \alpha} \mathbb{E}_{z_{1:K} \sim q} \log \tfrac1K \sum_k \Big(\tfrac{p(y,
        z_k)}{q(z_k)}\Big)^{1 - \alpha}

    It is :class:`~ppl_ext.objectives.Renyi` where that is a bound, seen as a bound of its own and not as an
    estimate of Rényi's. A larger α keeps more particles in play where few would take all the weight.

    :param alpha: at least 0 and less than 1.
    :param num_particles: K, at least 1.
    :param doubly_reparameterized: the gradient of theorem 1: see
        :class:`~ppl_ext.objectives.DoublyReparameterized`, which says what it asks of the guide. Without it,
        every gradient strategy serves.
    :raises ArgumentError: for α out of its range, or a number of particles below 1.
    :raises StrategyError: with ``doubly_reparameterized``, if a site of the guide is not reparameterised; the
        message names it.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):
    ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> bounds = [VRIWAE(alpha, 8) for alpha in (0.0, 0.5, 0.9)]
    >>> losses = [bound.loss(jax.random.key(0), {}, model, guide, 1.0) for bound in bounds]
    >>> bool(losses[0] < losses[1] < losses[2])  # the tighter the bound, the lower the loss
    True

    Source: Daudel, Benton, Shi, Doucet 2023, eq. 4.
    """
    if not 0 <= alpha < 1:
        raise ArgumentError(
            f"VRIWAE(alpha=...) must be at least 0 and less than 1, got {alpha}. See Renyi for other orders."
        )
    if doubly_reparameterized:
        return DoublyReparameterized(num_particles, alpha)(model, guide)
    return Renyi(alpha, num_particles)(model, guide)
