"""Programs written to break what sums, filters and orders: none did. Each against brute force over all
outcomes, or against the law of a linear-Gaussian program, which is found by running it in NumPy on unit
vectors of its noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import scope, seed
from numpyro.infer.util import log_density as of_numpyro
from scipy.stats import multivariate_normal, norm

from ppl_ext import log_density
from ppl_ext.diagnostics import log_likelihood
from ppl_ext.smoothing import OnlineSmoother, smooth

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py
KEY = jax.random.key(0)
PROBS = jnp.array([0.1, 0.3, 0.6, 0.9])
ENUMERATED = {"enumerate": "parallel"}


# --- finite sites whose elements are read in another order, together, or through another law

READS = {
    "ring": lambda z: z + 2.0 * jnp.roll(z, 1),
    "behind": lambda z: z + 2.0 * jnp.concatenate([jnp.zeros(1), z[:-1]]),
    "ahead": lambda z: z + 2.0 * jnp.concatenate([z[1:], jnp.zeros(1)]),
    "two_behind": lambda z: z + 2.0 * jnp.concatenate([jnp.zeros(2), z[:-2]]),
    "mirrored": lambda z: 2.0 * z[::-1],
    "with_mirror": lambda z: z + 2.0 * z[::-1],
    "permuted": lambda z: 2.0 * z[jnp.array([2, 0, 3, 1])],
    "cumulated": lambda z: 1.0 * jnp.cumsum(z),
    "sorted": lambda z: 1.0 * jnp.sort(z),
    "largest": lambda z: z + 2.0 * z.max(),
    "contracted": lambda z: (jnp.eye(4) + jnp.eye(4, k=-1)) @ z,
    "folded": lambda z: jnp.repeat(z.reshape(2, 2).sum(-1), 2),
    "recurrent": lambda z: jax.lax.scan(lambda c, a: (a, 2.0 * c + a), z[-1], z)[1],
    "backward": lambda z: jax.lax.scan(
        lambda c, a: (a, 2.0 * c + a), jnp.zeros((), z.dtype), z, reverse=True
    )[1],
    "remembered": lambda z: jax.lax.scan(lambda c, a: (c + a, 2.0 * c + a), jnp.zeros((), z.dtype), z)[1],
    "mixture_in_the_law": None,
    "transformed_law": None,
    "vector_law": None,
    "scoped": None,
}


def law(name, z):
    match name:
        case "mixture_in_the_law":
            parts = [dist.Normal(1.0 * z, 1.0), dist.StudentT(3.0, 2.0 * z, 1.0)]
            return dist.MixtureGeneral(dist.Categorical(jnp.array([0.4, 0.6])), parts)
        case "transformed_law":
            return dist.TransformedDistribution(
                dist.Normal(1.0 * z, 1.0), dist.transforms.AffineTransform(0.5, 2.0)
            )
        case "vector_law":
            return dist.MultivariateNormal(jnp.stack([z, 2.0 * z], -1), jnp.eye(2) + 0.3)
        case "scoped":
            return dist.Normal(2.0 * z, 1.0)
    return dist.Normal(READS[name](z), 1.0)


@pytest.mark.parametrize("name", READS)
def test_finite_sites_however_they_are_read(name):
    y = 0.5 * jnp.arange(4.0)
    y = jnp.stack([y, -y], -1) if name == "vector_law" else y

    def inner(y):
        with numpyro.plate("n", 4):
            z = numpyro.sample("z", dist.Bernoulli(PROBS), infer=ENUMERATED)
        with numpyro.plate("m", 4):
            numpyro.sample("y", law(name, z), obs=y)

    def model(y):
        (scope(inner, "a") if name == "scoped" else inner)(y)

    site = "a/z" if name == "scoped" else "z"
    outcomes = jnp.array(list(itertools.product(range(2), repeat=4)))
    wanted = logsumexp(jax.vmap(lambda z: of_numpyro(seed(model, 0), (y,), {}, {site: z})[0])(outcomes))
    np.testing.assert_allclose(log_density(model, {}, y).total, wanted, rtol=1e-5)
    terms = log_likelihood(model, {}, y, batch_ndims=0, units="independent")
    np.testing.assert_allclose(sum(x.sum() for x in terms.values()), wanted, rtol=1e-5)


# --- series with gaps, whatever reads what was seen, run in either direction

SERIES = np.sin(np.arange(5) * 1.3) * 2.0
PAIRS = np.stack([SERIES, 0.5 * SERIES[::-1]], -1)
PAIRS[1, 0] = PAIRS[3, 0] = PAIRS[3, 1] = PAIRS[4, 1] = np.nan
ROOT = np.linalg.cholesky(np.array([[1.0, 0.4], [0.4, 0.8]]))


def state(x, at):
    return numpyro.sample("x", dist.Normal(at * x, 0.5))


def vector(x, before, y, t):
    x = state(x, 0.8)
    seen = numpyro.sample(
        "y",
        dist.MultivariateNormal(x * jnp.array([1.0, -0.5]), scale_tril=jnp.asarray(ROOT, jnp.float32)),
        obs=y,
    )
    return x, seen


def vector_handed_on(x, before, y, t):
    x = state(x, 0.8)
    law = dist.MultivariateNormal(
        x * jnp.array([1.0, -0.5]) + 0.6 * before, scale_tril=jnp.asarray(ROOT, jnp.float32)
    )
    return x, numpyro.sample("y", law, obs=y)


def elements_handed_on(x, before, y, t):
    x = state(x, 0.8)
    return x, numpyro.sample(
        "y", dist.Normal(x * jnp.array([1.0, -0.5]) + 0.6 * before[::-1], 0.7).to_event(1), obs=y
    )


def one_feeds_the_other(x, before, y, t):
    x = state(x, 0.8)
    a = numpyro.sample("a", dist.Normal(x, 0.7), obs=y[0])
    return x, jnp.stack([a, numpyro.sample("b", dist.Normal(x + 0.9 * a, 0.6), obs=y[1])])


def of_the_state_before(x, before, y, t):
    now = state(x, 0.5 + 0.1 * t)
    return now, numpyro.sample(
        "y", dist.Normal(now + 0.5 * x * jnp.array([1.0, 2.0]), 0.7).to_event(1), obs=y
    )


def vector_noise(x, before, t, e, carried=0.6):
    x = 0.8 * x + 0.5 * e()
    return x, x * np.array([1.0, -0.5]) + carried * before + ROOT @ np.array([e(), e()])


def elements_noise(x, before, t, e):
    x = 0.8 * x + 0.5 * e()
    return x, x * np.array([1.0, -0.5]) + 0.6 * before[::-1] + 0.7 * np.array([e(), e()])


def one_feeds_noise(x, before, t, e):
    x = 0.8 * x + 0.5 * e()
    a = x + 0.7 * e()
    return x, np.array([a, x + 0.9 * a + 0.6 * e()])


def before_noise(x, before, t, e):
    now = (0.5 + 0.1 * t) * x + 0.5 * e()
    return now, now + 0.5 * x * np.array([1.0, 2.0]) + 0.7 * np.array([e(), e()])


STEPS = {
    vector: lambda *a: vector_noise(*a, carried=0.0),
    vector_handed_on: vector_noise,
    elements_handed_on: elements_noise,
    one_feeds_the_other: one_feeds_noise,
    of_the_state_before: before_noise,
}


def evidence(step, reverse):
    """Of what was seen, from the mean and covariance of the whole."""

    def run(noise):
        e = iter(noise).__next__
        x, before, out = e(), np.zeros(2), np.zeros((5, 2))
        for t in range(5)[::-1] if reverse else range(5):
            x, before = step(x, before, t, e)
            out[t] = before
        return out.ravel()

    slopes, seen = np.stack([run(unit) for unit in np.eye(40)], 1), ~np.isnan(PAIRS.ravel())
    covariance = (slopes @ slopes.T)[np.ix_(seen, seen)]
    return multivariate_normal(np.zeros(seen.sum()), covariance).logpdf(PAIRS.ravel()[seen])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.__name__)
def test_gaps_in_either_direction(step, reverse):
    def model(y):
        def body(carry, inputs):
            y, t = inputs
            return step(*carry, y, t), None

        scan(
            body,
            (numpyro.sample("x0", dist.Normal(0.0, 1.0)), jnp.zeros(2)),
            (y, 1.0 * jnp.arange(5)),
            reverse=reverse,
        )

    y, wanted = jnp.asarray(PAIRS, jnp.float32), evidence(STEPS[step], reverse)
    np.testing.assert_allclose(smooth(model, backward="exact").run(KEY, y).log_evidence, wanted, rtol=1e-4)
    # Its standard deviation, of 40 keys, is 0.025 to 0.046 by row: over 6 of them.
    np.testing.assert_allclose(smooth(model, num_particles=4000).run(KEY, y).log_evidence, wanted, atol=0.3)


# --- what varies in time, two scans, branches


def test_a_stream_whose_law_varies_gets_the_numbers_of_its_time():
    def model(y, a):
        def step(x, inputs):
            y, a = inputs
            x = numpyro.sample("x", dist.Normal(a * x, 0.5))
            numpyro.sample("y", dist.Normal(a * x, 0.7), obs=y)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), (jnp.atleast_1d(y), jnp.atleast_1d(a)))

    y, a, functional = (
        jnp.asarray(SERIES, jnp.float32),
        jnp.linspace(0.2, 1.2, 5),
        {"s": lambda t, before, x: t * before * x},
    )
    whole = smooth(model, functional, num_particles=4000).run(KEY, y, a)
    online = OnlineSmoother(model, functional, num_particles=4000)
    stream = online.init(KEY)
    for now in zip(y, a, strict=True):
        stream = online.step(stream, *now)
    assert online.result(stream).expectations["s"] == whole.expectations["s"]
    exactly = smooth(model, functional, backward="exact").run(KEY, y, a).expectations["s"]
    # Its standard deviation, of 60 keys, is 0.15 with 4000 particles (0.37 with 1000): 4.5 of them, a false
    # alarm in 10^5.
    np.testing.assert_allclose(whole.expectations["s"], exactly, atol=0.68)


def test_two_scans_of_which_the_second_runs_backward():
    y, a, b = np.float32(SERIES[:3]), np.float32([0.1, 0.2, 0.3]), np.float32([-0.3, 0.4, 0.7])

    def model(y):
        def forth(before, now):
            x = numpyro.sample("a", dist.Normal(0.5 * before, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
            return x, x

        def back(after, x):
            return numpyro.sample("b", dist.Normal(0.5 * after + x, 1.0)), None

        scan(back, *scan(forth, 0.0, y), reverse=True)

    wanted = norm(0.5 * np.append(0.0, a[:-1])).logpdf(a).sum() + norm(a).logpdf(y).sum()
    wanted += norm(0.5 * np.append(b[1:], a[-1]) + a).logpdf(b).sum()
    np.testing.assert_allclose(
        log_density(model, {"a": jnp.asarray(a), "b": jnp.asarray(b)}, jnp.asarray(y)).total,
        wanted,
        rtol=1e-5,
    )


@pytest.mark.parametrize("w", [0.5, -0.5])
def test_the_branch_that_is_taken(w):
    def model():
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        a = cond(
            w > 0,
            lambda _: numpyro.sample("a", dist.Normal(1.0, 1.0)),
            lambda _: numpyro.sample("a", dist.Normal(-1.0, 2.0)),
            None,
        )
        numpyro.sample("y", dist.Normal(a, 1.0), obs=0.2)

    wanted = (
        norm.logpdf(w) + norm.logpdf(0.3, *((1.0, 1.0) if w > 0 else (-1.0, 2.0))) + norm.logpdf(0.2, 0.3)
    )
    np.testing.assert_allclose(
        log_density(model, {"w": jnp.array(w), "a": jnp.array(0.3)}).total, wanted, rtol=1e-5
    )
