"""What is not known of JAX's traced programs is taken to relate everything to everything: never a crash,
never a lost dependence.
"""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from ppl_ext import expectation, log_density
from ppl_ext.tracing import dataflow, depends, jaxprs
from ppl_ext.tracing.credit import mark, trace_credit
from tests.oracles import assert_unbiased, quick_jit
from tests.probed import SHAPE, relation_of, touched

ANYTHING = (None, None)
CANNOT_READ = "cannot read a program of jax"

# An operation of a later JAX: it looks like one that works element by element, and turns its rows round.
turned_p = Primitive("turned")
turned_p.def_impl(lambda x: x[::-1])
turned_p.def_abstract_eval(lambda x: x)
batching.primitive_batchers[turned_p] = lambda args, dims: (
    jnp.moveaxis(jnp.flip(args[0], 0 if dims[0] else 1), dims[0], 0),
    0,
)
mlir.register_lowering(turned_p, mlir.lower_fun(lambda x: x[::-1], multiple_results=False))

# One that holds a program inside, under a parameter of a name that nobody knows.
held_p = Primitive("held")
held_p.multiple_results = True
held_p.def_impl(lambda *args, inside, twice: jax.core.jaxpr_as_fun(inside)(*args))
held_p.def_abstract_eval(lambda *args, inside, twice: inside.out_avals)
batching.primitive_batchers[held_p] = lambda args, dims, inside, twice: (
    jax.vmap(jax.core.jaxpr_as_fun(inside), in_axes=list(dims))(*args),
    [0] * len(inside.out_avals),
)
mlir.register_lowering(
    held_p,
    mlir.lower_fun(lambda *args, inside, twice: jax.core.jaxpr_as_fun(inside)(*args), multiple_results=True),
)


def held(fn, *args):
    return held_p.bind(*args, inside=jax.make_jaxpr(fn)(*args), twice=("never", None))[0]


def running(z):
    return lax.scan(lambda c, x: (0.5 * c + x, jnp.sin(c) + x), jnp.zeros(4), z)[1]


def relations_with(change, fn, primitive, monkeypatch):
    """The relation to what ``fn`` returns if this primitive's equations were as
    ``change(parameters, operands)`` leaves them.
    """

    def changed(body):
        return body._replace(
            eqns=[altered(eqn) if eqn.primitive.name == primitive else eqn for eqn in body.eqns]
        )

    def altered(eqn):
        params, invars = change(dict(eqn.params), list(eqn.invars))
        return SimpleNamespace(
            primitive=eqn.primitive, params=params, invars=invars, outvars=eqn.outvars, effects=eqn.effects
        )

    real = dataflow.through
    monkeypatch.setattr(
        "ppl_ext.tracing.credit.through", lambda body, deps, loops: real(changed(body), deps, loops)
    )
    with pytest.warns(UserWarning, match=CANNOT_READ):
        return relation_of(fn)


# --- an invented primitive


def test_an_invented_primitive_relates_everything_to_everything():
    for fn in (
        turned_p.bind,
        lambda z: jax.jit(turned_p.bind)(jnp.sin(z)),
        lambda z: lax.map(turned_p.bind, jnp.stack([z, z]))[1],
    ):
        assert relation_of(fn) == ANYTHING
    reached = touched(turned_p.bind)
    assert reached[0, 0, 2, 0] and not reached[0, 0, 0, 0]  # element by element it would be wrong


def test_an_invented_primitive_with_a_program_inside_is_not_opened_but_searched():
    assert relation_of(lambda z: held(jnp.sin, z)) == ANYTHING

    def twice():
        z = mark(jnp.ones(3), "z", 1)
        return [z * 2.0, held(lambda x: jax.jit(lambda x: mark(x, "z", 1))(x), jnp.ones(3)), jnp.ones(3)]

    deps, met = trace_credit(twice)
    assert met == set()  # one of the two marks is out of sight, so that the other says too little
    assert deps[0] == {"z": (("at", 0),)}


def test_gradients_stay_unbiased_across_it():
    """Of three coins, the first decides the last one's price, by an operation that nobody knows."""
    prices, logits = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.3, -0.5, 1.0])

    def program(logits):
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(logits=logits), infer={"gradient": "score"})
        return jnp.sum(prices * turned_p.bind(z.astype(float)))

    p, keys = jax.nn.sigmoid(logits), jax.random.split(jax.random.key(0), 5_000)
    samples = quick_jit(jax.vmap(lambda key: expectation(program).value_and_grad(key, logits)))(keys)
    assert_unbiased(samples, (jnp.sum(prices[::-1] * p), prices[::-1] * p * (1 - p)))


def test_finite_sites_are_summed_out_rightly_across_it():
    y = jnp.array([1.0, 0.0, 1.0])

    def model():
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            through = turned_p.bind(z.astype(float))
            numpyro.sample("y", dist.Bernoulli(jnp.where(through == 1.0, 0.9, 0.1)), obs=y)

    # turned round, coins are coins
    exact = sum(np.log(0.3 * (0.9 if seen else 0.1) + 0.7 * (0.1 if seen else 0.9)) for seen in y)
    assert float(log_density(model, {}).total) == pytest.approx(exact, rel=1e-5)


# --- invented, renamed, missing parameters; operands that do not fit


def test_an_unknown_parameter_relates_everything_to_everything(monkeypatch):
    for fn, primitive in (
        (jnp.tanh, "tanh"),
        (lambda z: z.sum(1), "reduce_sum"),
        (running, "scan"),
        (jax.jit(jnp.sin), "jit"),
    ):
        relation = relations_with(
            lambda params, ins: ({**params, "backwards": True}, ins), fn, primitive, monkeypatch
        )
        assert relation == ANYTHING, primitive


def test_a_missing_or_renamed_parameter_does_too(monkeypatch):
    cases = {
        "scan": running,
        "while": lambda z: lax.while_loop(lambda s: s.sum() < 9, lambda s: s + z, z),
        "reduce_sum": lambda z: z.sum(1),
    }
    cases |= {
        "cond": lambda z: lax.cond(z.sum() > 0, jnp.sin, jnp.cos, z),
        "jit": jax.jit(jnp.sin),
        "broadcast_in_dim": lambda z: z[:, None],
    }
    read = {
        "ft_in",
        "ft_out",
        "num_consts",
        "num_carry",
        "jaxpr",
        "reverse",
        "length",
        "cond_jaxpr",
        "body_jaxpr",
        "cond_nconsts",
    }
    read |= {"body_nconsts", "branches", "axes", "broadcast_dimensions"}
    count = 0
    for primitive, fn in cases.items():
        (eqn,) = [e for e in jax.make_jaxpr(fn)(jnp.ones(SHAPE)).eqns if e.primitive.name == primitive]
        for name in sorted(read & set(eqn.params)):
            for renamed in ({}, {f"{name}s": eqn.params[name]}):

                def change(params, ins, name=name, renamed=renamed):
                    params.pop(name)
                    return params | renamed, ins

                assert relations_with(change, fn, primitive, monkeypatch) == ANYTHING, (primitive, name)
                count += 1
    assert count >= 2 * 13


def test_operands_that_do_not_fit_do_too(monkeypatch):
    def fewer(params, ins):
        return params, ins[1:]

    def more(params, ins):
        return params, [ins[-1], *ins]

    def turned(params, ins):
        return params, ins[::-1]

    def counted_wrong(params, ins):
        if "ft_in" in params:
            groups = list(params["ft_in"].unpack())
            params["ft_in"] = SimpleNamespace(unpack=lambda: [groups[1], groups[0], groups[2]])
        else:
            params["num_consts"], params["num_carry"] = params["num_carry"], params["num_consts"]
        return params, ins

    def loop(z):
        return lax.while_loop(lambda s: s.sum() < 9, lambda s: s + z, z)

    def wide(z):
        total, one = z.sum(), z[0, 0]
        return lax.scan(lambda c, x: (c + x, x * total + one), jnp.zeros(4), z)[1]

    for change in (fewer, more, turned, counted_wrong):
        assert relations_with(change, wide, "scan", monkeypatch) == ANYTHING, change
    assert relations_with(more, loop, "while", monkeypatch) == ANYTHING
    assert relations_with(more, jax.jit(jnp.sin), "jit", monkeypatch) == ANYTHING
    assert (
        relations_with(turned, lambda z: jax.jit(lambda a, b: a + b.T)(z, z.T), "jit", monkeypatch)
        == ANYTHING
    )
    assert (
        relations_with(
            lambda p, ins: (p, [ins[1], ins[1]]),
            lambda z: lax.cond(z[0, 0] > 0, jnp.sin, jnp.cos, z),
            "cond",
            monkeypatch,
        )
        == ANYTHING
    )


def test_a_rule_that_names_an_axis_too_many_does_too(monkeypatch):
    monkeypatch.setitem(dataflow.RULES, "reduce_sum", lambda eqn, deps: deps)
    with pytest.warns(UserWarning, match="does not fit"):
        assert relation_of(lambda z: z.sum(0)) == ANYTHING


def test_what_is_known_is_read_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relation_of(running) == (("upto", 0), ("at", 1))


# --- memory


def test_a_reference_relates_what_is_written_to_what_is_read():
    def fn(z):
        ref = jax.new_ref(jnp.zeros(4))

        def write():
            ref[...] = z[0]
            return 0.0

        lax.cond(z[1, 1] > 0, write, lambda: 0.0)
        return ref[...]

    assert relation_of(fn) == ANYTHING


# --- the other readers


def test_whether_something_depends_is_yes_where_it_cannot_be_seen(monkeypatch):
    x = jnp.ones(3)

    def needs(fn):
        return depends.depends(jax.make_jaxpr(fn)(x), [True])

    assert needs(lambda x: (jax.jit(jnp.ones_like)(x), turned_p.bind(x), held(jnp.ones_like, x))) == [
        False,
        True,
        True,
    ]

    def stored(x):
        ref = jax.new_ref(jnp.zeros(3))
        ref[...] = x
        return ref[...]

    assert needs(stored) == [True]
    monkeypatch.setitem(jaxprs._PARAMETERS, "jit", frozenset())
    assert needs(jax.jit(jnp.ones_like)) == [True]


def test_inputs_are_used_where_jax_cannot_say(monkeypatch):
    traced = jax.make_jaxpr(lambda x, y: (x, 2.0 * y))(1.0, 2.0)
    assert jaxprs.uses(traced, [True, False]) == [True, False]

    def gone(jaxpr, outputs):
        raise TypeError("dce_jaxpr() takes 3 positional arguments")

    monkeypatch.setattr(jaxprs, "dce_jaxpr", gone)
    assert jaxprs.uses(traced, [True, False]) == [True, True]
