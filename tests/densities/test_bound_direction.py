"""Which way an estimated term errs, through sums, multiples and averages, and that a bound refuses the wrong
one.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import numpyro.handlers
import pytest
from numpyro.distributions.util import is_identically_one

from ppl_ext import log_density, log_mean_exp, marginal, objective, replicate, simulate
from ppl_ext.algorithms import Enumeration, ImportanceSampling
from ppl_ext.densities.bound_direction import Estimate, powered
from ppl_ext.densities.log_density import Label, LogDensity, lower_bound, upper_bound
from ppl_ext.errors import DirectionError
from ppl_ext.objectives import ELBO, IWELBO, ForwardKL, Renyi

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py


def term(kind, site="z"):
    return LogDensity((jnp.zeros(()),), (Label(site, (), Estimate(kind)),))


EXACT, UNBIASED, RECIPROCAL = term("exact"), term("unbiased"), term("reciprocal")


def errs(x):
    return x.labels[0].estimate.errs


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (EXACT, "exact"),
        (-3 * EXACT, "exact"),
        (UNBIASED, "lower"),
        (RECIPROCAL, "upper"),
        (-UNBIASED, "upper"),
        (-RECIPROCAL, "lower"),
        (1.0 - RECIPROCAL, "lower"),
        (-1.0 * -UNBIASED, "lower"),
        (0.5 * UNBIASED, "lower"),
        (UNBIASED / -2, "upper"),
        (0 * UNBIASED, "exact"),
        (jnp.float32(2.0) * RECIPROCAL, "upper"),
        ((UNBIASED + EXACT).sum(), "lower"),
    ],
)
def test_linear_operations_track_the_sign(x, expected):
    assert errs(x) == expected


def test_a_traced_factor_loses_the_direction_and_a_bound_says_so():
    def f(beta):
        lower_bound(beta * EXACT)
        with pytest.raises(DirectionError, match="'z' enters times a number that is only known at run time"):
            lower_bound(beta * UNBIASED)
        return beta

    jax.jit(f)(0.5)


@pytest.mark.parametrize("fine", [EXACT, UNBIASED, UNBIASED - RECIPROCAL, 2 * UNBIASED - 0.5 * RECIPROCAL])
def test_a_lower_bound_takes_unbiased_above_and_reciprocal_below(fine):
    assert lower_bound(fine) is fine
    assert upper_bound(-fine).labels == (-fine).labels


@pytest.mark.parametrize("wrong", [RECIPROCAL, -UNBIASED, UNBIASED + RECIPROCAL, EXACT - UNBIASED])
def test_a_lower_bound_refuses_the_rest(wrong):
    with pytest.raises(
        DirectionError,
        match=r"not be a lower bound, which takes \+ unbiased − reciprocal\. 'z' enters with the sign",
    ):
        lower_bound(wrong)
    if wrong is RECIPROCAL or len(wrong.labels) == 1:
        upper_bound(wrong)


@pytest.mark.parametrize(
    ("order", "power", "fine"), [(2.0, 0.5, True), (2.0, 0.4, False), (3.0, -0.1, True), (1.0, 0.9, False)]
)
def test_the_power_of_a_weight_is_convex_from_its_first_power_on_and_below_none(order, power, fine):
    parts = [("z", Estimate("unbiased", power))]
    if fine:
        assert powered(order)(parts) == Estimate("upper")
    else:
        with pytest.raises(DirectionError, match="no upper bound. 'z' enters"):
            powered(order)(parts)


def weights(x):
    return LogDensity(tuple(jnp.zeros(3) for _ in x.terms), x.labels, 1)


def test_an_average_of_weights_keeps_the_direction_where_there_is_one():
    assert log_mean_exp(weights(EXACT)).labels[0].estimate == Estimate()
    assert log_mean_exp(weights(UNBIASED - RECIPROCAL)).labels[0].estimate == Estimate("unbiased")
    assert log_mean_exp(weights(0.5 * UNBIASED)).labels[0].estimate == Estimate("lower")
    assert log_mean_exp(weights(RECIPROCAL - UNBIASED)).labels[0].estimate == Estimate("upper")
    assert log_mean_exp(weights(2 * RECIPROCAL)).labels[0].estimate == Estimate("upper")


@pytest.mark.parametrize("wrong", [UNBIASED + RECIPROCAL, 2 * UNBIASED, -2 * RECIPROCAL])
def test_an_average_of_weights_without_a_direction_is_refused(wrong):
    with pytest.raises(DirectionError, match="no bound.*'z' enters"):
        log_mean_exp(weights(wrong))
    assert float(log_mean_exp(weights(wrong).total)) == 0.0  # of numbers, it is the user's own affair


def test_one_sided_averages_average_again_only_the_safe_way():
    upper = log_mean_exp(weights(RECIPROCAL))
    assert log_mean_exp(weights(upper)).labels[0].estimate == Estimate("upper")
    with pytest.raises(DirectionError):
        log_mean_exp(weights(-upper))


# Through programs


def ring():
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(u, 1.0))


def model():
    x = numpyro.sample("x", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=0.5)


SUMMED = marginal(ring, ["x"], ImportanceSampling(2))
KEY = jax.random.key(0)


def tags(x):
    return [label.estimate.kind for label in x.labels if label.site.startswith("marginal")]


def test_programs_tag_their_estimates():
    def with_data():
        ring()
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0)

    def coins():
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(k, 1.0))

    assert tags(simulate(SUMMED, rng_key=KEY).log_density) == ["reciprocal"]
    assert tags(log_density(SUMMED, {"x": 0.1}, rng_key=KEY)) == ["unbiased"]
    assert tags(simulate(marginal(with_data, ["x"], ImportanceSampling(2)), rng_key=KEY).log_density) == [
        "unbiased"
    ]
    for change in (numpyro.handlers.scale(ring, 0.5), numpyro.handlers.mask(ring, jnp.asarray(True))):
        assert tags(simulate(marginal(change, ["x"], ImportanceSampling(2)), rng_key=KEY).log_density) == [
            "unbiased"
        ]
    exact = marginal(coins, ["x"], Enumeration())
    assert (
        tags(simulate(exact, rng_key=KEY).log_density)
        == tags(log_density(exact, {"x": 0.1}, rng_key=KEY))
        == ["exact"]
    )


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_scale_is_a_positive_power(scale):
    label = log_density(numpyro.handlers.scale(SUMMED, scale), {"x": 0.1}, rng_key=KEY).labels[-1]
    assert label.estimate == Estimate("unbiased", scale) and not is_identically_one(scale)

    @jax.jit
    def traced(scale):
        label = log_density(numpyro.handlers.scale(SUMMED, scale), {"x": 0.1}, rng_key=KEY).labels[-1]
        assert label.estimate.errs == "lower" and not label.estimate.weighs
        return scale

    traced(scale)


BOUNDS = [ELBO(2), IWELBO(2), Renyi(0.5, 2), Renyi(1.5, 2)]


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
def test_marginals_on_either_side_are_bounds(bound):
    assert jnp.isfinite(bound.loss(KEY, {}, model, SUMMED))

    def summed_model():
        x = SUMMED()["x"]
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.5)

    assert jnp.isfinite(bound.loss(KEY, {}, summed_model, SUMMED))


@pytest.mark.parametrize("bound", BOUNDS, ids=repr)
def test_a_guide_that_is_scored_the_wrong_way_is_refused(bound):
    """Its program has data, so the density that comes with the draw is unbiased: subtracted, it would push
    the bound up.
    """

    def with_data():
        ring()
        numpyro.factor("evidence", jnp.zeros(()))

    with pytest.raises(DirectionError, match=r"'marginal\(x\)' enters with the sign [+−].*normalize"):
        bound.loss(KEY, {}, model, marginal(with_data, ["x"], ImportanceSampling(2)))


def test_a_power_above_one_is_no_bound():
    with pytest.raises(DirectionError, match="power of at most one"):
        Renyi(-1.0, 2).loss(KEY, {}, model, SUMMED)


@pytest.mark.slow
def test_what_is_not_a_bound_is_not_refused():
    @objective
    def WrongWay(model, guide):
        draw = simulate(guide)
        return log_density(model, draw.values) - log_density(guide, dict(draw.values))

    @objective
    def StatedWrongWay(model, guide):
        draw = simulate(guide)
        return lower_bound(log_density(model, draw.values) - log_density(guide, dict(draw.values)))

    @objective
    def AveragedWrongWay(model, guide):
        def weight():
            draw = simulate(guide)
            return log_density(model, draw.values) + draw.log_density

        return log_mean_exp(replicate(weight, 2))

    assert jnp.isfinite(WrongWay().loss(KEY, {}, model, SUMMED))
    assert jnp.isfinite(ForwardKL(4).loss(KEY, {}, model, SUMMED))
    with pytest.raises(DirectionError, match="Score given values by `log_density`"):
        StatedWrongWay().loss(KEY, {}, model, SUMMED)
    # above the line the draw's density errs upwards: an upper bound
    assert jnp.isfinite(AveragedWrongWay().loss(KEY, {}, model, SUMMED))
