"""What the program on splits and merges claims, at its small size, and its parts against exact answers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"\d+\.?\d*", text)]


def test_the_clusters_found():
    six, labelled = claims("split_merge")
    known, found = numbers(six.known), numbers(six.ours)
    # four chains estimate their error badly; 6,000 draws, of which each is worth at least a twentieth
    for exact, ours in zip(known, found[:3], strict=True):
        assert abs(ours - exact) < 4.5 * (exact * (1 - exact) / 300) ** 0.5 + 1e-3
    assert numbers(labelled.ours)[:2] == [5, 5] and numbers(labelled.ours)[2] > 0.5


@pytest.mark.slow
def test_the_clusters_found_at_full_size():
    (_, known, six), (_, _, labelled), (_, _, blind) = module("split_merge").claims()
    found = np.array(numbers(six)).reshape(2, 3)
    assert (np.abs(found[0] - numbers(known)) < 4.5 * found[1] + 2e-3).all()
    assert numbers(labelled)[:6] == [5] * 6 and numbers(labelled)[6] > 0.5
    assert max(numbers(blind)[:6]) < 5 and numbers(blind)[6] < 0.5  # the two that are close are one


def test_the_marginal_likelihood_is_that_of_predictive_laws_one_after_another():
    program, x = module("split_merge"), np.random.default_rng(0).normal(size=(7, 2)) * [3.0, 0.5] + 1.0
    niw, total = program.PRIOR, 0.0
    for row in jnp.asarray(x, float):
        total += niw.predictive().log_prob(row)
        niw = niw.posterior(row[None], jnp.zeros((1, 2, 2)))
    sums = program.grouped(x, np.full(7, -1)).sum(0)
    expected = total + np.log(program.ALPHA) + np.log(720.0)  # Γ(7)
    np.testing.assert_allclose(program.weight(sums), expected, rtol=1e-5)
    np.testing.assert_array_equal(program.weight(jnp.zeros(9)), 0.0)


def test_rows_of_a_label_are_a_group_and_two_labels_are_never_together():
    program, x = module("split_merge"), np.random.default_rng(1).normal(size=(6, 2))
    sums = np.asarray(program.grouped(x, np.array([-1, 1, 0, 1, -1, 0])))
    assert sums.shape == (4, 9) and sums[:, 0].tolist() == [2, 2, 1, 1]
    np.testing.assert_allclose(sums[1, 1:3], x[1] + x[3], rtol=1e-6)
    np.testing.assert_allclose(sums[0, 3:7], (x[[2, 5]].T @ x[[2, 5]]).ravel(), rtol=1e-6)
    assert sums[:, 7:].tolist() == [[2, 0], [0, 2], [0, 0], [0, 0]]
    assert program.weight(sums[0] + sums[1]) == -np.inf and np.isfinite(
        program.weight(sums[0] + sums[2:].sum(0))
    )


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 1, -1, -1]])
def test_steps_keep_the_law_of_partitions(labels):
    """From draws of the exact law of four rows' partitions, eight steps each: it is that law again."""
    program = module("split_merge")
    sums = program.grouped(program.SIX[[0, 1, 3, 2]], np.array(labels))
    every = np.unique([[z.index(k) for k in z] for z in np.ndindex(4, 4, 4, 4)], axis=0)
    pi = np.asarray(jax.nn.softmax(program.log_weight(sums, every)), float)
    states = np.random.default_rng(0).choice(len(every), 20_000, p=pi / pi.sum())
    kernel, keys = program.SplitMerge(), jax.random.split(jax.random.key(0), len(states))

    @jax.jit
    @jax.vmap
    def steps(z, key):
        def one(_, state):
            return kernel.sample(state, (sums,), {})

        return jax.lax.fori_loop(0, 8, one, program.State(z, key)).z

    after = np.asarray(steps(jnp.asarray(every)[states], keys))
    canonical = (after[:, :, None] == after[:, None]).argmax(1)
    names = {tuple(z): k for k, z in enumerate(every.tolist())}
    found = np.bincount([names[tuple(z)] for z in canonical.tolist()], minlength=len(every)) / len(states)
    # the law of 15 partitions at most; a false alarm once in 10,000 runs
    assert (np.abs(found - pi) < 4.5 * np.sqrt(pi * (1 - pi) / len(states)) + 1e-4).all()
    moved = (canonical != every[states]).any(1).mean()
    assert moved > 0.05  # and it is no step in place
