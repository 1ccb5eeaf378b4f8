"""Derivatives of a linear-Gaussian evidence by the disturbance smoother, beside those through the filter."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext.state_space.exact import exact_evidence, smooth_exactly
from ppl_ext.state_space.model import lower

T, D = 6, 2
RNG = np.random.default_rng(0)
GIVEN = {
    "slope": 0.6 * RNG.normal(size=(T, D, D)),
    "offset": RNG.normal(size=(T, D)),
    "root": np.eye(D) + 0.3 * np.tril(RNG.normal(size=(T, D, D))),
    "reads": RNG.normal(size=(T, D)),
    "reads_before": RNG.normal(size=(T, D)),
    "noise": RNG.uniform(0.3, 1.0, size=T),
    "y": RNG.normal(size=T),
    "start": RNG.normal(size=D),
}


def series(given, of_both, steep):
    def step(before, at):
        law = dist.MultivariateNormal(at["slope"] @ before + at["offset"], scale_tril=at["root"])
        with numpyro.handlers.scale(scale=1.5 if steep else 1.0):  # more than a law says
            x = numpyro.sample("x", law)
        seen = at["reads"] @ x + (at["reads_before"] @ before if of_both else 0.0)
        numpyro.sample("y", dist.Normal(seen, at["noise"]), obs=at["y"])
        if steep:
            numpyro.factor("more", at["noise"] * x[0] + 0.05 * at["y"] * x[1] ** 2)
        return x, None

    given = dict(given)
    first = numpyro.sample("x0", dist.MultivariateNormal(given.pop("start"), jnp.eye(D)))
    scan(step, first, given)


def evidences(of_both, steep):
    def space(given):
        return lower(series, (given, of_both, steep), {})

    return lambda x: exact_evidence(space(x)), lambda x: smooth_exactly(space(x)).log_evidence


@pytest.mark.parametrize(("of_both", "steep"), [(False, False), (True, False), (False, True)])
def test_every_part_of_a_step_has_its_derivative(of_both, steep):
    with jax.enable_x64(True):
        given = jax.tree.map(jnp.asarray, GIVEN)
        (value, found), (same, right) = (
            jax.jit(jax.value_and_grad(fn))(given) for fn in evidences(of_both, steep)
        )
        assert float(value) == pytest.approx(float(same), rel=1e-12)
        for name in right:
            np.testing.assert_allclose(found[name], right[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("of_both", [False, True])
def test_a_series_of_one_step(of_both):
    """After the first step there is none."""
    one = {name: jnp.asarray(x if name == "start" else x[:1], jnp.float32) for name, x in GIVEN.items()}
    ours, right = (jax.jit(jax.value_and_grad(fn))(one) for fn in evidences(of_both, False))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), ours, right)


WAYS = {
    "backwards once": jax.hessian,
    "forwards": lambda fn: jax.jacfwd(jax.jacfwd(fn)),
    "backwards": lambda fn: jax.jacrev(jax.jacrev(fn)),
    # a value that is derived beside its derivative has derivatives too
    "of a value": lambda fn: jax.hessian(lambda x: jax.value_and_grad(fn)(x)[0]),
}


@pytest.mark.parametrize(
    ("of_both", "way"),
    [(True, "backwards once"), (False, "of a value")]
    + [pytest.param(of_both, way, marks=pytest.mark.slow) for of_both in (False, True) for way in WAYS],
)
def test_second_derivatives(of_both, way):
    with jax.enable_x64(True):
        turn = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).normal(size=(2, *x.shape))), GIVEN)

        def along(fn):
            return lambda x: fn(jax.tree.map(lambda at, to: at + jnp.tensordot(x, to, 1), GIVEN, turn))

        ours, through = map(along, evidences(of_both, False))
        at = jnp.array([0.02, -0.03])
        right = jax.jit(jax.jacfwd(jax.jacfwd(through)))(at)
        np.testing.assert_allclose(jax.jit(WAYS[way](ours))(at), right, rtol=1e-7, atol=1e-7)
