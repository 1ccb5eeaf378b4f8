"""Malformed calls of the core: programs, expectations, objectives, handlers and strategies."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import strategies as st

import ppl_ext
from ppl_ext import handlers, objectives
from ppl_ext.densities.log_density import Label, LogDensity
from ppl_ext.gradients import Enumerate, Reparameterize, ScoreFunction
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
    NOT_NUMBERS,
    NUMBERS,
    SHAPES,
    Case,
    Y,
    guide,
    guide_with,
    model,
    names,
    one,
    wrong_shape,
)


def fine_values(**changes):
    return {"mu": 0.1, "w": np.zeros(3)} | changes


def loss(objective=None, **changes):
    options = {"rng_key": KEY, "param_map": {}, "model": model, "guide": guide, "args": (Y,)} | changes
    return (objective or objectives.ELBO()).loss(
        *[options[n] for n in ("rng_key", "param_map", "model", "guide")], *options["args"]
    )


PROGRAMS = [
    Case(
        "simulate: program", NOT_CALLABLE, lambda x: ppl_ext.simulate(x, rng_key=KEY), "simulate: program", 25
    ),
    Case(
        "simulate: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None and not isinstance(x, int)),
        lambda x: ppl_ext.simulate(model, Y, rng_key=x),
        "simulate: rng_key",
        25,
    ),
    Case("simulate: no key", NAMES, lambda x: ppl_ext.simulate(one(x, dist.Normal(0.0, 1.0))), names),
    Case(
        "simulate: too many arguments",
        ARRAYS,
        lambda x: ppl_ext.simulate(model, Y, x, rng_key=KEY),
        "too many positional arguments",
    ),
    Case(
        "simulate: unknown keyword", NAMES, lambda x: ppl_ext.simulate(model, Y, **{x: 1}, rng_key=KEY), names
    ),
    Case(
        "simulate: data of another length",
        st.integers(2, 9).filter(lambda n: n != 3),
        lambda n: ppl_ext.simulate(model, np.zeros(n), rng_key=KEY),
        "'y'",
    ),
    Case(
        "simulate: data that are no numbers",
        NOT_NUMBERS.filter(lambda x: x is not None and not isinstance(x, type)),
        lambda x: ppl_ext.simulate(model, x, rng_key=KEY),
        "'y'",
        25,
    ),
    Case(
        "simulate: two sites of one name",
        NAMES,
        lambda x: ppl_ext.simulate(
            lambda: (one(x, dist.Normal(0.0, 1.0))(), one(x, dist.Normal(0.0, 1.0))()), rng_key=KEY
        ),
        names,
    ),
    Case(
        "simulate: parameters that do not broadcast",
        st.tuples(NAMES, st.integers(2, 5)),
        lambda x: ppl_ext.simulate(
            lambda: one(x[0], dist.Normal(jnp.zeros(x[1]), jnp.ones(x[1] + 1)))(), rng_key=KEY
        ),
        "failed before its first site",
    ),
    Case(
        "simulate: site inside grad",
        NAMES,
        lambda x: ppl_ext.simulate(
            lambda: jax.grad(lambda m: numpyro.sample(x, dist.Normal(m, 1.0)))(1.0), rng_key=KEY
        ),
        names,
    ),
    Case(
        "log_density: program", NOT_CALLABLE, lambda x: ppl_ext.log_density(x, {}), "log_density: program", 25
    ),
    Case(
        "log_density: values",
        NOT_A_MAPPING,
        lambda x: ppl_ext.log_density(model, x, Y),
        "log_density: values",
        25,
    ),
    Case(
        "log_density: names that are no strings",
        BAD_KEYS,
        lambda x: ppl_ext.log_density(model, x, Y),
        "log_density: values",
    ),
    Case(
        "log_density: a value that is no number",
        NOT_NUMBERS,
        lambda x: ppl_ext.log_density(model, fine_values(mu=x), Y),
        "'mu'",
        30,
    ),
    Case(
        "log_density: unknown site",
        NAMES,
        lambda x: ppl_ext.log_density(model, fine_values(**{x: 0.0}), Y),
        names,
        20,
    ),
    Case(
        "log_density: missing site",
        st.sampled_from(["mu", "w"]),
        lambda x: ppl_ext.log_density(model, {n: v for n, v in fine_values().items() if n != x}, Y),
        names,
    ),
    Case(
        "log_density: observed site",
        ARRAYS,
        lambda x: ppl_ext.log_density(model, fine_values(y=x), Y),
        "'y' is observed",
    ),
    Case(
        "log_density: shape of a scalar",
        wrong_shape(()),
        lambda s: ppl_ext.log_density(model, fine_values(mu=np.zeros(s)), Y),
        "'mu'",
        25,
    ),
    Case(
        "log_density: shape of a vector",
        wrong_shape((3,)),
        lambda s: ppl_ext.log_density(model, fine_values(w=jnp.zeros(s)), Y),
        "'w'",
        25,
    ),
    Case(
        "log_density: arguments",
        st.lists(ARRAYS, min_size=2, max_size=3),
        lambda x: ppl_ext.log_density(model, fine_values(), *x),
        "log_density: program",
    ),
    Case(
        "log_density: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None and not isinstance(x, int)),
        lambda x: ppl_ext.log_density(model, fine_values(), Y, rng_key=x),
        "log_density: rng_key",
    ),
]

VALUE = ppl_ext.expectation(lambda p: p * numpyro.sample("z", dist.Normal(0.0, 1.0)))
CANNOT = [
    (dist.Poisson(2.0), Enumerate()),
    (dist.Bernoulli(0.2), Reparameterize()),
    (dist.Normal(0.0, 1.0), Enumerate()),
    (dist.Uniform(0.0, 1.0), ScoreFunction()),
    (dist.Delta(0.0), ScoreFunction()),
    (dist.Poisson(1.0), "reparam"),
]

EXPECTATIONS = [
    Case(
        "expectation: fn",
        NOT_CALLABLE.filter(lambda x: not callable(x)),
        lambda x: ppl_ext.expectation(x),
        "expectation: fn",
        25,
    ),
    Case("value: rng_key", NOT_A_KEY, lambda x: VALUE.value(x, 1.0), "rng_key", 25),
    Case("value_and_grad: rng_key", NOT_A_KEY, lambda x: VALUE.value_and_grad(x, 1.0), "rng_key", 25),
    Case(
        "value_and_grad: by no float",
        st.one_of(
            NOT_NUMBERS.filter(lambda x: not isinstance(x, list) and x is not None),
            st.integers(),
            st.text(),
            st.booleans(),
        ),
        lambda x: VALUE.value_and_grad(KEY, x),
        "first argument|argument 0",
        25,
    ),
    Case(
        "value: arguments",
        st.lists(st.floats(), min_size=2, max_size=4),
        lambda x: VALUE.value(KEY, *x),
        "Expectation.value: program",
    ),
    Case("value: unknown keyword", NAMES, lambda x: VALUE.value(KEY, 1.0, **{x: 2.0}), names),
    Case(
        "value: of no number",
        st.one_of(st.none(), st.text(), SHAPES.filter(bool).map(np.zeros), CONTAINERS, st.builds(object)),
        lambda x: ppl_ext.expectation(lambda: x).value(KEY),
        "expectation is taken of a number",
        15,
    ),
    Case(
        "value_and_grad: without argument",
        NAMES,
        lambda x: ppl_ext.expectation(one(x, dist.Normal(0.0, 1.0))).value_and_grad(KEY),
        "first argument",
    ),
    Case(
        "an unknown strategy",
        st.tuples(NAMES, st.one_of(NAMES, NUMBERS, CONTAINERS, st.sampled_from([Enumerate, ScoreFunction]))),
        lambda x: ppl_ext.expectation(
            lambda: 1.0 * one(x[0], dist.Bernoulli(0.3), infer={"gradient": x[1]})()
        ).value(KEY),
        names,
        15,
    ),
    Case(
        "a strategy that cannot serve",
        st.tuples(NAMES, st.sampled_from(CANNOT)),
        lambda x: ppl_ext.expectation(lambda: 1.0 * one(x[0], x[1][0], infer={"gradient": x[1][1]})()).value(
            KEY
        ),
        names,
        15,
    ),
    Case(
        "a choice inside grad",
        NAMES,
        lambda x: ppl_ext.expectation(
            lambda: jax.grad(lambda p: 1.0 * numpyro.sample(x, dist.Bernoulli(p)))(0.3)
        ).value(KEY),
        names,
        8,
    ),
    Case(
        "replicate: outside",
        st.integers(1, 9),
        lambda n: ppl_ext.replicate(lambda: 0.0, n),
        "replicate works inside",
    ),
    Case(
        "replicate: num_particles",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda n: ppl_ext.replicate(lambda: 0.0, n),
        "replicate: num_particles",
        25,
    ),
    Case(
        "replicate: fn",
        NOT_CALLABLE.filter(lambda x: not callable(x)),
        lambda x: ppl_ext.replicate(x, 2),
        "replicate: fn",
        20,
    ),
    Case(
        "replicate: vectorize",
        NOT_A_FLAG.filter(lambda x: x is not None),
        lambda x: ppl_ext.replicate(lambda: 0.0, 2, vectorize=x),
        "replicate: vectorize",
    ),
    Case(
        "log_mean_exp: a scalar",
        st.floats(),
        lambda x: ppl_ext.log_mean_exp(x),
        "log_mean_exp needs an axis of particles",
    ),
    Case(
        "LogDensity: arithmetic",
        st.one_of(st.none(), st.text(), CONTAINERS),
        lambda x: LogDensity((jnp.zeros(2),), (Label("z", ()),)) + x,
        "a LogDensity and",
    ),
]

OPTIONS = {
    "ELBO": objectives.ELBO,
    "IWELBO": objectives.IWELBO,
    "Renyi": objectives.Renyi,
    "ForwardKL": objectives.ForwardKL,
}
EACH = st.sampled_from(list(OPTIONS))

OBJECTIVES = [
    Case(
        "num_particles",
        st.tuples(EACH, st.one_of(st.none(), NOT_A_COUNT)),
        lambda x: OPTIONS[x[0]](num_particles=x[1]),
        r"\(num_particles=",
        40,
    ),
    Case(
        "vectorize_particles",
        st.tuples(EACH, NOT_A_FLAG),
        lambda x: OPTIONS[x[0]](vectorize_particles=x[1]),
        r"\(vectorize_particles=",
        20,
    ),
    Case(
        "unknown option",
        st.tuples(EACH, NAMES),
        lambda x: OPTIONS[x[0]](**{x[1]: 1}),
        lambda x: re.escape(x[1]),
        20,
    ),
    Case(
        "too many options",
        st.tuples(EACH, st.lists(st.integers(1, 3), min_size=4, max_size=5)),
        lambda x: OPTIONS[x[0]](*x[1]),
        "does not take these options",
    ),
    Case("alpha", NOT_A_NUMBER, lambda x: objectives.Renyi(alpha=x), r"Renyi\(alpha=", 20),
    Case(
        "alpha = 1",
        st.sampled_from([1, 1.0, np.float32(1.0)]),
        lambda x: loss(objectives.Renyi(alpha=x)),
        "alpha=1",
    ),
    Case(
        "objective: body",
        NOT_CALLABLE.filter(lambda x: not callable(x)),
        lambda x: ppl_ext.objective(x),
        "objective: body",
        20,
    ),
    Case(
        "objective: arguments of the body",
        st.sampled_from([lambda: 0.0, lambda model: 0.0]),
        lambda x: ppl_ext.objective(x),
        "must take a model and a guide",
    ),
    Case("loss: rng_key", NOT_A_KEY, lambda x: loss(rng_key=x), "ELBO.loss: rng_key", 25),
    Case("loss: param_map", NOT_A_MAPPING, lambda x: loss(param_map=x), "ELBO.loss: param_map", 20),
    Case("loss: model", NOT_CALLABLE, lambda x: loss(model=x), "ELBO.loss: model", 20),
    Case("loss: guide", NOT_CALLABLE, lambda x: loss(guide=x), "ELBO.loss: guide", 20),
    Case(
        "loss: arguments",
        st.lists(ARRAYS, min_size=2, max_size=3),
        lambda x: loss(args=x),
        "ELBO.loss: model",
    ),
    Case(
        "loss: a site too many",
        NAMES,
        lambda x: loss(guide=lambda y: (guide(y), one(x, dist.Normal(0.0, 1.0))())),
        names,
    ),
    Case("loss: a site of another name", NAMES, lambda x: loss(guide=guide_with(x, (3,))), "'w'"),
    Case(
        "loss: a site of another shape",
        wrong_shape((3,)),
        lambda s: loss(guide=guide_with("w", s)),
        "'w'",
        15,
    ),
    Case(
        "loss: data of another length",
        st.integers(4, 9),
        lambda n: loss(args=(np.zeros(n, np.float32),)),
        "'y'",
        6,
    ),
    Case(
        "loss: data that are no numbers",
        NOT_NUMBERS.filter(lambda x: x is not None and not isinstance(x, type)),
        lambda x: loss(args=(x,)),
        "'y'",
        15,
    ),
    Case(
        "loss: one word for many",
        st.tuples(EACH, NAMES),
        lambda x: loss(OPTIONS[x[0]](), guide=guide_with(x[1], ())),
        "'w'",
        15,
    ),
]

HANDLERS = [
    Case(
        "gradient: program",
        NOT_CALLABLE,
        lambda x: handlers.gradient(x, {"z": "score"}),
        "gradient: program",
        20,
    ),
    Case(
        "gradient: strategies",
        NOT_A_MAPPING,
        lambda x: handlers.gradient(guide, x),
        "gradient: strategies",
        20,
    ),
    Case("gradient: patterns", BAD_KEYS, lambda x: handlers.gradient(guide, x), "gradient: strategies", 8),
    Case(
        "gradient: nothing", st.builds(dict), lambda x: handlers.gradient(guide, x), "strategies is empty", 1
    ),
    Case(
        "gradient: an unknown strategy",
        st.tuples(
            NAMES,
            st.one_of(
                NAMES, st.none(), NUMBERS, CONTAINERS, ARRAYS, st.sampled_from([Enumerate, ScoreFunction])
            ),
        ),
        lambda x: handlers.gradient(guide, {x[0]: x[1]}),
        names,
        25,
    ),
    Case(
        "gradient: a pattern without a site",
        NAMES,
        lambda x: ppl_ext.simulate(handlers.gradient(guide, {x: "score"}), Y, rng_key=KEY),
        names,
        12,
    ),
    Case("detach: program", NOT_CALLABLE, lambda x: handlers.detach(x), "detach: program", 20),
    Case(
        "Enumerate: max_lanes",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: Enumerate(max_lanes=x),
        r"Enumerate\(max_lanes=",
        25,
    ),
    Case(
        "ScoreFunction: baseline",
        NOT_CALLABLE.filter(lambda x: x is not None),
        lambda x: ScoreFunction(baseline=x),
        r"ScoreFunction\(baseline=",
        20,
    ),
]
