"""Bad fits taken on to the posterior by tempered Monte Carlo, and what two starts say of each other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.reparam import LocScaleReparam

from ppl_ext.algorithms import RandomWalk, TemperedSMC
from ppl_ext.diagnostics import verdict
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import SMC, Checkpoint, fit
from ppl_ext.infer.smc.comparison import apart
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)


def fitted(model, *args, seed=0, num_steps=600, num_chains=1):
    steady = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    guide, key = AutoNormal(model), jax.random.key(seed)
    return fit(key, model, guide, ELBO(), steady, num_steps, *args, num_chains=num_chains, progress_bar=False)


def pair(y):
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.95], [0.95, 1.0]])))
    numpyro.sample("y", dist.Normal(x.sum(), 100.0), obs=y)


def test_a_bad_fit_is_refined():
    """Mean-field gives each coordinate a third of its width."""
    result = fitted(pair, 1.0)
    assert verdict(result, num_samples=4000).level == "bad"
    refined = result.refined(KEY, TemperedSMC(1000), progress_bar=False)
    np.testing.assert_allclose(refined.values["x"].std(0), 1.0, atol=0.1)
    np.testing.assert_allclose(refined.values["x"].mean(0), 0.0, atol=0.15)
    found = verdict(refined)
    assert found.level == "good" and "cover what the guide missed" in str(found)
    report = refined.to_arviz()
    assert report.posterior.attrs["started_from"] == "the prior"
    assert report.posterior.attrs["started_beside_from"] == "AutoNormal"
    assert abs(report.posterior.attrs["log_evidence_beside"] - refined.log_evidence) < 0.5


def test_two_starts_of_a_good_fit_agree():
    def normal(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 3.0)), 0.5), obs=y)

    refined = fitted(normal, 1.0).refined(KEY, TemperedSMC(1000), progress_bar=False)
    found = verdict(refined)
    assert found.level == "good" and "two starts agree" in str(found)
    assert "A run from AutoNormal beside it: log evidence" in refined.summary()


def test_the_guide_alone_says_what_it_may_have_missed():
    refined = fitted(pair, 1.0).refined(KEY, TemperedSMC(1000), from_prior=False, progress_bar=False)
    assert refined.beside is None and refined.how["started_from"] == "AutoNormal"
    found = verdict(refined)
    assert found.level == "unknown" and "another peak or a heavy tail, may not be found" in str(found)


def level(y):
    mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_an_improper_prior_has_no_run_beside():
    y = jnp.array([1.0, 2.0, 3.0])
    refined = fitted(level, y).refined(KEY, TemperedSMC(2000), progress_bar=False)
    assert refined.beside is None
    assert abs(refined.values["mean"].mean() - 2.0) < 0.05
    exact = jnp.sum(dist.Normal(2.0, 1.0).log_prob(y)) + 0.5 * jnp.log(2 * jnp.pi / 3)
    assert abs(refined.log_evidence - exact) < 0.05
    assert "no run from the prior: TemperedSMC starts from draws of the prior, and site 'mean'" in str(
        verdict(refined)
    )


def test_each_run_has_a_checkpoint_of_its_own(tmp_path):
    result, algorithm = fitted(pair, 1.0, num_steps=2), TemperedSMC(100)
    options = {"checkpoint": Checkpoint(tmp_path / "run.npz", every=1), "progress_bar": False}
    first = result.refined(KEY, algorithm, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"run.npz", "run.npz.prior"}
    again = result.refined(KEY, algorithm, **options)
    np.testing.assert_array_equal(first.values["x"], again.values["x"])
    np.testing.assert_array_equal(first.beside.values["x"], again.beside.values["x"])


def test_what_refines_no_fit_is_refused():
    result = fitted(pair, 1.0, num_steps=2)
    with pytest.raises(ArgumentTypeError, match="refined: algorithm must be a TemperedSMC"):
        result.refined(KEY, 1000)
    with pytest.raises(ArgumentError, match="leave initial= out"):
        result.refined(KEY, TemperedSMC(100, initial=AutoNormal(pair), params={}))
    with pytest.raises(ArgumentError, match="leave along= out"):
        result.refined(KEY, TemperedSMC(100, along="rows"))
    with pytest.raises(ArgumentTypeError, match="refined: rng_key"):
        result.refined(3, TemperedSMC(100))
    with pytest.raises(ArgumentError, match="SMC has no option 'steps'"):
        result.refined(KEY, TemperedSMC(100), steps=2)
    with pytest.raises(ArgumentTypeError, match="refined: from_prior must be True or False"):
        result.refined(KEY, TemperedSMC(100), from_prior="yes")


# --- the verdict on tempered particles, reason by reason


@pytest.fixture(scope="module")
def run():
    return SMC(pair, 1000, progress_bar=False).run(KEY, 1.0)


def levels(result):
    return {reason.level: reason.words for reason in verdict(result).reasons}


def test_a_run_from_the_prior_is_good(run):
    assert verdict(run).level == "good"


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"temperatures": np.array([0.4, 0.9])}, "bad", "the run ended at temperature 0.9, not at 1"),
        ({"log_evidence": np.array(-np.inf)}, "bad", "no particle is possible given the data"),
        ({"ess": np.array([500.0, 2.0])}, "bad", "smallest effective sample size 2.0 of 1000, at stage 1"),
        ({"ess": np.array([500.0, 5.0])}, "doubtful", "smallest effective sample size 5.0 of 1000"),
        ({"ess": np.array([500.0, 0.0])}, "bad", "no particle survived stage 1"),
        ({"ess": np.full(400, 500.0)}, "doubtful", "standard deviation of the log evidence about 0.63"),
        ({"ess": np.full(4000, 500.0)}, "bad", "standard deviation of the log evidence about 2"),
        ({"num_nan": 3}, "doubtful", "3 densities were NaN"),
    ],
)
def test_what_speaks_against_a_run_is_said(run, changes, expected, words):
    found = verdict(replace(run, **changes))
    assert found.level == expected and words in str(found), str(found)


@pytest.mark.parametrize(
    ("acceptance", "num_steps", "expected"),
    [(0.3, 5, "good"), (0.05, 5, "doubtful"), (0.05, 20, "good"), (0.01, 5, "bad"), (0.3, 1, "doubtful")],
)
def test_moves_are_judged_by_how_many_particles_they_renew(run, acceptance, num_steps, expected):
    stuck = {"acceptance": np.full(2, acceptance), "how": {**run.how, "num_steps": num_steps}}
    assert verdict(replace(run, ess=np.array([500.0, 900.0]), **stuck)).level == expected
    # where weights are even nothing was drawn twice, and there is nothing to renew
    assert verdict(replace(run, ess=np.array([1000.0, 1000.0]), **stuck)).level == "good"


def test_few_particles_are_few_draws(run):
    few = replace(run, log_weights=run.log_weights[:50], ess=np.array([50.0]))
    assert "50 particles are few draws" in levels(few)["doubtful"]


def started(run, start, log_evidence=-2.0, **values):
    changes = {"values": {**run.values, **values}, "ess": np.array([900.0])}
    return replace(run, how={"started_from": start}, log_evidence=np.array(log_evidence), **changes)


def test_two_starts_are_compared(run):
    prior, guide, x = "the prior", "AutoNormal", run.values["x"]

    def said(one, two):
        reasons = verdict(replace(one, beside=two)).reasons
        return next(reason for reason in reasons if "AutoNormal" in reason.words)

    agree = said(started(run, prior), started(run, guide, -2.1))
    assert agree.level == "good" and "two starts agree: log evidence -2 from the prior" in agree.words
    covers = said(started(run, prior), started(run, guide, -2.7, x=x + 2.0))
    assert covers.level == "good" and "cover what the guide missed" in covers.words
    lost = said(started(run, guide), started(run, prior, -5.0, x=x + 2.0))
    assert lost.level == "unknown" and "the prior's run lost its way" in lost.words
    dead = said(started(run, guide), started(run, prior, -np.inf))
    assert dead.level == "unknown" and "no possible particle" in dead.words
    for moved, words in ((x + 0.6, "in a mean"), (1.7 * x, "a factor of 1.7")):
        differ = said(started(run, prior), started(run, guide, -2.1, x=moved))
        assert differ.level == "doubtful" and words in differ.words


def test_noise_sets_no_runs_apart():
    draws = np.random.default_rng(0).normal(size=(40, 2, 100, 20))
    assert not any(apart({"x": one}, {"x": two}).far for one, two in draws)
    assert apart({"a": draws[0, 0], "b": np.ones(100)}, {"a": draws[0, 1], "b": np.ones(100)}).site == "a"
    assert apart({"x": np.ones(100)}, {"x": np.zeros(100)}).far


# --- repaired over seeds


def funnel(y):
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", 4):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2.0)))


def two_peaks(y):
    z = numpyro.sample("z", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    numpyro.sample("sum", dist.Normal(jnp.sum(jnp.abs(z)), 0.5), obs=y)
    numpyro.sample("difference", dist.Normal(z[0] - z[1], 0.5), obs=0.0)


INPUTS = np.random.default_rng(0).normal(size=(40, 8))
OUTPUTS = INPUTS @ np.r_[2.0, -1.5, np.zeros(6)] + np.random.default_rng(1).normal(size=40)


def horseshoe(y):
    overall = numpyro.sample("overall", dist.HalfCauchy(0.5))
    noise = numpyro.sample("noise", dist.HalfNormal(2.0))
    with numpyro.plate("inputs", 8):
        scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
        beta = numpyro.sample("beta", dist.Normal(0.0, overall * scale))
    numpyro.sample("y", dist.Normal(INPUTS @ beta, noise), obs=y)


def on_a_grid():
    """Mean and standard deviation of the two peaks."""
    one, two = np.meshgrid(*[np.linspace(-25.0, 25.0, 1001)] * 2, indexing="ij")
    log_p = -(one**2 + two**2) / 50 - 2 * ((6 - abs(one) - abs(two)) ** 2 + (one - two) ** 2)
    weights = np.exp(log_p - log_p.max())
    return 0.0, np.sqrt((weights * one**2).sum() / weights.sum())


def by_nuts():
    """Moments of the horseshoe's coefficients, where its funnel is taken apart."""
    apart = reparam(horseshoe, config={"beta": LocScaleReparam(0.0)})
    mcmc = MCMC(NUTS(apart, target_accept_prob=0.98), num_warmup=2000, num_samples=20_000, progress_bar=False)
    mcmc.run(KEY, OUTPUTS)
    beta = np.asarray(mcmc.get_samples()["beta"])
    return beta.mean(0), beta.std(0)


REPAIRS = {
    "funnel": (funnel, 0.0, "v", lambda: (0.0, 3.0), 10),
    "two peaks": (two_peaks, 6.0, "z", on_a_grid, 10),
    "horseshoe": (horseshoe, OUTPUTS, "beta", by_nuts, 40),
}


def errors(name, seeds, num_particles):
    """The largest error of a mean or a standard deviation, in reference standard deviations, before and after
    the repair, and the levels of both verdicts.
    """
    model, data, site, reference, num_steps = REPAIRS[name]
    mean, sd = reference()

    def off(draws):
        return max(np.max(np.abs(draws.mean(0) - mean) / sd), np.max(np.abs(draws.std(0) / sd - 1.0)))

    for seed in seeds:
        result = fitted(model, data, seed=seed, num_steps=2000, num_chains=4)
        draws = result.sample(KEY, 4000).values
        algorithm = TemperedSMC(num_particles, moves=RandomWalk(num_steps=num_steps))
        refined = result.refined(jax.random.key(100 + seed), algorithm, progress_bar=False)
        yield (
            off(np.asarray(draws[site])[0]),
            off(refined.values[site]),
            verdict(result).level,
            verdict(refined).level,
        )


def test_a_lost_peak_is_found():
    ((before, after, of_fit, of_refined),) = errors("two peaks", [0], 2000)
    assert before > 0.9 and after < 0.15
    assert (of_fit, of_refined) == ("bad", "good")


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_nearly_every_seed_is_repaired(name, capsys):
    found = list(errors(name, range(10), 4000))
    with capsys.disabled():
        for before, after, *levels in found:
            print(f"\n{name}: {before:.3f} -> {after:.3f}, verdicts {' -> '.join(levels)}", end="")
    assert sum(after < 0.1 for _, after, *_ in found) >= 8
