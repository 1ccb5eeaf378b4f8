"""What a user may get wrong ends in an error that names it; an empty series is an answer where there is
one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro.infer import MCMC

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, ProgramError
from ppl_ext.infer import PMMH, ParticleGibbs
from ppl_ext.smoothing import (
    OnlineEM,
    OnlineSmoother,
    ParisParticleGibbs,
    RecursiveMaximumLikelihood,
    ScoreAscent,
    additive,
    smooth,
)
from tests.smoothing.problems import GAUSSIAN_Y
from tests.smoothing.test_smooth import PARAMS, finite, gaussian

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
PRODUCT = {"s": lambda t, x_prev, x: x_prev * x}
PPG = ParisParticleGibbs(gaussian, PRODUCT, num_particles=4, backward="path", num_sweeps=3, burn_in=1)
ASCENT = ScoreAscent(gaussian, optax.adam(0.1), 4, "path")
SMOOTHER = smooth(gaussian, PRODUCT, 8, "path")
ONLINE = OnlineSmoother(gaussian, PRODUCT, 8, "path")
LEARNER = RecursiveMaximumLikelihood(gaussian, lambda t: t**-0.6, 8, "path")

RUNS = {
    "smooth": lambda params: SMOOTHER.run(KEY, GAUSSIAN_Y, params=params),
    "ParisParticleGibbs": lambda params: PPG.run(KEY, GAUSSIAN_Y, params=params),
    "ScoreAscent": lambda params: ASCENT.run(KEY, 2, GAUSSIAN_Y, params=params),
    "OnlineSmoother.init": lambda params: ONLINE.init(KEY, GAUSSIAN_Y[0], params=params),
    "RecursiveMaximumLikelihood.init": lambda params: LEARNER.init(KEY, GAUSSIAN_Y[0], params=params),
}


@pytest.mark.parametrize("where", RUNS)
def test_wrong_parameters_are_named(where):
    run = RUNS[where]
    with pytest.raises(ArgumentError, match=f"{where}: params: the value of 'phi' is NaN; give"):
        run({**PARAMS, "phi": np.nan})
    with pytest.raises(ModelError, match="'sclae'"):
        run({"phi": 0.9, "sclae": 0.6})
    with pytest.raises(ModelError, match="'phi'"):
        run({**PARAMS, "phi": np.ones(2)})
    with pytest.raises(ArgumentTypeError, match=f"{where}: params: the value of site 'phi'"):
        run({**PARAMS, "phi": "0.9"})


@pytest.mark.parametrize(
    "where", ["smooth", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "smooth")]
)
def test_parameters_outside_of_their_support_are_named(where):
    with pytest.raises(ArgumentError, match=f"{where}: params: the value of 'scale' lies outside.*-0.6"):
        RUNS[where]({**PARAMS, "scale": -0.6})


def test_a_stream_that_began_without_data_checks_its_parameters_at_the_first_step():
    with pytest.raises(ArgumentError, match="'scale' lies outside"):
        ONLINE.step(ONLINE.init(KEY, params={**PARAMS, "scale": -0.6}), GAUSSIAN_Y[0])


def test_the_place_of_a_nan_is_told():
    with pytest.raises(ArgumentError, match=r"'logits' is NaN at \[1, 2\]"):
        smooth(finite, None, 4).run(
            KEY, np.array([0, 1]), params={"logits": jnp.zeros((3, 3)).at[1, 2].set(jnp.nan)}
        )


@pytest.mark.parametrize(
    ("functional", "error", "words"),
    [
        (lambda x: x, ArgumentError, r"'s', called with \(t, x_prev, x\)"),
        (lambda t, x_prev, *, x: x, ArgumentError, r"called with \(t, x_prev, x\)"),
        (lambda t, x_prev, x: "x", ArgumentTypeError, "'s' must return real numbers.*'x'"),
        (lambda t, x_prev, x: None, ArgumentTypeError, "'s' must return real numbers.*None"),
        (lambda t, x_prev, x: 1j * x, ArgumentTypeError, "'s' must return real numbers.*complex"),
        (lambda t, x_prev, x: x["level"], ProgramError, "'s' failed.*string indexing"),
        (lambda t, x_prev, x: x if x > 0 else 0.0, ProgramError, "'s' failed.*jax.numpy"),
        (additive.transition_counts(3), ArgumentTypeError, "one integer"),
    ],
)
def test_a_wrong_functional_is_named(functional, error, words):
    with pytest.raises(error, match=words):
        smooth(gaussian, {"s": functional}, 4).run(KEY, GAUSSIAN_Y, params=PARAMS)


def test_functions_with_another_signature_are_refused():
    with pytest.raises(ArgumentError, match="x_prev, x, inputs"):
        additive.sufficient_statistics(lambda x: x)
    with pytest.raises(ArgumentError, match="step_size"):
        RecursiveMaximumLikelihood(gaussian, lambda: 0.1)
    with pytest.raises(ArgumentError, match="maximize"):
        OnlineEM(gaussian, lambda x_prev, x, y: x, lambda: {})
    for maximize, error, words in (
        (lambda s: 3.0, ArgumentTypeError, "maximize must be a dict"),
        (lambda s: {**PARAMS, "phi": jnp.ones(2)}, ArgumentError, r"'phi' with the shape \(\), got \(2,\)"),
    ):
        learner = OnlineEM(gaussian, lambda x_prev, x, y: x, maximize, num_particles=4)
        with pytest.raises(error, match=words):
            learner.step(learner.init(KEY, GAUSSIAN_Y[0], params=PARAMS), GAUSSIAN_Y[0])


def test_data_that_are_no_arrays_are_refused():
    with pytest.raises(ProgramError, match="argument 0 is 'abc', which is no array"):
        SMOOTHER.run(KEY, "abc", params=PARAMS)


EMPTY = GAUSSIAN_Y[:0]


@pytest.mark.slow
def test_an_empty_series_is_smoothed_to_what_is_known_before_it():
    run = SMOOTHER.run(KEY, EMPTY, params=PARAMS)
    assert float(run.log_evidence) == 0.0 and float(run.expectations["s"]) == 0.0
    with pytest.raises(ModelError, match="series is empty"):
        run.to_arviz(num_samples=2)
    ppg = PPG.run(KEY, EMPTY, params=PARAMS)
    assert (
        float(ppg.expectations["s"]) == 0.0
        and ppg.renewal.shape == (1,)
        and ppg.trajectories["x0"].shape == (1, 2)
    )


@pytest.mark.slow
def test_the_score_of_an_empty_series_moves_no_parameter():
    learned = ASCENT.run(KEY, 2, EMPTY, params=PARAMS)
    assert {name: float(x) for name, x in learned.params.items()} == pytest.approx(PARAMS)


def run_mcmc(kernel, *args, **kwargs):
    MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(KEY, *args, **kwargs)


@pytest.mark.slow
def test_what_particle_gibbs_cannot_begin_with_is_named():
    with pytest.raises(ModelError, match="series is empty"):
        run_mcmc(ParticleGibbs(gaussian, 4), EMPTY)
    with pytest.raises(ArgumentError, match="no value for 'scale'"):
        run_mcmc(ParticleGibbs(gaussian, 4), GAUSSIAN_Y, init_params={"phi": jnp.array(0.1)})
    with pytest.raises(ArgumentError, match="'phi' is not finite"):
        run_mcmc(
            PMMH(gaussian, 4), GAUSSIAN_Y, init_params={"phi": jnp.array(jnp.nan), "scale": jnp.array(0.0)}
        )
    for kind in (ParticleGibbs, PMMH):
        with pytest.raises(ArgumentTypeError, match="initial must be a tuple"):
            kind(gaussian, 4, initial="x0")
    with pytest.raises(ProgramError, match="'gaussian' failed"):
        run_mcmc(ParticleGibbs(gaussian, 4), "abc")
