"""Log densities of what is known by its score alone: exactly along the probability flow, and by chance from
the score at random levels of noise.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ppl_ext.scores.schedule import VariancePreserving


def carried_along(score: Callable, x, levels) -> tuple[jax.Array, jax.Array]:
    r"""One point carried along the probability flow through levels of noise, and the log of its change of
    volume.

    .. math:: \frac{dx}{d \log u} = -u^2 s(x, u), \qquad \int -u^2 \, \nabla \cdot s \; d \log u

    Runge and Kutta's steps of fourth order in log u, in which the flow is smooth.

    :param x: (d,), at the first level.
    :return: the point at the last level, (d,), and the integral of the divergence on the way, ().
    """
    identity = jnp.eye(len(x), dtype=x.dtype)

    def slope(x, log_level):
        level = jnp.exp(log_level)
        value, push = jax.linearize(lambda y: score(y, level), x)
        divergence = jnp.trace(jax.vmap(push)(identity))
        return -(level**2) * value, -(level**2) * divergence

    def step(state, ends):
        (x, volume), (here, there) = state, ends
        size = there - here
        a, da = slope(x, here)
        b, db = slope(x + 0.5 * size * a, here + 0.5 * size)
        c, dc = slope(x + 0.5 * size * b, here + 0.5 * size)
        d, dd = slope(x + size * c, there)
        x = x + size / 6 * (a + 2 * b + 2 * c + d)
        return (x, volume + size / 6 * (da + 2 * db + 2 * dc + dd)), None

    logs = jnp.log(levels)
    return jax.lax.scan(step, (x, jnp.zeros((), x.dtype)), (logs[:-1], logs[1:]))[0]


def levels_of(schedule: VariancePreserving, num: int) -> jax.Array:
    """The ends of so many steps from the least to the largest level of noise, even in its log."""
    return jnp.geomspace(schedule.ratio(schedule.start), schedule.ratio(1.0), num + 1)


def flow_log_density(score: Callable, schedule: VariancePreserving, x, num_levels: int) -> jax.Array:
    r"""The log density at one point, by the change of volume along the probability flow.

    .. math:: \log p(x) = \log p_T(x_T) - \int u^2 \, \nabla \cdot s(x_u, u) \; d \log u

    with :math:`p_T = \mathcal{N}(0, (1 + u_T^2) I)` (Song et al. 2021, eq. 39, in log u).
    """
    levels = levels_of(schedule, num_levels)
    end, volume = carried_along(score, x, levels)
    variance = 1 + levels[-1] ** 2
    return -0.5 * (end @ end / variance + len(x) * jnp.log(2 * math.pi * variance)) + volume


def noisy_log_density(score: Callable, schedule: VariancePreserving, x, rng_key, num_levels: int):
    r"""An unbiased estimate of the log density at one point, whose gradient by the point is the score itself.

    .. math:: \log p(x) = \log \mathcal{N}(x; 0, I) - \int \mathbb{E}_\varepsilon \big[ \|u s +
        \varepsilon\|^2 - \|u s_0 + \varepsilon\|^2 \big] \, d \log u, \qquad s = s(x + u \varepsilon, u),
        \quad s_0 = -\frac{x + u \varepsilon}{1 + u^2}

    It is the bound of Song, Durkan, Murray and Ermon (2021, theorem 3), an equality where s is exact, less
    the same for a standard Gaussian, which s resembles at much noise. Levels are stratified in log u, each
    with its noise and the opposite one.
    """
    shift, noise = jax.random.split(rng_key)
    low, high = jnp.log(schedule.ratio(schedule.start)), jnp.log(schedule.ratio(1.0))
    where = (jnp.arange(num_levels) + jax.random.uniform(shift, (num_levels,))) / num_levels
    held = jax.lax.stop_gradient(x)

    def integrand(level, noise):
        point = held + level * noise
        plain = noise - level * point / (1 + level**2)
        return jnp.sum(jnp.square(level * score(point, level) + noise) - jnp.square(plain))

    noises = jax.random.normal(noise, (num_levels, len(x)), x.dtype)
    levels = jnp.exp(low + (high - low) * where)
    integral = (high - low) * jax.vmap(integrand)(
        jnp.tile(levels, 2), jnp.concatenate([noises, -noises])
    ).mean()
    pull = jax.lax.stop_gradient(score(held, jnp.exp(low)))
    return -0.5 * (held @ held + len(x) * math.log(2 * math.pi)) - integral + pull @ (x - held)
