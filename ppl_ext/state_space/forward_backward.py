r"""Exact smoothing of finite states: sums over the joint states, forward and backward (Rabiner 1989,
equations 19 to 37).

.. math:: \alpha_t(b) = \sum_a \alpha_{t-1}(a) \, m(b \mid a) \, g(y_t \mid a, b), \qquad
    \beta_{t-1}(a) = \sum_b m(b \mid a) \, g(y_t \mid a, b) \, \beta_t(b)
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from ppl_ext.densities.distributions import elements
from ppl_ext.errors import ModelError
from ppl_ext.gradients import finite_support
from ppl_ext.state_space.compensated_sum import plus, zero
from ppl_ext.state_space.lagged import Lagged
from ppl_ext.state_space.model import Particle, StateSpace
from ppl_ext.state_space.parallel_chain import backward_sums, forward_sums, log_sum
from ppl_ext.state_space.prefixes import tree_sum
from ppl_ext.state_space.smoothed import Smoothed


def joint_points(sites: dict, max_states: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Every joint value of the sites, by site (K, ...) and raveled (K, d).

    :raises ModelError: if there are more than ``max_states``.
    """
    supports, total = {}, 1
    for name, site in sites.items():
        values = np.asarray(finite_support(elements(site.fn))).reshape(-1)
        supports[name] = values
        total *= len(values) ** math.prod(site.shape)
    if total > max_states:
        raise ModelError(
            f"The sites {', '.join(map(repr, sites))} have {total} joint states, more than "
            f"max_states={max_states}."
        )
    out, stride = {}, 1
    for name, site in sites.items():
        size, count = len(supports[name]), math.prod(site.shape)
        digits = (np.arange(total) // stride)[:, None] // size ** np.arange(count) % size
        stride *= size**count
        out[name] = jnp.asarray(supports[name][digits].reshape(total, *site.shape), site.dtype)
    flat = [v.reshape(total, -1).astype(jnp.float32) for v in jax.tree.leaves(out)]
    return out, jnp.concatenate(flat, 1) if flat else jnp.zeros((total, 0))


def smooth_finite(ss: StateSpace | Lagged, max_states: int, parallel: bool = False) -> Smoothed:
    """Smooth the finite states of a series of at least one step."""
    start_values, start_points = joint_points(ss.initial_sites, max_states)
    values, points = joint_points(ss.step_sites, max_states)
    start = jax.vmap(ss.initial, axis_size=len(start_points))(start_values)

    def densities(particles: Particle, x):
        """log m g of every state after every state, and the particles in the new states."""
        step = jax.vmap(lambda p: jax.vmap(lambda v: ss.step(p, v, x))(values))(particles)
        return step.log_transition + step.log_emission, jax.tree.map(lambda leaf: leaf[0], step.particle)

    def summed(log_alpha, log_density):
        alpha = log_sum(log_alpha[:, None] + log_density, 0)
        norm = log_sum(alpha, 0)
        lost = jnp.where(jnp.isfinite(norm), 0.0, -jnp.inf)
        norm = jnp.where(jnp.isfinite(norm), norm, 0.0)
        return alpha - norm, norm + lost

    def forth(state, x):
        particles, log_alpha, total = state
        log_density, new = densities(particles, x)
        alpha, norm = summed(log_alpha, log_density)
        return (new, alpha, plus(total, norm)), (log_alpha, log_density, norm)

    log_alpha = start.log_initial + start.log_emission
    log_first = logsumexp(log_alpha)
    safe = jnp.where(jnp.isfinite(log_first), log_first, 0.0)
    state = (start.particle, log_alpha - safe, plus(zero(), log_first))
    state, (alpha_0, density_0, norm_0) = forth(state, ss.inputs(0))
    later = jax.tree.map(lambda a: a[1:], ss.xs)
    if parallel:
        anything = jax.tree.map(lambda leaf: leaf[0], start.particle)
        particles = jax.vmap(lambda x: jax.vmap(lambda v: ss.moved(anything, v, x))(values))(ss.xs)
        before = jax.tree.map(lambda leaf: leaf[:-1], particles)
        log_densities = jax.vmap(lambda p, x: densities(p, x)[0])(before, later)
        alphas = forward_sums(state[1], log_densities)
        sums, norms = jax.vmap(summed)(alphas, log_densities)
        last = jnp.concatenate([state[1][None], sums])[-1]
        total = tree_sum(jnp.concatenate([log_first[None], norm_0[None], norms]))
    else:
        (_, last, total), (alphas, log_densities, norms) = lax.scan(forth, state, later)

    def back(log_beta, inputs):
        alpha, density = inputs
        joint = alpha[:, None] + density + log_beta[None]
        probs = jnp.exp(joint - logsumexp(joint))
        beta = logsumexp(density + log_beta[None], axis=1)
        return beta - beta.max(), probs

    if parallel:
        betas = jnp.concatenate([backward_sums(log_densities), jnp.zeros_like(last)[None]])
        behind, (_, pairs) = betas[0], jax.vmap(back)(betas[1:], (alphas, log_densities))
    else:
        behind, pairs = lax.scan(back, jnp.zeros_like(last), (alphas, log_densities), reverse=True)
    _, pair_0 = back(behind, (alpha_0, density_0))
    mean_0, covariance_0 = _moments(pair_0.sum(1), start_points)
    probs = jnp.concatenate([pair_0.sum(0)[None], pairs.sum(1)])
    mean, covariance = jax.vmap(lambda p: _moments(p, points))(probs)
    filtered = jnp.exp(jnp.concatenate([alphas, last[None]]))
    filtered_mean, filtered_covariance = jax.vmap(lambda p: _moments(p, points))(filtered)
    cross = jnp.einsum("tij,ia,jb->tab", pairs, points, points) - mean[:-1, :, None] * mean[1:, None]
    first_cross = jnp.einsum("ij,ia,jb->ab", pair_0, start_points, points) - mean_0[:, None] * mean[0][None]
    return Smoothed(
        total.value,
        mean_0,
        covariance_0,
        first_cross,
        mean,
        covariance,
        cross,
        log_first,
        jnp.concatenate([norm_0[None], norms]),
        filtered_mean,
        filtered_covariance,
        probs,
        points,
        filtered,
        pair_0,
        pairs,
    )


def _moments(probs, points):
    mean = probs @ points
    return mean, (points - mean).T @ (probs[:, None] * (points - mean))
