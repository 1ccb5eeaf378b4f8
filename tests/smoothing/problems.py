"""Two state-space models written out by hand, with exact answers: a linear Gaussian one and a finite one."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from ppl_ext.smoothing.space import Functional, Space
from ppl_ext.state_space.filtering import Rules
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import systematic

T = 5


class Gaussian(NamedTuple):
    """x_0 ~ N(0, 1); x_t ~ N(phi x_{t-1}, scale²); y_t ~ N(x_t, noise²)."""

    phi: float = 0.9
    scale: float = 0.6
    noise: float = 0.7

    proposal = None

    def model(self, y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(self.phi * x, self.scale))
            numpyro.sample("y", dist.Normal(x, self.noise), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


class Guided(Gaussian):
    """The same model, moved by a wide proposal around half way to the observation."""

    def proposal(self, parameters, x, y_t):
        numpyro.sample("x", dist.Normal(0.5 * (self.phi * x + y_t), 1.0))


class Finite(NamedTuple):
    """Three states; the first observation is of the state after one step."""

    initial_probs: np.ndarray = np.array([0.5, 0.3, 0.2], np.float32)
    transition: np.ndarray = np.array([[0.7, 0.25, 0.05], [0.1, 0.6, 0.3], [0.3, 0.0, 0.7]], np.float32)
    emission: np.ndarray = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]], np.float32)

    proposal = None

    def model(self, y):
        initial, transition, emission = map(jnp.asarray, self)

        def step(x, y_t):
            x = numpyro.sample("x", dist.Categorical(transition[x]))
            numpyro.sample("y", dist.Categorical(emission[x]), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Categorical(initial)), y)


def space_of(problem, y, num_particles, kernel, functional=None):
    """The problem as smoothing has it, within a trace."""
    rules = Rules(num_particles, systematic, 0.5, problem.proposal)
    return Space(lower(problem.model, (y,)), rules, kernel, functional=functional)


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
    """A trajectory (..., T + 1) by site."""
    return {"x0": xs[..., 0], "x": xs[..., 1:]}


def whole(path):
    """And back."""
    return jnp.concatenate([path["x0"][None], path["x"]])


PROBLEMS = {
    "gaussian": (Gaussian(), GAUSSIAN_Y, gaussian_exact, gaussian_draws),
    "guided": (Guided(), GAUSSIAN_Y, gaussian_exact, gaussian_draws),
    "finite": (Finite(), FINITE_Y, finite_exact, finite_draws),
}
