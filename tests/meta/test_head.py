"""Networks with a local last layer: flax nnx, flax linen and equinox; and all weights local, with a diagonal
law.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.contrib.module import eqx_module, flax_module, nnx_module, random_nnx_module

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta import NIW, EpisodeStream, LaplaceGGN, evaluate, head, lift
from tests.meta.test_lift import KEY, quiet

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

NOISE, WIDTH = 0.2, 3


def linen():
    module = nn.Dense(WIDTH)
    return lambda x: jnp.tanh(flax_module("net", module, input_shape=(1, 1))(x[:, None]))


def new_nnx():
    module = nnx.Linear(1, WIDTH, rngs=nnx.Rngs(0))
    return lambda x: jnp.tanh(nnx_module("net", module)(x[:, None]))


def equinox():
    module = eqx.nn.Linear(1, WIDTH, key=KEY)
    return lambda x: jnp.tanh(jax.vmap(eqx_module("net", module))(x[:, None]))


def model_of(features):
    def episode(x, y=None):
        f = head("weights", features(x))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(f, NOISE), obs=y)

    return episode


def sines(num=8, sizes=(6,), seed=0):
    rng, out = np.random.default_rng(seed), []
    for i in range(num):
        x = rng.uniform(-2, 2, sizes[i % len(sizes)]).astype(np.float32)
        out.append(
            (x, (rng.uniform(0.5, 2) * np.sin(x) + NOISE * rng.normal(size=len(x))).astype(np.float32))
        )
    return out


@pytest.mark.parametrize(
    "make",
    [new_nnx, pytest.param(linen, marks=pytest.mark.slow), pytest.param(equinox, marks=pytest.mark.slow)],
)
def test_features_are_shared_and_the_head_is_exact(make):
    """After training the head's posterior is that of Bayesian regression on the trained features, bias and
    all.
    """
    data = sines(sizes=(6, 4))
    result = quiet(
        lift(model_of(make()), ["weights"]), EpisodeStream(data), num_steps=40, optim=optax.adam(0.02)
    )
    params = result.shared["net$params"]
    first = result.hierarchy.form.params["net$params"]
    assert any(
        np.abs(a - b).max() > 1e-2
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(first), strict=True)
    )
    assert result.losses[-1] < result.losses[5]
    x, y = data[0]
    with numpyro.handlers.substitute(data={"net$params": params}), numpyro.handlers.seed(rng_seed=0):
        f = np.concatenate([make()(jnp.asarray(x)), np.ones((len(x), 1))], 1)
    post = result.adapt(KEY, x, y, prior="mode", num_samples=3)
    prior = np.linalg.inv(np.asarray(result.niw.at_mode().covariance_matrix))
    covariance = np.linalg.inv(f.T @ f / NOISE**2 + prior)
    mean = covariance @ (f.T @ y / NOISE**2 + prior @ np.asarray(result.niw.loc))
    sd = np.sqrt(np.diagonal(covariance))
    assert np.abs((post.mean - mean) / sd).max() < 0.05
    np.testing.assert_allclose(post.covariance / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.02)
    assert post.samples["weights"].shape == (3, WIDTH + 1)


@pytest.mark.slow
def test_classes_have_a_head_with_a_column_each():
    rng = np.random.default_rng(0)
    data = []
    for _ in range(6):
        centres = rng.normal(size=(3, 2)) * 3
        label = np.repeat(np.arange(3), 4)
        data.append(((centres[label] + 0.3 * rng.normal(size=(12, 2))).astype(np.float32), label))

    def episode(x, y=None):
        logits = head("weights", x, num_outputs=3)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    result = quiet(lift(episode, ["weights"]), data, local_solver=LaplaceGGN(num_steps=6), num_steps=20)
    assert result.niw.dim == 9 and result.niw.structure == "full"
    scores = evaluate(result, KEY, data, data, num_samples=100)
    assert scores.accuracy.mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["diagonal", "low_rank"])
def test_all_weights_local_with_a_diagonal_law(structure):
    """Every weight of a network by a pattern of names: its own in each episode, from a prior located at
    initial weights.
    """

    def episode(x, y=None):
        module = nnx.Sequential(
            nnx.Linear(1, 6, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(6, 1, rngs=nnx.Rngs(1))
        )
        net = random_nnx_module("net", module, prior=dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(net(x[:, None])[:, 0], NOISE), obs=y)

    data = sines(12, (8,))
    loc = 0.7 * np.random.default_rng(1).normal(size=19).astype(np.float32)
    lifted = lift(episode, ["net/*"], structure="diagonal", prior=NIW(loc, 0.1, np.ones(19), 3.0))
    assert lifted.hierarchy(EpisodeStream(data)).form.dim == 19
    result = quiet(lifted, data, local_solver=LaplaceGGN(num_steps=5, structure=structure), num_steps=40)
    assert result.niw.diagonal and result.losses[-1] < result.losses[0] - 1.0
    new = sines(6, (12,), seed=9)
    scores = evaluate(
        result, KEY, [(x[:6], y[:6]) for x, y in new], [(x[6:], y[6:]) for x, y in new], num_samples=100
    )
    spread = np.concatenate([y for _, y in new]).std()
    assert scores.nll.mean() < 0.5 * np.log(2 * np.pi * spread**2) + 0.5  # better than a Normal around zero


def test_what_a_head_refuses():
    with pytest.raises(ArgumentError, match=r"'w' must have shape \(rows, p\), got \(3,\)"):
        head("w", jnp.ones(3))
    with pytest.raises(ArgumentTypeError, match="name of a site"):
        head(3, jnp.ones((3, 1)))
    with pytest.raises(ArgumentError, match="num_outputs must be a positive"):
        head("w", jnp.ones((3, 1)), num_outputs=0)
