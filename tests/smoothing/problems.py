"""Two state-space models written out by hand, with exact answers: a linear Gaussian one and a finite one."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from ppl_ext.smoothing.conditional_paris import ParticlePath
from ppl_ext.smoothing.space import Functional, Particles

T = 5


class Gaussian(NamedTuple):
    """x_0 ~ N(0, 1); x_t ~ N(phi x_{t-1}, scale²); y_t ~ N(x_t, noise²)."""

    phi: float = 0.9
    scale: float = 0.6
    noise: float = 0.7

    def initial(self, rng_key, num):
        x = jax.random.normal(rng_key, (num,))
        return Particles(x, x)

    def weigh_initial(self, particles):
        return jnp.zeros_like(particles.carry)

    def move(self, rng_key, carry, inputs):
        x = self.phi * carry + self.scale * jax.random.normal(rng_key, carry.shape)
        return Particles(x, x)

    def weigh(self, carry, particles, inputs):
        return norm.logpdf(inputs, particles.carry, self.noise)

    def log_pair(self, carry, particles, inputs):
        return lambda j, i: norm.logpdf(particles.carry[i], self.phi * carry[j], self.scale)

    def log_bound(self, carry, inputs):
        return jnp.asarray(norm.logpdf(0.0, 0.0, self.scale))


class Guided(Gaussian):
    """The same model, moved by a wide proposal around half way to the observation."""

    def move(self, rng_key, carry, inputs):
        x = self._centre(carry, inputs) + jax.random.normal(rng_key, carry.shape)
        return Particles(x, x)

    def weigh(self, carry, particles, inputs):
        x = particles.carry
        moved = norm.logpdf(x, self.phi * carry, self.scale) + norm.logpdf(inputs, x, self.noise)
        return moved - norm.logpdf(x, self._centre(carry, inputs), 1.0)

    def _centre(self, carry, inputs):
        return 0.5 * (self.phi * carry + inputs)


class Finite(NamedTuple):
    """Three states; the first observation is of the state after one step."""

    initial_probs: np.ndarray = np.array([0.5, 0.3, 0.2], np.float32)
    transition: np.ndarray = np.array([[0.7, 0.25, 0.05], [0.1, 0.6, 0.3], [0.3, 0.0, 0.7]], np.float32)
    emission: np.ndarray = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]], np.float32)

    def initial(self, rng_key, num):
        x = jax.random.choice(rng_key, 3, (num,), p=jnp.asarray(self.initial_probs))
        return Particles(x, x)

    def weigh_initial(self, particles):
        return jnp.zeros(particles.carry.shape)

    def move(self, rng_key, carry, inputs):
        sums = jnp.cumsum(jnp.asarray(self.transition)[carry], -1)
        x = (jax.random.uniform(rng_key, carry.shape)[:, None] * sums[:, -1:] >= sums).sum(-1)
        return Particles(x, x)

    def weigh(self, carry, particles, inputs):
        return jnp.log(jnp.asarray(self.emission)[particles.carry, inputs])

    def log_pair(self, carry, particles, inputs):
        return lambda j, i: jnp.log(jnp.asarray(self.transition)[carry[j], particles.carry[i]])

    def log_bound(self, carry, inputs):
        return jnp.log(0.7)


PRODUCT = Functional(
    initial=lambda particle: {"product": jnp.zeros(()), "first": particle.carry * 1.0, "last": jnp.zeros(())},
    step=lambda inputs, carry, particle: {
        "product": particle.carry * carry * 1.0,
        "first": jnp.zeros(()),
        "last": jnp.zeros(()) + (particle.carry - 0.5 * carry) ** 2,
    },
)
"""E of the sum of x_{t-1} x_t, of x_0, and of the sum of (x_t - x_{t-1} / 2)²."""


def functionals_of(xs):
    """The same three of whole trajectories (..., T + 1)."""
    xs = np.asarray(xs, np.float64)
    before, after = xs[..., :-1], xs[..., 1:]
    return {
        "product": (before * after).sum(-1),
        "first": xs[..., 0],
        "last": ((after - 0.5 * before) ** 2).sum(-1),
    }


def gaussian_smoother(space, y):
    """Mean (T + 1,) and covariance of the states given the observations."""
    num = len(y) + 1
    difference = np.eye(num) - space.phi * np.eye(num, k=-1)
    precision = difference.T @ np.diag([1.0] + [space.scale**-2] * (num - 1)) @ difference
    precision[np.arange(1, num), np.arange(1, num)] += space.noise**-2
    covariance = np.linalg.inv(precision)
    return covariance @ np.concatenate([[0.0], np.asarray(y) / space.noise**2]), covariance


def gaussian_exact(space, y):
    mean, cov = gaussian_smoother(space, y)
    second = cov + np.outer(mean, mean)
    lag, square = np.diag(second, 1), np.diag(second)
    return {"product": lag.sum(), "first": mean[0], "last": (square[1:] - lag + 0.25 * square[:-1]).sum()}


def finite_paths(space, y):
    """All trajectories and their posterior probabilities."""
    paths = np.array(list(itertools.product(range(3), repeat=len(y) + 1)))
    probs = np.asarray(space.initial_probs, np.float64)[paths[:, 0]]
    for t, seen in enumerate(y):
        probs = probs * np.asarray(space.transition, np.float64)[paths[:, t], paths[:, t + 1]]
        probs = probs * np.asarray(space.emission, np.float64)[paths[:, t + 1], seen]
    return paths, probs / probs.sum()


def finite_exact(space, y):
    paths, probs = finite_paths(space, y)
    return {name: (probs * x).sum() for name, x in functionals_of(paths).items()}


GAUSSIAN_Y = np.array([1.2, -0.8, 0.3, 2.0, 0.1], np.float32)
FINITE_Y = np.array([1, 0, 1, 1, 0])


def gaussian_draws(rng, space, y, num):
    mean, covariance = gaussian_smoother(space, y)
    return rng.multivariate_normal(mean, covariance, num).astype(np.float32)


def finite_draws(rng, space, y, num):
    paths, probs = finite_paths(space, y)
    return paths[rng.choice(len(paths), num, p=probs)].astype(np.int32)


def as_path(xs):
    """A trajectory (..., T + 1) as a path."""
    first, rest = xs[..., 0], xs[..., 1:]
    return ParticlePath(Particles(first, first), Particles(rest, rest))


PROBLEMS = {
    "gaussian": (Gaussian(), GAUSSIAN_Y, gaussian_exact, gaussian_draws),
    "guided": (Guided(), GAUSSIAN_Y, gaussian_exact, gaussian_draws),
    "finite": (Finite(), FINITE_Y, finite_exact, finite_draws),
}
