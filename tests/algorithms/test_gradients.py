"""Value and gradient of objectives with marginals inside are unbiased, whatever the strategies of the sites
inside.

On finite programs the exact answer sums over all particles by hand. Where every site is enumerated the
estimate must equal it, whatever the key; with scores it is compared in the mean over 20,000 fixed keys,
within 4.5 standard errors estimated from them. Over fresh keys a right estimator would fail one coordinate
with probability 7e-6, the file (about 80 coordinates) with probability 6e-4.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.handlers
import pytest
from jax.scipy.special import logsumexp

from ppl_ext import expectation, log_density, marginal, normalize, simulate
from ppl_ext.algorithms import Enumeration, ImportanceSampling
from ppl_ext.gradients import Enumerate, ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO, IWELBO
from tests.oracles import assert_unbiased, bernoulli, normal, quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

PARAMS = {"phi": jnp.array([0.3, -0.5, 0.8]), "psi": jnp.array([0.2, -0.4]), "theta": jnp.array(0.4)}
SCORE = ScoreFunction(baseline=None)


def model():
    x = numpyro.sample("x", dist.Bernoulli(0.6))
    numpyro.sample("y", dist.Normal(1.5 * x - numpyro.param("theta", 0.0), 1.0), obs=0.7)


def mixture():
    """A guide for coin x that hides coin u."""
    phi = numpyro.param("phi", jnp.zeros(3))
    u = numpyro.sample("u", dist.Bernoulli(logits=phi[0]))
    numpyro.sample("x", dist.Bernoulli(logits=phi[1] + phi[2] * u))


def reverse(given):
    psi = numpyro.param("psi", jnp.zeros(2))
    numpyro.sample("u", dist.Bernoulli(logits=psi[0] + psi[1] * given["x"]))


def log_p(params, x):
    return bernoulli(x, jnp.log(1.5)) + normal(0.7, 1.5 * x - params["theta"])


def log_joint(params, u, x):
    phi = params["phi"]
    return bernoulli(u, phi[0]) + bernoulli(x, phi[1] + phi[2] * u)


def log_reverse(params, u, x):
    return bernoulli(u, params["psi"][0] + params["psi"][1] * x)


def hierarchical_loss(params, num, proposal):
    """Minus E[log p(x, y) − log q̂(x)], summing over x, the retained u and the num − 1 fresh ones."""
    log_r = log_reverse if proposal is reverse else (lambda params, u, x: bernoulli(u, params["phi"][0]))
    total = 0.0
    for x, *us in itertools.product((0.0, 1.0), repeat=1 + num):
        log_prob = log_joint(params, us[0], x) + sum(log_r(params, u, x) for u in us[1:])
        log_w = jnp.stack([log_joint(params, u, x) - log_r(params, u, x) for u in us])
        total = total - jnp.exp(log_prob) * (log_p(params, x) - logsumexp(log_w) + jnp.log(num))
    return total


def samples_of(objective, guide, num=20_000, params=PARAMS, model=model):
    def one(rng_key):
        return jax.value_and_grad(lambda params: objective.loss(rng_key, params, model, guide))(params)

    return quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(1), num))


def assert_exact(objective, guide, exact, model=model):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        expected = jax.value_and_grad(exact)(params)
        run = quick_jit(
            jax.value_and_grad(lambda params, rng_key: objective.loss(rng_key, params, model, guide))
        )
        for seed in (0, 1):
            actual = run(params, jax.random.key(seed))
            jax.tree.map(
                lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-8), actual, expected
            )


ALL = Enumerate(max_lanes=100_000)


@pytest.mark.parametrize("proposal", [None, reverse])
@pytest.mark.parametrize("num", [1, 2, 4])
@pytest.mark.slow
def test_enumerated_inside_the_hierarchical_bound_is_exact(num, proposal):
    guide = gradient(marginal(mixture, ["x"], ImportanceSampling(num, proposal)), {"*": ALL})
    assert_exact(ELBO(), guide, lambda params: hierarchical_loss(params, num, proposal))


MIXES = {
    "score": {"*": SCORE},
    "hidden scored": {"marginal/*": SCORE, "x": ALL},
    "kept scored": {"x": SCORE, "marginal/*": ALL},
    "default": {"x": SCORE},
}


@pytest.mark.parametrize("strategies", MIXES)
@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.slow
def test_scored_inside_the_hierarchical_bound_is_unbiased(num, strategies):
    guide = gradient(marginal(mixture, ["x"], ImportanceSampling(num, reverse)), MIXES[strategies])
    exact = jax.value_and_grad(lambda params: hierarchical_loss(params, num, reverse))(PARAMS)
    assert_unbiased(samples_of(ELBO(), guide), exact)


@pytest.mark.slow
def test_annotations_inside_reach_too():
    def annotated():
        phi = numpyro.param("phi", jnp.zeros(3))
        u = numpyro.sample("u", dist.Bernoulli(logits=phi[0]), infer={"gradient": SCORE})
        numpyro.sample("x", dist.Bernoulli(logits=phi[1] + phi[2] * u))

    wrapped = samples_of(
        ELBO(), gradient(marginal(mixture, ["x"], ImportanceSampling(2)), {"marginal/u": SCORE}), 200
    )
    inside = samples_of(ELBO(), marginal(annotated, ["x"], ImportanceSampling(2)), 200)
    default = samples_of(ELBO(), marginal(mixture, ["x"], ImportanceSampling(2)), 200)
    jax.tree.map(np.testing.assert_array_equal, wrapped, inside)
    assert np.std(default[0]) < np.std(wrapped[0])


def test_a_marginal_model_is_a_bound_with_the_right_gradient():
    """E[log p̂(x, y)] for one particle is E[log p(y | u)] under the prior of u: a closed form."""

    def hidden_model():
        u = numpyro.sample("u", dist.Bernoulli(logits=numpyro.param("theta", 0.0)))
        x = numpyro.sample("x", dist.Bernoulli(0.6))
        numpyro.sample("y", dist.Normal(1.5 * x - u, 1.0), obs=0.7)

    def guide():
        numpyro.sample("x", dist.Bernoulli(logits=numpyro.param("psi", jnp.zeros(2))[0]))

    def exact(params):
        total = 0.0
        for x, u in itertools.product((0.0, 1.0), repeat=2):
            prob = jnp.exp(bernoulli(x, params["psi"][0]) + bernoulli(u, params["theta"]))
            total -= prob * (
                bernoulli(x, jnp.log(1.5)) + normal(0.7, 1.5 * x - u) - bernoulli(x, params["psi"][0])
            )
        return total

    summed = marginal(hidden_model, ["x"], ImportanceSampling(1))
    assert_exact(ELBO(), guide, exact, model=summed)
    assert_unbiased(
        samples_of(ELBO(), gradient(guide, {"x": SCORE}), model=gradient(summed, {"marginal/u": SCORE})),
        jax.value_and_grad(exact)(PARAMS),
    )


# Doubly importance-weighted: particles of an objective around particles of a marginal


def doubly_loss(params):
    """IWELBO(2) with a marginal guide of two particles, by hand: each outer particle has x, a retained u and
    a fresh u.
    """
    outcomes = list(itertools.product((0.0, 1.0), repeat=3))

    def row(x, kept, fresh):
        log_prob = log_joint(params, kept, x) + log_reverse(params, fresh, x)
        log_w = jnp.stack([log_joint(params, u, x) - log_reverse(params, u, x) for u in (kept, fresh)])
        return log_prob, log_p(params, x) - logsumexp(log_w) + jnp.log(2)

    log_probs, log_weights = (jnp.stack(z) for z in zip(*(row(*o) for o in outcomes), strict=True))
    pairs = jnp.logaddexp(log_weights[:, None], log_weights) - jnp.log(2)
    return -jnp.sum(jnp.exp(log_probs[:, None] + log_probs) * pairs)


@pytest.mark.slow
def test_doubly_importance_weighted():
    inside = ImportanceSampling(2, reverse)
    assert_exact(IWELBO(2), gradient(marginal(mixture, ["x"], inside), {"*": ALL}), doubly_loss)
    samples = samples_of(IWELBO(2), gradient(marginal(mixture, ["x"], inside), {"*": "score"}))
    assert_unbiased(samples, jax.value_and_grad(doubly_loss)(PARAMS))


# Normalize: the ELBO of a resampled guide is the importance-weighted bound of its proposal


def proposal(given):
    numpyro.sample("x", dist.Bernoulli(logits=numpyro.param("psi", jnp.zeros(2))[0]))


def importance_weighted_loss(params, num):
    total = 0.0
    for xs in itertools.product((0.0, 1.0), repeat=num):
        log_q = jnp.stack([bernoulli(x, params["psi"][0]) for x in xs])
        log_w = jnp.stack([log_p(params, x) for x in xs]) - log_q
        total = total - jnp.exp(log_q.sum()) * (logsumexp(log_w) - jnp.log(num))
    return total


@pytest.mark.parametrize("num", [1, 3])
def test_the_bound_of_a_resampled_guide_is_importance_weighted(num):
    guide = normalize(model, {}, ImportanceSampling(num, proposal))
    assert_exact(ELBO(), gradient(guide, {"*": ALL}), lambda params: importance_weighted_loss(params, num))


RESAMPLED = {
    "index scored": {"normalize/index": SCORE, "normalize/x": ALL},
    "particles scored": {"normalize/x": SCORE},
    "both scored": {"normalize/*": SCORE},
    "both scored, with baselines": {"normalize/*": "score"},
}


@pytest.mark.parametrize("strategies", RESAMPLED)
def test_the_index_is_a_site_like_any_other(strategies):
    """What is drawn matters here: the mean of x under the law of resampling, and its gradient."""
    program = gradient(normalize(model, {}, ImportanceSampling(2, proposal)), RESAMPLED[strategies])

    def exact(params):
        total = 0.0
        for xs in itertools.product((0.0, 1.0), repeat=2):
            log_q = jnp.stack([bernoulli(x, params["psi"][0]) for x in xs])
            weights = jax.nn.softmax(jnp.stack([log_p(params, x) for x in xs]) - log_q)
            total += jnp.exp(log_q.sum()) * weights @ jnp.asarray(xs)
        return total

    mean = expectation(
        lambda params: 1.0 * simulate(numpyro.handlers.substitute(program, params)).values["x"]
    )
    samples = quick_jit(jax.vmap(lambda key: mean.value_and_grad(key, PARAMS)))(
        jax.random.split(jax.random.key(2), 20_000)
    )
    assert_unbiased(samples, jax.value_and_grad(exact)(PARAMS))


# Reparameterised inside


def gaussian(params):
    u = numpyro.sample("u", dist.Normal(params[0], 1.0))
    numpyro.sample("x", dist.Normal(params[1] * u, 1.3))


@pytest.mark.slow
def test_pathwise_through_the_particles():
    """The density itself, E[w] = N(x; ab, b² + 1.3²), has an exact gradient in a and b."""

    def exact(params):
        return jnp.exp(normal(0.9, params[0] * params[1], jnp.sqrt(params[1] ** 2 + 1.69)))

    params = jnp.array([0.3, 0.8])
    for strategy in ("reparam", "score"):
        handled = expectation(
            lambda params, strategy=strategy: jnp.exp(
                log_density(
                    gradient(marginal(gaussian, ["x"], ImportanceSampling(2)), {"marginal/u": strategy}),
                    {"x": 0.9},
                    params,
                ).total
            )
        )
        keys = jax.random.split(jax.random.key(3), 20_000)
        samples = quick_jit(jax.vmap(lambda key, e=handled: e.value_and_grad(key, params)))(keys)
        assert_unbiased(samples, jax.value_and_grad(exact)(params))


def test_exact_algorithms_leave_no_noise():
    guide = gradient(marginal(mixture, ["x"], Enumeration()), {"x": ALL})

    def exact(params):
        total = 0.0
        for x in (0.0, 1.0):
            log_q = jnp.logaddexp(log_joint(params, 0.0, x), log_joint(params, 1.0, x))
            total -= jnp.exp(log_q) * (log_p(params, x) - log_q)
        return total

    assert_exact(ELBO(), guide, exact)


def test_wrong_gradients_are_seen():
    """The comparison has power: without the score of the hidden sites, as a seeded program outside has it,
    the gradient is wrong.
    """
    guide = marginal(mixture, ["x"], ImportanceSampling(2, reverse))
    exact = jax.value_and_grad(lambda params: hierarchical_loss(params, 2, reverse))(PARAMS)

    def one(rng_key):
        def loss(params):
            draw = simulate(numpyro.handlers.substitute(guide, params), rng_key=rng_key)
            return (
                draw.log_density.total
                - log_density(numpyro.handlers.substitute(model, params), draw.values).total
            )

        return jax.value_and_grad(loss)(PARAMS)

    value, grads = quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 20_000))
    assert_unbiased(value, exact[0])
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(grads, exact[1])
