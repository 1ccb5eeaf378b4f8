"""Observations that feed the density of others are found, others are not; and how a series is judged instead
of by leave-one-out.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from scipy.stats import norm

import ppl_ext
from ppl_ext.diagnostics import feeding, leave_future_out, loo
from ppl_ext.diagnostics.sites import describe
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.objectives import ELBO
from ppl_ext.result import Fit

DEFAULT_ROWS = 6  # of each table; the others are slow: see conftest.py

Y = jnp.asarray(2.0 * np.sin(np.arange(20.0) / 3.0), jnp.float32)
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)), jnp.float32)


def slope():
    return numpyro.sample("phi", dist.Normal(0.0, 1.0))


def carried(y):
    """NumPyro's ar2 and var2: what is observed is handed on."""
    phi = slope()
    scan(lambda before, now: (numpyro.sample("y", dist.Normal(phi * before, 0.5), obs=now), None), 0.0, y)


def second_order(y):
    phi = slope()

    def step(before, now):
        now = numpyro.sample("y", dist.Normal(phi * before[1], 0.5), obs=now)
        return (now, before[0]), None

    scan(step, (0.0, 0.0), y)


def from_the_argument(y):
    """NumPyro's holt_winters and SGT: a level that the array itself moves, the site conditioned on it."""
    phi = slope()

    def step(level, t):
        numpyro.sample("y", dist.Normal(level, 0.5))
        return phi * y[t] + (1 - phi) * level, None

    with numpyro.handlers.condition(data={"y": y}):
        scan(step, 0.0, jnp.arange(20))


def lagged(y):
    numpyro.sample("y", dist.Normal(slope() * y[:-1], 0.5), obs=y[1:])


def lagged_counts(y):
    numpyro.sample("y", dist.Poisson(jnp.exp(0.1 * slope() * y[:-1])), obs=y[1:])


def neighbours(y):
    """Each site of a ring given the sum of its neighbours (a pseudo-likelihood)."""
    with numpyro.plate("n", 20):
        numpyro.sample("y", dist.Normal(slope_outside * (jnp.roll(y, 1) + jnp.roll(y, -1)), 0.5), obs=y)


slope_outside = 0.2


def in_two_series(y):
    phi = slope()

    def step(before, now):
        a = numpyro.sample("a", dist.Normal(phi * before[1], 0.5), obs=now)
        b = numpyro.sample("b", dist.Normal(phi * before[0] + a, 0.5), obs=-now)
        return (a, b), None

    scan(step, (0.0, 0.0), y)


def backward(y):
    phi = slope()
    scan(
        lambda after, now: (numpyro.sample("y", dist.Normal(phi * after, 0.5), obs=now), None),
        0.0,
        y,
        reverse=True,
    )


def plain(y):
    phi = slope()
    with numpyro.plate("n", 20):
        numpyro.sample("y", dist.Normal(phi, 0.5), obs=y)


def regression(table):
    """Covariates and response in one array, the covariates' mean in every term."""
    phi = slope()
    with numpyro.plate("n", 20):
        numpyro.sample("y", dist.Normal(phi * table[:, 0] + table[:, 0].mean(), 0.5), obs=table[:, 1])


def hidden_state(y):
    def step(x, now):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=now)
        return x, None

    scan(step, 0.0, y)


def subsampled(y):
    phi = slope()
    with numpyro.plate("n", 20, subsample_size=10) as index:
        numpyro.sample("y", dist.Normal(phi, 0.5), obs=y[index])


def mediated(y):
    """One observed site explains another, element by element."""
    phi = slope()
    with numpyro.plate("n", 20):
        a = numpyro.sample("a", dist.Normal(phi, 0.5), obs=y)
        numpyro.sample("b", dist.Normal(phi * a, 0.5), obs=-y)


def sizes_from_data(groups):
    """An array whose largest entry is a size: it cannot be traced."""
    with numpyro.plate("k", int(np.max(groups)) + 1):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 20):
        numpyro.sample("y", dist.Normal(mean[groups], 0.5), obs=jnp.zeros(20))


def short(y):
    carried(y[:3])


def of_two(y):
    carried(y[:2])


def above_a_threshold(y):
    """Of so few links only some rounds of exchanges show any."""
    phi = slope()

    def step(before, now):
        numpyro.sample("y", dist.Normal(phi * before, 0.5), obs=now)
        return jnp.where(now > 0.0, 1.0, 0.0), None

    scan(step, 0.0, y)


def of_rare_counts(y):
    before = jnp.concatenate([jnp.zeros(1, y.dtype), y[:-1]])
    numpyro.sample("y", dist.Poisson(jnp.exp(slope() + 0.1 * (before > 2))), obs=y)


def of_common_width(y):
    """A statistic of all the data is no link from one to the next."""
    numpyro.sample("y", dist.Normal(slope(), y.std()), obs=y)


FOUND = {
    carried: {"y"},
    second_order: {"y"},
    from_the_argument: {"y"},
    lagged: {"y"},
    lagged_counts: {"y"},
    neighbours: {"y"},
    in_two_series: {"a", "b"},
    backward: {"y"},
    short: {"y"},
    of_two: {"y"},
    above_a_threshold: {"y"},
    of_rare_counts: {"y"},
    of_common_width: set(),
    plain: set(),
    regression: set(),
    hidden_state: set(),
    subsampled: set(),
    mediated: set(),
    sizes_from_data: set(),
}
DATA = {
    lagged_counts: jnp.arange(20) % 7,
    of_rare_counts: jnp.arange(8) % 5,
    above_a_threshold: 2.0 * jnp.sin(1.3 * jnp.arange(8.0)),
    regression: TABLE,
    sizes_from_data: np.arange(20) % 3,
}
DRAW = {"phi": jnp.array(0.3), "x": Y, "mean": jnp.zeros(3)}


def found(model):
    args = (DATA.get(model, Y),)
    return feeding.feeding_sites(model, DRAW, args, {}, {}, describe(model, DRAW, args, {}))


@pytest.mark.parametrize("model", FOUND, ids=lambda m: m.__name__)
def test_what_feeds_the_terms_of_others(model):
    assert found(model) == FOUND[model]


def test_what_the_data_flow_clears_is_not_computed(monkeypatch):
    monkeypatch.setattr(feeding, "_by_exchange", lambda *_: {"y"})
    assert found(plain) == found(hidden_state) == found(mediated) == set()
    assert found(carried) == {"y"}  # and the exchange is what decides there


def test_the_report_names_such_terms_and_leave_one_out_refuses_them():
    def guide(y):
        numpyro.sample("phi", dist.Normal(0.9, 0.05))

    fitted = Fit({}, np.zeros((1, 1)), carried, guide, ELBO(), (Y,))
    mcmc = MCMC(NUTS(carried), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    for report in (fitted.to_arviz(num_samples=5), ppl_ext.to_arviz(mcmc)):
        terms = report["log_predictive_one_step"]["y"]
        phi = np.asarray(report.posterior["phi"], float)[..., None]
        np.testing.assert_allclose(
            terms, norm.logpdf(Y, phi * np.concatenate([[0.0], Y[:-1]]), 0.5), rtol=1e-4
        )
        assert (
            not hasattr(report, "log_likelihood")
            and "'y' has observations" in report.attrs["log_likelihood_omitted"]
        )
        with pytest.raises(ModelError, match="loo: the terms of 'y'.*leave_future_out"):
            loo(report)
    with pytest.raises(
        ModelError, match="'y' has observations that the density of others reads.*leave_future_out"
    ):
        fitted.to_arviz(num_samples=5, log_likelihood=True)


# --- leave-future-out, against the predictive law of a conjugate autoregression


def posterior(y, steps):
    """Of the slope with a standard normal prior and known noise 0.5: precision and mean, in closed form."""
    y = np.asarray(y, float)
    before = np.concatenate([[0.0], y])[:steps]
    precision = 1.0 + (before**2).sum() / 0.25
    return precision, (before * y[:steps]).sum() / 0.25 / precision


def test_a_gap_that_no_mask_leaves_out_is_no_certainty():
    """Its NaN, and that of the next step, which reads it, counted as densities of one."""

    def refit(rng_key, steps):
        return {"phi": jax.random.normal(rng_key, (1, 50))}

    with pytest.raises(ModelError, match="log density of 'y' is NaN at step 5.*obs_mask"):
        leave_future_out(jax.random.key(0), refit, carried, Y.at[5].set(jnp.nan), min_steps=3)


def exactly(y, first):
    y = np.asarray(y, float)
    out = []
    for t in range(first, len(y)):
        precision, mean = posterior(y, t)
        out.append(norm.logpdf(y[t], mean * y[t - 1], math.sqrt(0.25 + y[t - 1] ** 2 / precision)))
    return np.array(out)


def refit(rng_key, steps):
    precision, mean = posterior(Y, steps)
    return {
        "phi": np.asarray(mean + jax.random.normal(rng_key, (4, 2500)) / math.sqrt(precision), np.float32)
    }


@pytest.mark.parametrize("threshold", [0.7, -math.inf])
def test_leave_future_out_is_the_sum_of_predictive_densities(threshold):
    result = leave_future_out(jax.random.key(0), refit, carried, Y, min_steps=8, threshold=threshold)
    exact = exactly(Y, 8)
    np.testing.assert_allclose(result.pointwise, exact, atol=0.03)
    np.testing.assert_allclose(result.elpd, exact.sum(), atol=0.1)
    np.testing.assert_allclose(result.se, math.sqrt(12) * exact.std(), atol=0.1)
    assert (
        result.refits == (tuple(range(8, 20)) if threshold == -math.inf else result.refits)
        and len(result.refits) >= 1
    )
    assert (result.pareto_k <= threshold).all()
    # What terms at draws of the whole series would give is another number: the comparison can fail.
    precision, mean = posterior(Y, 20)
    assert abs(norm.logpdf(np.asarray(Y[8:]), mean * np.asarray(Y[7:-1]), 0.5).sum() - exact.sum()) > 0.15


def test_weights_carry_a_fit_forward_and_are_needed():
    """With few refits the weights have to move the posterior: without them the terms are off."""
    loose = leave_future_out(jax.random.key(0), refit, carried, Y, min_steps=3, threshold=5.0)
    assert len(loose.refits) < 6
    np.testing.assert_allclose(loose.pointwise, exactly(Y, 3), atol=0.25)


def test_a_chain_of_finite_states_is_predicted_too():
    move = jnp.array([[0.8, 0.2], [0.3, 0.7]])

    def chain(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

        def step(z, now):
            z = numpyro.sample("z", dist.Categorical(move[z]))
            numpyro.sample("y", dist.Normal(2.0 * z + mu, 1.0), obs=now)
            return z, None

        scan(step, 0, y)

    result = leave_future_out(
        jax.random.key(0), lambda key, n: {"mu": np.zeros((1, 40), np.float32)}, chain, Y[:5], min_steps=3
    )
    law, terms = np.array([0.8, 0.2]), []
    for value in np.asarray(Y[:5], float):
        joint = law * norm.pdf(value, np.array([0.0, 2.0]), 1.0)
        terms.append(np.log(joint.sum()))
        law = joint / joint.sum() @ np.asarray(move, float)
    np.testing.assert_allclose(result.pointwise, terms[3:], rtol=1e-4)


def test_mistakes_are_named():
    key = jax.random.key(0)
    with pytest.raises(ModelError, match="'x' has an entry for each step"):
        leave_future_out(
            key, lambda k, n: {"x": np.zeros((1, 5, 20), np.float32)}, hidden_state, Y, min_steps=3
        )
    with pytest.raises(ArgumentError, match="min_steps must be below the number of steps, 20"):
        leave_future_out(key, refit, carried, Y, min_steps=20)
    with pytest.raises(ArgumentError, match="var_name must be one of 'a', 'b', got None"):
        leave_future_out(key, refit, in_two_series, Y, min_steps=5)
    with pytest.raises(ArgumentError, match="no axis of time"):
        leave_future_out(
            key, refit, lambda y: numpyro.sample("y", dist.Normal(slope(), 1.0), obs=0.3), Y, min_steps=5
        )
