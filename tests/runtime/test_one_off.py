"""Programs that run a time or two: what they compute is counted, and the numbers are the same either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ppl_ext.runtime import one_off
from ppl_ext.runtime.one_off import LITTLE, OneOff, plain_options
from ppl_ext.tracing.work import numbers_in

X = jnp.ones((4, 5))


def count(fn, *args):
    return numbers_in(jax.make_jaxpr(fn)(*args))


@pytest.mark.parametrize(
    ("fn", "numbers"),
    [
        (jnp.sin, 20),
        (lambda x: jnp.sin(x).sum(), 21),
        (lambda x: lax.scan(lambda c, r: (c, jnp.sin(r)), 0.0, x)[1], 4 * 5),
        (lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: c + 1.0, x[0]), np.inf),
        (jax.jit(jnp.sin), 20),
        (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda x: jnp.cos(jnp.cos(x)), x), 1 + 1 + 1 + 1 + 20 + 40),
    ],
)
def test_what_a_program_computes(fn, numbers):
    assert count(fn, X) == numbers


def test_a_loop_over_draws_counts_each():
    one = count(lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, length=50)[0], 1.0)
    assert (
        one == 50 and count(jax.vmap(lambda x: lax.fori_loop(0, 50, lambda i, c: jnp.sin(c), x)), X) >= 1000
    )


def test_much_to_do_is_compiled_well_and_little_fast():
    run, asked = OneOff(jnp.sin), []
    traced = run._well
    run._fast = lambda x: asked.append("fast")

    class Well:
        trace = staticmethod(traced.trace)

        def __call__(self, x):
            asked.append("well")

    run._well = Well()
    for calls in (1, LITTLE // 20, LITTLE // 20 + 1, LITTLE):
        run(X, calls=calls)
    run(jnp.ones(3), calls=LITTLE // 20 + 1)
    assert asked == ["fast", "fast", "well", "well", "fast"]


def test_the_numbers_are_the_same():
    def fn(key, x):
        z = jax.random.normal(key, (50,))
        return jnp.exp(-0.5 * z**2) + jax.scipy.special.gammaln(x + z**2), jnp.linalg.cholesky(x * jnp.eye(3))

    args = (jax.random.key(0), jnp.float32(2.5))
    run = OneOff(fn)
    assert run.is_little(args)
    for ours, right in zip(run(*args), jax.jit(fn)(*args), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-6)


def test_options_are_those_that_xla_knows():
    known = plain_options()
    assert known["xla_backend_optimization_level"] == 0 or jax.default_backend() != "cpu"
    assert jax.jit(lambda x: 2.0 * x, compiler_options=known)(3.0) == 6.0


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(one_off, "PLAIN", {"xla_no_such_option": 1, "xla_backend_optimization_level": 0})
    assert plain_options.__wrapped__() == {"xla_backend_optimization_level": 0}
