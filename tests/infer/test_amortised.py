"""Guides that are networks of the data: their law, their training and their answers."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro.infer import SVI, Predictive, Trace_ELBO

import ppl_ext
from ppl_ext.algorithms import Enumeration, ImportanceSampling, TemperedSMC
from ppl_ext.diagnostics import psis
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.infer import SetTransformer, amortise, fit
from ppl_ext.objectives import Sleep
from ppl_ext.result import Fit
from tests.infer.amortised_programs import (
    MEAN,
    NEW,
    SMALL,
    SOME,
    Linear,
    Says,
    X,
    Y,
    linear,
    of_mean,
    of_some,
    of_unit,
    params_of,
    told,
    trained,
)

# --- the law


def of_three(y):
    numpyro.sample("scale", dist.LogNormal(0.3, 0.7))
    numpyro.sample("place", dist.Normal(0.0, 2.0).expand([2, 1]).to_event(2))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def told_mixture(guide, numbers):
    """Weights, means and covariances in the order scale, place: written out by hand."""
    k, d = 2, 3
    logits, loc, rest = numbers[:k], numbers[k : k + k * d].reshape(k, d), numbers[k + k * d :].reshape(k, -1)
    factors = np.zeros((k, d, d))
    for c in range(k):
        for i in range(d):
            factors[c, i, i] = 1e-3 + np.log1p(np.exp(rest[c, i] + np.log(np.e - 1.0)))
        factors[c, 1, 0], factors[c, 2, 0], factors[c, 2, 1] = rest[c, d:]
    loc = loc + np.array([[-1.0], [1.0]])
    center, scale = guide.pilot.center, guide.pilot.scale
    factors = scale[:, None] * factors
    weights = np.exp(logits) / np.exp(logits).sum()
    return weights, center + scale * loc, factors @ np.swapaxes(factors, 1, 2)


def normal(x, mean, covariance):
    x, mean, covariance = np.atleast_1d(x), np.atleast_1d(mean), np.atleast_2d(covariance)
    away = x - mean
    log = away @ np.linalg.solve(covariance, away) + np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    return np.exp(-0.5 * log)


@pytest.fixture(scope="module")
def said():
    numbers = np.random.default_rng(0).normal(size=20)
    guide = amortise(of_three, Says(numbers), jnp.array(0.0), num_components=2)
    assert guide.size == 20 == len(numbers)
    return guide, told_mixture(guide, numbers)


def test_the_density_is_that_of_the_mixture_with_the_jacobian(said):
    """Of all sites at once, though the guide draws one after the other; from one component to the other."""
    guide, (weights, means, covariances) = said
    for t in np.linspace(0.0, 1.0, 7):
        free = (1.0 - t) * means[0] + t * means[1]
        parts = [w * normal(free, m, c) for w, m, c in zip(weights, means, covariances, strict=True)]
        values = {"scale": jnp.exp(free[0]), "place": jnp.asarray(free[1:, None], jnp.float32)}
        found = ppl_ext.log_density(guide, values, jnp.array(0.0), rng_key=jax.random.key(0)).total
        np.testing.assert_allclose(found, np.log(sum(parts)) - free[0], rtol=1e-4, atol=1e-4)


def test_draws_have_the_moments_of_the_mixture(said):
    """40,000 draws; the covariances between sites are what the order of draws could lose."""
    guide, (weights, means, covariances) = said
    draws = Predictive(guide, num_samples=40_000, params={})(jax.random.key(0), jnp.array(0.0))
    free = np.concatenate([np.log(draws["scale"])[:, None], np.asarray(draws["place"])[:, :, 0]], 1)
    mean = weights @ means
    second = sum(
        w * (c + np.outer(m - mean, m - mean)) for w, m, c in zip(weights, means, covariances, strict=True)
    )
    error = np.sqrt(np.diag(second) / len(free))
    assert (abs(free.mean(0) - mean) < 4.5 * error).all()
    products = (free - mean)[:, :, None] * (free - mean)[:, None]
    assert (abs(products.mean(0) - second) < 4.5 * products.std(0) / len(free) ** 0.5).all()


def test_laws_are_marginals_of_the_mixture(said):
    guide, (weights, means, covariances) = said
    laws = guide.laws(params_of(guide, jnp.array(0.0)), jnp.array(0.0))
    scale = sum(
        w * normal(np.log(0.8), m[0], c[0, 0]) for w, m, c in zip(weights, means, covariances, strict=True)
    )
    np.testing.assert_allclose(laws["scale"].log_prob(0.8), np.log(scale / 0.8), rtol=1e-5)
    place = np.array([[0.5], [-1.5]])
    known = sum(
        w * normal(place[:, 0], m[1:], c[1:, 1:]) for w, m, c in zip(weights, means, covariances, strict=True)
    )
    np.testing.assert_allclose(laws["place"].log_prob(place), np.log(known), rtol=1e-5)


# --- training, and the exact posterior


def exact(width, y):
    precision = width**-2 + len(y)
    return sum(y) / precision, precision**-0.5


def test_a_linear_network_finds_the_conjugate_posterior():
    """The exact map is linear; 100,000 simulations leave an error of 0.01 or so."""
    guide, run = linear()
    law = guide.laws(run, NEW)["mu"]
    mean, sd = exact(1.0, NEW)
    np.testing.assert_allclose(law.mean, mean, atol=0.02)
    np.testing.assert_allclose(law.variance**0.5, sd, atol=0.01)


def test_weights_mend_a_guide_and_say_how_bad_it_is():
    """The evidence has a closed form; the guide is trained, and then moved by half a standard deviation."""
    guide, run = linear()
    law = dist.MultivariateNormal(jnp.zeros(4), jnp.eye(4) + 1.0)
    key = jax.random.key(1)
    good = guide.weighed(key, run, 4000, NEW)
    np.testing.assert_allclose(
        jax.scipy.special.logsumexp(good.log_weights) - np.log(4000.0), law.log_prob(NEW), atol=0.01
    )
    assert float(psis(np.asarray(good.log_weights)).ess) > 3500
    assert guide.answer(run, NEW).verdict().level == "unknown"  # one restart, and nothing worse
    moved = {"amortised$params": jnp.asarray(run.params["amortised$params"][0]).at[-1, 0].add(0.25)}
    poor = guide.weighed(key, moved, 4000, NEW)
    mean, _ = exact(1.0, NEW)
    weights = np.exp(np.asarray(psis(np.asarray(poor.log_weights)).log_weights))
    assert abs(np.mean(poor.values["mu"]) - mean) > 0.15
    assert abs(weights @ np.asarray(poor.values["mu"]) - mean) < 0.04


def test_a_prior_that_is_read_moves_the_answer():
    """One network, two priors of which neither was trained for by itself."""
    guide = amortise(of_mean, SetTransformer(16, num_layers=1), *MEAN, rows=["y"])
    settings = Sleep(32), optax.adam(optax.cosine_decay_schedule(0.01, 800)), 800, *MEAN
    run = fit(jax.random.key(0), of_mean, guide, *settings, progress_bar=False)
    y = 1.2 * jnp.ones(4)
    for width in (0.6, 1.8):
        law, (mean, sd) = guide.laws(run, width, y)["mu"], exact(width, y)
        assert abs(law.mean - mean) < 0.15 and abs(law.variance**0.5 - sd) < 0.05
    assert guide.laws(run, 1.8, y)["mu"].mean - guide.laws(run, 0.6, y)["mu"].mean > 0.3


# --- one guide, many data sets


def test_what_is_not_there_changes_nothing():
    guide, run = trained()
    known = told(guide.laws(run, x=X, y=Y))
    fill = jnp.array([0.7, -0.2, 0.3])
    whole = guide.laws(run, jnp.array(3), jnp.concatenate([X, fill]), jnp.concatenate([Y, 5.0 * fill]))
    np.testing.assert_allclose(told(whole), known, rtol=1e-4)
    np.testing.assert_allclose(told(guide.laws(run, x=X[::-1], y=Y[::-1])), known, rtol=1e-4)
    assert abs(told(guide.laws(run, x=X[:2], y=Y[:2]))[0] - known[0]) > 1e-3


def test_many_at_once_are_each_alone():
    guide, run = trained()
    xs, ys = jnp.stack([X, -X]), jnp.stack([Y, Y])

    @jax.jit
    @jax.vmap
    def answers(x, y):
        return told(guide.laws(run, x=x, y=y))

    alone = [told(guide.laws(run, x=x, y=y)) for x, y in zip(xs, ys, strict=True)]
    np.testing.assert_allclose(np.transpose(answers(xs, ys)), alone, rtol=1e-4)
    weighed = jax.vmap(lambda x, y: guide.weighed(jax.random.key(0), run, 5, x=x, y=y).log_weights)(xs, ys)
    np.testing.assert_allclose(
        weighed[1], guide.weighed(jax.random.key(0), run, 5, x=-X, y=Y).log_weights, rtol=1e-4
    )


def test_an_answer_is_a_fit_of_the_new_data():
    """Draws are scored on the three rows and no others: by hand."""
    guide, run = trained()
    answer = guide.answer(run, x=X, y=Y)
    draws = answer.sample(num_samples=200)
    slope, noise = (np.asarray(draws.values[n][0], float) for n in ("slope", "noise"))
    by_hand = dist.Normal(slope[:, None] * X, 0.1 + noise[:, None]).log_prob(Y).sum(1)
    by_hand = by_hand + dist.Normal().log_prob(slope) + dist.HalfNormal().log_prob(noise)
    by_hand = by_hand - np.log(6.0) - 3.0 * np.log(2.0)
    np.testing.assert_allclose(draws.log_p[0], by_hand, rtol=1e-3, atol=1e-3)
    report = answer.to_arviz(num_samples=50)
    assert dict(report.posterior["slope"].sizes) == {"chain": 1, "draw": 50}
    refined = answer.refined(jax.random.key(3), TemperedSMC(500), from_prior=False)
    values = guide.weighed(jax.random.key(4), run, 20_000, x=X, y=Y)
    weights = np.exp(np.asarray(psis(np.asarray(values.log_weights)).log_weights))
    known = weights @ np.asarray(values.values["slope"])
    assert abs(refined.values["slope"].mean() - known) < 0.15


def alone(answer):
    """The same fit, as one that knows of no other data sets."""
    return Fit(**{f.name: getattr(answer, f.name) for f in dataclasses.fields(Fit)})


class Counted(SetTransformer):
    """Counts how often it is traced."""

    traced: ClassVar[list] = []

    def apply(self, params, rows, seen, rest):
        self.traced.append(rows.shape)
        return super().apply(params, rows, seen, rest)


def test_answers_share_what_is_compiled_and_are_each_their_own():
    """Three data sets, of three lengths and two runs: the network is traced for the first alone."""
    guide = amortise(of_some, Counted(8, num_layers=1), *SOME, rows=["x", "y"], count="num")
    settings = Sleep(4), optax.adam(0.01), 5, *SOME
    run, other = (
        fit(jax.random.key(k), of_some, guide, *settings, num_chains=2, progress_bar=False) for k in (0, 1)
    )
    asked = [(run, X, Y), (run, X[:2], -Y[:2]), (other, jnp.tile(X, 2), jnp.tile(Y, 2))]
    answers = [guide.answer(run, x=x, y=y) for run, x, y in asked]
    first = answers[0].sample(num_samples=3)
    count = len(Counted.traced)
    found = [first, *(answer.sample(num_samples=3) for answer in answers[1:])]
    assert count > 0 and len(Counted.traced) == count
    for draws, answer in zip(found, answers, strict=True):
        known = alone(answer).sample(num_samples=3)
        for name in ("slope", "noise"):
            np.testing.assert_allclose(draws.values[name], known.values[name], rtol=1e-5)
        np.testing.assert_allclose(draws.log_p, known.log_p, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(draws.log_q, known.log_q, rtol=1e-4, atol=1e-4)
    assert np.ptp([draws.log_p.mean() for draws in found]) > 0.1
    assert len(Counted.traced) > count  # which is how a fit alone does it


def test_it_is_an_ordinary_guide():
    guide, run = trained()
    params = jax.tree.map(lambda x: x[0], run.params)
    fixed = numpyro.handlers.substitute(guide, data=params)
    full = guide.answer(run, x=X, y=Y).args
    draws = Predictive(guide, params=params, num_samples=7)(jax.random.key(0), *full)
    assert draws["slope"].shape == (7,)
    posterior = ppl_ext.normalize(of_some, {}, ImportanceSampling(5, lambda given, *args: fixed(*args)))
    draw = ppl_ext.simulate(posterior, *full, rng_key=jax.random.key(0))
    assert np.isfinite(float(draw.log_density.total)) and {"slope", "noise"} <= draw.values.keys()
    single = amortise(of_unit, Linear(), jnp.zeros(4))
    svi = SVI(of_unit, single, numpyro.optim.Adam(0.02), Trace_ELBO(5))
    found = svi.run(jax.random.key(0), 1500, NEW, progress_bar=False)
    np.testing.assert_allclose(single.laws(found.params, NEW)["mu"].mean, exact(1.0, NEW)[0], atol=0.05)


def mixed(y):
    side = numpyro.sample("side", dist.Bernoulli(0.5))
    mu = numpyro.sample("mu", dist.Normal(2.0 * side - 1.0, 0.5))
    numpyro.sample("y", dist.Normal(mu, 0.5), obs=y)


def test_some_sites_are_answered_for_and_the_others_averaged_over():
    """The exact posterior of mu is a mixture of two normals, and so is the guide; the weights are exact, the
    side summed out."""
    guide = amortise(mixed, SetTransformer(16, num_layers=1), jnp.array(0.0), sites=["mu"], num_components=2)
    settings = Sleep(64), optax.adam(optax.cosine_decay_schedule(0.01, 1500)), 1500, jnp.array(0.0)
    run = fit(jax.random.key(0), guide.simulator, guide, *settings, progress_bar=False)
    y, mu = jnp.array(0.2), np.linspace(-3.0, 3.0, 601)
    joint = 0.5 * sum(np.exp(dist.Normal(m, 0.5).log_prob(mu)) for m in (-1.0, 1.0))
    joint = joint * np.exp(dist.Normal(mu, 0.5).log_prob(y))
    known = joint / joint.sum() / 0.01
    found = np.asarray(guide.laws(run, y)["mu"].log_prob(mu), float)
    assert (known * (np.log(known) - found)).sum() * 0.01 < 0.02
    with pytest.raises(ModelError, match="leaves 'side' out.*algorithm="):
        guide.answer(run, y)
    with pytest.raises(ModelError, match="leaves 'side' out"):
        guide.weighed(jax.random.key(0), run, 5, y)
    draws = guide.answer(run, y, algorithm=Enumeration()).sample(num_samples=4000)
    evidence = np.exp(draws.log_weights).mean()
    np.testing.assert_allclose(evidence, joint.sum() * 0.01, rtol=0.02)


def of_three_levels(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    mu = numpyro.sample("mu", dist.Normal(z, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_what_is_not_answered_for_is_integrated_out_of_an_answer():
    """The evidence is that of N(0, 3); the untrained guide has the prior's width; z by 400 draws each."""
    guide = amortise(of_three_levels, SMALL, jnp.array(0.0), sites=["mu"])
    assert guide.pilot.others == ("z",)
    settings = Sleep(4), optax.adam(1e-4), 1, jnp.array(0.0)
    run = fit(jax.random.key(0), guide.simulator, guide, *settings, progress_bar=False)
    algorithm = ImportanceSampling(400)
    draws = guide.answer(run, 0.5, algorithm=algorithm).sample(num_samples=4000)
    again = guide.answer(run, -0.7, algorithm=algorithm).sample(num_samples=50)  # nothing compiled anew
    assert [key for key in guide.samplers if key[0] == "integrated"] == [("integrated", id(algorithm))]
    assert len(guide.samplers) == 2 and np.abs(again.log_p - draws.log_p[:, :50]).max() > 0.01
    weights = np.exp(draws.log_weights)
    known = float(np.exp(dist.Normal(0.0, 3.0**0.5).log_prob(0.5)))
    assert abs(weights.mean() - known) < 4.5 * weights.std() / 4000**0.5


def test_rows_that_are_not_there_are_as_if_they_were_not_in_the_array():
    rows, seen, rest = jnp.array([[1.0], [2.0], [5.0]]), jnp.array([True, True, False]), jnp.ones(2)
    network = SetTransformer(8, num_layers=2, num_heads=2)
    params = network.init(jax.random.key(0), 5, rows, seen, rest)
    known = network.apply(params, rows[:2], seen[:2], rest)
    np.testing.assert_allclose(network.apply(params, rows, seen, rest), known, atol=1e-5)
    assert abs(network.apply(params, rows, jnp.ones(3, bool), rest) - known).max() > 1e-3


def of_counts(counts, rate=2.0):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("rows", 5):
        size = numpyro.sample("size", dist.Gamma(2.0, rate))
        numpyro.sample("counts", dist.Poisson(10.0 * size * p[0]), obs=counts)


def test_sites_in_plates_and_on_simplices_in_several_chains():
    full, counts = jnp.ones(5, int), jnp.array([1, 2, 0, 5, 3])
    guide = amortise(of_counts, SMALL, full, rows=["counts"], num_components=2, rate=2.0)
    settings = Sleep(4), optax.adam(0.01), 5, full
    run = fit(jax.random.key(0), of_counts, guide, *settings, num_chains=2, progress_bar=False, rate=2.0)
    draws = guide.answer(run, counts).sample(num_samples=20)
    assert {n: x.shape for n, x in draws.values.items()} == {"p": (2, 20, 3), "size": (2, 20, 5)}
    np.testing.assert_allclose(draws.values["p"].sum(-1), 1.0, rtol=1e-5)
    assert (draws.values["size"] > 0.0).all() and np.isfinite(draws.log_weights).all()
    assert guide.laws(run, counts)["p"].event_shape == (3,)
    with pytest.raises(ArgumentError, match="site 'counts' is -3, where its law has no mass"):
        guide.laws(run, counts.at[4].set(-3))
    with pytest.raises(ArgumentError, match="'rate' is not what the network was trained for"):
        guide.laws(run, counts, rate=3.0)


class Layers(linen.Module):
    @linen.compact
    def __call__(self, rows, seen, rest):
        return linen.Dense(2)(jnp.concatenate([jnp.ravel(rows), rest]))


class Parts(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, rows, seen, rest):
        return self.layer(jnp.ravel(rows))


class Pieces(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, rows, seen, rest):
        return self.layer(jnp.ravel(rows))


NETWORKS = {
    "linen": Layers,
    "nnx": lambda: Parts(nnx.Rngs(0)),
    "equinox": lambda: Pieces(eqx.nn.Linear(4, 2, key=jax.random.key(0))),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_modules_of_flax_and_equinox(kind):
    """A linear layer of each learns: the exact mean is a quarter of the sum, more or less a fifth of it."""
    guide = amortise(of_unit, NETWORKS[kind](), jnp.zeros(4), rows=["y"])
    settings = Sleep(16), optax.adam(0.02), 400, jnp.zeros(4)
    run = fit(jax.random.key(0), of_unit, guide, *settings, progress_bar=False)
    np.testing.assert_allclose(guide.laws(run, NEW)["mu"].mean, exact(1.0, NEW)[0], atol=0.1)


# --- what is refused, and what is warned of
