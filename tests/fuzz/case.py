"""What a malformed call is, what can be wrong with an argument, and the programs that are called."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from hypothesis import strategies as st

KEY, Y = jax.random.key(0), np.array([0.5, -0.2, 1.0], np.float32)


@dataclass(frozen=True)
class Case:
    """``call(wrong)`` must raise an error whose message matches ``words`` (a regular expression, or one made
    from what is wrong).
    """

    name: str
    wrong: st.SearchStrategy
    call: Callable[[Any], Any]
    words: str | Callable[[Any], str]
    examples: int = 12


NAMES = st.text("abcdefgh", min_size=1, max_size=6)  # none of the sites here
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NUMBERS = st.one_of(st.integers(-5, 5), st.floats(), st.booleans(), st.complex_numbers(max_magnitude=3))
ARRAYS = st.one_of(
    SHAPES.map(np.zeros),
    SHAPES.map(jnp.zeros),
    SHAPES.map(lambda s: np.full(s, np.nan)),
    SHAPES.map(lambda s: np.zeros(s, int)),
)
NOT_NUMBERS = st.one_of(
    st.none(),
    st.text(max_size=4),
    st.binary(max_size=3),
    NAMES.map(lambda s: np.array([s, s])),
    st.just(np.array([None, 1], object)),
    st.just(np.array(["2020-01-01"], "datetime64[D]")),
    st.builds(object),
    st.just(KEY),
    st.sampled_from([dict, int, np.ndarray, ValueError]),
    st.builds(lambda: [[1.0, 2.0], [3.0]]),
    st.lists(st.none(), min_size=1, max_size=2),
    st.builds(set),
    st.builds(lambda: pd.Series(Y)),
)
CONTAINERS = st.one_of(
    st.lists(st.integers(), max_size=2),
    st.dictionaries(NAMES, st.integers(), max_size=2),
    st.tuples(st.integers()),
)
NOT_CALLABLE = st.one_of(NUMBERS, ARRAYS, CONTAINERS, NOT_NUMBERS)
NOT_A_KEY = st.one_of(
    st.none(),
    NUMBERS,
    CONTAINERS,
    st.text(max_size=3),
    SHAPES.map(np.zeros),
    SHAPES.filter(lambda s: s not in ((2,), (4,))).map(lambda s: np.zeros(s, np.uint32)),
    st.integers(0, 3).map(lambda n: jax.random.split(KEY, n)),
    st.just(lambda: KEY),
)
NOT_A_COUNT = st.one_of(
    st.integers(-9, 0),
    st.floats(),
    st.booleans(),
    st.text(max_size=2),
    ARRAYS,
    CONTAINERS,
    st.complex_numbers(),
    st.just(KEY),
)
NOT_A_FLAG = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=3), CONTAINERS, st.just(np.ones(2, bool))
)
NOT_A_MAPPING = st.one_of(
    NUMBERS,
    ARRAYS,
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.builds(object),
    st.sampled_from([dict]),
)
NOT_A_NUMBER = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.booleans(),
    st.just(np.nan),
    CONTAINERS,
    st.complex_numbers(),
    st.just(KEY),
)
NOT_NEGATIVE_WRONG = st.one_of(NOT_A_NUMBER, st.floats(max_value=-1e-3))
BAD_KEYS = st.dictionaries(
    st.one_of(st.integers(), st.none(), st.tuples(st.integers())), st.just(1.0), min_size=1, max_size=2
)


def one_of_values(strategy):
    return st.dictionaries(st.just("mu"), strategy, min_size=1)


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(mu + w.sum(), 1.0), obs=y)


def guide(y):
    numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 1.0))
    numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))


def one(name, fn, **options):
    """A program with one site."""
    return lambda: numpyro.sample(name, fn, **options)


def guide_with(name, shape):
    def program(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample(name, dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape)))

    return program


def wrong_shape(expected):
    """Shapes that do not fit, leading ones aside."""

    def stripped(shape):
        while shape and shape[0] == 1:
            shape = shape[1:]
        return shape

    return SHAPES.filter(lambda s: stripped(s) != stripped(expected))


def names(wrong):
    return "'" + re.escape(wrong if isinstance(wrong, str) else next(iter(wrong))) + "'"
