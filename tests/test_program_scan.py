"""``simulate`` and ``log_density`` of NumPyro's ``scan`` and ``cond``, beside densities written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, mask, substitute
from scipy.stats import norm

from ppl_ext import log_density, simulate
from ppl_ext.errors import ModelError
from tests.oracles import quick_jit
from tests.programs import XS, Y3, branching, close, random_walk, walk_density

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py


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
    """``condition`` turns a latent site of the body into an observed one, and replaces the data of one that
    is.
    """
    values, density = simulated_and_scored(condition(random_walk, {"y": jnp.asarray(Y3)}), obs)
    assert set(values) == {"x"}
    close(density, walk_density(values["x"], Y3))


def test_a_site_needs_no_value_if_a_function_gives_it_one_later():
    model = substitute(random_walk, substitute_fn=lambda site: 0.3 if site["name"] == "x" else None)
    close(log_density(model, {}, Y3).total, walk_density(np.full(3, 0.3), Y3))


def test_a_condition_on_one_site_excuses_no_other():
    with pytest.raises(ModelError, match="No value for latent site 'x'"):
        log_density(condition(random_walk, {"y": jnp.asarray(Y3)}), {}, rng_key=jax.random.key(0))


def test_a_condition_on_a_site_scanned_backwards():
    """NumPyro's ``condition`` counts steps as they are taken, so its first value belongs to the last time;
    draw and score agree on that.
    """
    values, density = simulated_and_scored(
        condition(random_walk, {"y": jnp.asarray(Y3)}), np.zeros(3, np.float32), reverse=True
    )
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
