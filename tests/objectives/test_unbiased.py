"""Every objective's value and gradient, in the mean over 20,000 keys, is the exact one.

Each case averages 20,000 independent replicates and compares value and every gradient coordinate with an
oracle that sums over all outcomes (``tests/oracles.py``), within 4.5 standard errors estimated from the
replicates. Keys are fixed, so a case passes or fails for good. Over fresh keys a correct estimator would fail
one coordinate with probability 7e-6: the default cases have about 650 coordinates and so a false alarm rate
of about 0.4%, the slow ones about 3,700 and 2.5%.

Whether the assertion can fail is tested too: with a wrong sign, weight, scale or baseline it does, and it
does with NumPyro's own objectives on the programs where those are known to be wrong, while it accepts them
where they are right.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer.elbo
import pytest
from jax.lax import stop_gradient
from numpyro.contrib.control_flow import scan
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO

from ppl_ext.gradients import Enumerate, LeaveOneOut, Reparameterize, ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO, IWELBO, ForwardKL, Renyi
from tests import oracles
from tests.oracles import assert_unbiased, expected_forward_kl, expected_loss, quick_jit, replicates, table
from tests.problems import PROBLEMS, ROUTED

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

STRATEGIES = {
    "score": ScoreFunction(baseline=None),
    "leave-one-out": ScoreFunction(baseline=LeaveOneOut()),
    "enumerate": Enumerate(),
}

# An objective and, except for the forward KL, its formula on log weights.
OBJECTIVES = {
    "elbo": (lambda k: ELBO(num_particles=k), oracles.elbo()),
    "iwelbo": (lambda k: IWELBO(num_particles=k), oracles.iwelbo()),
    "renyi": (lambda k: Renyi(alpha=0.5, num_particles=k), oracles.renyi(0.5)),
    "renyi(-1)": (lambda k: Renyi(alpha=-1.0, num_particles=k), oracles.renyi(-1.0)),
    "forward_kl": (lambda k: ForwardKL(num_particles=k), None),
}

# The library says that several particles over a minibatch are no bound; the estimate is still unbiased for
# its mean.
pytestmark = pytest.mark.filterwarnings("ignore:Plate 'n' is subsampled")


EVERY = PROBLEMS | ROUTED


@functools.cache
def exact(problem, objective, num_particles):
    """The oracle's value and gradient."""
    problem, formula = EVERY[problem], OBJECTIVES[objective][1]
    if formula is None:
        return expected_forward_kl(problem.oracle, problem.params, num_particles)
    return expected_loss(problem.oracle, problem.params, formula, num_particles)


def guide_with(problem, strategy):
    """The problem's guide with a strategy, or one for each of its sites, in place of the default."""
    if strategy == "default":
        return problem.guide
    if isinstance(strategy, str):
        return gradient(problem.guide, {site: STRATEGIES[strategy] for site in problem.finite_sites})
    return gradient(problem.guide, dict(zip(problem.finite_sites, strategy, strict=True)))


def check(problem, objective, num_particles, strategy):
    loss = OBJECTIVES[objective][0](num_particles)
    samples = replicates(loss, EVERY[problem], guide=guide_with(EVERY[problem], strategy))
    assert_unbiased(samples, exact(problem, objective, num_particles))


DISCRETE = tuple(name for name, problem in PROBLEMS.items() if problem.finite_sites)
SMALL = tuple(name for name in DISCRETE if name != "many_coins")
TANGLED = (
    *(
        "chain",
        "coin_normal_coin",
        "plated",
        "plated_local",
        "subsampled",
        "subsampled_local",
        "scaled",
        "masked",
    ),
    *("scanned", "scan_output", "coupled_plate", "relayed", "conditional_site", "counts"),
)

CASES = (
    *((name, "elbo", 1, "score") for name in DISCRETE),
    *((name, "iwelbo", 2, "leave-one-out") for name in TANGLED),
    *((name, "elbo", 3, "leave-one-out") for name in ("one_bernoulli", "plated", "subsampled", "scanned")),
    *((name, "elbo", 1, "enumerate") for name in ("subsampled", "coin_normal_coin", "bernoulli_then_normal")),
    *((name, "renyi", 2, "score") for name in ("plated", "subsampled_local", "scaled", "scanned")),
    *(
        (name, "renyi", 3, "default")
        for name in ("chain", "normal_then_bernoulli", "score_normal", "reparam_normal")
    ),
    *(
        (name, "iwelbo", 3, "default")
        for name in ("one_bernoulli", "coin_normal_coin", "score_normal", "plated_local")
    ),
    *(
        (name, "forward_kl", 2, "default")
        for name in ("one_bernoulli", "chain", "bernoulli_then_normal", "scanned")
    ),
    ("many_coins", "elbo", 3, "default"),
    ("score_normal", "elbo", 1, "default"),
    ("reparam_normal", "elbo", 1, "default"),
    ("one_bernoulli", "renyi(-1)", 3, "leave-one-out"),
)


@pytest.mark.parametrize(("problem", "objective", "num_particles", "strategy"), CASES)
def test_value_and_gradient_are_unbiased(problem, objective, num_particles, strategy):
    check(problem, objective, num_particles, strategy)


PAIRS = (
    ("chain", ("score", "enumerate")),
    ("chain", ("enumerate", "score")),
    ("coin_normal_coin", ("score", "enumerate")),
    ("coin_normal_coin", ("enumerate", "score")),
    ("subsampled", ("enumerate", "score")),
    ("scanned", ("enumerate", "score")),
)


@pytest.mark.parametrize(("problem", "strategies"), PAIRS)
def test_strategies_mix_freely(problem, strategies):
    check(problem, "elbo", 1, strategies)


def test_strategies_mix_freely_with_several_particles():
    check("chain", "iwelbo", 2, ("enumerate", ScoreFunction(baseline=LeaveOneOut())))


def test_a_handler_wins_over_an_annotation():
    """``score_normal`` asks to be scored; reparameterised by handler it must have that estimator's smaller
    spread.
    """
    problem = PROBLEMS["score_normal"]
    handled = replicates(ELBO(), problem, guide=gradient(problem.guide, {"x": Reparameterize()}))
    assert_unbiased(handled, exact("score_normal", "elbo", 1))
    annotated = replicates(ELBO(), problem)
    assert np.std(handled[1]["mu"]) < 0.8 * np.std(annotated[1]["mu"])


# Exact answers where every site is enumerated, whatever the key

ENUMERABLE = tuple(
    (name, objective, num_particles)
    for name in SMALL
    for objective, num_particles in (("elbo", 1), ("iwelbo", 2))
    if PROBLEMS[name].all_finite and PROBLEMS[name].num_assignments ** num_particles <= 512
) + (("chain", "elbo", 3), ("chain", "renyi", 2), ("truncated", "renyi", 2), ("plated_local", "renyi(-1)", 3))


@pytest.mark.parametrize(("problem", "objective", "num_particles"), ENUMERABLE)
def test_enumerated_programs_are_exact(problem, objective, num_particles):
    check_enumerated(problem, objective, num_particles)


def check_enumerated(problem, objective, num_particles):
    loss, expected = OBJECTIVES[objective][0](num_particles), exact(problem, objective, num_particles)
    problem = EVERY[problem]
    guide = guide_with(problem, "enumerate")
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem.params)

        @quick_jit
        def run(rng_key, params):
            return jax.value_and_grad(loss.loss, argnums=1)(
                rng_key, params, problem.model, guide, *problem.args
            )

        for seed in (0, 1):
            actual = run(jax.random.key(seed), params)
            jax.tree.map(
                lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-8), actual, expected
            )


# Second derivatives: the surrogate keeps them right, where a score that is only detached does not

CURVED = (
    ("chain", "elbo", 1, "score"),
    ("chain", "elbo", 1, "enumerate"),
    ("plated", "elbo", 2, "leave-one-out"),
    ("one_bernoulli", "iwelbo", 2, "leave-one-out"),
    ("normal_then_bernoulli", "elbo", 1, "score"),
    ("score_normal", "renyi", 2, "default"),
)


@pytest.mark.parametrize(("problem", "objective", "num_particles", "strategy"), CURVED)
def test_hessians_are_unbiased(problem, objective, num_particles, strategy):
    problem, (make, formula) = PROBLEMS[problem], OBJECTIVES[objective]
    samples = replicates(
        make(num_particles), problem, guide=guide_with(problem, strategy), derive=jax.hessian
    )
    assert_unbiased(
        samples, expected_loss(problem.oracle, problem.params, formula, num_particles, jax.hessian)
    )


# Impossible outcomes


@pytest.mark.parametrize("strategy", ["score", "leave-one-out"])
@pytest.mark.parametrize("objective", ["iwelbo", "renyi"])
def test_one_possible_particle_is_enough(objective, strategy):
    """The model forbids what the guide may draw: bound and gradient are finite unless every particle is
    impossible.
    """

    def model():
        numpyro.sample("z", dist.Categorical(logits=jnp.array([0.0, 0.4, -jnp.inf])))

    def guide():
        numpyro.sample("z", dist.Categorical(logits=numpyro.param("phi", jnp.zeros(3))))

    loss, guide = OBJECTIVES[objective][0](3), gradient(guide, {"z": STRATEGIES[strategy]})
    run = jax.value_and_grad(lambda params, rng_key: loss.loss(rng_key, params, model, guide))
    keys, params = jax.random.split(jax.random.key(0), 200), {"phi": jnp.array([0.1, -0.2, 0.6])}
    losses, grads = quick_jit(jax.vmap(run, in_axes=(None, 0)))(params, keys)
    impossible = np.isposinf(losses)
    assert 0 < impossible.sum() < 50
    assert np.isfinite(losses[~impossible]).all()
    assert np.isfinite(grads["phi"][~impossible]).all()


# The estimators are not only right but local: what a draw cannot influence does not add to its spread


def spread_of_gradient(model, guide, phi):
    run = jax.grad(lambda phi, rng_key: ELBO().loss(rng_key, {"phi": phi}, model, guide))
    grads = quick_jit(jax.vmap(run, in_axes=(None, 0)))(phi, jax.random.split(jax.random.key(0), 2_000))
    return np.std(grads, axis=0)


def test_elements_of_a_plate_do_not_add_to_each_others_spread():
    def spread(size):
        def model():
            with numpyro.plate("n", size):
                z = numpyro.sample("z", dist.Bernoulli(0.3))
                numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=1.3)

        def guide():
            with numpyro.plate("n", size):
                numpyro.sample(
                    "z", dist.Bernoulli(logits=numpyro.param("phi", 0.0)), infer={"gradient": "score"}
                )

        return spread_of_gradient(model, guide, jnp.zeros(size))[0]

    assert spread(64) < 1.2 * spread(1)


def test_the_past_does_not_add_to_a_steps_spread():
    def spread(length):
        def model():
            def step(x, _):
                x = numpyro.sample("x", dist.Bernoulli(logits=0.5 * x))
                numpyro.sample("y", dist.Normal(2.0 * x, 1.0), obs=1.3)
                return x, None

            scan(step, jnp.asarray(0), None, length=length)

        def guide():
            def step(x, logits):
                return numpyro.sample(
                    "x", dist.Bernoulli(logits=logits + 0.0 * x), infer={"gradient": "score"}
                ), None

            scan(step, jnp.asarray(0), numpyro.param("phi", jnp.zeros(length)))

        return spread_of_gradient(model, guide, jnp.zeros(length))[-1]

    assert spread(32) < 1.5 * spread(1)


def test_the_baseline_reduces_the_spread():
    problem = PROBLEMS["plated"]
    spreads = {}
    for strategy in ("score", "leave-one-out"):
        samples = replicates(ELBO(num_particles=4), problem, 2_000, guide=guide_with(problem, strategy))
        spreads[strategy] = np.std(samples[1]["phi"])
    assert spreads["leave-one-out"] < 0.7 * spreads["score"]


# Whose credit is whose: elements of one plate that meet on the way to their costs


@pytest.mark.parametrize("problem", ROUTED)
def test_enumeration_finds_where_elements_meet(problem):
    check_enumerated(problem, "elbo", 1)


@pytest.mark.parametrize(
    "problem", ["routed: elementwise", "routed: gathered", "routed: cumulated", "routed: inner scan"]
)
def test_scores_find_where_elements_meet(problem):
    check(problem, "elbo", 1, "score")


@pytest.mark.slow
@pytest.mark.parametrize("problem", ROUTED)
def test_every_score_finds_where_elements_meet(problem):
    check(problem, "elbo", 1, "score")


@pytest.mark.slow
@pytest.mark.parametrize("problem", ROUTED)
def test_scores_of_several_particles_find_where_elements_meet(problem):
    check(problem, "elbo", 2, "leave-one-out")
    check(problem, "iwelbo", 2, "leave-one-out")


# Does the assertion have power?


class Mutated(numpyro.infer.elbo.ELBO):
    """A loss with its gradient multiplied: the value stays right."""

    def __init__(self, loss, factor):
        super().__init__(loss.num_particles)
        self.wrapped, self.factor = loss, factor

    def loss(self, *args, **kwargs):
        value = self.wrapped.loss(*args, **kwargs)
        return stop_gradient(value) + self.factor * (value - stop_gradient(value))


class ByHand(numpyro.infer.elbo.ELBO):
    """A multi-particle bound's score-function estimator, written from the oracle's table, right or with one
    fault.
    """

    def __init__(self, oracle, formula, num_particles, baseline="none", scored="log_pmf"):
        super().__init__(num_particles)
        self.oracle, self.formula, self.baseline, self.scored = oracle, formula, baseline, scored

    def loss(self, rng_key, params, model, guide, *args):
        log_probs, log_p, log_q = table(self.oracle, params, None)
        draws = jax.random.categorical(rng_key, stop_gradient(log_probs), shape=(self.num_particles,))
        log_weights = (log_p - log_q)[draws]
        bound = self.formula(log_weights)
        score = (log_q.sum(-1) if self.scored == "log_q" else log_probs)[draws]
        surrogate = jnp.sum(
            (score - stop_gradient(score)) * stop_gradient(bound - self._baseline(log_weights, bound))
        )
        return -(bound + surrogate)

    def _baseline(self, log_weights, bound):
        if self.baseline == "none":
            return 0.0
        if self.baseline == "mean including self":
            return bound

        def without(k):
            others = jnp.where((jnp.arange(self.num_particles) == k)[:, None], 0.0, log_weights).sum(0)
            return self.formula(log_weights.at[k].set(others / (self.num_particles - 1)))

        return jax.vmap(without)(jnp.arange(self.num_particles))


class ForwardKLByHand(numpyro.infer.elbo.ELBO):
    """The self-normalised forward KL, written from the oracle's table, its weights normalised or not."""

    def __init__(self, oracle, num_particles, normalised=True):
        super().__init__(num_particles)
        self.oracle, self.normalised = oracle, normalised

    def loss(self, rng_key, params, model, guide, *args):
        log_probs, log_p, log_q = table(self.oracle, params, None)
        draws = jax.random.categorical(rng_key, stop_gradient(log_probs), shape=(self.num_particles,))
        log_weights = stop_gradient(log_p - log_q)[draws]
        weights = (
            jax.nn.softmax(log_weights, axis=0)
            if self.normalised
            else jnp.exp(log_weights) / self.num_particles
        )
        value = (jax.nn.softmax(log_weights, axis=0) * log_weights).sum() - oracles.iwelbo()(log_weights)
        credit = (weights * log_q[draws]).sum()
        return value - (credit - stop_gradient(credit))


def assert_biased(loss, problem, objective, guide=None):
    """The assertion of this file fails, on the gradient: the value may well be right."""
    samples = replicates(loss, PROBLEMS[problem], guide=guide)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, exact(problem, objective, loss.num_particles))


@pytest.mark.parametrize("problem", ["one_bernoulli", "normal_then_bernoulli"])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.8, 1.25])
def test_a_wrong_sign_or_weight_is_caught(problem, factor):
    assert_biased(Mutated(ELBO(), factor), problem, "elbo")


@pytest.mark.parametrize(
    ("objective", "problem"), [("elbo", "chain"), ("iwelbo", "plated"), ("renyi", "one_bernoulli")]
)
def test_a_baseline_must_leave_its_own_particle_out(objective, problem):
    oracle, formula = PROBLEMS[problem].oracle, OBJECTIVES[objective][1]
    for baseline in ("none", "leave one out"):
        samples = replicates(ByHand(oracle, formula, 3, baseline), PROBLEMS[problem])
        assert_unbiased(samples, exact(problem, objective, 3))
    assert_biased(ByHand(oracle, formula, 3, "mean including self"), problem, objective)


@pytest.mark.parametrize("problem", ["scaled", "masked"])
def test_a_score_must_be_neither_scaled_nor_masked(problem):
    oracle = PROBLEMS[problem].oracle
    assert_unbiased(
        replicates(ByHand(oracle, oracles.elbo(), 1), PROBLEMS[problem]), exact(problem, "elbo", 1)
    )
    assert_biased(ByHand(oracle, oracles.elbo(), 1, scored="log_q"), problem, "elbo")


def test_weights_of_the_forward_kl_must_be_normalised():
    problem = PROBLEMS["chain"]
    assert_unbiased(replicates(ForwardKLByHand(problem.oracle, 2), problem), exact("chain", "forward_kl", 2))
    assert_biased(ForwardKLByHand(problem.oracle, 2, normalised=False), "chain", "forward_kl")


# NumPyro's own objectives: right on the first table, wrong on the second, and the assertion tells.

RIGHT = (
    (TraceGraph_ELBO(), "elbo", "chain"),
    (TraceGraph_ELBO(), "elbo", "normal_then_bernoulli"),
    (TraceGraph_ELBO(), "elbo", "plated"),
    (TraceGraph_ELBO(), "elbo", "factors"),
    (TraceGraph_ELBO(), "elbo", "triple"),
    (TraceGraph_ELBO(), "elbo", "nested_plates"),
    (TraceGraph_ELBO(), "elbo", "crossed_plates"),
    (TraceGraph_ELBO(), "elbo", "conditional_site"),
    (Trace_ELBO(3), "elbo", "reparam_normal"),
    (RenyiELBO(alpha=0.0, num_particles=2), "iwelbo", "reparam_normal"),
    (RenyiELBO(alpha=0.5, num_particles=3), "renyi", "reparam_normal"),
)

WRONG = (
    (TraceGraph_ELBO(), "elbo", "subsampled"),
    (TraceGraph_ELBO(), "elbo", "subsampled_local"),
    (TraceGraph_ELBO(), "elbo", "scaled"),
    (TraceGraph_ELBO(), "elbo", "masked"),
    (TraceGraph_ELBO(), "elbo", "scanned"),
    (TraceGraph_ELBO(), "elbo", "coupled_plate"),
    (TraceGraph_ELBO(), "elbo", "relayed"),
    (TraceGraph_ELBO(), "elbo", "scanned_backwards"),
    (TraceGraph_ELBO(), "elbo", "scan_output"),
    (TraceGraph_ELBO(), "elbo", "scanned_plate"),
    (Trace_ELBO(), "elbo", "one_bernoulli"),
    (RenyiELBO(alpha=0.0, num_particles=2), "iwelbo", "one_bernoulli"),
    (RenyiELBO(alpha=0.5, num_particles=2), "renyi", "plated_local"),
)


def name_of(value):
    return type(value).__name__ if isinstance(value, numpyro.infer.elbo.ELBO) else None


@pytest.mark.parametrize(("loss", "objective", "problem"), RIGHT, ids=name_of)
def test_oracles_agree_with_numpyro_where_it_is_right(loss, objective, problem):
    samples = replicates(loss, PROBLEMS[problem])
    assert_unbiased(samples, exact(problem, objective, loss.num_particles))


@pytest.mark.parametrize(("loss", "objective", "problem"), WRONG, ids=name_of)
def test_the_assertion_catches_numpyro_where_it_is_wrong(loss, objective, problem):
    assert_biased(loss, problem, objective)


# The full cross product


STRENUOUS = (("elbo", 1), ("elbo", 3), ("iwelbo", 2), ("iwelbo", 3), ("renyi", 3))

CROSS_PRODUCT = (
    *(
        (name, objective, num_particles, strategy)
        for name in SMALL
        for objective, num_particles in STRENUOUS
        for strategy in ("score", "leave-one-out", "enumerate", "default")
        if strategy != "enumerate" or PROBLEMS[name].num_assignments ** num_particles <= Enumerate().max_lanes
    ),
    # The forward KL holds its draws fixed: there is no strategy to choose.
    *((name, "forward_kl", k, "default") for name in SMALL for k in (1, 2, 3)),
)


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "objective", "num_particles", "strategy"), CROSS_PRODUCT)
def test_every_problem_objective_and_strategy(problem, objective, num_particles, strategy):
    check(problem, objective, num_particles, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("third", ["score", "enumerate", "leave-one-out"])
@pytest.mark.parametrize("second", ["score", "enumerate", "leave-one-out"])
@pytest.mark.parametrize("first", ["score", "enumerate", "leave-one-out"])
@pytest.mark.parametrize(("objective", "num_particles"), [("elbo", 2), ("iwelbo", 2)])
def test_every_triple_of_strategies(first, second, third, objective, num_particles):
    strategies = tuple(STRATEGIES[name] for name in (first, second, third))
    check("triple", objective, num_particles, strategies)
