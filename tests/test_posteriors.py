"""The table of posteriors that are known: its references are whole, and its counts are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density

from benchmarks import posteriors
from benchmarks.reference import counting, truth
from benchmarks.reference.page import posteriors as section
from benchmarks.reference.registry import PROBLEMS

REFERENCES = truth.references()


def test_every_model_has_its_reference_and_they_are_small():
    assert len(PROBLEMS) >= 25 and list(REFERENCES) == list(PROBLEMS)
    assert truth.FILE.stat().st_size < 150_000
    assert max(r["r_hat"] for r in REFERENCES.values()) <= 1.005
    assert min(r["ess"] for r in REFERENCES.values()) >= 1000
    assert max(r["diverging"] for r in REFERENCES.values()) <= 10  # of 10,000 transitions
    assert set(posteriors.QUICK) <= set(PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_model_has_a_density_at_its_references_means(name):
    if name in ("sir", "lotka_volterra"):
        pytest.importorskip("diffrax")
    problem, sites = PROBLEMS[name], REFERENCES[name]["sites"]
    data = problem.data()

    def joint(values):
        with trace() as record:
            seed(problem.model, jax.random.key(0))(*data)
        latent = {n: s["value"] for n, s in record.items() if s["type"] == "sample" and not s["is_observed"]}
        assert latent.keys() <= sites.keys()
        imposed = {}
        for n, x in latent.items():
            kept = np.asarray(sites[n]["mean"], np.float32)
            assert len(kept) == min(x.size, truth.AT_MOST)
            imposed[n] = jnp.ravel(x).at[: len(kept)].set(kept).reshape(x.shape)
        return log_density(problem.model, data, {}, imposed)[0]

    assert jax.eval_shape(joint, 0.0).shape == ()
    assert all(s > 0.0 for x in sites.values() for s in x["sd"])
    if name in ("bioassay", "eight_schools_centered", "arK"):
        assert np.isfinite(joint(0.0))


REFERENCE = {"sites": {"x": {"mean": [1.0, 0.0], "sd": [2.0, 1.0]}}}


def draws(mean, sd):
    x = np.random.default_rng(0).normal(size=(4, 5000, 2))
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    return {"x": x * np.array(sd) + np.array(mean), "no reference": x}


@pytest.mark.parametrize(
    ("mean", "sd", "off", "bad"),
    [
        ([1.0, 0.0], [2.0, 1.0], (0.0, 0.0), False),
        ([1.8, 0.0], [2.0, 1.0], (0.4, 0.0), True),
        ([1.5, -0.1], [2.0, 1.0], (0.25, 0.0), False),
        ([1.0, 0.0], [2.0, 0.6], (0.0, 0.4), True),
        ([1.0, 0.0], [2.8, 1.0], (0.0, 0.4), True),
        ([1.0, 0.0], [1.6, 1.0], (0.0, 0.2), False),
    ],
)
def test_how_far_draws_are_off(mean, sd, off, bad):
    found = truth.error(draws(mean, sd), REFERENCE)
    np.testing.assert_allclose(found[:2], off, atol=1e-6)
    assert found.bad is bad


def test_the_border_is_narrow_and_widens_with_noise_alone():
    off = truth.Error(0.0, 0.34, 0.01)
    assert off.bad and off.border and not off._replace(sd=0.36).border
    assert off._replace(sd=0.36, noise=0.04).border
    heavy = {"x": np.random.default_rng(1).standard_t(5.0, (4, 5000, 2)) * [2.0, 1.4] + [1.0, 0.0]}
    light = truth.error(draws([1.0, 0.0], [2.0, 1.4]), REFERENCE)
    np.testing.assert_allclose(light.noise, 1.4 / (2 * 20_000) ** 0.5, rtol=0.05)
    assert truth.error(heavy, REFERENCE).noise > 1.3 * light.noise
    with pytest.raises(ValueError, match="no site"):
        truth.error({"y": np.zeros((1, 10))}, REFERENCE)


def row(mean, said, model="m"):
    return {"model": model, "method": "NUTS", "mean": mean, "sd": 0.0, "noise": 0.0, "said": said}


@pytest.mark.parametrize(
    ("mean", "said", "how"),
    [
        (0.0, "good", "right"),
        (0.0, "unknown", "right"),
        (0.0, "doubtful", "false alarm"),
        (0.0, "bad", "false alarm"),
        (0.5, "good", "bad called good"),
        (0.5, "unknown", "bad left open"),
        (0.5, "doubtful", "right"),
        (0.5, "bad", "right"),
        (0.32, "good", "right"),
        (0.28, "bad", "right"),
    ],
)
def test_which_verdicts_are_right(mean, said, how):
    assert counting.judged(row(mean, said)) == how


def test_counts():
    rows = [row(0.0, "good", "a")] * 18 + [row(0.0, "bad", "b"), row(0.5, "good", "b")]
    found = counting.counted([*rows, {"model": "a", "method": "SMC", "error": "no"}])
    assert (found["rows"], found["right"], found["bad called good"], found["false alarms"]) == (20, 18, 1, 1)
    assert found["held out"] == {k: found[k] for k in found["held out"]}  # all of them
    seen = counting.counted([row(0.32, "good", "kidscore"), row(0.32, "bad", "kidscore"), *rows])
    assert seen["looked at while rules were made"]["rows"] == 2
    assert (seen["right"], seen["border"], seen["border wrong"]) == (20, 2, 1)
    assert list(counting.aims(found).values()) == [False, False, True]
    words = counting.in_words(found)
    assert "all: 2 models, 20 rows, 90.0% right" in words and words.startswith("Truth: bad if")
    assert "good" in counting.in_words(row(0.0, "good") | {"seconds": 1.0, "seconds_of_verdict": 0.0})
    page = section({"rows": rows, "counts": found, "aims": {}})
    assert "| NUTS | 20 | 1 | 18 | 1 | 0 | 1 | 0 |" in page
