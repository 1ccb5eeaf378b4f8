"""Strategies that compare a draw with alternatives: measure-valued derivatives and local enumeration.

Means of 20,000 replicates against exact sums or quadrature within 4.5 standard errors; over fresh keys a
right estimator would fail one coordinate with probability 7e-6. Keys are fixed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

from ppl_ext import expectation, replicate
from ppl_ext.errors import StrategyError
from ppl_ext.gradients import (
    Enumerate,
    EnumerateLocally,
    MeasureValued,
    Reparameterize,
    ScoreFunction,
    local,
    measure_valued,
)
from ppl_ext.handlers import gradient
from tests.objectives.test_unbiased import OBJECTIVES, exact
from tests.oracles import assert_unbiased, quick_jit, replicates
from tests.problems import PROBLEMS

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

MEASURE, LOCAL, SCORE = MeasureValued(), EnumerateLocally(), ScoreFunction(baseline=None)


def estimates(program, params, num=20_000, seed=0):
    """Independent values and gradients of a program's expectation."""
    est = expectation(program)
    return quick_jit(jax.vmap(lambda key: est.value_and_grad(key, params)))(
        jax.random.split(jax.random.key(seed), num)
    )


# --- each pair of laws
# ------------------------------------------------------------------------------------------------------------


def bend(x):
    """A cost with a kink and a jump: nothing that a reparameterised gradient could use."""
    return jnp.where(x > 1.3, x, 0.3 * x**2) + jnp.floor(x)


def summed(law, values):
    values = np.asarray(values)
    return lambda params: jnp.sum(jnp.exp(law(params).log_prob(values)) * bend(jnp.asarray(values, float)))


def integrated(law, low, high):
    x = np.linspace(low, high, 400_001)
    return lambda params: jnp.sum(jnp.exp(law(params).log_prob(x)) * bend(x)) * (x[1] - x[0])


LAWS = {
    "bernoulli": (lambda p: dist.Bernoulli(p[0]), [0.3], lambda law: summed(law, range(2))),
    "bernoulli logits": (lambda p: dist.Bernoulli(logits=p[0]), [0.3], lambda law: summed(law, range(2))),
    "categorical": (
        lambda p: dist.Categorical(probs=p / p.sum()),
        [0.3, 0.5, 0.2, 0.7],
        lambda law: summed(law, range(4)),
    ),
    "categorical logits": (
        lambda p: dist.Categorical(logits=p),
        [0.3, -0.5, 1.0],
        lambda law: summed(law, range(3)),
    ),
    "poisson": (lambda p: dist.Poisson(p[0]), [1.7], lambda law: summed(law, range(40))),
    "binomial": (lambda p: dist.Binomial(5, p[0]), [0.3], lambda law: summed(law, range(6))),
    "binomial logits": (lambda p: dist.Binomial(1, logits=p[0]), [0.3], lambda law: summed(law, range(2))),
    "geometric": (lambda p: dist.Geometric(p[0]), [0.4], lambda law: summed(law, range(80))),
    "geometric logits": (lambda p: dist.Geometric(logits=p[0]), [0.2], lambda law: summed(law, range(80))),
    "exponential": (lambda p: dist.Exponential(p[0]), [0.8], lambda law: integrated(law, 1e-9, 40.0)),
    "gamma": (lambda p: dist.Gamma(2.3, p[0]), [1.4], lambda law: integrated(law, 1e-9, 40.0)),
    "normal": (lambda p: dist.Normal(p[0], p[1]), [0.6, 1.1], lambda law: integrated(law, -12.0, 13.0)),
}


def law_samples(name):
    law, params, _ = LAWS[name]
    return estimates(
        lambda p: bend(numpyro.sample("x", law(p), infer={"gradient": MEASURE}).astype(float)),
        jnp.array(params),
    )


def law_answer(name):
    law, params, oracle = LAWS[name]
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.value_and_grad(oracle(law))(jnp.array(params)))


@pytest.mark.parametrize("name", LAWS)
def test_each_pair(name):
    assert_unbiased(law_samples(name), law_answer(name))


def test_all_pairs_in_one_program():
    """Each site a cost of its own, so that the gradient by each law's parameters is that of the law alone."""
    names = ["poisson", "binomial", "geometric", "exponential", "gamma", "normal"]

    def program(params):
        sites = [
            numpyro.sample(name, LAWS[name][0](params[name]), infer={"gradient": MEASURE}) for name in names
        ]
        return sum(bend(x.astype(float)) for x in sites)

    samples = estimates(program, {name: jnp.array(LAWS[name][1]) for name in names})
    answers = {name: law_answer(name) for name in names}
    assert_unbiased(
        samples,
        (sum(value for value, _ in answers.values()), {name: grad for name, (_, grad) in answers.items()}),
    )


def test_the_table_is_the_one_that_is_tested():
    tested = {type(law(jnp.array(params))) for law, params, _ in LAWS.values()}
    assert set(measure_valued._PAIRS) == tested


@pytest.mark.parametrize("name", ["poisson", "binomial", "geometric", "exponential", "gamma", "normal"])
def test_a_wrong_pair_is_seen(monkeypatch, name):
    """The same assertion, with the alternatives' signs turned."""
    kind = type(LAWS[name][0](jnp.array(LAWS[name][1])))
    right = measure_valued._PAIRS[kind]
    wrong = right._replace(coefficients=lambda *args: [-c for c in right.coefficients(*args)])
    monkeypatch.setitem(measure_valued._PAIRS, kind, wrong)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(law_samples(name), law_answer(name))


def test_draws_used_twice_are_seen(monkeypatch):
    """A Maxwell draw that is not matched to the normal one, or a mean pair without its constant, is wrong and
    found.
    """
    right = measure_valued._PAIRS[dist.Normal]

    def unmatched(law, key, x):
        up, down, _ = right.alternatives(law, key, x)
        return [up, down, law.loc + law.scale * jnp.abs((x - law.loc) / law.scale)]

    for wrong in (
        right._replace(alternatives=unmatched),
        right._replace(
            coefficients=lambda site, law: (-(c := right.coefficients(site, law))[3], law.loc, -law.loc, c[3])
        ),
    ):
        monkeypatch.setitem(measure_valued._PAIRS, dist.Normal, wrong)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(law_samples("normal"), law_answer("normal"))


def test_the_normal_pairs_have_their_laws():
    """Alternatives against the distributions of the literature (Kolmogorov-Smirnov, each level 1e-4, fixed
    keys).
    """
    law = dist.Normal(0.0, 1.0)
    x = law.sample(jax.random.key(0), (20_000,))
    up, down, wide = measure_valued._PAIRS[dist.Normal].alternatives(law, jax.random.key(1), x)
    assert stats.kstest(np.asarray(up), stats.rayleigh.cdf).pvalue > 1e-4
    np.testing.assert_array_equal(up, -down)
    assert stats.kstest(np.abs(wide), stats.maxwell.cdf).pvalue > 1e-4
    # X = M U with U uniform, independent of M
    u = np.asarray(x / wide)
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u, np.abs(wide))[0, 1]) < 4.5 / np.sqrt(len(u))


@pytest.mark.parametrize("at", [0.0, 1.0])
@pytest.mark.parametrize("strategy", [MEASURE, LOCAL, Enumerate()], ids=repr)
def test_probabilities_of_exactly_0_and_1(strategy, at):
    """d/dp E f = f(1) − f(0) at the edges too, where the score function has nothing to go on."""

    def program(p):
        return 3.0 + 2.0 * numpyro.sample("b", dist.Bernoulli(p), infer={"gradient": strategy})

    value, grad = expectation(program).value_and_grad(jax.random.key(0), at)
    assert (float(value), float(grad)) == (3.0 + 2.0 * at, 2.0)

    def die(p):
        k = numpyro.sample("k", dist.Categorical(probs=p), infer={"gradient": strategy})
        return jnp.array([1.0, 4.0, 9.0])[k]

    _, grad = expectation(die).value_and_grad(jax.random.key(0), jnp.array([at, 1.0 - at, 0.0]))
    np.testing.assert_allclose(grad, [1.0, 4.0, 9.0], rtol=1e-6)


def test_an_impossible_alternative_of_infinite_cost_has_no_say():
    """At p = 0 the outcome 1 costs infinitely much and is never drawn: what is left of d/dp E f is −f(0), as
    under joint enumeration.
    """

    def program(p, strategy):
        b = numpyro.sample("b", dist.Bernoulli(p), infer={"gradient": strategy})
        return jnp.where(b == 1, -jnp.inf, 3.0)

    for strategy in (LOCAL, Enumerate()):
        value, grad = expectation(lambda p, strategy=strategy: program(p, strategy)).value_and_grad(
            jax.random.key(0), 0.0
        )
        assert (float(value), float(grad)) == (3.0, -3.0)


def test_a_die_of_one_side():
    """Nothing to compare its one outcome with: the site costs nothing and has no gradient."""

    def program(logits):
        return (
            3.0
            + numpyro.sample("k", dist.Categorical(logits=logits), infer={"gradient": LOCAL}) * 1.0
            + logits.sum()
        )

    value, grad = expectation(program).value_and_grad(jax.random.key(0), jnp.ones(1))
    assert (float(value), grad.tolist()) == (4.0, [1.0])


def test_a_binomial_of_no_trials():
    grad = expectation(
        lambda p: 1.0 * numpyro.sample("n", dist.Binomial(0, p), infer={"gradient": MEASURE})
    ).value_and_grad(jax.random.key(0), 0.3)[1]
    assert float(grad) == 0.0


# --- mixes
# ------------------------------------------------------------------------------------------------------------

SITES = {
    "a": {"score": SCORE, "enumerate": Enumerate(), "locally": LOCAL, "measure-valued": MEASURE},
    "x": {"reparam": Reparameterize(), "score": SCORE, "measure-valued": MEASURE},
    "b": {"score": SCORE, "enumerate": Enumerate(), "locally": LOCAL, "measure-valued": MEASURE},
}
TRIPLES = list(itertools.product(*SITES.values()))


def covering_pairs():
    """Few triples that hold every pair of strategies at every two sites: chosen one by one, the one with most
    new pairs first.
    """

    def pairs(triple):
        return {((i, triple[i]), (j, triple[j])) for i, j in itertools.combinations(range(3), 2)}

    missing = set().union(*map(pairs, TRIPLES))
    while missing:
        best = max(TRIPLES, key=lambda t: len(pairs(t) & missing))
        missing -= pairs(best)
        yield best


def check_triple(problem, triple, objective, num_particles):
    strategies = {site: SITES[site][short] for site, short in zip(("a", "x", "b"), triple, strict=True)}
    guide = gradient(PROBLEMS[problem].guide, strategies)
    samples = replicates(OBJECTIVES[objective][0](num_particles), PROBLEMS[problem], guide=guide)
    assert_unbiased(samples, exact(problem, objective, num_particles))


@pytest.mark.parametrize("triple", list(covering_pairs()), ids="-".join)
def test_every_pair_of_strategies_on_dependent_sites(triple):
    """A coin, a Gaussian whose mean it moves, a coin that the Gaussian loads."""
    check_triple("coin_normal_coin", triple, "elbo", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "num_particles"), [("elbo", 1), ("iwelbo", 2)])
@pytest.mark.parametrize("triple", TRIPLES, ids="-".join)
def test_every_triple_of_strategies_on_dependent_sites(triple, objective, num_particles):
    check_triple("coin_normal_coin", triple, objective, num_particles)


TANGLED = (
    "chain",
    "plated",
    "plated_local",
    "subsampled",
    "subsampled_local",
    "scaled",
    "masked",
    "scanned",
    "scan_output",
)
TANGLED += ("coupled_plate", "relayed", "conditional_site")


# no bound with two particles, and unbiased for its mean all the same
@pytest.mark.filterwarnings("ignore:Plate 'n' is subsampled")
@pytest.mark.parametrize(
    ("objective", "num_particles"), [("elbo", 1), pytest.param("iwelbo", 2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("problem", TANGLED)
def test_plates_scans_scales_and_masks(problem, objective, num_particles):
    """Every finite site locally enumerated, on the problems where estimators go wrong."""
    guide = gradient(PROBLEMS[problem].guide, {site: LOCAL for site in PROBLEMS[problem].finite_sites})
    samples = replicates(OBJECTIVES[objective][0](num_particles), PROBLEMS[problem], guide=guide)
    assert_unbiased(samples, exact(problem, objective, num_particles))


def test_a_broken_branch_is_seen(monkeypatch):
    """The same assertion when the draw's own share of the difference is dropped."""
    charged = local._charged

    def forgetful(site, coefficients, values):
        return charged(site, coefficients, [0 * values[0], *values[1:]])

    monkeypatch.setattr(local, "_charged", forgetful)
    with pytest.raises(AssertionError, match="standard errors off"):
        check_triple("coin_normal_coin", ("locally", "reparam", "locally"), "elbo", 1)


# --- lanes
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [MEASURE, LOCAL], ids=repr)
def test_elements_whose_costs_do_not_meet_share_a_lane(strategy):
    """A plate of coins with a cost each: the gradient of every element is the exact difference, in one
    lane.
    """
    effect = jnp.arange(1.0, 6.0)

    def program(logits):
        with numpyro.plate("n", 5):
            z = numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"gradient": strategy})
        return jnp.sum(effect * z)

    _, grad = expectation(program).value_and_grad(jax.random.key(0), jnp.linspace(-1.0, 1.0, 5))
    p = jax.nn.sigmoid(jnp.linspace(-1.0, 1.0, 5))
    np.testing.assert_allclose(grad, effect * p * (1 - p), rtol=1e-5)


@pytest.mark.slow
def test_elements_that_meet_take_a_lane_each_and_many_go_in_chunks(monkeypatch):
    """A product over 12 coins, 5 lanes at a time: unbiased, and the same numbers as in one go."""
    from ppl_ext.expectations import surrogate

    def program(logits):
        with numpyro.plate("n", 12):
            z = numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"gradient": "enumerate_locally"})
        return jnp.prod(1.0 + 0.5 * z)

    logits = jnp.linspace(-1.0, 1.0, 12)
    whole = estimates(program, logits, num=200)
    monkeypatch.setattr(surrogate, "LANES_AT_ONCE", 5)
    jax.clear_caches()
    chunked = estimates(lambda p: program(p), logits, num=200)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), whole, chunked)
    p = jax.nn.sigmoid(logits)
    answer = jnp.prod(1 + 0.5 * p), jnp.prod(1 + 0.5 * p) / (1 + 0.5 * p) * 0.5 * p * (1 - p)
    assert_unbiased(chunked, answer)


def test_event_dimensions_are_elements_too():
    """``.to_event`` sites: the coordinates' costs are apart, so their derivatives have no noise from one
    another.
    """

    def program(loc):
        x = numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), infer={"gradient": "measure_valued"})
        return jnp.sum(x**2)

    samples = estimates(program, jnp.array([0.5, -1.0, 2.0]), num=4000)
    assert_unbiased(samples, (3 + jnp.sum(jnp.array([0.5, -1.0, 2.0]) ** 2), 2 * jnp.array([0.5, -1.0, 2.0])))
    # (f(μ+R) − f(μ−R)) / √(2π) = 4μR/√(2π) has sd 4μ √(2 − π/2) / √(2π), whatever the other coordinates do
    np.testing.assert_allclose(
        samples[1].std(0), 4 * np.array([0.5, 1.0, 2.0]) * np.sqrt((2 - np.pi / 2) / (2 * np.pi)), rtol=0.05
    )


def test_enumeration_reaches_into_event_dimensions():
    """Three coins in ``.to_event``, whose product meets: eight joint assignments, exactly."""

    def program(logits):
        z = numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1), infer={"gradient": "enumerate"})
        return jnp.prod(1.0 + z)

    logits = jnp.array([0.3, -0.5, 1.0])
    value, grad = expectation(program).value_and_grad(jax.random.key(0), logits)
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(value, jnp.prod(1 + p), rtol=1e-6)
    np.testing.assert_allclose(grad, jnp.prod(1 + p) / (1 + p) * p * (1 - p), rtol=1e-5)


def test_steps_of_a_scan():
    """A random walk of coins whose odds the carry sets, with a cost at every step; every element in its own
    lane.
    """

    def program(phi):
        def step(carry, t):
            z = numpyro.sample(
                "z", dist.Bernoulli(logits=phi[0] + phi[1] * carry), infer={"gradient": MEASURE}
            )
            carry = 0.5 * carry + z
            return carry, jnp.sin(carry + t)

        return scan(step, 0.2, jnp.arange(4.0))[1].sum()

    def answer(phi):
        total = 0.0
        for path in itertools.product((0, 1), repeat=4):
            carry, log_prob, cost = 0.2, 0.0, 0.0
            for t, z in enumerate(path):
                log_prob += dist.Bernoulli(logits=phi[0] + phi[1] * carry).log_prob(z)
                carry = 0.5 * carry + z
                cost += jnp.sin(carry + t)
            total += jnp.exp(log_prob) * cost
        return total

    phi = jnp.array([0.3, -0.8])
    assert_unbiased(estimates(program, phi), jax.value_and_grad(answer)(phi))


def test_particles_of_a_nonlinear_objective():
    """Under a logarithm particles meet: a lane for each."""

    def program(logit):
        cost = replicate(
            lambda: 1.0 + numpyro.sample("z", dist.Bernoulli(logits=logit), infer={"gradient": LOCAL}), 3
        )
        return jnp.log(cost.mean())

    def answer(logit):
        p = jax.nn.sigmoid(logit)
        return sum(
            p ** sum(z) * (1 - p) ** (3 - sum(z)) * jnp.log(1 + sum(z) / 3)
            for z in itertools.product((0, 1), repeat=3)
        )

    assert_unbiased(estimates(program, 0.4), jax.value_and_grad(answer)(0.4))


class OneHot(dist.Distribution):
    """A law of a user's whose outcomes are vectors: the rows of the identity matrix."""

    arg_constraints = {"logits": dist.constraints.real_vector}
    support = dist.constraints.simplex
    has_enumerate_support = True
    pytree_data_fields = ("logits",)

    def __init__(self, logits):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def sample(self, key, sample_shape=()):
        drawn = jax.random.categorical(key, self.logits, shape=sample_shape + self.batch_shape)
        return jax.nn.one_hot(drawn, self.event_shape[0])

    def log_prob(self, value):
        return jnp.sum(value * jax.nn.log_softmax(self.logits), axis=-1)

    def enumerate_support(self, expand=True):
        rows = jnp.eye(self.event_shape[0]).reshape(-1, *(1,) * len(self.batch_shape), *self.event_shape)
        return jnp.broadcast_to(rows, (len(rows), *self.batch_shape, *self.event_shape)) if expand else rows


def test_outcomes_may_be_vectors():
    """Two one-hot draws in a plate: the alternatives to each are the other rows, and the gradient is that of
    the sum over outcomes.
    """
    prices, logits = jnp.array([1.0, 4.0, 9.0]), jnp.array([[0.3, -0.5, 1.0], [0.0, 2.0, -1.0]])
    drawn = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    others = LOCAL.alternatives(OneHot(logits), None, drawn)
    # the order of the support from the draw on
    assert [[int(x[n].argmax()) for x in others] for n in range(2)] == [[2, 0], [1, 2]]

    def program(logits):
        with numpyro.plate("n", 2):
            return jnp.sum(numpyro.sample("x", OneHot(logits), infer={"gradient": LOCAL}) @ prices)

    _, grad = expectation(program).value_and_grad(jax.random.key(0), logits)
    np.testing.assert_allclose(
        grad, jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) @ prices))(logits), rtol=1e-5
    )


def test_a_site_that_nothing_feels():
    def program(p):
        numpyro.sample("z", dist.Poisson(p), infer={"gradient": MEASURE})
        return 2.0 * p

    assert float(expectation(program).value_and_grad(jax.random.key(0), 1.5)[1]) == 2.0


def test_by_default_local_enumeration_comes_before_the_score_function():
    """Eight coins whose costs meet are 256 joint assignments but eight lanes; a hundred are scored."""

    def program(n):
        def run(logits):
            with numpyro.plate("n", n):
                z = numpyro.sample("z", dist.Bernoulli(logits=logits))
            return jnp.prod(1.0 + 0.1 * z)

        return run

    def exact_gradient(logits):
        p = jax.nn.sigmoid(logits)
        return jax.value_and_grad(lambda x: jnp.prod(1 + 0.1 * jax.nn.sigmoid(x)))(logits), p

    few = estimates(program(8), jnp.zeros(8), num=2000)
    assert_unbiased(few, exact_gradient(jnp.zeros(8))[0])
    many = estimates(program(100), jnp.zeros(100), num=100)
    relative = [float((s[1].std(0) / jnp.abs(s[1].mean(0))).mean()) for s in (few, many)]
    assert relative[0] < 0.3 < 3.0 < relative[1]


# --- what it cannot do, it says
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [MEASURE, LOCAL], ids=repr)
def test_second_derivatives_are_refused(strategy):
    def program(p):
        a = numpyro.sample("a", dist.Bernoulli(p), infer={"gradient": strategy})
        return (1.0 + a) * p

    est = expectation(program)
    with pytest.raises(StrategyError, match="'a'.*first derivatives only.*'enumerate' or 'score'"):
        jax.hessian(lambda p: est.value(jax.random.key(0), p))(0.3)


def test_a_parameter_without_a_pair_is_refused_only_if_it_is_differentiated():
    def program(params):
        return numpyro.sample("x", dist.Gamma(params["a"], params["b"]), infer={"gradient": MEASURE})

    est = expectation(program)
    with pytest.raises(StrategyError, match="concentration of site 'x'.*'reparam' or 'score'"):
        est.value_and_grad(jax.random.key(0), {"a": 2.0, "b": 1.0})
    grads = jax.grad(lambda b: est.value(jax.random.key(0), {"a": 2.0, "b": b}))(1.0)
    assert np.isfinite(grads)


def test_a_law_without_a_pair():
    with pytest.raises(
        StrategyError, match=r"MeasureValued\(\) cannot serve site 'x' \(Beta\).*Reparameterize.*Score"
    ):
        expectation(lambda: numpyro.sample("x", dist.Beta(1.0, 1.0), infer={"gradient": MEASURE})).value(
            jax.random.key(0)
        )
