"""Variational Rényi bound (Li and Turner 2016, eq. 9)."""

from ppl_ext.densities.log_density import log_mean_exp, lower_bound
from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.program import log_density, simulate


@objective
def Renyi(model, guide, alpha: float = 0.5, num_particles: int = 2):
    r"""Bound of order α on the evidence, between the ELBO (α → 1) and the importance-weighted bound (α = 0).

    .. math:: \tfrac{1}{1 - \alpha} \mathbb{E}_{z_{1:K} \sim q} \log \tfrac1K \sum_k \Big(\tfrac{p(y,
        z_k)}{q(z_k)}\Big)^{1 - \alpha}

    A lower bound for 0 ≤ α < 1 and any K. For α < 0 the exact Rényi divergence gives an upper bound, which K
    particles reach from below; for α > 1 it is a lower bound that K particles reach from above. Taken element
    by element over a plate that holds every site.

    :param alpha: the order, not 1 (that is :class:`~ppl_ext.objectives.ELBO`).
    :param num_particles: K, at least 1.
    :raises ArgumentError: for α = 1, or a number of particles below 1.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.
    :raises DirectionError: if a density is estimated and errs to the wrong side.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
    >>> # log p(y)
    >>> losses = [Renyi(a).loss(jax.random.key(0), {}, model, guide, 1.0) for a in (0.0, 0.5, 2.0)]
    >>> [round(-float(loss), 2) for loss in losses]
    [-1.52, -1.52, -1.52]

    Source: Li and Turner 2016, eq. 9.
    """
    if alpha == 1:
        raise ArgumentError("Renyi(alpha=1) is the ELBO: use ppl_ext.objectives.ELBO().")

    def log_weight():
        draw = simulate(guide)
        return log_density(model, draw.values) - draw.log_density

    return lower_bound(log_mean_exp((1 - alpha) * replicate(log_weight, num_particles)) / (1 - alpha))
