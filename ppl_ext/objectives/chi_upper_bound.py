"""An upper bound on the evidence from a χ divergence (Dieng, Tran, Ranganath, Paisley, Blei 2017, eq. 3)."""

import math

import jax
import jax.numpy as jnp

from ppl_ext.densities.bound_direction import powered
from ppl_ext.densities.log_density import log_mean_exp, per_element, upper_bound
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.expectations.objective import carried, objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.program import log_density, simulate

_stop = jax.lax.stop_gradient
HIGHEST = 60.0  # log of the largest power of a weight, beside the normaliser, that is let through


@objective
def ChiUpperBound(model, guide, order: float = 2.0, num_particles: int = 8, decay: float = 0.9):
    r"""Minus an upper bound on the evidence, so that maximising it brings the bound down; ``loss`` is the
    bound itself.

    .. math:: \log p(y) \le \tfrac1n \log \mathbb{E}_{z \sim q}[w^n]
        \le \tfrac1n \Big( \tfrac{1}{c} \, \mathbb{E}_{z_{1:K} \sim q} \Big[ \tfrac1K \sum_k w_k^n \Big] +
        \log c - 1 \Big), \qquad w = \tfrac{p(y, z)}{q(z)}

    The middle is CUBO. A log of an average over K draws would err *downwards* and be no upper bound; the
    tangent of the logarithm at any c > 0 is one, its value and gradient are unbiased, and it touches CUBO at
    :math:`c = \mathbb{E}[w^n]`. The objective carries a running normaliser c of the draws of earlier steps
    (start it with ``carried_by`` in NumPyro's ``SVI``). The guide becomes one that covers the posterior.
    Weights are powers: where the guide's tails are lighter than the posterior's, the variance is infinite.
    Should a weight exceed c by a factor of :math:`e^{60}`, that step's c is raised to let it through, at the
    price of a bias in that step.

    Serves every gradient strategy. Estimated densities that err to either side are fine, since powers of them
    err upwards. Taken element by element over a plate that holds every site; subsampled plates are refused,
    for a minibatch has no normaliser of its own.

    :param order: n, at least 1.
    :param num_particles: K, at least 1.
    :param decay: share of the running normaliser that is kept each step, at least 0 and less than 1.
    :raises ArgumentError: for an order or a decay out of its range, or a number of particles below 1.
    :raises ModelError: if a plate is subsampled.
    :raises DirectionError: if powers of an estimated density make no upper bound.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
    >>> from ppl_ext.objectives import ELBO
    >>> key, upper = jax.random.key(0), ChiUpperBound()
    >>> state = upper.initial_state(key, {}, model, guide, 1.0)  # fit does this by itself
    >>> below, above = -ELBO().loss(key, {}, model, guide, 1.0), upper.loss(key, state, model, guide, 1.0)
    >>> round(float(below), 2), round(float(above), 2)  # at the posterior the bracket closes, on log p(y)
    (-1.52, -1.52)

    Source: Dieng, Tran, Ranganath, Paisley, Blei 2017, eq. 3, by the tangent of its logarithm.
    """
    if order < 1:
        raise ArgumentError(f"ChiUpperBound(order=...) must be at least 1, got {order}.")
    if not 0 <= decay < 1:
        raise ArgumentError(f"ChiUpperBound(decay=...) must be at least 0 and less than 1, got {decay}.")

    def log_weight():
        draw = simulate(guide)
        return log_density(model, draw.values) - draw.log_density

    def tangent(log_w):
        now = log_mean_exp(order * _stop(log_w))
        state = carried("ChiUpperBound", lambda: {"log_normaliser": now})
        log_c = jnp.maximum(state["log_normaliser"], order * _stop(log_w.max(0)) - HIGHEST)
        state["log_normaliser"] = (
            jnp.logaddexp(log_c + math.log(decay), now + math.log1p(-decay)) if decay else now
        )
        return (jnp.mean(jnp.exp(order * log_w - log_c), axis=0) + log_c - 1) / order

    log_weights = replicate(log_weight, num_particles)
    for plate in (p for label in log_weights.labels for p in label.plates if p.scale != 1):
        raise ModelError(
            f"ChiUpperBound: plate '{plate.name}' is subsampled, and its elements have no running "
            "normaliser. Use the full data."
        )
    return -upper_bound(per_element(tangent, log_weights, direction=powered(order)))
