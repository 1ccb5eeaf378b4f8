"""Finite chains whose steps read two or three states back, under "exact": against every path, one after the
other.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, mask
from numpyro.infer.util import log_density as of_numpyro

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ExactFilter
from ppl_ext.errors import ModelError
from ppl_ext.smoothing import smooth
from ppl_ext.smoothing.additive import score
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower

KEY = jax.random.key(0)
Y = jnp.array([0.3, 1.4, -0.2, 0.9])
DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py
THIRD = jax.nn.softmax(jax.random.normal(jax.random.key(1), (3, 3, 3)), axis=-1)


def second(y, reverse=False):
    def step(before, y_t):
        earlier, last = before
        z = numpyro.sample("z", dist.Categorical(THIRD[earlier, last]))
        numpyro.sample("y", dist.Normal(1.0 * z, 0.7), obs=y_t)
        return (last, z), None

    scan(step, (0, 1), y, reverse=reverse)


def emitted_by_two(y):
    """What is seen depends on the state before, too."""

    def step(before, y_t):
        earlier, last = before
        z = numpyro.sample("z", dist.Bernoulli(0.1 + 0.3 * earlier + 0.5 * last))
        numpyro.sample("y", dist.Normal(z - 0.5 * last + 0.2 * earlier, 0.7), obs=y_t)
        return (last, z), None

    scan(step, (0, 0), y)


def third(y):
    def step(before, y_t):
        first, earlier, last = before
        z = numpyro.sample("z", dist.Bernoulli(0.1 + 0.2 * first + 0.1 * earlier + 0.5 * last))
        numpyro.sample("y", dist.Normal(1.0 * z, 0.7), obs=y_t)
        return (earlier, last, z), None

    scan(step, (1, 0, 1), y)


def with_counter(y):
    """And a part of the carry that no state reaches."""

    def step(before, y_t):
        earlier, last, t = before
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(t % 2 == 0, 0.2 + 0.6 * earlier, 0.3 + 0.4 * last)))
        numpyro.sample("y", dist.Normal(z * (1.0 + 0.1 * t), 0.7), obs=y_t)
        return (last, z, t + 1), None

    scan(step, (0, 1, 0), y)


def two_sites(y):
    """One of which is remembered for longer, and is a vector; its outcomes do not begin with 0."""

    def step(before, y_t):
        earlier, last = before
        a = numpyro.sample("a", dist.DiscreteUniform(1, 2).expand([2]).to_event(1))
        z = numpyro.sample("z", dist.Bernoulli(0.1 + 0.1 * earlier.sum() + 0.1 * last[0]))
        numpyro.sample("y", dist.Normal(z + 0.3 * a.sum(), 0.7), obs=y_t)
        return (last, a), None

    scan(step, (jnp.array([1, 1]), jnp.array([2, 1])), y)


def masked(y):
    def step(before, inputs):
        (earlier, last), (y_t, seen) = before, inputs
        with mask(mask=seen):
            z = numpyro.sample("z", dist.Bernoulli(0.1 + 0.3 * earlier + 0.5 * last))
            numpyro.sample("y", dist.Normal(1.0 * z, 0.7), obs=y_t)
        return (last, z), None

    scan(step, (0, 0), (y, jnp.array([True, True, False, True])))


MODELS = {
    "second": (second, {"z": range(3)}),
    "emitted_by_two": (emitted_by_two, {"z": range(2)}),
    "third": (third, {"z": range(2)}),
    "with_counter": (with_counter, {"z": range(2)}),
    "masked": (masked, {"z": range(2)}),
    "reversed": (lambda y: second(y, reverse=True), {"z": range(3)}),
}


def every_path(model, outcomes, y):
    paths = np.array(list(itertools.product(outcomes, repeat=len(y))))
    log_p = jax.vmap(lambda z: of_numpyro(condition(model, {"z": z}), (y,), {}, {})[0])(jnp.asarray(paths))
    return paths, np.asarray(log_p, float)


def last_first(name, paths):
    """NumPyro reads values in the order of the run."""
    return paths[:, ::-1] if name == "reversed" else paths


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num", [4, 1, 2])
def test_against_every_path(name, num):
    model, sites = MODELS[name]
    y = Y[:num]
    if name == "masked" and num < 4:
        pytest.skip("its mask has four steps")
    paths, log_p = every_path(model, sites["z"], y)
    paths, weights = last_first(name, paths), np.exp(log_p - log_p.max())
    weights /= weights.sum()
    last = 2 if name == "third" else 1  # a functional is given the carry
    functionals = {
        "squares": lambda t, before, after: after[last] ** 2.0,
        "pairs": lambda t, before, after: 1.0 * before[last] * after[last],
    }
    run = smooth(model, functionals, backward="exact").run(KEY, y)
    np.testing.assert_allclose(run.log_evidence, np.logaddexp.reduce(log_p), rtol=1e-5)
    np.testing.assert_allclose(
        run.log_evidence, run.log_evidence_initial + np.sum(run.log_evidence_increments), rtol=1e-5
    )
    np.testing.assert_allclose(run.expectations["squares"], weights @ (paths**2).sum(1), rtol=1e-4)
    begun = np.concatenate(
        [np.full((len(paths), 1), {"emitted_by_two": 0, "masked": 0}.get(name, 1)), last_first(name, paths)],
        1,
    )
    np.testing.assert_allclose(
        run.expectations["pairs"], weights @ (begun[:, :-1] * begun[:, 1:]).sum(1), rtol=1e-4
    )
    draws = np.asarray(run.sample(KEY, 4000)["z"])
    assert draws.shape == (4000, num)
    # each path, so that a draw that forgets the state before the last is seen
    for path, weight in zip(paths, weights, strict=True):
        share = (draws == path).all(1).mean()
        assert abs(share - weight) < 5 * np.sqrt(weight * (1 - weight) / 4000) + 2e-3, (path, share, weight)
    moments = smooth_exactly(lower(model, (y,)))
    np.testing.assert_allclose(moments.mean[:, 0], weights @ paths, rtol=1e-4, atol=1e-5)
    centred = paths - weights @ paths
    np.testing.assert_allclose(moments.covariance[:, 0, 0], weights @ centred**2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        moments.cross[:, 0, 0], weights @ (centred[:, :-1] * centred[:, 1:]), rtol=1e-3, atol=1e-5
    )


def test_two_sites_one_of_them_a_vector():
    found = smooth(two_sites, {"a": lambda t, before, after: after[1]}, backward="exact").run(KEY, Y[:3])
    values = [
        dict(a=a, z=z)
        for a in itertools.product((1, 2), repeat=6)
        for z in itertools.product((0, 1), repeat=3)
    ]
    stacked = {
        "a": jnp.array([v["a"] for v in values]).reshape(-1, 3, 2),
        "z": jnp.array([v["z"] for v in values]),
    }
    log_p = np.asarray(
        jax.vmap(lambda v: of_numpyro(condition(two_sites, v), (Y[:3],), {}, {})[0])(stacked), float
    )
    np.testing.assert_allclose(found.log_evidence, np.logaddexp.reduce(log_p), rtol=1e-5)
    assert found.sample(KEY, 5)["a"].shape == (5, 3, 2)


def test_a_report_and_quantiles_know_nothing_of_the_copies():
    run = smooth(second, backward="exact").run(KEY, Y)
    report = run.to_arviz(num_samples=10)
    assert set(report.posterior.data_vars) == {"z"} and report.posterior["z"].dims == (
        "chain",
        "draw",
        "time",
    )
    levels = np.array([0.1, 0.5, 0.9])
    found = run.filtered(jnp.asarray(levels))
    assert set(found) == {"z"}
    for t in range(len(Y)):  # the state at the end of each part of the series
        paths, log_p = every_path(second, range(3), Y[: t + 1])
        below = np.array([np.exp(log_p[paths[:, -1] <= k]).sum() for k in range(3)]) / np.exp(log_p).sum()
        np.testing.assert_array_equal(found["z"][:, t], np.searchsorted(below, levels))


def test_the_evidence_inside_of_a_program():
    """With a parameter, and its slope."""

    def model(y):
        p = numpyro.sample("p", dist.Beta(2.0, 2.0))

        def step(before, y_t):
            earlier, last = before
            z = numpyro.sample("z", dist.Bernoulli(0.9 * p * earlier + 0.1 * last))
            numpyro.sample("y", dist.Normal(1.0 * z, 0.7), obs=y_t)
            return (last, z), None

        scan(step, (1, 0), y)

    def exact(p):
        paths = jnp.array(list(itertools.product(range(2), repeat=4)))
        return jax.nn.logsumexp(
            jax.vmap(lambda z: of_numpyro(condition(model, {"z": z, "p": p}), (Y,), {}, {})[0])(paths)
        )

    program = marginal(model, ["p"], ExactFilter())
    value, slope = jax.value_and_grad(lambda p: log_density(program, {"p": p}, Y).total)(0.4)
    np.testing.assert_allclose([value, slope], jax.value_and_grad(exact)(0.4), rtol=1e-4)
    scored = (
        smooth(model, {"score": score()}, backward="exact")
        .run(KEY, Y, params={"p": 0.4})
        .expectations["score"]
    )
    prior = jax.grad(lambda p: dist.Beta(2.0, 2.0).log_prob(p))(0.4)
    np.testing.assert_allclose(scored["p"], 0.4 * 0.6 * (slope - prior), rtol=1e-4)  # by the logit


def test_what_is_no_chain_of_finite_order_is_refused():
    def counted(y):
        def step(total, y_t):
            z = numpyro.sample("z", dist.Bernoulli(0.1 + 0.8 * total / (1 + total)))
            numpyro.sample("y", dist.Normal(1.0 * z, 0.7), obs=y_t)
            return total + z, None

        scan(step, 0, y)

    def begun_at_random(y):
        def step(before, y_t):
            earlier, last = before
            z = numpyro.sample("z", dist.Bernoulli(0.1 + 0.3 * earlier + 0.5 * last))
            numpyro.sample("y", dist.Normal(1.0 * z, 0.7), obs=y_t)
            return (last, z), None

        scan(step, (0, numpyro.sample("z0", dist.Bernoulli(0.5))), y)

    for model in (counted, begun_at_random):
        with pytest.raises(
            ModelError,
            match="beyond the step's latent sites.*up to 3 steps back, if each of these states is an entry "
            "of its own",
        ):
            smooth(model, backward="exact").run(KEY, Y)
