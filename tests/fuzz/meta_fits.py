"""Malformed calls of ``ppl_ext.meta`` that lift a model, fit it, and ask something of a fit."""

import numpy as np
import optax
import pandas as pd
from hypothesis import strategies as st

from ppl_ext import meta
from ppl_ext.meta import NIW, SimulatedStream, lift
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
)
from tests.fuzz.meta import EPISODES, NO_EPISODES, NO_NUMBERS, NO_OPTION, NO_SITES, ONES, STREAM, episode
from tests.fuzz.smoothing import NO_COUNT

LIFTED = lift(episode, ["w"])
FITTED = []


def fitted():
    """Of one fit, which most of these calls do not touch."""
    if not FITTED:
        FITTED.append(LIFTED.fit(KEY, STREAM, num_steps=2, progress_bar=False))
    return FITTED[0]


def fit(lifted=LIFTED, rng_key=KEY, stream=STREAM, **options):
    return lifted.fit(rng_key, stream, **{"num_steps": 2, "progress_bar": False} | options)


def lifted(**options):
    return lift(**{"model": episode, "local": ["w"]} | options)


LIFTS = [
    Case("lift: model", NOT_CALLABLE, lambda x: lifted(model=x), "lift: model", 20),
    Case("lift: local", NO_SITES, lambda x: lifted(local=x), "lift: local", 15),
    Case(
        "lift: shared",
        NO_SITES.filter(lambda x: x is not None),
        lambda x: lifted(shared=x),
        "lift: shared",
        15,
    ),
    Case("lift: structure", NO_OPTION, lambda x: lifted(structure=x), "lift: structure", 15),
    Case(
        "lift: num_episodes",
        st.one_of(NOT_A_NUMBER.filter(lambda x: x is not None), st.floats(max_value=0.99)),
        lambda x: lifted(num_episodes=x),
        "lift: num_episodes",
        15,
    ),
    Case(
        "lift: prior",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS, st.just(NIW)),
        lambda x: lifted(prior=x),
        "lift: prior",
        15,
    ),
    Case(
        "lift: a prior of another dimension",
        st.integers(3, 6),
        lambda d: lifted(prior=NIW(np.zeros(d), 1.0, np.eye(d), d + 2.0)).hierarchy(STREAM),
        "lift: prior",
        3,
    ),
    Case("lift: keep_prior", NOT_A_FLAG, lambda x: lifted(keep_prior=x), "lift: keep_prior", 15),
    Case(
        "lift: a site that is not there",
        NAMES,
        lambda x: lifted(local=[x]).hierarchy(STREAM),
        lambda x: f"'{x}'",
        6,
    ),
    Case("hierarchy: stream", NO_EPISODES, lambda x: LIFTED.hierarchy(x), "lift: episodes", 20),
    Case(
        "hierarchy: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: LIFTED.hierarchy(STREAM, x),
        "lift: rng_key",
        15,
    ),
    Case(
        "hierarchy: arguments",
        st.integers(3, 5),
        lambda n: LIFTED.hierarchy([(ONES,) * n]),
        "lift: the episode model",
        3,
    ),
    Case(
        "hierarchy: rows that disagree",
        st.integers(4, 9),
        lambda n: LIFTED.hierarchy([(ONES, np.ones(n))]),
        "'y'",
        4,
    ),
    Case("as_model: stream", NO_EPISODES, lambda x: LIFTED.as_model(x), "as_model", 12),
    Case(
        "load: path",
        st.one_of(st.none(), NUMBERS, st.just(""), NAMES.map(lambda s: f"no/such/folder/{s}.npz"), NAMES),
        lambda x: LIFTED.load(x, STREAM),
        "path|there is no file",
        12,
    ),
    Case("fit of a stream: rng_key", NOT_A_KEY, lambda x: fit(rng_key=x), "fit: rng_key", 20),
    Case("fit of a stream: stream", NO_EPISODES, lambda x: fit(stream=x), "fit: episodes", 20),
    Case("fit of a stream: an unknown option", NAMES, lambda x: fit(**{x: 1}), lambda x: f"'{x}'", 8),
    Case(
        "fit of a stream: local_solver",
        st.one_of(NUMBERS, ARRAYS, st.just(meta.LaplaceGGN), st.just(len)),
        lambda x: fit(local_solver=x),
        "fit: local_solver",
        12,
    ),
    Case(
        "fit of a stream: optim",
        st.one_of(NUMBERS, ARRAYS, st.just(optax.adam)),
        lambda x: fit(optim=x),
        "fit: optim",
        12,
    ),
    Case("fit of a stream: num_steps", NO_COUNT, lambda x: fit(num_steps=x), "fit: num_steps", 20),
    Case("fit of a stream: batch_size", NOT_A_COUNT, lambda x: fit(batch_size=x), "fit: batch_size", 20),
    Case(
        "fit of a simulator: batch_size",
        NO_COUNT,
        lambda x: fit(lifted(num_episodes=5), stream=SimulatedStream(lambda k: (ONES, ONES)), batch_size=x),
        "fit: .*batch_size",
        10,
    ),
    Case(
        "fit of a simulator without num_episodes",
        st.integers(1, 4),
        lambda n: fit(stream=SimulatedStream(lambda k: (ONES, ONES)), batch_size=n),
        "num_episodes",
        2,
    ),
    Case(
        "fit of a stream: rate",
        st.one_of(NOT_A_NUMBER.filter(lambda x: x is not None), st.floats(1.01, 9.0), st.just(0.0)),
        lambda x: fit(rate=x),
        "fit: rate",
        15,
    ),
    Case("fit of a stream: num_draws", NO_COUNT, lambda x: fit(num_draws=x), "fit: num_draws", 12),
    Case(
        "fit of a stream: init",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS),
        lambda x: fit(init=x),
        "fit: init",
        12,
    ),
    Case(
        "fit of a stream: checkpoint",
        st.one_of(NUMBERS, ARRAYS, CONTAINERS, NAMES),
        lambda x: fit(checkpoint=x),
        "fit: checkpoint",
        12,
    ),
    Case("fit of a stream: progress_bar", NOT_A_FLAG, lambda x: fit(progress_bar=x), "fit: progress_bar", 12),
]


def evaluate(**changes):
    options = {"fit": fitted(), "rng_key": KEY, "support": EPISODES, "query": EPISODES} | changes
    first = [options.pop(n) for n in ("fit", "rng_key", "support", "query")]
    return meta.evaluate(*first, **options)


def adapt(*args, rng_key=KEY, **options):
    return fitted().adapt(rng_key, *args, **options)


LEVELS = st.one_of(NOT_A_NUMBER, st.sampled_from([0, 1, -0.1, 1.5]))
ADAPTED = [
    Case("adapt: rng_key", NOT_A_KEY, lambda x: adapt(ONES, ONES, rng_key=x), "adapt: rng_key", 15),
    Case("adapt: prior", NO_OPTION, lambda x: adapt(ONES, ONES, prior=x), "adapt: prior", 15),
    Case(
        "adapt: num_samples", NO_COUNT, lambda x: adapt(ONES, ONES, num_samples=x), "adapt: num_samples", 12
    ),
    Case("adapt: num_nodes", NO_COUNT, lambda x: adapt(ONES, ONES, num_nodes=x), "adapt: num_nodes", 12),
    Case("adapt: arguments", st.lists(ARRAYS, min_size=3, max_size=4), lambda x: adapt(*x), "adapt", 10),
    Case(
        "adapt: shapes",
        SHAPES.filter(lambda s: s != (3,)),
        lambda s: adapt(ONES, np.zeros(s)),
        "adapt|'y'",
        12,
    ),
    Case(
        "adapt: data that are no numbers",
        NO_NUMBERS.filter(lambda x: not isinstance(x, type)),
        lambda x: adapt(ONES, x),
        "adapt: |'y'",
        20,
    ),
    Case(
        "adapt: NaN",
        st.sampled_from([0, 1, 2]),
        lambda i: adapt(ONES, np.where(np.arange(3) == i, np.nan, 0.0)),
        "adapt: .*'y'",
        2,
    ),
    Case("posteriors: stream", NO_EPISODES, lambda x: fitted().posteriors(x), "posteriors", 15),
    Case(
        "posteriors: rng_key",
        NOT_A_KEY.filter(lambda x: x is not None),
        lambda x: fitted().posteriors(STREAM, x),
        "posteriors: rng_key",
        12,
    ),
    Case(
        "save of a fit: path",
        st.one_of(
            st.none(), NUMBERS, st.just(""), NAMES.map(lambda s: f"no/such/folder/{s}.npz"), st.just(".")
        ),
        lambda x: fitted().save(x),
        "path",
        12,
    ),
    Case("to_arviz of a fit: episodes", NO_EPISODES, lambda x: fitted().to_arviz(x), "to_arviz", 12),
    Case(
        "to_arviz of a fit: num_samples",
        NO_COUNT,
        lambda x: fitted().to_arviz(STREAM, num_samples=x),
        "to_arviz: num_samples",
        12,
    ),
    Case(
        "to_arviz of a fit: labels",
        st.one_of(st.lists(NAMES, min_size=3, max_size=4), NUMBERS),
        lambda x: fitted().to_arviz(STREAM, labels=x),
        "to_arviz: labels",
        8,
    ),
    Case(
        "to_arviz of a fit: scores",
        st.one_of(NUMBERS, CONTAINERS, NAMES),
        lambda x: fitted().to_arviz(STREAM, scores=x),
        "to_arviz: scores",
        8,
    ),
    Case(
        "to_arviz of a fit: an unknown option",
        NAMES,
        lambda x: fitted().to_arviz(STREAM, **{x: 1}),
        lambda x: f"'{x}'",
        6,
    ),
    Case(
        "adapted_to_arviz",
        st.one_of(NUMBERS, ARRAYS, st.dictionaries(NAMES, NUMBERS), st.none()),
        lambda x: meta.adapted_to_arviz(x),
        "adapted_to_arviz",
        12,
    ),
    Case("evaluate: fit", NOT_CALLABLE, lambda x: evaluate(fit=x), "evaluate: fit", 12),
    Case("evaluate: rng_key", NOT_A_KEY, lambda x: evaluate(rng_key=x), "evaluate: rng_key", 12),
    Case("evaluate: support", NO_EPISODES, lambda x: evaluate(support=x), "evaluate: support", 12),
    Case("evaluate: query", NO_EPISODES, lambda x: evaluate(query=x), "evaluate: query", 12),
    Case(
        "evaluate: as many",
        st.integers(1, 4).filter(lambda n: n != 2),
        lambda n: evaluate(query=[EPISODES[0]] * n),
        "2 supports",
        2,
    ),
    Case(
        "evaluate: arguments",
        st.integers(3, 4),
        lambda n: evaluate(query=[(ONES,) * n] * 2),
        "evaluate: query",
        2,
    ),
    Case("evaluate: level", LEVELS, lambda x: evaluate(level=x), "evaluate: level", 12),
    Case("evaluate: prior", NO_OPTION, lambda x: evaluate(prior=x), "evaluate: .*prior", 12),
    *(
        Case(f"evaluate: {n}", NO_COUNT, lambda x, n=n: evaluate(**{n: x}), f"evaluate: {n}", 10)
        for n in ("num_samples", "num_nodes", "batch_size")
    ),
    Case(
        "mass_elsewhere: fit",
        NOT_CALLABLE,
        lambda x: meta.mass_elsewhere(x, EPISODES),
        "mass_elsewhere: fit",
        12,
    ),
    Case(
        "mass_elsewhere: episodes",
        NO_EPISODES,
        lambda x: meta.mass_elsewhere(fitted(), x),
        "mass_elsewhere",
        12,
    ),
    Case(
        "mass_elsewhere: num_starts",
        NO_COUNT,
        lambda x: meta.mass_elsewhere(fitted(), EPISODES, num_starts=x),
        "num_starts",
        12,
    ),
    Case(
        "expected_calibration_error: confidence",
        st.one_of(NOT_NUMBERS, SHAPES.filter(lambda s: s != (3,)).map(np.zeros)),
        lambda x: meta.expected_calibration_error(x, ONES),
        "expected_calibration_error",
        20,
    ),
    Case(
        "expected_calibration_error: num_bins",
        NO_COUNT,
        lambda x: meta.expected_calibration_error(ONES, ONES, x),
        "num_bins",
        12,
    ),
    Case(
        "plot_episodes: fit",
        NOT_CALLABLE,
        lambda x: meta.plot_episodes(x, EPISODES, ONES),
        "plot_episodes: fit",
        10,
    ),
    Case(
        "plot_episodes: at",
        st.one_of(
            NOT_NUMBERS.filter(lambda x: not isinstance(x, pd.Series)),
            SHAPES.filter(lambda s: len(s) != 1).map(np.zeros),
        ),
        lambda x: meta.plot_episodes(fitted(), EPISODES, x),
        "plot_episodes: at",
        15,
    ),
    Case(
        "plot_episodes: level",
        LEVELS,
        lambda x: meta.plot_episodes(fitted(), EPISODES, ONES, level=x),
        "plot_episodes: .*level",
        10,
    ),
]
