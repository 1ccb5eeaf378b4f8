"""Malformed calls of ``ppl_ext.priors`` that match a prior, read functions off draws, or infer in closed
form.
"""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
from hypothesis import strategies as st

from ppl_ext import priors
from ppl_ext.priors import match
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
    NOT_CALLABLE,
    NOT_NEGATIVE_WRONG,
    NOT_NUMBERS,
    NUMBERS,
    SHAPES,
    Case,
    names,
)
from tests.fuzz.priors import (
    LIFTED,
    NO_FUNCTION,
    NO_POINTS,
    NOT_POSITIVE,
    TARGET,
    X,
    network,
    process,
    squared,
)
from tests.fuzz.smoothing import NO_COUNT


def matched(**changes):
    options = {
        "rng_key": KEY,
        "lifted": LIFTED,
        "output": "f",
        "inputs": X,
        "target": TARGET,
        "num_steps": 2,
        "num_draws": 4,
    } | changes
    return match(options.pop("rng_key"), options.pop("lifted"), **{"progress_bar": False} | options)


MATCHES = [
    Case("match: rng_key", NOT_A_KEY, lambda x: matched(rng_key=x), "match: rng_key", 20),
    Case("match: lifted", NOT_CALLABLE, lambda x: matched(lifted=x), "match: lifted", 15),
    Case(
        "match: output",
        st.one_of(NUMBERS, CONTAINERS, ARRAYS),
        lambda x: matched(output=x),
        "match: output",
        12,
    ),
    Case(
        "match: output of no site",
        NAMES.filter(lambda n: n not in "fsyvw"),
        lambda x: matched(output=x),
        lambda x: f"'{x}'",
        4,
    ),
    Case(
        "match: inputs",
        st.one_of(NO_POINTS.filter(lambda x: not callable(x)), st.none()),
        lambda x: matched(inputs=x),
        "match: inputs",
        20,
    ),
    Case(
        "match: what inputs returns",
        st.one_of(NO_POINTS.filter(lambda x: not callable(x))),
        lambda x: matched(inputs=lambda key: x),
        "match: what inputs",
        15,
    ),
    Case("match: target", NOT_CALLABLE, lambda x: matched(target=x), "match: target", 15),
    Case(
        "match: distance",
        st.one_of(NUMBERS, ARRAYS, NAMES, st.just(priors.MMD)),
        lambda x: matched(distance=x),
        "match: distance",
        15,
    ),
    Case("match: num_steps", NO_COUNT, lambda x: matched(num_steps=x), "match: num_steps", 15),
    Case(
        "match: num_draws",
        st.one_of(NO_COUNT, st.integers(1, 3)),
        lambda x: matched(num_draws=x),
        "match: num_draws",
        15,
    ),
    Case(
        "match: optim",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.just(optax.adam)),
        lambda x: matched(optim=x),
        "match: optim",
        12,
    ),
    Case("match: progress_bar", NOT_A_FLAG, lambda x: matched(progress_bar=x), "match: progress_bar", 12),
    Case(
        "match: args",
        st.one_of(NUMBERS, ARRAYS, NAMES, st.builds(dict)),
        lambda x: matched(args=x),
        "match: args",
        12,
    ),
    Case(
        "match: kwargs",
        NOT_A_MAPPING.filter(lambda x: x is not None),
        lambda x: matched(kwargs=x),
        "match: kwargs",
        12,
    ),
    Case(
        "match: an unknown argument",
        NAMES,
        lambda x: matched(kwargs={x: 1.0}),
        lambda x: f"match: the lifted model.*'{x}'",
        8,
    ),
    Case(
        "match: a kernel of another shape",
        SHAPES.filter(lambda s: s != (5, 5)),
        lambda s: matched(target=process(kernel=lambda a, b: jnp.zeros(s))),
        "kernel",
        3,
    ),
    Case("match: a target of another shape", SHAPES, lambda s: matched(target=Constant(s)), "target", 4),
]


class Constant:
    """A target that gives arrays of a shape of its own."""

    def __init__(self, shape):
        self.shape = shape

    def sample(self, rng_key, inputs, num_draws):
        return jnp.zeros(self.shape)


DRAWS = {"w": np.zeros((2, 1, 4), np.float32), "v": np.zeros((2, 4), np.float32), "s": np.ones(2, np.float32)}


def functions(**changes):
    options = {"model": network, "samples": DRAWS, "args": (jnp.asarray(X),), "output": "f"} | changes
    return priors.posterior_functions(
        options.pop("model"), options.pop("samples"), *options.pop("args"), **options
    )


def student(**changes):
    options = {"kernel": squared, "x": X[:, None], "y": X} | changes
    return priors.student_t_posterior(options.pop("kernel"), options.pop("x"), options.pop("y"), **options)


def mixture(**changes):
    options = {
        "rng_key": KEY,
        "kernel": squared,
        "x": X[:, None],
        "y": X,
        "scale_prior": dist.InverseGamma(2.0, 2.0),
    } | changes
    first = [options.pop(n) for n in ("rng_key", "kernel", "x", "y", "scale_prior")]
    return priors.scale_mixture_posterior(*first, **options)


NO_LAW = st.one_of(
    NUMBERS, ARRAYS, NAMES, st.none(), st.just(dist.Normal), st.builds(lambda: dist.Gamma(jnp.ones(2), 1.0))
)
POSTERIORS = [
    Case(
        "posterior_functions: model",
        NOT_CALLABLE,
        lambda x: functions(model=x),
        "posterior_functions: model",
        15,
    ),
    Case(
        "posterior_functions: samples",
        NOT_A_MAPPING,
        lambda x: functions(samples=x),
        "posterior_functions: samples|No posterior draws in",
        15,
    ),
    Case(
        "posterior_functions: names of samples",
        BAD_KEYS,
        lambda x: functions(samples=x),
        "posterior_functions: samples",
        8,
    ),
    Case(
        "posterior_functions: samples that are no numbers",
        st.tuples(st.sampled_from(list(DRAWS)), NOT_NUMBERS),
        lambda x: functions(samples=DRAWS | {x[0]: x[1]}),
        lambda x: f"'{x[0]}'",
        20,
    ),
    Case(
        "posterior_functions: samples of another shape",
        st.tuples(st.sampled_from(["w", "v"]), SHAPES),
        lambda x: functions(samples=DRAWS | {x[0]: np.zeros((2, *x[1], 7))}),
        "'[wv]'",
        10,
    ),
    Case(
        "posterior_functions: as many samples",
        st.integers(3, 5),
        lambda n: functions(samples=DRAWS | {"s": np.ones(n)}),
        "'s'",
        3,
    ),
    Case(
        "posterior_functions: NaN in the samples",
        st.sampled_from(list(DRAWS)),
        lambda x: functions(samples=DRAWS | {x: DRAWS[x] * np.nan}),
        names,
        3,
    ),
    Case(
        "posterior_functions: a site without samples",
        st.sampled_from(list(DRAWS)),
        lambda x: functions(samples={n: v for n, v in DRAWS.items() if n != x}),
        names,
        3,
    ),
    Case(
        "posterior_functions: arguments",
        st.lists(ARRAYS, min_size=3, max_size=4),
        lambda x: functions(args=x),
        "posterior_functions: model",
        8,
    ),
    Case(
        "posterior_functions: output",
        st.one_of(NUMBERS, CONTAINERS, ARRAYS),
        lambda x: functions(output=x),
        "posterior_functions: output",
        12,
    ),
    Case(
        "posterior_functions: output of no site",
        NAMES.filter(lambda n: n not in "fsyvw"),
        lambda x: functions(output=x),
        lambda x: f"'{x}'",
        4,
    ),
    Case(
        "posterior_functions: site",
        st.one_of(NUMBERS, CONTAINERS, ARRAYS),
        lambda x: functions(site=x),
        "posterior_functions: site",
        12,
    ),
    Case(
        "posterior_functions: site of no name",
        NAMES.filter(lambda n: n not in "fsyvw"),
        lambda x: functions(site=x),
        lambda x: f"'{x}'",
        4,
    ),
    Case(
        "posterior_functions: y",
        st.one_of(
            NOT_NUMBERS.filter(lambda x: x is not None and not isinstance(x, pd.Series)),
            SHAPES.filter(lambda s: s != (5,)).map(np.zeros),
            st.just(X * np.nan),
        ),
        lambda x: functions(y=x),
        "y",
        15,
    ),
    Case(
        "posterior_functions: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: functions(rng_key=x),
        "posterior_functions: rng_key",
        12,
    ),
    Case(
        "posterior_functions: num_samples",
        NO_COUNT,
        lambda x: functions(num_samples=x),
        "posterior_functions: num_samples",
        12,
    ),
    Case(
        "posterior_functions: chunk_size",
        NOT_A_COUNT,
        lambda x: functions(chunk_size=x),
        "posterior_functions: chunk_size",
        12,
    ),
    *(
        Case(
            f"student_t_posterior: {n}",
            wrong,
            lambda x, n=n: student(**{n: x}),
            f"student_t_posterior: .*{n}",
            12,
        )
        for n, wrong in (
            ("kernel", NO_FUNCTION),
            ("shape", NOT_POSITIVE),
            ("rate", NOT_POSITIVE),
            ("noise", NOT_NEGATIVE_WRONG),
        )
    ),
    Case("student_t_posterior: x", NO_POINTS, lambda x: student(x=x), "student_t_posterior: .*x", 12),
    Case(
        "student_t_posterior: y",
        st.one_of(
            NOT_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
            SHAPES.filter(lambda s: s != (5,)).map(np.zeros),
            st.just(X * np.nan),
        ),
        lambda x: student(y=x),
        "student_t_posterior: ",
        15,
    ),
    Case(
        "student_t_posterior: a kernel of another shape",
        SHAPES.filter(lambda s: s != (5, 5)),
        lambda s: student(kernel=lambda a, b: jnp.zeros(s)),
        "student_t_posterior: .*kernel",
        8,
    ),
    *(
        Case(
            f"scale_mixture_posterior: {n}",
            wrong,
            lambda x, n=n: mixture(**{n: x}),
            f"scale_mixture_posterior: .*{n}",
            12,
        )
        for n, wrong in (
            ("rng_key", NOT_A_KEY),
            ("kernel", NO_FUNCTION),
            ("noise", st.one_of(NOT_NEGATIVE_WRONG, st.just(0.0))),
            ("num_samples", NO_COUNT),
            ("scale_prior", NO_LAW),
            ("proposal", NO_LAW.filter(lambda x: x is not None)),
            ("scaled_noise", NOT_A_FLAG),
        )
    ),
]
