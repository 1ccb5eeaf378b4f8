"""Rows that an enumerated plate declares to be independent, under every law: against each outcome of each
row, by hand.

There are too many rows for one joint sum, so what the data flow loses can be had from the plate only, once
numbers show that it is right.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI

from ppl_ext import expectation, log_density
from ppl_ext.densities import by_plates
from ppl_ext.diagnostics import log_likelihood
from ppl_ext.errors import ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from tests.laws_of_numpyro import LAWS, NO_DRAW, WITHOUT_DRAWS
from tests.oracles import quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

ROWS = 13  # two to the power of them is more than elimination_structure.MAX_JOINT
MARK = {"enumerate": "parallel"}
KEY = jax.random.key(0)


class Mixing(dist.Distribution):
    """A normal law whose density goes through a transform of Fourier over its event; or, wrongly, over its
    batch.
    """

    support = dist.constraints.real_vector
    arg_constraints = {"loc": dist.constraints.real_vector}

    def __init__(self, loc, axis=-1):
        self.loc, self.axis = loc, axis
        super().__init__(loc.shape[:-1], loc.shape[-1:])

    def sample(self, key, sample_shape=()):
        return self.loc + jax.random.normal(key, (*sample_shape, *self.loc.shape))

    def log_prob(self, value):
        """By Parseval's identity, that of independent normals if the axis is of the event."""
        away = value - self.loc
        size = jnp.abs(jnp.fft.fft(away, axis=self.axis)) ** 2 / away.shape[self.axis]
        return -0.5 * size.sum(-1) - 0.5 * away.shape[-1] * jnp.log(2 * jnp.pi)


def mixing(t):
    return Mixing(jnp.asarray(t)[..., None] + jnp.array([0.0, 0.5]))


# But for a law without rows of parameters, and for those of which there is nothing to observe: no draw of a
# point is another row's.
TABLE = {"Mixing": mixing} | {
    n: law for n, law in LAWS.items() if n not in {*NO_DRAW, *WITHOUT_DRAWS, "ZeroSumNormal", "Delta"}
}
LOST = ("Mixing", "CirculantNormal", "LowRankMultivariateNormal", "MixtureSameFamily")  # by the data flow


def shifted(z, theta):
    return 0.8 * z - 0.3 + theta * 0.2


def rows(y, law, theta=None):
    theta = numpyro.param("theta", 0.7) if theta is None else theta
    with numpyro.plate("n", ROWS):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=MARK)
        numpyro.sample("y", law(shifted(z, theta)), obs=y)


def by_hand(theta, y, law):
    each = [
        dist.Bernoulli(0.3).log_prob(z) + law(jnp.full(ROWS, shifted(z, theta))).log_prob(y) for z in (0, 1)
    ]
    return jnp.logaddexp(*each)


def data(law):
    return quick_jit(lambda: law(jnp.linspace(-0.5, 0.5, ROWS)).sample(jax.random.key(1)))()


def close(given, expected, rtol=2e-4):
    np.testing.assert_allclose(given, expected, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("name", TABLE)
def test_the_density_of_each_law(name):
    """The value and its derivative, all of it traced: rows are looked at, if need be, at a draw of the prior,
    data included.
    """
    law = TABLE[name]
    y = data(law)

    def model(y):
        rows(y, law, numpyro.sample("theta", dist.Uniform(0.0, 1.0)))

    value, slope = quick_jit(
        jax.value_and_grad(lambda theta, y: log_density(model, {"theta": theta}, y).total)
    )(0.4, y)
    expected, its_slope = quick_jit(jax.value_and_grad(lambda theta: by_hand(theta, y, law).sum()))(0.4)
    assert np.isfinite(expected)
    close(value, expected)
    close(slope, its_slope, 2e-3)


@pytest.mark.parametrize("name", LOST)
def test_the_data_flow_alone_loses_the_rows(name, monkeypatch):
    """Or the other tests here would show nothing."""
    monkeypatch.setattr(by_plates, "seen", lambda *_: None)
    law = TABLE[name]
    y = data(law)
    with pytest.raises(
        ModelError, match="Elements of site 'z' meet in the density of 'y'.*which is checked by numbers; here"
    ):
        jax.eval_shape(lambda y: log_density(rows, {}, y, law).total, y)


def no_guide(y, law):
    pass


@pytest.mark.parametrize("name", LOST)
def test_fit(name):
    law = TABLE[name]
    y = data(law)
    expected, slope = quick_jit(jax.value_and_grad(lambda theta: -by_hand(theta, y, law).sum()))(0.7)
    result = fit(KEY, rows, no_guide, ELBO(2), optax.sgd(1e-3), 2, y, law, progress_bar=False)
    after = quick_jit(lambda theta: -by_hand(theta, y, law).sum())(0.7 - 1e-3 * slope)
    close(result.losses[0], [expected, after])


@pytest.mark.parametrize("name", LOST)
def test_an_objective_in_numpyro_s_own_loop(name):
    law = TABLE[name]
    y = data(law)
    result = SVI(rows, no_guide, optax.sgd(1e-3), ELBO()).run(KEY, 2, y, law, progress_bar=False)
    close(result.losses[0], -by_hand(0.7, y, law).sum())


@pytest.mark.parametrize("name", LOST)
def test_expectations(name):
    law = TABLE[name]
    y = data(law)

    def program(theta, y):
        return log_density(rows, {}, y, law, theta + 0.0 * numpyro.sample("e", dist.Normal(theta, 1.0)))

    value, slope = expectation(program).value_and_grad(KEY, 0.4, y)
    expected, its_slope = quick_jit(jax.value_and_grad(lambda theta: by_hand(theta, y, law).sum()))(0.4)
    close(value, expected)
    close(slope, its_slope, 2e-3)


@pytest.mark.parametrize("name", LOST)
def test_log_likelihoods(name):
    law = TABLE[name]
    y = data(law)

    def model(y):
        rows(y, law, numpyro.sample("theta", dist.Normal(0.0, 1.0)))

    theta = np.array([[0.2, -0.5]], np.float32)
    found = log_likelihood(model, {"theta": theta}, y)["y"]
    close(found[0], quick_jit(jax.vmap(lambda theta: by_hand(theta, y, law)))(theta[0]))


def summed_up(y, law, theta):
    """Rows that are not what their plate says, by what the program does: each hangs on those before it."""
    with numpyro.plate("n", ROWS):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=MARK)
        numpyro.sample("y", law(shifted(jnp.cumsum(z), theta)), obs=y)


def over_the_batch(t):
    return Mixing(jnp.asarray(t)[..., None] + jnp.array([0.0, 0.5]), axis=0)


VERBS = {
    "log_density": lambda model, y, law: log_density(model, {}, y, law, 0.4).total,
    "log_density under jit": lambda model, y, law: jax.jit(
        lambda y: log_density(model, {}, y, law, 0.4).total
    )(y),
    "ELBO": lambda model, y, law: ELBO(2).loss(KEY, {}, lambda *_: model(y, law, 0.4), no_guide, y, law),
    "fit": lambda model, y, law: fit(
        KEY, lambda y: model(y, law, 0.4), lambda y: None, ELBO(), optax.sgd(1e-3), 2, y, progress_bar=False
    ),
    "expectation": lambda model, y, law: expectation(lambda y: log_density(model, {}, y, law, 0.4)).value(
        KEY, y
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("model", "law"), [(summed_up, mixing), (rows, over_the_batch)], ids=["program", "law"]
)
def test_rows_that_are_not_what_their_plate_says_are_refused(model, law, verb):
    y = data(mixing)
    with pytest.raises(
        ModelError, match="Elements of site 'z' meet in the density of 'y'.*at one draw, by numbers, they do"
    ):
        VERBS[verb](model, y, law)


def test_what_only_a_jit_of_the_user_s_own_holds_is_refused():
    """There are no numbers of a covariate, and none may be made up."""
    law = TABLE["Mixing"]
    y = data(law)

    def model(x, y):
        with numpyro.plate("n", ROWS):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer=MARK)
            numpyro.sample("y", law(z + x), obs=y)

    density = lambda x, y: log_density(model, {}, x, y).total  # noqa: E731
    with pytest.raises(
        ModelError, match="'z' meet.*here, inside a jit or vmap, are none. Call it with numbers"
    ):
        jax.jit(density)(jnp.zeros(ROWS), y)
    each = [dist.Bernoulli(0.3).log_prob(z) + law(jnp.full(ROWS, 1.0 * z)).log_prob(y) for z in (0, 1)]
    close(density(jnp.zeros(ROWS), y), jnp.logaddexp(*each).sum())


def test_what_is_nowhere_finite_was_not_seen():
    """Data that no draw of the prior allows say nothing of the rows."""

    def model(y):
        with numpyro.plate("n", ROWS):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer=MARK)
            numpyro.factor(
                "f", jnp.where(jnp.fft.ifft(jnp.fft.fft(z * jnp.ones(ROWS))).real > -1.0, -jnp.inf, y)
            )

    with pytest.raises(ModelError, match="'z' meet in the density of 'f'"):
        log_density(model, {}, jnp.zeros(ROWS))
