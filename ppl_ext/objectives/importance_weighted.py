"""Importance-weighted evidence lower bound (Burda, Grosse, Salakhutdinov 2016, eq. 8)."""

from ppl_ext.densities.log_density import log_mean_exp, lower_bound
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.program import log_density, simulate


@objective
def IWELBO(model, guide, num_particles: int = 8):
    r"""Tighter lower bound on the evidence, from K draws of the guide.

    .. math:: \log p(y) \ge \mathbb{E}_{z_{1:K} \sim q} \log \tfrac1K \sum_k \tfrac{p(y, z_k)}{q(z_k)}

    K = 1 is the ELBO; the bound tightens with K, while the gradient's signal for the guide weakens as 1/√K
    (Rainforth et al. 2018). Taken element by element over a plate that holds every site. Score-function sites
    use VIMCO (see :class:`~ppl_ext.gradients.LeaveOneOut`).

    :param num_particles: K, at least 1.
    :raises ArgumentError: for a number of particles below 1.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.
    :raises DirectionError: if a density is estimated and errs upwards.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the prior; log p(y) is -1.52
    ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> from ppl_ext.objectives import ELBO
    >>> bounds = ELBO(10_000), IWELBO(10_000)
    >>> [round(-float(bound.loss(jax.random.key(0), {}, model, guide, 1.0)), 1) for bound in bounds]
    [-1.9, -1.5]

    Source: Burda, Grosse, Salakhutdinov 2016, eq. 8.
    """

    def log_weight():
        draw = simulate(guide)
        return log_density(model, draw.values) - draw.log_density

    return lower_bound(log_mean_exp(replicate(log_weight, num_particles)))
