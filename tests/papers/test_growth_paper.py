"""What the program about growth mixtures claims, at its small sizes and whole, and what its intervals are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import ppl_ext
from tests.papers.programs import claims, module
from tools.papers import Claim


def assert_covered(rows, num_sets):
    """Shares of independent sets: 95 % with a standard error that is known."""
    shares = np.array([float(row.ours.split()[0]) for row in rows])
    error = 100 * (0.95 * 0.05 / num_sets) ** 0.5
    assert len(shares) == 7 and (np.abs(shares - 95) < 3.5 * error).all()


@pytest.mark.slow
def test_intervals_of_a_growth_mixture():
    assert_covered(claims("growth_mixture"), 20)


@pytest.mark.slow
def test_intervals_of_a_growth_mixture_cover_at_full_size():
    *rows, without = (Claim(*row) for row in module("growth_mixture").claims())
    assert_covered(rows, 300)
    assert all(92 <= float(row.ours.split()[0]) <= 98 for row in rows)
    assert min(float(x) for x in re.findall(r"\d+(?=,|$)", without.ours)) < 80


def test_classes_are_summed_out_and_levels_are_in_the_covariance():
    """The density against one written out: a mixture of two normal laws of five times."""
    program, y = module("growth_mixture"), module("growth_mixture").simulated(jax.random.key(0))[:4]
    found = ppl_ext.log_density(program.model, program.TRUTH, y)
    covariance = 0.36 * np.eye(5) + 0.25
    p = float(jax.nn.sigmoid(program.TRUTH["logit"]))
    each = []
    for level, slope in np.asarray(program.TRUTH["curves"]):
        off = np.asarray(y) - level - slope * np.asarray(program.TIMES)
        squares = np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off)
        each.append(-0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1]))
    right = np.log((1 - p) * np.exp(each[0]) + p * np.exp(each[1])).sum()
    right += norm.logpdf(program.TRUTH["curves"], 0.0, 3.0).sum() + norm.logpdf(-0.6, 0.0, 1.5)
    right += sum(norm.logpdf(program.TRUTH[n], -1.0, 1.0) for n in ("log_noise", "log_spread"))
    np.testing.assert_allclose(float(found), float(right), rtol=1e-5)


def test_the_interval_is_that_of_the_mode_and_its_curvature():
    program = module("growth_mixture")
    y = program.simulated(jax.random.key(1))
    mode, sd = (x[0] for x in program.interval(jnp.stack([y] * 20), True))
    unravel = ravel_pytree(program.TRUTH)[1]

    def potential(x):
        return -ppl_ext.log_density(program.model, unravel(x), y).total

    slope = jax.jit(jax.grad(potential))(mode)
    assert float(jnp.abs(slope * sd).max()) < 0.02  # of a standard deviation
    # along one axis the curvature is that of the potential, by differences
    step = 0.05 * float(sd[4])
    ends = [float(jax.jit(potential)(mode.at[4].add(k * step))) for k in (-4, 0, 4)]
    curvature = (ends[0] - 2 * ends[1] + ends[2]) / (4 * step) ** 2
    assert curvature >= (1 - 0.1) / float(sd[4]) ** 2
