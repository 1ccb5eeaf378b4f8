"""Gaps in data that the step hands on: a state, against joint Gaussians and sums over all paths; where
refused, by name.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC

from ppl_ext import log_density, marginal, normalize, simulate
from ppl_ext.algorithms import ExactFilter, ParticleFilter
from ppl_ext.errors import ModelError
from ppl_ext.infer import PMMH, ParticleGibbs
from ppl_ext.smoothing import (
    ConditionalSweep,
    OnlineSmoother,
    ParisParticleGibbs,
    ScoreAscent,
    SweptParticleFilter,
    additive,
    smooth,
)
from ppl_ext.state_space.model import lower

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)
SLOW = pytest.mark.slow
NAN = np.nan
WHOLE = np.array([0.5, 1.2, 0.3, 0.7, -0.4], np.float32)
PATTERNS = {
    "middle": [2],
    "first": [0],
    "consecutive": [1, 2],
    "last": [4],
    "first and last": [0, 4],
    "all": list(range(5)),
    "none": [],
}
PARAMS = {"back": 0.6}


def with_gaps(pattern):
    return np.where(np.isin(np.arange(5), PATTERNS[pattern]), NAN, WHOLE).astype(np.float32)


def model(y, reverse=False):
    back = numpyro.sample("back", dist.Normal(0.0, 1.0))

    def step(carry, y_t):
        x_prev, y_prev = carry
        x = numpyro.sample("x", dist.Normal(0.8 * x_prev, 0.7))
        y_t = numpyro.sample("y", dist.Normal(x + back * y_prev, 0.5), obs=y_t)
        return (x, y_t), None

    scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(())), y, reverse=reverse)


def with_obs_mask(y):
    back = numpyro.sample("back", dist.Normal(0.0, 1.0))

    def step(carry, y_t):
        x_prev, y_prev = carry
        x = numpyro.sample("x", dist.Normal(0.8 * x_prev, 0.7))
        law = dist.Normal(x + back * y_prev, 0.5)
        y_t = numpyro.sample("y", law, obs=jnp.nan_to_num(y_t), obs_mask=~jnp.isnan(y_t))
        return (x, y_t), None

    scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(())), y)


def conditioned(rows, seen, values):
    """Log density of ``values`` at the coordinates ``seen``, and the mean and covariance of all given these,
    where ``rows`` of the vector are independent standard normals."""
    covariance = np.linalg.inv(rows.T @ rows)
    if not seen:
        return 0.0, np.zeros(len(covariance)), covariance
    inner, gain = (
        covariance[np.ix_(seen, seen)],
        np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen]).T,
    )
    log_z = -0.5 * (values @ np.linalg.solve(inner, values) + np.linalg.slogdet(2 * np.pi * inner)[1])
    return log_z, gain @ values, covariance - gain @ covariance[seen]


def rows_of(num, back=0.6):
    rows = np.zeros((2 * num + 1,) * 2)
    rows[0, 0] = 1.0
    for t in range(num):
        x, seen, x_prev = 1 + 2 * t, 2 + 2 * t, 2 * t - 1 if t else 0
        rows[x, [x, x_prev]] = np.array([1.0, -0.8]) / 0.7
        rows[seen, [seen, x]] = np.array([1.0, -1.0]) / 0.5
        if t:
            rows[seen, seen - 2] = -back / 0.5
    return rows


def exact(y, back=0.6):
    """x0, x_1, y_1, x_2, y_2, ... as one Gaussian: log evidence, and the means of the sums of x and of y."""
    num, rows = len(y), rows_of(len(y), back)
    there = [2 + 2 * t for t in range(num) if not np.isnan(y[t])]
    log_z, mean, _ = conditioned(rows, there, y[~np.isnan(y)].astype(float))
    return log_z, {"x": mean[1::2].sum(), "y": mean[2::2].sum()}, mean[1::2]


SUMS = {"x": lambda t, before, after: after[0], "y": lambda t, before, after: after[1]}


@pytest.fixture(scope="module")
def kalman():
    return smooth(model, SUMS, backward="exact")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kalman(kalman, pattern):
    y = with_gaps(pattern)
    log_z, sums, means = exact(y)
    result = kalman.run(KEY, y, params=PARAMS)
    np.testing.assert_allclose(result.log_evidence, log_z, atol=2e-5)
    np.testing.assert_allclose(result.log_evidence_increments.sum(), log_z, atol=2e-5)
    for name, value in sums.items():
        np.testing.assert_allclose(result.expectations[name], value, atol=1e-4)
    if pattern in ("middle", "none"):
        draws = result.sample(num_samples=4000)
        # the observed site is none of the states by name
        assert set(draws) == set(result.filtered()) | {"x0"} == {"x0", "x"}
        np.testing.assert_allclose(draws["x"].mean(0), means, atol=0.06)


@pytest.mark.parametrize("backward", ["mcmc", "path", "dense"])
def test_particles(backward):
    smoother = smooth(model, SUMS, 200, backward)

    def one(key, y):
        run = smoother.run(key, y, params=PARAMS)
        return run.log_evidence, run.expectations

    every = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))
    patterns = list(PATTERNS)
    log_z, sums = every(jax.random.split(KEY, 50), np.stack([with_gaps(p) for p in patterns]))
    for i, pattern in enumerate(patterns):
        log_evidence, means, _ = exact(with_gaps(pattern))
        ratio = np.exp(np.asarray(log_z[i], np.float64) - log_evidence)
        assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(50) + 1e-5, pattern
        for name, value in means.items():
            assert abs(sums[name][i].mean() - value) < 4.5 * sums[name][i].std() / np.sqrt(50) + 0.03, (
                pattern,
                name,
            )


def guide(parameters, carry, y_t):
    numpyro.sample("x", dist.Normal(0.5 * carry[0] + 0.3 * jnp.nan_to_num(y_t), 0.9))


OTHERS = {
    "guided": {"proposal": guide},
    "auxiliary": {"look_ahead": lambda p, carry, y_t: -0.2 * (jnp.nan_to_num(y_t) - carry[0]) ** 2},
    "both, always resampled": {"proposal": guide, "ess_threshold": 1.0, "resampling": "multinomial"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_filters(other):
    y, (log_z, sums, _) = with_gaps("consecutive"), exact(with_gaps("consecutive"))
    smoother = smooth(model, SUMS, 100, "dense", **OTHERS[other])
    runs = jax.jit(
        jax.vmap(
            lambda key: (lambda r: (r.log_evidence, r.expectations["y"]))(smoother.run(key, y, params=PARAMS))
        )
    )
    found, mean = runs(jax.random.split(KEY, 100))
    ratio = np.exp(np.asarray(found, np.float64) - log_z)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 10
    assert abs(mean.mean() - sums["y"]) < 4.5 * mean.std() / 10 + 0.03


def test_a_stream_is_the_batch_to_the_last_bit():
    y, how = with_gaps("consecutive"), (SUMS, 30)
    online = OnlineSmoother(model, *how)
    state = online.init(KEY, 0.0, params=PARAMS)
    for y_t in y:
        state = online.step(state, y_t)
    batch, stream = smooth(model, *how).run(KEY, y, params=PARAMS), online.result(state)
    assert batch.log_evidence == stream.log_evidence
    jax.tree.map(np.testing.assert_array_equal, batch.expectations, stream.expectations)


def test_a_report():
    y = with_gaps("middle")
    result = smooth(model, SUMS, 500).run(KEY, y, params=PARAMS)
    report = result.to_arviz(num_samples=50)
    assert "y" not in report.posterior and np.isnan(report.observed_data["y"].values[2])
    np.testing.assert_allclose(
        report.log_predictive_one_step["y"].values[0, 0].sum(), result.log_evidence, rtol=1e-4
    )


@pytest.mark.parametrize("options", [{}, {"proposal": guide}], ids=["bootstrap", "guided"])
def test_sweeps(options):
    y, (_, sums, means) = with_gaps("consecutive"), exact(with_gaps("consecutive"))
    result = ParisParticleGibbs(model, SUMS, 20, "dense", num_sweeps=300, burn_in=20, **options).run(
        KEY, y, params=PARAMS
    )
    np.testing.assert_allclose(result.expectations["y"], sums["y"], atol=0.12)
    np.testing.assert_allclose(result.trajectories["x"].mean((0, 1)), means, atol=0.25)
    assert set(result.trajectories) == {"x0", "x"}


def test_evidence_of_marginals():
    y = with_gaps("consecutive")
    log_z = exact(y)[0] + float(dist.Normal(0.0, 1.0).log_prob(0.6))
    np.testing.assert_allclose(
        log_density(marginal(model, ["back"], ExactFilter()), PARAMS, y).total, log_z, atol=1e-4
    )
    estimate = marginal(model, ["back"], ParticleFilter(10))
    found = jax.jit(jax.vmap(lambda key: log_density(estimate, PARAMS, y, rng_key=key).total))(
        jax.random.split(KEY, 2000)
    )
    ratio = np.exp(np.asarray(found, np.float64) - log_z)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(2000)


@SLOW
def test_marginal_metropolis():
    y = with_gaps("consecutive")
    mcmc = MCMC(PMMH(model, 100), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(KEY, y)
    grid = np.linspace(-3, 3, 301)
    log_p = np.array([exact(y, b)[0] - 0.5 * b**2 for b in grid])
    weights = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    assert (
        set(mcmc.get_samples()) == {"back"} and abs(mcmc.get_samples()["back"].mean() - weights @ grid) < 0.15
    )


def slope(y, back=0.6):
    return (exact(y, back + 1e-4)[0] - exact(y, back - 1e-4)[0]) / 2e-4


def test_score():
    y = with_gaps("consecutive")
    found = (
        smooth(model, {"s": additive.score()}, backward="exact")
        .run(KEY, y, params=PARAMS)
        .expectations["s"]["back"]
    )
    np.testing.assert_allclose(found, slope(y), rtol=1e-3)


@SLOW
def test_score_by_particles():
    y = with_gaps("consecutive")
    smoother = smooth(model, {"s": additive.score()}, 200)
    found = jax.jit(jax.vmap(lambda key: smoother.run(key, y, params=PARAMS).expectations["s"]["back"]))(
        jax.random.split(KEY, 50)
    )
    assert abs(found.mean() - slope(y)) < 4.5 * found.std() / np.sqrt(50) + 0.03
    best = ScoreAscent(model, optax.adam(0.05), 30).run(KEY, 300, y, params={"back": 0.0}).params["back"]
    grid = np.linspace(-1, 2, 301)
    assert abs(best - grid[np.argmax([exact(y, b)[0] for b in grid])]) < 0.15


def test_backwards():
    y = with_gaps("consecutive")
    result = smooth(lambda y: model(y, True), SUMS, backward="exact").run(KEY, y[::-1], params=PARAMS)
    np.testing.assert_allclose(result.log_evidence, exact(y)[0], atol=1e-4)


# --- which models have such a site


def test_data_that_are_known_to_be_whole_make_no_site():
    assert list(lower(model, (WHOLE,), {}, PARAMS).step_sites) == ["x"]
    gap = lower(model, (with_gaps("middle"),), {}, PARAMS)
    assert list(gap.step_sites) == ["x", "y"] and gap.imputed == {"y": True} and gap.not_markov is None
    traced = []
    jax.jit(lambda y: traced.append(lower(model, (y,), {}, PARAMS).imputed) or 0)(WHOLE)
    jax.jit(lambda y: traced.append(lower(model, (y,), {}, PARAMS, whole=True).imputed) or 0)(WHOLE)
    jax.jit(lambda z: traced.append(lower(model, (WHOLE,), {}, {"back": z}).imputed) or 0)(0.6)
    assert traced == [{"y": None}, {}, {}]


def test_data_in_a_closure_are_looked_at():
    y = jnp.asarray(with_gaps("middle"))

    def indexed():
        def step(carry, t):
            x = numpyro.sample("x", dist.Normal(0.8 * carry[0], 0.7))
            return (x, numpyro.sample("y", dist.Normal(x + 0.6 * carry[1], 0.5), obs=y[t])), None

        scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(())), jnp.arange(5))

    assert lower(indexed).imputed == {"y": True}
    np.testing.assert_allclose(
        smooth(indexed, backward="exact").run(KEY).log_evidence, exact(np.asarray(y))[0], atol=1e-4
    )


def test_what_is_not_handed_on_is_summed_out():
    def plain(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(0.8 * x, 0.7))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    assert list(lower(plain, (with_gaps("middle"),)).step_sites) == ["x"]


def test_another_site_of_the_step():
    """The value goes to a second observation, and not to the carry."""

    def twice(y, z):
        def step(x, now):
            x = numpyro.sample("x", dist.Normal(0.8 * x, 0.7))
            y_t = numpyro.sample("y", dist.Normal(x, 0.5), obs=now[0])
            numpyro.sample("z", dist.Normal(y_t, 0.4), obs=now[1])
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), (y, z))

    z = np.array([0.2, -0.3], np.float32)
    y = np.array([NAN, 0.5], np.float32)
    rows = np.array(
        [
            [1.0, 0, 0, 0, 0, 0, 0],  # x0
            [-0.8 / 0.7, 1 / 0.7, 0, 0, 0, 0, 0],
            [0, -2.0, 2.0, 0, 0, 0, 0],  # y_1 given x_1
            [0, 0, -2.5, 2.5, 0, 0, 0],  # z_1 given y_1
            [0, -0.8 / 0.7, 0, 0, 1 / 0.7, 0, 0],
            [0, 0, 0, 0, -2.0, 2.0, 0],
            [0, 0, 0, 0, 0, -2.5, 2.5],
        ]
    )
    log_z = conditioned(rows, [3, 5, 6], np.array([0.2, 0.5, -0.3]))[0]
    np.testing.assert_allclose(smooth(twice, backward="exact").run(KEY, y, z).log_evidence, log_z, atol=1e-4)


MIX = np.array([[0.5, 0.2], [-0.1, 0.4]])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])
PARTLY = np.array([[0.4, -0.2], [NAN, 0.5], [NAN, NAN], [1.0, NAN], [0.3, 0.1]], np.float32)


def vectors(law):
    def vector_model(y):
        def step(carry, y_t):
            x = numpyro.sample("x", dist.Normal(0.8 * carry[0], 0.7))
            y_t = numpyro.sample("y", law(x + jnp.asarray(MIX, jnp.float32) @ carry[1]), obs=y_t)
            return (x, y_t), None

        scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(2)), y)

    return vector_model


VECTORS = {
    "elements": (lambda loc: dist.Normal(loc, jnp.array([0.7, 0.6])), np.diag([0.49, 0.36])),
    "one event": (lambda loc: dist.Normal(loc, jnp.array([0.7, 0.6])).to_event(1), np.diag([0.49, 0.36])),
    "correlated": (
        lambda loc: dist.MultivariateNormal(loc, jnp.asarray(COVARIANCE, jnp.float32)),
        COVARIANCE,
    ),
}


def vector_exact(covariance):
    white, num = np.linalg.inv(np.linalg.cholesky(covariance)), len(PARTLY)
    rows = np.zeros((1 + 3 * num,) * 2)
    rows[0, 0] = 1.0
    for t in range(num):
        x, y = 1 + 3 * t, slice(2 + 3 * t, 4 + 3 * t)
        rows[x, [x, x - 3 if t else 0]] = np.array([1.0, -0.8]) / 0.7
        rows[y, y], rows[y, x] = white, -white @ np.ones(2)
        if t:
            rows[y, slice(3 * t - 1, 3 * t + 1)] = -white @ MIX
    seen = [(2 + 3 * t + d) for t in range(num) for d in range(2) if not np.isnan(PARTLY[t, d])]
    log_z, mean, _ = conditioned(rows, seen, PARTLY[~np.isnan(PARTLY)].astype(float))
    return log_z, sum(mean[2 + 3 * t : 4 + 3 * t] for t in range(num))


@pytest.mark.parametrize("kind", ["correlated", "elements", "one event"])
def test_vectors_with_some_parts_missing(kind):
    law, covariance = VECTORS[kind]
    log_z, sums = vector_exact(covariance)
    functional = {"y": lambda t, before, after: after[1]}
    result = smooth(vectors(law), functional, backward="exact").run(KEY, PARTLY)
    np.testing.assert_allclose(result.log_evidence, log_z, atol=1e-4)
    np.testing.assert_allclose(result.expectations["y"], sums, atol=1e-4)
    smoother = smooth(vectors(law), functional, 300, "dense")
    found, y = jax.jit(
        jax.vmap(lambda key: (lambda r: (r.log_evidence, r.expectations["y"]))(smoother.run(key, PARTLY)))
    )(jax.random.split(KEY, 40))
    ratio = np.exp(np.asarray(found, np.float64) - log_z)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(40)
    assert (np.abs(y.mean(0) - sums) < 4.5 * y.std(0) / np.sqrt(40) + 0.03).all()


MOVE = np.array([[0.8, 0.2], [0.3, 0.7]])
CHANCE = np.array([[0.2, 0.6], [0.5, 0.9]])  # of a one, by the state and by what was seen before


def coins(y):
    def step(carry, y_t):
        k = numpyro.sample("k", dist.Categorical(jnp.asarray(MOVE, jnp.float32)[carry[0]]))
        chance = jnp.asarray(CHANCE, jnp.float32)[k, carry[1].astype(int)]
        y_t = numpyro.sample("y", dist.Bernoulli(chance), obs=y_t)
        return (k, y_t), None

    scan(step, (numpyro.sample("k0", dist.Categorical(jnp.array([0.5, 0.5]))), jnp.zeros(())), y)


def test_finite_observations():
    y = np.array([1.0, NAN, NAN, 0.0], np.float32)
    total = ones = 0.0
    for path in itertools.product(range(2), repeat=5):
        for gap in itertools.product(range(2), repeat=2):
            seen, weight, before = [1, *gap, 0], 0.5, 0
            for t in range(4):
                chance = CHANCE[path[t + 1], before]
                weight *= MOVE[path[t], path[t + 1]] * (chance if seen[t] else 1 - chance)
                before = seen[t]
            total, ones = total + weight, ones + weight * sum(gap)
    functional = {"y": lambda t, before, after: after[1]}
    for result in (
        smooth(coins, functional, backward="exact").run(KEY, y),
        smooth(coins, functional, 20_000, "path", resampling="multinomial").run(KEY, y),
    ):
        np.testing.assert_allclose(
            result.log_evidence, np.log(total), atol=1e-4 if result.ess is None else 0.05
        )
        np.testing.assert_allclose(
            result.expectations["y"], ones / total + 1, atol=1e-4 if result.ess is None else 0.05
        )
        assert set(np.unique(result.sample(num_samples=20)["k"])) <= {0, 1}


def given_states(y):
    """A latent site that is given values, some of them missing, is handed on as well."""

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.7))
        w = numpyro.sample("w", dist.Normal(x, 0.5))
        numpyro.sample("y", dist.Normal(w, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def test_a_given_state_with_gaps():
    x = np.array([0.3, NAN, 0.9], np.float32)
    y = np.array([0.1, 0.5, 0.2], np.float32)
    rows = np.zeros((10, 10))
    rows[0, 0] = 1.0
    for t in range(3):
        at = 1 + 3 * t
        rows[at, [at, at - 3 if t else 0]] = np.array([1.0, -0.8]) / 0.7
        rows[at + 1, [at + 1, at]] = np.array([1.0, -1.0]) / 0.5
        rows[at + 2, [at + 2, at + 1]] = np.array([1.0, -1.0]) / 0.5
    log_z = conditioned(rows, [1, 7, 3, 6, 9], np.array([0.3, 0.9, 0.1, 0.5, 0.2]))[0]
    from ppl_ext.state_space.exact import smooth_exactly

    np.testing.assert_allclose(
        smooth_exactly(lower(given_states, (y,), {}, {"x": x})).log_evidence, log_z, atol=1e-4
    )


def masked(y, seen):
    def step(carry, now):
        x = numpyro.sample("x", dist.Normal(0.8 * carry[0], 0.7))
        with numpyro.handlers.mask(mask=now[1]):
            y_t = numpyro.sample("y", dist.Normal(x + 0.6 * carry[1], 0.5), obs=now[0])
        return (x, y_t), None

    scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(())), (y, seen))


def test_masks():
    """A mask over NaN is a gap. Over a number it takes away the number's density and nothing else, as NumPyro
    has it.
    """
    y = with_gaps("middle")
    smoother = smooth(masked, backward="exact")
    np.testing.assert_allclose(smoother.run(KEY, y, ~np.isnan(y)).log_evidence, exact(y)[0], atol=1e-4)
    hidden = np.array([True, True, False, True, True])
    known = smoother.run(KEY, WHOLE, hidden).log_evidence
    values = {"x0": 0.1, "x": jnp.linspace(-0.5, 0.5, 5)}
    ss = lower(masked, (WHOLE, hidden))
    particle, total = ss.initial({"x0": 0.1}).particle, ss.initial({"x0": 0.1}).log_initial
    for t in range(5):
        step = ss.step(particle, {"x": values["x"][t]}, ss.inputs(t))
        particle, total = step.particle, total + step.log_transition + step.log_emission
    np.testing.assert_allclose(total, log_density(masked, values, WHOLE, hidden).total, rtol=1e-5)
    rows = rows_of(5)
    rows[6] *= 1e-4  # the number of step 2 has no density to speak of: that of a normal of scale 5e3
    log_z = conditioned(rows, list(range(2, 11, 2)), WHOLE.astype(float))[0]
    np.testing.assert_allclose(known, log_z + np.log(5e3 * np.sqrt(2 * np.pi)), atol=1e-4)


# --- what cannot be served is refused by name


@pytest.mark.parametrize(
    "use",
    [
        lambda y: simulate(normalize(model, PARAMS, ParticleFilter(5)), y, rng_key=KEY),
        lambda y: MCMC(ParticleGibbs(model, 5), num_warmup=1, num_samples=1, progress_bar=False).run(KEY, y),
        lambda y: simulate(normalize(model, PARAMS, SweptParticleFilter(5)), y, rng_key=KEY),
        lambda y: _conditional_sweep(y),
    ],
    ids=["normalize", "ParticleGibbs", "SweptParticleFilter", "ConditionalSweep"],
)
def test_paths_of_numpyros_sites_have_no_place_for_it(use):
    with pytest.raises(
        ModelError,
        match=r"Site 'y' has gaps \(NaN\), and the step hands its value on.*obs_mask=~jnp.isnan\(y_t\)",
    ):
        use(with_gaps("middle"))


def _conditional_sweep(y):
    given = numpyro.handlers.condition(model, {"back": jnp.array(0.6)})
    with numpyro.handlers.seed(rng_seed=0):
        ConditionalSweep(5)(lambda: given(y), None, {"x0": jnp.zeros(()), "x": jnp.zeros(5)})


def test_the_remedy_is_a_site_like_any_other():
    y = with_gaps("consecutive")
    assert lower(with_obs_mask, (y,), {}, PARAMS).imputed == {}
    drawn = []
    jax.jit(lambda back: drawn.append(lower(with_obs_mask, (y,), {}, {"back": back}).imputed) or 0)(0.6)
    assert drawn == [{}]
    draw = simulate(normalize(with_obs_mask, PARAMS, ParticleFilter(5)), y, rng_key=KEY)
    assert "y_unobserved" in draw.values and np.isfinite(draw.log_density.total)


@SLOW
def test_the_remedy_serves_them():
    y = with_gaps("consecutive")
    np.testing.assert_allclose(
        smooth(with_obs_mask, backward="exact").run(KEY, y, params=PARAMS).log_evidence,
        exact(y)[0],
        atol=1e-4,
    )
    mcmc = MCMC(ParticleGibbs(with_obs_mask, 20), num_warmup=300, num_samples=3000, progress_bar=False)
    mcmc.run(KEY, y)
    grid = np.linspace(-3, 3, 301)
    log_p = np.array([exact(y, b)[0] - 0.5 * b**2 for b in grid])
    weights = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    assert abs(mcmc.get_samples()["back"].mean() - weights @ grid) < 0.15


def raw(y):
    def step(carry, y_t):
        x = numpyro.sample("x", dist.Normal(0.8 * carry[0], 0.7))
        numpyro.sample("y", dist.Normal(x + 0.6 * carry[1], 0.5), obs=y_t)
        return (x, y_t), None

    scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(())), y)


def lagged(y):
    def step(x, now):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.7))
        numpyro.sample("y", dist.Normal(x + 0.6 * now["before"], 0.5), obs=now["y"])
        return x, None

    before = jnp.concatenate([jnp.zeros(1), y[:-1]])
    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), {"y": y, "before": before})


def begun(y):
    first = numpyro.sample("first", dist.Normal(0.0, 1.0), obs=y[0])

    def step(carry, y_t):
        x = numpyro.sample("x", dist.Normal(0.8 * carry[0], 0.7))
        y_t = numpyro.sample("y", dist.Normal(x + 0.6 * carry[1], 0.5), obs=y_t)
        return (x, y_t), None

    scan(step, (numpyro.sample("x0", dist.Normal(0.0, 1.0)), first), y[1:])


REFUSED = [
    (
        raw,
        "middle",
        r"the scan's input is NaN at step 2, and the step uses it as it is: the carry\[1\] becomes "
        r"NaN.*hand on y_t = numpyro",
    ),
    (
        lagged,
        "middle",
        r"the scan's input\['before'\] is NaN at step 3, and the step uses it as it is: the law of site 'y' "
        r"becomes NaN",
    ),
    (
        begun,
        "first",
        "the carry that the scan begins with is NaN: it depends on a gap in 'first', before the first step",
    ),
]


@pytest.mark.parametrize(("program", "pattern", "message"), REFUSED, ids=["raw", "lagged", "begun"])
@pytest.mark.parametrize("backward", ["mcmc", "exact"])
def test_nan_that_is_used_as_it_is(program, pattern, message, backward):
    smoother = smooth(program, None, 20, backward)
    with pytest.raises(ModelError, match="smooth: " + message):
        smoother.run(KEY, with_gaps(pattern))
    assert np.isfinite(smoother.run(KEY, WHOLE).log_evidence)


def test_nan_that_nobody_asks_for():
    """The gap at the last step reaches the carry, and no density."""
    found = smooth(raw, backward="exact").run(KEY, with_gaps("last")).log_evidence
    np.testing.assert_allclose(found, exact(with_gaps("last"))[0], atol=1e-4)


def test_sweeps_and_metropolis_name_it_too():
    with pytest.raises(ModelError, match="ParisParticleGibbs: the scan's input is NaN at step 2"):
        ParisParticleGibbs(raw, None, 5, num_sweeps=2, burn_in=0).run(KEY, with_gaps("middle"))

    def learned(y):
        numpyro.sample("free", dist.Normal(0.0, 1.0))
        raw(y)

    with pytest.raises(ModelError, match="PMMH: the scan's input is NaN at step 2"):
        MCMC(PMMH(learned, 5), num_warmup=1, num_samples=1, progress_bar=False).run(KEY, with_gaps("middle"))


def mixed(y):
    """Finite states and an autoregression on real observations: exact without gaps, and with one at the end,
    which nobody asks for.
    """

    def step(carry, y_t):
        k = numpyro.sample("k", dist.Categorical(jnp.asarray(MOVE, jnp.float32)[carry[0]]))
        y_t = numpyro.sample("y", dist.Normal(1.0 * k + 0.6 * carry[1], 0.5), obs=y_t)
        return (k, y_t), None

    scan(step, (numpyro.sample("k0", dist.Categorical(jnp.array([0.5, 0.5]))), jnp.zeros(())), y)


def compared(y):
    """The value is only compared, and a comparison with NaN is false: the sum would be a plausible number."""

    def step(carry, y_t):
        k = numpyro.sample("k", dist.Categorical(jnp.asarray(MOVE, jnp.float32)[carry[0]]))
        y_t = numpyro.sample("y", dist.Normal(1.0 * k + jnp.where(carry[1] > 0, 0.6, 0.0), 0.5), obs=y_t)
        return (k, y_t), None

    scan(step, (numpyro.sample("k0", dist.Categorical(jnp.array([0.5, 0.5]))), jnp.zeros(())), y)


def test_a_gap_that_is_only_compared():
    with pytest.raises(
        ModelError, match="Site 'y' has gaps.*neither finite nor linear-Gaussian.*Use a particle filter"
    ):
        smooth(compared, backward="exact").run(KEY, with_gaps("middle"))


def test_a_gap_that_takes_the_exact_answer_away():
    smoother = smooth(mixed, backward="exact")
    with pytest.raises(
        ModelError, match="Site 'y' has gaps.*neither finite nor linear-Gaussian.*Use a particle filter"
    ):
        smoother.run(KEY, with_gaps("middle"))
    with pytest.raises(ModelError, match="Site 'y' has gaps.*neither finite nor linear-Gaussian"):
        log_density(
            marginal(lambda y: [numpyro.sample("s", dist.Normal()), mixed(y)], ["s"], ExactFilter()),
            {"s": 0.0},
            with_gaps("middle"),
        )
    short = smoother.run(KEY, WHOLE[:4]).log_evidence
    np.testing.assert_allclose(smoother.run(KEY, with_gaps("last")).log_evidence, short, atol=1e-5)
    found = np.mean(
        np.exp(
            [
                smooth(mixed, None, 3000).run(k, with_gaps("middle")).log_evidence
                for k in jax.random.split(KEY, 3)
            ]
        )
    )
    grid = np.linspace(-4, 5, 91)
    whole = jax.jit(jax.vmap(lambda v: smoother.run(KEY, jnp.asarray(WHOLE).at[2].set(v)).log_evidence))(
        grid.astype(np.float32)
    )
    np.testing.assert_allclose(found, np.exp(np.asarray(whole, np.float64)).sum() * 0.1, rtol=0.05)
