"""Conditional PaRIS from exact smoothing draws is unbiased for any number of particles; what is not
conditional PaRIS is not.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_ext.smoothing import conditional_paris as conditional
from ppl_ext.smoothing.additive_statistic import estimate
from ppl_ext.smoothing.backward import Dense, Hybrid, Metropolis, Path
from ppl_ext.smoothing.conditional_paris import conditional_paris
from ppl_ext.smoothing.space import Space
from ppl_ext.smoothing.trajectories import kept
from ppl_ext.state_space import filtering
from tests.oracles import assert_unbiased, z_scores
from tests.smoothing.problems import PROBLEMS, PRODUCT, T, as_path, functionals_of, space_of, whole

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

REPLICATES = 20_000
KERNELS = {"mcmc": Metropolis(), "dense": Dense(), "hybrid": Hybrid(num_rounds=2), "path": Path()}


@functools.cache
def starting_paths(problem):
    space, y, exact, draws = PROBLEMS[problem]
    return draws(np.random.default_rng(7), space, y, REPLICATES), exact(space, y)


def sweeps(problem, kernel, num_particles):
    """Estimates of the functionals, and the new trajectories (R, T + 1), one sweep from each exact draw."""
    given, y, *_ = PROBLEMS[problem]
    xs, _ = starting_paths(problem)

    def one(rng_key, x):
        space = space_of(given, y, num_particles, kernel, PRODUCT)
        out = conditional_paris(rng_key, space, as_path(x))
        return out.estimates, whole(out.path)

    keys = jax.random.split(jax.random.key(num_particles), REPLICATES)
    return jax.jit(jax.vmap(one))(keys, xs)


QUICK = {
    *(("gaussian", "mcmc", num) for num in (2, 3, 8)),
    ("finite", "mcmc", 2),
    ("guided", "mcmc", 3),
    *(
        (problem, kernel, 3)
        for problem, kernel in (("gaussian", "dense"), ("finite", "hybrid"), ("gaussian", "path"))
    ),
}
"""Every kernel, every number of particles and every problem once; the whole table is slow."""


@pytest.mark.parametrize(
    ("problem", "kernel", "num_particles"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(map(str, case)))
        for case in itertools.product(PROBLEMS, KERNELS, (2, 3, 8))
    ],
)
def test_a_sweep_from_an_exact_draw_is_unbiased_and_leaves_an_exact_draw(problem, kernel, num_particles):
    """Six means at 4.5 standard errors: fails by chance for one key in 25,000."""
    estimates, paths = sweeps(problem, KERNELS[kernel], num_particles)
    _, exact = starting_paths(problem)
    assert_unbiased((estimates, functionals_of(paths)), (exact, exact))


def plain(monkeypatch):
    """PaRIS: no lane is frozen."""
    monkeypatch.setattr(conditional, "kept", lambda key, space, path: kept(key, space))


def frozen_without_offspring(monkeypatch):
    """The other lanes are resampled from each other only."""
    resample = filtering.resample

    def broken(rules, draws, key, log_weights, log_first, *rest):
        return resample(rules, draws, key, log_weights, log_first.at[0].set(-jnp.inf), *rest)

    monkeypatch.setattr(filtering, "resample", broken)


def weights_missing(monkeypatch):
    """All particles of the last step count alike."""
    monkeypatch.setattr(
        conditional, "estimate", lambda statistic, lw: estimate(statistic, jnp.zeros_like(lw))
    )


def transition_missing(monkeypatch):
    """Backward draws by weight alone."""

    whole_pairs = Space.pairs

    def pairs_of(*args):
        pairs = whole_pairs(*args)
        return pairs._replace(log_pair=lambda j, i: jnp.zeros(j.shape))

    monkeypatch.setattr(Space, "pairs", pairs_of)


@pytest.mark.parametrize("break_it", [plain, frozen_without_offspring, weights_missing, transition_missing])
@pytest.mark.parametrize(
    "num_particles", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("problem", ["gaussian", pytest.param("finite", marks=pytest.mark.slow)])
def test_what_is_not_conditional_paris_fails_the_same_test(problem, num_particles, break_it, monkeypatch):
    """Some mean of the six is beyond 4.5 standard errors, and by far.

    Not every change is a mistake. Keeping the frozen lane's own history (no backward draw for it) or tracing
    the new path by ancestors leaves both exact: given the clouds, an ancestor of a resampled lane is a draw
    from B already. They only renew the path less. Stratified resampling of the other lanes is a mistake, but
    too small a one to be seen here.
    """
    break_it(monkeypatch)
    estimates, paths = sweeps(problem, KERNELS["mcmc"], num_particles)
    _, exact = starting_paths(problem)
    scores = z_scores((estimates, functionals_of(paths)), (exact, exact))
    assert max(map(float, jax.tree.leaves(scores))) > 6.0


@pytest.mark.slow
def test_backward_draws_renew_a_path_that_tracing_ancestors_leaves():
    space, y, *_ = PROBLEMS["gaussian"]
    xs = as_path(jnp.zeros(len(y) + 1))

    def renewed(kernel):
        return jax.vmap(lambda key: conditional_paris(key, space_of(space, y, 8, kernel), xs).renewed)(
            jax.random.split(jax.random.key(0), 2000)
        ).mean(0)

    traced, drawn = renewed(Path()), renewed(Dense())
    assert (np.asarray(drawn) > 0.7).all() and float(traced[0]) < float(drawn[0]) - 0.1


@pytest.mark.slow
def test_a_sweep_without_functionals_draws_a_path_and_says_how_it_went():
    space, y, *_ = PROBLEMS["gaussian"]
    sweep = jax.jit(
        lambda key: conditional_paris(key, space_of(space, y, 50, Hybrid()), as_path(jnp.zeros(len(y) + 1)))
    )(jax.random.key(0))
    assert sweep.estimates is None and sweep.renewed.shape == sweep.ess.shape == (len(y) + 1,)
    assert (np.asarray(sweep.ess) <= 50.001).all() and (np.asarray(sweep.ess) >= 1.0).all()
    assert int(sweep.tally.fallbacks) == 0 and float(sweep.tally.excess) <= 0.0


def run_along(key, problem, x):
    """Of a run of three particles that are resampled at every step."""
    space = space_of(PROBLEMS[problem][0], PROBLEMS[problem][1], 3, Path())
    return kept(key, space._replace(rules=space.rules._replace(threshold=1.0)), as_path(x))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_first_particle_goes_along_the_path_and_is_its_own_ancestor(problem):
    x = starting_paths(problem)[0][0]
    run = jax.jit(jax.vmap(lambda key: run_along(key, problem, x)))(jax.random.split(jax.random.key(0), 20))
    sites, carry = np.asarray(run.clouds.sites["x"]), np.asarray(run.clouds.carry)
    assert (run.initial["x0"][:, 0] == x[0]).all() and (sites[:, :, 0] == x[1:]).all()
    assert (carry[:, :, 0] == x[:-1]).all() and (run.clouds.ancestors[:, :, 0] == 0).all()
    assert (sites[:, :, 1:] != x[1:, None]).any()


def test_the_others_ancestors_are_independent_whatever_the_scheme():
    """Of lanes 1 and 2 of three, given the weights: as often both 0, both 1, ... as the squares of the
    weights say. Systematic ones, of which either has the same law, would seldom agree."""

    def one(key):
        clouds = run_along(key, "gaussian", jnp.zeros(T + 1)).clouds
        ancestors, weights = clouds.ancestors[1], jnp.exp(clouds.log_weights[1])
        return (ancestors[1] == ancestors[2]) - jnp.sum(weights**2)

    agrees = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    assert_unbiased(agrees, 0.0)
