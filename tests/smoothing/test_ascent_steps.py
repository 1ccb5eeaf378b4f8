"""Score ascent takes its steps in looks: saved, resumed to the last bit, ended where a score breaks down."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.infer import Checkpoint
from ppl_ext.smoothing import ScoreAscent

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY, Y = jax.random.key(4), jnp.array([0.4, -0.3, 1.1])
PARAMS = {"mean": 0.5, "noise": 1.0}


def model(y, factor=1.0):
    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(factor * (mean + 0.5 * x_prev), 0.5))
        numpyro.sample("y", dist.Normal(x, noise), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def ascend(num_steps, *args, program=model, optim=None, key=KEY, **options):
    optim = optax.adam(0.05) if optim is None else optim
    ascent = ScoreAscent(program, optim, num_particles=4, progress_bar=False, **options)
    return ascent.run(key, num_steps, *(args or (Y,)), params=PARAMS)


@pytest.mark.parametrize("prior", [False, True])
def test_an_ascent_goes_on_to_the_last_bit(tmp_path, prior, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "run.npz", every=20)
    whole = ascend(101, prior=prior)  # looks of three steps, the last of two
    calls, taken = [], Checkpoint.save

    def save(self, state, losses, about):
        calls.append(losses.shape[-1])
        taken(self, state, losses, about)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        ascend(101, prior=prior, checkpoint=checkpoint)
    assert calls == [21, 42]
    rest = ascend(101, prior=prior, checkpoint=checkpoint)
    assert calls[2:] == [63, 84, 101]
    for name in PARAMS:
        np.testing.assert_array_equal(rest.scores[name], whole.scores[name])
        np.testing.assert_array_equal(rest.iterates[name], whole.iterates[name])
        np.testing.assert_array_equal(rest.params[name], whole.params[name])
        assert whole.scores[name].shape == whole.iterates[name].shape == (101,)


def test_iterates_are_constrained_and_averaged():
    found = ascend(6)
    assert (found.iterates["noise"] > 0).all()
    np.testing.assert_allclose(found.params["mean"], found.iterates["mean"][3:].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        jnp.log(found.params["noise"]), jnp.log(found.iterates["noise"])[3:].mean(), 1e-5
    )
    # plain ascent: each parameter moves by the rate times its score
    plain = ascend(4, optim=optax.sgd(0.1))
    before = jnp.concatenate([jnp.array([0.5]), plain.iterates["mean"][:-1]])
    np.testing.assert_allclose(
        plain.iterates["mean"] - before, 0.1 * plain.scores["mean"], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": jax.random.key(5)}, "rng_key"),
        ({"num_steps": 7}, "num_steps is 6, here 7"),
        ({"prior": True}, "prior is False, here True"),
        ({"backward": "path"}, "settings"),
        ({"y": 2.0 * Y}, "data"),
        ({"program": lambda y: model(y, 0.9)}, "program"),
        ({"optim": optax.sgd(0.1)}, "program"),
    ],
)
def test_the_file_of_another_ascent_is_refused(tmp_path, options, words):
    checkpoint = Checkpoint(tmp_path / "run.npz")
    ascend(6, checkpoint=checkpoint)
    options = dict(options)
    with pytest.raises(ArgumentError, match=f"of another run: its {words}"):
        ascend(options.pop("num_steps", 6), options.pop("y", Y), checkpoint=checkpoint, **options)


def test_it_ends_at_the_look_where_a_score_breaks_down(tmp_path):
    schedule = optax.scale_by_schedule(lambda step: jnp.where(step < 40, 1.0, jnp.nan))
    checkpoint = Checkpoint(tmp_path / "run.npz", every=10)
    with pytest.raises(NonFiniteError, match="optimiser made 'mean' not finite at step 40"):
        ascend(100, optim=optax.chain(optax.sgd(0.05), schedule), checkpoint=checkpoint)
    losses = np.load(checkpoint.path)["losses"]
    assert losses.shape == (4, 40) and np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("option", "error"), [({"progress_bar": 1}, ArgumentTypeError), ({"checkpoint": "a"}, ArgumentTypeError)]
)
def test_bad_options_are_named(option, error):
    with pytest.raises(error, match=f"ScoreAscent: {next(iter(option))}"):
        ScoreAscent(model, optax.sgd(0.1), **option)
