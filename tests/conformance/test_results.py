"""Every result of the library keeps one contract: a report, a summary, a line, and a look in a notebook.

A new result joins by one row of ``RESULTS``: a function without arguments that returns it, and what its
report needs, if anything.
"""

import functools
import html
import inspect
import pkgutil
import re
from importlib import import_module

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoNormal

import ppl_ext
from ppl_ext import Result
from ppl_ext.algorithms import ParticleFilter
from ppl_ext.diagnostics import Calibration, LeaveFutureOut, Verdict, verdict
from ppl_ext.diagnostics.report.arviz_export import variables_of, write_report
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import SMC, SMC2, fit, windowed
from ppl_ext.meta import ExactLinearGaussian, evaluate, kinds, lift
from ppl_ext.objectives import ELBO
from ppl_ext.priors import Gaussian, lift_prior, match, posterior_functions
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised
from ppl_ext.smoothing import OnlineSmoother, ParisParticleGibbs, ScoreAscent, discriminative_kalman, smooth
from tests.priors.models import X, line, linear_target
from tests.smoothing.tracking_problems import tracker

KEY = jax.random.key(0)
Y = jnp.array([1.0, 2.0, 3.0])
SQUARE = {"square": lambda t, x_prev, x: x**2}


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def walk(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(mean + 0.5 * x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def predicted(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def episode(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 2):
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y)


EPISODES = [(np.full(2, 3.0 * sign + i, np.float32),) for i in range(3) for sign in (-1, 1)]


@functools.cache
def meta_fit():
    lifted = lift(episode, ["level"])
    return lifted.fit(KEY, EPISODES, local_solver=ExactLinearGaussian(), num_steps=30, progress_bar=False)


@functools.cache
def adapted():
    return meta_fit().adapt(KEY, EPISODES[0][0], num_samples=20)


def stream():
    smoother = OnlineSmoother(walk, SQUARE, num_particles=10)
    state = smoother.init(KEY, params={"mean": 0.0})
    for y in Y:
        state = smoother.step(state, y[None])
    return smoother.result(state)


def window():
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    run = windowed(
        step, lambda free, *_: numpyro.sample("x", dist.Normal(free, 1.0)), 0.0, 2, optax.adam(0.1), 5
    )
    state = run.init(KEY, 0.0, 0.0)
    for y in Y:
        state = run.step(state, y)
    return run.result(state)


def functions():
    draws = {"slope": np.linspace(0.8, 1.2, 8).reshape(2, 4)}
    return posterior_functions(predicted, draws, jnp.array([0.0, 1.0]), y=jnp.array([0.1, 1.3]))


def tracks():
    return tracker().run([np.zeros((n, 1)) for n in (1, 0, 2)])


def tuned():
    return match(
        KEY,
        lift_prior(line, {"slope": Gaussian(), "level": Gaussian()}),
        inputs=X,
        target=linear_target(),
        output="f",
        num_steps=3,
        num_draws=16,
        progress_bar=False,
    )


def calibration():
    truths = {"mu": np.linspace(-1.0, 1.0, 20).astype(np.float32)}
    return Calibration({"mu": np.arange(20) % 10}, 9, 2, truths, {"y": 2.0 * truths["mu"]}, {3: "NaN"})


# By name: how to make it, and what its report needs.
RESULTS = {
    "Fit": (
        lambda: fit(
            KEY, model, AutoNormal(model), ELBO(), optax.adam(0.05), 30, Y, num_chains=2, progress_bar=False
        ),
        {},
    ),
    "SMCResult": (lambda: SMC(model, num_particles=100, progress_bar=False).run(KEY, Y), {}),
    "SMC2Result": (
        lambda: SMC2(walk, 100, ParticleFilter(10), progress_bar=False, min_acceptance=0.0).run(KEY, Y),
        {},
    ),
    "SmoothingResult": (lambda: smooth(walk, SQUARE, num_particles=10).run(KEY, Y, params={"mean": 0.0}), {}),
    "SmoothingResult, exact": (
        lambda: smooth(walk, backward="exact").run(KEY, Y, params={"mean": 0.0}),
        {"num_samples": 5},
    ),
    "ParticleGibbsSmoothing": (
        lambda: ParisParticleGibbs(walk, SQUARE, num_particles=5, num_sweeps=6, burn_in=1).run(
            KEY, Y, params={"mean": 0.0}, num_chains=2
        ),
        {},
    ),
    "Learned": (
        lambda: ScoreAscent(walk, optax.adam(0.1), num_particles=5).run(KEY, 8, Y, params={"mean": 0.0}),
        {},
    ),
    "OnlineResult": (stream, {}),
    "WindowResult": (window, {}),
    "DiscriminativeResult": (
        lambda: discriminative_kalman(
            jnp.ones((3, 2)), 0.5 * jnp.eye(2), 0.9 * jnp.eye(2), 0.19 * jnp.eye(2)
        ),
        {},
    ),
    "Tracks": (tracks, {}),
    "Matched": (tuned, {"num_samples": 5}),
    "FunctionDraws": (functions, {}),
    "MetaFit": (meta_fit, {"episodes": EPISODES, "num_samples": 5}),
    "Adapted": (adapted, {"episode": "ann"}),
    "Kinds": (lambda: kinds(meta_fit(), KEY, EPISODES, num_starts=2, num_rounds=5), {}),
    "Scores": (lambda: evaluate(meta_fit(), KEY, EPISODES, EPISODES, num_samples=20), {}),
    "Calibration": (calibration, {}),
    "LeaveFutureOut": (
        lambda: LeaveFutureOut(-2.4, 0.3, np.array([-1.4, -1.0]), np.array([-np.inf, 0.2]), (2,)),
        {},
    ),
}


SLOW = {"SmoothingResult, exact", "ParticleGibbsSmoothing", "Learned", "Matched"}  # seconds to compile


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RESULTS],
)
def row(request):
    """Each is made once: its kind, itself, and what its report needs."""
    make, needs = RESULTS[request.param]
    return request.param.partition(",")[0], make(), needs


def test_it_is_a_result_and_its_line_is_short(row):
    kind, result, _ = row
    assert type(result).__name__ == kind and isinstance(result, Result)
    line = repr(result)
    assert line.startswith(f"{kind}(") and "\n" not in line and len(line) < 160


def test_its_summary_says_something_and_nothing_that_is_no_number(row, capsys):
    _, result, _ = row
    result.print_summary()
    told = capsys.readouterr().out
    assert re.search(r"\d", told) and re.search(r"[a-z]{3,} [a-z]{2,}", told)
    assert not re.search(r"\b(nan|None)\b", told), told
    assert max(map(len, told.splitlines())) < 320


# No one draw, loss or score of these says how far they are off.
UNKNOWN = {
    "OnlineResult",
    "DiscriminativeResult",
    "MetaFit",
    "Adapted",
    "Kinds",
    "Scores",
    "Learned",
    "Tracks",
    "WindowResult",
}


def test_its_verdict_has_a_reason_and_ends_the_summary(row, capsys):
    kind, result, _ = row
    found = verdict(result)
    assert isinstance(found, Verdict) and found.reasons and found == result.verdict()
    assert found.level != "good" or kind not in UNKNOWN
    result.print_summary()
    assert "\nVerdict: " in capsys.readouterr().out


def test_a_notebook_shows_it(row, capsys):
    _, result, _ = row
    shown = result._repr_html_()
    assert shown.startswith("<pre>") and shown.endswith("</pre>") and shown.count("<") == 2
    text = html.unescape(shown.removeprefix("<pre>").removesuffix("</pre>"))
    if hasattr(result, "summary"):
        result.print_summary()
        assert text == capsys.readouterr().out.rstrip("\n")
    else:  # a look at a Fit must cost no draws
        assert text.startswith(repr(result)) and "loss" in text


def same(one, other):
    assert variables_of(one) == variables_of(other) != {}
    for group in variables_of(one):
        a, b = (getattr(x[group], "dataset", x[group]) for x in (one, other))
        assert a.equals(b), group


def test_one_verb_reports_it(row):
    _, result, needs = row
    same(ppl_ext.to_arviz(result, **needs), result.to_arviz(**needs))


def test_a_report_comes_back_from_disk(row, tmp_path):
    _, result, needs = row
    report = result.to_arviz(**needs)
    same(az.from_netcdf(write_report(report, tmp_path / "report.nc")), report)


def test_draws_and_estimates_are_not_mixed_up(row):
    kind, result, needs = row
    groups = variables_of(result.to_arviz(**needs))
    without = {"Learned", "OnlineResult", "DiscriminativeResult", "Scores", "Calibration", "LeaveFutureOut"}
    without |= {"Tracks"}
    assert ("posterior" in groups) == (kind not in without | {"Matched"})
    assert ("estimates" in groups) == (kind in without | {"Kinds"})


def test_an_option_that_it_does_not_take_is_refused_by_name(row):
    kind, result, needs = row
    with pytest.raises(ArgumentError, match="colour"):
        ppl_ext.to_arviz(result, **needs, colour="red")
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(result.to_arviz).parameters.values()):
        with pytest.raises(ArgumentError, match=f"the report of a {kind} has no option 'log_likelihood'; it"):
            ppl_ext.to_arviz(result, **needs, log_likelihood=True)


# --- what is there is in the table


def test_every_result_is_in_the_table():
    """What has both methods, wherever in the package."""
    found = set()
    for module in pkgutil.walk_packages(ppl_ext.__path__, "ppl_ext."):
        for name, thing in vars(import_module(module.name)).items():
            if inspect.isclass(thing) and thing.__module__ == module.name:
                both = hasattr(thing, "to_arviz"), hasattr(thing, "print_summary")
                assert all(both) or not any(both) or thing is Summarised, name
                if all(both) and thing is not Result:
                    found.add(name)
    assert found == {name.partition(",")[0] for name in RESULTS}


@pytest.mark.parametrize("kind", sorted({name.partition(",")[0] for name in RESULTS}))
def test_a_result_is_exported(kind):
    packages = ("infer", "smoothing", "priors", "meta", "diagnostics")
    offered = [p for p in packages if kind in import_module(f"ppl_ext.{p}").__all__]
    assert len(offered) == 1


def test_one_default_number_of_draws():
    found = {}
    for module in pkgutil.walk_packages(ppl_ext.__path__, "ppl_ext."):
        for thing in vars(import_module(module.name)).values():
            if inspect.isclass(thing) and isinstance(thing, type) and hasattr(thing, "print_summary"):
                for name, method in inspect.getmembers(thing, inspect.isfunction):
                    parameter = inspect.signature(method).parameters.get("num_samples")
                    if parameter is not None and parameter.default is not parameter.empty:
                        found[f"{thing.__name__}.{name}"] = parameter.default
    assert len(found) > 8 and set(found.values()) == {NUM_SAMPLES}, found


# --- several at once, and what is none


@pytest.mark.parametrize("results", ["dict", "list"])
def test_adapted_episodes_make_one_report(results):
    several = {"ann": adapted(), "bob": adapted()} if results == "dict" else [adapted(), adapted()]
    report = ppl_ext.to_arviz(several)
    assert report.posterior["level"].dims == ("chain", "draw", "episode")
    assert report.posterior["episode"].values.tolist() == (["ann", "bob"] if results == "dict" else [0, 1])
    with pytest.raises(ArgumentError, match=f"a {results} of results has no option 'num_samples'"):
        ppl_ext.to_arviz(several, num_samples=3)


@pytest.mark.parametrize("nothing", [None, 3.0, {}, [], {"mu": np.zeros((1, 5))}, object(), Calibration])
def test_what_is_no_result_is_refused(nothing):
    with pytest.raises(ArgumentTypeError, match="result must be a Fit, a numpyro MCMC or an SVIRunResult"):
        ppl_ext.to_arviz(nothing)


def test_a_report_says_what_it_needs():
    with pytest.raises(ArgumentError, match="the report of a MetaFit needs episodes="):
        ppl_ext.to_arviz(meta_fit())


def test_a_result_of_ones_own_is_asked():
    class Coin:
        def to_arviz(self, num_flips=2):
            return num_flips

    assert ppl_ext.to_arviz(Coin()) == 2 and ppl_ext.to_arviz(Coin(), num_flips=5) == 5
    with pytest.raises(ArgumentError, match="a Coin has no option 'num_samples'; it takes 'num_flips'"):
        ppl_ext.to_arviz(Coin(), num_samples=5)
