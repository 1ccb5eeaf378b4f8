"""Malformed calls of ``ppl_ext.smoothing``: smoothers of a series and of a stream, learners, functionals, the
discriminative filter.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from hypothesis import strategies as st
from numpyro.contrib.control_flow import scan

from ppl_ext import smoothing
from ppl_ext.smoothing import additive, backward
from tests.fuzz.case import (
    ARRAYS,
    BAD_KEYS,
    CONTAINERS,
    KEY,
    NAMES,
    NOT_A_COUNT,
    NOT_A_FLAG,
    NOT_A_KEY,
    NOT_A_MAPPING,
    NOT_A_NUMBER,
    NOT_CALLABLE,
    NOT_NEGATIVE_WRONG,
    NOT_NUMBERS,
    NUMBERS,
    SHAPES,
    Case,
    Y,
    one,
)


def series(y):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


PARAMS = {"phi": 0.5}
NO_COUNT = st.one_of(st.none(), NOT_A_COUNT)
CLASSES = {
    "smooth": smoothing.smooth,
    "OnlineSmoother": smoothing.OnlineSmoother,
    "ParisParticleGibbs": smoothing.ParisParticleGibbs,
    "ScoreAscent": lambda model, **o: smoothing.ScoreAscent(model, **{"optim": optax.adam(0.1)} | o),
    "RecursiveMaximumLikelihood": lambda model, **o: smoothing.RecursiveMaximumLikelihood(
        model, **{"step_size": lambda t: 0.1} | o
    ),
    "OnlineEM": lambda model, **o: smoothing.OnlineEM(
        model, **{"statistics": lambda a, b, x: b, "maximize": lambda s: {"phi": s}} | o
    ),
}
WITH_FUNCTIONALS = ("smooth", "OnlineSmoother", "ParisParticleGibbs")


def made(which, model=series, **options):
    return CLASSES[which](model, **{"num_particles": 5} | options)


def each(wrong, of=tuple(CLASSES)):
    return st.tuples(st.sampled_from(of), wrong)


def argument(name, wrong, examples=20, of=tuple(CLASSES)):
    """Each of some classes, with something wrong as one argument."""
    return Case(
        f"{name} of a smoother",
        each(wrong, of),
        lambda x: made(x[0], **{name: x[1]}),
        lambda x: f"{x[0]}: {name}",
        examples,
    )


RUNNING = {
    "smooth": lambda key, *args, **o: made("smooth").run(key, *args, **o),
    "ParisParticleGibbs": lambda key, *args, **o: made("ParisParticleGibbs").run(key, *args, **o),
    "ScoreAscent": lambda key, *args, **o: made("ScoreAscent").run(key, 2, *args, **o),
    "OnlineSmoother": lambda key, *args, **o: made("OnlineSmoother").init(key, *args, **o),
    "RecursiveMaximumLikelihood": lambda key, *args, **o: made("RecursiveMaximumLikelihood").init(
        key, *args, **o
    ),
}
WHOLE = ("smooth", "ParisParticleGibbs", "ScoreAscent")


def run(which, key=KEY, args=(Y,), **options):
    return RUNNING[which](key, *args, **{"params": PARAMS} | options)


NOT_A_KERNEL = st.one_of(
    st.none(), NAMES, NUMBERS, CONTAINERS, ARRAYS, st.sampled_from([backward.Dense, "exactly", "paris"])
)
OF_NO_DATA = NOT_NUMBERS.filter(
    lambda x: x is not None and not isinstance(x, type | list | set | str | bytes) and x is not KEY
)

SMOOTHERS = [
    argument("model", NOT_CALLABLE, 40),
    argument("num_particles", NO_COUNT, 40),
    argument("num_backward", NO_COUNT, 30),
    argument("backward", NOT_A_KERNEL, 40),
    argument("functionals", NOT_A_MAPPING.filter(lambda x: x is not None), 30, WITH_FUNCTIONALS),
    Case(
        "functionals that are no functions",
        st.tuples(
            st.sampled_from(WITH_FUNCTIONALS),
            NAMES,
            st.one_of(NUMBERS, ARRAYS, st.none(), st.text(max_size=3)),
        ),
        lambda x: made(x[0], functionals={x[1]: x[2]}),
        lambda x: f"{x[0]}: functionals.*'{x[1]}'",
        25,
    ),
    Case(
        "functionals of other arguments",
        st.tuples(
            st.sampled_from(WITH_FUNCTIONALS),
            NAMES,
            st.sampled_from([lambda: 0.0, lambda x: x, lambda a, b, c, d: a]),
        ),
        lambda x: made(x[0], functionals={x[1]: x[2]}),
        lambda x: f"{x[0]}: functionals.*'{x[1]}'",
    ),
    Case(
        "names of functionals",
        each(BAD_KEYS, WITH_FUNCTIONALS),
        lambda x: made(x[0], functionals=x[1]),
        "functionals",
    ),
    argument(
        "ess_threshold", st.one_of(NOT_NEGATIVE_WRONG, st.floats(1.01, 9.0)), 20, ("smooth", "OnlineSmoother")
    ),
    argument(
        "resampling",
        st.one_of(st.none(), NAMES, NUMBERS, CONTAINERS, ARRAYS),
        20,
        ("smooth", "OnlineSmoother"),
    ),
    argument("log_bound", NOT_A_NUMBER.filter(lambda x: x is not None), 20, WITH_FUNCTIONALS),
    *(
        argument(
            name, NOT_CALLABLE.filter(lambda x: x is not None and not callable(x)), 15, WITH_FUNCTIONALS[:n]
        )
        for name, n in (("proposal", 3), ("initial_proposal", 3), ("look_ahead", 2))
    ),
    argument("proposal", st.sampled_from([lambda: None, lambda x: None]), 4, WITH_FUNCTIONALS),
    argument("num_sweeps", NO_COUNT, 20, ("ParisParticleGibbs",)),
    argument(
        "burn_in",
        st.one_of(st.none(), NOT_A_COUNT.filter(lambda x: not isinstance(x, int) or x), st.integers(50, 60)),
        20,
        ("ParisParticleGibbs",),
    ),
    argument("num_particles", st.just(1), 2, ("ParisParticleGibbs", "ScoreAscent")),
    argument(
        "optim", st.one_of(NUMBERS, CONTAINERS, ARRAYS, st.none(), st.just(optax.adam)), 15, ("ScoreAscent",)
    ),
    argument("average_from", st.one_of(NOT_NEGATIVE_WRONG, st.floats(1.01, 9.0)), 15, ("ScoreAscent",)),
    argument("prior", NOT_A_FLAG, 15, ("ScoreAscent",)),
    argument(
        "step_size",
        NOT_CALLABLE.filter(lambda x: not callable(x)),
        15,
        ("RecursiveMaximumLikelihood", "OnlineEM"),
    ),
    argument(
        "wait",
        st.one_of(st.none(), NOT_A_COUNT.filter(lambda x: not isinstance(x, int) or x)),
        15,
        ("OnlineEM",),
    ),
    argument("statistics", NOT_CALLABLE.filter(lambda x: not callable(x)), 10, ("OnlineEM",)),
    argument("maximize", NOT_CALLABLE.filter(lambda x: not callable(x)), 10, ("OnlineEM",)),
]

WAITING = made("OnlineSmoother").init(KEY, params=PARAMS)
SMOOTHING_RUNS = [
    Case(
        "rng_key of a smoother",
        each(NOT_A_KEY, tuple(RUNNING)),
        lambda x: run(x[0], key=x[1]),
        lambda x: f"{x[0]}.*rng_key",
        40,
    ),
    Case(
        "params of a smoother",
        each(NOT_A_MAPPING, tuple(RUNNING)),
        lambda x: run(x[0], params=x[1]),
        lambda x: f"{x[0]}.*params",
        30,
    ),
    Case("names of params", each(BAD_KEYS, tuple(RUNNING)), lambda x: run(x[0], params=x[1]), "params"),
    Case(
        "params that are no numbers",
        each(NOT_NUMBERS, tuple(RUNNING)),
        lambda x: run(x[0], params={"phi": x[1]}),
        "params: .*'phi'",
        30,
    ),
    Case(
        "params that are NaN",
        each(SHAPES.filter(lambda s: 0 not in s), tuple(RUNNING)),
        lambda x: run(x[0], params={"phi": np.full(x[1], np.nan)}),
        "params: .*'phi'",
        12,
    ),
    Case(
        "params of no site",
        each(NAMES, tuple(RUNNING)),
        lambda x: run(x[0], params=PARAMS | {x[1]: 0.1}),
        lambda x: f"'{x[1]}'",
        8,
    ),
    Case(
        "params outside",
        each(st.floats(1.25, 9.0, width=32), ("smooth", "OnlineSmoother")),
        lambda x: run(x[0], params={"phi": x[1]}),
        "params: .*'phi'",
        3,
    ),
    Case("missing params", st.sampled_from(tuple(RUNNING)), lambda x: run(x, params={}), "'phi'", 5),
    Case(
        "arguments of the model",
        each(st.lists(ARRAYS, min_size=2, max_size=3), WHOLE),
        lambda x: run(x[0], args=x[1]),
        lambda x: f"{x[0]}: model",
        12,
    ),
    Case(
        "an unknown argument",
        each(NAMES, WHOLE),
        lambda x: run(x[0], **{x[1]: 1.0}),
        lambda x: f"{x[0]}: model.*{x[1]}",
        12,
    ),
    Case(
        "data that are no arrays",
        each(OF_NO_DATA, tuple(RUNNING)),
        lambda x: run(x[0], args=(x[1],)),
        "argument 0|'y'",
        30,
    ),
    Case(
        "params of another shape",
        each(st.sampled_from([0, 2, 3]), tuple(RUNNING)),
        lambda x: run(x[0], params={"phi": np.full(x[1], 0.5)}),
        "'phi'|'x'",
        6,
    ),
    Case(
        "a number as the series",
        each(st.floats(0, 1, width=32), WHOLE),
        lambda x: run(x[0], args=(x[1],)),
        "xs|scan|series|argument 0",
        3,
    ),
    Case("num_chains", NO_COUNT, lambda x: run("ParisParticleGibbs", num_chains=x), "num_chains", 15),
    Case("num_steps", NO_COUNT, lambda x: made("ScoreAscent").run(KEY, x, Y, params=PARAMS), "num_steps", 15),
    Case(
        "a model without scan",
        st.tuples(st.sampled_from(WHOLE), NAMES),
        lambda x: CLASSES[x[0]](lambda y: one(x[1], dist.Normal(0.0, 1.0))()).run(
            KEY, *((2,) if x[0] == "ScoreAscent" else ()), Y, params={}
        ),
        "scan",
        3,
    ),
    Case(
        "state of a stream",
        each(
            st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.none()),
            ("OnlineSmoother", "RecursiveMaximumLikelihood", "OnlineEM"),
        ),
        lambda x: made(x[0]).step(x[1], 0.1),
        "step: state",
        20,
    ),
    Case(
        "data of a stream that are no arrays",
        OF_NO_DATA,
        lambda x: made("OnlineSmoother").step(WAITING, x),
        "OnlineSmoother.step: argument 0|'y'",
        20,
    ),
    Case(
        "result of a stream",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.none()),
        lambda x: made("OnlineSmoother").result(x),
        "result: state",
        10,
    ),
    Case(
        "functional: num_states",
        NO_COUNT,
        lambda x: additive.transition_counts(x),
        "transition_counts: num_states",
        20,
    ),
    Case(
        "functional: statistics",
        NOT_CALLABLE.filter(lambda x: not callable(x)),
        lambda x: additive.sufficient_statistics(x),
        "sufficient_statistics: fn",
        20,
    ),
    Case("Metropolis: num_steps", NO_COUNT, lambda x: backward.Metropolis(num_steps=x), "num_steps", 15),
    Case("Hybrid: num_rounds", NO_COUNT, lambda x: backward.Hybrid(num_rounds=x), "num_rounds", 15),
    Case("Hybrid: block", NO_COUNT, lambda x: backward.Hybrid(block=x), "block", 15),
    Case(
        "SweptParticleFilter: num_particles",
        st.one_of(st.none(), NOT_A_COUNT, st.just(1)),
        lambda x: smoothing.SweptParticleFilter(x),
        "num_particles",
        20,
    ),
    Case(
        "SweptParticleFilter: num_sweeps",
        NO_COUNT,
        lambda x: smoothing.SweptParticleFilter(4, num_sweeps=x),
        "num_sweeps",
        20,
    ),
    Case(
        "SweptParticleFilter: backward",
        st.one_of(NOT_A_KERNEL, st.just("mcmc")),
        lambda x: smoothing.SweptParticleFilter(4, backward=x),
        "SweptParticleFilter: backward",
        20,
    ),
    Case(
        "ConditionalSweep: num_particles",
        st.one_of(st.none(), NOT_A_COUNT, st.just(1)),
        lambda x: smoothing.ConditionalSweep(x),
        "num_particles",
        20,
    ),
    Case(
        "ConditionalSweep: backward",
        NOT_A_KERNEL,
        lambda x: smoothing.ConditionalSweep(backward=x),
        "ConditionalSweep: backward",
        20,
    ),
    Case(
        "ConditionalSweep: guided", NOT_A_FLAG, lambda x: smoothing.ConditionalSweep(guided=x), "guided", 15
    ),
]
RESULT = []


def result():
    """Of one run, which most of these calls do not touch."""
    if not RESULT:
        RESULT.append(made("smooth").run(KEY, Y, params=PARAMS))
    return RESULT[0]


LEVELS = st.one_of(
    NUMBERS,
    st.text(max_size=2),
    st.none(),
    st.lists(st.sampled_from([-0.1, 1.1, np.nan, None, "a"]), min_size=1, max_size=2),
    st.just([]),
)


def kalman(**changes):
    options = {
        "means": np.ones((3, 2)),
        "covariances": np.eye(2),
        "transition": 0.5 * np.eye(2),
        "noise": np.eye(2),
    } | changes
    return smoothing.discriminative_kalman(**options)


MATRICES = SHAPES.filter(lambda s: s != (2, 2)).map(np.zeros)
SMOOTHED = [
    Case(
        "sample: num_samples of a smoother",
        NO_COUNT,
        lambda x: result().sample(num_samples=x),
        "num_samples",
        15,
    ),
    Case(
        "sample: rng_key of a smoother",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: result().sample(x),
        "rng_key",
        15,
    ),
    Case(
        "to_arviz: num_samples of a smoother",
        NO_COUNT,
        lambda x: result().to_arviz(num_samples=x),
        "num_samples",
        15,
    ),
    Case(
        "to_arviz: rng_key of a smoother",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: result().to_arviz(x),
        "rng_key",
        15,
    ),
    Case("filtered: levels", LEVELS, lambda x: result().filtered(x), "levels", 20),
    *(
        Case(
            f"discriminative_kalman: {name} of another shape",
            MATRICES,
            lambda x, name=name: kalman(**{name: x}),
            f"discriminative_kalman: {name}",
            12,
        )
        for name in ("covariances", "transition", "noise", "prior_covariance")
    ),
    Case(
        "discriminative_kalman: means",
        SHAPES.filter(lambda s: len(s) != 2 or s[1] != 2).map(np.zeros),
        lambda x: kalman(means=x),
        "discriminative_kalman: ",
        12,
    ),
    *(
        Case(
            f"discriminative_kalman: {name} that is no array",
            NOT_NUMBERS.filter(lambda x: x is not None),
            lambda x, name=name: kalman(**{name: x}),
            f"discriminative_kalman: {name}",
            20,
        )
        for name in ("means", "covariances", "transition", "noise", "prior_covariance", "initial")
    ),
    Case(
        "discriminative_kalman: a matrix that is no covariance",
        st.sampled_from([-np.eye(2), np.zeros((2, 2)), np.full((2, 2), np.nan)]),
        lambda x: kalman(noise=x),
        "noise",
        3,
    ),
    Case(
        "discriminative_kalman: initial",
        st.one_of(NUMBERS, ARRAYS, st.lists(ARRAYS, min_size=3, max_size=3).map(tuple)),
        lambda x: kalman(initial=x),
        "initial",
        15,
    ),
    Case(
        "discriminative_kalman: no stationary law",
        st.floats(1.0, 3.0),
        lambda x: kalman(transition=x * np.eye(2)),
        "no stationary law",
        4,
    ),
    Case(
        "discriminative_factor: covariance",
        MATRICES,
        lambda x: smoothing.discriminative_factor("f", jnp.zeros(2), jnp.zeros(2), x, jnp.eye(2)),
        "covariance",
        12,
    ),
    Case(
        "discriminative_factor: mean",
        NOT_NUMBERS,
        lambda x: smoothing.discriminative_factor("f", jnp.zeros(2), x, jnp.eye(2), jnp.eye(2)),
        "mean",
        15,
    ),
]
