"""Sites that NumPyro's handlers inside of a program hold at a value, or hide: against Gaussian evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block, condition, substitute
from scipy import stats

import ppl_ext
from ppl_ext.algorithms import ImportanceSampling, TemperedSMC
from ppl_ext.errors import ModelError
from ppl_ext.infer import SMC

KEY = jax.random.key(0)


def three(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 1.0))
    c = numpyro.sample("c", dist.Normal(b, 1.0))
    numpyro.sample("y", dist.Normal(c, 1.0), obs=y)


def walk(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(x + a, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, 0.0, y)


def hidden_in_the_body(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def step(x, y_t):
        with block(hide=["x"]):
            x = numpyro.sample("x", dist.Normal(x + a, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, 0.0, y)


def guide_with_a_hidden_site(given, y):
    with block(hide=["u"]):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    for name in "abc":
        numpyro.sample(name, dist.Normal(u, 1.0))


def smc(model, num_particles=4000, **options):
    return SMC(model, num_particles, progress_bar=False, **options)


def check(result, log_evidence, mean, sd):
    assert abs(result.log_evidence - log_evidence) < 0.06
    assert set(result.values) >= {"a"}
    np.testing.assert_allclose(result.values["a"].mean(), mean, atol=0.06)
    np.testing.assert_allclose(result.values["a"].std(), sd, rtol=0.06)


def test_what_substitute_holds_is_given_and_its_density_counts():
    """It was an unknown that hardly moved, its density left out: -1.32 for -3.59, and a wrong mean of a."""
    result = smc(substitute(three, data={"b": 2.0})).run(KEY, 1.5)
    evidence = stats.norm.logpdf(2.0, 0.0, 2**0.5) + stats.norm.logpdf(1.5, 2.0, 2**0.5)
    check(result, evidence, 1.0, 0.5**0.5)
    assert set(result.values) == {"a", "c"}


def test_what_substitute_holds_in_a_scan_is_given():
    x, y = np.array([0.5, 2.0]), np.array([1.0, 2.0])
    result = smc(substitute(walk, data={"x": jnp.asarray(x)})).run(KEY, jnp.asarray(y))
    moves = stats.multivariate_normal([0.0, 0.0], np.eye(2) + 1.0).logpdf(np.diff(x, prepend=0.0))
    check(result, moves + stats.norm.logpdf(y, x).sum(), 2.0 / 3.0, 3**-0.5)
    assert set(result.values) == {"a"}


@pytest.mark.parametrize("algorithm", [ImportanceSampling(3), TemperedSMC(4, [1.0])])
def test_marginals_take_what_is_held_as_given(algorithm):
    """An importance sampler left the density of b out, which ppl_ext.log_density counts."""

    def held_by(handler):
        program = ppl_ext.marginal(handler(three, data={"b": 2.0}), ["a"], algorithm)
        return float(ppl_ext.log_density(program, {"a": 0.5}, 1.5, rng_key=KEY).total)

    c_known = ppl_ext.marginal(substitute(three, data={"b": 2.0, "c": 1.0}), ["a"], algorithm)
    assert held_by(substitute) == held_by(condition)
    with pytest.raises(ModelError, match="keeps every latent site [(]'a'[)]"):
        ppl_ext.log_density(c_known, {"a": 0.5}, 1.5, rng_key=KEY)


@pytest.mark.parametrize("b", [0.0, 2.0])
def test_a_posterior_given_what_is_held(b):
    law = ppl_ext.normalize(substitute(three, data={"b": b}), {}, TemperedSMC(4000, [0.3, 1.0]))
    found = ppl_ext.log_density(law, {"a": 0.3, "c": 0.5}, 1.5, rng_key=KEY).total
    expected = stats.norm.logpdf(0.3, 0.5 * b, 0.5**0.5) + stats.norm.logpdf(0.5, 0.5 * (b + 1.5), 0.5**0.5)
    assert abs(found - expected) < 0.06


HIDING = {
    "before": (block(three, hide=["b"]), 1.5, "'b' in the program"),
    "around a scan": (block(walk, hide=["x"]), jnp.ones(2), "'x' in the program"),
    "in a scan": (hidden_in_the_body, jnp.ones(2), "'x' in the program"),
}


@pytest.mark.parametrize("name", HIDING)
def test_what_a_block_hides_is_refused_by_name(name):
    """It was held at one draw: an evidence of -5.17 for -1.84 of a model of two sites."""
    model, y, words = HIDING[name]
    with pytest.raises(ModelError, match=f"block hides site {words}.*condition[(]model"):
        smc(model, 20).run(KEY, y)


def test_what_a_guide_hides_is_refused_by_name():
    """An evidence was -0.68 for -3.57: the density of the guide was taken at one draw of u."""
    with pytest.raises(ModelError, match="initial: .*block hides site 'u' in the guide.*by one law"):
        smc(three, 20, initial=guide_with_a_hidden_site).run(KEY, 1.5)


def test_a_key_that_the_program_asks_for_itself_is_no_hidden_site():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.deterministic("next", a + jax.random.normal(numpyro.prng_key()))
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    check(smc(model).run(KEY, 1.0), stats.norm.logpdf(1.0, 0.0, 2**0.5), 0.5, 0.5**0.5)
