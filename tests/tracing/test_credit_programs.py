"""No dependence is lost: what the walk through a program's equations finds holds all that a numerical probe
finds, on every version of JAX.

A dependence that the walk loses is a biased gradient or a wrong sum, and nothing else would say so. So whole
programs stand here, of all that JAX offers to hold a computation inside another.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.contrib.control_flow import cond, scan

from ppl_ext import log_density
from ppl_ext.tracing import array_rules, dataflow
from ppl_ext.tracing.credit import mark, trace_credit
from tests.probed import EVERY_ROW, PINNED, SHAPE, admitted, assert_sound, touched

DEFAULT_ROWS = 3 if PINNED else EVERY_ROW  # of each table; the others are slow: see conftest.py

DATA = jnp.linspace(-1.0, 1.0, 12).reshape(SHAPE)
AT = jnp.array([2, 0, 1])


def carried(z, **options):
    return lax.scan(lambda c, x: (0.5 * c + x, jnp.sin(c) * x), jnp.zeros(4), z, **options)[1]


def nested(z, outer=False, inner=False):
    def row(c, x):
        last, out = lax.scan(lambda s, e: (0.5 * s + e, s * e), c, x, reverse=inner)
        return last, out + c

    return lax.scan(row, 0.0, z, reverse=outer)[1]


def two_carries(z):
    def step(c, x):
        a, b = c
        return (b + x[0], a), (a * b, x[1])

    (a, b), (ys, xs) = lax.scan(step, (0.0, 0.0), (z[:, 0], z[:, 1]))
    return jnp.stack([ys, xs, ys + a, xs + b])


def indexed(z):
    return lax.scan(lambda c, t: (c + z[t, 0], c + z[AT[t]].sum()), 0.0, jnp.arange(3))[1]


def filled(z):
    return lax.fori_loop(0, 3, lambda t, out: out.at[t].set(z[2 - t]), jnp.zeros(SHAPE))


def moved_on(z):
    return lax.fori_loop(1, 3, lambda t, out: out.at[t].add(0.5 * out[t - 1]), z)


def doubling(x):
    return lax.while_loop(
        lambda s: jnp.abs(s[0]) < 4.0, lambda s: (2 * s[0], s[1] + s[0]), (x + jnp.sign(x) * 0.1, x)
    )[1]


@jax.custom_jvp
def with_jvp(x, y):
    return jnp.sin(x) * y


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0] * primals[1]))


@jax.custom_vjp
def with_vjp(x, y):
    return jnp.cumsum(x, 0) * y


with_vjp.defvjp(lambda x, y: (with_vjp(x, y), y), lambda y, g: (g * y, g))


def slope(fn):
    return jax.grad(lambda z: jnp.sum(jnp.sin(fn(z))))


def spd(z):
    return z @ z.T + 5.0 * jnp.eye(3)


def stored(z):
    ref = jax.new_ref(jnp.zeros(SHAPE))
    ref[1] = z[0]
    ref[2] += z[1]
    return ref[...]


def stored_by_a_loop(z):
    ref = jax.new_ref(jnp.zeros(4))

    def step(c, x):
        before = ref[...]
        ref[...] = before + x
        return c, before

    ys = lax.scan(step, 0.0, z)[1]
    return ys + ref[...]


def stored_inside(z):
    def step(c, x):
        ref = jax.new_ref(c)
        ref[0] = x.sum()
        return ref[...], x

    return lax.scan(step, jnp.zeros(2), z)[0]


def drawn_by(z):
    key = jax.random.fold_in(jax.random.key(0), jnp.clip(z[1, 2], 0, 9).astype(int))
    return z[0] + jax.random.normal(key, (4,))


def of_both(which):
    """A mark inside a loop stands for one element each time: outermost loops first, then its own axes."""

    def chain(z, site):
        return lax.scan(lambda c, x: ((y := site(x)).sum() + 0.5 * c, y * c), 0.0, z)

    def grid(z, site):
        def row(c, x):
            return lax.scan(lambda s, e: (0.5 * s + (y := site(e)), s * y), c, x)

        return lax.scan(row, 0.0, z)

    def turned(z, site):
        return lax.scan(lambda c, x: ((y := site(x)).sum() + 0.5 * c, y * c), 0.0, z, reverse=True)

    def branching(z, site):
        def step(c, x):
            y = lax.cond(c > 0, lambda: site(x), lambda: site(x) * 2.0)
            return 0.5 * c + y.sum(), y + c

        return lax.scan(step, 0.0, z)

    def called(z, site):
        return lax.scan(
            lambda c, x: jax.checkpoint(jax.jit(lambda c, x: ((y := site(x))[0] + c, y * c)))(c, x), 0.0, z
        )

    return {"chain": chain, "grid": grid, "turned": turned, "branching": branching, "called": called}[which]


PROGRAMS = {
    "scan over data": lambda z: lax.scan(lambda c, x: (c + x @ z[0], c * z[1]), jnp.zeros(4), DATA)[1],
    "scan, all closed over": lambda z: lax.scan(
        lambda c, x: (c * z[2, 2] + x, c + z.sum(0)), jnp.zeros(4), z
    )[1],
    "scan with two carries": two_carries,
    "scan, first carry of z": lambda z: lax.scan(lambda c, x: (0.5 * c, c + x), z[0], DATA)[1],
    "scan, backward": lambda z: carried(z, reverse=True),
    "scan, unrolled": lambda z: carried(z, unroll=2),
    "scan that hands on": lambda z: lax.scan(lambda c, x: (c, (x, c[0] * x, c[1])), (z[0], z[1]), z)[1][1],
    "scan that swaps": lambda z: jnp.stack(
        lax.scan(lambda c, x: ((c[1], c[0] + x), c[0]), (z[0, 0], 0.0), z[:, 1])[0]
    ),
    "scan of nothing but carries": lambda z: lax.scan(
        lambda c, _: (jnp.roll(c, 1, 0), c[0]), z, None, length=2
    )[1],
    "scan by number": indexed,
    "nested scans": nested,
    "nested scans, inner backward": lambda z: nested(z, inner=True),
    "nested scans, outer backward": lambda z: nested(z, outer=True),
    "scan under vmap": lambda z: jax.vmap(lambda x: lax.scan(lambda c, e: (c + e, c * e), 0.0, x)[1], 1, 1)(
        z
    ),
    "scan under vmap, carry shared": lambda z: jax.vmap(
        lambda x: lax.scan(lambda c, e: (0.5 * c, c * e + x), 1.0, z[:, 0])[1]
    )(z[0]),
    "scan under jvp": lambda z: jax.jvp(carried, (z,), (jnp.cos(z),))[1],
    "scan under grad": slope(carried),
    "backward scan under grad": slope(lambda z: carried(z, reverse=True)),
    "scan of checkpoints under grad": slope(jax.checkpoint(carried)),
    "nested scans under grad": slope(nested),
    "scan linearised": lambda z: jax.linearize(carried, z)[1](DATA),
    "map in batches": lambda z: lax.map(lambda x: jnp.cumsum(x), z, batch_size=2),
    "loop that fills": filled,
    "loop that moves on": moved_on,
    "while of scans": lambda z: lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 1, carried(s[1])), (0, z)
    )[1],
    "scan of whiles": lambda z: lax.map(lambda x: doubling(x[0]) + x[1], z),
    "while under vmap": lambda z: jax.vmap(jax.vmap(doubling))(z),
    "while, z in the condition": lambda z: (
        lax.while_loop(lambda s: s < z[0, 0], lambda s: s + 1.0, 0.0) + DATA
    ),
    "cond of scans": lambda z: lax.cond(z[0, 0] > 0, carried, lambda z: carried(z, reverse=True), z),
    "cond in a scan": lambda z: lax.scan(
        lambda c, x: (c + lax.cond(x[0] > c, lambda: x[1], lambda: -c), c), 0.0, z
    )[1],
    "cond under vmap": lambda z: jax.vmap(lambda x: lax.cond(x[0] > 0, jnp.cumsum, jnp.sin, x))(z),
    "switch": lambda z: lax.switch(
        jnp.clip(z[0, 0], 0, 2).astype(int), [jnp.sin, lambda x: x[::-1], lambda x: DATA], z
    ),
    "by platform": lambda z: lax.platform_dependent(z, cpu=lambda x: jnp.cumsum(x, 0), default=jnp.sin),
    "custom jvp": lambda z: with_jvp(z, z[::-1]),
    "custom jvp under jvp": lambda z: jax.jvp(with_jvp, (z, DATA), (z, z))[1],
    "custom vjp": lambda z: with_vjp(z, z.T[:3, :1]),
    "custom vjp under grad": slope(lambda z: with_vjp(z, DATA * z[0])),
    "custom vjp in a scan": lambda z: lax.scan(lambda c, x: (with_vjp(x, c), c), jnp.ones(4), z)[1],
    "checkpoint under grad": slope(jax.checkpoint(lambda z: jnp.sin(z) * z[::-1])),
    "jit in a jit": jax.jit(lambda z: jax.jit(lambda z, w: z @ w)(z, DATA.T) + jax.jit(lambda: z.sum())()),
    "jit that hands on": jax.jit(lambda z: jax.jit(lambda a, b: (b, a, a + b))(z, z[::-1])[1]),
    "jit in a scan": lambda z: lax.scan(lambda c, x: jax.jit(lambda a, b: (b, a))(c, x), jnp.zeros(4), z)[1],
    "linear solve": lambda z: jnp.linalg.solve(spd(z), z),
    "linear solve of its own": lambda z: lax.custom_linear_solve(
        lambda x: 2.0 * x, z, lambda f, x: x / 2.0 + x[::-1], symmetric=True
    ),
    "root": lambda z: lax.custom_root(
        lambda x: x - z[::-1], z, lambda f, x: x - f(x), lambda g, y: y / g(jnp.ones_like(y))
    ),
    "cholesky": lambda z: jnp.linalg.cholesky(spd(z)),
    "batch of choleskys": lambda z: jax.vmap(lambda x: jnp.linalg.cholesky(jnp.outer(x, x) + jnp.eye(4)))(z),
    "triangular solve": lambda z: jax.scipy.linalg.solve_triangular(jnp.tril(spd(z)), z, lower=True),
    "triangular solves": lambda z: jax.vmap(
        lambda x, y: jax.scipy.linalg.solve_triangular(jnp.eye(4) + jnp.diag(x**2), y)
    )(z, DATA),
    "eigenvalues": lambda z: jnp.linalg.eigvalsh(spd(z)),
    "determinants": lambda z: jax.vmap(lambda x: jnp.linalg.slogdet(jnp.diag(1.0 + x**2))[1])(z),
    "singular values": lambda z: jnp.linalg.svd(z, compute_uv=False),
    "orthogonal": lambda z: jnp.linalg.qr(z)[1],
    "exponential of a matrix": lambda z: jax.scipy.linalg.expm(0.1 * z[:, :3]),
    "associative scan": lambda z: lax.associative_scan(jnp.multiply, jnp.sin(z), axis=1),
    "associative scan, backward": lambda z: lax.associative_scan(jnp.add, z, reverse=True),
    "associative scan of matrices": lambda z: lax.associative_scan(
        jnp.matmul, jax.vmap(lambda x: x[:2, None] * x[2:])(z)
    ),
    "cumulative maximum": lambda z: lax.cummax(z, axis=1),
    "cumulated backward": lambda z: lax.cumlogsumexp(z, axis=0, reverse=True),
    "scatter by z": lambda z: jnp.zeros(4).at[jnp.clip(z[0], 0, 3).astype(int)].add(z[1]),
    "scatter of maxima": lambda z: z.at[AT[:2]].max(z[1:] * 2.0),
    "scatter a batch": lambda z: jax.vmap(lambda x, i: x.at[i].set(x[0] + 1.0))(z, AT),
    "gather by z": lambda z: DATA[jnp.clip(z[0], 0, 2).astype(int)],
    "gather from z by z": lambda z: z[jnp.clip(z[:, 1], 0, 2).astype(int)],
    "gather a batch": lambda z: jax.vmap(lambda x, i: lax.dynamic_slice(x, (i,), (2,)))(z, AT),
    "gather, filled": lambda z: jnp.take(z, jnp.array([0, 9]), axis=0, mode="fill", fill_value=0.0),
    "along an axis, by z": lambda z: jnp.take_along_axis(z, jnp.argsort(z, 1), 1),
    "picked by where": lambda z: jnp.where(z[0] > 0, z[1], z[2][::-1]),
    "sorted pairs": lambda z: lax.sort((z, DATA), dimension=0, num_keys=1)[1],
    "largest columns": lambda z: lax.top_k(z, 2, axis=0)[0],
    "searched in z": lambda z: 1.0 * jnp.searchsorted(jnp.sort(z[0]), z[1:]),
    "interpolated": lambda z: jnp.interp(z, jnp.array([-1.0, 0.0, 1.0]), jnp.array([0.0, 2.0, -1.0])),
    "quantile": lambda z: jnp.quantile(z, 0.3, axis=0),
    "repeated": lambda z: jnp.repeat(z, 2, axis=1) + jnp.tile(z, (1, 2)),
    "kronecker": lambda z: jnp.kron(z[:2, :2], z[1:, 2:]),
    "reduced by hand": lambda z: lax.reduce(z, 0.0, lambda a, b: a + jnp.sin(b), (0,)),
    "convolved": lambda z: jnp.convolve(z[0], z[1], mode="full"),
    "convolved channels": lambda z: lax.conv_general_dilated(z[:, None], jnp.ones((2, 1, 2)), (1,), "SAME"),
    "padded inside": lambda z: lax.pad(z, 0.0, [(0, 0, 1), (-1, 2, 0)]),
    "complex": lambda z: jnp.abs(jnp.fft.ifft(jnp.fft.fft(z, axis=0) * lax.complex(DATA, z), axis=0)),
    "special functions": lambda z: (
        jax.scipy.special.betainc(1.0 + z**2, 2.0, jax.nn.sigmoid(z[::-1]))
        + jax.scipy.special.ndtri(0.5 + 0.1 * jnp.tanh(z))
    ),
    "noise by z": drawn_by,
    "seen from outside": lambda z: jax.pure_callback(
        lambda x: np.asarray(x)[::-1].copy(), z, z, vmap_method="sequential"
    ),
    "mean over lanes": lambda z: jax.vmap(lambda x: x - lax.pmean(x, "i"), axis_name="i")(z),
    "barrier": lambda z: lax.optimization_barrier((z, z[::-1]))[0],
    "references": stored,
    "a reference in a loop": stored_by_a_loop,
    "a reference within a loop": stored_inside,
}


def sound(fn):
    return assert_sound(lambda inputs: [fn(inputs["z"])], {"z": jnp.ones(SHAPE)})


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_dependence_is_lost(name):
    assert sound(PROGRAMS[name]) > 0


@pytest.mark.parametrize("which", ["chain", "grid", "turned", "branching", "called"])
def test_none_of_a_mark_inside_loops(which):
    program, ndim = of_both(which), 0 if which == "grid" else 1
    for links in (False, True):
        deps, met = trace_credit(lambda: list(program(jnp.ones(SHAPE), lambda x: mark(x, "z", ndim))), links)
        assert met == {"z"}
        for number, found in enumerate(deps):
            reached = touched(lambda z, number=number: program(z, lambda x: x)[number])
            assert (
                reached.any()
                and not (reached & ~admitted(found.get("z", "absent"), SHAPE, reached.shape[2:])).any()
            )


# --- models of NumPyro: which terms of their log density a site's elements move
# -----------------------------------------------


def chain():
    def step(before, y):
        z = numpyro.sample("z", dist.Normal(0.5 * before, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        return z, z

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), jnp.arange(3.0))


def plated_chain():
    def step(before, y):
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Normal(0.5 * before, 1.0))
            numpyro.sample("y", dist.Normal(z + before, 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2), jnp.ones((3, 2)))


def plates():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 3):
        a = numpyro.sample("a", dist.Normal(mu, 1.0))
        with numpyro.plate("units", 2):
            z = numpyro.sample("z", dist.Normal(a, 1.0))
    numpyro.sample("total", dist.Normal(z.sum(0), 1.0).to_event(1), obs=jnp.zeros(3))
    numpyro.factor("extra", -(z[0, 1] ** 2))


def branching():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    x = cond(z > 0, lambda w: w[0], lambda w: w[1] + z, w)
    numpyro.sample("x", dist.Normal(x, 1.0), obs=0.3)


def process():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    cov = jnp.exp(-((jnp.arange(3.0)[:, None] - jnp.arange(3.0)) ** 2)) + jnp.eye(3)
    numpyro.sample("f", dist.MultivariateNormal(z, cov), obs=jnp.zeros(3))
    numpyro.sample(
        "n",
        dist.TruncatedNormal(z[::-1], 1.0, low=-1.0).mask(jnp.array([True, False, True])),
        obs=jnp.zeros(3),
    )


MODELS = {
    "chain": (chain, {"z0": (), "z": (3,)}),
    "chain in a plate": (plated_chain, {"z": (3, 2)}),
    "plates": (plates, {"mu": (), "a": (3,), "z": (2, 3)}),
    "branches": (branching, {"z": (), "w": (2,)}),
    "process": (process, {"z": (3,)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_none_of_a_model_is_lost(name):
    model, shapes = MODELS[name]
    assert (
        assert_sound(
            lambda values: list(log_density(model, values).terms),
            {s: jnp.ones(shape) for s, shape in shapes.items()},
        )
        > 0
    )


# --- JAX's own next steps, as far as this version has them
# ----------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["jax_scan3", "jax_custom_jvp3", "jax_custom_vjp3", "jax_remat3"])
def test_nor_by_what_jax_is_about_to_change(flag):
    if not hasattr(jax.config, flag):
        pytest.skip(f"jax {jax.__version__} has no {flag}")
    before = getattr(jax.config, flag)
    jax.config.update(flag, True)
    try:
        for name in (
            "scan with two carries",
            "nested scans",
            "custom jvp",
            "custom vjp",
            "custom vjp in a scan",
            "checkpoint under grad",
        ):
            with contextlib.suppress(NotImplementedError):  # what JAX has not finished
                sound(PROGRAMS[name])
    finally:
        jax.config.update(flag, before)


# --- the probe sees what it should
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "primitive", "rule", "program"),
    [
        (array_rules.RULES, "add", lambda eqn, deps: [deps[0]], lambda z: z + z[::-1]),
        (array_rules.RULES, "cumsum", lambda eqn, deps: [deps[0]], lambda z: jnp.cumsum(z, 0)),
        (
            array_rules.RULES,
            "top_k",
            array_rules._axes(lambda eqn, a: a if a < 1 else None),
            lambda z: lax.top_k(z, 2, axis=0)[0],
        ),
        (dataflow._NESTING, "scan", lambda eqn, deps, loops: [{}, deps[-1]], carried),
        (
            dataflow._NESTING,
            "while",
            lambda eqn, deps, loops: deps[-len(eqn.outvars) :],
            PROGRAMS["while, z in the condition"],
        ),
        (
            dataflow._NESTING,
            "cond",
            lambda eqn, deps, loops: [deps[1]] * len(eqn.outvars),
            PROGRAMS["cond of scans"],
        ),
        (
            dataflow._NESTING,
            "jit",
            lambda eqn, deps, loops: [deps[0]] * len(eqn.outvars),
            lambda z: jax.jit(lambda a, b: b * a)(z, z[::-1]),
        ),
    ],
)
def test_the_probe_has_power(monkeypatch, table, primitive, rule, program):
    """With a rule that forgets what another operand does, the same check fails."""
    assert sound(program) > 0
    monkeypatch.setitem(table, primitive, rule)
    with pytest.raises(AssertionError):
        sound(program)


def test_what_memory_holds_would_be_lost(monkeypatch):
    """Were writing to a reference an operation like others, what is read from it later would touch
    nothing.
    """
    monkeypatch.setattr(dataflow, "has_state", lambda eqn: False)
    monkeypatch.setattr(dataflow, "_through_memory", lambda eqn, deps, loops: array_rules.mixing(eqn, deps))
    with pytest.raises(AssertionError):
        sound(stored)
