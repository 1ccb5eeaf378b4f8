"""Shared random numbers of the particles: JAX's own, laid out for all lanes at once; and running sums against
NumPy's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import random
from jax.extend.random import threefry_2x32

from ppl_ext.runtime.random_bits import normals, random_words, sampled, split, threefry, to_unit
from ppl_ext.runtime.random_choices import log_uniforms, middle, to_index, to_log_unit
from ppl_ext.state_space.particle_keys import LaneKeys, _of_lane
from ppl_ext.state_space.running_sums import running_count, running_sum

KEY = random.key(7)


def test_the_hash_and_the_normals_are_those_of_jax():
    first, second = jax.jit(threefry)(
        random.key_data(KEY), jnp.arange(50, dtype=jnp.uint32), jnp.arange(50, 100, dtype=jnp.uint32)
    )
    np.testing.assert_array_equal(
        jnp.concatenate([first, second]),
        threefry_2x32(random.key_data(KEY), jnp.arange(100, dtype=jnp.uint32)),
    )
    for key in (KEY, random.PRNGKey(7), random.key(7, impl="rbg")):
        np.testing.assert_array_equal(normals(key, (7, 3)), random.normal(key, (7, 3)))
        first, second = random_words(key, 5)
        words = {*np.asarray(first).tolist(), *np.asarray(second).tolist()}
        assert first.shape == second.shape == (5,) and len(words) == 10
        assert not words & set(np.asarray(random_words(key, 5, block=1)[0]).tolist())
    with jax.enable_x64(True):
        assert normals(KEY, (3,)).dtype == jnp.float64


def test_keys_and_coins_are_those_of_jax():
    laws = (
        dist.Bernoulli(0.3),
        dist.Bernoulli(logits=jnp.linspace(-1.0, 1.0, 4)),
        dist.Bernoulli(0.3).expand([4]),
        dist.Poisson(2.0),
    )
    for key in (KEY, random.PRNGKey(7)):
        given, expected = split(key, (5, 2)), random.split(key, (5, 2))
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(_data(given), _data(expected))
    rbg = random.key(7, impl="rbg")
    for key in (KEY, random.PRNGKey(7), rbg):
        assert split(key, (5, 2)).dtype == key.dtype
        for law in laws[: 3 if key is rbg else 4]:  # NumPyro draws Poisson counts from threefry only
            given, expected = sampled(law, key, (9,)), law.sample(key, (9,))
            assert given.dtype == expected.dtype
            np.testing.assert_array_equal(given, expected)
    with jax.enable_x64(True):
        law = dist.Bernoulli(probs=jnp.full(9, 0.3))
        np.testing.assert_array_equal(sampled(law, KEY, (9,)), law.sample(KEY, (9,)))


def _data(keys):
    return keys if keys.dtype == jnp.uint32 else random.key_data(keys)


def test_words_become_indices_and_uniforms_by_scaling():
    """Against products in 64 bits, for few indices and for more than a word's half counts."""
    words = np.append(
        np.random.default_rng(0).integers(0, 2**32, 2000, np.uint64), np.array([0, 2**32 - 1], np.uint64)
    )
    for num in (1, 7, 65_536, 100_003, 2**24 + 1):
        np.testing.assert_array_equal(
            to_index(jnp.asarray(words, jnp.uint32), num), words * np.uint64(num) >> np.uint64(32)
        )
    np.testing.assert_array_equal(to_unit(jnp.asarray(words, jnp.uint32)), (words >> np.uint64(9)) / 2.0**23)


def test_the_least_of_uniforms_is_not_zero(monkeypatch):
    monkeypatch.setattr(
        "ppl_ext.runtime.random_choices.random_words", lambda key, num: (jnp.zeros(num, jnp.uint32),) * 2
    )
    np.testing.assert_allclose(log_uniforms(KEY, (2, 3)), np.full((2, 3), -33.0 * np.log(2.0)), rtol=1e-6)
    for kind in (jnp.float32, jnp.float16):
        assert 0.0 < middle(jnp.zeros((), kind)) and middle(1.0 - jnp.finfo(kind).eps) < 1.0


def test_logarithms_of_uniforms_are_of_all_bits_and_finite():
    words = np.append(
        np.random.default_rng(0).integers(0, 2**32, 2000, np.uint64), np.array([0, 1, 2**32 - 1])
    )
    found = np.asarray(to_log_unit(jnp.asarray(words, jnp.uint32)), float)
    right = np.log((words.astype(float) + 0.5) / 2.0**32)
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=2e-7)
    assert found.max() < 0.0  # so that what is certain is always taken


COVARIANCE = jnp.array([[2.0, 0.5], [0.5, 1.0]])
LAWS = {
    "normal": (lambda m: dist.Normal(m, 2.0), ()),
    "events": (lambda m: dist.Normal(m, 2.0).expand([3]).to_event(1), ()),
    "sample shape": (lambda m: dist.Normal(m, 2.0), (2,)),
    "multivariate": (lambda m: dist.MultivariateNormal(jnp.stack([m, -m]), COVARIANCE), ()),
    "plated": (lambda m: dist.MultivariateNormal(jnp.stack([m, -m]), COVARIANCE).expand([3]), ()),
}
MEANS = jnp.array([0.0, 10.0, -5.0, 3.0])


@pytest.mark.parametrize("name", LAWS)
def test_lanes_share_one_key_and_none_of_their_noise(name):
    """A lane's value is what NumPyro would draw for a law with the lanes as its first axis."""
    law, sample_shape = LAWS[name]
    found = jax.jit(lambda: LaneKeys(KEY, 4).each(lambda key, m: key.draw(law(m), 2, sample_shape), MEANS))()
    one = law(MEANS[0])
    noise = random.normal(random.fold_in(KEY, 2), (4, *one.shape(sample_shape)))
    for lane, m in enumerate(np.asarray(MEANS)):
        if one.event_dim and name != "events":
            expected = np.array([m, -m]) + noise[lane] @ np.linalg.cholesky(COVARIANCE).T
        else:
            expected = m + 2.0 * noise[lane]
        np.testing.assert_allclose(found[lane], expected, atol=1e-4)
    chains = jax.vmap(lambda k: LaneKeys(k, 4).each(lambda key, m: key.draw(law(m), 2, sample_shape), MEANS))(
        jnp.stack([KEY, KEY])
    )
    np.testing.assert_allclose(chains[1], found, atol=1e-5)


def test_lanes_out_of_order_take_their_own():
    """The lanes' numbers are handed over as they are only to lanes in order; any other ``vmap`` looks them
    up.
    """
    table = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(
        jax.vmap(_of_lane, (None, 0))(table, jnp.array([2, 0])), table[jnp.array([2, 0])]
    )
    np.testing.assert_array_equal(jax.vmap(_of_lane, (0, None))(table, 1), table[:, 1])


def test_laws_that_move_no_normals_have_a_key_in_each_lane():
    found = LaneKeys(KEY, 4).each(lambda key, rate: key.draw(dist.Poisson(rate), 2), jnp.full(4, 50.0))
    own = [dist.Poisson(50.0).sample(random.fold_in(random.fold_in(KEY, 2), lane)) for lane in range(4)]
    np.testing.assert_array_equal(found, own)
    assert len(set(own_value.item() for own_value in own)) > 1


@pytest.mark.parametrize("size", [1, 31, 33, 1000, 5000, 20_000])
def test_running_sums(size):
    x = np.random.default_rng(size).gamma(0.3, size=(2, size)).astype(np.float32)
    x[:, 1::3] = 0.0
    np.testing.assert_allclose(jax.jit(running_sum)(x), np.cumsum(x.astype(np.float64), -1), rtol=2e-6)
    counts = np.random.default_rng(size).integers(0, 5, size).astype(np.int32)
    for most in (5 * size, 2**25):
        np.testing.assert_array_equal(
            jax.jit(running_count, static_argnums=1)(counts, most), np.cumsum(counts)
        )
