"""What programs on networks claim, at their small sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text)]


@pytest.mark.slow
def test_merged_halves_are_the_joint_posterior_and_beat_the_plain_average():
    """Digits: 500 rows, an error of 0.013 at 0.9; the average and the merged fit see the same rows."""
    exact, digits = claims("fisher_merging")
    assert float(exact.ours) < 1e-6
    (plain, together), (merged, *halves) = numbers(digits.known), numbers(digits.ours)
    assert max(plain, *halves) + 0.02 < merged < together + 0.02


def test_products_of_factors_find_a_sparse_array():
    """Three draws at each noise; the oracle's error is that of least squares with eight unknowns."""
    for row in claims("kronecker_sparse"):
        (_, best, plain), (ours, *_) = numbers(row.known.replace("oracle", "0")), numbers(row.ours)
        assert best < ours < min(8 * best, 0.2 * plain)


def test_a_chain_of_switches_finds_runs():
    """Four data sets, the same for all three priors."""
    exact, support, weights = claims("turbo_vbi")
    assert float(exact.ours) < 1e-5
    assert float(support.ours) > max(numbers(support.known.replace("F1", ""))) + 0.05
    assert float(weights.ours) < 0.8 * min(numbers(weights.known))


@pytest.mark.slow
def test_gram_matrices_that_move_find_the_direction_of_a_wave():
    """The NNGP and the machine see the same 60 rows of eight numbers."""
    limit, linear, wave = claims("deep_kernel_machine")
    assert float(limit.ours) < 1e-3 and float(linear.ours) < 1e-3
    assert float(wave.ours) > numbers(wave.known)[0] + 0.1


def test_the_divergence_from_the_first_task_keeps_it():
    """A teacher of 200 signs; errors are exact, and no weights are near both teachers."""
    exact, before, without, kept, weighed, short = claims("binary_weights")
    assert float(exact.ours) < 1e-5
    first, _ = numbers(kept.ours)
    nearer, second = numbers(weighed.ours)
    assert float(before.ours) < nearer < first < float(without.ours) - 0.05 and float(without.ours) > 0.4
    assert second > first
    # few steps forget less and learn less
    assert numbers(short.ours)[0] < first and numbers(short.ours)[1] > numbers(kept.ours)[1]


def test_sums_of_many_signs_are_nearly_normal():
    """The probability of a label under drawn weights: within the noise of 20,000 draws, and 0.005."""
    program = module("binary_weights")
    rng = np.random.default_rng(0)
    field = rng.normal(size=200)
    x, y, _ = program.task(rng, 200, 0.05)
    weights = np.where(rng.uniform(size=(20_000, 200)) < 1.0 / (1.0 + np.exp(-2.0 * field)), 1.0, -1.0)
    margins = weights @ x.T * y
    seen = (margins > 0).mean(0) + 0.5 * (margins == 0).mean(0)  # sums of 200 signs are even
    for row, label, known in zip(x, y, seen, strict=True):
        with (
            numpyro.handlers.substitute(data={"field": jnp.asarray(field)}),
            numpyro.handlers.trace() as record,
        ):
            program.model(row[None], label[None], jnp.zeros(200), 1.0)
        assert (
            abs(np.exp(float(record["signs"]["fn"].log_factor)) - known)
            < 4.5 * (0.25 / 20_000) ** 0.5 + 0.005
        )
    kept = float(record["kept"]["fn"].log_factor)
    np.testing.assert_allclose(
        kept, -float(program.divergence(jnp.asarray(field), jnp.zeros(200))), rtol=1e-5
    )


def test_a_cap_is_calibrated_where_one_gaussian_is_not():
    """8000 new rows in five groups: a share of them is off by 0.012 at most, as a standard error."""
    calibration, mean, _ = claims("bayescap")
    gaussian = numbers(calibration.known)[0]
    assert float(calibration.ours) < 0.5 * gaussian and gaussian > 0.1
    assert float(mean.ours) < 0.01


def test_the_law_of_the_cap_is_a_density_whose_masses_are_integrals():
    program = module("bayescap")
    said = jnp.linspace(-4.0, 6.0, 20_001)
    # layers of zeros but for the last shifts: scale 0.7 and shape 1.4 everywhere, mean 1
    layers = {
        f"{name}_w": jnp.zeros(shape)
        for name, shape in (("first", (1, 16)), ("second", (16, 16)), ("last", (16, 3)))
    }
    shifts = {"first_b": jnp.zeros(16), "second_b": jnp.zeros(16)}
    shifts["last_b"] = jnp.log(jnp.expm1(jnp.array([0.0, 0.7, 0.9]))).at[0].set(0.0)

    def log_law(y):
        with numpyro.handlers.substitute(data=layers | shifts), numpyro.handlers.trace() as record:
            program.model(jnp.ones(1), y[None])
        return record["law"]["fn"].log_factor

    density = np.exp(np.asarray(jax.vmap(log_law)(said), float))
    step = float(said[1] - said[0])
    np.testing.assert_allclose(density.sum() * step, 1.0, atol=1e-3)
    within = np.abs(np.asarray(said) - 1.0) < 0.8
    np.testing.assert_allclose(density[within].sum() * step, program.covered(0.8, 0.7, 1.4), atol=1e-3)


@pytest.mark.slow
def test_a_machine_that_iterates_comes_near_the_posterior_mean():
    """600 steps of training; the operators are new."""
    for row in claims("recurrent_inference"):
        last, _, _, _, two, four, six = numbers(row.ours)
        assert last < 0.1 and last < six < max(two, four)


def test_the_gains_of_gradient_ascent_are_gradient_ascent():
    """A constant step on the log posterior leaves (I - step · precision)^t of the posterior mean."""
    program, rng = module("recurrent_inference"), np.random.default_rng(0)
    operator = rng.normal(size=(60, 20)) / 60**0.5
    y = rng.normal(size=60)
    precision = operator.T @ operator / program.NOISE**2 + np.eye(20)
    mean = np.linalg.solve(precision, operator.T @ y / program.NOISE**2)
    gains = jnp.tile(jnp.array([0.03, -0.03, 0.0]), (8, 1))
    with numpyro.handlers.substitute(data={"gains": gains}):
        found = program.machine(jnp.asarray(operator), jnp.asarray(y))
    for t in (1, 8):
        left = np.linalg.matrix_power(np.eye(20) - 0.03 * precision, t) @ mean
        np.testing.assert_allclose(found[t - 1], mean - left, atol=1e-4)


@pytest.mark.slow
def test_a_machine_comes_within_two_percent():
    for _, _, ours in module("recurrent_inference").claims():
        assert numbers(ours)[0] < 0.02


@pytest.mark.slow
def test_networks_at_full_size():
    rows = module("kronecker_sparse").claims()
    assert all(float(ours.split()[0]) < 0.1 * float(known.split()[-1]) for _, known, ours in rows)
    _, support, weights = module("turbo_vbi").claims()
    assert float(support[2]) > 0.75 and float(weights[2]) < 0.1
    *_, ten, three = module("deep_kernel_machine").claims()
    assert float(three[2]) > float(ten[2]) > numbers(ten[1])[0] + 0.5
    calibration, mean, _ = module("bayescap").claims()
    assert float(calibration[2]) < 0.25 * numbers(calibration[1])[0] and float(mean[2]) < 0.01
    _, before, without, kept, weighed, short = module("binary_weights").claims()
    assert numbers(weighed[2])[0] < 0.2 < numbers(kept[2])[0] < float(without[2]) and float(before[2]) < 0.1
    assert numbers(short[2])[0] < 0.2 and numbers(short[2])[1] > 0.4


@pytest.mark.slow
def test_a_posterior_that_is_the_next_prior_forgets_and_prototypes_do_not():
    """Two tasks of 40 rows, and some 640 new rows: an error of 0.02 at most."""
    first, all_tasks, held = claims("sequential_bayes")
    before, after = numbers(first.ours)
    assert after < before - 0.3
    assert float(all_tasks.ours) < numbers(all_tasks.known)[0] - 0.2
    assert float(held.ours) > numbers(held.known)[0]


def test_prototypes_do_not_depend_on_the_order_of_tasks():
    """Each label has its own law, so that what is learned of others, and when, changes nothing."""
    program = module("sequential_bayes")
    tasks, (x, y) = program.digits(3, 20)
    forward, back = (program.prototypes(t, x[:200], y[:200]) for t in (tasks, tasks[::-1]))
    np.testing.assert_array_equal(forward, back)
    assert forward.mean() > 0.8
