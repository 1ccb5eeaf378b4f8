"""Covariances of wide networks against closed forms written another way, quadrature, and networks of width
4096.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors import nngp_kernel
from ppl_ext.priors.targets.nngp import expected_product

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

X = np.array([[0.3, -1.0], [1.5, 0.2], [-0.7, 0.9], [0.3, -1.0]])  # a duplicate on purpose


def by_hand(x, depth, activation, weight, bias):
    """Scalar loops in double precision, straight from the angle."""
    n, d = x.shape
    k = bias**2 + weight**2 * x @ x.T / d
    for _ in range(depth):
        new = np.zeros_like(k)
        for i in range(n):
            for j in range(n):
                a, b, c = k[i, i], k[j, j], k[i, j]
                angle = np.arccos(np.clip(c / np.sqrt(a * b), -1, 1))
                new[i, j] = {
                    "relu": np.sqrt(a * b) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi),
                    "step": 0.5 - angle / (2 * np.pi),
                    "erf": 2 / np.pi * np.arcsin(2 * c / np.sqrt((1 + 2 * a) * (1 + 2 * b))),
                    "linear": c,
                }[activation]
        k = bias**2 + weight**2 * new
    return k


@pytest.mark.parametrize("activation", ["relu", "erf", "linear", "step"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_recursion_matches_closed_forms(activation, depth):
    ours = nngp_kernel(X, depth=depth, activation=activation, weight_scale=1.3, bias_scale=0.4)
    # The step's covariance has infinite slope where inputs coincide: single precision of the cosine becomes
    # its square root.
    np.testing.assert_allclose(
        ours, by_hand(X, depth, activation, 1.3, 0.4), rtol=1e-5 if activation != "step" else 1e-3
    )
    assert not np.allclose(ours, by_hand(X, depth, activation, 1.3, 0.5), rtol=1e-3)


def test_the_single_layer_expectations_match_quadrature():
    a, b, c = 1.3, 0.6, -0.4
    chol = np.linalg.cholesky([[a, c], [c, b]])

    def exact(phi):
        def integrand(s, t):
            u, v = chol @ [t, s]
            return phi(u) * phi(v) * np.exp(-(s**2 + t**2) / 2) / (2 * np.pi)

        return integrate.dblquad(integrand, -8, 8, -8, 8, epsabs=1e-7)[0]

    args = [jnp.asarray(v) for v in (a, b, c)]
    np.testing.assert_allclose(expected_product(jnp.tanh, *args), exact(np.tanh), atol=1e-5)
    np.testing.assert_allclose(expected_product("relu", *args), exact(lambda u: max(u, 0.0)), atol=1e-5)


def test_gauss_hermite_agrees_with_the_closed_form_of_erf():
    ours = nngp_kernel(X, depth=2, activation=jax.scipy.special.erf, weight_scale=1.1, bias_scale=0.3)
    np.testing.assert_allclose(
        ours, nngp_kernel(X, depth=2, activation="erf", weight_scale=1.1, bias_scale=0.3), atol=1e-5
    )


@pytest.mark.parametrize(
    ("activation", "phi"), [("relu", jax.nn.relu), ("erf", jax.scipy.special.erf), ("tanh", jnp.tanh)]
)
def test_wide_networks_have_these_covariances(activation, phi):
    """Width 4096, one hidden layer, 40 draws of it; the readout's expectation is exact given the hidden
    layer.
    """
    width, draws = 4096, 40
    x = jnp.asarray(X, jnp.float32)

    @jax.jit
    def second_moment(key):
        kw, kb = jax.random.split(key)
        hidden = phi(
            x @ (1.2 * jax.random.normal(kw, (2, width)) / jnp.sqrt(2.0))
            + 0.5 * jax.random.normal(kb, (width,))
        )
        return 1.2**2 * hidden @ hidden.T / width + 0.5**2

    sample = np.asarray(jax.lax.map(second_moment, jax.random.split(jax.random.key(1), draws)), np.float64)
    ours = np.asarray(
        nngp_kernel(
            X,
            depth=1,
            activation=jnp.tanh if activation == "tanh" else activation,
            weight_scale=1.2,
            bias_scale=0.5,
        )
    )
    error = sample.std(0, ddof=1) / np.sqrt(draws)
    assert (np.abs(sample.mean(0) - ours) < 4.5 * error + 1e-6).all()  # 16 entries: one false alarm in 1e4
    wrong = np.asarray(nngp_kernel(X, depth=1, activation="linear", weight_scale=1.2, bias_scale=0.5))
    assert (np.abs(sample.mean(0) - wrong) > 4.5 * error).any()


@pytest.mark.slow
def test_the_gradient_is_finite_where_inputs_coincide():
    def total(x):
        return nngp_kernel(x, depth=2, activation="relu").sum()

    x = jnp.asarray(X, jnp.float32)
    slope = jax.grad(total)(x)
    assert np.isfinite(slope).all()
    step = 1e-2 * jnp.zeros_like(x).at[1, 0].set(1.0)
    np.testing.assert_allclose((total(x + step) - total(x - step)) / 2e-2, slope[1, 0], rtol=1e-2)


@pytest.mark.slow
def test_scales_of_their_own_for_each_layer_and_one_dimensional_inputs():
    x = np.linspace(-1, 1, 4)
    one = nngp_kernel(x, depth=1, activation="linear", weight_scale=[2.0, 3.0], bias_scale=[0.0, 0.5])
    np.testing.assert_allclose(one, 36.0 * np.outer(x, x) + 0.25, rtol=1e-5)
    assert nngp_kernel(x, x[:3], depth=2).shape == (4, 3)
    assert nngp_kernel(np.zeros((2, 3)), depth=1, bias_scale=0.0).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"depth": -1}, ArgumentError, "depth"),
        ({"depth": True}, ArgumentError, "depth"),
        ({"depth": 1, "activation": "gelu"}, ArgumentError, "'relu'"),
        ({"depth": 1, "activation": 3}, ArgumentTypeError, "activation"),
        ({"depth": 1, "weight_scale": [1.0]}, ArgumentError, "2, one a layer"),
        ({"depth": 1, "bias_scale": -1.0}, ArgumentError, "bias_scale"),
        ({"depth": 1, "bias_scale": float("nan")}, ArgumentError, "bias_scale"),
        ({"depth": 1, "x2": np.zeros((2, 3))}, ArgumentError, "columns"),
        ({"depth": 1, "x2": "no"}, ArgumentTypeError, "x2"),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        nngp_kernel(X, **options)
