"""Forward KL by self-normalised importance sampling: the wake phase of the guide (Bornschein and Bengio 2015,
eq. 14).
"""

import jax
import jax.numpy as jnp

from ppl_ext.densities.log_density import log_mean_exp
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach
from ppl_ext.objectives.terms.path_gradient import SameRun, fixed
from ppl_ext.objectives.terms.self_normalised import normalised, signal
from ppl_ext.program import log_density, simulate


@objective
def ForwardKL(model, guide, num_particles: int = 8):
    r"""Minus the divergence from the posterior to the guide, KL(p(z | y) ‖ q): a guide that covers the
    posterior.

    .. math:: -\mathrm{KL} \approx -\sum_k \bar w_k \log \tfrac{p(y, z_k)}{q(z_k)} + \log \tfrac1K \sum_k w_k,
        \qquad
        w_k = \tfrac{p(y, z_k)}{q(z_k)}, \; \bar w_k = \tfrac{w_k}{\sum_j w_j}, \; z_k \sim q

    Draws and weights are held fixed, so the gradient is :math:`\sum_k \bar w_k \nabla \log q(z_k)`: it trains
    the guide only, never differentiates through a draw, and takes discrete sites as they are. Not a bound.
    Self-normalising biases it by O(1/K); K = 1 has no signal of the posterior. Where every weight is zero the
    value is −inf and the gradient zero.

    :param num_particles: K, at least 1; use many.
    :raises ArgumentError: for a number of particles below 1.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
    >>> abs(round(float(ForwardKL().loss(jax.random.key(0), {}, model, guide, 1.0)), 3))
    0.0

    Source: Bornschein and Bengio 2015, eq. 14.
    """

    def particle():
        with (same := SameRun()):
            draw = simulate(detach(guide))
        log_p = log_density(detach(model), draw.values)
        with same:
            log_q = log_density(guide, fixed(draw.values))
        return jax.lax.stop_gradient(log_p.total - draw.log_density.total), log_q.total

    log_weights, log_q = replicate(particle, num_particles)
    weights = normalised(log_weights)
    # of the fixed draws
    divergence = jnp.sum(weights * jnp.where(weights > 0, log_weights, 0.0)) - log_mean_exp(log_weights)
    return signal(weights, log_q) - divergence
