"""Malformed calls of the samplers of ``ppl_ext.infer``: particle Gibbs, PMMH, SGHMC and SGLD, made and run by
NumPyro's ``MCMC``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from hypothesis import strategies as st
from numpyro.infer import NUTS

from ppl_ext.infer import PMMH, SGHMC, SGLD, Cyclical, Decay, ParticleGibbs, PathSweep
from tests.fuzz.case import (
    ARRAYS,
    BAD_KEYS,
    CONTAINERS,
    KEY,
    NAMES,
    NOT_A_COUNT,
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
    model,
    one,
)
from tests.fuzz.smoothing import NO_COUNT, NOT_A_KERNEL, OF_NO_DATA, series

KERNELS = {"ParticleGibbs": ParticleGibbs, "PathSweep": PathSweep, "PMMH": PMMH, "SGHMC": SGHMC, "SGLD": SGLD}
PARTICLES, GRADIENTS = ("ParticleGibbs", "PathSweep", "PMMH"), ("SGHMC", "SGLD")
RUN = ("ParticleGibbs", "PMMH", "SGHMC", "SGLD")
NOT_POSITIVE = st.one_of(NOT_A_NUMBER, st.just(np.inf), st.floats(max_value=0.0))


def argument(name, wrong, of, examples=20):
    """Each of some kernels, with something wrong as one argument."""
    words = lambda x: f"{x[0]}: {name}"  # noqa: E731
    return Case(
        f"{name} of {of[0]}",
        st.tuples(st.sampled_from(of), wrong),
        lambda x: made(x[0], **{name: x[1]}),
        words,
        examples,
    )


def made(which, **options):
    options = (
        {"model": model if which in GRADIENTS else series}
        | ({} if which in GRADIENTS else {"num_particles": 5})
        | options
    )
    return KERNELS[which](options.pop("model"), **options)


DATA = jnp.asarray(Y)


def run(which, args=(DATA,), kwargs=None, key=KEY, init_params=None, **options):
    """As ``MCMC`` sets a kernel up, which is where what is wrong comes to light."""
    return made(which, **options).init(key, 1, init_params, args, kwargs or {})


def each(wrong, of=RUN):
    return st.tuples(st.sampled_from(of), wrong)


INITIAL = st.one_of(
    NUMBERS, ARRAYS, st.text(max_size=3), st.lists(st.integers(), min_size=1, max_size=2), st.builds(object)
)

SAMPLERS = [
    argument("model", NOT_CALLABLE, tuple(KERNELS), 40),
    argument("num_particles", NO_COUNT, PARTICLES, 30),
    argument("num_particles", st.just(1), PARTICLES[:2], 2),
    argument("backward", NOT_A_KERNEL, PARTICLES[:2], 30),
    argument("resampling", st.one_of(st.none(), NAMES, NUMBERS, CONTAINERS, ARRAYS), PARTICLES[2:]),
    argument("initial", INITIAL, PARTICLES[::2], 25),
    argument(
        "inner", st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.text(max_size=3), st.just(NUTS)), PARTICLES[:1]
    ),
    argument("inner", st.sampled_from([NUTS(model)]), PARTICLES[:1], 1),
    argument("proposal", NOT_CALLABLE.filter(lambda x: x is not None and not callable(x)), PARTICLES[:2]),
    argument(
        "initial_proposal", NOT_CALLABLE.filter(lambda x: x is not None and not callable(x)), PARTICLES[:2]
    ),
    argument("batch_size", NOT_A_COUNT, GRADIENTS, 25),
    argument("step_size", NOT_POSITIVE, GRADIENTS, 25),
    argument(
        "step_size",
        st.sampled_from([lambda: 0.1, lambda k: "a", lambda k: -1.0, lambda k: jnp.ones(2), float, dict]),
        GRADIENTS,
    ),
    argument("temperature", st.one_of(NOT_NEGATIVE_WRONG, st.just(np.inf)), GRADIENTS, 25),
    argument("num_steps", NO_COUNT, GRADIENTS, 25),
    argument(
        "clip",
        NOT_POSITIVE.filter(lambda x: x is not None and not (isinstance(x, float) and x > 0)),
        GRADIENTS,
        25,
    ),
    argument("init_strategy", NOT_CALLABLE.filter(lambda x: not callable(x)), GRADIENTS),
    argument("friction", st.one_of(NOT_POSITIVE, st.floats(1.01, 5.0)), GRADIENTS[:1], 25),
    argument("adapt", st.one_of(NAMES, NUMBERS, ARRAYS, CONTAINERS), GRADIENTS[:1]),
    argument("resample_every", NOT_A_COUNT, GRADIENTS[:1]),
    *(
        Case(f"Decay: {n}", NOT_POSITIVE, lambda x, n=n: Decay(**{"step_size": 0.1} | {n: x}), f"Decay: {n}")
        for n in ("step_size", "delay", "power")
    ),
    Case("Cyclical: step_size", NOT_POSITIVE, lambda x: Cyclical(x, 5), "Cyclical: step_size", 15),
    Case("Cyclical: cycle_length", NO_COUNT, lambda x: Cyclical(0.1, x), "Cyclical: cycle_length", 20),
    Case(
        "Cyclical: exploration",
        st.one_of(NOT_NEGATIVE_WRONG, st.floats(1.0, 3.0)),
        lambda x: Cyclical(0.1, 5, x),
        "Cyclical: exploration",
        15,
    ),
]

SAMPLER_RUNS = [
    Case(
        "arguments of a sampled model",
        each(st.lists(ARRAYS, min_size=2, max_size=3)),
        lambda x: run(x[0], args=tuple(x[1])),
        lambda x: f"{x[0]}: model",
        16,
    ),
    Case(
        "an unknown argument of a sampled model",
        each(NAMES),
        lambda x: run(x[0], kwargs={x[1]: 1.0}),
        lambda x: f"{x[0]}: model.*{x[1]}",
        16,
    ),
    Case(
        "data of a sampler that are no arrays",
        each(OF_NO_DATA),
        lambda x: run(x[0], args=(x[1],)),
        "argument 0|'y'|after site 'x0'",
        30,
    ),
    Case(
        "rng_key of a sampler",
        each(NOT_A_KEY.filter(lambda x: not np.ndim(x) or not len(x) or not isinstance(x, jax.Array))),
        lambda x: run(x[0], key=x[1]),
        "rng_key",
        30,
    ),
    Case(
        "init_params of a sampler",
        each(NOT_A_MAPPING.filter(lambda x: x is not None)),
        lambda x: run(x[0], init_params=x[1]),
        "init_params",
        30,
    ),
    Case(
        "names of init_params of a sampler",
        each(BAD_KEYS),
        lambda x: run(x[0], init_params=x[1]),
        "init_params",
        12,
    ),
    Case(
        "init_params of other sites",
        each(NAMES),
        lambda x: run(x[0], init_params={x[1]: jnp.zeros(())}),
        "init_params",
        8,
    ),
    Case(
        "init_params of a sampler that are no numbers",
        each(NOT_NUMBERS),
        lambda x: run(
            x[0], init_params={"phi": x[1]} if x[0] in PARTICLES else {"mu": x[1], "w": jnp.zeros(3)}
        ),
        "init_params.*'(phi|mu)'",
        20,
    ),
    Case(
        "init_params of a sampler of another shape",
        each(SHAPES.filter(len)),
        lambda x: run(
            x[0],
            init_params={"phi": jnp.zeros(x[1])}
            if x[0] in PARTICLES
            else {"mu": jnp.zeros(x[1]), "w": jnp.zeros(3)},
        ),
        "init_params.*'(phi|mu)'",
        12,
    ),
    Case("a batch of more rows", st.integers(4, 40), lambda x: run("SGHMC", batch_size=x), "batch_size", 4),
    Case(
        "nothing to sample",
        each(NAMES),
        lambda x: run(x[0], model=one(x[1], dist.Normal(0.0, 1.0), obs=0.5), args=()),
        "no latent site|no scan|scan",
        6,
    ),
    Case(
        "a discrete site to sample",
        st.tuples(st.sampled_from(GRADIENTS), NAMES),
        lambda x: run(x[0], model=one(x[1], dist.Bernoulli(0.3)), args=()),
        lambda x: f"'{x[1]}'",
        4,
    ),
    Case(
        "NaN in the data of a sampler",
        st.tuples(st.sampled_from(GRADIENTS), st.sampled_from([0, 1, 2])),
        lambda x: run(x[0], args=(jnp.where(jnp.arange(3) == x[1], jnp.nan, jnp.asarray(Y)),)),
        "'y'.* NaN",
        3,
    ),
    Case(
        "data of another length for a sampler",
        st.tuples(st.sampled_from(GRADIENTS), st.integers(4, 9)),
        lambda x: run(x[0], args=(jnp.zeros(x[1]),)),
        "'y'",
        5,
    ),
    Case(
        "a draw before init",
        each(st.none()),
        lambda x: made(x[0]).sample(None, (Y,), {}),
        "init must be called",
        4,
    ),
]
