"""A match that is saved as it goes: it goes on to the last bit, and a file of another one is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.infer import Checkpoint
from ppl_ext.priors import CriticW1, Gaussian, SlicedWasserstein, lift_prior, match
from tests.priors.models import X, line, linear_target

RULES = {"slope": Gaussian(), "level": Gaussian()}


def tune(model=line, **options):
    settings = {
        "inputs": X,
        "target": linear_target(),
        "output": "f",
        "optim": optax.adam(0.05),
        "num_draws": 8,
    }
    return match(jax.random.key(3), lift_prior(model, RULES), **settings | {"progress_bar": False} | options)


@pytest.mark.parametrize(
    "distance", [SlicedWasserstein(), CriticW1(num_steps=2, width=4, fresh=False)], ids=repr
)
def test_a_match_goes_on_to_the_last_bit(tmp_path, distance):
    checkpoint = Checkpoint(tmp_path / "run.npz", every=2)
    whole = tune(distance=distance, num_steps=9)
    part = tune(distance=distance, num_steps=5, checkpoint=checkpoint)
    assert len(part.losses) == 5 and (tmp_path / "run.npz").exists()
    rest = tune(distance=distance, num_steps=9, checkpoint=checkpoint)
    np.testing.assert_array_equal(rest.losses, whole.losses)
    jax.tree.map(np.testing.assert_array_equal, rest.raw, whole.raw)
    again = tune(distance=distance, num_steps=9, checkpoint=checkpoint)  # nothing is left to be done
    np.testing.assert_array_equal(again.losses, whole.losses)


def other_line(x):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    return numpyro.deterministic("f", 3.0 * slope * x + level)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_draws": 10}, "num_draws is 8, here 10"),
        ({"inputs": 2.0 * X}, "inputs is"),
        ({"distance": SlicedWasserstein(num_projections=12)}, "distance is"),
        ({"model": other_line}, "program, with the numbers"),
        ({"optim": optax.sgd(0.1)}, "state is"),
        ({"optim": None}, "num_steps is None, here 6"),
    ],
)
def test_the_file_of_another_match_is_refused(tmp_path, options, words):
    checkpoint = Checkpoint(tmp_path / "run.npz")
    tune(num_steps=2, checkpoint=checkpoint)
    with pytest.raises(ArgumentError, match=f"of another run: its {words}"):
        tune(num_steps=6, checkpoint=checkpoint, **options)


def test_a_match_that_breaks_down_leaves_the_last_good_file(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.npz", every=1)
    tune(num_steps=2, checkpoint=checkpoint)
    before, broken = (tmp_path / "run.npz").read_bytes(), Checkpoint(tmp_path / "broken.npz", every=1)
    schedule = optax.scale_by_schedule(lambda step: jnp.where(step < 4, 1.0, jnp.nan))
    with pytest.raises(NonFiniteError, match="at step 4, the optimiser made") as caught:
        tune(num_steps=8, optim=optax.chain(optax.adam(0.05), schedule), checkpoint=broken)
    assert len(caught.value.result.losses) == 4
    losses = np.load(broken.path)["losses"]
    np.testing.assert_array_equal(losses, caught.value.result.losses)
    resumed = tune(
        num_steps=5,
        optim=optax.chain(optax.adam(0.05), optax.scale_by_schedule(lambda step: 1.0)),
        checkpoint=broken,
    )
    assert len(resumed.losses) == 5 and np.isfinite(resumed.losses).all()
    assert (tmp_path / "run.npz").read_bytes() == before
    with pytest.raises(ArgumentTypeError, match="match: checkpoint must be"):
        tune(num_steps=1, checkpoint="run.npz")
