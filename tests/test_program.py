"""``simulate`` and ``log_density`` agree with NumPyro's own density, and with densities written by hand where NumPyro's is wrong.

A table of models, one for each thing a NumPyro model may hold; the value of every row is drawn by ``simulate`` and scored three times: by
the draw itself, by ``log_density``, and by ``numpyro.infer.util.log_density`` or by hand.
"""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import flax_module, random_flax_module
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.handlers import condition, mask, scale, seed, substitute, trace
from numpyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from numpyro.infer.util import log_density as numpyro_log_density
from numpyro.nn import AutoregressiveNN
from scipy.stats import norm

from ppl_ext import Draw, LogDensity, Program, log_density, simulate
from ppl_ext.errors import ArgumentTypeError, ModelError
from ppl_ext.program import SiteValues
from tests.oracles import quick_jit

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py

Y3 = np.array([0.3, -1.2, 0.8], np.float32)
Y23 = np.array([[0.3, -1.2, 0.8], [1.1, 0.2, -0.4]], np.float32)


def close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=2e-5, atol=2e-5)


def drawn(program, *args, **kwargs):
    """A compiled ``simulate``, from one key."""
    return quick_jit(lambda key: simulate(program, *args, rng_key=key, **kwargs))(jax.random.key(0))


# --- the table -------------------------------------------------------------------------------------------------------------------------


def flat():
    z = numpyro.sample("z", dist.Normal(0.3, 1.5))
    numpyro.sample("y", dist.Normal(z, 0.5), obs=0.7)
    numpyro.deterministic("twice", 2 * z)
    return 2 * z


def plated():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=Y3)


def nested():
    with numpyro.plate("outer", 2, dim=-2):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("inner", 3, dim=-1):
            b = numpyro.sample("b", dist.Gamma(2.0, jnp.exp(a)))
            numpyro.sample("y", dist.Normal(b, 0.5), obs=Y23)


def events():
    with numpyro.plate("n", 3):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
        v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("k", dist.Categorical(probs=p), obs=jnp.array([0, 3, 1]))
    return v


def masked():
    keep = np.array([True, False, True])
    with numpyro.plate("n", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with mask(mask=keep):
            numpyro.sample("y", dist.Normal(z, 0.5), obs=Y3)
        numpyro.sample("w", dist.Normal(z, 2.0).mask(~keep))


def scaled():
    with scale(scale=3.0):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with scale(scale=0.5):
            numpyro.sample("y", dist.Normal(z, 0.5), obs=0.2)


def factored():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3):
        numpyro.factor("pull", -jnp.abs(z) * jnp.arange(3.0))
    with scale(scale=2.0):
        numpyro.factor("push", z)


def parametrised():
    s = numpyro.param("s", 1.7, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(0.0, s))


def discrete():
    k = numpyro.sample("k", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
    n = numpyro.sample("n", dist.Poisson(2.0 + k))
    numpyro.sample("y", dist.Normal(n - k, 1.0), obs=0.4)


def scanned():
    def step(carry, y):
        x = numpyro.sample("x", dist.Normal(0.9 * carry["x"], 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return {"x": x, "t": carry["t"] + 1}, x

    last, xs = scan(step, {"x": numpyro.sample("x0", dist.Normal(0.0, 1.0)), "t": 0}, Y3)
    return last["t"]


def scanned_with_plates():
    def step(x, y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, x

    scan(step, jnp.zeros(2), Y23.T)


def scanned_scaled():
    with scale(scale=2.5):
        scanned()


def branching():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = cond(
        a > 0,
        lambda _: numpyro.sample("b", dist.Normal(2.0, 0.5)),
        lambda _: numpyro.sample("b", dist.Normal(-2.0, 1.5)),
        None,
    )
    numpyro.sample("y", dist.Normal(b, 1.0), obs=0.1)


def transformed():
    flow = dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0).to_event(1), dist.transforms.AffineTransform(1.0, 2.0))
    z = numpyro.sample("z", flow)
    numpyro.sample("s", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=0.4)


MODELS = {
    m.__name__: m
    for m in (
        flat,
        plated,
        nested,
        events,
        masked,
        scaled,
        factored,
        parametrised,
        discrete,
        scanned,
        scanned_with_plates,
        scanned_scaled,
        branching,
        transformed,
    )
}


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
    expected = norm.logpdf(z).sum() + norm.logpdf(Y3[[0, 2]], z[[0, 2]], 0.5).sum() + norm.logpdf(w[1], z[1], 2.0)
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


# --- params ----------------------------------------------------------------------------------------------------------------------------


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


# --- plates that subsample -------------------------------------------------------------------------------------------------------------


DATA = np.array([0.2, 1.4, -0.5, 0.8], np.float32)


def minibatch():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 4, subsample_size=2) as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.asarray(DATA)[index])


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
    close(log_density(minibatch, {"mu": mu, "n": jnp.array([1, 3])}).total, norm.logpdf(mu) + 2 * norm.logpdf(DATA[[1, 3]], mu).sum())


def test_a_model_without_that_plate_takes_the_values_of_a_subsampling_guide():
    draw = drawn(minibatch)
    close(log_density(whole, draw.values).total, norm.logpdf(draw.values["mu"]) + norm.logpdf(DATA, draw.values["mu"]).sum())


def test_over_all_subsets_the_subsampled_density_is_the_whole_one():
    subsets = jnp.array(list(itertools.combinations(range(4), 2)))
    each = quick_jit(jax.vmap(lambda index: log_density(minibatch, {"mu": 0.3, "n": index}).total))(subsets)
    close(each.mean(), log_density(whole, {"mu": 0.3}).total)


def test_indices_that_are_not_given_are_drawn_without_bias():
    """Every subset is drawn, at its rate: 6 frequencies of 3,000 keys within 4.5 standard errors (false alarms below 5e-5)."""
    keys = jax.random.split(jax.random.key(1), 3000)
    drawn = jax.jit(jax.vmap(lambda key: log_density(minibatch, {"mu": 0.3}, rng_key=key).total))(keys)
    subsets = jnp.array(list(itertools.combinations(range(4), 2)))
    possible = np.asarray(jax.vmap(lambda index: log_density(minibatch, {"mu": 0.3, "n": index}).total)(subsets))
    nearest = np.argmin(np.abs(np.asarray(drawn)[:, None] - possible), axis=1)
    close(drawn, possible[nearest])
    rates = np.bincount(nearest, minlength=6) / len(keys)
    assert np.all(np.abs(rates - 1 / 6) < 4.5 * np.sqrt(1 / 6 * 5 / 6 / len(keys)))


def test_nested_subsampling_multiplies():
    def model():
        with numpyro.plate("rows", 6, subsample_size=2, dim=-2), numpyro.plate("columns", 4, subsample_size=2, dim=-1):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    draw = drawn(model)
    assert draw.values.auxiliary == {"rows", "columns"}
    close(draw.log_density.total, 6.0 * norm.logpdf(draw.values["z"]).sum())
    close(log_density(model, draw.values).total, draw.log_density.total)


# --- scan ------------------------------------------------------------------------------------------------------------------------------


XS = np.array([0.5, -0.2, 0.9], np.float32)


def random_walk(obs=None, reverse=False):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    if obs is None:
        scan(step, 0.0, None, length=3, reverse=reverse)
    else:
        scan(step, 0.0, obs, reverse=reverse)


def walk_density(x, y, reverse=False):
    before = np.append(x[1:], 0.0) if reverse else np.insert(x[:-1], 0, 0.0)
    return norm.logpdf(x, 0.9 * before, 0.3).sum() + norm.logpdf(y, x, 0.5).sum()


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_against_a_hand_written_density(reverse):
    close(log_density(random_walk, {"x": XS}, Y3, reverse=reverse).total, walk_density(XS, Y3, reverse))
    close(log_density(random_walk, {"x": XS, "y": Y3}, reverse=reverse).total, walk_density(XS, Y3, reverse))
    slope = jax.grad(lambda x: log_density(random_walk, {"x": x}, Y3, reverse=reverse).total)(jnp.asarray(XS))
    step = 1e-2
    for t in range(3):
        up, down = XS + step * np.eye(3)[t], XS - step * np.eye(3)[t]
        difference = (walk_density(up, Y3, reverse) - walk_density(down, Y3, reverse)) / (2 * step)
        np.testing.assert_allclose(slope[t], difference, rtol=1e-3, atol=1e-3)


def simulated_and_scored(model, *args, **kwargs):
    """A draw, its own density, and the density of its values."""

    def both(key):
        draw = simulate(model, *args, rng_key=key, **kwargs)
        return draw.values, draw.log_density.total, log_density(model, draw.values, *args, **kwargs).total

    values, own, scored = quick_jit(both)(jax.random.key(2))
    close(scored, own)
    return jax.tree.map(np.asarray, dict(values)), own


@pytest.mark.parametrize("obs", [None, np.zeros(3, np.float32)], ids=["latent", "observed"])
def test_a_condition_on_a_scanned_site(obs):
    """``condition`` turns a latent site of the body into an observed one, and replaces the data of one that is."""
    values, density = simulated_and_scored(condition(random_walk, {"y": jnp.asarray(Y3)}), obs)
    assert set(values) == {"x"}
    close(density, walk_density(values["x"], Y3))


def test_a_condition_on_a_site_scanned_backwards():
    """NumPyro's ``condition`` counts steps as they are taken, so its first value belongs to the last time; draw and score agree on that."""
    values, density = simulated_and_scored(condition(random_walk, {"y": jnp.asarray(Y3)}), np.zeros(3, np.float32), reverse=True)
    close(density, walk_density(values["x"], Y3[::-1], reverse=True))


def test_the_latent_of_a_backward_scan_is_aligned_as_simulate_stacks_it():
    values, density = simulated_and_scored(random_walk, Y3, reverse=True)
    close(density, walk_density(values["x"], Y3, reverse=True))


def test_a_scan_of_one_step_and_one_as_long_as_its_event():
    def model(length):
        def step(carry, _):
            v = numpyro.sample("v", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
            return carry, v

        scan(step, 0.0, None, length=length)

    for length in (1, 3):
        values, density = simulated_and_scored(model, length)
        assert values["v"].shape == (length, 3)
        close(density, norm.logpdf(values["v"]).sum())


def test_observations_with_a_mask_in_scan():
    keep = np.array([True, False, True])

    def model():
        def step(x, y_and_keep):
            y, keep = y_and_keep
            x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
            with mask(mask=keep):
                numpyro.sample("y", dist.Normal(x, 0.5), obs=jnp.where(keep, y, 0.0))
            return x, None

        scan(step, 0.0, (jnp.asarray(Y3), jnp.asarray(keep)))

    missing = norm.logpdf(Y3[1], XS[1], 0.5)
    close(log_density(model, {"x": XS}).total, walk_density(XS, Y3) - missing)


def test_cond_scores_the_branch_that_is_taken():
    for a, loc, width in ((0.3, 2.0, 0.5), (-0.3, -2.0, 1.5)):
        expected = norm.logpdf(a) + norm.logpdf(0.9, loc, width) + norm.logpdf(0.1, 0.9, 1.0)
        close(log_density(branching, {"a": a, "b": 0.9}).total, expected)


# --- observed parts, modules, guides ---------------------------------------------------------------------------------------------------


def test_obs_mask_imputes_what_is_missing():
    keep = np.array([True, False, True])

    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=Y3, obs_mask=keep)

    draw = drawn(model)
    assert set(draw.values) == {"y_unobserved"}
    expected, _ = numpyro_log_density(model, (), {}, dict(draw.values))
    close(draw.log_density.total, expected)
    close(expected, norm.logpdf(Y3[[0, 2]]).sum() + norm.logpdf(draw.values["y_unobserved"][1]))
    close(log_density(model, draw.values).total, expected)


def test_an_observed_site_of_a_guide_counts_in_its_density_only():
    def guide():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("seen", dist.Normal(z, 1.0), obs=0.5)

    draw = drawn(guide)
    assert set(draw.values) == {"z"}
    close(draw.log_density.total, norm.logpdf(draw.values["z"]) + norm.logpdf(0.5, draw.values["z"], 1.0))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


def test_a_flax_module():
    x = jnp.array([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]])

    def model():
        net = flax_module("net", Linear(), input_shape=(1, 2))
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=Y3)

    weights = {"Dense_0": {"bias": jnp.array([0.3]), "kernel": jnp.array([[1.0], [-2.0]])}}
    program = substitute(model, {"net$params": weights})
    close(log_density(program, {}).total, norm.logpdf(Y3, x @ np.array([1.0, -2.0]) + 0.3, 1.0).sum())
    assert bool(jnp.isfinite(drawn(model).log_density.total))


def test_a_flax_module_with_a_prior(rng_key):
    x = jnp.array([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]])

    def model():
        net = random_flax_module("net", Linear(), dist.Normal(0.0, 2.0), input_shape=(1, 2))
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=Y3)

    draw = drawn(model)
    bias, kernel = draw.values["net/Dense_0.bias"], draw.values["net/Dense_0.kernel"]
    prior = norm.logpdf(bias, 0, 2.0).sum() + norm.logpdf(kernel, 0, 2.0).sum()
    expected = prior + norm.logpdf(Y3, (x @ kernel + bias)[:, 0], 1.0).sum()
    close(draw.log_density.total, expected)
    close(log_density(model, draw.values, rng_key=rng_key).total, expected)


@pytest.mark.slow
def test_a_flow_is_scored_from_its_intermediates():
    """The inverse of an autoregressive flow is a loop; the draw keeps the noise instead, and scores the same."""
    init, apply = AutoregressiveNN(3, [4])
    _, weights = init(jax.random.key(7), (3,))

    def guide():
        transform = InverseAutoregressiveTransform(lambda x: apply(weights, x))
        base = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        numpyro.sample("z", dist.TransformedDistribution(base, transform))

    draw = drawn(guide)
    close(draw.log_density.total, log_density(guide, draw.values).total)


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoDelta, AutoIAFNormal])
def test_autoguides_score_in_the_model(make, rng_key):
    def model():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        width = numpyro.sample("width", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(loc, width), obs=Y3)

    guide = make(model)
    seed(guide, rng_key)()  # sets itself up

    def all_answers(key):
        draw = simulate(guide, rng_key=key)
        sites = trace(seed(guide, key)).get_trace().values()
        own = sum(jnp.sum(s["fn"].log_prob(s["value"], *filter(None, [s["intermediates"]]))) for s in sites if s["type"] == "sample")
        in_model, _ = numpyro_log_density(model, (), {}, {n: draw.values[n] for n in ("loc", "width")})
        return draw, own, log_density(model, draw.values).total, in_model

    draw, own, scored, in_model = quick_jit(all_answers)(rng_key)
    assert set(draw.values) - {"loc", "width"} == draw.values.auxiliary
    close(draw.log_density.total, own)
    close(scored, in_model)


# --- keys, transformations -------------------------------------------------------------------------------------------------------------


def test_typed_and_legacy_keys_draw_the_same():
    typed, legacy = simulate(plated, rng_key=jax.random.key(3)), simulate(plated, rng_key=jax.random.PRNGKey(3))
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
    outside = trace(seed(lambda: numpyro.deterministic("d", log_density(flat, {"z": 0.4}).total), rng_key)).get_trace()
    close(outside["d"]["value"], log_density(flat, {"z": 0.4}).total)
    with scale(scale=2.0):
        doubled = log_density(flat, {"z": 0.4}).total
    close(doubled, 2 * log_density(flat, {"z": 0.4}).total)
    close(log_density(scale(flat, scale=2.0), {"z": 0.4}).total, doubled)


# --- what is wrong is said -------------------------------------------------------------------------------------------------------------


def refused(error, *names):
    """A block that raises this type, with each of these names in the message."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{n})" for n in names))


def test_a_missing_value():
    with refused(ModelError, "No value for latent site 'z'", "'mu'"):
        log_density(plated, {"mu": 0.0})
    with refused(ModelError, "No value for latent site 'x'"):
        log_density(random_walk, {}, Y3)
    with refused(ModelError, "No value for latent site 'b'"):
        log_density(branching, {"a": 0.1})


def test_a_missing_value_is_never_drawn_even_with_a_key(rng_key):
    with refused(ModelError, "'z'"):
        log_density(plated, {"mu": 0.0}, rng_key=rng_key)
    with refused(ModelError, "'x'"):
        log_density(random_walk, {}, Y3, rng_key=rng_key)


def test_a_value_without_a_site():
    with refused(ModelError, "no latent site 'zz'", "it has 'z'"):
        log_density(flat, {"z": 0.1, "zz": 0.2})
    with refused(ModelError, "no latent site 'twice'"):
        log_density(flat, {"z": 0.1, "twice": 0.2})


def test_a_value_for_an_observed_site():
    with refused(ModelError, "'y' is observed"):
        log_density(flat, {"z": 0.1, "y": 0.2})
    with refused(ModelError, "'y' is observed"):
        log_density(random_walk, {"x": XS, "y": Y3}, Y3)


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros((3, 3)), np.zeros((2, 3)), 0.0], ids=lambda v: str(np.shape(v)))
def test_a_value_of_the_wrong_shape(value):
    with refused(ModelError, "Shapes disagree at site 'z'", r"\(3,\)"):
        log_density(plated, {"mu": 0.0, "z": value})


def test_values_of_the_wrong_shape_in_scan():
    for wrong in (np.zeros(4), np.zeros(2), np.zeros((3, 2))):
        with refused(ModelError, "Shapes disagree at site 'x'"):
            log_density(random_walk, {"x": wrong}, Y3)


def test_leading_axes_of_size_one_are_no_disagreement():
    close(log_density(plated, {"mu": 0.0, "z": np.zeros((1, 3))}).total, log_density(plated, {"mu": 0.0, "z": np.zeros(3)}).total)


def test_two_sites_of_one_name(rng_key):
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    with refused(ModelError, "'z' appears twice"):
        simulate(model, rng_key=rng_key)
    with refused(ModelError, "'z' appears twice"):
        log_density(model, {"z": 0.0})


def test_no_key():
    with refused(ModelError, "No random key to draw sample 'z'", "rng_key"):
        simulate(flat)
    with refused(ModelError, "No random key to draw plate 'n'"):
        log_density(minibatch, {"mu": 0.0})


def test_no_key_in_scan():
    with refused(ModelError, "No random key", "'x'"):
        simulate(random_walk, Y3)


def test_no_program_and_no_dict(rng_key):
    with refused(ArgumentTypeError, "program must be a NumPyro program", "got 3"):
        simulate(3, rng_key=rng_key)
    with refused(ArgumentTypeError, "program must be a NumPyro program", "got None"):
        log_density(None, {})
    with refused(ArgumentTypeError, "values must be a dict", "list"):
        log_density(flat, [0.1])


def test_a_site_marked_for_enumeration_that_cannot_be():
    def model():
        numpyro.sample("k", dist.Poisson(0.3), infer={"enumerate": "parallel"})

    with refused(ModelError, "'k'", "marked for enumeration"):
        log_density(model, {})
