"""A strategy is a value; one that cannot serve a site says so, and says what can."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import expectation
from ppl_ext.errors import ArgumentError, ArgumentTypeError, PplExtError, StrategyError
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import (
    SHORT_FORMS,
    Constant,
    Enumerate,
    EnumerateLocally,
    LeaveOneOut,
    MeasureValued,
    Reparameterize,
    ScoreFunction,
    Strategy,
    as_strategy,
    available,
)

DEFAULT_ROWS = 5  # of each table; the others are slow: see conftest.py

STRATEGIES = [
    *(
        Reparameterize(),
        ScoreFunction(),
        ScoreFunction(baseline=None),
        Enumerate(),
        Enumerate(max_lanes=3),
        Constant(),
    ),
    *(EnumerateLocally(), MeasureValued()),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_strategies_are_values(strategy):
    same = eval(repr(strategy), {**globals()})
    assert same == strategy and hash(same) == hash(strategy)
    assert sum(strategy == other for other in STRATEGIES) == 1
    for field in dataclasses.fields(strategy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, None)
    assert isinstance(strategy, Strategy)
    assert as_strategy(strategy, "z") is strategy


def test_short_forms():
    assert SHORT_FORMS == {
        "reparam": Reparameterize(),
        "score": ScoreFunction(LeaveOneOut()),
        "enumerate": Enumerate(),
        "enumerate_locally": EnumerateLocally(),
        "measure_valued": MeasureValued(),
    }
    for short, strategy in SHORT_FORMS.items():
        assert as_strategy(short, "z") == strategy


def test_unknown_forms_name_the_site():
    with pytest.raises(
        StrategyError,
        match="Unknown gradient strategy 'reinforce' for 'z'. Known: 'reparam', 'score', 'enumerate'",
    ):
        as_strategy("reinforce", "z")
    with pytest.raises(StrategyError, match="strategy of 'z' is a class; give an instance: Enumerate()"):
        as_strategy(Enumerate, "z")
    with pytest.raises(StrategyError, match="3 for 'z'"):
        as_strategy(3, "z")


def test_wrong_options():
    for wrong in (0, -1, 2.5, "many"):
        with pytest.raises(ArgumentError, match="max_lanes"):
            Enumerate(max_lanes=wrong)
    for wrong in ("mean", LeaveOneOut, 0.0):
        with pytest.raises(ArgumentTypeError, match="baseline"):
            ScoreFunction(baseline=wrong)


# Which strategies serve which law, and which is the default.
FINITE = {"score", "enumerate", "enumerate_locally"}
SERVED = {
    "normal": (dist.Normal(0.0, 1.0), {"reparam", "score", "measure_valued"}, Reparameterize),
    "gamma": (dist.Gamma(2.0, 1.0), {"reparam", "score", "measure_valued"}, Reparameterize),
    "dirichlet": (dist.Dirichlet(jnp.ones(3)), {"reparam", "score"}, Reparameterize),
    "multivariate": (dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), {"reparam", "score"}, Reparameterize),
    "lognormal": (dist.LogNormal(0.0, 1.0), {"reparam", "score"}, Reparameterize),
    "to_event": (
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        {"reparam", "score", "measure_valued"},
        Reparameterize,
    ),
    "masked": (
        dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False])),
        {"reparam", "score", "measure_valued"},
        Reparameterize,
    ),
    "expanded": (dist.Normal(0.0, 1.0).expand([2]), {"reparam", "score", "measure_valued"}, Reparameterize),
    "bernoulli": (dist.Bernoulli(0.3), FINITE | {"measure_valued"}, Enumerate),
    "bernoulli logits": (dist.Bernoulli(logits=0.3), FINITE | {"measure_valued"}, Enumerate),
    "categorical": (dist.Categorical(probs=jnp.ones(3) / 3), FINITE | {"measure_valued"}, Enumerate),
    "masked coin": (
        dist.Bernoulli(0.3 * jnp.ones(2)).mask(jnp.array([True, False])),
        FINITE | {"measure_valued"},
        Enumerate,
    ),
    "expanded coin": (dist.Bernoulli(0.3).expand([2]), FINITE | {"measure_valued"}, Enumerate),
    "binomial": (dist.Binomial(4, 0.3), FINITE | {"measure_valued"}, Enumerate),
    "large binomial": (dist.Binomial(100, 0.3), FINITE | {"measure_valued"}, ScoreFunction),
    "discrete uniform": (dist.DiscreteUniform(0, 3), FINITE, Enumerate),
    "poisson": (dist.Poisson(1.0), {"score", "measure_valued"}, ScoreFunction),
    "geometric": (dist.Geometric(0.3), {"score", "measure_valued"}, ScoreFunction),
    "von mises": (dist.VonMises(0.0, 1.0), {"score"}, ScoreFunction),
}


def choice(law, **infer):
    """The strategy that a run inside an expectation picks for a site."""
    with (run := Run(jax.random.key(0), jax.random.key(1))):
        numpyro.sample("z", law, infer=infer)
    return run.choices[0].strategy if run.choices else Reparameterize()


@pytest.mark.parametrize("name", SERVED)
def test_what_serves_a_law_and_its_default(name):
    law, serving, default = SERVED[name]
    assert set(available(law)) == {repr(s) for s in serving}
    assert isinstance(choice(law), default)
    for short in serving:
        assert isinstance(choice(law, gradient=short), type(SHORT_FORMS[short]))


@pytest.mark.parametrize(
    ("law", "strategy", "kind", "others"),
    [
        (lambda: dist.Poisson(1.0), "enumerate", "Poisson", "ScoreFunction"),
        (lambda: dist.Bernoulli(0.3), "reparam", "Bernoulli", "ScoreFunction"),
        (lambda: dist.Bernoulli(0.3), "reparam", "Bernoulli", "Enumerate"),
        (
            lambda: dist.Bernoulli(0.3 * jnp.ones(2)).mask(jnp.array([True, False])),
            "reparam",
            "Bernoulli",
            "Enumerate",
        ),
        (lambda: dist.Normal(0.0, 1.0), "enumerate", "Normal", "Reparameterize"),
    ],
)
def test_a_strategy_that_cannot_serve_names_the_site_and_what_can(law, strategy, kind, others):
    def program(p):
        return 1.0 * numpyro.sample("the_site", law(), infer={"gradient": strategy}).sum()

    with pytest.raises(
        StrategyError, match=rf"cannot serve site 'the_site' \({kind}.*\). Strategies that can: .*{others}"
    ) as error:
        expectation(program).value(jax.random.key(0), 0.3)
    assert isinstance(error.value, ValueError) and isinstance(error.value, PplExtError)


def test_enumerating_a_traced_total_count():
    def program(n, strategy):
        infer = {} if strategy is None else {"gradient": strategy}
        return 1.0 * numpyro.sample("n", dist.Binomial(n, 0.3), infer=infer)

    with pytest.raises(StrategyError, match="(?s)Site 'n' cannot be enumerated.*'score'.*total_count"):
        jax.jit(lambda n: expectation(program).value(jax.random.key(0), n, "enumerate"))(4)
    # whose value is asked for is a constant
    held = expectation(program).value(jax.random.key(0), jnp.array(4), "enumerate")
    assert float(held) == pytest.approx(1.2, abs=1e-5)
    assert expectation(program).value(jax.random.key(0), jnp.array(4), None) <= 4  # by default it is scored
    assert float(expectation(program).value(jax.random.key(0), 4, "enumerate")) == pytest.approx(
        1.2, abs=1e-5
    )


def summed_coins(strategy, num):
    def program():
        with numpyro.plate("n", num):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"gradient": strategy})
        return 1.0 * z.sum() ** 2

    return program


def test_too_many_lanes():
    with pytest.raises(
        StrategyError,
        match=r"needs 1024 assignments \('z': 1024\), more than max_lanes=1000.*score.*max_lanes",
    ):
        expectation(summed_coins(Enumerate(max_lanes=1000), 10)).value(jax.random.key(0))
    exact = 10 * 0.3 * 0.7 + 9.0
    assert float(
        expectation(summed_coins(Enumerate(max_lanes=1024), 10)).value(jax.random.key(0))
    ) == pytest.approx(exact, rel=1e-5)


def test_the_smallest_limit_counts():
    def program():
        a = numpyro.sample(
            "a", dist.Categorical(probs=jnp.ones(3) / 3), infer={"gradient": Enumerate(max_lanes=5)}
        )
        return 1.0 * a * numpyro.sample("b", dist.Bernoulli(0.3), infer={"gradient": "enumerate"})

    with pytest.raises(StrategyError, match=r"6 assignments \('a': 3, 'b': 2\), more than max_lanes=5"):
        expectation(program).value(jax.random.key(0))


def test_by_default_many_lanes_become_scores():
    """Nobody asked for enumeration here, so a program of 2**10 assignments is scored instead: its value
    depends on the key.
    """

    def program(num):
        def run():
            with numpyro.plate("n", num):
                z = numpyro.sample("z", dist.Bernoulli(0.3))
            return 1.0 * z.sum() ** 2

        return run

    few, many = (
        np.asarray(jax.vmap(expectation(program(n)).value)(jax.random.split(jax.random.key(0), 20)))
        for n in (3, 10)
    )
    np.testing.assert_allclose(few, 3 * 0.21 + 0.81, rtol=1e-5)
    assert many.std() > 1.0


def test_constant_has_the_value_and_no_gradient():
    for law in (lambda p: dist.Normal(p, 1.0), lambda p: dist.Bernoulli(p), lambda p: dist.Poisson(p)):

        def program(p, law=law):
            return 1.0 * numpyro.sample("z", law(p), infer={"gradient": Constant()}) * (1 + 0 * p) + p

        value, grad = expectation(program).value_and_grad(jax.random.key(0), 0.3)
        assert np.isfinite(value)
        assert float(grad) == 1.0


def test_the_score_of_a_law_whose_support_moves():
    """The derivative of a uniform density misses the boundary, so the score would be wrong without a word."""
    for law in (
        dist.Uniform(0.0, 2.0),
        dist.Delta(1.0),
        dist.TruncatedNormal(0.0, 1.0, low=-1.0),
        dist.Uniform(0.0, 1.0).expand([2]),
    ):
        with pytest.raises(StrategyError, match="cannot serve site 'z'"):
            choice(law, gradient="score")
