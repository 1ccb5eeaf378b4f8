"""Malformed calls of ``SMC`` and ``SMC2``: made, run, and given one observation after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import strategies as st
from numpyro.infer import NUTS

from ppl_ext.algorithms import IndependentMoves, ParticleFilter, RandomWalk, TemperedSMC
from ppl_ext.infer import SMC, SMC2
from tests.fuzz.case import (
    ARRAYS,
    CONTAINERS,
    KEY,
    NAMES,
    NOT_A_COUNT,
    NOT_A_FLAG,
    NOT_A_KEY,
    NOT_A_NUMBER,
    NOT_CALLABLE,
    NOT_NUMBERS,
    NUMBERS,
    SHAPES,
    Case,
    Y,
    model,
    one,
)
from tests.fuzz.smoothing import NO_COUNT, OF_NO_DATA, series

SAMPLERS = {"SMC": SMC, "SMC2": SMC2}
ALL = tuple(SAMPLERS)
PROGRAM = {"SMC": model, "SMC2": series}
DATA = jnp.asarray(Y)
NO_SHARE = st.one_of(NOT_A_NUMBER, st.floats(max_value=-1e-3), st.floats(min_value=1.001))
NO_SCHEME = st.one_of(st.none(), NAMES, NUMBERS, CONTAINERS, ARRAYS)
A_MODEL_MOVES = st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.text(max_size=3), st.builds(object))


def made(which, **options):
    smaller = {"algorithm": ParticleFilter(4)} if which == "SMC2" else {}
    options = {"model": PROGRAM[which], "num_particles": 4, "progress_bar": False, **smaller} | options
    return SAMPLERS[which](**options)


def argument(name, wrong, of=ALL, examples=20, words="{which}: {name}"):
    """Each of the samplers, with something wrong as one argument."""
    return Case(
        f"{name} of {of[0]}" if len(of) < len(ALL) else f"{name} of SMC and SMC2",
        st.tuples(st.sampled_from(of), wrong),
        lambda x: made(x[0], **{name: x[1]}),
        lambda x: words.format(which=x[0], name=name),
        examples,
    )


def run(which, *args, key=KEY, **options):
    return made(which, **options).run(key, *(args or (DATA,)))


def each(wrong, of=ALL):
    return st.tuples(st.sampled_from(of), wrong)


SEQUENTIAL = [
    argument("model", NOT_CALLABLE, examples=30),
    argument("num_particles", NO_COUNT, examples=30, words="(TemperedSMC|SMC2): num_particles"),
    argument("num_particles", st.just(1), words="(TemperedSMC|SMC2): num_particles", examples=2),
    argument("progress_bar", NOT_A_FLAG),
    argument("unbiased", NOT_A_FLAG, ("SMC",)),
    argument("checkpoint", st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.text(max_size=3))),
    argument("ess", NO_SHARE, words="(TemperedSMC|SMC2): ess"),
    argument("moves", A_MODEL_MOVES, words="(TemperedSMC|SMC2): moves"),
    argument("moves", st.builds(lambda: NUTS(series)), ("SMC2",), 1),
    argument("resampling", NO_SCHEME, words="(TemperedSMC|SMC2): resampling"),
    argument(
        "temperatures",
        st.one_of(
            NUMBERS,
            st.text(max_size=3),
            st.just([]),
            st.just([0.5, 0.2, 1.0]),
            st.just([0.5]),
            st.just([-0.1, 1.0]),
            st.just([0.5, np.nan, 1.0]),
            st.just(np.ones((2, 2))),
        ),
        ("SMC",),
        words="TemperedSMC: temperatures",
    ),
    argument(
        "initial", st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.text(max_size=3)), ("SMC",), words="initial"
    ),
    argument("algorithm", st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.just(TemperedSMC(4))), ("SMC2",)),
    argument("min_acceptance", NO_SHARE, ("SMC2",)),
    argument("max_states", NOT_A_COUNT, ("SMC2",), 25),
    argument("max_states", st.integers(1, 3), ("SMC2",), 3),
    argument("initial", st.one_of(NUMBERS, ARRAYS, st.lists(st.integers(), min_size=1)), ("SMC2",)),
    Case(
        "an unknown option of a sequential sampler",
        each(NAMES),
        lambda x: made(x[0], **{x[1]: 1.0}),
        lambda x: f"{x[0]} has no option '{x[1]}'|{x[0]}.*'{x[1]}'",
    ),
    *(
        Case(f"{c.__name__}: num_steps", NO_COUNT, lambda x, c=c: c(num_steps=x), f"{c.__name__}: num_steps")
        for c in (RandomWalk, IndependentMoves)
    ),
    *(
        Case(
            f"{c.__name__}: covariance",
            st.one_of(NOT_NUMBERS.filter(lambda x: x is not None), st.just(np.zeros((2, 2, 2)))),
            lambda x, c=c: c(covariance=x) if c is RandomWalk else c(mean=jnp.zeros(2), covariance=x),
            f"{c.__name__}: covariance",
        )
        for c in (RandomWalk, IndependentMoves)
    ),
    Case(
        "RandomWalk: scale",
        st.one_of(NOT_A_NUMBER.filter(lambda x: x is not None), st.floats(max_value=0.0)),
        lambda x: RandomWalk(scale=x),
        "RandomWalk: scale",
    ),
]


@functools.cache
def begun():
    smc2 = made("SMC2")
    return smc2, smc2.init(KEY, 0.0)


SEQUENTIAL_RUNS = [
    Case(
        "rng_key of a sequential sampler",
        each(NOT_A_KEY.filter(lambda x: not np.ndim(x) or not len(x) or not isinstance(x, jax.Array))),
        lambda x: run(x[0], key=x[1]),
        "rng_key",
        20,
    ),
    Case(
        "an unknown argument of a sequential sampler's model",
        each(NAMES),
        lambda x: made(x[0]).run(KEY, DATA, **{x[1]: 1.0}),
        lambda x: f"{x[0]}: model.*{x[1]}",
    ),
    Case(
        "more arguments than a sequential sampler's model has",
        each(st.lists(ARRAYS, min_size=2, max_size=3)),
        lambda x: run(x[0], *x[1]),
        lambda x: f"{x[0]}: model",
    ),
    Case(
        "data of a sequential sampler that are no arrays",
        each(OF_NO_DATA),
        lambda x: run(x[0], x[1]),
        "argument 0|'y'|after site 'x0'|SMC2: the series is empty",
        20,
    ),
    Case("data of another length for SMC", st.integers(4, 9), lambda x: run("SMC", jnp.zeros(x)), "'y'", 3),
    Case(
        "NaN in the data of SMC",
        st.sampled_from([0, 1, 2]),
        lambda x: run("SMC", DATA.at[x].set(jnp.nan)),
        "NaN",
        2,
    ),
    Case(
        "nothing to sample sequentially",
        each(NAMES),
        lambda x: run(x[0], lambda: None, model=observed_alone(x[1])),
        "no latent site|nothing|no scan|scan|parameter",
        4,
    ),
    Case(
        "a discrete parameter of SMC2",
        NAMES,
        lambda x: run("SMC2", model=with_parameter(x, dist.Poisson(3.0))),
        lambda x: f"SMC2: parameter '{x}'",
        3,
    ),
    Case(
        "a parameter of SMC2 without a law to draw from",
        NAMES,
        lambda x: run("SMC2", model=with_parameter(x, dist.ImproperUniform(dist.constraints.real, (), ()))),
        lambda x: f"'{x}'",
        3,
    ),
    Case("an empty series of SMC2", st.just(0), lambda x: run("SMC2", jnp.zeros(x)), "series is empty", 1),
    Case(
        "rng_key of a stream of SMC2",
        NOT_A_KEY.filter(lambda x: not np.ndim(x) or not len(x) or not isinstance(x, jax.Array)),
        lambda x: made("SMC2").init(x, 0.0),
        "SMC2.init: rng_key",
    ),
    Case(
        "state of a stream of SMC2",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS, NOT_NUMBERS),
        lambda x: made("SMC2").update(x, 0.0),
        "SMC2.update: state",
    ),
    Case(
        "result of a stream of SMC2",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS, NOT_NUMBERS),
        lambda x: made("SMC2").result(x),
        "SMC2.result: state",
    ),
    Case(
        "a stream of SMC2 that has seen nothing",
        st.none(),
        lambda x: begun()[0].result(begun()[1]),
        "SMC2.result: nothing was observed yet",
        1,
    ),
    Case(
        "a time slice of SMC2 with other arguments",
        NAMES,
        lambda x: begun()[0].update(begun()[1], 0.0, **{x: 1.0}),
        "SMC2.update: the time slice",
        4,
    ),
    Case(
        "a time slice of SMC2 of another shape",
        SHAPES.filter(len),
        lambda x: begun()[0].update(begun()[1], jnp.zeros(x)),
        "SMC2.update",
        6,
    ),
]


def observed_alone(name):
    return lambda _: one(name, dist.Normal(0.0, 1.0), obs=0.5)()


def with_parameter(name, law):
    def program(y):
        numpyro.sample(name, law)
        series(y)

    return program
