"""Arguments of an episode that are no arrays: the hierarchy is that of the model with them closed over."""

import dataclasses
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext.errors import ArgumentError
from ppl_ext.meta import (
    EpisodeStream,
    ExactLinearGaussian,
    LaplaceGGN,
    adapted_to_arviz,
    evaluate,
    kinds,
    lift,
)

KEY = jax.random.key(0)
DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py


class Kind(Enum):
    NARROW = 0.5
    WIDE = 2.0


@dataclasses.dataclass
class Config:
    """It has no hash, as dataclasses are."""

    kind: str
    scale: float = 0.5


SETTINGS = {
    "string": ("narrow", "wide"),
    "dataclass": (Config("narrow"), Config("wide")),
    "enum": (Kind.NARROW, Kind.WIDE),
    "dictionary": ({"kind": "narrow", "more": None}, {"kind": "wide", "more": None}),
    "function": (jnp.sinh, jnp.cosh),
    "none": (None, "wide"),
}


def scale_of(setting):
    match setting:
        case None | "narrow" | Config(kind="narrow") | Kind.NARROW | {"kind": "narrow", "more": None}:
            return 0.5
        case _ if setting is jnp.sinh:
            return 0.5
    return 2.0


def model(setting, x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(slope * x, scale_of(setting)), obs=y)


def data(num=4, ragged=False):
    rng = np.random.default_rng(0)
    rows = [3 + (i % 2 if ragged else 0) for i in range(num)]
    return [
        (rng.normal(size=n).astype(np.float32), rng.normal(size=n).astype(np.float32) + i)
        for i, n in enumerate(rows)
    ]


def trained(program, episodes, solver=ExactLinearGaussian):
    return lift(program, local=["slope"]).fit(
        KEY, episodes, local_solver=solver(), num_steps=3, progress_bar=False
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("ragged", [False, True], ids=["alike", "ragged"])
def test_as_closed_over(name, ragged):
    setting, other = SETTINGS[name]
    episodes = data(ragged=ragged)
    plain = trained(lambda x, y: model(setting, x, y), episodes)
    found = trained(model, [(setting, *e) for e in episodes])
    np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-5)
    new = data(1)[0]
    np.testing.assert_allclose(found.adapt(KEY, setting, *new).mean, plain.adapt(KEY, *new).mean, rtol=1e-5)
    with pytest.raises(
        ArgumentError, match="adapt: argument 0 has another structure than in the episodes trained on"
    ):
        found.adapt(KEY, other, *new)
    with pytest.raises(
        ArgumentError, match=r"episodes differ in structure.*no array must be the same in all"
    ):
        trained(model, [(setting, *episodes[0]), (other, *episodes[1])])


def test_equal_settings_are_one_setting_though_new_objects():
    found = trained(model, [(Config("narrow"), *e) for e in data()])
    np.testing.assert_allclose(
        found.adapt(KEY, Config("narrow"), *data(1)[0]).mean,
        found.adapt(KEY, Config("narrow"), *data(1)[0]).mean,
    )


@pytest.mark.slow
def test_every_other_verb():
    """A Laplace fit, posteriors, reports, kinds, a plain model of the hierarchy, and scores of support and
    query.
    """
    episodes = [("narrow", *e) for e in data(6)]
    lifted, found = lift(model, local=["slope"]), trained(model, episodes, LaplaceGGN)
    assert found.posteriors(EpisodeStream(episodes)).mean.shape == (6, 1)
    assert found.to_arviz(episodes, num_samples=3).posterior.sizes["episode"] == 6
    assert adapted_to_arviz({"new": found.adapt(KEY, *episodes[0])}).posterior.sizes["episode"] == 1
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as record:
        lifted.as_model(EpisodeStream(episodes))()
    assert record["slope"]["value"].shape == (6,)
    plain = trained(lambda x, y: model("narrow", x, y), data(6), LaplaceGGN)
    bare = data(6)

    def parts(of):
        return [(*e[:-2], e[-2][:2], e[-1][:2]) for e in of], [(*e[:-2], e[-2][2:], e[-1][2:]) for e in of]

    scores = [evaluate(f, KEY, *parts(of)) for f, of in ((found, episodes), (plain, bare))]
    np.testing.assert_allclose(scores[0].nll, scores[1].nll, rtol=1e-4)
    told_apart = [kinds(f, KEY, of, 2, num_rounds=2) for f, of in ((found, episodes), (plain, bare))]
    np.testing.assert_allclose(*[k.memberships for k in told_apart], rtol=1e-3, atol=1e-5)
