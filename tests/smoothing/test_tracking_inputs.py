"""What a tracker refuses, in words that name the argument and the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.smoothing.tracking import BernoulliTargets, PoissonTargets, Tracker, draw_scene
from tests.smoothing.tracking_problems import born, normal, one, step, tracker, wherever


def refused(make, error, *words):
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)


# --- measurements


@pytest.mark.parametrize(
    ("measurements", "error", "words"),
    [
        ([np.zeros((2, 1)), np.zeros((2, 3))], ArgumentError, ("step 1", r"shape \(2, 3\)", r"\(n, 1\)")),
        ([[1.0, 2.0]], ArgumentError, ("step 0", "One measurement is one row")),
        ([np.zeros((1, 1)), [[np.nan]]], ArgumentError, ("step 1", "NaN", "left out", "seen=False")),
        ([[[np.inf]]], ArgumentError, ("infinite",)),
        ([np.zeros((1, 1)), np.zeros((5, 1))], ArgumentError, ("step 1", "5", "max_measurements=5")),
        ([], ArgumentError, ("no steps",)),
        ("abc", ArgumentTypeError, ("list with one array",)),
        (3.0, ArgumentTypeError, ("list with one array",)),
        ([["a"]], ArgumentTypeError, ("step 0",)),
        ([[[1.0], [1.0, 2.0]]], ArgumentTypeError, ("step 0", "array of numbers")),
    ],
)
def test_measurements(measurements, error, words):
    refused(lambda: tracker().run(measurements), error, *words)


def test_measurements_that_the_step_does_not_take():
    of = Tracker(step, born(), 1.0, wherever(measured=2))
    refused(lambda: of.run([np.zeros((1, 2))]), ArgumentError, "dimension 2", "'z'", r"\(1,\)")

    def reads_one_of_two(x, z):
        x = numpyro.sample("x", dist.Normal(x, 1.0).to_event(1))
        numpyro.sample("range", dist.Normal(x[0], 1.0), obs=z[0])
        return x, None

    of = Tracker(reads_one_of_two, born(), 1.0, wherever(measured=2))
    refused(of.one_target, ArgumentError, "observes 1 numbers", "'range'")


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 4)), ((3, 4, 2), (3, 4)), ((3, 4, 1), (3, 5)), ((0, 4, 1), (0, 4))]
)
def test_arrays_that_do_not_fit(shapes):
    values, seen = shapes
    refused(lambda: tracker().filter(np.zeros(values), np.ones(seen, bool)), ArgumentError, "values must be")


def test_more_targets_than_slots():
    """Three targets for sure and two slots: an error with the remedy, and in a trace a count."""
    z = np.array([[-8.0], [0.0], [8.0]])
    of = tracker(born(3.0), 0.01, max_targets=2)
    refused(lambda: of.run([z, z]), ArgumentError, "step 0", "max_targets = 2", "max_targets=4")
    found = jax.jit(of.filter)(jnp.array([z, z]), jnp.ones((2, 3), bool))
    assert int(found.crowded[0]) >= 1 and float(found.crowded_most.max()) > 0.5
    three = BernoulliTargets(jnp.ones(3), normal([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    refused(
        lambda: tracker(initial=three, max_targets=2), ArgumentError, "3 targets", "max_targets = 2", "raise"
    )
    many = PoissonTargets(jnp.ones(9), normal([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    refused(lambda: tracker(initial=many, max_undetected=8), ArgumentError, "max_undetected = 8")


# --- the tracker's numbers


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"detection": 0.0}, ArgumentError, ("detection", r"\(0, 1\]", "got 0")),
        ({"detection": 1.01}, ArgumentError, ("detection",)),
        ({"detection": -0.1}, ArgumentError, ("detection",)),
        ({"detection": float("nan")}, ArgumentError, ("detection", "nan")),
        ({"detection": "often"}, ArgumentTypeError, ("detection",)),
        ({"detection": np.array([0.5, 0.6])}, ArgumentTypeError, ("detection must be one number",)),
        ({"survival": 0.0}, ArgumentError, ("survival",)),
        ({"survival": 2.0}, ArgumentError, ("survival",)),
        ({"clutter": -1.0}, ArgumentError, ("clutter", "zero or more", "got -1")),
        ({"clutter": float("inf")}, ArgumentError, ("clutter",)),
        ({"clutter": 0.0, "births": one(0.1)}, ArgumentError, ("clutter must be positive", "small number")),
        ({"clutter": 0.0, "births": born(0.0)}, ArgumentError, ("clutter must be positive",)),
        ({"recycle_below": 0.7}, ArgumentError, ("recycle_below",)),
        ({"recycle_below": 0.0}, ArgumentError, ("recycle_below",)),
        ({"max_targets": 0}, ArgumentError, ("max_targets",)),
        ({"max_measurements": 2.5}, ArgumentError, ("max_measurements",)),
        ({"max_undetected": -1}, ArgumentError, ("max_undetected",)),
        ({"num_rounds": 0}, ArgumentError, ("num_rounds",)),
        ({"births": 3.0}, ArgumentTypeError, ("births", "rate 0")),
        ({"initial": 3.0}, ArgumentTypeError, ("initial",)),
        ({"initial": BernoulliTargets(1.0, normal([0.0], [[1.0]]))}, ArgumentError, ("initial", "alike")),
    ],
)
def test_numbers(settings, error, words):
    refused(lambda: tracker(**settings), error, *words)


def test_clutter_of_zero_is_fine_where_births_explain_all():
    assert tracker(born(0.1), 0.0).clutter == 0.0


@pytest.mark.parametrize(
    "law", [dist.Normal(0.0, 1.0), "anywhere", dist.Normal(jnp.zeros((2, 1)), 1.0).to_event(1)]
)
def test_the_law_of_clutter(law):
    refused(lambda: Tracker(step, born(), 1.0, law), ArgumentTypeError, "clutter_law", "to_event")


def test_a_step_that_is_no_function():
    refused(lambda: Tracker("walk", born(), 1.0, wherever()), ArgumentTypeError, "Tracker: step")


# --- random sets


def nowhere():
    """A law that NumPyro refuses by itself where it is asked to."""
    return dist.MultivariateNormal(jnp.array([jnp.inf]), jnp.eye(1), validate_args=False)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PoissonTargets(-0.1, normal([0.0], [[1.0]])), ArgumentError, ("rate", "-0.1")),
        (lambda: PoissonTargets(np.nan, normal([0.0], [[1.0]])), ArgumentError, ("rate",)),
        (lambda: PoissonTargets("few", normal([0.0], [[1.0]])), ArgumentTypeError, ("rate",)),
        (lambda: BernoulliTargets(1.1, normal([0.0], [[1.0]])), ArgumentError, (r"\[0, 1\]",)),
        (lambda: PoissonTargets(1.0, dist.Normal(0.0, 1.0)), ArgumentTypeError, ("to_event", "Normal")),
        (
            lambda: PoissonTargets(1.0, dist.Gamma(1.0, 1.0).expand([2]).to_event(1)),
            ArgumentTypeError,
            ("normal",),
        ),
        (
            lambda: PoissonTargets(jnp.ones(3), dist.Normal(jnp.zeros((2, 1)), 1.0).to_event(1)),
            ArgumentError,
            ("2 laws",),
        ),
        (lambda: PoissonTargets(1.0, nowhere()), ArgumentError, ("mean", "finite")),
    ],
)
def test_sets(make, error, words):
    refused(make, error, *words)


@pytest.mark.parametrize("kind", [PoissonTargets, BernoulliTargets])
def test_a_covariance_that_is_none(kind):
    law = dist.MultivariateNormal(
        jnp.zeros(2), scale_tril=jnp.linalg.cholesky(-jnp.eye(2)), validate_args=False
    )
    refused(lambda: kind(0.5, law), ArgumentError, kind.__name__, "positive definite", "variance")


def test_laws_that_are_one_or_several():
    wide = dist.Normal(jnp.zeros((3, 2)), jnp.array([1.0, 2.0])).to_event(1)
    found = PoissonTargets(0.5, wide).components()
    assert found.weight.tolist() == [0.5] * 3
    np.testing.assert_allclose(found.covariance, np.tile(np.diag([1.0, 4.0]), (3, 1, 1)))
    same = PoissonTargets(jnp.array([0.1, 0.2]), dist.Normal(0.0, 1.0).expand([2]).to_event(1)).components()
    assert same.mean.shape == (2, 2) and same.covariance.shape == (2, 2, 2)


# --- the step


def changed(**parts):
    """A step with a fault."""
    law = parts.get("law", lambda x: dist.Normal(0.9 * x, 1.0).to_event(1))
    seen = parts.get("seen", lambda x, before: dist.Normal(x[:1], 0.5).to_event(1))

    def step(x, z):
        new = numpyro.sample("x", law(x))
        if "more" in parts:
            parts["more"](new)
        numpyro.sample("z", seen(new, x), obs=z)
        return parts.get("returns", lambda new: (new, None))(new)

    return Tracker(step, born(), 1.0, wherever())


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({"seen": lambda x, _: dist.Normal(x[:1] ** 2, 0.5).to_event(1)}, ModelError, ("not linear", "'x'")),
        ({"law": lambda x: dist.Normal(jnp.sin(x), 1.0).to_event(1)}, ModelError, ("not linear",)),
        ({"law": lambda x: dist.StudentT(3.0, x, 1.0).to_event(1)}, ModelError, ("not linear",)),
        ({"law": lambda x: dist.Normal(x, jnp.exp(x)).to_event(1)}, ModelError, ("not linear",)),
        ({"seen": lambda x, b: dist.Normal(x[:1] - b[:1], 0.5).to_event(1)}, ModelError, ("state before",)),
        ({"returns": lambda x: x}, ModelError, ("return x, None",)),
        ({"returns": lambda x: (2.0 * x, None)}, ModelError, ("return the value",)),
        (
            {"law": lambda x: dist.Normal(jnp.zeros(3), 1.0).to_event(1)},
            ModelError,
            (r"shape \(3,\)", r"\(2,\)"),
        ),
        ({"more": lambda x: numpyro.factor("f", -(x[0] ** 2))}, ModelError, ("factors",)),
        (
            {"more": lambda x: numpyro.sample("y", dist.Normal(0.0, 1.0))},
            ModelError,
            ("one latent", "'x', 'y'"),
        ),
        (
            {"law": lambda x: dist.MultivariateNormal(x, scale_tril=jnp.diag(jnp.array([1.0, 0.0])))},
            ModelError,
            ("positive definite", "noise"),
        ),
    ],
)
def test_steps(parts, error, words):
    refused(changed(**parts).one_target, error, *words)


def test_a_step_without_a_measurement():
    def blind(x, z):
        x = numpyro.sample("x", dist.Normal(x, 1.0).to_event(1))
        return x, None

    refused(Tracker(blind, born(), 1.0, wherever()).one_target, ModelError, "observed one", "none")


@pytest.mark.parametrize("handler", ["scale", "mask"])
def test_handlers_that_change_the_density_are_refused(handler):
    wrap = {"scale": numpyro.handlers.scale(scale=0.5), "mask": numpyro.handlers.mask(mask=False)}[handler]

    def halved(x, z):
        x = numpyro.sample("x", dist.Normal(x, 1.0).to_event(1))
        with wrap:
            numpyro.sample("z", dist.Normal(x[:1], 1.0).to_event(1), obs=z)
        return x, None

    refused(Tracker(halved, born(), 1.0, wherever()).one_target, ModelError, "scales|positive definite")


# --- scenes


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [((0, 3), ArgumentTypeError, "rng_key"), ((jax.random.key(0), 0), ArgumentError, "num_steps")],
)
def test_scenes(args, error, words):
    key, num = args
    refused(lambda: draw_scene(key, tracker(), num), error, words)
