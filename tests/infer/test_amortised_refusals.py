"""What amortised inference does not take: models, networks and data sets, each by its name."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext.diagnostics import psis
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.infer import SetTransformer, amortise, fit
from ppl_ext.objectives import Sleep
from tests.infer.amortised_programs import (
    MEAN,
    NEW,
    SMALL,
    SOME,
    Says,
    X,
    Y,
    linear,
    of_mean,
    of_some,
    of_unit,
    params_of,
    trained,
)


def refused(model, *args, **options):
    return amortise(model, SMALL, *args, **options)


def scored(num, y, masked=True):
    num = numpyro.sample("num", dist.DiscreteUniform(1, 3), obs=num)
    numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.handlers.mask(mask=jnp.arange(3) <= num if masked else True), numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def with_site(law, **options):
    def model(y):
        numpyro.sample("z", law, **options)
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    return model


def unseen():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def factored(y):
    numpyro.factor("extra", numpyro.sample("z", dist.Normal(0.0, 1.0)))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def subsampled(y):
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 4, subsample_size=2):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y[:2])


def hidden(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.3)


def half_seen(y):
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False])), obs=y)


def moving(y):
    z = numpyro.sample("z", dist.HalfNormal(1.0))
    numpyro.sample("below", dist.Uniform(0.0, z))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


NOTHING, ZERO = (), (jnp.array(0.0),)
MODELS = [
    (unseen, NOTHING, {}, "observes nothing"),
    (with_site(dist.Normal(0.0, 1.0), obs=jnp.array(0.0)), ZERO, {}, "'z' is no argument"),
    (with_site(dist.Poisson(1.0)), ZERO, {}, "'z' .Poisson. is discrete"),
    (with_site(dist.ImproperUniform(dist.constraints.real, (), ())), ZERO, {}, "'z' is improper"),
    (with_site(dist.Normal(0.0, 1.0).mask(False)), ZERO, {}, "'z' is masked"),
    (factored, ZERO, {}, "factor 'extra'"),
    (subsampled, (jnp.zeros(4),), {}, "'rows' is subsampled"),
    (hidden, ZERO, {}, "'y' is no argument"),
    (half_seen, (jnp.zeros(2),), {}, "'y' is masked"),
    (moving, ZERO, {}, "'below' depends on other sites.*fixed_support"),
    (numpyro.handlers.scale(with_site(dist.Normal(0.0, 1.0)), 2.0), ZERO, {}, "is scaled"),
    (lambda y: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y), ZERO, {}, "no latent site"),
    (scored, (jnp.array(3), jnp.zeros(3)), {"rows": ["y"], "count": "num"}, "rows of site 'y' that count"),
    (
        lambda num, y: scored(num, y, False),
        (jnp.array(3), jnp.zeros(3)),
        {"rows": ["y"], "count": "num"},
        "rows of site 'y' that count",
    ),
    (of_some, SOME, {"rows": ["x", "y"]}, "'x' is masked|'y' is masked"),
    (of_unit, (jnp.zeros(4),), {"sites": ["nu"]}, "sites=.*'mu'"),
]


@pytest.mark.parametrize(("model", "args", "options", "words"), MODELS)
def test_models_that_a_network_cannot_answer_for(model, args, options, words):
    with pytest.raises(ModelError, match=words):
        refused(model, *args, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": "y"}, "rows must name"),
        ({"rows": ["num"]}, "rows must name"),
        ({"rows": ["x", "y"], "count": "x"}, "count must name"),
        ({"count": "num"}, "count must name"),
        ({"num_components": 0}, "num_components must be a positive"),
    ],
)
def test_names_that_are_none(options, words):
    with pytest.raises(ArgumentError, match=words):
        refused(of_some, *SOME, **options)


def test_networks_that_are_none():
    with pytest.raises(ArgumentTypeError, match="network must be a module of flax"):
        amortise(of_unit, jnp.tanh, jnp.zeros(4))
    with pytest.raises(ArgumentTypeError, match="the class SetTransformer"):
        amortise(of_unit, SetTransformer, jnp.zeros(4))
    with pytest.raises(ArgumentError, match="width=7 must be a multiple"):
        SetTransformer(7)
    guide = amortise(of_unit, Says(np.zeros(3)), jnp.zeros(4))
    with pytest.raises(ModelError, match=r"put out a float32 array of shape \(3,\), and shape \(2,\)"):
        numpyro.handlers.seed(guide, 0)(NEW)
    with pytest.raises(ModelError, match=r"shape \(3,\), and shape \(2,\)"):
        fit(jax.random.key(0), of_unit, guide, Sleep(2), optax.adam(0.1), 1, jnp.zeros(4), progress_bar=False)


LONG = jnp.linspace(-0.9, 0.9, 7)
DATA = [
    ({"x": LONG, "y": LONG}, ArgumentError, "'x' has 7 rows, and the network was trained for 6 at most"),
    ({"x": X, "y": Y[:2]}, ArgumentError, "not equally many"),
    ({"x": X}, ArgumentError, "'y' is missing"),
    ({"x": X, "y": Y, "num": 4}, ArgumentError, "num=4, but there are 3 rows"),
    ({"x": X[:, None], "y": Y}, ArgumentError, "'x' must have shape"),
    ({"x": X, "y": Y.at[1].set(jnp.nan)}, NonFiniteError, "'y' has nan"),
    ({"x": X.at[0].set(1.5), "y": Y}, ArgumentError, "site 'x' is 1.5, where its law has no mass"),
    ({"x": X, "y": Y, "z": 0.0}, ArgumentError, "does not fit"),
    ({"x": X, "y": list("abc")}, ArgumentTypeError, "'y' must be an array of numbers"),
]


@pytest.mark.parametrize(("data", "error", "words"), DATA)
def test_data_sets_that_were_not_trained_for(data, error, words):
    guide, run = trained()
    with pytest.raises(error, match=words):
        guide.laws(run, **data)
    with pytest.raises(error, match=words):
        guide.answer(run, **data)


def test_a_prior_outside_of_what_was_trained_for():
    guide = amortise(of_mean, SMALL, *MEAN, rows=["y"])
    params = params_of(guide, *MEAN)
    with pytest.raises(ArgumentError, match="site 'width' is 2.5, where its law has no mass"):
        guide.laws(params, 2.5, jnp.zeros(4))
    with pytest.raises(ArgumentError, match="site 'width' is 0, where its law has no mass"):
        amortise(of_mean, SMALL, jnp.array(0.0), jnp.zeros(4), rows=["y"])
    with pytest.raises(ArgumentError, match="no fewer.*count="):
        guide.laws(params, 1.0, jnp.zeros(3))
    with pytest.raises(ArgumentError, match=r"run has no 'amortised\$params'"):
        guide.laws({"weights": 1.0}, 1.0, jnp.zeros(4))


def test_numbers_beyond_all_simulations_are_warned_of():
    guide, run = trained()
    with pytest.warns(UserWarning, match="site 'y' is 50, beyond all of 1000 simulations"):
        guide.laws(run, x=X, y=Y.at[0].set(50.0))
    with pytest.warns(UserWarning, match="site 'y' is 50, beyond"):
        answer = guide.answer(run, x=X, y=Y.at[0].set(50.0))
    with pytest.warns(UserWarning, match="site 'y' is 50, beyond"):
        draws = answer.sample(num_samples=500)
    assert not float(psis(draws.log_weights[0]).pareto_k) < 0.7
    with pytest.warns(UserWarning, match="site 'y' is 50, beyond"):
        assert answer.verdict().level in ("doubtful", "bad")


def test_what_no_site_holds_is_a_constant():
    def model(x, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu * x, 1.0), obs=y)

    guide = amortise(model, SMALL, jnp.array(2.0), jnp.array(0.0))
    params = params_of(guide, jnp.array(2.0), jnp.array(0.0))
    assert np.isfinite(guide.laws(params, 2.0, 1.0)["mu"].mean)
    with pytest.raises(ArgumentError, match=r"'x' is not what the network was trained for.*sample\('x'"):
        guide.laws(params, 1.0, 1.0)


def test_an_answer_needs_the_run_of_this_guide():
    guide, run = trained()
    other, _ = linear()
    with pytest.raises(ArgumentTypeError, match="what fit returned for this guide"):
        other.answer(run, NEW)
    with pytest.raises(ArgumentTypeError, match="what fit returned for this guide"):
        guide.answer(run.params, x=X, y=Y)


def test_numbers_that_would_be_cut_off_are_refused():
    """A set of the full length that holds integers says that there are no others."""
    guide = amortise(of_some, Says(np.zeros(5)), *SOME, rows=["x", "y"], count="num")
    params = params_of(guide, *SOME)
    with pytest.raises(ArgumentError, match="'num' must be whole numbers.*got 2.5"):
        guide.laws(params, 2.5, X[:3], Y[:3])
    with pytest.raises(ArgumentError, match="'num' must be whole numbers"):
        jax.jit(lambda num: guide.laws(params, num, X[:3], Y[:3])["slope"].mean)(2.5)
    whole = [float(guide.laws(params, num, X[:3], Y[:3])["slope"].mean) for num in (2, 2.0)]
    assert whole[0] == whole[1]
