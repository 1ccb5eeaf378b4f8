"""Densities whose derivatives NumPyro gets wrong at some points, and the wrappers around them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import log_density
from ppl_ext.densities.distributions import log_prob, prob

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py

LOGITS = (-jnp.inf, -200.0, -1.3, -0.0, 0.0, 0.4, 90.0, jnp.inf)


@pytest.mark.parametrize("value", [0, 1, True, False, 0.0, 1.0])
@pytest.mark.parametrize("logit", LOGITS)
def test_bernoulli_on_logits(logit, value):
    """log p and its first two derivatives, σ, against their formulas: at zero and infinite logits too."""

    def density(x):
        return log_prob(dist.Bernoulli(logits=x, validate_args=False), value)

    logit = jnp.float32(logit)
    p = 1 / (1 + np.exp(-np.float64(logit)))
    with np.errstate(over="ignore", divide="ignore"):
        expected = -np.logaddexp(0.0, -np.float64(logit) if value else np.float64(logit))
    np.testing.assert_allclose(density(logit), expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(jax.grad(density)(logit), float(value) - p, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(jax.grad(jax.grad(density))(logit), -p * (1 - p), rtol=1e-5, atol=1e-7)


def test_numpyro_is_wrong_at_zero():
    """The reason for this module; once this fails, the module has done its work."""
    grads = [float(jax.grad(lambda x, y=y: dist.Bernoulli(logits=x).log_prob(y))(0.0)) for y in (0, 1)]
    assert grads != [-0.5, 0.5]


def unchecked(logit):
    return dist.Bernoulli(logits=logit, validate_args=False)  # a fraction is no Bernoulli's value


@pytest.mark.parametrize("value", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("logit", LOGITS[1:-1])
def test_bernoulli_of_a_fraction(logit, value):
    """Images in grey are scored like that: v l − log(1 + e^l), and its derivative by the value is the
    logit.
    """
    np.testing.assert_allclose(
        log_prob(unchecked(logit), value), unchecked(logit).log_prob(value), rtol=1e-6, atol=1e-6
    )
    slope = jax.grad(lambda v: log_prob(unchecked(jnp.float32(logit)), v))(value)
    np.testing.assert_allclose(slope, logit, rtol=1e-6)


WRAPPERS = {
    "plain": lambda fn: fn,
    "independent": lambda fn: fn.to_event(1),
    "expanded": lambda fn: fn.expand((2, 3)),
    "masked": lambda fn: fn.mask(jnp.array([True, False, True])),
    "all": lambda fn: fn.expand((2, 3)).mask(jnp.array([True, False, True])).to_event(1),
    "mixture": lambda fn: dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(3)), fn),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper):
    """The mended law keeps NumPyro's value and shape under every wrapper, and its derivative at zero is
    mended there.
    """

    def density(logits, score):
        fn = WRAPPERS[wrapper](dist.Bernoulli(logits=logits))
        value = jnp.ones(fn.batch_shape + fn.event_shape)
        return score(fn, value)

    logits = jnp.array([0.3, -2.0, 1.1])
    theirs = density(logits, lambda fn, v: fn.log_prob(v))
    ours = density(logits, log_prob)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    away = jax.grad(lambda x: density(x, lambda fn, v: fn.log_prob(v)).sum())(logits + 1e-3)
    near = jax.grad(lambda x: density(x, log_prob).sum())(jnp.zeros(3))
    sign = jnp.sign(jnp.abs(away))
    assert bool(jnp.all((near > 0) == (sign > 0))), near


def test_a_law_without_bernoulli_is_the_same_object():
    """Nothing is copied where there is nothing to mend, so a subclass of a user's keeps its identity."""
    from ppl_ext.densities.distributions import _mended

    fn = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    assert _mended(fn) is fn


def test_log_density_starts_right_at_zero_logits():
    """A guide or model of zero logits: the score of one success is ½."""

    def model():
        numpyro.sample("y", dist.Bernoulli(logits=numpyro.param("logit", 0.0)), obs=1)

    grad = jax.grad(lambda x: log_density(numpyro.handlers.substitute(model, {"logit": x}), {}).total)(0.0)
    assert float(grad) == 0.5


PROBABILITIES = {
    "bernoulli on probs": (lambda p: dist.Bernoulli(p), [lambda p: 1 - p, lambda p: p]),
    "expanded": (lambda p: dist.Bernoulli(p).expand((2,)), [lambda p: 1 - p, lambda p: p]),
    "categorical on probs": (
        lambda p: dist.Categorical(jnp.stack([p, 1 - p, 0 * p])),
        [lambda p: p, lambda p: 1 - p, lambda p: 0 * p],
    ),
    "categorical on logits": (
        lambda p: dist.Categorical(logits=jnp.stack([p, -p])),
        [lambda p: jax.nn.sigmoid(2 * p), lambda p: jax.nn.sigmoid(-2 * p)],
    ),
    "bernoulli on logits": (
        lambda p: dist.Bernoulli(logits=p),
        [lambda p: jax.nn.sigmoid(-p), lambda p: jax.nn.sigmoid(p)],
    ),
    "binomial": (lambda p: dist.Binomial(2, 0.2 + 0.5 * p), [lambda p: (0.8 - 0.5 * p) ** 2]),
}


@pytest.mark.parametrize("at", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", PROBABILITIES)
def test_prob(name, at):
    """Probabilities of a finite law and their derivatives, at 0 and 1 too, where NumPyro's logarithms are
    clamped.
    """
    law, expected = PROBABILITIES[name]
    for k, formula in enumerate(expected):
        value = jnp.asarray(prob(law(jnp.float32(at)), jnp.int32(k)))
        assert value.shape == law(jnp.float32(at)).batch_shape
        np.testing.assert_allclose(value, formula(at), rtol=1e-5, atol=1e-7)
        grad = jax.grad(lambda p, k=k: jnp.mean(prob(law(p), jnp.int32(k))))(jnp.float32(at))
        np.testing.assert_allclose(
            grad, jax.grad(lambda p, f=formula: jnp.asarray(f(p)))(jnp.float32(at)), rtol=1e-5, atol=1e-7
        )
