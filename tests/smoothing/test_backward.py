"""Backward kernels on one pair of clouds, against the law B that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ppl_ext.errors import ArgumentError
from ppl_ext.smoothing.backward import Dense, Hybrid, Metropolis, Pairs, Path, backward_kernel
from ppl_ext.smoothing.backward.kernel import rows
from ppl_ext.smoothing.backward.mcmc import log_acceptance
from ppl_ext.smoothing.backward.proposals import proposals
from tests.oracles import quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

N, M = 6, 4
RNG = np.random.default_rng(3)
LOG_WEIGHTS = np.append(-np.inf, RNG.normal(size=N - 1)).astype(np.float32)
"""The first has no weight, which is where an inverse distribution function at 0 goes astray."""
LOG_M = (RNG.normal(size=(N, M)) * 1.5).astype(np.float32)
ANCESTORS = np.array([1, 3, 3, 5], np.int32)


def pairs(log_m=LOG_M, log_weights=LOG_WEIGHTS, bound=None):
    table = jnp.asarray(log_m)
    return Pairs(jnp.asarray(log_weights), jnp.asarray(ANCESTORS), lambda j, i: table[j, i], bound)


def exact(log_m=LOG_M, log_weights=LOG_WEIGHTS):
    """B, (M, N)."""
    rows = np.exp(np.asarray(log_weights, np.float64)[:, None] + log_m).T
    return rows / rows.sum(1, keepdims=True)


def rejection(rng_key, pairs, lanes, num_draws):
    """Pure rejection, round after round until no lane waits: the reference, far too slow for use."""

    def body(state):
        index, waiting, rng_key = state
        rng_key, a, b = jax.random.split(rng_key, 3)
        proposed = jax.random.categorical(a, pairs.log_weights, shape=index.shape)
        accept = (
            jnp.log(jax.random.uniform(b, index.shape))
            < pairs.log_pair(proposed, lanes[:, None]) - pairs.log_bound
        )
        return jnp.where(waiting & accept, proposed, index), waiting & ~accept, rng_key

    shape = len(lanes), num_draws
    return jax.lax.while_loop(
        lambda s: s[1].any(), body, (jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), rng_key)
    )[0]


def counts(draw, replicates=20_000, num_draws=2, **given):
    """How often each earlier particle was drawn, (num_draws, M, N)."""
    lanes = jnp.arange(M)

    def one(rng_key):
        drawn = draw(rng_key, pairs(**given), lanes, num_draws)
        return jax.nn.one_hot(drawn[0] if isinstance(drawn, tuple) else drawn, N)

    keys = jax.random.split(jax.random.key(1), replicates)
    return np.asarray(jax.jit(lambda keys: jax.vmap(one)(keys).sum(0))(keys)).transpose(1, 0, 2)


def p_values(table, law):
    """Of chi-squared tests, one for each draw and lane; what the law excludes must not have been drawn."""
    total = table.sum(-1, keepdims=True)
    assert not (table * (law == 0)).any()
    statistic = np.where(law > 0, (table - total * law) ** 2 / np.where(law > 0, total * law, 1.0), 0.0).sum(
        -1
    )
    return stats.chi2.sf(statistic, (law > 0).sum(-1) - 1)


BOUND = float(LOG_M.max()) + 0.3
EXACT = {
    "dense": Dense().draw,
    "rejection": rejection,
    **{f"hybrid {k}": Hybrid(num_rounds=k, block=b).draw for k, b in ((1, 1), (3, 5), (8, 64))},
}


@pytest.mark.parametrize("draw", EXACT.values(), ids=EXACT)
def test_exact_kernels_draw_from_b(draw):
    """Each draw and lane at the level 1e-4: the test fails by chance once in 250 keys for each of the
    five.
    """
    replicates = 500 if draw is rejection else 20_000  # its slowest lane decides how long all of them take
    assert p_values(counts(draw, replicates, bound=BOUND), exact()).min() > 1e-4 / 8


def test_the_chi_squared_test_sees_weights_left_out():
    assert (
        p_values(
            counts(Dense().draw, log_weights=np.where(np.isinf(LOG_WEIGHTS), -np.inf, 0.0)), exact()
        ).min()
        < 1e-10
    )


@pytest.mark.parametrize("num", [1, M, 60])
def test_proposals_are_distributed_as_the_weights_in_every_lane(num):
    keys = jax.random.split(jax.random.key(2), 20_000)
    drawn = quick_jit(
        jax.vmap(lambda key: jax.nn.one_hot(proposals(key, jnp.asarray(LOG_WEIGHTS), num)[0], N))
    )(keys)
    law = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()
    assert p_values(np.asarray(drawn).sum(0), law).min() > 1e-4 / num


def transition():
    """Of one Metropolis step on the index, for each lane: (M, N, N)."""
    law = np.exp(np.asarray(LOG_WEIGHTS, np.float64))
    law /= law.sum()
    scores = LOG_M.T
    move = law[None, None, :] * np.exp(
        np.asarray(
            log_acceptance(jnp.asarray(scores[:, :, None]), jnp.asarray(scores[:, None, :])), np.float64
        )
    )
    return move + np.eye(N) * (1.0 - move.sum(-1))[:, :, None]


def test_a_metropolis_step_leaves_b_invariant():
    np.testing.assert_allclose(np.einsum("ij,ijk->ik", exact(), transition()), exact(), atol=1e-6)
    forgotten = np.einsum("ij,ijk->ik", exact(log_weights=np.zeros(N)), transition())
    assert np.abs(forgotten - exact(log_weights=np.zeros(N))).max() > 1e-2


def test_a_metropolis_step_accepts_as_metropolis_does_and_nothing_impossible():
    present, proposed = (
        jnp.array([3.0, 1.0, 1.0, -jnp.inf, -jnp.inf]),
        jnp.array([1.0, 3.0, -jnp.inf, 1.0, -jnp.inf]),
    )
    np.testing.assert_array_equal(log_acceptance(present, proposed), [-2.0, 0.0, -np.inf, 0.0, -np.inf])


@pytest.mark.parametrize("num_steps", [1, 3])
def test_metropolis_draws_follow_its_transition_matrix_from_the_ancestor(num_steps):
    law = np.eye(N)[ANCESTORS]
    table = counts(Metropolis(num_steps).draw)
    for draw in table:
        for _ in range(num_steps):
            law = np.einsum("ij,ijk->ik", law, transition())
        assert p_values(draw, law).min() > 1e-4 / 8


def test_a_metropolis_chain_that_is_offered_sorted_proposals_does_not_follow_it(monkeypatch):
    from ppl_ext.smoothing.backward import mcmc
    from ppl_ext.state_space.resampling import systematic

    monkeypatch.setattr(
        mcmc,
        "proposals",
        lambda key, lw, num: (
            systematic(key, lw, N)[:num],
            jax.random.uniform(jax.random.fold_in(key, 1), (num,)),
        ),
    )
    law = np.einsum("ij,ijk->ik", np.eye(N)[ANCESTORS], transition())
    with pytest.raises(AssertionError):
        assert p_values(counts(Metropolis().draw, num_draws=1)[0], law).min() > 1e-10


@pytest.mark.slow
def test_dense_averages_are_sums_over_b():
    values = RNG.normal(size=(N, M)).astype(np.float32)
    kernel = Dense()
    means, tally = kernel.average(
        jax.random.key(0), pairs(), lambda j, i: {"x": jnp.asarray(values)[j, i], "one": j * 0.0 + 1.0}, 1
    )
    np.testing.assert_allclose(means["x"], (exact().T * values).sum(0), rtol=1e-5)
    np.testing.assert_allclose(means["one"], 1.0, rtol=1e-6)
    assert int(tally.fallbacks) == 0


@pytest.mark.parametrize("kernel", [Dense(), Hybrid(2), Metropolis(), Path()])
@pytest.mark.parametrize("nothing", [-np.inf, np.nan])
def test_a_row_without_any_weight_falls_back_to_the_ancestor_and_is_counted(kernel, nothing):
    log_m = LOG_M.copy()
    log_m[:, 2] = nothing
    drawn, tally = kernel.draw(jax.random.key(0), pairs(log_m, bound=BOUND), jnp.arange(M), 3)
    assert drawn.shape == (M, 3) and (np.asarray(drawn[2]) == ANCESTORS[2]).all()
    assert int(tally.fallbacks) == (0 if isinstance(kernel, Path) else 1)
    values = jnp.arange(N) * 1.0
    means, _ = kernel.average(jax.random.key(0), pairs(log_m, bound=BOUND), lambda j, i: values[j], 3)
    assert float(means[2]) == ANCESTORS[2]


@pytest.mark.parametrize("kernel", [Dense(), Hybrid(8), Metropolis(), Path()])
def test_all_weight_on_one_particle(kernel):
    log_weights = np.full(N, -np.inf, np.float32)
    log_weights[3] = 0.0
    given = pairs(log_weights=log_weights, bound=BOUND)._replace(ancestors=jnp.full(M, 3))
    drawn, tally = kernel.draw(jax.random.key(0), given, jnp.arange(M), 5)
    assert (np.asarray(drawn) == 3).all() and int(tally.fallbacks) == 0


@pytest.mark.slow
def test_a_bound_that_is_too_low_shows_in_the_tally():
    lanes = jnp.arange(M)
    _, right = Hybrid().draw(jax.random.key(0), pairs(bound=BOUND), lanes, 20)
    _, wrong = Hybrid().draw(jax.random.key(0), pairs(bound=float(LOG_M.max()) - 1.0), lanes, 20)
    assert float(right.excess) <= 0.0 < 0.5 < float(wrong.excess)


def test_rows_are_taken_whole_only_if_they_are_all_there_are_in_order():
    tree = {"a": np.arange(6.0).reshape(3, 2), "b": np.arange(3)}
    for index in (np.arange(3), np.arange(2), np.array([2, 0, 1])):
        found = rows(tree, index)
        assert (found is tree) == (index.tolist() == [0, 1, 2])
        np.testing.assert_array_equal(found["a"], tree["a"][index])
        np.testing.assert_array_equal(found["b"], index)


def test_what_cannot_work_is_refused():
    with pytest.raises(ArgumentError, match="log_bound"):
        Hybrid().draw(jax.random.key(0), pairs(), jnp.arange(M), 1)
    with pytest.raises(ArgumentError, match="at most 8"):
        Hybrid(num_rounds=9)
    with pytest.raises(ArgumentError, match="num_steps"):
        Metropolis(0)
    with pytest.raises(ArgumentError, match="'mcmc', 'dense'"):
        backward_kernel("smooth: backward", "exact")


@pytest.mark.parametrize("kernel", [Metropolis(), Metropolis(8), Hybrid(2), Dense()])
def test_what_is_as_good_as_impossible_is_never_drawn(kernel, monkeypatch):
    """Not even by the smallest of all uniform numbers, which one draw in millions has: a pair of which the
    density is e^-60 would count with e^60 in what a long series sums."""

    def zeros(rng_key, num, block=0):
        return (jnp.zeros(num, jnp.uint32),) * 2

    monkeypatch.setattr("ppl_ext.smoothing.backward.proposals.random_words", zeros)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(), dtype=float: jnp.zeros(shape, dtype))
    for num in (3, 20):  # from many, few are offered in another way
        table = jnp.full((num, 1), -60.0).at[-1].set(0.0)  # the ancestor alone
        given = Pairs(jnp.zeros(num), jnp.array([num - 1]), lambda j, i, of=table: of[j, i], jnp.zeros(()))
        drawn, _ = kernel.draw(jax.random.key(0), given, jnp.arange(1), 3)
        np.testing.assert_array_equal(drawn, num - 1)
