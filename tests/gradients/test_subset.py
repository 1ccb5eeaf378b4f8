"""``Subset``: densities, draws and gradients against sums over all ordered choices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext import expectation, replicate, simulate
from ppl_ext.errors import ArgumentError, StrategyError
from ppl_ext.gradients.subsets import SoftTopK, StraightThrough, Subset
from ppl_ext.handlers import gradient
from ppl_ext.infer import SMC, fit
from ppl_ext.objectives import ELBO
from tests.oracles import assert_unbiased

KEY = jax.random.key(0)
LOGITS = jnp.array([0.5, -1.0, 0.2, 1.1])
VALUE = jnp.array([1.0, -2.0, 0.5, 3.0])
ORDERED = list(itertools.permutations(range(4), 2))
ROWS = jnp.stack([jax.nn.one_hot(jnp.array(pair), 4) for pair in ORDERED])


@jax.jit
def by_hand(logits):
    """Probabilities of all ordered pairs."""
    w = jnp.exp(logits)
    return jnp.stack([w[i] / w.sum() * w[j] / (w.sum() - w[i]) for i, j in ORDERED])


def cost(mask):
    return (mask @ VALUE) ** 2


def test_probabilities_are_those_of_draws_without_replacement():
    law = Subset(LOGITS, 2)
    np.testing.assert_allclose(jnp.exp(law.log_prob(ROWS)), by_hand(LOGITS), rtol=1e-5)
    np.testing.assert_allclose(np.exp(law.log_prob(ROWS)).sum(), 1.0, rtol=1e-5)
    slopes, exact = jax.jit(
        lambda x: (
            jax.jacobian(lambda x: Subset(x, 2).log_prob(ROWS))(x),
            jax.jacobian(lambda x: jnp.log(by_hand(x)))(x),
        )
    )(LOGITS)
    np.testing.assert_allclose(slopes, exact, atol=1e-5)
    whole = jnp.stack([jax.nn.one_hot(jnp.array(p), 4) for p in itertools.permutations(range(4))])
    np.testing.assert_allclose(jnp.exp(Subset(LOGITS, 4).log_prob(whole)).sum(), 1.0, rtol=1e-5)


def test_draws_follow_the_law():
    """20,000 draws: within 4.5 standard errors of each frequency."""
    draws = Subset(LOGITS, 2).sample(KEY, (20_000,))
    places = np.asarray(draws.argmax(-1))
    found = np.array([(places == np.array(pair)).all(-1).mean() for pair in ORDERED])
    p = np.asarray(by_hand(LOGITS))
    assert (abs(found - p) < 4.5 * (p * (1 - p) / 20_000) ** 0.5).all()
    assert (draws.sum((-1, -2)) == 2).all() and (draws.sum(-2) <= 1).all()


def slopes_of(strategy, num=4_000, particles=2):
    def mean_cost(logits):
        def one():
            z = numpyro.sample("z", Subset(logits, 2), infer={"gradient": strategy} if strategy else {})
            return cost(z.sum(-2))

        return replicate(one, particles).mean()

    keys = jax.random.split(KEY, num)
    return jax.jit(jax.vmap(expectation(mean_cost).value_and_grad, (0, None)))(keys, LOGITS)


EXACT = jax.jit(jax.value_and_grad(lambda x: by_hand(x) @ jax.vmap(cost)(ROWS.sum(-2))))(LOGITS)


def test_the_default_is_unbiased():
    samples = slopes_of(None)
    assert_unbiased(samples, EXACT)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, (EXACT[0], 1.2 * EXACT[1]))


def test_straight_through_draws_hard_and_is_biased():
    values, slopes = slopes_of(StraightThrough(0.5), particles=1)
    assert_unbiased(values, EXACT[0])
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(slopes, EXACT[1])


@pytest.mark.parametrize("strategy", [StraightThrough(0.7), SoftTopK(0.7)], ids=repr)
def test_slopes_through_the_sampler_are_those_of_its_soft_rows(strategy):
    """A linear cost has the same slope under both: the derivative of the soft mask, by differences."""

    def linear(logits):
        return numpyro.sample("z", Subset(logits, 2), infer={"gradient": strategy}).sum(-2) @ VALUE

    def soft(logits):
        strategy = SoftTopK(0.7)
        return numpyro.sample("z", Subset(logits, 2), infer={"gradient": strategy}).sum(-2) @ VALUE

    _, slope = expectation(linear).value_and_grad(KEY, LOGITS)
    step = 1e-2 * jnp.eye(4)
    ends = [jnp.stack([expectation(soft).value(KEY, LOGITS + s * d) for d in step]) for s in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-2, atol=5e-3)


def test_soft_rows_tend_to_the_draw():
    def rows(strategy):
        def run():
            return numpyro.sample("z", Subset(LOGITS, 2), infer={"gradient": strategy})

        return [expectation(lambda i=i, j=j: run()[i, j]).value(KEY) for i in range(2) for j in range(4)]

    hard, cold, warm = rows(StraightThrough(0.5)), rows(SoftTopK(0.01)), rows(SoftTopK(1.0))
    np.testing.assert_allclose(hard, cold, atol=1e-3)
    np.testing.assert_allclose(np.reshape(warm, (2, 4)).sum(-1), 1.0, rtol=1e-5)
    assert max(warm) < 0.999


def subset_model(y, subsample=None):
    with numpyro.plate("rows", 3, subsample_size=subsample) as rows:
        z = numpyro.sample("z", Subset(jnp.zeros(4), 2))
        numpyro.sample("y", dist.Normal(z.sum(-2) @ VALUE, 0.5), obs=y[rows])


def subset_guide(y, subsample=None):
    logits = numpyro.param("logits", jnp.zeros((3, 4)))
    with numpyro.plate("rows", 3, subsample_size=subsample) as rows:
        numpyro.sample("z", Subset(logits[rows], 2))


@pytest.mark.parametrize("subsample", [None, 2])
@pytest.mark.parametrize("strategy", ["score", StraightThrough(0.5)], ids=repr)
def test_it_stands_in_plates_of_a_fit(subsample, strategy):
    """Data that single pairs explain: 4 = 1 + 3, −1.5 = −2 + 0.5, 1.5 = 1 + 0.5."""
    y = jnp.array([4.0, -1.5, 1.5])
    guide = numpyro.handlers.scale(gradient(subset_guide, {"z": strategy}), scale=2.0)
    model = numpyro.handlers.scale(subset_model, scale=2.0)
    loss = ELBO(num_particles=8)
    run = fit(KEY, model, guide, loss, optax.adam(0.05), 400, y, subsample=subsample, progress_bar=False)
    if strategy == "score" and subsample:
        assert run.losses[0, -50:].mean() < run.losses[0, :50].mean() / 3
    elif strategy == "score":
        masks = [set(np.argsort(row)[-2:].tolist()) for row in run.params["logits"][0]]
        assert masks == [{0, 3}, {1, 2}, {0, 2}]
    assert run.to_arviz(num_samples=10).posterior["z"].shape == (1, 10, 3, 2, 4)


def test_what_is_refused():
    for k in (0, 5, 1.5, True):
        with pytest.raises(ArgumentError, match="k must be a number from 1 to the 4 items.* Choose fewer"):
            Subset(LOGITS, k)
    with pytest.raises(ArgumentError, match="logits must have an axis of items"):
        Subset(0.0, 1)

    def model():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("chosen", Subset(LOGITS, 5))

    for run in (
        lambda: ELBO().loss(KEY, {}, model, model),
        lambda: simulate(model, rng_key=KEY),
        lambda: SMC(model, 20).run(KEY),
    ):
        with pytest.raises(ArgumentError, match="k must be a number from 1 to the 4 items") as told:
            run()
        assert "The program 'model' stood after site 'mu'." in told.value.__notes__
    with pytest.raises(ArgumentError, match="temperature"):
        StraightThrough(0.0)

    def coin(p):
        return numpyro.sample("c", dist.Bernoulli(p), infer={"gradient": SoftTopK()})

    with pytest.raises(StrategyError, match=r"SoftTopK\(temperature=0.5\) cannot serve site 'c'"):
        expectation(lambda p: coin(p) * 1.0).value(KEY, 0.3)
