"""Malformed calls of ``ppl_ext.meta``: episodes and streams, the shared law, local solvers."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from hypothesis import strategies as st

from ppl_ext import meta
from ppl_ext.meta import NIW, ArrivingStream, EpisodeStream, SimulatedStream
from tests.fuzz.case import (
    ARRAYS,
    CONTAINERS,
    KEY,
    NAMES,
    NOT_A_COUNT,
    NOT_A_KEY,
    NOT_A_NUMBER,
    NOT_CALLABLE,
    NOT_NUMBERS,
    NUMBERS,
    SHAPES,
    Case,
)
from tests.fuzz.smoothing import NO_COUNT


def episode(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(w[0] + w[1] * x, 0.5), obs=y)


ONES, TWO = np.ones(3, np.float32), np.zeros(2, np.float32)
EPISODES = [(ONES, 0 * ONES), (TWO, TWO)]
STREAM = EpisodeStream(EPISODES)


def niw(**changes):
    return NIW(**{"loc": np.zeros(2), "mean_precision": 1.0, "scale_matrix": np.eye(2), "df": 4.0} | changes)


NO_NUMBERS = NOT_NUMBERS.filter(lambda x: not isinstance(x, list | pd.Series) and x is not None)
NO_EPISODES = st.one_of(
    NUMBERS,
    ARRAYS,
    st.text(max_size=3),
    st.none(),
    st.dictionaries(NAMES, NUMBERS, max_size=1),
    st.builds(object),
)
NO_OPTION = st.one_of(st.none(), NAMES, NUMBERS, ARRAYS, CONTAINERS)
NO_SITES = st.one_of(
    NUMBERS,
    ARRAYS.filter(np.size),
    st.text(max_size=3),
    st.none(),
    st.lists(st.integers(), min_size=1, max_size=2),
    st.builds(object),
)

STREAMS = [
    Case(
        "EpisodeStream: episodes",
        st.one_of(NO_EPISODES, st.builds(set), st.just([])),
        lambda x: EpisodeStream(x),
        "EpisodeStream: ",
        25,
    ),
    Case(
        "an episode that is no array",
        NO_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
        lambda x: EpisodeStream([(ONES, x)]),
        "Episode 0: argument 1|Episode 0 is",
        25,
    ),
    Case(
        "an episode that is none",
        st.one_of(st.text(max_size=3), st.none(), st.builds(object), st.builds(set)),
        lambda x: EpisodeStream([x, (ONES,)]),
        "[Ee]pisode",
        12,
    ),
    Case(
        "episodes of other structure",
        st.integers(2, 4),
        lambda n: EpisodeStream([(ONES,), (ONES,) * n]),
        "episodes differ in structure",
        3,
    ),
    Case(
        "episodes of other columns",
        st.integers(2, 5),
        lambda n: EpisodeStream([(np.ones((3, 1)),), (np.ones((3, n)),)]),
        "array 0 differs",
        3,
    ),
    Case(
        "episodes of other rows",
        st.integers(4, 9),
        lambda n: EpisodeStream([(ONES, ONES), (np.ones(2), np.ones(n))]),
        "in episode 1",
        4,
    ),
    Case(
        "episodes without rows",
        st.integers(1, 3),
        lambda n: EpisodeStream([(np.zeros(0),)] * n),
        "every episode is empty",
        3,
    ),
    Case(
        "from_arrays",
        st.one_of(NO_NUMBERS, NUMBERS.filter(lambda x: not isinstance(x, complex))),
        lambda x: EpisodeStream.from_arrays(np.ones((2, 3)), x),
        "from_arrays",
        20,
    ),
    Case(
        "from_arrays of other lengths",
        st.integers(3, 7),
        lambda n: EpisodeStream.from_arrays(np.ones((2, 3)), np.ones((n, 3))),
        "from_arrays.*same leading axis",
        4,
    ),
    Case(
        "from_groups: group",
        SHAPES.filter(lambda s: len(s) != 1),
        lambda s: EpisodeStream.from_groups(np.zeros(s), ONES),
        "from_groups",
        10,
    ),
    Case(
        "from_groups: column",
        SHAPES.filter(lambda s: s[:1] != (3,)),
        lambda s: EpisodeStream.from_groups([1, 2, 1], np.zeros(s)),
        "column 0",
        10,
    ),
    Case(
        "batch: index",
        st.one_of(
            st.lists(st.integers(2, 9), min_size=1), st.just([]), st.floats(), st.text(max_size=2), st.none()
        ),
        lambda x: STREAM.batch(x),
        "batch: index",
        15,
    ),
    Case(
        "batch: pad_to",
        st.one_of(NOT_A_COUNT, st.integers(1, 2)),
        lambda x: STREAM.batch([0], pad_to=x),
        "pad_to",
        15,
    ),
    Case(
        "SimulatedStream: simulate",
        NOT_CALLABLE.filter(lambda x: not callable(x)),
        lambda x: SimulatedStream(x),
        "SimulatedStream: simulate",
        15,
    ),
    Case(
        "SimulatedStream: what it returns",
        NO_NUMBERS.filter(lambda x: x is not KEY),
        lambda x: SimulatedStream(lambda key: (x,))[0],
        "<lambda>|SimulatedStream",
        12,
    ),
    Case(
        "SimulatedStream: batch_size",
        NO_COUNT,
        lambda x: next(SimulatedStream(lambda key: ONES).batches(KEY, x)),
        "batch_size",
        15,
    ),
    Case(
        "SimulatedStream: rng_key",
        NOT_A_KEY,
        lambda x: next(SimulatedStream(lambda key: ONES).batches(x, 2)),
        "rng_key",
        15,
    ),
    Case(
        "ArrivingStream: episodes",
        st.one_of(NUMBERS, st.none(), st.builds(object), st.just([]), st.just({})),
        lambda x: ArrivingStream(x),
        "ArrivingStream",
        15,
    ),
    Case("ArrivingStream: peek", NO_COUNT, lambda x: ArrivingStream([(ONES,)], peek=x), "peek", 15),
    Case(
        "ArrivingStream: batch_size",
        NO_COUNT,
        lambda x: next(ArrivingStream([(ONES,)]).batches(KEY, x)),
        "batch_size",
        15,
    ),
    Case(
        "head: features",
        SHAPES.filter(lambda s: len(s) != 2).map(np.zeros),
        lambda x: meta.head("w", x),
        "head: features",
        10,
    ),
    Case("head: features that are no array", NO_NUMBERS, lambda x: meta.head("w", x), "head: features", 15),
    Case(
        "head: name",
        st.one_of(NUMBERS, st.none(), CONTAINERS),
        lambda x: meta.head(x, np.ones((2, 2))),
        "head: name",
        10,
    ),
    Case(
        "head: num_outputs",
        NOT_A_COUNT,
        lambda x: meta.head("w", np.ones((2, 2)), x),
        "head: num_outputs",
        15,
    ),
]

LAWS = [
    *(
        Case(f"NIW: {n} that is no array", NO_NUMBERS, lambda x, n=n: niw(**{n: x}), f"NIW: {n}", 15)
        for n in ("loc", "mean_precision", "scale_matrix", "df")
    ),
    Case(
        "NIW: loc of another shape",
        SHAPES.filter(lambda s: len(s) != 1 or s == (0,)),
        lambda s: niw(loc=np.zeros(s)),
        "NIW: loc",
    ),
    Case(
        "NIW: scale_matrix of another shape",
        SHAPES.filter(lambda s: s not in ((2,), (2, 2))),
        lambda s: niw(scale_matrix=np.ones(s)),
        "NIW: scale_matrix",
    ),
    Case(
        "NIW: scale_matrix that is none",
        st.sampled_from(
            [
                -np.eye(2),
                np.zeros((2, 2)),
                np.full((2, 2), np.nan),
                np.array([[1.0, 0.5], [0.0, 1.0]]),
                -np.ones(2),
            ]
        ),
        lambda x: niw(scale_matrix=x),
        "NIW: scale_matrix",
        5,
    ),
    Case(
        "NIW: df",
        st.one_of(st.floats(max_value=0.99), st.just(np.inf), st.just(np.nan)),
        lambda x: niw(df=x),
        "NIW: df",
        10,
    ),
    Case(
        "NIW: mean_precision",
        st.one_of(st.floats(max_value=0.0), st.just(np.inf), st.just(np.nan)),
        lambda x: niw(mean_precision=x),
        "NIW: mean_precision",
        10,
    ),
    Case(
        "NIW: blocks",
        st.one_of(
            st.lists(st.integers(-2, 3), max_size=3).filter(lambda b: sum(b) != 2 or min(b, default=0) < 1),
            st.text(max_size=2),
            NUMBERS,
            st.builds(object),
        ),
        lambda x: niw(blocks=x),
        "NIW: blocks",
        20,
    ),
    Case("NIW: kl", st.one_of(NUMBERS, st.none(), ARRAYS), lambda x: niw().kl(x), "NIW.kl: other", 10),
    Case(
        "NIW: kl of another structure",
        st.just(np.ones(2)),
        lambda x: niw().kl(niw(scale_matrix=x)),
        "NIW.kl: the structures differ",
        1,
    ),
    Case(
        "NIW: posterior",
        SHAPES.filter(lambda s: len(s) != 2 or s[1] != 2),
        lambda s: niw().posterior(np.zeros(s), np.zeros(s)),
        "NIW.posterior: means",
        12,
    ),
    Case("NIW: posterior of no arrays", NO_NUMBERS, lambda x: niw().posterior(x, x), "NIW.posterior", 12),
    Case("NIW: sample", NOT_A_KEY, lambda x: niw().sample(x), "NIW.sample: rng_key", 15),
    Case(
        "NIW: shape of a sample",
        st.one_of(NAMES, st.none(), st.floats(), st.just((-1,)), st.just(("a",))),
        lambda x: niw().sample(KEY, x),
        "NIW.sample: sample_shape",
        10,
    ),
    *(
        Case(
            f"{name}: {option}",
            wrong,
            lambda x, solver=solver, option=option: solver(**{option: x}),
            rf"{name}\({option}",
            12,
        )
        for name, solver, options in (
            ("LaplaceGGN", meta.LaplaceGGN, {"num_steps": NO_COUNT, "structure": NO_OPTION}),
            (
                "LangevinLocal",
                meta.LangevinLocal,
                {
                    "num_steps": NO_COUNT,
                    "num_warmup": NO_COUNT,
                    "structure": NO_OPTION,
                    "step_size": NOT_A_NUMBER,
                },
            ),
            (
                "VariationalLocal",
                meta.VariationalLocal,
                {"num_steps": NO_COUNT, "structure": NO_OPTION, "step_size": NOT_A_NUMBER},
            ),
        )
        for option, wrong in options.items()
    ),
    Case(
        "VariationalLocal: objective",
        st.one_of(NOT_CALLABLE.filter(lambda x: x is not None), st.just(len)),
        lambda x: meta.VariationalLocal(x),
        "VariationalLocal",
        15,
    ),
]
