"""``simulate`` and ``log_density`` agree with NumPyro's own density, and with densities written by hand where
NumPyro's is wrong.

A table of models, one for each thing a NumPyro model may hold; the value of every row is drawn by
``simulate`` and scored three times: by the draw itself, by ``log_density``, and by
``numpyro.infer.util.log_density`` or by hand.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import scale, seed, substitute, trace
from numpyro.infer.util import log_density as numpyro_log_density
from scipy.stats import norm

from ppl_ext import Draw, LogDensity, Program, log_density, simulate
from ppl_ext.program import SiteValues
from tests.oracles import quick_jit
from tests.programs import (
    DATA,
    MODELS,
    Y3,
    close,
    drawn,
    factored,
    flat,
    masked,
    minibatch,
    parametrised,
    plated,
    scaled,
)

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py


# --- the table
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_draw_and_density_agree_with_numpyro(name, rng_key):
    model = MODELS[name]

    def all_answers(key):
        draw = simulate(model, rng_key=key)
        scored = log_density(model, draw.values)
        sites = trace(seed(model, key)).get_trace()
        latent = {n: s["value"] for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]}
        terms = {
            n: jnp.sum((1.0 if s["scale"] is None else s["scale"]) * s["fn"].log_prob(s["value"]))
            for n, s in sites.items()
            if "fn" in s and s["type"] == "sample"
        }
        expected, _ = numpyro_log_density(model, (), {}, dict(draw.values))
        return draw, scored.total, scored.by_site, latent, terms, expected

    draw, total, by_site, latent, terms, expected = quick_jit(all_answers)(rng_key)
    close(draw.log_density.total, expected)
    close(total, expected)
    assert set(draw.values) == set(latent)
    for site, value in latent.items():  # same key, same draws
        close(draw.values[site], value)
    assert set(by_site) == set(terms)
    for site, term in terms.items():
        close(by_site[site], term)
        close(draw.log_density.by_site[site], term)


def test_a_draw_is_a_named_triple(rng_key):
    draw = simulate(flat, rng_key=rng_key)
    assert isinstance(draw, Draw)
    assert isinstance(draw.values, SiteValues)
    assert isinstance(draw.log_density, LogDensity)
    close(draw.output, 2 * draw.values["z"])
    assert float(draw.log_density) == float(draw.log_density.total)


def test_closed_form():
    z = 0.4
    close(log_density(flat, {"z": z}).total, norm.logpdf(z, 0.3, 1.5) + norm.logpdf(0.7, z, 0.5))
    close(log_density(scaled, {"z": z}).total, 3.0 * norm.logpdf(z) + 1.5 * norm.logpdf(0.2, z, 0.5))
    z, w = np.array([0.1, -0.5, 2.0]), np.array([1.0, 0.3, -2.0])
    expected = (
        norm.logpdf(z).sum() + norm.logpdf(Y3[[0, 2]], z[[0, 2]], 0.5).sum() + norm.logpdf(w[1], z[1], 2.0)
    )
    close(log_density(masked, {"z": z, "w": w}).total, expected)
    close(log_density(factored, {"z": -0.7}).total, norm.logpdf(-0.7) - 0.7 * 3 - 2 * 0.7)


def test_by_site_of_a_plate_is_its_sum():
    z, mu = np.array([0.1, -0.5, 2.0]), 0.3
    by_site = log_density(plated, {"mu": mu, "z": z}).by_site
    assert list(by_site) == ["mu", "z", "y"]
    close(by_site["mu"], norm.logpdf(mu))
    close(by_site["z"], norm.logpdf(z, mu, 1.0).sum())
    close(by_site["y"], norm.logpdf(Y3, z, 0.5).sum())


def test_arguments_pass_through(rng_key):
    def model(loc, *, width):
        return numpyro.sample("z", dist.Normal(loc, width))

    draw = simulate(model, 3.0, rng_key=rng_key, width=0.1)
    close(log_density(model, {"z": 2.9}, 3.0, width=0.1).total, norm.logpdf(2.9, 3.0, 0.1))
    program = Program(model, (3.0,), {"width": 0.1})
    close(simulate(program, rng_key=rng_key).values["z"], draw.values["z"])
    close(log_density(program, {"z": 2.9}).total, norm.logpdf(2.9, 3.0, 0.1))
    close(log_density(Program(model, (3.0,)), {"z": 2.9}, width=0.1).total, norm.logpdf(2.9, 3.0, 0.1))


# --- params
# ------------------------------------------------------------------------------------------------------------


def test_param_takes_its_initial_or_its_substituted_value(rng_key):
    close(log_density(parametrised, {"z": 0.4}).total, norm.logpdf(0.4, 0.0, 1.7))
    close(log_density(substitute(parametrised, {"s": 0.6}), {"z": 0.4}).total, norm.logpdf(0.4, 0.0, 0.6))
    slope = jax.grad(lambda s: log_density(substitute(parametrised, {"s": s}), {"z": 0.4}).total)(0.6)
    close(slope, -1 / 0.6 + 0.4**2 / 0.6**3)
    draw = simulate(substitute(parametrised, {"s": 0.0001}), rng_key=rng_key)
    assert abs(float(draw.values["z"])) < 0.001


def test_param_with_a_random_initial_value(rng_key):
    def model():
        loc = numpyro.param("loc", lambda key: jax.random.normal(key, (2,)))
        numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    draw = simulate(model, rng_key=rng_key)
    again = log_density(model, draw.values, rng_key=rng_key)
    assert draw.values["z"].shape == (2,)
    assert bool(jnp.isfinite(again.total))


# --- plates that subsample
# ------------------------------------------------------------------------------------------------------------


def whole():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=DATA)


def test_indices_travel_in_the_values_and_are_reused():
    draw = drawn(minibatch)
    assert set(draw.values) == {"mu", "n"}
    assert draw.values.auxiliary == {"n"}
    index, mu = np.asarray(draw.values["n"]), draw.values["mu"]
    expected = norm.logpdf(mu) + 2.0 * norm.logpdf(DATA[index], mu, 1.0).sum()
    close(draw.log_density.total, expected)
    close(log_density(minibatch, draw.values).total, expected)
    close(
        log_density(minibatch, {"mu": mu, "n": jnp.array([1, 3])}).total,
        norm.logpdf(mu) + 2 * norm.logpdf(DATA[[1, 3]], mu).sum(),
    )


def test_a_model_without_that_plate_takes_the_values_of_a_subsampling_guide():
    draw = drawn(minibatch)
    close(
        log_density(whole, draw.values).total,
        norm.logpdf(draw.values["mu"]) + norm.logpdf(DATA, draw.values["mu"]).sum(),
    )


def test_a_plate_that_is_entered_twice_has_one_set_of_rows():
    """NumPyro draws other rows for the second block of one name, and keeps these alone."""
    x = jnp.arange(1000.0)

    def model():
        with numpyro.plate("rows", 1000, subsample_size=4) as first:
            numpyro.sample("a", dist.Normal(x[first], 1.0))
        with numpyro.plate("rows", 1000, subsample_size=4) as second:
            numpyro.sample("y", dist.Normal(x[second], 1.0), obs=x[first])
        return first, second

    draw = simulate(model, rng_key=jax.random.key(0))
    np.testing.assert_array_equal(*draw.output)
    np.testing.assert_allclose(draw.log_density.total, log_density(model, draw.values).total, rtol=1e-6)
    scored = log_density(model, {"a": draw.values["a"]}, rng_key=jax.random.key(1))  # rows drawn here
    y = dist.Normal(0.0, 1.0).log_prob(0.0) * 1000
    assert scored.terms[1].sum() == pytest.approx(float(y), rel=1e-5)


def test_over_all_subsets_the_subsampled_density_is_the_whole_one():
    subsets = jnp.array(list(itertools.combinations(range(4), 2)))
    each = quick_jit(jax.vmap(lambda index: log_density(minibatch, {"mu": 0.3, "n": index}).total))(subsets)
    close(each.mean(), log_density(whole, {"mu": 0.3}).total)


def test_indices_that_are_not_given_are_drawn_without_bias():
    """Every subset is drawn, at its rate: 6 frequencies of 3,000 keys within 4.5 standard errors (false
    alarms below 5e-5).
    """
    keys = jax.random.split(jax.random.key(1), 3000)
    drawn = jax.jit(jax.vmap(lambda key: log_density(minibatch, {"mu": 0.3}, rng_key=key).total))(keys)
    subsets = jnp.array(list(itertools.combinations(range(4), 2)))
    possible = np.asarray(
        jax.vmap(lambda index: log_density(minibatch, {"mu": 0.3, "n": index}).total)(subsets)
    )
    nearest = np.argmin(np.abs(np.asarray(drawn)[:, None] - possible), axis=1)
    close(drawn, possible[nearest])
    rates = np.bincount(nearest, minlength=6) / len(keys)
    assert np.all(np.abs(rates - 1 / 6) < 4.5 * np.sqrt(1 / 6 * 5 / 6 / len(keys)))


def test_nested_subsampling_multiplies():
    def model():
        with (
            numpyro.plate("rows", 6, subsample_size=2, dim=-2),
            numpyro.plate("columns", 4, subsample_size=2, dim=-1),
        ):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    draw = drawn(model)
    assert draw.values.auxiliary == {"rows", "columns"}
    close(draw.log_density.total, 6.0 * norm.logpdf(draw.values["z"]).sum())
    close(log_density(model, draw.values).total, draw.log_density.total)


# --- keys, transformations
# ------------------------------------------------------------------------------------------------------------


def test_typed_and_legacy_keys_draw_the_same():
    typed, legacy = (
        simulate(plated, rng_key=jax.random.key(3)),
        simulate(plated, rng_key=jax.random.PRNGKey(3)),
    )
    jax.tree.map(np.testing.assert_array_equal, dict(typed.values), dict(legacy.values))


def test_keys_of_an_enclosing_seed():
    with seed(rng_seed=5):
        first, second = simulate(flat), simulate(flat)
    assert float(first.values["z"]) != float(second.values["z"])
    with seed(rng_seed=5):
        again = simulate(flat)
    assert float(again.values["z"]) == float(first.values["z"])
    inside = simulate(seed(flat, jax.random.key(5)))
    assert float(inside.values["z"]) == float(first.values["z"])
    with seed(rng_seed=5):
        assert bool(jnp.isfinite(log_density(minibatch, {"mu": 0.3}).total))


def test_draws_pass_through_jit_and_vmap(rng_key):
    draw = drawn(minibatch)
    assert isinstance(draw.values, SiteValues)
    assert draw.values.auxiliary == {"n"}
    close(draw.log_density.total, log_density(minibatch, dict(draw.values)).total)
    keys = jax.random.split(rng_key, 5)
    draws = quick_jit(jax.vmap(lambda key: simulate(minibatch, rng_key=key)))(keys)
    mu = np.asarray(draws.values["mu"])
    assert mu.shape == (5,)
    scored = quick_jit(jax.vmap(lambda values: log_density(whole, values).total))(draws.values)
    close(scored, norm.logpdf(mu) + norm.logpdf(DATA[:, None], mu).sum(0))


def test_a_program_is_a_pytree_of_its_arguments():
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    traced = []

    @eqx.filter_jit
    def score(program):
        traced.append(1)
        return log_density(program, {"z": 0.3}).total

    for y in (0.1, 0.2):
        close(score(Program(model, (jnp.array(y),))), norm.logpdf(0.3) + norm.logpdf(y, 0.3))
    assert len(traced) == 1


def test_a_model_may_be_scored_within_numpyros_own_handlers(rng_key):
    """The handlers nest in both directions: a scale around the call is a scale around the program."""
    outside = trace(
        seed(lambda: numpyro.deterministic("d", log_density(flat, {"z": 0.4}).total), rng_key)
    ).get_trace()
    close(outside["d"]["value"], log_density(flat, {"z": 0.4}).total)
    with scale(scale=2.0):
        doubled = log_density(flat, {"z": 0.4}).total
    close(doubled, 2 * log_density(flat, {"z": 0.4}).total)
    close(log_density(scale(flat, scale=2.0), {"z": 0.4}).total, doubled)
