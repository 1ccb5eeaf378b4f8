"""Laws that tell the probability of any part, against tables whose sums are known."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro.handlers import seed, substitute, trace

import ppl_ext
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.transport import Marginalization, marginalization

N, K = 3, 3
TABLE = np.random.default_rng(0).uniform(0.2, 5.0, (K,) * N)  # weights: their sum is not one
EVERY = np.array(list(itertools.product(range(K), repeat=N)))
EXACT = np.log(TABLE.ravel() / TABLE.sum())
PARTS = [np.array(seen) for seen in itertools.product([False, True], repeat=N)]


class Sums(eqx.Module):
    """f, exact; or with something added that is not consistent."""

    table: jax.Array
    wrong: float = 0.0

    def __call__(self, x, seen):
        there = [(jnp.arange(K) == x[i]) | ~seen[i] for i in range(N)]
        mask = there[0][:, None, None] * there[1][:, None] * there[2]
        return jnp.log((self.table * mask).sum()) + self.wrong * jnp.sin(1.0 + (x * seen * 2.0).sum())


def law_of(wrong=0.0, order=None):
    return Marginalization(Sums(jnp.asarray(TABLE, float), wrong), N, K, order)


def exact_marginal(x, seen):
    same = (EVERY[:, seen] == x[seen]).all(1)
    return np.log(np.exp(EXACT[same]).sum())


def test_every_part_is_the_sum_over_the_rest():
    law = law_of()
    for seen in PARTS:
        found = law.log_marginal(EVERY, np.broadcast_to(seen, EVERY.shape))
        np.testing.assert_allclose(found, [exact_marginal(x, seen) for x in EVERY], atol=1e-5)


@pytest.mark.parametrize("order", [None, [2, 0, 1]])
def test_the_law_of_draws(order):
    law = law_of(order=order)
    np.testing.assert_allclose(law.log_prob(EVERY), EXACT, atol=1e-5)
    draws = np.asarray(law.sample(jax.random.key(0), (40, 500))).reshape(-1, N)
    share = (draws[:, None] == EVERY).all(2).mean(0)
    p = np.exp(EXACT)
    assert (np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / len(draws))).all()


def test_draws_have_their_law_though_nothing_is_consistent():
    """In this order x₂ comes first, then x₀: probabilities by hand from f alone."""
    law, f = law_of(1.5, [2, 0, 1]), law_of(1.5).log_part
    assert abs(float(jnp.exp(law.log_prob(EVERY)).sum()) - 1) < 1e-5
    assert np.abs(law.log_prob(EVERY) - law_of(1.5).log_prob(EVERY)).max() > 0.1  # the order counts
    x, total = jnp.array([1, 0, 2]), 0.0
    for k, site in enumerate(law.order):
        seen = jnp.zeros(N, bool).at[jnp.array(law.order[: k + 1])].set(True)
        logits = jnp.stack([f(x.at[site].set(v), seen) for v in range(K)])
        total += float(jax.nn.log_softmax(logits)[x[site]])
    np.testing.assert_allclose(law.log_prob(x), total, rtol=1e-5)
    draws = np.asarray(law.sample(jax.random.key(1), (20_000,)))
    p = np.exp(np.asarray(law.log_prob(EVERY), float))
    share = (draws[:, None] == EVERY).all(2).mean(0)
    assert (np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / len(draws))).all()


def test_one_given_others():
    seen = np.array([True, False, False])
    probs = law_of().given(2, EVERY, np.broadcast_to(seen, EVERY.shape)).probs
    for x, found in zip(EVERY, probs, strict=True):
        known = [np.exp(exact_marginal(np.array([x[0], 0, v]), ~np.eye(N, dtype=bool)[1])) for v in range(K)]
        np.testing.assert_allclose(found, np.array(known) / sum(known), atol=1e-5)


def test_it_is_a_site_in_a_plate_under_jit_and_vmap():
    def model(law):
        with numpyro.plate("rows", 4):
            return numpyro.sample("x", law)

    law = law_of()
    x = jax.jit(lambda law, key: seed(model, key)(law))(law, jax.random.key(0))
    assert x.shape == (4, N)
    total = ppl_ext.log_density(model, {"x": x}, law).total
    rows = (EVERY[:, None] == np.asarray(x)).all(2).argmax(0)
    np.testing.assert_allclose(total, EXACT[rows].sum(), rtol=1e-5)
    each = jax.vmap(lambda table: Marginalization(Sums(table), N, K).log_prob(x))(
        jnp.stack([jnp.asarray(TABLE, float), jnp.ones((K,) * N)])
    )
    np.testing.assert_allclose(each, [EXACT[rows], np.full(4, -N * np.log(K))], rtol=1e-5)


def test_what_is_no_value_has_no_mass():
    found = jax.jit(law_of().log_prob)(jnp.array([[0, 1, 3], [0, -1, 0], [0, 1, 2]]))  # NumPyro warns outside
    assert np.isneginf(found[:2]).all() and np.isfinite(found[2])


def log_density(x):
    return jnp.log(jnp.asarray(TABLE, float)[tuple(x)])


def mean_of_rest(x, seen):
    """The log of the mean over what is not there: with K to their number it is the sum."""
    return Sums(jnp.asarray(TABLE, float))(x, seen) - (~seen).sum() * jnp.log(K)


def inconsistency(bias, model):
    """The factor, of a network that puts out the bias everywhere."""
    layers = jax.tree.map(jnp.zeros_like, model._layers(jax.random.key(0)))
    layers[-1] = layers[-1][0], jnp.array([bias])
    with trace() as record, seed(rng_seed=0), substitute(data={"network": layers}):
        model()
    return float(record["inconsistency"]["fn"].log_factor)


def test_the_factor_is_the_squared_inconsistency():
    """A network that adds b to exact sums contradicts itself where one variable is left alone, in a third of
    parts: there the sum of two parts is exact, and elsewhere both sides have b.
    """
    model = marginalization(log_density, N, K, guess=mean_of_rest, batch_size=2000)
    assert abs(inconsistency(0.0, model)) < 1e-10
    share = -inconsistency(0.5, model) / 0.25
    assert abs(share - 1 / 3) < 4.5 * np.sqrt(2 / 9 / 2000)
    # one variable: of no variable f is log K + b, and the sum is that of the table
    one = marginalization(lambda x: log_density(jnp.array([x[0], 0, 0])), 1, K)
    exact = np.log(K) + 0.5 - np.log(TABLE[:, 0, 0].sum())
    np.testing.assert_allclose(inconsistency(0.5, one), -(exact**2), rtol=1e-4)


@pytest.mark.slow
def test_a_network_learns_all_parts_of_a_table():
    model = marginalization(log_density, N, K, width=32, batch_size=128)
    optim = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))
    run = fit(jax.random.key(0), model, lambda: None, ELBO(), optim, 1500, progress_bar=False)
    law = model.law(run.params)
    for seen in PARTS[1:]:
        found = law.log_marginal(EVERY, np.broadcast_to(seen, EVERY.shape))
        assert np.abs(found - np.array([exact_marginal(x, seen) for x in EVERY])).mean() < 0.05
    one = jax.tree.map(lambda leaf: leaf[0], dict(run.params))  # as SVI has them
    np.testing.assert_array_equal(model.law(one).log_prob(EVERY), law.log_prob(EVERY))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Marginalization(3, N, K), ArgumentTypeError, "log_part must be a function"),
        (lambda: Marginalization(log_density, 0, K), ArgumentError, "num_sites must be a positive"),
        (lambda: law_of(order=[0, 1, 1]), ArgumentError, "order must hold each of 0 to 2 once"),
        (lambda: law_of().log_marginal(jnp.zeros(2), jnp.ones(3, bool)), ArgumentError, "x must have 3 elem"),
        (lambda: law_of().given(3, EVERY[0], PARTS[0]), ArgumentError, "site must be one of 0 to 2"),
        (lambda: marginalization(3, N, K), ArgumentTypeError, "log_density must be a function"),
        (lambda: marginalization(log_density, N, 0), ArgumentError, "num_values must be a positive"),
        (lambda: marginalization(log_density, N, K, guess=1), ArgumentTypeError, "guess must be a function"),
        (lambda: marginalization(lambda x: x, N, K), ArgumentError, "must give one finite number"),
        (
            lambda: marginalization(lambda x: jnp.where(x[0] == 0, -jnp.inf, 0.0), N, K),
            ArgumentError,
            r"for x=\[0.*\] gives -inf.* give it a low density",
        ),
        (lambda: marginalization(log_density, N, K).law({"w": 1}), ArgumentError, "with 'network', got .*w"),
    ],
)
def test_bad_inputs_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
