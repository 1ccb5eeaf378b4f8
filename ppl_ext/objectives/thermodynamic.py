"""Thermodynamic variational objective (Masrani, Le, Wood 2019, eqs. 8 and 12)."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.log_density import lower_bound, per_element
from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach
from ppl_ext.objectives.terms.path_gradient import SameRun, fixed
from ppl_ext.objectives.terms.self_normalised import normalised, signal
from ppl_ext.program import log_density, simulate

_stop = jax.lax.stop_gradient


@objective
def Thermodynamic(
    model, guide, num_particles: int = 8, num_partitions: int = 4, first: float = 0.1, covariance: bool = True
):
    r"""Lower bound: a left Riemann sum along the geometric path from the guide (β = 0) to the posterior (β =
    1).

    .. math:: \log p(y) = \int_0^1 \mathbb{E}_{\pi_\beta} \Big[\log \tfrac{p(y, z)}{q(z)}\Big] d\beta
        \ge \sum_{t=0}^{T-1} (\beta_{t+1} - \beta_t) \, \mathbb{E}_{\pi_{\beta_t}}\Big[\log \tfrac{p(y,
        z)}{q(z)}\Big], \qquad \pi_\beta \propto q^{1 - \beta} p^\beta

    The expectations are self-normalised over the same K draws of q, with weights :math:`w_k^\beta`. That
    makes it, for every K, the left sum of the increasing derivative of
    :math:`\beta \mapsto \mathbb{E} \log \tfrac1K \sum_k w_k^\beta`: it lies between the ELBO and the
    importance-weighted bound of K particles. T = 1 is the ELBO.

    The covariance gradient needs no reparameterisation and takes discrete sites as they are:

    .. math:: \nabla \mathbb{E}_{\pi_\beta}[f] = \mathbb{E}_{\pi_\beta}[\nabla f] +
        \mathrm{Cov}_{\pi_\beta}[\nabla \log \tilde\pi_\beta, f]
        , \quad f = \log \tfrac{p(y, z)}{q(z)}, \; \log \tilde\pi_\beta = \beta \log p(y, z) + (1 - \beta)
        \log q(z)

    It is that of the sum with exact expectations; self-normalising biases it by O(1/K). ``covariance=False``
    gives the unbiased gradient of the K-particle bound instead, through the gradient strategies of the sites.

    :param num_particles: K, at least 1; with the covariance gradient use many.
    :param num_partitions: T, the number of terms: β is 0, then T values from ``first`` to 1, evenly spaced in
        logarithms.
    :param first: the smallest β after 0, between 0 and 1.
    :raises ArgumentError: for ``first`` out of its range, or a count below 1.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.
    :raises DirectionError: if a density is estimated and errs upwards.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
    >>> # log p(y), as the whole path is the posterior
    >>> round(-float(Thermodynamic().loss(jax.random.key(0), {}, model, guide, 1.0)), 2)
    -1.52

    Source: Masrani, Le, Wood 2019, eqs. 8 and 12.
    """
    if not 0 < first < 1:
        raise ArgumentError(f"Thermodynamic(first=...) must lie between 0 and 1, got {first}.")
    betas = [0.0, *(np.geomspace(first, 1.0, num_partitions).tolist() if num_partitions > 1 else [1.0])]

    def particle():
        if covariance:
            with (same := SameRun()):
                values = fixed(simulate(detach(guide)).values)
            with same:
                log_q = log_density(guide, values)
            return log_density(model, values) - log_q, log_q
        draw = simulate(guide)
        return log_density(model, draw.values) - draw.log_density, draw.log_density

    def left_sum(log_w, log_q):
        return sum((right - left) * expected(left, log_w, log_q) for left, right in pairwise(betas))

    def expected(beta, f, log_q):
        tempered = beta * f if beta else jnp.zeros_like(f)
        w = normalised(tempered) if covariance else jax.nn.softmax(tempered, axis=0)
        f = jnp.where(w > 0, f, 0.0)  # a draw that cannot be has no weight but for β = 0
        mean = jnp.sum(w * f, axis=0)
        return mean + signal(w * _stop(f - mean), tempered + log_q) if covariance else mean

    return lower_bound(per_element(left_sum, *replicate(particle, num_particles)))
