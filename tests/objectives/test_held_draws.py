"""Objectives that hold draws fixed, or carry state from step to step: exact expected values and gradients, low particle counts.

Gradients here are prescribed and not those of the expected value, so the oracle sums a surrogate of its own over all outcomes. 20,000
replicates with fixed keys, within 4.5 standard errors; about 60 coordinates, so a right estimator fails fresh keys with probability 4e-4.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI

from ppl_ext import log_density, marginal, simulate
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.direction import Estimate, powered
from ppl_ext.errors import ArgumentError, DirectionError, ModelError
from ppl_ext.gradients import MeasureValued, ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import (
    ELBO,
    IWELBO,
    ChiUpperBound,
    ConditionalImportanceSampling,
    MarkovScoreClimbing,
    Move,
    ReweightedWakeSleep,
    Sleep,
    Thermodynamic,
    constrain,
    kl,
)
from tests.oracles import assert_unbiased, bernoulli, normal, quick_jit, replicates, table
from tests.problems import PROBLEMS

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
SCORE = ScoreFunction(baseline=None)


def held(problem, num_particles, value, signal):
    """Exact mean of ``value`` and of the gradient of ``signal``, functions of (log w held, log p, log q), each (K, tuples, elements)."""

    def both(params):
        def surrogate(moving):
            log_probs, *fixed = stop_gradient(table(problem.oracle, params, None))
            _, *moved = table(problem.oracle, moving, None, frozen=params)
            draws = np.indices((len(log_probs),) * num_particles).reshape(num_particles, -1)
            probs = jnp.exp(log_probs[draws].sum(0))
            log_w = (fixed[0] - fixed[1])[draws]
            slope = signal(log_w, moved[0][draws], moved[1][draws]).sum(-1)
            return -(probs * slope).sum(), -(probs * value(log_w).sum(-1)).sum()

        grads, of_value = jax.grad(surrogate, has_aux=True)(params)
        return of_value, grads

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, quick_jit(both)(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), problem.params)))


def log_mean(x):
    return logsumexp(x, axis=0) - jnp.log(len(x))


def wake(log_w, log_p, log_q):
    return (jax.nn.softmax(log_w, axis=0) * (log_p + log_q)).sum(0)


@pytest.mark.parametrize(
    ("problem", "num_particles"), [("one_bernoulli", 3), ("chain", 2), ("plated_local", 2), ("bernoulli_then_normal", 2)]
)
def test_both_wakes(problem, num_particles):
    problem = PROBLEMS[problem]
    exact = held(problem, num_particles, log_mean, wake)
    assert_unbiased(replicates(ReweightedWakeSleep(num_particles), problem), exact)


def test_a_wake_with_wrong_weights_is_caught():
    problem = PROBLEMS["one_bernoulli"]
    for wrong in (
        lambda log_w, log_p, log_q: (jax.nn.softmax(log_w, axis=0) * (log_p - log_q)).sum(0),
        lambda log_w, log_p, log_q: (log_p + log_q).mean(0),
        lambda log_w, log_p, log_q: (jax.nn.softmax(log_w, axis=0) * log_p).sum(0),
    ):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(replicates(ReweightedWakeSleep(3), problem), held(problem, 3, log_mean, wrong))


# Asleep: a coin seen through a loaded one

P_Z, P_Y = 0.35, (0.2, 0.7)


def dreamer(y):
    z = numpyro.sample("z", dist.Bernoulli(P_Z))
    numpyro.sample("y", dist.Bernoulli(jnp.asarray(P_Y)[z]), obs=y)


def recogniser(y):
    phi = numpyro.param("phi", jnp.zeros(2))
    numpyro.sample("z", dist.Bernoulli(logits=phi[0] + phi[1] * y))


def asleep(params):
    total = 0.0
    for z, y in itertools.product((0, 1), repeat=2):
        p = (P_Z if z else 1 - P_Z) * (P_Y[z] if y else 1 - P_Y[z])
        total = total - p * bernoulli(z, params["phi"][0] + params["phi"][1] * y)
    return total


PHI = {"phi": jnp.array([0.3, -0.6])}


def slept(loss, model=dreamer, guide=recogniser, params=PHI, data=1):
    run = jax.value_and_grad(lambda params, key: loss.loss(key, params, model, guide, data))
    return quick_jit(jax.vmap(run, in_axes=(None, 0)))(params, jax.random.split(KEY, 20_000))


def test_sleep():
    exact = jax.value_and_grad(asleep)(PHI)
    samples = slept(Sleep(2))
    assert_unbiased(samples, exact)
    assert_unbiased(slept(Sleep(2), guide=gradient(recogniser, {"z": "score"})), exact)  # a handler hides the names of the arguments
    awake = jax.value_and_grad(lambda params: -P_Z * bernoulli(1, params["phi"].sum()) - (1 - P_Z) * bernoulli(0, params["phi"].sum()))(PHI)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, awake)  # the data held at 1


def test_sleep_beside_the_wakes():
    """The value is the bound, the gradient a mixture."""
    share, num_particles = 0.25, 2
    logits = np.log(np.array([1 - P_Z, P_Z]) * np.array(P_Y))

    def guide_log_prob(params, z):
        return jnp.stack([bernoulli(k, params["phi"][0] + params["phi"][1]) for k in (0, 1)])[z]

    def mixture(params):
        total, bound = share * asleep(params), 0.0
        for draws in itertools.product((0, 1), repeat=num_particles):
            z = np.array(draws)
            log_q = guide_log_prob(params, z)
            log_w = stop_gradient(logits[z] - log_q)
            prob = jnp.exp(stop_gradient(log_q.sum()))
            bound = bound - prob * log_mean(log_w)
            total = total - (1 - share) * prob * (jax.nn.softmax(log_w) * log_q).sum()
        return total, bound

    grads, value = jax.grad(mixture, has_aux=True)(PHI)
    assert_unbiased(slept(ReweightedWakeSleep(num_particles, sleep=share)), (value, grads))


@pytest.mark.slow
def test_dreams_in_a_scan_and_by_other_names():
    def model(series):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(0.8 * x, 1.0))
            numpyro.sample("seen", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, jnp.zeros(()), series)

    def guide(series):
        slope = numpyro.param("slope", 0.1)

        def step(x, y):
            return numpyro.sample("x", dist.Normal(slope * y, 1.0)), None

        scan(step, jnp.zeros(()), series)

    data = jnp.zeros(3)
    with pytest.raises(ArgumentError, match=r"which argument of the guide holds the data\? It takes \(series\).*'seen'"):
        Sleep().loss(KEY, {"slope": 0.1}, model, guide, data)
    # E[y x] / E[y²] minimises the loss: variances of x are 1, 1.64, 2.0496, and those of y larger by a quarter.
    x = np.array([1.0, 1.64, 2.0496]).sum()
    run = jax.grad(lambda params, key: Sleep(1, data={"series": "seen"}).loss(key, params, model, guide, data))
    grads = quick_jit(jax.vmap(run, in_axes=(None, 0)))({"slope": jnp.asarray(x / (x + 0.75))}, jax.random.split(KEY, 20_000))
    assert_unbiased(grads, {"slope": np.zeros(())})
    with pytest.raises(ArgumentError, match="the guide takes"):
        Sleep(data={"y": "seen"}).loss(KEY, {"slope": 0.1}, model, guide, data)
    with pytest.raises(ModelError, match="has shape"):
        Sleep(data={"series": "seen"}).loss(KEY, {"slope": 0.1}, lambda s: model(jnp.zeros(2)), guide, data)


# The covariance gradient

BETAS = [0.0, 0.1, 10**-0.5, 1.0]


def left_sum(weigh):
    def total(log_w, *rest):
        return sum((b - a) * weigh(a, jax.nn.softmax(a * log_w, axis=0), log_w, *rest) for a, b in itertools.pairwise(BETAS))

    return total


tvo_value = left_sum(lambda beta, w, f: (w * f).sum(0))


def covariance(beta, w, f, log_p, log_q):
    mean = (w * f).sum(0)
    return (w * (log_p - log_q)).sum(0) + (w * (f - mean) * (beta * log_p + (1 - beta) * log_q)).sum(0)


@pytest.mark.parametrize(("problem", "num_particles"), [("one_bernoulli", 3), ("chain", 2), ("plated_local", 2)])
def test_the_covariance_gradient(problem, num_particles):
    problem = PROBLEMS[problem]
    samples = replicates(Thermodynamic(num_particles, 3), problem)
    assert_unbiased(samples, held(problem, num_particles, tvo_value, left_sum(covariance)))
    if problem.name == "one_bernoulli":
        without = left_sum(lambda beta, w, f, log_p, log_q: (w * (log_p - log_q)).sum(0))
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples, held(problem, num_particles, tvo_value, without))


@pytest.mark.slow
def test_with_many_particles_it_is_the_gradient_of_the_sum():
    """Bias and noise both fade: at 20,000 particles the gradient is that of exact expectations, to 2%."""
    problem = PROBLEMS["chain"]

    def exact(params):
        _, log_p, log_q = (x.reshape(6) for x in table(problem.oracle, params, None))
        total = 0.0
        for a, b in itertools.pairwise(BETAS):
            path = jax.nn.softmax(a * log_p + (1 - a) * log_q)
            total = total - (b - a) * (path * (log_p - log_q)).sum()
        return total

    params = jax.tree.map(jnp.asarray, problem.params)
    expected = jax.grad(exact)(params)
    actual = quick_jit(jax.grad(lambda params: Thermodynamic(20_000, 3).loss(KEY, params, problem.model, problem.guide)))(params)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=0.02), actual, expected)


# The upper bound


def chi_exact(problem, log_c, order):
    def bound(params):
        log_probs, log_p, log_q = table(problem.oracle, params, None)
        log_w = (log_p - log_q).sum(-1)
        return ((jnp.exp(log_probs + order * log_w - log_c)).sum() + log_c - 1) / order

    return jax.tree.map(np.asarray, quick_jit(jax.value_and_grad(bound))(jax.tree.map(jnp.asarray, problem.params)))


@pytest.mark.parametrize(
    ("name", "order", "strategy"), [("chain", 2.0, SCORE), ("chain", 1.5, MeasureValued()), ("triple", 2.0, ScoreFunction())]
)
@pytest.mark.slow
def test_the_upper_bound(name, order, strategy):
    problem, log_c = PROBLEMS[name], -2.0
    guide = gradient(problem.guide, {"*": strategy})
    loss = ChiUpperBound(order, 2)

    def one(params, key):
        state = {"ChiUpperBound": {"log_normaliser": jnp.asarray(log_c)}}
        return loss.loss(key, params | state, problem.model, guide)

    run = jax.vmap(jax.value_and_grad(one), in_axes=(None, 0))
    samples = quick_jit(run)(jax.tree.map(jnp.asarray, problem.params), jax.random.split(KEY, 20_000))
    assert_unbiased(samples, chi_exact(problem, log_c, order))
    for another in (chi_exact(problem, log_c, order + 0.2), chi_exact(problem, log_c + 0.2, order)):  # a wrong power, a wrong normaliser
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples, another)
    log_probs, log_p, log_q = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    log_w = (log_p - log_q).sum(-1)
    evidence, cubo = float(logsumexp(log_probs + log_w)), float(logsumexp(log_probs + order * log_w)) / order
    # An upper bound wherever the normaliser stands, tight for CUBO at E[wⁿ] itself.
    for c in (-6.0, 0.0):
        assert chi_exact(problem, c, order)[0] > cubo > evidence
    np.testing.assert_allclose(chi_exact(problem, order * cubo, order)[0], cubo, rtol=1e-5)


@pytest.mark.slow
def test_the_upper_bound_comes_down_upon_the_evidence():
    """z ~ N(0, 1), y = 1 ~ N(z, 1): the guide that minimises it is the posterior, where it is the evidence."""

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=1.0)

    def guide():
        spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), spread))

    result = fit(KEY, model, guide, ChiUpperBound(num_particles=16), optax.adam(0.02), 1_000, progress_bar=False)
    np.testing.assert_allclose([result.params["loc"][0], result.params["spread"][0]], [0.5, np.sqrt(0.5)], atol=0.05)
    np.testing.assert_allclose(result.losses[0, -100:].mean(), float(dist.Normal(0.0, np.sqrt(2.0)).log_prob(1.0)), atol=0.02)
    svi = SVI(model, ChiUpperBound().carried_by(guide, model), optax.adam(0.02), ChiUpperBound())
    assert np.isfinite(svi.run(KEY, 3, progress_bar=False).losses).all()


def test_the_normaliser_runs():
    """c becomes 0.9 c + 0.1 mean wⁿ; a weight that is far beyond c raises it at once instead of overflowing."""
    problem = PROBLEMS["one_bernoulli"]
    guide = gradient(problem.guide, {"z": SCORE})

    def after(log_c):
        state = dict(problem.params) | {"ChiUpperBound": {"log_normaliser": jnp.asarray(log_c)}}
        out = ChiUpperBound(2.0, 1).loss_with_mutable_state(KEY, state, problem.model, guide)
        return out["loss"], out["mutable_state"]["ChiUpperBound"]["log_normaliser"]

    log_probs, log_p, log_q = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    powers = jnp.exp(2.0 * (log_p - log_q).sum(-1))
    loss, log_c = after(-1.0)
    power = 10 * (jnp.exp(log_c) - 0.9 * jnp.exp(-1.0))
    assert jnp.abs(powers - power).min() < 1e-4
    np.testing.assert_allclose(loss, (power * jnp.exp(1.0) - 2.0) / 2.0, rtol=1e-4)
    loss, log_c = after(-1_000.0)
    assert jnp.isfinite(loss) and -80.0 < log_c < 0.0


def test_which_estimates_a_power_may_have():
    fine = [("unbiased", 1.0), ("unbiased", -1.0), ("reciprocal", 1.0), ("reciprocal", -1.0), ("upper", 1.0), ("lower", -1.0)]
    for kind, power in fine:
        assert powered(2.0)([("z", Estimate(kind, power))]).errs == "upper"
    for kind, power in [("lower", 1.0), ("upper", -1.0), ("unbiased", 0.25), ("reciprocal", -0.25), ("unbiased", 0.0)]:
        with pytest.raises(DirectionError, match="'z' enters"):
            powered(2.0)([("z", Estimate(kind, power))])


def test_a_bound_from_marginals_is_an_upper_one():
    def ring():
        numpyro.sample("x", dist.Normal(numpyro.sample("u", dist.Normal(0.0, 1.0)), 1.0))

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 2.0)), 1.0), obs=0.5)

    state = {"ChiUpperBound": {"log_normaliser": jnp.asarray(-4.0)}}
    run = jax.vmap(lambda key: ChiUpperBound(num_particles=4).loss(key, state, model, marginal(ring, ["x"], ImportanceSampling(2))))
    losses = quick_jit(run)(jax.random.split(KEY, 4_000))
    assert losses.mean() - 4.5 * losses.std() / np.sqrt(4_000) > float(dist.Normal(0.0, np.sqrt(5.0)).log_prob(0.5))


@pytest.mark.slow
def test_a_minibatch_has_no_running_normaliser():
    problem = PROBLEMS["subsampled_local"]
    with pytest.raises(ModelError, match="'n' is subsampled"):
        ChiUpperBound().loss(KEY, dict(problem.params), problem.model, problem.guide, *problem.args)


# Markovian score climbing


def posterior_of(problem):
    _, log_p, _ = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    return jax.nn.softmax(log_p.sum(-1))


def climbing(loss, problem, law):
    """One step from retained draws of this law: (loss, gradient), and the draws that it retains."""
    params = jax.tree.map(jnp.asarray, problem.params)
    outcomes = {name: jnp.asarray(x, jnp.int32) for name, x in problem.oracle.outcomes.items()}

    def one(key):
        first, second = jax.random.split(key)
        retained = jax.tree.map(lambda x: x[jax.random.categorical(first, jnp.log(law))], outcomes)

        def step(params):
            state = {"MarkovScoreClimbing": {"retained": retained}}
            out = loss.loss_with_mutable_state(second, params | state, problem.model, problem.guide)
            return out["loss"], out["mutable_state"]["MarkovScoreClimbing"]["retained"]

        (value, after), grads = jax.value_and_grad(step, has_aux=True)(params)
        return (value, grads), after

    return quick_jit(jax.vmap(one))(jax.random.split(KEY, 20_000))


def climbed(problem):
    """Minus the cross entropy from the posterior, its gradient by the guide, and minus that of the evidence by the model."""
    law = posterior_of(problem)

    def surrogate(params):
        _, log_p, log_q = table(problem.oracle, params, None)
        both = (log_p + log_q).sum(-1)
        return -(law * both).sum(), -(law * log_q.sum(-1)).sum()

    grads, value = jax.grad(surrogate, has_aux=True)(jax.tree.map(jnp.asarray, problem.params))
    return value, grads


@pytest.mark.parametrize(("name", "num_particles"), [("one_bernoulli", 2), ("chain", 2), pytest.param("chain", 5, marks=pytest.mark.slow)])
def test_from_the_posterior_the_score_is_unbiased_at_any_number_of_particles(name, num_particles):
    problem = PROBLEMS[name]
    samples, after = climbing(MarkovScoreClimbing(ConditionalImportanceSampling(num_particles)), problem, posterior_of(problem))
    assert_unbiased(samples, climbed(problem))
    # The kernel leaves the posterior as it is: each outcome is retained as often as it should.
    same = [
        np.all([np.asarray(after[k]) == x[m] for k, x in problem.oracle.outcomes.items()], axis=0)
        for m in range(len(posterior_of(problem)))
    ]
    assert_unbiased([s.astype(float) for s in same], list(np.asarray(posterior_of(problem), float)))


@pytest.mark.slow
def test_fresh_draws_alone_are_biased():
    """As if nothing were retained: the retained draw is one of the guide's own."""
    problem = PROBLEMS["chain"]
    log_probs, _, _ = table(problem.oracle, jax.tree.map(jnp.asarray, problem.params), None)
    samples, _ = climbing(MarkovScoreClimbing(ConditionalImportanceSampling(2)), problem, jnp.exp(log_probs))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, climbed(problem))


def conjugate(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def gaussian(y):
    spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(numpyro.param("loc", -0.5), spread))


def random_walk(model, guide, values):
    """Metropolis with a kernel of one's own: no particles."""
    first, second = jax.random.split(numpyro.prng_key())
    proposed = {"z": values["z"] + jax.random.normal(first, values["z"].shape)}
    log_ratio = log_density(model, proposed).total - log_density(model, values).total
    values = jax.tree.map(lambda a, b: jnp.where(jnp.log(jax.random.uniform(second)) < log_ratio, a, b), proposed, dict(values))
    return Move(values, jax.tree.map(lambda x: x[None], values), jnp.ones(1))


@pytest.mark.parametrize("kernel", [ConditionalImportanceSampling(4), random_walk], ids=["importance", "random walk"])
@pytest.mark.slow
def test_climbing_ends_at_the_posterior(kernel):
    """Two chains of ``fit``, each with its own retained draw, the step size falling."""
    optim = optax.adam(optax.exponential_decay(0.05, 1_000, 0.2))
    result = fit(KEY, conjugate, gaussian, MarkovScoreClimbing(kernel), optim, 4_000, 1.0, num_chains=2, progress_bar=False)
    np.testing.assert_allclose(result.params["loc"], 0.5, atol=0.1)
    np.testing.assert_allclose(result.params["spread"], np.sqrt(0.5), atol=0.1)
    retained = result.params["MarkovScoreClimbing"]["retained"]["z"]
    assert retained.shape == (2,) and retained[0] != retained[1]
    svi = SVI(conjugate, MarkovScoreClimbing(kernel).carried_by(gaussian, conjugate), optax.adam(0.05), MarkovScoreClimbing(kernel))
    assert np.isfinite(svi.run(KEY, 3, 1.0, progress_bar=False).losses).all()


def test_what_climbing_refuses():
    with pytest.raises(ArgumentError, match="at least 2"):
        ConditionalImportanceSampling(1)
    subsampled = PROBLEMS["subsampled"]
    with pytest.raises(ModelError, match="'n' is subsampled, and the retained draw"):
        MarkovScoreClimbing().initial_state(KEY, {}, subsampled.model, subsampled.guide, *subsampled.args)

    def ring():
        numpyro.sample("z", dist.Normal(numpyro.sample("u", dist.Normal(0.0, 1.0)), 1.0))

    guide = marginal(lambda y: ring(), ["z"], ImportanceSampling(2))
    state = {"MarkovScoreClimbing": {"retained": {"z": jnp.asarray(0.0)}}}
    with pytest.raises(ModelError, match="densities in closed form"):
        MarkovScoreClimbing().loss(KEY, state, conjugate, guide, 1.0)


# Constraints


def coin(y):
    numpyro.sample("y", dist.Normal(2.0 * numpyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=y)


def coin_guide(y):
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.0)), infer={"gradient": "enumerate"})


def kl_from_half(logit):
    p = jax.nn.sigmoid(logit)
    return p * jnp.log(2 * p) + (1 - p) * jnp.log(2 * (1 - p))


@pytest.mark.slow
def test_a_constraint_is_met_and_the_multiplier_is_lagranges():
    """Everything is enumerated: the optimum is that of the Lagrangian, to four digits."""
    loss = constrain(ELBO(), kl("z"), at_most=0.1, rate=0.2)
    result = fit(KEY, coin, coin_guide, loss, optax.sgd(0.2), 4_000, 2.0, progress_bar=False)
    logit = jnp.asarray(result.params["logit"][0])
    np.testing.assert_allclose(kl_from_half(logit), 0.1, atol=1e-4)
    # The likelihood's slope, 2 σ(1 − σ), balances 1 + λ times that of the divergence.
    slope = 2.0 * jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit)
    multiplier = slope / jax.grad(kl_from_half)(logit) - 1.0
    np.testing.assert_allclose(result.params["kl('z') <= 0.1"]["multiplier"][0], multiplier, rtol=1e-3)


@pytest.mark.slow
def test_a_constraint_that_does_not_bind_lets_go():
    result = fit(KEY, coin, coin_guide, constrain(ELBO(), kl("z"), at_most=5.0, rate=0.1), optax.sgd(0.5), 300, 2.0, progress_bar=False)
    assert result.params["kl('z') <= 5.0"]["multiplier"][0] == 0.0
    np.testing.assert_allclose(result.params["logit"][0], 2.0, atol=1e-2)  # the posterior's: log N(2; 2, 1) − log N(2; 0, 1)


@pytest.mark.slow
def test_constraints_from_below_nest_and_take_a_function():
    """The mean log likelihood, log N(1.1; 2, 1) p + log N(1.1; 0, 1) (1 − p), is asked to be that of p = 0.775."""

    def likelihood(model, guide):
        return log_density(model, simulate(guide).values).select("y")

    least = round(-0.45 - 0.5 * float(np.log(2 * np.pi)), 6)
    loss = constrain(constrain(ELBO(), likelihood, at_least=least, rate=0.1), IWELBO(2), at_most=100.0)
    assert repr(loss).startswith("constrain(constrain(ELBO(") and f"at_least={least}" in repr(loss)
    result = fit(KEY, coin, coin_guide, loss, optax.sgd(0.2), 2_000, 1.1, progress_bar=False)
    assert set(result.params) == {"logit", f"likelihood >= {least}", "IWELBO(num_particles=2) <= 100.0"}
    np.testing.assert_allclose(jax.nn.sigmoid(result.params["logit"][0]), 0.775, atol=0.03)  # the multiplier sees draws


@pytest.mark.slow
def test_the_lagrangian_and_the_step_of_its_multiplier_are_unbiased():
    problem = PROBLEMS["chain"]
    loss = constrain(ELBO(), kl("a"), at_most=0.02, rate=0.5)
    name = "kl('a') <= 0.02"

    def exact(params, multiplier=0.7):
        _, log_p, log_q = (x.reshape(-1) for x in table(problem.oracle, params, None))
        q = jax.nn.sigmoid(params["phi"])
        divergence = q * jnp.log(q / 0.4) + (1 - q) * jnp.log((1 - q) / 0.6)
        return -(jnp.exp(log_q) * (log_p - log_q)).sum() + multiplier * (divergence - 0.02)

    def one(key, params):
        return loss.loss(key, params | {name: {"multiplier": jnp.asarray(0.7)}}, problem.model, gradient(problem.guide, {"*": SCORE}))

    params = jax.tree.map(jnp.asarray, problem.params | {"phi": 0.9})  # far enough from the prior for the multiplier to show
    run = jax.vmap(jax.value_and_grad(one, argnums=1), in_axes=(0, None))
    samples = quick_jit(run)(jax.random.split(KEY, 20_000), params)
    assert_unbiased(samples, jax.value_and_grad(exact)(params))
    for multiplier in (-0.7, 0.0, 1.0):  # a wrong sign, the multiplier forgotten, another one
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples, jax.value_and_grad(exact)(params, multiplier))
    state = params | {name: {"multiplier": jnp.asarray(0.7)}}
    after = loss.loss_with_mutable_state(KEY, state, problem.model, problem.guide)["mutable_state"][name]["multiplier"]
    q = jax.nn.sigmoid(params["phi"])
    divergence = q * jnp.log(q / 0.4) + (1 - q) * jnp.log((1 - q) / 0.6)
    np.testing.assert_allclose(after, 0.7 + 0.5 * (divergence - 0.02), rtol=1e-5)


def test_what_constrain_refuses():
    for call, message in (
        (lambda: constrain(ELBO, kl("z"), at_most=1.0), "instance"),
        (lambda: constrain(ELBO(), kl("z")), "either at_most"),
        (lambda: constrain(ELBO(), kl("z"), at_most=1.0, at_least=0.0), "either at_most"),
        (lambda: constrain(ELBO(), 3.0, at_most=1.0), "must be a function"),
        (lambda: constrain(ELBO(), kl("z"), at_most=1.0, rate=-1.0), "at least 0"),
        (lambda: kl(3), "name of a site"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    with pytest.raises(ModelError, match=r"kl\('w'\): .* no common latent site that fits. They have 'z'"):
        constrain(ELBO(), kl("w"), at_most=1.0).initial_state(KEY, {}, coin, coin_guide, 2.0)


# Hierarchical bounds of a linear-Gaussian program, at one, two and five particles


def hierarchy():
    numpyro.sample("z", dist.Normal(0.4 + 0.8 * numpyro.sample("u", dist.Normal(0.0, 1.0)), numpyro.param("spread", 0.6)))


def reverse(given):
    numpyro.sample("u", dist.Normal(0.6 * given["z"] - 0.2, 0.8))


def hierarchical(spread, num):
    """E[log p(y, z) − log q̂(z)]: Gauss-Hermite over z, the u behind it, and the fresh ones (8 nodes each)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    grid = np.stack(np.meshgrid(*[nodes] * (num + 1), indexing="ij")).reshape(num + 1, -1)
    prob = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * (num + 1), indexing="ij")).reshape(num + 1, -1), axis=0)
    z = 0.4 + 0.8 * grid[0] + spread * grid[1]
    u = jnp.concatenate([jnp.asarray(grid[:1]), 0.6 * z - 0.2 + 0.8 * grid[2:]])
    log_w = normal(u, 0.0) + normal(z, 0.4 + 0.8 * u, spread) - normal(u, 0.6 * z - 0.2, 0.8)
    return -(prob * (normal(z, 0.0) + normal(1.0, z) - log_mean(log_w))).sum()


@pytest.mark.parametrize("num", [1, 2, 5])
def test_hierarchical_bounds_of_a_gaussian(num):
    with jax.enable_x64(True):
        exact = quick_jit(jax.value_and_grad(lambda spread: hierarchical(spread, num)))(jnp.asarray(0.6, jnp.float64))
    guide = marginal(hierarchy, ["z"], ImportanceSampling(num, reverse))
    run = jax.value_and_grad(lambda spread, key: ELBO().loss(key, {"spread": spread}, lambda: conjugate(1.0), guide))
    samples = quick_jit(jax.vmap(run, in_axes=(None, 0)))(jnp.asarray(0.6), jax.random.split(KEY, 20_000))
    assert_unbiased(samples, jax.tree.map(np.asarray, exact))
    if num == 1:  # the assertion tells one particle from two
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(samples[0], np.asarray(hierarchical(0.6, 2)))
