"""What the program on temperature scaling claims, at its small sizes."""

import re

import jax
import numpy as np

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_one_temperature_mends_less_where_classes_overlap():
    found = claims("temperature_scaling")
    exact, noise = np.array([numbers(row.known) for row in found])[:, [0, 2]].T
    ours = np.array([numbers(row.ours) for row in found])
    before, after = ours[:, 0:4:2].T
    half = ours[:, 3]
    assert (np.diff(before) > 0).all() and before[-1] > 0.3
    assert (after < 0.6 * before).all()
    # grows from what bins' noise allows to several times that
    assert after[-1] - after[0] > 4.5 * np.hypot(half[0], half[-1])
    assert after[-1] > 2.5 * noise[-1] and after[0] < 3 * noise[0] and (np.diff(after[1:]) > 0).all()
    # the exact posterior is calibrated: what is left is as much as a calibrated one's
    assert exact.max() < 0.025 and np.abs(exact - noise).max() < 0.02


def test_the_posterior_is_exact():
    program = module("temperature_scaling")
    x, _ = program.rows(np.random.default_rng(0), 6, 1.5)
    density = np.exp(-((x[:, None] - program.centres(1.5)) ** 2).sum(-1) / 2)
    found = jax.nn.softmax(program.posterior(x, 1.5))
    np.testing.assert_allclose(found, density / density.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_centres_are_as_far_apart_as_is_said():
    program = module("temperature_scaling")
    centres = program.centres(2.0)
    square = ((centres[:, None] - centres) ** 2).sum(-1)
    pair = np.arange(program.CLASSES) // 2
    between = 36.0 + 4.0 * ((np.arange(8)[:, None] - np.arange(8)) % 2)
    expected = np.where(pair[:, None] == pair, 4.0 * (1 - np.eye(8)), between)
    np.testing.assert_allclose(square, expected, atol=1e-9)


def test_the_classifier_interpolates_and_sums_a_kernel():
    program = module("temperature_scaling")
    rng = np.random.default_rng(0)
    train, (x, _) = program.rows(rng, 100, 0.0), program.rows(rng, 5, 0.0)
    assert (program.weighed(train[0], train, program.NARROW).argmax(1) == train[1]).all()
    kernel = np.exp(-((x[:, None] - train[0]) ** 2).sum(-1) / (2 * 1.2**2))
    by_class = np.stack([kernel[:, train[1] == k].sum(1) for k in range(program.CLASSES)], 1)
    np.testing.assert_allclose(np.exp(program.weighed(x, train, 1.2)), by_class, rtol=1e-3, atol=1e-30)


def test_a_temperature_is_found_again():
    """Labels are drawn from a softmax: of its logits times three the temperature is three."""
    program = module("temperature_scaling")
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(20_000, program.CLASSES))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    # the information of one row about log T is some .9, so its standard error is .0075; the grid's step .077
    assert abs(np.log(program.temperature(3.0 * logits, y) / 3.0)) < 0.04 + 4.5 * 0.0075
