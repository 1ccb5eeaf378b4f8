"""A user's filter is asked with whole messages: it may read any field that NumPyro's have."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import block

from ppl_ext import expectation, marginal, normalize, replicate, simulate
from ppl_ext.algorithms import Enumeration, ImportanceSampling

KEY = jax.random.key(0)
FIELDS = {
    "is_observed": lambda msg: msg["type"] == "factor" and msg["is_observed"],
    "infer": lambda msg: msg["type"] == "sample" and msg["infer"].get("hidden", False),
    "fn": lambda msg: msg["type"] == "sample" and msg["fn"].event_dim > 3,
    "scale": lambda msg: msg["type"] == "sample" and msg["scale"] is not None,
    "cond_indep_stack": lambda msg: (
        msg["type"] == "sample" and any(f.name == "hidden" for f in msg["cond_indep_stack"])
    ),
    "kwargs": lambda msg: msg["type"] == "sample" and bool(msg["kwargs"]["sample_shape"]),
    "the rest": lambda msg: (
        msg["type"] == "sample"
        and (bool(msg["args"]) or msg["value"] is None and msg["intermediates"] is msg)
    ),
}


def model():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(1.0 * z, 1.0))


PROGRAMS = {
    "program": model,
    "marginal": marginal(model, ["x"], Enumeration()),
    "estimated marginal": marginal(model, ["x"], ImportanceSampling(num_particles=3)),
    "normalize": normalize(model, {"x": jnp.array(0.5)}, Enumeration()),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_filter_that_hides_nothing_changes_nothing(program, field):
    found, plain = (
        simulate(p, rng_key=KEY) for p in (block(PROGRAMS[program], hide_fn=FIELDS[field]), PROGRAMS[program])
    )
    jax.tree.map(np.testing.assert_array_equal, dict(found.values), dict(plain.values))
    np.testing.assert_array_equal(found.log_density.total, plain.log_density.total)


@pytest.mark.parametrize("field", FIELDS)
def test_a_filter_around_replicate(field):
    def mean():
        return replicate(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)), 3).mean()

    assert expectation(block(mean, hide_fn=FIELDS[field])).value(KEY) == expectation(mean).value(KEY)


def observed(site):
    return site["type"] == "sample" and site["is_observed"]


@pytest.mark.parametrize("name", ["marginal", "normalize"])
def test_a_filter_that_hides_the_factor_with_the_density_is_told(name):
    program = PROGRAMS[name]
    with pytest.warns(
        UserWarning, match=rf"hides the factor '{name}\((x|z)\)', which carries the log density of '(x|z)'"
    ):
        assert simulate(block(program, hide_fn=observed), rng_key=KEY).log_density.total == 0.0
    [factor] = [
        label.site
        for label in simulate(program, rng_key=KEY).log_density.labels
        if label.site.startswith(name)
    ]
    through = block(program, hide_fn=lambda site: observed(site) and site["name"] != factor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = simulate(through, rng_key=KEY)
        np.testing.assert_array_equal(
            found.log_density.total, simulate(program, rng_key=KEY).log_density.total
        )
        simulate(block(program), rng_key=KEY)  # all of it hidden is what was asked for
        simulate(marginal(nested, ["x"], Enumeration()), rng_key=KEY)


def nested():
    numpyro.sample("y", dist.Normal(marginal(model, ["x"], Enumeration())()["x"], 1.0), obs=0.3)
    numpyro.sample("w", dist.Bernoulli(0.5))
