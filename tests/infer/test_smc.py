"""The front of tempered SMC: evidence and draws of whole models, reports, resuming, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import HMC, NUTS, SA
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy import stats

import ppl_ext
from ppl_ext import normalize, simulate
from ppl_ext.algorithms import Enumeration, ImportanceSampling, NumPyroMoves, RandomWalk, TemperedSMC
from ppl_ext.algorithms.tempered import moves
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError, StrategyError
from ppl_ext.infer import SMC, Checkpoint, fit
from ppl_ext.infer.smc import smc as front
from ppl_ext.objectives import ELBO
from tests.algorithms.test_tempered_smc import MODELS

KEY = jax.random.key(0)


def smc(model, num_particles=1000, **options):
    return SMC(model, num_particles, progress_bar=False, **options)


def evidences(front, data, num=12):
    return np.mean([np.exp(float(front.run(key, data).log_evidence)) for key in jax.random.split(KEY, num)])


def normal(y):
    """One wide prior, one narrow observation."""
    z = numpyro.sample("z", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(z, 0.05), obs=y)


EXACT = stats.norm.pdf(3.0, 0.0, (100 + 0.05**2) ** 0.5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "mixture" else pytest.mark.slow) for n in MODELS]
)
def test_evidence_with_found_temperatures_is_within_three_percent(name):
    model, y, exact = MODELS[name]
    evidence, _ = exact(np.random.default_rng(0), 1)
    assert abs(evidences(smc(model), y) / evidence - 1) < 0.03


def check_narrow():
    found = smc(normal, ess=0.9)
    result = found.run(KEY, 3.0)
    assert result.num_stages > 5 and abs(result.values["z"].std() / 0.05 - 1) < 0.1
    assert abs(evidences(found, 3.0, 40) / EXACT - 1) < 0.03


def test_a_narrow_posterior_is_found():
    check_narrow()


def still(self, key, path, tau, points, fitted, keep):
    return points, moves.Tally(jnp.ones(()), jnp.zeros((), jnp.int32))


def test_without_moves_it_is_not(monkeypatch):
    monkeypatch.setattr(RandomWalk, "run", still)
    with pytest.raises(AssertionError):
        check_narrow()


OPTIONS = {
    "waste-free": {"num_particles": 1002, "waste_free": True},
    "unbiased": {"unbiased": True},
    "NUTS": {"moves": NumPyroMoves(NUTS, 1, options={"max_tree_depth": 4})},
    "HMC": {"moves": NumPyroMoves(HMC, 2, options={"num_steps": 3, "trajectory_length": None})},
    "SA": {"moves": SA},
    "given": {"temperatures": np.linspace(0, 1, 30) ** 5},
    "given, after 0": {"temperatures": (np.linspace(0, 1, 30) ** 5)[1:]},
}


@pytest.mark.parametrize("first", [0, 1])
def test_given_temperatures_are_gone_through_to_the_last(first):
    """A 0 in front once made the compiled run one temperature short: draws of another law, in silence."""
    temperatures = np.linspace(0, 1, 7)[first:] ** 3
    found = smc(normal, 200, temperatures=temperatures).run(KEY, 3.0)
    np.testing.assert_allclose(found.temperatures, np.linspace(0, 1, 7)[1:] ** 3, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_evidence_is_right_however_it_goes(name):
    assert abs(evidences(smc(normal, **{"num_particles": 1000, **OPTIONS[name]}), 3.0, 30) / EXACT - 1) < 0.06


# --- data in order


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        kind = numpyro.sample("kind", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(slope * x + kind, 0.5), obs=y)


def test_rows_of_a_plate_come_in_order_with_finite_sites_of_their_own():
    x, y = jnp.linspace(-1.0, 1.0, 8), jnp.array([-0.7, -0.5, 1.0, -0.1, 0.0, 1.4, 0.5, 1.1])
    at_once, in_order = (
        smc(regression).run(KEY, x, y),
        smc(regression, along="rows", num_blocks=4).run(KEY, x, y),
    )
    grid = np.linspace(-5, 5, 4001)[:, None]
    rows = 0.7 * stats.norm.pdf(y, grid * x, 0.5) + 0.3 * stats.norm.pdf(y, grid * x + 1.0, 0.5)
    exact = np.log(np.sum(stats.norm.pdf(grid[:, 0]) * rows.prod(1)) * (grid[1, 0] - grid[0, 0]))
    assert abs(at_once.log_evidence - exact) < 0.15 and abs(in_order.log_evidence - exact) < 0.15
    given = smc(regression, along="rows", temperatures=[0.25, 0.5, 0.75, 1.0], num_blocks=4).run(KEY, x, y)
    assert given.num_stages == 4 and abs(given.log_evidence - exact) < 0.15
    # the first block is the first two rows
    first = smc(regression).run(KEY, x[:2], y[:2]).log_evidence
    assert abs(given.log_increments[0] - first) < 0.15


def walk(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def test_steps_of_a_scan_come_in_order():
    y = jnp.array([0.3, -0.2, 0.9])
    result = smc(walk, 4000, along="time", temperatures=[1 / 3, 2 / 3, 1.0]).run(KEY, y)
    cov = np.array([[0.9 ** (s + t) for t in range(1, 4)] for s in range(1, 4)])
    for k in range(3):
        for s in range(k, 3):
            for t in range(k, 3):
                cov[s, t] += 0.25 * 0.9 ** (s - k + t - k)
    cov += 0.25 * np.eye(3)
    exact = [stats.multivariate_normal(np.zeros(n), cov[:n, :n]).logpdf(y[:n]) for n in (1, 2, 3)]
    assert np.abs(np.cumsum(result.log_increments) - exact).max() < 0.12
    assert result.values["x"].shape == (4000, 3)


# --- from a fitted guide


@pytest.mark.parametrize("kind", [AutoNormal, pytest.param(AutoMultivariateNormal, marks=pytest.mark.slow)])
def test_a_fitted_guide_saves_most_of_the_way(kind):
    fitted = fit(
        KEY, normal, kind(normal), ELBO(), optax.adam(0.1), 400, 3.0, num_chains=2, progress_bar=False
    )
    result = smc(normal, initial=fitted).run(KEY, 3.0)
    assert result.num_stages < smc(normal).run(KEY, 3.0).num_stages
    assert abs(result.log_evidence - np.log(EXACT)) < 0.15


def backwards(parts, shares):
    return -parts[..., 0] if parts.shape[-1] == 1 else parts.sum(-1)


def test_a_bridge_of_the_wrong_sign_is_seen(monkeypatch):
    monkeypatch.setattr("ppl_ext.algorithms.tempered.points.weighed", backwards)
    with pytest.raises(AssertionError):
        test_a_fitted_guide_saves_most_of_the_way(AutoNormal)


# --- resuming


class StopError(Exception):
    pass


def test_a_run_goes_on_to_the_last_bit(tmp_path, monkeypatch):
    whole = smc(normal, 100).run(KEY, 3.0)
    resumed = smc(normal, 100, checkpoint=Checkpoint(tmp_path / "run.npz", every=1))
    some, calls = front._Stages.some, []

    def at_most_three(self):
        calls.append(0)
        if len(calls) == 4:
            raise StopError
        return some(self)

    monkeypatch.setattr(front._Stages, "some", at_most_three)
    with pytest.raises(StopError):
        resumed.run(KEY, 3.0)
    result = resumed.run(KEY, 3.0)
    assert len(calls) - 4 == whole.num_stages - 3 + 1
    assert result.log_evidence == whole.log_evidence and (result.values["z"] == whole.values["z"]).all()
    assert (result.temperatures == whole.temperatures).all()
    with pytest.raises(ArgumentError, match="its data is"):
        resumed.run(KEY, 2.0)


# --- what is told


def test_a_second_run_compiles_nothing_and_equal_keys_give_equal_results():
    front_ = smc(normal, 50)
    front_.run(KEY, 3.0)
    sizes = front_._advance._jit._cache_size()
    first, second = front_.run(jax.random.key(1), 2.0), front_.run(jax.random.key(1), 2.0)
    assert front_._advance._jit._cache_size() == sizes and first.log_evidence == second.log_evidence


def test_predictions_and_predictive_draws_come_from_the_particles():
    result = smc(regression, 50).run(KEY, jnp.ones(3), jnp.ones(3))
    report = result.to_arviz(posterior_predictive=True)
    assert dict(report.posterior_predictive["y"].sizes) == {"chain": 1, "draw": 50, "rows": 3}
    assert {"temperature", "ess", "acceptance_rate"} <= set(report.vi_trace.data_vars)
    assert (report.sample_stats["log_weight"] == -np.log(50)).all()
    assert ppl_ext.predict(KEY, result, jnp.ones(2), None)["y"].shape == (1, 50, 2)


# --- mistakes


def poisson():
    numpyro.sample("k", dist.Poisson(3.0))
    normal(1.0)


def finite():
    numpyro.sample("k", dist.Bernoulli(0.5))


def improper(y=1.0):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def broken():
    numpyro.factor("f", jnp.nan * numpyro.sample("z", dist.Normal(0.0, 1.0)))


def without_latent():
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)


def chain():
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(k, y_t):
        k = numpyro.sample("k", dist.Bernoulli(jnp.where(k == 1, 0.8, 0.2)))
        numpyro.sample("y", dist.Normal(level * k, 1.0), obs=y_t)
        return k, None

    scan(step, 0, jnp.ones(3))


def nested(algorithm):
    def two():
        numpyro.sample("k", dist.Bernoulli(0.3))
        normal(1.0)

    return ppl_ext.marginal(two, ["z"], algorithm)


def test_a_guide_that_writes_to_its_state():
    """Nothing of one trace is met in another, and the caller's state is as it was."""

    def guide():
        state = numpyro.primitives.mutable("seen", {"times": jnp.zeros((), int)})
        state["times"] = state["times"] + 1
        numpyro.sample("z", dist.Normal(0.3, 1.2))

    params = {"seen": {"times": jnp.array(3)}}
    before = params["seen"]["times"]
    found = smc(lambda: normal(1.0), num_particles=200, initial=guide, params=params).run(KEY)
    assert np.isfinite(found.log_evidence) and params["seen"]["times"] is before
    algorithm = TemperedSMC(20, temperatures=[1.0], initial=guide, params=params)
    program = normalize(lambda: normal(1.0), {}, algorithm)
    assert np.isfinite(simulate(program, rng_key=KEY).log_density.total)
    assert params["seen"]["times"] is before


RUNS = {
    "discrete": (poisson, {}, ModelError, "cannot move site 'k' .Poisson.*Marginalise it"),
    "finite": (finite, {}, ModelError, "'k' are finite: use Enumeration"),
    "improper": (improper, {}, ModelError, "site 'z' cannot be drawn. Start from a guide, initial="),
    "NaN": (broken, {}, NonFiniteError, "NaN or zero at stage 1 .*by_site says which"),
    "nothing": (without_latent, {}, ModelError, "no latent site"),
    "no plate": (lambda: normal(1.0), {"along": "rows"}, ModelError, "along='rows' names no plate"),
    "linked": (chain, {"along": "time"}, ModelError, "finite sites .'k'. link what lies along 'time'"),
    "data inside": (nested(Enumeration()), {}, ModelError, "'marginal.z.' in the program holds data"),
    "noise inside": (nested(ImportanceSampling(2)), {}, ModelError, "is an estimate of one. Use an exact"),
    "groups": (lambda: normal(1.0), {"moves": SA, "num_particles": 7}, ArgumentError, "7 particles do not"),
    "a point": (
        lambda: normal(1.0),
        {"initial": AutoDelta(lambda: normal(1.0)), "params": {"z_auto_loc": jnp.zeros(())}},
        ModelError,
        "'z' at a single point",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_cannot_be_run_is_told(name):
    model, options, error, words = RUNS[name]
    with pytest.raises(error, match=words):
        smc(model, **{"num_particles": 20, **options}).run(KEY)


ARGUMENTS = [
    ({"num_particles": 1}, ArgumentError, "num_particles must be at least 2"),
    ({"temperatures": [0.5, 0.4, 1.0]}, ArgumentError, "must increase and end in 1"),
    ({"temperatures": [0.2, 0.5]}, ArgumentError, "must increase and end in 1"),
    ({"temperatures": "steep"}, ArgumentTypeError, "temperatures must be an array"),
    ({"num_particles": 8, "waste_free": True}, ArgumentError, "multiple of num_steps [+] 1 = 6.*take 12"),
    ({"moves": "walk"}, ArgumentTypeError, "moves must be RandomWalk"),
    ({"ess": 1.5}, ArgumentError, "ess must be between 0 and 1"),
    ({"params": {}}, ArgumentError, "params are those of a guide"),
    ({"along": "rows", "initial": normal}, ArgumentError, "a guide has seen the data"),
    ({"initial": AutoMultivariateNormal(normal)}, ArgumentError, "give its params="),
]


@pytest.mark.parametrize(("options", "error", "words"), ARGUMENTS)
def test_arguments_that_cannot_be_used_are_told(options, error, words):
    with pytest.raises(error, match=words):
        smc(normal, **{"num_particles": 20, **options}).run(KEY, 1.0)


def test_where_nothing_is_possible_the_evidence_is_zero_and_a_warning_says_so():
    def model(y):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Exponential(1.0), obs=y)
        numpyro.factor("f", jnp.where(y > 0, 0.0, -jnp.inf))

    with pytest.warns(UserWarning, match="no particle is possible given the data at stage 1: all 20 weights"):
        result = smc(model, 20).run(KEY, 0.0)
    assert np.isneginf(result.log_evidence) and "no particle is possible" in str(result.verdict())


@pytest.mark.parametrize("checks", [False, True])
def test_data_that_hold_nan_are_named(checks):
    """Where NumPyro checks values, a law gives NaN a density of zero: a warning spoke of supports."""
    with (
        numpyro.validation_enabled(checks),
        pytest.raises(NonFiniteError, match="'y'.*hold 1 NaN of 3: drop"),
    ):
        smc(normal, 20).run(KEY, np.array([1.0, np.nan, 2.0]))


def test_data_outside_of_a_support_are_named():
    def waits(y):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
        numpyro.sample("y", dist.Uniform(0.0, rate), obs=y)

    with pytest.warns(
        UserWarning, match="'y' in the model is -inf.*outside the support of Uniform in 1 of 1"
    ):
        smc(waits, 20).run(KEY, -1.0)


def test_too_few_temperatures_are_told():
    with pytest.warns(UserWarning, match="max_stages=2 temperatures were not enough"):
        smc(normal, 100, max_stages=2).run(KEY, 3.0)


def test_draws_in_an_objective_must_be_held_fixed():
    with pytest.raises(StrategyError, match="site 'z'. have no gradient. Hold them fixed, ppl_ext.handlers"):
        ELBO().loss(KEY, {}, normal, normalize(normal, {}, TemperedSMC(4, [1.0])), 1.0)


def test_groups_are_for_the_front_alone():
    with pytest.raises(ModelError, match="SA moves particles in groups"):
        simulate(normalize(normal, {}, TemperedSMC(10, moves=SA)), 1.0, rng_key=KEY)


def test_double_precision():
    """A count of NaN changed its type from move to move, and nothing ran."""
    with jax.enable_x64(True):
        result = smc(normal).run(KEY, 3.0)
        assert abs(result.log_evidence - np.log(EXACT)) < 0.2
        report = result.to_arviz()
    assert result.values["z"].dtype == report.posterior["z"].dtype == np.float64
    assert abs(result.values["z"].std() / 0.05 - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", [TemperedSMC(60), TemperedSMC(60, [0.01, 1.0], NumPyroMoves(HMC))], ids=["walk", "HMC"]
)
def test_double_precision_through_a_given_draw(algorithm):
    """With a draw that is scored in the conditional run."""
    with jax.enable_x64(True):
        law = normalize(normal, {}, algorithm)
        densities = [
            float(ppl_ext.log_density(law, {"z": 3.0}, 3.0, rng_key=key).total)
            for key in jax.random.split(KEY, 8)
        ]
    # E of the reciprocal is exact
    assert abs(np.mean(np.exp(densities)) / stats.norm.pdf(3.0, 3.0 / (1 + 0.05**2 / 100), 0.05) - 1) < 0.3
