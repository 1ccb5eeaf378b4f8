"""An expectation's value, gradient and Hessian are unbiased, whatever strategies its sites mix.

Programs of one or two sites with closed forms or finite sums beside them. Statistical tests average 20,000
replicates under fixed keys and allow 4.5 standard errors: about 150 coordinates, a false alarm rate of 0.1%
over fresh keys. What enumeration or reparameterisation make exact is compared exactly. Objectives over models
and guides have their own tests (``tests/objectives``).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import expectation, log_density, replicate, simulate
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError
from ppl_ext.gradients import Enumerate, Reparameterize
from ppl_ext.objectives import ELBO
from tests.estimates import SCORE, close, coin, exactly, hessians, once, replicates, sigmoid
from tests.oracles import assert_unbiased, gaussian, quick_jit, z_scores

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


# --- one site
# ------------------------------------------------------------------------------------------------------------


def gaussian_program(strategy):
    def program(p):
        x = numpyro.sample("x", dist.Normal(p["mu"], p["sigma"]), infer={"gradient": strategy})
        return x**2 + p["mu"] * x

    return program


def gaussian_moments(p):
    return p["mu"] ** 2 + p["sigma"] ** 2 + p["mu"] ** 2


@pytest.mark.parametrize("strategy", [Reparameterize(), SCORE], ids=["reparam", "score"])
def test_a_gaussian_site_against_its_closed_form(strategy):
    params = {"mu": 0.4, "sigma": 0.7}
    assert_unbiased(replicates(gaussian_program(strategy), params), exactly(gaussian_moments, params))


def test_the_assertion_tells_a_gradient_that_is_wrong():
    """A program that ignores its law (the mutation: no score term at all) fails the same assertion."""

    def program(p):
        x = jax.lax.stop_gradient(numpyro.sample("x", dist.Normal(p["mu"], p["sigma"])))
        return x**2 + p["mu"] * x

    params = {"mu": 0.4, "sigma": 0.7}
    scores = z_scores(replicates(program, params), exactly(gaussian_moments, params))
    assert scores[0] < 4.5  # its value is right
    assert min(jax.tree.leaves(scores[1])) > 4.5


@pytest.mark.parametrize(
    ("law", "mean"),
    [
        (lambda p: dist.Poisson(p), lambda p: p + p**2),
        (lambda p: dist.Geometric(probs=1 / (1 + p)), lambda p: p + 2 * p**2),
        (lambda p: dist.Gamma(p, 2.0), lambda p: p / 4 + (p / 2) ** 2),
    ],
    ids=["poisson", "geometric", "gamma"],
)
def test_a_scored_site_of_infinite_support(law, mean):
    def program(p):
        return 1.0 * numpyro.sample("n", law(p), infer={"gradient": SCORE}) ** 2

    assert_unbiased(replicates(program, 1.7), exactly(mean, 1.7))


def test_an_implicitly_reparameterised_site():
    def program(p):
        return numpyro.sample("g", dist.Gamma(p, 2.0)) ** 2

    assert_unbiased(replicates(program, 1.7), exactly(lambda p: p / 4 + (p / 2) ** 2, 1.7))


# --- enumeration is exact
# ------------------------------------------------------------------------------------------------------------


def two_dice(p):
    a = numpyro.sample("a", dist.Bernoulli(logits=p["a"]), infer={"gradient": "enumerate"})
    c = numpyro.sample("c", dist.Categorical(logits=p["c"] * (1.0 + a)), infer={"gradient": "enumerate"})
    return p["scale"] * jnp.sin(a + 2.0 * c)


def two_dice_by_hand(p):
    total = 0.0
    for a, odds in ((0.0, 1 - sigmoid(p["a"])), (1.0, sigmoid(p["a"]))):
        total += odds * jnp.sum(
            jax.nn.softmax(p["c"] * (1.0 + a)) * p["scale"] * jnp.sin(a + 2.0 * jnp.arange(3))
        )
    return total


DICE = {"a": jnp.array(0.3), "c": jnp.array([0.1, -0.4, 0.2]), "scale": jnp.array(1.3)}


def test_enumeration_needs_no_luck():
    both = replicates(two_dice, DICE, 2)
    close(both, jax.tree.map(lambda x: jnp.stack([x, x]), exactly(two_dice_by_hand, DICE)))


def test_the_hessian_of_an_enumerated_program_is_exact():
    close(
        jax.tree.map(lambda h: h[0], hessians(two_dice, DICE, 1)),
        quick_jit(jax.hessian(two_dice_by_hand))(DICE),
        5e-5,
    )


def test_forward_over_reverse_gives_the_same_hessian():
    forward = quick_jit(jax.hessian(lambda p: expectation(two_dice).value(jax.random.key(0), p)))(DICE)
    close(forward, quick_jit(jax.hessian(two_dice_by_hand))(DICE), 5e-5)


def test_sites_are_enumerated_side_by_side_in_a_plate():
    """Twelve ternary elements take three lanes and not 3**12, since their costs do not meet."""

    def program(p):
        def model():
            with numpyro.plate("n", 12):
                z = numpyro.sample("z", dist.Categorical(logits=p), infer={"gradient": "enumerate"})
                numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=jnp.arange(12.0) / 6)

        return simulate(model).log_density

    def by_hand(p):
        costs = jax.nn.log_softmax(p) + dist.Normal(jnp.arange(3.0), 1.0).log_prob(
            jnp.arange(12.0)[:, None] / 6
        )
        return jnp.sum(jax.nn.softmax(p) * costs)

    logits = jnp.array([0.2, -0.3, 0.5])
    close(once(program, logits), exactly(by_hand, logits))


LAWS = {
    "categorical": lambda p: dist.Categorical(probs=jnp.stack([1 - p, p])),
    "infinite odds": lambda p: dist.Bernoulli(logits=jnp.log(p) - jnp.log1p(-p)),
}


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("law", LAWS)
def test_what_is_impossible_counts_for_nothing(law, p):
    """Even where it costs infinitely much."""

    def program(p):
        z = numpyro.sample("z", LAWS[law](p), infer={"gradient": "enumerate"})
        return jnp.where(z == jax.lax.stop_gradient(p), 2.0, -jnp.inf)

    assert float(expectation(program).value(jax.random.key(0), jnp.array(p))) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("strategy", [SCORE, Enumerate()], ids=["score", "enumerate"])
def test_odds_that_saturate(strategy):
    """Where a probability rounds to zero or one, values stay exact and gradients small and finite."""

    def program(logit):
        return 2.0 + 3.0 * numpyro.sample("z", dist.Bernoulli(logits=logit), infer={"gradient": strategy})

    for logit, exact in ((-120.0, 2.0), (120.0, 5.0)):
        value, grad = expectation(program).value_and_grad(jax.random.key(0), jnp.array(logit))
        assert float(value) == exact
        assert abs(float(grad)) < 1e-6


# --- pairs of strategies on dependent sites
# --------------------------------------------------------------------------------------------

KINDS = {
    "reparam normal": "reparam",
    "score normal": SCORE,
    "score coin": SCORE,
    "enumerate coin": "enumerate",
}
PAIR = {"phi": jnp.array([0.3, -0.2]), "theta": jnp.array(0.8)}


def site(name, kind, x):
    law = dist.Normal(x, 0.8) if "normal" in kind else dist.Bernoulli(logits=x)
    return 1.0 * numpyro.sample(name, law, infer={"gradient": KINDS[kind]})


def outcomes(kind, x):
    """What a site can be, and with which probabilities."""
    if "normal" in kind:
        nodes, log_weights = gaussian(24)
        return x + 0.8 * nodes, np.exp(log_weights)
    return np.arange(2.0), jnp.stack([1 - sigmoid(x), sigmoid(x)])


def last_cost(p, a, b):
    return (a + 1.0) * b**2 + p["theta"] * a * b


def pair(first, second):
    def program(p):
        a = site("a", first, p["phi"][0])
        b = site("b", second, p["phi"][1] + 0.9 * a * p["theta"])
        return last_cost(p, a, b)

    def by_hand(p):
        total = 0.0
        for a, odds_a in zip(*outcomes(first, p["phi"][0]), strict=True):
            b, odds_b = outcomes(second, p["phi"][1] + 0.9 * a * p["theta"])
            total += odds_a * jnp.sum(odds_b * last_cost(p, a, b))
        return total

    return program, by_hand


SCORED_NORMAL = [(f, s) for f in KINDS for s in KINDS if "score normal" in (f, s)]
NEEDED = [(f, s) for f in KINDS for s in KINDS if "score normal" not in (f, s)] + [
    ("score normal", "reparam normal")
]


@pytest.mark.parametrize(
    ("first", "second"),
    [*NEEDED, *(pytest.param(*p, marks=pytest.mark.slow) for p in SCORED_NORMAL if p not in NEEDED)],
)
def test_every_pair_of_strategies(first, second):
    program, by_hand = pair(first, second)
    assert_unbiased(replicates(program, PAIR), exactly(by_hand, PAIR))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("score coin", "score coin"),
        ("score coin", "enumerate coin"),
        ("enumerate coin", "score coin"),
        ("score coin", "reparam normal"),
    ],
)
def test_hessians_of_scored_sites_are_unbiased(first, second):
    program, by_hand = pair(first, second)
    assert_unbiased(hessians(program, PAIR), quick_jit(jax.hessian(by_hand))(PAIR))


def test_the_hessian_is_unbiased_with_a_baseline():
    def program(p):
        return replicate(
            lambda: jnp.cos(numpyro.sample("z", dist.Bernoulli(logits=p), infer={"gradient": "score"})), 3
        ).mean()

    def by_hand(p):
        return 1 - sigmoid(p) + sigmoid(p) * jnp.cos(1.0)

    exact = quick_jit(jax.hessian(by_hand))(0.4)
    assert abs(exact) > 0.01
    assert_unbiased(hessians(program, jnp.array(0.4)), exact)


# --- parameters, keys, compilation
# -----------------------------------------------------------------------------------------------------


def test_params_of_any_structure():
    def program(p, shift, *, power):
        z = coin(p["logits"][0], "enumerate")
        return (z * p["net"]["w"].sum() + shift) ** power

    params = {"logits": [jnp.array(0.4), jnp.array(0.0)], "net": {"w": jnp.array([1.0, 2.0])}}
    value, grad = expectation(program).value_and_grad(jax.random.key(0), params, 0.5, power=2)
    q = sigmoid(0.4)
    close(value, q * 3.5**2 + (1 - q) * 0.25)
    close(grad, {"logits": [q * (1 - q) * 12.0, 0.0], "net": {"w": jnp.full(2, q * 7.0)}})


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "legacy"])
def test_both_kinds_of_keys(key):
    value = expectation(gaussian_program("score")).value(key, {"mu": 0.4, "sigma": 0.7})
    close(value, expectation(gaussian_program("score")).value(jax.random.key(3), {"mu": 0.4, "sigma": 0.7}))


def test_vmap_over_keys_and_params_is_a_loop():
    program, _ = pair("score coin", "reparam normal")
    estimator = expectation(program)
    keys = jax.random.split(jax.random.key(0), 4)
    together = jax.vmap(lambda key: estimator.value_and_grad(key, PAIR))(keys)
    one_by_one = [estimator.value_and_grad(key, PAIR) for key in keys]
    close(together, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one))
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PAIR)
    together = jax.vmap(estimator.value_and_grad, in_axes=(None, 0))(keys[0], many)
    close(
        jax.tree.map(lambda x: x[1], together),
        estimator.value_and_grad(keys[0], jax.tree.map(lambda x: 2 * x, PAIR)),
    )


def test_grad_of_value_is_value_and_grad():
    program, _ = pair("score coin", "enumerate coin")
    key = jax.random.key(5)
    close(
        jax.grad(lambda p: expectation(program).value(key, p))(PAIR),
        expectation(program).value_and_grad(key, PAIR)[1],
    )


@pytest.mark.parametrize("kind", [float, np.float32, jnp.asarray], ids=["float", "numpy", "jax"])
def test_a_second_call_traces_nothing(kind):
    runs = []

    def program(p, shift):
        runs.append(1)
        return coin(p, "score") + shift

    estimator = expectation(program)
    for call in (estimator.value, estimator.value_and_grad):
        call(jax.random.key(0), kind(0.3), kind(1.0))
        before = len(runs)
        call(jax.random.key(1), kind(0.4), kind(2.0))
        assert len(runs) == before


# --- what is wrong is said
# ------------------------------------------------------------------------------------------------------------


def test_an_open_handler():
    estimator = expectation(gaussian_program("score"))
    for call in (estimator.value, estimator.value_and_grad):
        with (
            numpyro.handlers.scale(scale=2.0),
            pytest.raises(HandlerError, match=r"handlers are open around the call \(scale\)"),
        ):
            call(jax.random.key(0), {"mu": 0.4, "sigma": 0.7})
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(HandlerError, match="seed"):
        estimator.value(jax.random.key(0), {"mu": 0.4, "sigma": 0.7})


def test_an_open_handler_around_a_jitted_loss():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    loss = jax.jit(lambda key: ELBO().loss(key, {}, model, model))
    with numpyro.handlers.scale(scale=2.0), pytest.raises(HandlerError, match="scale"):
        loss(jax.random.key(0))


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda: jnp.zeros(3), ArgumentError, r"array of shape \(3,\)"),
        (lambda: {"a": 1.0}, ArgumentTypeError, "dict"),
        (lambda: None, ArgumentTypeError, "NoneType"),
        (
            lambda: replicate(lambda: simulate(flat).log_density, 2),
            ArgumentError,
            "one value per particle.*mean",
        ),
    ],
    ids=["array", "dict", "none", "particles"],
)
def test_what_is_no_number(returned, error, message):
    with pytest.raises(error, match=message):
        expectation(returned).value(jax.random.key(0))


def flat():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def test_wrong_arguments():
    with pytest.raises(ArgumentTypeError, match="expectation: fn must be a function, got 0.5"):
        expectation(0.5)
    with pytest.raises(ArgumentError, match="first argument after rng_key"):
        expectation(lambda: 1.0).value_and_grad(jax.random.key(0))
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(ArgumentError, match="positive integer, got"):
            expectation(lambda n=wrong: replicate(lambda: 1.0, n).mean()).value(jax.random.key(0))
    with pytest.raises(HandlerError, match="inside an objective or an expectation"):
        replicate(lambda: 1.0, 2)


def test_a_log_density_is_an_expectation_too():
    def program(p):
        draw = simulate(lambda: numpyro.sample("z", dist.Bernoulli(logits=p)))
        return log_density(lambda: numpyro.sample("z", dist.Bernoulli(0.3)), draw.values) - draw.log_density

    def by_hand(p):
        q = sigmoid(p)
        return q * (jnp.log(0.3) - jnp.log(q)) + (1 - q) * (jnp.log(0.7) - jnp.log(1 - q))

    close(once(program, 0.4), exactly(by_hand, 0.4))  # enumerated by default
