"""What programs on designs and couplings claim, at their small sizes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl_ext
from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


@pytest.mark.slow
def test_a_message_in_a_prescribed_law():
    *by_size, least, bits, right = claims("minimum_entropy")
    for row in by_size:
        mean, most, off = numbers(row.ours)
        assert 0.1 < mean < 0.35 and most < 0.6 and off < 1e-6
    means = [numbers(row.ours)[0] for row in by_size]
    assert means == sorted(means, reverse=True) and means[-1] < 0.24
    mean, most, none = numbers(least.ours)
    assert -1e-5 < mean < 0.05 and most < 0.531 and none > 60
    # the information of any coupling, a product law aside, is between none and the entropy
    assert 0.85 * numbers(bits.known)[0] < float(bits.ours) < numbers(bits.known)[0]
    best = numbers(right.known)[0]
    assert abs(float(right.ours) - best) < 4.5 * (best * (1 - best) / 200) ** 0.5


@pytest.mark.slow
def test_points_that_repel_each_other():
    *errors, once, off = claims("projection_dpp")
    found = [numbers(row.ours) for row in errors]
    for uniform, independent, volume, repeated in (found[:4], found[4:]):
        assert uniform[0] > 2 * independent[0] > 2 * volume[0] > 2 * repeated[0] > 2
    for (ours, half), known in zip(
        (found[2], found[3], found[6], found[7]), (1.76, 1.29, 1.21, 1.09), strict=True
    ):
        assert abs(ours - known) < 4.5 * half + 0.03  # the figures are of another run
    mean, error = numbers(once.ours)
    assert abs(mean - numbers(once.known)[0]) < 4.5 * error and error < 3
    assert max(numbers(off.ours)) < 4.5


def test_where_to_measure_next():
    *found, off = claims("acquisitions")
    regrets = np.array([numbers(row.ours) for row in found]).reshape(3, 3, 2)  # kind, noise, mean and error
    gradient, improvement, random = regrets
    assert (regrets[..., 0] > -1e-6).all() and (np.diff(regrets[..., 0], axis=1) > 0).all()
    error = np.hypot(gradient[:, 1], np.maximum(improvement, random)[:, 1])
    best = np.minimum(improvement, random)[:, 0]
    assert (gradient[:, 0] < best + 3 * error).all() and gradient[0, 0] < 0.7 * best[0]
    error, most = numbers(off.ours)
    assert error < 0.25 * most


def test_measuring_what_is_least_certain():
    orders, entropy, variance, random = claims("active_measurement")
    assert orders.ours == orders.known
    left = np.array([numbers(row.ours) for row in (entropy, random, variance)])
    assert (np.diff(left, axis=0) > 0).all()  # after 3, 6 and 8 measurements
    assert left[0, 0] >= 2.07 and left[0, 2] < 0.3


@pytest.mark.slow
def test_a_bridge_between_samples():
    *normals, moons = claims("light_bridge")
    means, covariances = ([numbers(row.ours)[0] for row in normals[k::2]] for k in (0, 1))
    # two thousand rows: a coefficient's standard error is .02, and there are d of them for each
    assert max(means) < 0.02 and max(covariances) < 0.1
    ends, starts = numbers(moons.ours)
    assert ends < 3 * numbers(moons.known)[0] + 0.003 < 0.5 * starts


def test_a_few_draws_to_look_at():
    plain, *chosen = claims("diverse_subset")
    missed, half = numbers(plain.known)
    assert abs(numbers(plain.ours)[0] - missed) < 4.5 * half
    assert len(chosen) == 3
    _, mean, most = numbers(plain.ours)
    for row in chosen:
        missed, mean_of_it, most_of_it = numbers(row.ours)
        assert missed == 0.0 and mean_of_it < mean and most_of_it < 0.4 * most


def test_correcting_a_batch():
    imbalanced, even, step, bound = claims("lame")
    before, after, gain, error = numbers(imbalanced.ours)
    assert gain > 0.05 and gain > 4.5 * error and 0.5 < before < after
    assert numbers(even.ours)[2] < 0.5 * gain
    assert float(step.ours) > -2e-4  # a sum of a thousand terms in single precision
    exact, of_q = numbers(bound.known)
    assert of_q < float(bound.ours) <= exact + 1e-5


def test_the_correction_is_the_mean_field_of_its_program():
    """The bound is the ELBO of independent labels under the program, and a fixed point is its maximum."""
    program = module("lame")
    log_q = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (3, 2)))
    w = jnp.array([[0.0, 0.6, 0.3], [0.6, 0.0, 0.0], [0.3, 0.0, 0.0]])
    z, bounds = program.lame(log_q, w)

    def elbo(z):
        total = 0.0
        for y in itertools.product(range(2), repeat=3):
            log_z = sum(jnp.log(z[i, k]) for i, k in enumerate(y))
            joint = ppl_ext.log_density(program.labels, {f"y{i}": k for i, k in enumerate(y)}, log_q, w).total
            total = total + jnp.exp(log_z) * (joint - log_z)
        return total

    np.testing.assert_allclose(bounds[-1], elbo(z), rtol=1e-5)
    gradient = jax.grad(lambda a: elbo(jax.nn.softmax(a)))(jnp.log(z))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
