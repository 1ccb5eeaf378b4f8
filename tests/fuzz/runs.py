"""Malformed calls around a run: fits, diagnostics, reports, checkpoints and stopping."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
from hypothesis import strategies as st
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import diagnostics, objectives
from ppl_ext.infer import Checkpoint, Plateau, fit
from ppl_ext.result import Fit, to_arviz
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
    Y,
    guide,
    guide_with,
    model,
    names,
    one,
    one_of_values,
    wrong_shape,
)

OPTIM = optax.adam(0.01)


def fine_fit(**changes):
    about = {"model": model, "guide": guide, "objective": objectives.ELBO(), "args": (Y,)} | changes
    return Fit(params={"loc": np.zeros(1)}, losses=np.zeros((1, 2)), rng_key=KEY, **about)


def run_fit(**changes):
    options = {
        "rng_key": KEY,
        "model": model,
        "guide": guide,
        "objective": objectives.ELBO(),
        "optim": OPTIM,
        "num_steps": 2,
        "args": (Y,),
    }
    options |= {"progress_bar": False} | changes
    first = [options.pop(n) for n in ("rng_key", "model", "guide", "objective", "optim", "num_steps")]
    return fit(*first, *options.pop("args"), **options)


def arviz_option(name):
    return lambda wrong: to_arviz(fine_fit(), **{name: wrong})


FITS = [
    Case("rng_key", NOT_A_KEY, lambda x: run_fit(rng_key=x), "fit: rng_key", 30),
    Case("model", NOT_CALLABLE, lambda x: run_fit(model=x), "fit: model", 25),
    Case("guide", NOT_CALLABLE, lambda x: run_fit(guide=x), "fit: guide", 25),
    Case(
        "objective",
        st.one_of(
            NOT_CALLABLE,
            st.sampled_from([objectives.ELBO, objectives.IWELBO, objectives.Renyi, objectives.ForwardKL]),
        ),
        lambda x: run_fit(objective=x),
        "fit: objective",
        25,
    ),
    Case("optim", st.one_of(NOT_CALLABLE, st.just(optax.adam)), lambda x: run_fit(optim=x), "fit: optim", 25),
    Case(
        "num_steps", st.one_of(st.none(), NOT_A_COUNT), lambda x: run_fit(num_steps=x), "fit: num_steps", 25
    ),
    Case(
        "num_chains",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: run_fit(num_chains=x),
        "fit: num_chains",
        25,
    ),
    Case("progress_bar", NOT_A_FLAG, lambda x: run_fit(progress_bar=x), "fit: progress_bar", 15),
    Case("init_params", NOT_A_MAPPING, lambda x: run_fit(init_params=x), "fit: init_params", 20),
    Case(
        "init_params that are no numbers",
        one_of_values(NOT_NUMBERS),
        lambda x: run_fit(init_params=x),
        "fit: init_params: .*'mu'",
        20,
    ),
    Case("init_params of no site", NAMES, lambda x: run_fit(init_params={x: 0.0}), names, 4),
    Case(
        "init_params of another shape",
        wrong_shape(()).filter(len),
        lambda s: run_fit(init_params={"loc": np.zeros(s, np.float32)}),
        "'(loc|mu)'",
        6,
    ),
    Case(
        "early_stopping",
        st.one_of(NOT_CALLABLE.filter(lambda x: x is not None), st.just(Plateau)),
        lambda x: run_fit(early_stopping=x),
        "fit: early_stopping",
        15,
    ),
    Case(
        "callback",
        NOT_CALLABLE.filter(lambda x: x is not None and not callable(x)),
        lambda x: run_fit(callback=x),
        "fit: callback",
        15,
    ),
    Case(
        "checkpoint",
        NOT_CALLABLE.filter(lambda x: x is not None),
        lambda x: run_fit(checkpoint=x),
        "fit: checkpoint",
        20,
    ),
    Case("arguments", st.lists(ARRAYS, min_size=2, max_size=3), lambda x: run_fit(args=x), "fit: model", 12),
    Case("unknown keyword", NAMES, lambda x: run_fit(**{x: 1}), names, 12),
    Case(
        "tables and objects as data",
        st.one_of(
            st.sampled_from([pd.Series(Y), pd.DataFrame({"y": Y})]),
            st.just(np.array([None] * 3)),
            NAMES.map(lambda s: np.array([s] * 3)),
        ),
        lambda x: run_fit(args=(x,)),
        "fit: model argument 0",
        15,
    ),
    Case(
        "a key out of place",
        st.permutations(["rng_key", "model", "guide", "objective", "optim", "num_steps"]).filter(
            lambda p: p.index("rng_key")
        ),
        lambda order: run_fit(
            **dict(zip(order, (KEY, model, guide, objectives.ELBO(), OPTIM, 2), strict=True))
        ),
        "fit: (model|guide|rng_key)",
        25,
    ),
    Case(
        "a site too many",
        NAMES,
        lambda x: run_fit(guide=lambda y: (guide(y), one(x, dist.Normal(0.0, 1.0))())),
        names,
        3,
    ),
    Case(
        "a missing site",
        NAMES,
        lambda x: run_fit(guide=lambda y: (numpyro.param("loc", 0.0), one("mu", dist.Normal(0.0, 1.0))())),
        "'w'",
        1,
    ),
    Case(
        "NaN in the data",
        st.sampled_from([0, 1, 2]),
        lambda i: run_fit(args=(np.where(np.arange(3) == i, np.nan, Y).astype(np.float32),)),
        "'y' in the model is nan",
        3,
    ),
    Case(
        "an automatic guide on a discrete site",
        st.sampled_from(["first", "second"]),
        lambda x: (lambda m: run_fit(model=m, guide=AutoNormal(m), args=()))(one(x, dist.Bernoulli(0.3))),
        names,
        2,
    ),
]

WEIGHTS_WRONG = st.one_of(
    NUMBERS,
    SHAPES.map(lambda s: np.zeros((*s, 0))),
    SHAPES.map(lambda s: np.zeros(s, complex)),
    NOT_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
)
SAMPLES = {"mu": np.zeros((1, 2)), "w": np.zeros((1, 2, 3))}


def log_likelihood(**changes):
    options = {"model": model, "samples": SAMPLES, "args": (jnp.asarray(Y),)} | changes
    return diagnostics.log_likelihood(
        options.pop("model"), options.pop("samples"), *options.pop("args"), **options
    )


DIAGNOSTICS = [
    Case("psis", WEIGHTS_WRONG, lambda x: diagnostics.psis(x), "log_weights", 30),
    Case(
        "psis under jit",
        st.integers(2, 9),
        lambda n: jax.jit(lambda x: diagnostics.psis(x).ess)(jnp.zeros(n)),
        "outside jit",
        5,
    ),
    Case("importance_ess", WEIGHTS_WRONG, lambda x: diagnostics.importance_ess(x), "log_weights", 25),
    Case(
        "pareto_k_threshold",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: diagnostics.pareto_k_threshold(x),
        "num_draws",
        20,
    ),
    Case("loo", NOT_CALLABLE, lambda x: diagnostics.loo(x), "loo: result", 20),
    Case(
        "log_likelihood: model", NOT_CALLABLE, lambda x: log_likelihood(model=x), "log_likelihood: model", 20
    ),
    Case(
        "log_likelihood: samples",
        NOT_A_MAPPING,
        lambda x: log_likelihood(samples=x),
        "log_likelihood: samples",
        20,
    ),
    Case(
        "log_likelihood: samples that are no numbers",
        one_of_values(NOT_NUMBERS),
        lambda x: log_likelihood(samples=SAMPLES | x),
        "log_likelihood: samples: .*'mu'",
        20,
    ),
    Case(
        "log_likelihood: batch axes",
        SHAPES.filter(lambda s: s != (1, 2)),
        lambda s: log_likelihood(samples=SAMPLES | {"mu": np.zeros(s)}),
        "batch axes.*'mu'|'mu'.*batch axes|'mu' has shape",
        20,
    ),
    Case(
        "log_likelihood: shape of a site",
        wrong_shape((3,)).filter(lambda s: s[-1:] != (3,)),
        lambda s: log_likelihood(samples=SAMPLES | {"w": np.zeros((1, 2, *s))}),
        "'w'",
        15,
    ),
    Case(
        "log_likelihood: a missing site",
        st.sampled_from(["mu", "w"]),
        lambda x: log_likelihood(samples={n: v for n, v in SAMPLES.items() if n != x}),
        names,
        2,
    ),
    Case(
        "log_likelihood: batch_ndims",
        st.one_of(st.none(), NOT_A_COUNT).filter(
            lambda x: isinstance(x, bool) or not (isinstance(x, int) and x == 0)
        ),
        lambda x: log_likelihood(batch_ndims=x),
        "batch_ndims",
        15,
    ),
    Case("log_likelihood: chunk_size", NOT_A_COUNT, lambda x: log_likelihood(chunk_size=x), "chunk_size", 20),
    Case(
        "log_likelihood: units",
        st.one_of(st.none(), NAMES, NUMBERS, CONTAINERS, ARRAYS),
        lambda x: log_likelihood(units=x),
        "units",
        20,
    ),
    Case(
        "log_likelihood: arguments",
        st.lists(ARRAYS, min_size=2, max_size=3),
        lambda x: log_likelihood(args=x),
        "log_likelihood: model",
    ),
    Case(
        "log_likelihood: data of another length",
        st.integers(4, 9),
        lambda n: log_likelihood(args=(jnp.zeros(n),)),
        "'y'",
        6,
    ),
    Case(
        "log_likelihood: tables and objects as data",
        st.sampled_from([pd.Series(Y), np.array([None] * 3)]),
        lambda x: log_likelihood(args=(x,)),
        "argument 0",
        2,
    ),
]

REPORTS = [
    Case("result", NOT_CALLABLE, lambda x: to_arviz(x), "to_arviz: result", 25),
    Case("model", NOT_CALLABLE.filter(lambda x: x is not None), arviz_option("model"), "to_arviz: model", 15),
    Case("guide", NOT_CALLABLE.filter(lambda x: x is not None), arviz_option("guide"), "to_arviz: guide", 15),
    Case(
        "model_args",
        st.one_of(NUMBERS, ARRAYS, st.text(), st.dictionaries(NAMES, NUMBERS)),
        arviz_option("model_args"),
        "to_arviz: model_args",
        15,
    ),
    Case("model_kwargs", NOT_A_MAPPING, arviz_option("model_kwargs"), "to_arviz: model_kwargs", 15),
    Case(
        "rng_key", NOT_A_KEY.filter(lambda x: x is not None), arviz_option("rng_key"), "to_arviz: rng_key", 20
    ),
    Case(
        "num_samples",
        NOT_A_COUNT.filter(lambda x: x is not None),  # None: the default, of whatever result it is
        arviz_option("num_samples"),
        "to_arviz: num_samples",
        20,
    ),
    Case(
        "log_likelihood",
        NOT_A_FLAG.filter(lambda x: x is not None),
        arviz_option("log_likelihood"),
        "to_arviz: log_likelihood",
        12,
    ),
    Case(
        "posterior_predictive",
        st.one_of(
            NOT_A_FLAG.filter(lambda x: not isinstance(x, dict)),
            one_of_values(NOT_NUMBERS),
            one_of_values(NUMBERS),
        ),
        arviz_option("posterior_predictive"),
        "to_arviz: posterior_predictive",
        15,
    ),
    Case(
        "prior",
        st.one_of(NOT_A_MAPPING, one_of_values(NOT_NUMBERS), one_of_values(NUMBERS), BAD_KEYS),
        arviz_option("prior"),
        "to_arviz: prior",
        20,
    ),
    Case(
        "constant_data",
        st.one_of(NOT_A_MAPPING, one_of_values(NOT_NUMBERS), BAD_KEYS),
        arviz_option("constant_data"),
        "to_arviz: constant_data",
        20,
    ),
    Case(
        "coords",
        st.one_of(
            NOT_A_MAPPING,
            st.dictionaries(NAMES, st.one_of(st.text(), NUMBERS, st.none()), min_size=1),
            BAD_KEYS,
        ),
        arviz_option("coords"),
        "to_arviz: coords",
        20,
    ),
    Case(
        "dims",
        st.one_of(
            NOT_A_MAPPING,
            st.dictionaries(
                NAMES, st.one_of(NAMES, NUMBERS, st.none(), st.lists(st.integers(), min_size=1)), min_size=1
            ),
            BAD_KEYS,
        ),
        arviz_option("dims"),
        "to_arviz: dims",
        20,
    ),
    Case(
        "arguments of the model",
        st.lists(ARRAYS, min_size=2, max_size=3),
        lambda x: fine_fit(args=tuple(x)).to_arviz(),
        "model 'model' takes",
        12,
    ),
    Case(
        "sample: num_samples",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: fine_fit().sample(num_samples=x),
        "num_samples",
        20,
    ),
    Case(
        "sample: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: fine_fit().sample(x),
        "rng_key",
        20,
    ),
    Case(
        "print_summary: num_samples",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: fine_fit().print_summary(num_samples=x),
        "num_samples",
        20,
    ),
    Case(
        "print_summary: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: fine_fit().print_summary(x),
        "rng_key",
        15,
    ),
    Case(
        "save: path",
        st.one_of(
            st.none(),
            NUMBERS,
            CONTAINERS,
            ARRAYS,
            st.just(""),
            NAMES.map(lambda s: f"no/such/folder/{s}.nc"),
            st.just("."),
        ),
        lambda x: fine_fit().save(x),
        "save: path",
        15,
    ),
    Case(
        "a guide of other sites",
        NAMES,
        lambda x: fine_fit(guide=guide_with(x, (3,))).sample(num_samples=2),
        "'w'",
        4,
    ),
]

LOSSES_WRONG = st.one_of(NUMBERS, CONTAINERS, SHAPES.filter(lambda s: len(s) != 2).map(np.zeros), st.none())

RUNS = [
    Case(
        "Checkpoint: path",
        st.one_of(
            st.none(),
            NUMBERS,
            CONTAINERS,
            ARRAYS,
            st.just(""),
            NAMES.map(lambda s: f"no/such/folder/{s}.npz"),
            st.just("."),
        ),
        lambda x: Checkpoint(x),
        "Checkpoint: path",
        25,
    ),
    Case(
        "Checkpoint: every",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: Checkpoint("run.npz", every=x),
        "Checkpoint: every",
        25,
    ),
    Case(
        "Plateau: window",
        st.one_of(st.none(), NOT_A_COUNT, st.integers(1, 19)),
        lambda x: Plateau(window=x),
        "Plateau: window",
        25,
    ),
    Case(
        "Plateau: patience",
        st.one_of(st.none(), NOT_A_COUNT),
        lambda x: Plateau(patience=x),
        "Plateau: patience",
        25,
    ),
    Case("Plateau: tolerance", NOT_NEGATIVE_WRONG, lambda x: Plateau(tolerance=x), "Plateau: tolerance", 20),
    Case("Plateau: z", NOT_NEGATIVE_WRONG, lambda x: Plateau(z=x), "Plateau: z", 20),
    Case("Plateau: losses", LOSSES_WRONG, lambda x: Plateau()(x), "Plateau: losses", 20),
]
