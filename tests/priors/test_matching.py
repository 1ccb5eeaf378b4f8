"""Matching end to end: scales that are known, tuned values that stay constants, and what a run says when it
cannot go on.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from tinygp import kernels

from ppl_ext.designs import ProjectionDPP
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError, ModelError, NonFiniteError
from ppl_ext.infer import SGHMC
from ppl_ext.priors import (
    Energy,
    Gaussian,
    GaussianProcess,
    ScaleMixture,
    SlicedWasserstein,
    designed_inputs,
    lift_prior,
    match,
    measurement_inputs,
)
from ppl_ext.priors.functions.outputs import draw_function
from ppl_ext.priors.matching.compiled_steps import Programs, programs_for
from ppl_ext.priors.matching.report import crossings
from tests.priors.models import LEVEL, SLOPE, X, line, linear_target, network

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

RULES = {"slope": Gaussian(), "level": Gaussian()}


def tune(**options):
    options = {
        "inputs": X,
        "target": linear_target(),
        "output": "f",
        "num_steps": 250,
        "progress_bar": False,
    } | options
    return match(jax.random.key(3), lift_prior(line, RULES), **options)


@pytest.fixture(scope="module")
def tuned():
    return tune(num_draws=256)


def test_a_line_recovers_the_scales_of_its_kernel(tuned):
    scales = {name: float(tuned.hyperparameters[name][name]["scale"]) for name in RULES}
    assert scales["slope"] == pytest.approx(SLOPE, rel=0.03)
    assert scales["level"] == pytest.approx(LEVEL, rel=0.03)
    assert len(tuned.losses) == 250 and abs(tuned.losses[-20:].mean()) < 0.02 < tuned.losses[0]


def test_another_match_of_the_same_kind_shares_its_programs_and_not_its_inputs(monkeypatch):
    traced, steps = [], Programs._steps

    def counted(self, *args):
        traced.append(self)
        return steps(self, *args)

    monkeypatch.setattr(Programs, "_steps", counted)

    def of(lifted, inputs, target, **options):
        settings = {"output": "f", "num_steps": 3, "num_draws": 8, "progress_bar": False} | options
        return match(jax.random.key(0), lifted, inputs=inputs, target=target, **settings)

    lifted, target = lift_prior(line, RULES), linear_target()
    first, other = of(lifted, X, target), of(lifted, 2.0 * X, target)
    fresh = of(lift_prior(line, RULES), 2.0 * X, target)
    shared, also, own = (programs_for(fit.matching, None, 3) for fit in (first, other, fresh))
    assert shared is also and traced == [shared, own]
    np.testing.assert_array_equal(other.losses, fresh.losses)
    assert other.report.distances == fresh.report.distances and not np.array_equal(first.losses, other.losses)
    for matching, optim, num_steps in ((first.matching, None, 4), (first.matching, optax.sgd(0.1), 3)):
        assert programs_for(matching, optim, num_steps) is not shared
    for name, value in (
        ("target", linear_target()),
        ("distance", Energy()),
        ("num_draws", 10),
        ("args", (1,)),
    ):
        changed = copy.copy(first.matching)
        setattr(changed, name, value)
        assert programs_for(changed, None, 3) is not shared


def test_the_report_judges_by_another_distance(tuned):
    report = tuned.report
    before, after, floor = report.distances["Energy"]
    assert report.judge == "Energy" and before > 0.1 and abs(after) < 0.02 and abs(floor) < 0.02
    np.testing.assert_allclose(report.sd_ratio, 1.0, atol=0.2)  # 512 draws of each: 4.5 standard errors
    assert abs(report.kurtosis["after"]) < 1.0
    text = "\n".join(tuned.summary_lines())
    assert "slope" in text and "not optimised" in text and "sd of functions" in text


def test_the_report_tells_of_heavy_tails_and_of_a_match_that_got_worse(tuned):
    kurtosis = {"before": 0.0, "after": 0.1, "target": 6.0}
    report = tuned.report._replace(kurtosis=kurtosis, distances={"Energy": (0.1, 0.2, 0.0)})
    assert "ScaleMixture" in report.words()[-2] and "worse" in report.words()[-1]
    assert not any("ScaleMixture" in w or "worse" in w for w in tuned.report.words())


def test_crossings_are_counted_along_the_inputs_around_the_targets_mean():
    inputs = np.array([[3.0], [0.0], [2.0], [1.0]])
    target = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])  # around 2
    after = np.array([[3.0, 1.0, 1.0, 3.0], [1.0, 3.0, 1.0, 1.0]])  # along the inputs: 1 3 1 3, 3 1 1 1
    found = crossings(inputs, {"target": target, "after": after, "before": after[:1]})
    assert found == {"target": 0.0, "after": 2.0, "before": 3.0}
    assert crossings(np.ones((4, 2)), {"target": target}) is None
    assert crossings(inputs, {"target": target[..., None]}) is None


def test_the_report_tells_how_long_a_stationary_target_stays_on_one_side():
    """Rice: a mean excursion of pi / sqrt(lambda_2), and a crossing at the end of each."""
    inputs = jnp.linspace(0.0, 10.0, 201)
    of = {"inputs": inputs, "num_steps": 2, "num_draws": 8}
    smooth = tune(target=GaussianProcess(kernels.ExpSquared(scale=0.7)), **of)
    assert smooth.report.crossings["target"] == pytest.approx(10.0 / (0.7 * np.pi), rel=0.08)
    assert smooth.report.crossings["after"] < 1.0  # a line
    text = smooth.summary()
    assert f"{smooth.report.crossings['target']:.2f} of the target." in text
    assert (
        f"stays {0.7 * np.pi:.4g} on one side" in text and "falls about as exp(-0.5879 t)" in text
    )  # .4115 / .7
    rough = tune(target=GaussianProcess(kernels.Exp(scale=0.7)), **of).summary()
    assert "crossings" in rough and "one side" not in rough  # without derivative, there is no mean excursion


@pytest.mark.slow
def test_tuned_values_are_constants_under_svi(tuned):
    """Neither a param that SVI would train, nor a site of that name: the prior after training is the prior
    before.
    """
    y = jnp.asarray(3.0 * X)
    guide = AutoNormal(tuned.model)
    run = SVI(tuned.model, guide, optax.adam(0.05), Trace_ELBO()).run(
        jax.random.key(0), 30, X, y, progress_bar=False
    )
    assert all(name.endswith(("_auto_loc", "_auto_scale")) for name in run.params)
    scale = tuned.hyperparameters["slope"]["slope"]["scale"]
    model = numpyro.handlers.substitute(
        numpyro.handlers.seed(tuned.model, 0), data=run.params | {"log_scale": 5.0, "slope_scale": 9.0}
    )
    sites = numpyro.handlers.trace(model).get_trace(X, y)
    assert float(sites["slope"]["fn"].scale) == pytest.approx(float(scale), rel=1e-6)
    assert not any(site["type"] == "param" for site in sites.values())


def test_the_same_arguments_and_sites_as_before(tuned):
    plain = numpyro.handlers.trace(numpyro.handlers.seed(line, 0)).get_trace(X, y=X)
    sites = numpyro.handlers.trace(numpyro.handlers.seed(tuned.model, 0)).get_trace(X, y=X)
    assert list(plain) == list(sites)
    assert [s["type"] for s in plain.values()] == [s["type"] for s in sites.values()]
    draws = Predictive(tuned.model, num_samples=400)(jax.random.key(1), X)
    assert draws["slope"].std() == pytest.approx(SLOPE, rel=0.2)


@pytest.mark.slow
def test_nuts_runs_on_it_and_agrees_with_the_conjugate_posterior(tuned):
    y = 1.5 * X + 0.3
    model = numpyro.handlers.condition(tuned.model, {"noise": jnp.array(0.5)})
    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=400, progress_bar=False)
    mcmc.run(jax.random.key(2), X, y)
    scale = float(tuned.hyperparameters["slope"]["slope"]["scale"])
    variance = 1.0 / (1.0 / scale**2 + float((X**2).sum()) / 0.25)  # X is centred: the level does not matter
    slopes = mcmc.get_samples()["slope"]
    assert abs(float(slopes.mean()) - variance * float((X * y).sum()) / 0.25) < 4.5 * np.sqrt(variance / 100)


@pytest.mark.slow
def test_sghmc_runs_on_it_and_agrees_with_the_conjugate_posterior(tuned):
    y = 1.5 * X + 0.3
    model = numpyro.handlers.condition(tuned.model, {"noise": jnp.array(0.5)})
    kernel = SGHMC(model, step_size=0.02, friction=0.2, adapt=None, num_steps=60)
    mcmc = MCMC(
        kernel, num_warmup=20, num_samples=300, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(2), X, y)
    scale = float(tuned.hyperparameters["slope"]["slope"]["scale"])
    variance = 1.0 / (1.0 / scale**2 + float((X**2).sum()) / 0.25)
    # sixty steps apart, twelve times the memory of the momentum
    slopes = np.asarray(mcmc.get_samples()["slope"], float)
    assert abs(slopes.mean() - variance * float((X * y).sum()) / 0.25) < 4.5 * np.sqrt(variance / 400)
    assert abs(slopes.var() / variance - 1.0) < 4.5 * np.sqrt(2 / 400)


@pytest.mark.slow
def test_functions_and_arviz(tuned):
    draws = tuned.functions(jax.random.key(0), X[:4], 50)
    assert {name: d.shape for name, d in draws.items()} == dict.fromkeys(
        ("before", "after", "target"), (50, 4)
    )
    data = tuned.to_arviz(num_samples=20)
    assert set(data.prior_predictive.data_vars) == {"untuned", "tuned", "target"}
    assert data.prior["slope"].shape == (1, 20) and data.prior_predictive["tuned"].shape == (1, 20, len(X))


@pytest.mark.slow
def test_a_picture_of_draws_before_after_and_of_the_target(tuned):
    axes = tuned.plot_function_draws(np.linspace(-1, 1, 9), num_draws=20, num_lines=3)
    assert [ax.get_title() for ax in axes] == ["before", "after", "target"]


@pytest.mark.parametrize("output", [None, "y", lambda sites: sites["level"] + sites["slope"] * X])
def test_the_function_is_what_is_returned_a_likelihoods_location_or_a_function_of_sites(output):
    read = [draw_function(line, out, jax.random.key(1), X) for out in (output, "f")]
    np.testing.assert_allclose(read[0], read[1], rtol=1e-6)


def test_functions_of_one_output_lose_its_axis_and_those_of_two_keep_it():
    for width, shape in ((1, (len(X),)), (2, (len(X), 2))):
        found = draw_function(
            lambda x, width=width: jnp.outer(x, jnp.arange(1.0, 1.0 + width)), None, jax.random.key(0), X
        )
        assert found.shape == shape
        np.testing.assert_array_equal(found.reshape(len(X), width)[:, 0], X)


def test_a_design_says_where_functions_are_compared():
    x = np.linspace(-1.0, 1.0, 30)
    design = ProjectionDPP(x[:, None] ** np.arange(4))
    inputs = designed_inputs(x, design)
    key = jax.random.key(4)
    np.testing.assert_allclose(inputs(key), x[np.asarray(design.sample(key))], rtol=1e-6)
    assert not np.array_equal(inputs(key), inputs(jax.random.key(5)))
    # a line's kernel is found from four points a step
    found = tune(inputs=inputs, num_draws=256).hyperparameters
    assert float(found["slope"]["slope"]["scale"]) == pytest.approx(SLOPE, rel=0.05)


@pytest.mark.parametrize(
    "design, error, told",
    [
        (np.arange(3), ArgumentTypeError, "design must be one distribution"),
        (dist.Normal(0.0, 1.0).expand([4]), ArgumentTypeError, "over numbers of candidates"),
        (dist.Categorical(probs=jnp.ones((2, 3, 5)) / 5), ArgumentTypeError, "one distribution"),
        (dist.Categorical(logits=jnp.zeros(5)).expand([3]), ArgumentError, "the 6 candidates .* or fewer"),
        (dist.Categorical(logits=jnp.zeros(7)).expand([3]), ArgumentError, "the 6 candidates .* or fewer"),
        (ProjectionDPP(np.eye(7)[:, :2]), ArgumentError, "the 6 candidates"),
    ],
)
def test_a_design_over_other_candidates_is_named(design, error, told):
    with pytest.raises(error, match=told):
        designed_inputs(np.arange(6.0), design)


def test_measurement_sets_are_training_inputs_and_points_of_their_box():
    x = np.array([[0.0, 10.0], [1.0, 20.0], [2.0, 40.0]])
    drawn = np.asarray(measurement_inputs(x, num_points=200)(jax.random.key(0)))
    is_training = (drawn[:, None] == x[None].astype(np.float32)).all(-1).any(-1)
    assert drawn.shape == (200, 2) and is_training.sum() == 140
    assert (drawn >= x.min(0)).all() and (drawn <= x.max(0)).all()
    assert len(np.unique(drawn[~is_training, 1])) == 60


@pytest.mark.slow
def test_a_run_that_breaks_down_names_the_site_and_keeps_the_last_good_state():
    def fragile(x):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        bent = numpyro.deterministic("bent", jnp.where(jnp.abs(slope) > 8.0, jnp.nan, slope))
        return numpyro.deterministic("f", bent * x)

    lifted = lift_prior(fragile, {"slope": Gaussian()})
    target = GaussianProcess(lambda a, b: 25.0 * a @ b.T)
    with pytest.raises(NonFiniteError, match="site 'bent' was not finite in .* draws of the model") as caught:
        match(
            jax.random.key(0),
            lifted,
            output="f",
            inputs=X,
            target=target,
            num_steps=100,
            num_draws=64,
            progress_bar=False,
        )
    result = caught.value.result
    assert 0 < len(result.losses) < 100 and np.isfinite(result.losses).all()
    assert 1.0 < float(result.hyperparameters["slope"]["slope"]["scale"]) < 5.0


@pytest.mark.slow
def test_a_gradient_that_breaks_down_is_named_by_its_hyperparameter():
    def kinked(x):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        return slope * x + jnp.sqrt(0.0 * slope)

    lifted = lift_prior(kinked, {"slo*": Gaussian()})
    with pytest.raises(
        NonFiniteError, match=r"step 0, the gradient by 'log_scale' of 'slope' \(pattern 'slo\*'\)"
    ):
        match(
            jax.random.PRNGKey(0),
            lifted,
            inputs=X,
            target=linear_target(),
            num_steps=5,
            num_draws=8,
            progress_bar=False,
        )


def test_targets_that_are_not_finite_are_told_before_the_first_step():
    with pytest.raises(NonFiniteError, match="draws of the target"):
        tune(target=GaussianProcess(lambda a, b: -10.0 * jnp.eye(len(a)) @ jnp.ones((len(a), len(b)))))


def test_handlers_around_the_call_are_refused():
    with pytest.raises(HandlerError, match="match"), numpyro.handlers.seed(rng_seed=0):
        tune()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"output": "g"}, ModelError, "no site 'g'.*'slope', 'level', 'f'"),
        ({"output": "slope"}, ModelError, r"site 'slope' must be \(M,\)"),
        ({"output": 3}, ArgumentTypeError, "output"),
        ({"output": lambda sites: None}, ModelError, "the output must be"),
        ({"inputs": np.full(3, np.nan)}, ArgumentError, "inputs holds 3 numbers"),
        ({"inputs": np.zeros((0, 2))}, ArgumentError, "inputs must have shape"),
        ({"inputs": "abc"}, ArgumentTypeError, "inputs must be an array"),
        ({"inputs": lambda key: "abc"}, ArgumentTypeError, "inputs"),
        ({"inputs": lambda: X}, ArgumentError, "inputs"),
        ({"target": 3}, ArgumentTypeError, "target"),
        ({"target": GaussianProcess}, ArgumentTypeError, "target"),
        ({"target": linear_target(num_outputs=2)}, ArgumentError, "target.sample must return shape"),
        ({"distance": SlicedWasserstein}, ArgumentTypeError, "distance"),
        ({"num_steps": 0}, ArgumentError, "num_steps"),
        ({"num_draws": 3}, ArgumentError, "num_draws"),
        ({"num_draws": 7}, ArgumentError, "even number"),
        ({"optim": 0.1}, ArgumentTypeError, "optim"),
        ({"progress_bar": 1}, ArgumentTypeError, "progress_bar"),
        ({"args": 3}, ArgumentTypeError, "args"),
        ({"kwargs": {"nope": 1}}, ArgumentError, "nope"),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        tune(**{"num_steps": 1, "num_draws": 8} | options)


@pytest.mark.slow
def test_numpyro_optimisers_and_other_distances_work():
    fit = tune(optim=numpyro.optim.Adam(0.05), distance=Energy(), num_steps=3, num_draws=8)
    assert fit.report.judge == "SlicedWasserstein" and len(fit.losses) == 3


@pytest.mark.slow
def test_the_family_may_be_hierarchical():
    fit = match(
        jax.random.key(0), lift_prior(network, {"w*": ScaleMixture(fan_in="auto")}), output="y", inputs=X,
        target=linear_target(),
        num_steps=3, num_draws=8, progress_bar=False,
    )  # fmt: skip
    assert set(fit.hyperparameters["w*"]) == {"w1", "w2"}
    assert set(fit.hyperparameters["w*"]["w1"]) == {"shape", "scale"}
