"""f-divergences from the posterior to the guide (Csiszár 1967; Wan, Li, Li, Hou 2020, eq. 1)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ppl_ext.densities.log_density import per_element
from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach
from ppl_ext.program import log_density, simulate
from ppl_ext.runtime.arguments import described

# f of the ratio r = p(z | y) / q(z), as functions of log r.
GENERATORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "jeffreys": lambda log_r: jnp.expm1(log_r) * log_r,
    "jensen_shannon": lambda log_r: (
        0.5 * (jnp.exp(log_r) * log_r - (1 + jnp.exp(log_r)) * (jax.nn.softplus(log_r) - jnp.log(2.0)))
    ),
    "hellinger": lambda log_r: 0.5 * jnp.expm1(0.5 * log_r) ** 2,
}


@objective
def FDivergence(model, guide, divergence: str | Callable = "jeffreys", num_particles: int = 8):
    r"""Minus a divergence between posterior and guide, from K draws of the guide and their self-normalised
    weights.

    .. math:: -D_f \approx -\tfrac1K \sum_k f(K \bar w_k), \qquad D_f = \mathbb{E}_{z \sim q} f\Big(\tfrac{p(z
        \mid y)}{q(z)}\Big), \qquad
        \bar w_k = \tfrac{w_k}{\sum_j w_j}, \; w_k = \tfrac{p(y, z_k)}{q(z_k)}

    ================ ===================================== ===============================================
    divergence       f(r)                                  it is
    ================ ===================================== ===============================================
    "jeffreys"       (r − 1) log r                         KL(q ‖ p) + KL(p ‖ q), both ways at once
    "jensen_shannon" ½ (r log r − (1 + r) log ((1 + r)/2)) between 0 and log 2, even where supports differ
    "hellinger"      ½ (√r − 1)²                           the squared distance, between 0 and 1
    ================ ===================================== ===============================================

    What is unbiased: value and gradient, for the expectation of this K-particle expression, under every
    gradient strategy. What is biased: that expression as an estimate of :math:`D_f`, by O(1/K), because the
    evidence in :math:`\bar w` is estimated from the same draws; it is too small where the guide misses mass
    of the posterior that no draw finds. No bound on the evidence. It trains the guide only. Taken element by
    element over a plate that holds every site, it is the sum of the elements' divergences.

    :param divergence: a name from the table, or f itself as a function of log r, convex in r with f(1) = 0.
    :param num_particles: K, at least 2; use many.
    :raises ArgumentError: for an unknown divergence, or a number of particles below 2.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
    >>> def shifted(y):
    ...     numpyro.sample("z", dist.Normal(y / 2 + 1.0, 0.5**0.5))
    >>> hellinger = FDivergence("hellinger")
    >>> losses = [hellinger.loss(jax.random.key(0), {}, model, g, 1.0) for g in (guide, shifted)]
    >>> [round(float(loss), 2) > 0.0 for loss in losses]
    [False, True]

    Source: Csiszár 1967; Wan, Li, Li, Hou 2020, eq. 1.
    """
    if isinstance(divergence, str) and divergence not in GENERATORS:
        raise ArgumentError(
            f"FDivergence: unknown divergence {divergence!r}; known: {', '.join(GENERATORS)}, or a function "
            "of log r."
        )
    f = GENERATORS[divergence] if isinstance(divergence, str) else divergence
    if not callable(f):
        raise ArgumentError(
            f"FDivergence(divergence=...) takes a name or a function of log r, got {described(divergence)}."
        )
    if num_particles < 2:
        raise ArgumentError(
            "FDivergence needs num_particles of at least 2: the weight of a single particle is always 1."
        )

    def log_weight():
        draw = simulate(guide)
        return log_density(detach(model), draw.values) - draw.log_density

    def mean_f(log_weights):
        # else every weight is zero: of no posterior it is infinitely far
        sane = jnp.max(log_weights, axis=0) > -jnp.inf
        log_ratio = jax.nn.log_softmax(jnp.where(sane, log_weights, 0.0), axis=0) + jnp.log(num_particles)
        # A weight of zero: f(0) itself is finite or not; in logarithms it would be NaN.
        return jnp.where(sane, jnp.mean(f(jnp.maximum(log_ratio, -60.0)), axis=0), jnp.inf)

    return -per_element(mean_f, replicate(log_weight, num_particles))
