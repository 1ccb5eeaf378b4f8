"""Credit is sound (no element touches more than its relation admits, by perturbing each) and sharp where a
gradient needs it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

from ppl_ext import expectation
from ppl_ext.expectations import surrogate
from ppl_ext.tracing import array_rules
from ppl_ext.tracing.credit import collect, mark, spread, trace_credit
from tests.oracles import assert_unbiased, quick_jit
from tests.probed import EVERY_ROW, PINNED, SHAPE, admitted, relation_of, touched

DEFAULT_ROWS = 4 if PINNED else EVERY_ROW  # of each table; the others are slow: see conftest.py

AT0, AT1 = ("at", 0), ("at", 1)


def mixture(z):
    return jnp.array([1.0, 5.0, 9.0])[jnp.clip(z, 0, 2).astype(int)]


def rolled(z):
    return lax.pad(z, 0.0, [(1, -1, 0), (0, 0, 0)])


def running(z):
    return lax.scan(lambda c, x: (0.5 * c + x, jnp.sin(c) + x), jnp.zeros(4), z)[1]


def backwards(z):
    return lax.scan(lambda c, x: (c + x, c + x), jnp.zeros(4), z, reverse=True)[1]


def last_carry(z):
    return lax.scan(lambda c, x: (0.5 * c + x, x), jnp.zeros(4), z)[0]


def two_scans(z):
    return running(running(z))


def newton(z):
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, 0.5 * s[1] + z), (0, z))[1]


def while_until(z):
    return lax.while_loop(lambda s: jnp.abs(s).max() > 1.0, lambda s: 0.5 * s, z + 3.0)


def branches(z):
    return lax.cond(z.sum() > 0, jnp.sin, jnp.cos, z)


CASES = {
    # name: (function of the site's value, relation expected; None where nothing is promised)
    "elementwise": (lambda z: jnp.tanh(2 * z + 1) / (1 + z**2), (AT0, AT1)),
    "where": (lambda z: jnp.where(z > 0, z, jnp.expm1(z)), (AT0, AT1)),
    "relu": (jax.nn.relu, (AT0, AT1)),
    "softmax over one axis": (lambda z: jax.nn.softmax(z, axis=1), (AT0, None)),
    "logsumexp": (lambda z: jax.scipy.special.logsumexp(z, axis=0), (None, AT0)),
    "sum over one axis": (lambda z: z.sum(1), (AT0, None)),
    "sum over all": (lambda z: z.sum(), (None, None)),
    "sum and add back": (lambda z: z + z.sum(0), (None, AT1)),
    "transpose": (lambda z: z.T * 2, (AT1, AT0)),
    "new axis": (lambda z: z[:, None, :] + jnp.zeros((3, 2, 4)), (AT0, ("at", 2))),
    "reshape splitting": (lambda z: z.reshape(3, 2, 2), (AT0, None)),
    "reshape merging": (lambda z: z.reshape(12), (None, None)),
    "outer product": (lambda z: z[:, None, :] * z[None, :, :], (None, ("at", 2))),
    "matrix product": (lambda z: z @ jnp.arange(8.0).reshape(4, 2), (AT0, None)),
    "product with itself": (lambda z: z @ z.T, (None, None)),
    "einsum over a batch": (lambda z: jnp.einsum("ij,ijk->ik", z, jnp.ones((3, 4, 2))), (AT0, None)),
    "indexing a table": (mixture, (AT0, AT1)),
    "indexed by data": (lambda z: z[jnp.array([2, 0, 1])], (None, AT1)),
    "take along axis": (lambda z: jnp.take_along_axis(z, jnp.array([[1], [0], [3]]), axis=1), (AT0, None)),
    "slice": (lambda z: z[1:], (None, AT1)),
    "flip": (lambda z: z[::-1], (None, AT1)),
    "shifting pad": (rolled, (None, AT1)),
    "roll": (lambda z: jnp.roll(z, 1, axis=0), (None, AT1)),
    "concatenate": (lambda z: jnp.concatenate([z, z], axis=0), (None, AT1)),
    "stack last": (lambda z: jnp.stack([z, 2 * z], axis=-1), (AT0, AT1)),
    "stack first": (lambda z: jnp.stack([z, 2 * z]), (("at", 1), ("at", 2))),
    "stack with its mirror": (lambda z: jnp.stack([z, z[::-1]], axis=1), (None, ("at", 2))),
    "unstack": (lambda z: jnp.unstack(z, axis=1)[2], (AT0, None)),
    "tile": (lambda z: jnp.tile(z, (1, 2)), (AT0, None)),
    "tile a new axis": (lambda z: jnp.tile(z[:, None], (1, 2, 1)), (AT0, ("at", 2))),
    "cumsum": (lambda z: jnp.cumsum(z, axis=0), (("upto", 0), AT1)),
    "reverse cumsum": (lambda z: lax.cumsum(z, axis=0, reverse=True), (None, AT1)),
    "sort": (lambda z: jnp.sort(z, axis=1), None),
    "largest of a row": (lambda z: lax.top_k(z, 2)[0], (AT0, None)),
    "largest of a column": (lambda z: lax.top_k(z, 2, axis=0)[0], (None, AT1)),
    "searched in a list": (lambda z: 1.0 * jnp.searchsorted(jnp.array([-1.0, 0.0, 1.0]), z), (AT0, AT1)),
    "bits": (
        lambda z: (
            1.0 * lax.bitcast_convert_type(z, jnp.int32) + lax.bitcast_convert_type(z, jnp.uint8).sum(-1)
        ),
        (AT0, AT1),
    ),
    "bits put together": (
        lambda z: lax.bitcast_convert_type(jnp.clip(z, 0, 9).astype(jnp.uint8), jnp.float32),
        (AT0, None),
    ),
    "barrier": (lambda z: lax.optimization_barrier((z.sum(), z))[1], (AT0, AT1)),
    "error function": (
        lambda z: jax.scipy.special.erf(z) + jax.scipy.special.ndtri(jax.nn.sigmoid(z)),
        (AT0, AT1),
    ),
    "argmax": (lambda z: 1.0 * jnp.argmax(z, axis=1), (AT0, None)),
    "scan": (running, (("upto", 0), AT1)),
    "scan, reversed": (backwards, (None, AT1)),
    "last carry": (last_carry, (None, AT0)),
    "two scans": (two_scans, (("upto", 0), AT1)),
    "map": (lambda z: lax.map(jnp.sin, z), (AT0, AT1)),
    "while": (newton, (AT0, AT1)),
    "while until all": (while_until, (None, None)),
    "cond": (branches, (None, None)),
    "inner jit": (jax.jit(lambda z: jnp.exp(z).sum(1)), (AT0, None)),
    "checkpoint": (jax.checkpoint(jnp.sin), (AT0, AT1)),
    "vmap": (jax.vmap(lambda row: row @ row), (AT0, None)),
    "cholesky": (lambda z: jnp.linalg.cholesky(jnp.eye(2) * (1 + z[:, :, None, None] ** 2)), (AT0, AT1)),
    "convolution": (lambda z: jax.scipy.signal.convolve2d(z, jnp.ones((2, 2)), mode="same"), None),
    "scatter": (lambda z: z.at[jnp.array([2, 0])].add(1.0), None),
    "scatter into zeros": (lambda z: jnp.zeros((3, 4)).at[jnp.array([2, 0, 1])].set(z), None),
    "scatter along rows": (lambda z: jnp.zeros((3, 6)).at[:, jnp.array([5, 0, 2, 3])].add(z), None),
    "scatter where it says": (
        lambda z: jnp.zeros(5).at[jnp.clip(z[:, 0], 0, 4).astype(int)].add(z[:, 1]),
        None,
    ),
    "segment sum": (lambda z: jax.ops.segment_sum(z, jnp.array([1, 0, 1]), 2), None),
    "update of a slice": (lambda z: lax.dynamic_update_slice(z, z[:1] * 2, (1, 0)), None),
    "update where it says": (
        lambda z: lax.dynamic_update_slice(jnp.zeros(6), z[0], (jnp.clip(z[1, 0], 0, 2).astype(int),)),
        None,
    ),
    "dynamic slice where it says": (
        lambda z: lax.dynamic_slice(z, (jnp.clip(z[0, 1], 0, 1).astype(int), 0), (2, 4)),
        None,
    ),
    "sort by another": (lambda z: jnp.stack(lax.sort((z[0], z[1]), num_keys=1)), None),
    "windows": (lambda z: lax.reduce_window(z, 0.0, lax.add, (2, 1), (1, 1), "SAME"), None),
    "window maxima": (lambda z: lax.reduce_window(z, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), None),
    "associative scan": (lambda z: lax.associative_scan(jnp.add, z, axis=0), None),
    "fourier": (lambda z: jnp.fft.rfft(z, axis=1).real, None),
    "median": (lambda z: jnp.median(z, axis=1), None),
    "argsort": (lambda z: 1.0 * jnp.argsort(z, axis=0), None),
    "custom root": (
        lambda z: lax.custom_root(
            lambda x: x - z, z, lambda f, x: x - f(x), lambda g, y: y / g(jnp.ones_like(y))
        ),
        None,
    ),
    "no dependence": (lambda z: jnp.zeros(3), "absent"),
}


def shifted(z):
    return lax.scan(lambda c, x: (x, c), jnp.zeros(4), z)[1]


def two_back(z):
    return lax.scan(lambda c, x: ((x, c[0]), c[1]), (jnp.zeros(4), jnp.zeros(4)), z)[1]


LINKS = {
    # what a scan's steps read of the step before: "upto" where links are not asked for
    "of the step before": (shifted, ("before", 0)),
    "of both": (lambda z: lax.scan(lambda c, x: (x, c * x + c), jnp.zeros(4), z)[1], ("step", 0)),
    "joined outside": (lambda z: shifted(z) * z, ("step", 0)),
    "in another scan": (lambda z: lax.map(jnp.sin, shifted(z)), ("before", 0)),
    "of both, in another scan": (lambda z: lax.map(jnp.sin, shifted(z) + z), ("step", 0)),
    "two steps back": (two_back, ("upto", 0)),
    "shifted twice": (lambda z: shifted(shifted(z)), ("upto", 0)),
    "an average": (running, ("upto", 0)),
    "cumulated": (lambda z: jnp.cumsum(shifted(z), axis=0), ("upto", 0)),
    "backwards": (lambda z: lax.scan(lambda c, x: (x, c), jnp.zeros(4), z, reverse=True)[1], None),
    "turned round": (lambda z: shifted(z)[::-1], None),
    "kept as a whole": (lambda z: lax.scan(lambda c, x: (x, c), jnp.zeros(4), z)[0] + z, None),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_of_a_chain(name):
    fn, expected = LINKS[name]
    relation = relation_of(fn, links=True)
    assert relation == (expected, AT1)
    assert not (touched(fn) & ~admitted(relation, SHAPE, SHAPE)).any()
    coarse = relation_of(fn)
    assert coarse[0] in (None, ("upto", 0), AT0) and not (touched(fn) & ~admitted(coarse, SHAPE, SHAPE)).any()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("links", [False, True], ids=["", "links"])
def test_sound(name, links):
    fn, expected = CASES[name]
    relation = relation_of(fn, links)
    reached = touched(fn)
    assert not (reached & ~admitted(relation, SHAPE, reached.shape[2:])).any()


@pytest.mark.parametrize("name", [n for n, (_, expected) in CASES.items() if expected is not None])
def test_sharp(name):
    fn, expected = CASES[name]
    assert relation_of(fn) == expected


def test_soundness_check_has_power(monkeypatch):
    """With a rule that forgets that a shifting pad moves elements, the same check fails."""
    monkeypatch.setitem(array_rules.RULES, "pad", array_rules._axes(lambda eqn, a: a))
    with pytest.raises(AssertionError):
        test_sound("shifting pad", False)


def test_mark_inside_loops_gets_their_axes():
    def chain():
        def step(carry, _):
            z = mark(jnp.tanh(carry) * jnp.ones(2), "z", 1)
            return z.sum(), (z, carry)

        last, (z, before) = lax.scan(step, 0.0, None, length=5)
        return [z, before, last]

    (z, before, last), met = trace_credit(chain)
    assert met == {"z"}
    assert z["z"] == (("upto", 0), None)  # a step feels the sum of the step before
    assert before["z"] == (("upto", 0), None)
    assert last["z"] == (None, None)


def test_particles_do_not_meet_in_a_map():
    (out, total), _ = trace_credit(
        lambda: (lambda z: [z, z.sum()])(lax.map(lambda _: mark(jnp.ones(2), "z", 1), jnp.arange(3)))
    )
    assert out["z"] == (("at", 0), ("at", 1))
    assert total["z"] == (None, None)


@pytest.mark.parametrize(
    ("relation", "matrix"),
    [((("at", 0),), np.eye(4)), ((("upto", 0),), np.tril(np.ones((4, 4)))), ((None,), np.ones((4, 4)))],
)
def test_spread_and_collect_are_adjoint(relation, matrix):
    """spread maps site elements to costs by the matrix of who touches whom, collect by its transpose."""
    x, cost = jnp.array([1.0, 2.0, 5.0, -3.0]), jnp.array([0.5, 1.0, -2.0, 4.0])
    np.testing.assert_allclose(jnp.broadcast_to(spread(x, relation, 1), (4,)), matrix @ x, rtol=1e-6)
    np.testing.assert_allclose(collect(cost, relation, (4,)), matrix.T @ cost, rtol=1e-6)


def test_spread_moves_axes():
    x = jnp.arange(6.0).reshape(2, 3)
    out = spread(x, (("at", 2), ("at", 0)), 3)
    assert out.shape == (3, 1, 2)
    np.testing.assert_array_equal(out[:, 0, :], x.T)
    back = collect(jnp.broadcast_to(out, (3, 5, 2)), (("at", 2), ("at", 0)), (2, 3))
    np.testing.assert_array_equal(back, 5 * x)


def test_a_site_that_the_walk_does_not_meet_is_charged_with_every_cost(monkeypatch):
    """As if it sat inside a primitive that cannot be opened: of three coins in a plate each pays for all, and
    the gradient stays right.
    """
    monkeypatch.setattr(surrogate, "trace_credit", lambda fn: ([{} for _ in trace_credit(fn)[0]], set()))
    prices, logits = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.3, -0.5, 1.0])

    def program(logits):
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"gradient": "score"})
        return jnp.sum(prices * z)

    p, keys = jax.nn.sigmoid(logits), jax.random.split(jax.random.key(0), 5_000)
    samples = quick_jit(jax.vmap(lambda key: expectation(program).value_and_grad(key, logits)))(keys)
    assert_unbiased(samples, (jnp.sum(prices * p), prices * p * (1 - p)))
