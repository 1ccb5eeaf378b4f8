"""Every distribution of NumPyro that can be sampled: drawn and scored, differentiated by each strategy that
claims it, and summed out.

The derivatives are those of integrals by quadrature, of sums over the outcomes, or, where a law has neither,
of what other draws say.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

from ppl_ext import expectation, log_density, simulate
from ppl_ext.errors import ModelError, ProgramError, StrategyError
from ppl_ext.gradients import SHORT_FORMS, as_strategy
from ppl_ext.handlers import gradient
from tests.estimates import replicates
from tests.laws_of_numpyro import CONTINUOUS, COUNTS, FINITE, LAWS, MIXED, NO_DRAW, NO_LAWS, WITHOUT_DRAWS
from tests.oracles import quick_jit

DEFAULT_ROWS = 6  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(3)
T = 0.3
ROWS = jnp.array([0.3, -0.2, 0.5])
DRAWN = {n: law for n, law in LAWS.items() if n not in {*NO_DRAW, *WITHOUT_DRAWS}}


def test_every_distribution_has_a_row():
    """A class that a new version of NumPyro brings has to be given one, or to be named as what is no law."""
    assert set(dist.__all__) - NO_LAWS == set(LAWS)
    assert sum(map(len, (CONTINUOUS, MIXED, COUNTS, FINITE, NO_DRAW))) == len(LAWS)


# --- densities

VARIANTS = {
    "rows": lambda law: law,
    "of one event": lambda law: law.to_event(1),
    "expanded": lambda law: law.expand((2, *law.batch_shape)),
    "masked": lambda law: law.mask(jnp.array([True, False, True])),
}


def program(law):
    """At twice the scale."""
    with numpyro.handlers.scale(scale=2.0):
        return numpyro.sample("x", law)


@pytest.mark.parametrize("name", DRAWN)
def test_a_draw_has_the_density_of_its_law(name):
    """What a run says of what it drew, and what is said of those values; beside NumPyro's own word."""

    def told():
        draw = simulate(program, DRAWN[name](ROWS), rng_key=KEY)
        x, pairs = draw.values["x"], {}
        for variant, varied in VARIANTS.items():
            law = varied(DRAWN[name](ROWS))
            value = jnp.broadcast_to(x, law.shape())
            pairs[variant] = log_density(program, {"x": value}, law).total, 2.0 * law.log_prob(value).sum()
        return (draw.log_density.total, pairs["rows"][1]), pairs

    by_run, by_values = quick_jit(told)()
    np.testing.assert_allclose(*by_run, rtol=2e-3, atol=2e-3)
    for variant, (given, expected) in by_values.items():
        assert np.isfinite(expected), variant
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5, err_msg=variant)


@pytest.mark.parametrize("verb", ["simulate", "expectation"])
@pytest.mark.parametrize("rows", [T, ROWS[:2]], ids=["alone", "rows"])
def test_what_cannot_be_drawn_says_so(rows, verb):
    def program(name):
        return numpyro.sample("x", LAWS[name](rows)).sum()

    def run(name):
        if verb == "simulate":
            return simulate(program, name, rng_key=KEY)
        return expectation(program).value(KEY, name)

    with pytest.raises(
        ProgramError,
        match="at site 'x'.*Nothing can be drawn of ImproperUniform: give the site a value, by a guide",
    ):
        run("ImproperUniform")
    said = {
        "simulate": r"'x' \(IntervalCensoredDistribution\) cannot be drawn: its draws have shape.*Observe it",
        "expectation": "cannot serve site 'x'",
    }
    with pytest.raises((ModelError, StrategyError), match=said[verb]):
        run("IntervalCensoredDistribution")


@pytest.mark.parametrize("name", sorted({*NO_DRAW, *WITHOUT_DRAWS}))
def test_what_cannot_be_drawn_can_be_scored(name):
    def told():
        law = LAWS[name](ROWS)
        value = jnp.full(law.shape(), 0.4)
        return log_density(program, {"x": value}, law).total, 2.0 * law.log_prob(value).sum()

    np.testing.assert_allclose(*quick_jit(told)(), rtol=1e-5)


# --- derivatives


def cost(x):
    """A bounded one, of any law's value."""
    w = 1.0 + 0.3 * jnp.arange(x.size).reshape(x.shape)
    return jnp.cos(w * x).sum()


def expected(law, outcomes, log_volume=0.0):
    log_weights = jax.lax.stop_gradient(law.log_prob(outcomes) + log_volume)
    counts = log_weights > -60.0  # far out there is no weight, and slopes overflow
    outcomes = jnp.where(
        counts.reshape(counts.shape + (1,) * (outcomes.ndim - 1)), outcomes, outcomes[jnp.argmax(log_weights)]
    )
    return jnp.sum(
        jnp.where(counts, jax.vmap(cost)(outcomes) * jnp.exp(law.log_prob(outcomes) + log_volume), 0.0)
    )


def by_quadrature(law, support=None, num=6001):
    """Over the real line, bent into the support (and wide enough for the tails of a Cauchy's)."""
    support, u = law.support if support is None else support, jnp.linspace(-9.0, 9.0, num)
    real = support is constraints.real

    def bent(u):
        return jnp.sinh(u) if real else biject_to(support)(1.6 * u)

    slope = jnp.abs(jax.vmap(jax.grad(bent))(u))
    x, inside = bent(u), slope > 0
    return expected(
        law,
        jnp.where(inside, x, bent(0.0)),
        jnp.where(inside, jnp.log(jnp.where(inside, slope, 1.0)), -jnp.inf),
    ) * (u[1] - u[0])


def by_counting(law):
    if law.event_shape:
        outcomes = [x for x in itertools.product(range(3), repeat=3) if sum(x) == 2]
    else:
        outcomes = law.enumerate_support(expand=False) if law.has_enumerate_support else jnp.arange(400)
    return expected(law, jnp.asarray(outcomes))


def by_parts(law):
    return cost(jnp.zeros(())) * jnp.exp(law.log_prob(jnp.zeros(()))) + by_quadrature(
        law, constraints.positive
    )


def exact(name, t):
    """The expected cost, where it can be had."""
    law = LAWS[name](t)
    if name in COUNTS or name in FINITE:
        return by_counting(law)
    if name.startswith("Hurdle"):
        return by_parts(law)
    return by_quadrature(law)


def draws_apart(name, t, apart=0.15, num=200_000):
    """Differences of draws under common keys: the derivative up to terms of the square of how far they lie
    apart.
    """
    keys = jax.random.split(jax.random.key(17), num)

    def difference(key):
        ends = [cost(LAWS[name](t + step).sample(key)) for step in (apart, -apart)]
        return (ends[0] - ends[1]) / (2 * apart)

    return jax.lax.map(difference, keys, batch_size=10_000)


def serving(name):
    law = LAWS[name](jnp.float32(T))
    return [short for short, strategy in SHORT_FORMS.items() if strategy.serves(law)]


STRATEGIES = {n: serving(n) for n in DRAWN if n != "Delta"}  # which has no density to integrate


@pytest.mark.parametrize(("name", "strategy"), [(n, s) for n, served in STRATEGIES.items() for s in served])
def test_each_strategy_that_claims_a_law_has_its_derivative(name, strategy):
    """Five standard errors: over all rows a false alarm in ten thousand runs."""

    def program(t):
        return cost(1.0 * numpyro.sample("x", LAWS[name](t), infer={"gradient": strategy}))

    values, slopes = (np.asarray(x, np.float64) for x in replicates(program, T, 8_000))
    error, more = slopes.std() / np.sqrt(len(slopes)), 0.0
    if LAWS[name](T).event_shape and name not in COUNTS:
        others = np.asarray(quick_jit(lambda: draws_apart(name, T))(), np.float64)
        truth, more = others.mean(), others.std() / np.sqrt(len(others))
        tolerance = 0.01
    else:
        value, truth = quick_jit(jax.value_and_grad(partial(exact, name)))(T)
        assert abs(values.mean() - value) < 5 * values.std() / np.sqrt(len(values)) + 2e-3, (
            values.mean(),
            value,
        )
        tolerance = 2e-3
    assert np.isfinite(slopes).all()
    assert abs(slopes.mean() - truth) < 5 * np.hypot(error, more) + tolerance, (
        slopes.mean(),
        truth,
        error,
        more,
    )


@pytest.mark.parametrize("name", LAWS)
def test_each_strategy_that_does_not_says_so(name):
    law, kind = LAWS[name](jnp.float32(T)), "."
    for short, strategy in SHORT_FORMS.items():
        if not strategy.serves(law):
            with pytest.raises(
                StrategyError, match=rf"cannot serve site 'x' \({kind}+\). Strategies that can: .*Constant"
            ):
                as_strategy(short, "x").check("x", law)
            with pytest.raises(StrategyError, match="cannot serve site 'x'"):
                expectation(
                    gradient(lambda law=law: cost(1.0 * numpyro.sample("x", law)), {"x": short})
                ).value(KEY)


MOVED = {
    "mixture of uniforms": lambda: dist.MixtureGeneral(
        dist.Categorical(jnp.ones(2) / 2), [dist.Uniform(0.0, T), dist.Uniform(T, 1.0)]
    ),
    "shifted beta": lambda: dist.TransformedDistribution(
        dist.Beta(2.0, 1.0), dist.transforms.AffineTransform(T, 2.0)
    ),
    "shifted gamma": lambda: dist.TransformedDistribution(
        dist.Gamma(2.0, 1.0), [dist.transforms.PowerTransform(0.5), dist.transforms.AffineTransform(T, 1.0)]
    ),
    "censored, so that draws are of another law": lambda: dist.LeftCensoredDistribution(
        dist.Normal(T, 1.0), censored=jnp.array(1.0)
    ),
    "hurdle before a truncated law": lambda: dist.HurdleProbs(
        dist.LeftTruncatedDistribution(dist.Normal(0.0, 1.0), T), 0.3
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_no_score_for_a_support_that_moves_within_or_for_draws_of_another_law(name):
    """What crosses the end that moves is not in the density's derivative."""
    with pytest.raises(StrategyError, match="ScoreFunction.* cannot serve site 'x'"):
        as_strategy("score", "x").check("x", MOVED[name]())
    whole = dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(T, 2.0), dist.transforms.ExpTransform()]
    )
    as_strategy("score", "x").check("x", whole)


# --- sums

MARK = {"enumerate": "parallel"}


def seen(law, mark, of=ROWS):
    with numpyro.plate("n", len(of)):
        z = numpyro.sample("z", law(of), infer=mark)
        numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=jnp.array([0.2, 1.4, -0.5]))


@pytest.mark.parametrize("name", FINITE)
def test_each_finite_law_is_summed_out_of_a_plate(name):
    law = FINITE[name]

    def by_hand(of):
        z = law(of).enumerate_support()
        return jax.nn.logsumexp(
            law(of).log_prob(z) + dist.Normal(1.0 * z, 1.0).log_prob(jnp.array([0.2, 1.4, -0.5])), axis=0
        ).sum()

    ours = quick_jit(jax.value_and_grad(lambda of: log_density(seen, {}, law, MARK, of).total))(ROWS)
    theirs = quick_jit(jax.value_and_grad(by_hand))(ROWS)
    for given, truth in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(given, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", sorted({*CONTINUOUS, *MIXED, *COUNTS} - {n for n in LAWS if LAWS[n](T).event_shape})
)
def test_no_other_law_is(name):
    with pytest.raises(
        ModelError,
        match="latent site 'z' .it is marked for enumeration in the model, and .* has no list of values",
    ):
        log_density(seen, {}, LAWS[name], MARK)
