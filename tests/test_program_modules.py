"""``simulate`` and ``log_density`` of programs with observed parts, neural networks, flows and automatic
guides.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import flax_module, random_flax_module
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from numpyro.infer.util import log_density as numpyro_log_density
from numpyro.nn import AutoregressiveNN
from scipy.stats import norm

from ppl_ext import log_density, simulate
from tests.oracles import quick_jit
from tests.programs import Y3, close, drawn

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py


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
    """The inverse of an autoregressive flow is a loop; the draw keeps the noise instead, and scores the
    same.
    """
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
        own = sum(
            jnp.sum(s["fn"].log_prob(s["value"], *filter(None, [s["intermediates"]])))
            for s in sites
            if s["type"] == "sample"
        )
        in_model, _ = numpyro_log_density(model, (), {}, {n: draw.values[n] for n in ("loc", "width")})
        return draw, own, log_density(model, draw.values).total, in_model

    draw, own, scored, in_model = quick_jit(all_answers)(rng_key)
    assert set(draw.values) - {"loc", "width"} == draw.values.auxiliary
    close(draw.log_density.total, own)
    close(scored, in_model)
