"""Which slices of a plate a guide misses: weights that are known, and plates that have none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal

from ppl_ext.diagnostics.verdicts.slices import LOOKED_AT, pareto_k_by_slice, reasons_of_slices, separate
from ppl_ext.infer import Fit
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)
Y = jnp.array([0.3, -0.2, 1.0, 0.5])


def grouped(y, outer=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 4, subsample_size=2) as at:
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[at])
    if outer is not None:
        numpyro.sample("outer", dist.Normal(z.sum(), 1.0), obs=outer)


def by_hand(y, outer=None):
    """Of each group its law given the mean, and of the third one with a quarter of its spread."""
    mu = numpyro.sample("mu", dist.Normal(0.3, 0.5))
    with numpyro.plate("groups", 4, subsample_size=2) as at:
        scale = jnp.sqrt(0.5) * jnp.array([1.0, 1.0, 0.25, 1.0])[at]
        numpyro.sample("z", dist.Normal((mu + y[at]) / 2.0, scale))


def fitted(model, guide, *args, num_chains=1, **kwargs):
    """As one that has been fitted, with what the guide begins with."""
    if hasattr(guide, "prototype_trace"):
        numpyro.handlers.seed(guide, KEY)(*args, **kwargs)
    record = numpyro.handlers.trace(numpyro.handlers.seed(guide, KEY)).get_trace(*args, **kwargs)
    params = {n: jnp.stack([s["value"]] * num_chains) for n, s in record.items() if s["type"] == "param"}
    losses = np.zeros((num_chains, 5))
    return Fit(params, losses, model, guide, ELBO(), args, kwargs, rng_key=KEY)


def test_the_weight_of_a_draw_is_that_of_its_slices_and_of_what_they_share():
    draws = fitted(grouped, by_hand, Y).sample(num_samples=50)
    mu, z = draws.values["mu"], draws.values["z"]
    y, scale = np.asarray(Y), np.sqrt(0.5) * np.array([1.0, 1.0, 0.25, 1.0])

    def log_normal(x, loc, scale):
        return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)

    m = mu[..., None]
    right = log_normal(z, m, 1.0) + log_normal(y, z, 1.0) - log_normal(z, (m + y) / 2, scale)
    np.testing.assert_allclose(draws.slices["groups"], right, rtol=1e-4, atol=1e-4)
    shared = log_normal(mu, 0.0, 1.0) - log_normal(mu, 0.3, 0.5)
    np.testing.assert_allclose(draws.log_weights, shared + right.sum(-1), rtol=1e-4, atol=1e-4)


def test_the_verdict_names_the_slice_that_the_guide_misses():
    found = fitted(grouped, by_hand, Y).verdict(num_samples=1000)
    words = [r for r in found.reasons if "of plate 'groups'" in r.words]
    assert found.level == "bad" and len(words) == 1 and words[0].level == "doubtful", found
    assert "misses most at 2 (Pareto k" in words[0].words and "1 of its 4 slices are off" in words[0].words


def test_where_no_slice_is_off_what_is_shared_is():
    def guide(y):
        mu = numpyro.sample("mu", dist.Normal(2.0, 0.2))
        with numpyro.plate("groups", 4, subsample_size=2) as at:
            numpyro.sample("z", dist.Normal((mu + y[at]) / 2.0, jnp.sqrt(0.5)))

    found = fitted(grouped, guide, Y).verdict(num_samples=1000)
    [words] = [r for r in found.reasons if "of plate 'groups'" in r.words]
    assert found.level == "bad" and words.level == "good"
    assert "fits each of the 4 slices of plate 'groups' by itself" in words.words


def test_a_good_verdict_has_no_word_of_slices():
    def guide(y):
        mu = numpyro.sample("mu", dist.Normal(y.sum() / 6.0, jnp.sqrt(1 / 3)))
        with numpyro.plate("groups", 4, subsample_size=2) as at:
            numpyro.sample("z", dist.Normal((mu + y[at]) / 2.0, jnp.sqrt(0.5)))

    found = fitted(grouped, guide, Y, num_chains=2).verdict(num_samples=500)
    assert found.level == "good" and not any("plate" in r.words for r in found.reasons)


def crossed(y):
    with numpyro.plate("cols", 2, dim=-1):
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3, dim=-2):
        r = numpyro.sample("r", dist.Normal(0.0, 1.0))
        with numpyro.plate("cols", 2, dim=-1):
            numpyro.sample("y", dist.Normal(r + c, 1.0), obs=y)


def test_both_of_crossed_plates():
    y = jnp.arange(6.0).reshape(3, 2) / 6.0
    draws = fitted(crossed, AutoNormal(crossed), y).sample(num_samples=20)
    assert {n: x.shape for n, x in draws.slices.items()} == {"cols": (1, 20, 2), "rows": (1, 20, 3)}
    shared = draws.slices["rows"].sum(-1) + draws.slices["cols"].sum(-1) - draws.log_weights
    r, c = draws.values["r"], draws.values["c"][..., None, :]  # (1, 20, 3, 1), (1, 20, 1, 2)
    twice = -0.5 * ((np.asarray(y) - r - c) ** 2 + np.log(2 * np.pi))
    np.testing.assert_allclose(shared, twice.sum((-1, -2)), rtol=1e-4, atol=1e-4)


def test_a_finite_site_summed_over_one_plate_leaves_the_other_no_slices():
    def model(y):
        with numpyro.plate("cols", 2, dim=-1):
            c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 3, dim=-2):
            r = numpyro.sample("r", dist.Normal(0.0, 1.0))
            k = numpyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            with numpyro.plate("cols", 2, dim=-1):
                numpyro.sample("y", dist.Normal(r + c + k, 1.0), obs=y)

    guide = AutoNormal(numpyro.handlers.block(model, hide=["k"]))
    draws = fitted(model, guide, jnp.ones((3, 2))).sample(num_samples=20)
    assert {n: x.shape for n, x in draws.slices.items()} == {"rows": (1, 20, 3)}


@pytest.mark.parametrize("kind", ["joint", "in part joint"])
def test_a_joint_guide_has_no_slices(kind):
    def model(y):
        with numpyro.plate("groups", 4):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            v = numpyro.sample("v", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z + v, 1.0), obs=y)

    if kind == "joint":
        guide = AutoMultivariateNormal(model)
    else:
        guide = AutoGuideList(model)
        guide.append(AutoNormal(numpyro.handlers.block(model, hide=["v", "y"])))
        guide.append(AutoMultivariateNormal(numpyro.handlers.block(model, hide=["z", "y"]), prefix="b"))
    assert not fitted(model, guide, Y).sample(num_samples=5).slices


def test_slices_that_a_site_outside_depends_on_do_not_speak_for_themselves():
    fit = fitted(grouped, by_hand, Y, outer=3.0)
    draws = fit.sample(num_samples=30)
    draw = {n: x[0, 0] for n, x in draws.values.items()}
    assert list(draws.slices) == ["groups"]
    assert separate(grouped, ["groups"], draw, (Y,), {"outer": 3.0}, {}) == []
    assert separate(grouped, ["groups"], draw, (Y,), {}, {}) == ["groups"]
    assert not any("plate" in r.words for r in fit.verdict(num_samples=200).reasons)


def test_of_many_slices_those_that_spread_most_are_looked_at():
    rng = np.random.default_rng(0)
    scale = np.full(LOOKED_AT + 500, 0.1)
    scale[-1] = 5.0
    k = pareto_k_by_slice(rng.normal(size=(100, len(scale))) * scale)
    assert np.isfinite(k).sum() == LOOKED_AT and k[-1] > 0.7
    found = reasons_of_slices({"rows": rng.normal(size=(1, 100, len(scale))) * scale}, lambda x: x)
    assert f"at {len(scale) - 1} (Pareto k" in found[0].words


def test_too_few_draws_or_one_slice_alone_say_nothing():
    rng = np.random.default_rng(0)
    few, alone = rng.normal(size=(1, 10, 3)), rng.normal(size=(1, 100, 1))
    assert reasons_of_slices({"few": few, "alone": alone}, lambda x: x) == []


def test_a_slice_with_impossible_draws_is_named():
    log_weights = np.random.default_rng(0).normal(size=(2, 100, 3)) * 0.1
    log_weights[1, :, 2] = -np.inf
    [found] = reasons_of_slices({"rows": log_weights}, lambda x: x)
    assert found.level == "doubtful" and "misses most at 2 (Pareto k inf)" in found.words


def test_masked_latents_have_no_slices():
    def model(y, seen):
        with numpyro.plate("groups", 4), numpyro.handlers.mask(mask=seen):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    seen = jnp.array([True, False, True, True])
    assert not fitted(model, AutoNormal(model), Y, seen).sample(num_samples=5).slices
