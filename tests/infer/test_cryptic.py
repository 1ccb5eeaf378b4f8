"""What users meet most and understand least: each situation, through ``fit`` and through an objective's
``loss``, in words that help.

The error named in each docstring is what JAX, NumPyro or pandas says of it.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
from numpyro.contrib.funsor import config_enumerate
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoNormal

import ppl_ext
from ppl_ext.errors import (
    ArgumentError,
    ArgumentTypeError,
    ModelError,
    NonFiniteError,
    ProgramError,
    StrategyError,
)
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

KEY, OPTIM = jax.random.key(0), optax.adam(0.01)
DATA = np.arange(6, dtype=np.float32)


def by_fit(model, guide, *args):
    return fit(KEY, model, guide, ELBO(), OPTIM, 2, *args, progress_bar=False)


def by_loss(model, guide, *args):
    return jax.jit(lambda key: IWELBO(num_particles=2).loss(key, {}, model, guide, *args))(KEY)


def by_svi(model, guide, *args):
    return SVI(model, guide, OPTIM, loss=ELBO()).run(KEY, 2, *args, progress_bar=False)


EVERY_WAY = pytest.mark.parametrize("run", [by_fit, by_loss])


def guide(*args):
    numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 1.0))


def minibatch_model(data=DATA):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 6, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=data[rows])


@pytest.mark.parametrize("run", [by_fit, by_loss, by_svi])
@pytest.mark.slow
def test_numpy_data_indexed_in_a_plate(run):
    """TracerArrayConversionError: the numpy.ndarray conversion method __array__() was called on traced
    array.
    """
    with pytest.raises(
        ProgramError, match=r"'minibatch_model' failed after plate 'rows'.*jnp\.asarray\(data\)\[indices\]"
    ):
        run(minibatch_model, guide)
    assert np.isfinite(by_fit(lambda: minibatch_model(jnp.asarray(DATA)), guide).losses).all()


def whole_model(data):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 6):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=data)


@pytest.mark.parametrize("model", [minibatch_model, whole_model])
def test_a_series_as_data(model):
    """TypeError: where requires ndarray or scalar arguments, got <class 'pandas.Series'> at position 0."""
    series = pd.Series(DATA)
    with pytest.raises(ArgumentTypeError, match=r"fit: model argument 0 is a pandas Series.*\.to_numpy\(\)"):
        by_fit(model, guide, series)
    with pytest.raises(ProgramError, match=r"'(y|rows)'.*(\.to_numpy\(\)|jnp\.asarray)"):
        by_loss(model, guide, series)
    with pytest.raises(ProgramError, match=r"'(y|rows)'.*(\.to_numpy\(\)|jnp\.asarray)"):
        by_svi(model, guide, series)


def switched():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)) + z, 1.0), obs=1.0)


@pytest.mark.parametrize("automatic", [AutoNormal, AutoDelta])
@pytest.mark.parametrize(
    "run", [by_fit, lambda model, guide: ELBO().loss(KEY, {}, model, guide)], ids=["fit", "loss"]
)
@pytest.mark.filterwarnings("ignore:.*discrete latent variables:UserWarning")
def test_an_automatic_guide_without_block_on_a_discrete_site(automatic, run):
    """ValueError: Continuous inference cannot handle discrete sample site 'z'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            ProgramError,
            match=rf"'{automatic.__name__}' failed.*block\(model, hide=\['z'\]\)\): marked.*'z' is summed "
            r"out; or sample it in",
        ):
            run(switched, automatic(switched))


def test_what_the_message_advises_works():
    continuous = AutoNormal(numpyro.handlers.block(switched, hide=["z"]))

    def both():
        continuous()
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.0)))

    assert np.isfinite(by_fit(switched, both).losses).all()
    summed = config_enumerate(switched)
    assert np.isfinite(by_fit(summed, AutoNormal(numpyro.handlers.block(summed, hide=["z"]))).losses).all()


def test_a_key_out_of_place():
    """TypeError: unexpected PRNG key type, or 'PRNGKeyArray' object is not callable."""
    data = jnp.asarray(DATA)
    with pytest.raises(ArgumentTypeError, match="fit: guide must be a NumPyro program.*got an ELBO"):
        fit(minibatch_model, guide, ELBO(), OPTIM, 2, KEY, data)
    with pytest.raises(
        ArgumentTypeError, match="fit: model must be a NumPyro program.*got a random-key array"
    ):
        fit(minibatch_model, KEY, guide, ELBO(), OPTIM, 2, data)
    with pytest.raises(
        ArgumentError, match="fit: num_steps must be a positive integer, got a random-key array"
    ):
        fit(KEY, minibatch_model, guide, ELBO(), OPTIM, KEY, data)
    for wrong in (0, jnp.zeros(2), None, "seed"):
        with pytest.raises(
            ArgumentTypeError,
            match=r"fit: rng_key, the first argument, must be one random key.*jax\.random\.key\(0\)",
        ):
            fit(wrong, minibatch_model, guide, ELBO(), OPTIM, 2, data)
    with pytest.raises(ArgumentError, match=r"fit: rng_key.* one random key.*shape \(3,\)"):
        fit(jax.random.split(KEY, 3), minibatch_model, guide, ELBO(), OPTIM, 2, data)
    with pytest.raises(ArgumentTypeError, match="ELBO.loss: rng_key must be one random key.*got a dict"):
        ELBO().loss({}, KEY, minibatch_model, guide, data)
    svi = SVI(minibatch_model, guide, OPTIM, loss=ELBO())
    with pytest.raises(ArgumentTypeError, match="ELBO.loss: rng_key"):
        ELBO().loss(svi.init(KEY, data), {}, minibatch_model, guide, data)


def test_arguments_that_the_programs_do_not_take():
    """TypeError: whole_model() missing 1 required positional argument: 'data'."""
    with pytest.raises(
        ArgumentError, match=r"fit: model 'whole_model' takes \(data\).*missing a required argument: 'data'"
    ):
        by_fit(whole_model, guide)
    with pytest.raises(ArgumentError, match=r"fit: guide 'narrow' takes \(\).*too many positional arguments"):
        by_fit(whole_model, narrow, jnp.asarray(DATA))
    with pytest.raises(ArgumentError, match=r"IWELBO.loss: guide 'narrow' takes \(\)"):
        by_loss(whole_model, narrow, jnp.asarray(DATA))


def narrow():
    guide()


def two_coins():
    z = numpyro.sample("z", dist.Bernoulli(0.4).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=1.0)


def inside(transformation, fn, gradient):
    """A guide that draws ``z`` inside a transformation of its own."""
    infer = {} if gradient is None else {"gradient": gradient}

    def draw(p):
        return numpyro.sample("z", fn(p), infer=infer)

    def program():
        p = numpyro.param("p", 0.3)
        match transformation:
            case "vmap":
                jax.vmap(draw)(p * jnp.ones(2))
            case "jit":
                jax.jit(draw)(p)
            case "scan":
                jax.lax.scan(lambda carry, x: (carry, draw(x)), 0.0, p * jnp.ones(2))
            case "grad":
                jax.grad(lambda q: 1.0 * draw(q))(p)

    return program


@EVERY_WAY
@pytest.mark.parametrize("transformation", ["vmap", "jit", "scan", "grad"])
@pytest.mark.parametrize(
    ("fn", "gradient"),
    [(dist.Bernoulli, "score"), (dist.Bernoulli, "enumerate"), (lambda p: dist.Normal(p, 1.0), None)],
)
def test_a_site_inside_a_transformation_of_jax(run, transformation, fn, gradient):
    """UnexpectedTracerError: Encountered an unexpected tracer."""
    words = {  # the last two are seen through: what is wrong there is the site itself
        "vmap": "inside jax.vmap.*ppl_ext.handlers.vmapped",  # NumPyro's own set-up of a fit loses it
        "grad": "Site 'z' is sampled inside jax.jit, jax.grad.*control_flow",
        "jit": r"Shapes disagree at site 'z': the program expects \(2,\), the value has \(\)",
        "scan": "Site 'z' appears twice in one run",
    }[transformation]
    if transformation == "vmap" and run is by_loss:  # two lanes, for two coins
        assert not np.isnan(run(two_coins, inside(transformation, fn, gradient)))
        return
    with pytest.raises(ModelError, match=words):
        run(two_coins, inside(transformation, fn, gradient))


@pytest.mark.slow
def test_a_transformation_around_the_whole_is_no_mistake():
    """What is drawn and scored under one vmap stays there."""
    losses = jax.vmap(lambda key: ELBO().loss(key, {}, switched, switched_guide))(jax.random.split(KEY, 3))
    assert losses.shape == (3,) and np.isfinite(losses).all()
    totals = jax.vmap(lambda key: ppl_ext.simulate(switched, rng_key=key).log_density.total)(
        jax.random.split(KEY, 3)
    )
    assert np.isfinite(totals).all()


def switched_guide():
    guide()
    numpyro.sample("z", dist.Bernoulli(0.3), infer={"gradient": "score"})


def test_a_pathwise_site_of_an_expectation_may_lie_inside_vmap():
    """Nothing is kept of it, so nothing leaves the vmap but what the program returns."""

    def pathwise(loc):
        return jax.vmap(lambda m: numpyro.sample("z", dist.Normal(m, 1e-3)))(loc * jnp.ones(2)).sum()

    np.testing.assert_allclose(ppl_ext.expectation(pathwise).value(KEY, 1.0), 2.0, atol=0.02)
    coins = ppl_ext.expectation(
        lambda p: jax.vmap(lambda q: 1.0 * numpyro.sample("z", dist.Bernoulli(q)))(p * jnp.ones(2)).sum()
    )
    # enumerated, as in a plate
    np.testing.assert_allclose(jax.grad(lambda p: coins.value(KEY, p))(0.3), 2.0, rtol=1e-5)


@EVERY_WAY
def test_a_site_that_cannot_be_enumerated_says_so_in_one_line(run):
    """ConcretizationTypeError, in twelve lines."""

    def program(size):
        numpyro.sample("z", dist.Binomial(size, 0.3), infer={"gradient": "enumerate"})
        numpyro.param("unused", 0.0)

    size = jnp.array([2, 3])
    with pytest.raises(StrategyError, match="Site 'z' cannot be enumerated.*total_count") as caught:
        run(program, program, size)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (jnp.array([2, 3]), "lists of values of different lengths.*the longest for all, as a Categorical"),
        (None, "depends on a number that is not known when the model is compiled"),
    ],
    ids=["counts differ", "a drawn count"],
)
def test_a_site_without_a_list_of_values_says_why(count, reason):
    """NotImplementedError: Inhomogeneous total count; ConcretizationTypeError."""

    def model(count, y):
        rate = numpyro.sample("rate", dist.Beta(1.0, 1.0))
        count = jnp.round(3 * rate).astype(int) if count is None else count
        with numpyro.plate("rows", 2):
            k = numpyro.sample("k", dist.Binomial(count, rate), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(k, 1.0), obs=y)

    guide = AutoNormal(numpyro.handlers.block(model, hide=["k"]))
    with pytest.raises(ModelError, match=rf"Site 'k' \(BinomialProbs\) cannot be summed out: .*{reason}"):
        fit(KEY, model, guide, ELBO(), optax.adam(0.1), 1, count, jnp.zeros(2), progress_bar=False)


@EVERY_WAY
def test_parameters_that_do_not_broadcast_say_where(run):
    """ValueError: Incompatible shapes for broadcasting: shapes=[(2,), (3,)]."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu * jnp.ones(2), jnp.ones(3)), obs=0.0)

    with pytest.raises(
        ProgramError, match=r"'model' failed after site 'mu': ValueError: Incompatible shapes.*\(2,\), \(3,\)"
    ):
        run(model, guide)


def test_a_mistake_in_the_users_own_code_stays_as_it_is():
    def model():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        raise KeyError("a column of mine")

    with pytest.raises(KeyError, match="a column of mine"):
        ELBO().loss(KEY, {}, model, guide)


def bad_prior():
    """ValueError: Normal distribution got invalid scale parameter."""
    numpyro.sample("mu", dist.Normal(0.0, -1.0))


def bad_likelihood():
    """ValueError: Poisson distribution got invalid rate parameter."""
    numpyro.sample("y", dist.Poisson(0.0 * numpyro.sample("mu", dist.Normal(0.0, 1.0)) - 3.0), obs=1)


def bad_shapes():
    """ValueError: Incompatible shapes for broadcasting."""
    numpyro.sample(
        "y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)) * jnp.ones(3), jnp.ones(2)), obs=1.0
    )


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.parametrize(
    ("model", "where"),
    [
        (bad_prior, "before its first site"),
        (bad_likelihood, "after site 'mu'"),
        (bad_shapes, "after site 'mu'"),
    ],
)
def test_a_distribution_that_cannot_be_names_the_program_and_the_place(model, where, automatic):
    with pytest.raises(ProgramError, match=f"'{model.__name__}' failed {where}: ValueError"):
        by_fit(model, AutoNormal(model) if automatic else guide)


@pytest.mark.parametrize("automatic", [False, True])
@pytest.mark.filterwarnings("ignore:Out-of-support values")  # says NumPyro, of nothing in particular
def test_data_outside_the_support_under_an_automatic_guide(automatic):
    """RuntimeError: Cannot find valid initial parameters. Please check your model again."""

    def model():
        numpyro.sample("y", dist.Poisson(jnp.exp(numpyro.sample("mu", dist.Normal(0.0, 1.0)))), obs=-1)

    with pytest.raises(
        NonFiniteError,
        match=r"site 'y' in the model is -inf .*outside the support of Poisson in 1 of 1 places",
    ):
        by_fit(model, AutoNormal(model) if automatic else guide)
