"""Steps written as normal laws, read as they stand there: the same as what their log densities say."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale

import ppl_ext.state_space.stated as stated_module
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower

DEFAULT_ROWS = 4
T, D = 4, 2
RNG = np.random.default_rng(0)
MOVES = 0.5 * RNG.normal(size=(D, D))
ROOT = np.eye(D) + 0.4 * np.tril(RNG.normal(size=(D, D)))
Y = RNG.normal(size=(T, 3))
GAPS = np.where(RNG.uniform(size=(T, 3)) < 0.4, np.nan, Y)


def sites_that_read_each_other(x, y, a):
    """Names in another order than the sites, of which each reads those before it."""
    c = numpyro.sample("c", dist.Normal(0.7 * x[0], a))
    b = numpyro.sample("b", dist.Normal(0.5 * c - 0.3 * x[1], 0.8))
    d = numpyro.sample("a", dist.Normal(b + 0.4 * c * a, 0.6))
    numpyro.sample("y", dist.Normal(b - d, 0.5), obs=y[0])
    return jnp.stack([c, d])


def vector(x, y, a):
    x = numpyro.sample("x", dist.MultivariateNormal(MOVES @ x, scale_tril=a * ROOT))
    numpyro.sample("y", dist.Normal(x[0] - x[1], 0.4), obs=y[0])
    return x


def covariance(x, y, a):
    x = numpyro.sample("x", dist.MultivariateNormal(MOVES @ x, a * ROOT @ ROOT.T))
    numpyro.sample("y", dist.Normal(x.sum() + a, 0.4), obs=y[0])
    return x


def precision(x, y, a):
    x = numpyro.sample("x", dist.MultivariateNormal(MOVES @ x, precision_matrix=a * ROOT @ ROOT.T))
    numpyro.sample("y", dist.Normal(x.sum(), 0.4), obs=y[0])
    return x


def plates(x, y, a):
    with numpyro.plate("k", D):
        x = numpyro.sample("x", dist.Normal(MOVES @ x, jnp.array([a, 0.7])))
    numpyro.sample("y", dist.Normal(x[0] + x[1], 0.4).expand([3]).to_event(1), obs=y)  # more than states
    return x


def batches_of_vectors(x, y, a):
    loc = jnp.stack([MOVES @ x, -x])
    z = numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=jnp.stack([ROOT, a * ROOT])).to_event(1))
    numpyro.sample("y", dist.Normal(z[0, 0] - z[1, 1], 0.3), obs=y[1])
    return z[0]


def observed_vectors(x, y, a):
    x = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    law = dist.MultivariateNormal(jnp.array([1.0, -1.0, 0.5]) * x[0] + x[1], scale_tril=a * jnp.eye(3) + 0.2)
    numpyro.sample("y", law, obs=y)
    return x


def masked(x, y, a):
    x = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    with numpyro.plate("k", 3), mask(mask=jnp.array([True, False, True])):
        numpyro.sample("y", dist.Normal(x[0], a), obs=y)
    return x


def a_hidden_state(x, y, a):
    """A mask does not change the law of a state."""
    with mask(mask=False):
        x = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y[0])
    return x


def data_that_move(x, y, a):
    new = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    numpyro.sample("y", dist.Normal(a * new[0], 0.5), obs=y[0] - new[1] + x[0])
    return new


def many_for_one(x, y, a):
    """One number for a law of several."""
    x = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    numpyro.sample("y", dist.Normal(x, jnp.array([0.5, a])), obs=y[0])
    return x


def beside_others(x, y, a):
    """What is no normal law, or counts for more, is taken as before."""
    x = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y[0])
    numpyro.factor("more", -0.3 * a * (x[1] - 1.0) ** 2)
    with scale(scale=1.7):
        numpyro.sample("z", dist.Normal(x[1], 0.9), obs=y[1])
    numpyro.sample("w", dist.Gamma(2.0, 1.0), obs=jnp.exp(y[2]))
    return x


def a_law_that_counts_more(x, y, a):
    with scale(scale=1.5):
        x = numpyro.sample("x", dist.Normal(MOVES @ x, a).to_event(1))
    numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y[0])
    return x


STEPS = [
    sites_that_read_each_other,
    vector,
    covariance,
    precision,
    plates,
    batches_of_vectors,
    observed_vectors,
    masked,
    a_hidden_state,
    data_that_move,
    many_for_one,
    beside_others,
    a_law_that_counts_more,
]


def series(step, y, a):
    first = numpyro.sample("x0", dist.MultivariateNormal(jnp.array([1.0, -0.5]) * a, scale_tril=ROOT))
    numpyro.sample("y0", dist.Normal(first[0], a), obs=0.3)
    scan(lambda x, y_t: (step(x, y_t, a), None), first, y)


def found(step, y):
    def answer(a, y):
        s = smooth_exactly(lower(series, (step, y, a), {}))
        return s.log_evidence, (s.mean, s.covariance, s.cross, s.initial_mean, s.log_increments)

    with jax.enable_x64(True):
        moved = jax.jit(jax.value_and_grad(answer, has_aux=True))
        return jax.tree.map(np.asarray, moved(jnp.asarray(0.9), jnp.asarray(y)))


@pytest.mark.parametrize("step", STEPS)
def test_the_same_as_what_densities_say(step, monkeypatch):
    ours = found(step, GAPS)
    monkeypatch.setattr(stated_module, "_stated", lambda site: None)
    right = found(step, GAPS)
    assert np.isfinite(right[1])
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)


def test_which_are_taken_as_stated(monkeypatch):
    taken = {}
    read = stated_module._stated

    def noted(site):
        taken[site["name"]] = read(site) is not None
        return read(site)

    monkeypatch.setattr(stated_module, "_stated", noted)
    jax.eval_shape(lambda y: smooth_exactly(lower(series, (beside_others, y, 0.9), {})), Y)
    assert taken == {"x0": True, "y0": True, "x": True, "y": True, "more": False, "z": False, "w": False}


@pytest.mark.parametrize(
    "law",
    [
        lambda x, a: dist.Normal(x, a).to_event(1),
        lambda x, a: dist.MultivariateNormal(x, a * jnp.eye(2)),
        lambda x, a: dist.MultivariateNormal(x, scale_tril=a * jnp.eye(2)),
        lambda x, a: dist.MultivariateNormal(jnp.tile(x, 2), jnp.diag(jnp.array([1.0, 1.0, 1.0, a]))),
    ],
)
def test_a_law_that_is_none_has_no_evidence(law):
    """As its density has none, though a filter would make some number of its variance."""

    def evidence(a):
        def step(x, y, _):
            x = numpyro.sample("x", law(x, a))[:2]
            numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y[0])
            return x

        return smooth_exactly(lower(series, (step, jnp.asarray(Y, jnp.float32), 1.0), {})).log_evidence

    assert np.isfinite(jax.jit(evidence)(1.0))
    assert np.isnan(jax.jit(evidence)(-1.0))
