"""What the program on replicable clusters claims, at its small size, and its parts against exact answers."""

import re

import numpy as np
from scipy.optimize import minimize

from tests.papers.programs import claims, module


def test_the_same_twice_and_nearly_the_best():
    shared, own, plain = (
        [float(x) for x in re.findall(r"\d+\.?\d*(?:e-?\d+)?", row.ours)]
        for row in claims("replicable_clusters")
    )
    # at most 0.08 of pairs differ: two of four or more once in forty
    assert shared[0] >= 3 and own[0] == plain[0] == 0
    assert max(shared[2], own[2], plain[2]) < 3e-3  # in parts of the whole


def test_the_bound_is_above_how_often_rounded_shares_differ_and_not_far():
    program, n, width = module("replicable_clusters"), 20_000, 0.08
    differ = []
    for seed in range(60):
        one, two = (program.shares(program.sample(k, n), seed)[1] for k in (2 * seed, 2 * seed + 1))
        # the offsets that tell the two apart, on a fine grid of them
        offsets = (np.arange(4000) + 0.5) / 4000
        steps = [np.floor(share / width + offsets[:, None]) for share in (one, two)]
        differ.append((steps[0] != steps[1]).any(1).mean())
    bound = np.mean([program.bound(n, seed, width) for seed in range(60)])
    error = np.std(differ) / 60**0.5
    assert 0.5 * bound < np.mean(differ) < bound + 4.5 * error


def test_the_mean_difference_of_shares():
    """The sum over cells in the bound, by simulation."""
    program, n = module("replicable_clusters"), 20_000
    found = [
        np.abs(
            program.shares(program.sample(2 * k, n), 3)[1]
            - program.shares(program.sample(2 * k + 1, n), 3)[1]
        )
        for k in range(60)
    ]
    total = np.sum(found, 1)
    error = total.std() / 60**0.5
    assert abs(total.mean() - program.bound(n, 3, 10.0) * 10.0) < 4.5 * error


def test_rounding_has_no_bias_and_few_values():
    program, share = module("replicable_clusters"), np.array([0.0, 0.01, 0.13, 0.3])
    found = np.array([program.rounded(share, bits, 0.08) for bits in range(4000)])
    assert (np.abs(found - share).max(0) <= 0.08).all() and (found[:, 0] == 0).all()
    # without bias well above the width: uniform in one width, whose sd is 0.023
    assert (np.abs(found.mean(0) - share)[2:] < 4.5 * 0.08 / 12**0.5 / 4000**0.5).all()


def test_cells_hold_their_rows():
    program = module("replicable_clusters")
    x = program.sample(5, 500)
    centres, share = program.shares(x, 7)
    nearest = np.abs(x[:, None] - centres).max(2).argmin(1)
    np.testing.assert_allclose(share, np.bincount(nearest, minlength=len(share)) / 500)
    assert np.abs(x - centres[nearest]).max() <= program.CELL / 2


def test_the_fit_is_the_maximum_of_the_weighted_likelihood():
    program = module("replicable_clusters")
    centres, share = program.shares(program.sample(1, 400_000), 1)

    def loss(u):
        mean, scale, logits = u[:6].reshape(3, 2), 0.5 + np.exp(u[6:9]), u[9:] - np.logaddexp.reduce(u[9:])
        square = ((centres[:, None] - mean) ** 2).sum(2) / scale**2
        logs = logits - square / 2 - 2 * np.log(scale) - np.log(2 * np.pi)
        return -share @ np.logaddexp.reduce(logs, axis=1)

    start = np.concatenate([0.7 * program.MEANS.ravel(), np.zeros(6)])
    best = minimize(loss, start, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}).x
    square = ((program.POINTS[:, None] - best[:6].reshape(3, 2)) ** 2).sum(2) / (0.5 + np.exp(best[6:9])) ** 2
    labels = (best[9:] - square / 2 - 2 * np.log(0.5 + np.exp(best[6:9]))).argmax(1)
    assert (program.partition(centres, share) != labels).mean() < 1e-3
