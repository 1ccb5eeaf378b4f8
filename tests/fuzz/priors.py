"""Malformed calls of ``ppl_ext.priors``: families, distances and targets."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from hypothesis import strategies as st

from ppl_ext import priors
from ppl_ext.priors import Gaussian, GaussianProcess, lift_prior
from tests.fuzz.case import (
    ARRAYS,
    BAD_KEYS,
    CONTAINERS,
    KEY,
    NAMES,
    NOT_A_COUNT,
    NOT_A_FLAG,
    NOT_A_MAPPING,
    NOT_A_NUMBER,
    NOT_CALLABLE,
    NOT_NEGATIVE_WRONG,
    NOT_NUMBERS,
    NUMBERS,
    SHAPES,
    Case,
)
from tests.fuzz.smoothing import NO_COUNT

X = np.linspace(-1.0, 1.0, 5).astype(np.float32)


def network(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros((1, 4)), 1.0).to_event(2))
    v = numpyro.sample("v", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
    f = numpyro.deterministic("f", jnp.tanh(x[:, None] @ w) @ v)
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(f, s), obs=y)
    return f


def squared(a, b):
    return jnp.exp(-0.5 * (a - b.T) ** 2)


LIFTED, TARGET = lift_prior(network, {"w": Gaussian()}), GaussianProcess(squared)
NOT_POSITIVE = st.one_of(NOT_A_NUMBER, st.just(np.inf), st.floats(max_value=0.0))
NO_OPTION = st.one_of(st.none(), NAMES, NUMBERS, ARRAYS, CONTAINERS)
NO_FUNCTION = NOT_CALLABLE.filter(lambda x: not callable(x))
NO_POINTS = st.one_of(
    NOT_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
    SHAPES.filter(lambda s: 0 in s or len(s) not in (1, 2)).map(np.zeros),
    st.just(np.array([np.nan, 1.0])),
    st.just(np.array([np.inf])),
)
FAMILIES = {"Gaussian": priors.Gaussian, "ScaleMixture": priors.ScaleMixture, "Flow": priors.Flow}
OPTIONS = {
    "Gaussian": {"scale": NOT_POSITIVE, "learn_mean": NOT_A_FLAG},
    "ScaleMixture": {"shape": NOT_POSITIVE, "scale": NOT_POSITIVE, "centered": NOT_A_FLAG},
    "Flow": {
        "num_flows": NO_COUNT,
        "scale": NOT_POSITIVE,
        "seed": st.one_of(NOT_NEGATIVE_WRONG, st.floats(), st.booleans()),
    },
    "SlicedWasserstein": {"num_projections": NO_COUNT, "control_variates": NOT_A_FLAG, "debias": NOT_A_FLAG},
    "MMD": {"bandwidth": NOT_POSITIVE.filter(lambda x: x is not None)},
    "GaussianKL": {"noise": NOT_POSITIVE},
    "Sinkhorn": {"epsilon": NOT_POSITIVE, "max_iterations": NO_COUNT},
    "CriticW1": {
        "num_steps": NO_COUNT,
        "learning_rate": NOT_POSITIVE,
        "penalty": NOT_POSITIVE,
        "tolerance": NOT_NEGATIVE_WRONG,
        "width": NO_COUNT,
        "fresh": NOT_A_FLAG,
    },
}


def process(**changes):
    return GaussianProcess(**{"kernel": squared} | changes)


def sampled(target):
    """As matching reads a target."""
    return target.sample(KEY, jnp.asarray(X)[:, None], 4)


FAMILY_CASES = [
    *(Case(f"{f}: per", NO_OPTION, lambda x, f=f: FAMILIES[f](per=x), f"{f}: per", 12) for f in FAMILIES),
    *(
        Case(
            f"{f}: fan_in",
            st.one_of(NAMES, NOT_POSITIVE).filter(lambda x: x is not None),
            lambda x, f=f: FAMILIES[f](fan_in=x),
            f"{f}: fan_in",
            12,
        )
        for f in FAMILIES
    ),
    *(
        Case(f"{f}: {o}", wrong, lambda x, f=f, o=o: getattr(priors, f)(**{o: x}), f"{f}: {o}", 12)
        for f, of in OPTIONS.items()
        for o, wrong in of.items()
    ),
    Case(
        "lift_prior: model", NOT_CALLABLE, lambda x: lift_prior(x, {"w": Gaussian()}), "lift_prior: model", 20
    ),
    Case("lift_prior: rules", NOT_A_MAPPING, lambda x: lift_prior(network, x), "lift_prior: rules", 20),
    Case("lift_prior: patterns", BAD_KEYS, lambda x: lift_prior(network, x), "lift_prior: rules"),
    Case(
        "lift_prior: no rules",
        st.builds(dict),
        lambda x: lift_prior(network, x),
        "lift_prior: rules is empty",
        1,
    ),
    Case(
        "lift_prior: family",
        st.tuples(NAMES, st.one_of(NO_OPTION, st.just(Gaussian))),
        lambda x: lift_prior(network, {x[0]: x[1]}),
        lambda x: f"'{x[0]}'",
        20,
    ),
    Case(
        "lift_prior: a pattern of no site",
        NAMES.filter(lambda n: n not in "fsyvw"),
        lambda x: lift_prior(network, {x: Gaussian()}).layout(X),
        lambda x: f"'{x}'",
        8,
    ),
    Case(
        "lift_prior: a site that has none",
        st.sampled_from(["y", "s"]),
        lambda x: lift_prior(network, {x: Gaussian()}).layout(X, X),
        lambda x: f"'{x}'",
        2,
    ),
    Case(
        "lift_prior: twice",
        st.just("w"),
        lambda x: lift_prior(network, {x: Gaussian(), "*w": Gaussian()}).layout(X),
        "'w'",
        1,
    ),
]

TARGETS = [
    Case(
        "GaussianProcess: kernel",
        st.one_of(NO_FUNCTION, st.just(dict)),
        lambda x: process(kernel=x),
        "GaussianProcess: kernel",
        20,
    ),
    Case("GaussianProcess: mean", NOT_A_NUMBER, lambda x: process(mean=x), "GaussianProcess: mean", 15),
    Case(
        "GaussianProcess: hyper",
        NOT_A_MAPPING.filter(lambda x: x is not None),
        lambda x: process(hyper=x),
        "GaussianProcess: hyper",
        15,
    ),
    Case(
        "GaussianProcess: laws",
        st.tuples(NAMES, st.one_of(NUMBERS, ARRAYS, NAMES, st.none())),
        lambda x: process(hyper={x[0]: x[1]}),
        "GaussianProcess: hyper",
        15,
    ),
    Case(
        "GaussianProcess: num_outputs",
        NO_COUNT,
        lambda x: process(num_outputs=x),
        "GaussianProcess: num_outputs",
        15,
    ),
    Case(
        "a kernel of another shape",
        SHAPES.filter(lambda s: s != (5, 5)),
        lambda s: sampled(process(kernel=lambda a, b: jnp.zeros(s))),
        "the kernel must return",
        10,
    ),
    Case(
        "a mean of another shape",
        SHAPES.filter(lambda s: s not in ((5,), ())),
        lambda s: sampled(process(mean=lambda x: jnp.zeros(s))),
        "GaussianProcess: mean",
        10,
    ),
    Case(
        "NNGP: depth",
        NO_COUNT.filter(lambda x: isinstance(x, bool) or not isinstance(x, int) or x != 0),
        lambda x: priors.NNGP(x),
        "NNGP: depth",
        15,
    ),
    Case(
        "NNGP: activation",
        NO_OPTION.filter(lambda x: not callable(x)),
        lambda x: priors.NNGP(1, x),
        "NNGP: activation",
        15,
    ),
    *(
        Case(
            f"NNGP: {n}",
            st.one_of(
                st.floats(max_value=-0.01),
                st.just(np.nan),
                st.lists(st.floats(0.1, 1.0), min_size=3, max_size=4),
                st.text(max_size=2),
                st.none(),
            ),
            lambda x, n=n: priors.NNGP(1, **{n: x}),
            f"NNGP: {n}",
            12,
        )
        for n in ("weight_scale", "bias_scale")
    ),
    Case("nngp_kernel: inputs", NO_POINTS, lambda x: priors.nngp_kernel(x, depth=1), "nngp_kernel: x1", 15),
    Case(
        "nngp_kernel: other columns",
        st.integers(2, 4),
        lambda n: priors.nngp_kernel(np.ones((2, 1)), np.ones((2, n)), depth=1),
        "nngp_kernel: x1 and x2",
        3,
    ),
    Case(
        "nngp_kernel: nodes",
        NO_COUNT,
        lambda x: priors.nngp_kernel(np.ones((2, 1)), depth=1, nodes=x),
        "nngp_kernel: nodes",
        12,
    ),
    Case(
        "StudentTProcess: base",
        st.one_of(NUMBERS, ARRAYS, st.none(), st.just(GaussianProcess)),
        lambda x: priors.StudentTProcess(x, 2.0, 1.0),
        "StudentTProcess: base",
        12,
    ),
    Case(
        "StudentTProcess: shape",
        NOT_POSITIVE,
        lambda x: priors.StudentTProcess(TARGET, x, 1.0),
        "StudentTProcess: shape",
        12,
    ),
    Case(
        "StudentTProcess: scale",
        NOT_POSITIVE,
        lambda x: priors.StudentTProcess(TARGET, 2.0, x),
        "StudentTProcess: scale",
        12,
    ),
    Case("ModelTarget: model", NOT_CALLABLE, lambda x: priors.ModelTarget(x), "ModelTarget: model", 15),
    Case(
        "ModelTarget: output",
        st.one_of(NUMBERS, CONTAINERS, ARRAYS),
        lambda x: priors.ModelTarget(network, x),
        "ModelTarget: output",
        12,
    ),
    Case(
        "ModelTarget: args",
        st.one_of(NUMBERS, ARRAYS, NAMES, st.none(), st.builds(dict)),
        lambda x: priors.ModelTarget(network, args=x),
        "ModelTarget: args",
        12,
    ),
    Case(
        "ModelTarget: kwargs",
        NOT_A_MAPPING.filter(lambda x: x is not None),
        lambda x: priors.ModelTarget(network, kwargs=x),
        "ModelTarget: kwargs",
        12,
    ),
    Case("values_at", NO_POINTS, lambda x: priors.values_at(x), "values_at", 15),
    Case("derivative_at", NO_POINTS, lambda x: priors.derivative_at(x), "derivative_at", 15),
    Case(
        "derivative_at: dim",
        st.one_of(NOT_A_COUNT.filter(lambda x: not isinstance(x, int) or x), st.integers(1, 5)),
        lambda x: priors.derivative_at(X, x),
        "derivative_at: dim",
        15,
    ),
    Case("integral: nodes", NO_POINTS, lambda x: priors.integral(x, X), "integral", 12),
    Case(
        "integral: weights",
        st.one_of(
            NOT_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
            SHAPES.filter(lambda s: s != (5,)).map(np.zeros),
        ),
        lambda x: priors.integral(X, x),
        "integral",
        15,
    ),
    Case("stacked", st.one_of(NO_FUNCTION), lambda x: priors.stacked(x), "stacked", 12),
    Case(
        "Conditioned: base",
        st.one_of(NUMBERS, ARRAYS, st.none()),
        lambda x: priors.Conditioned(x, priors.values_at([0.0]), [1.0]),
        "Conditioned: base",
        12,
    ),
    Case(
        "Conditioned: operator",
        NO_FUNCTION,
        lambda x: priors.Conditioned(TARGET, x, [1.0]),
        "Conditioned: operator",
        12,
    ),
    Case(
        "Conditioned: what the operator gives",
        st.one_of(st.none(), NAMES, st.builds(object)),
        lambda x: priors.Conditioned(TARGET, lambda f: x, [1.0]).mean_at(jnp.asarray(X)[:, None]),
        "operator",
        8,
    ),
    Case(
        "Conditioned: value",
        st.one_of(
            NOT_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
            SHAPES.filter(lambda s: s not in ((1,), ())).map(np.ones),
            st.just([np.nan]),
        ),
        lambda x: priors.Conditioned(TARGET, priors.values_at([0.0]), x),
        "Conditioned: ",
        15,
    ),
    Case(
        "Conditioned: noise",
        NOT_NEGATIVE_WRONG,
        lambda x: priors.Conditioned(TARGET, priors.values_at([0.0]), [1.0], x),
        "Conditioned: noise",
        12,
    ),
    Case(
        "Image: base",
        st.one_of(NUMBERS, ARRAYS, st.none()),
        lambda x: priors.Image(x, lambda f, x: f(x)),
        "Image: base",
        12,
    ),
    Case("Image: operator", NO_FUNCTION, lambda x: priors.Image(TARGET, x), "Image: operator", 12),
    Case(
        "measurement_inputs: inputs",
        NO_POINTS,
        lambda x: priors.measurement_inputs(x),
        "measurement_inputs: inputs",
        15,
    ),
    Case(
        "measurement_inputs: num_points",
        NO_COUNT,
        lambda x: priors.measurement_inputs(X, x),
        "measurement_inputs: num_points",
        12,
    ),
    Case(
        "measurement_inputs: data_fraction",
        st.one_of(NOT_NEGATIVE_WRONG, st.floats(1.01, 3.0)),
        lambda x: priors.measurement_inputs(X, 4, x),
        "measurement_inputs: data_fraction",
        12,
    ),
]
