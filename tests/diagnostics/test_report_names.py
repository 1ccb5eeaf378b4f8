"""Names and labels of a report: each fits something, and a file keeps it."""

import datetime

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.infer import MCMC, NUTS

from ppl_ext import to_arviz
from ppl_ext.diagnostics.report.arviz_export import build_report
from ppl_ext.errors import ArgumentError


def model(y):
    numpyro.sample("effect", dist.Normal(np.zeros(2), 1.0).to_event(1))
    with numpyro.plate("rows", 3):
        numpyro.sample("group/y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)


@pytest.fixture(scope="module")
def mcmc():
    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(0), np.arange(3.0))
    return mcmc


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"dims": {"efect": ["side"]}},
            r"dims names 'efect', which is no variable of the report\. There are: diverging, effect, "
            r"group\.y, ",
        ),
        ({"dims": {"effect": ["side", "more"]}}, r"dims names 2 axes of 'effect', which has 1: side, more\."),
        (
            {"dims": {"effect": ["side"]}, "coords": {"sides": ["a", "b"]}},
            r"coords names 'sides', which is no axis .* There are: rows, side\.",
        ),
        ({"coords": {"row": [1, 2, 3]}}, r"coords names 'row', which is no axis"),
        ({"coords": {"rows": ["a", None, "b"]}}, r"The labels of the axis 'rows' are None, among others"),
        ({"coords": {"rows": ["a", 1, "b"]}}, r"The labels of the axis 'rows' are numbers and strings"),
        (
            {"coords": {"rows": pd.period_range("2020", periods=3, freq="Y")}},
            r"Period.*strings: list\(map\(str, labels\)\)",
        ),
    ],
)
def test_what_fits_nothing_is_refused_by_name(mcmc, options, words):
    with pytest.raises(ArgumentError, match=words):
        to_arviz(mcmc, **options)


LABELS = {
    "strings": ["a", "b", "c"],
    "numbers": [1, 2.5, np.float32(3)],
    "NumPy's": np.array([3, 1, 2]),
    "dates": [datetime.date(2020, 1, d) for d in (1, 2, 3)],
    "pandas dates": pd.date_range("2020", periods=3),
    "a pandas index": pd.Index(["a", "b", "c"]),
    "categories": pd.Categorical(["a", "b", "a"]),
}


@pytest.mark.parametrize("labels", LABELS)
def test_what_a_file_keeps_is_taken(labels):
    report = build_report(
        {"posterior": {"x": np.zeros((1, 2, 3))}}, dims={"x": ["rows"]}, coords={"rows": LABELS[labels]}
    )
    assert len(report.posterior["rows"]) == 3


def test_names_that_fit_label_the_report(mcmc):
    report = to_arviz(
        mcmc,
        dims={"effect": ["side"], "group/y": ["case"]},
        coords={"side": ["left", "right"], "case": [10, 20, 30]},
    )
    assert report.posterior["effect"].coords["side"].to_numpy().tolist() == ["left", "right"]
    assert report.log_likelihood["group.y"].coords["case"].to_numpy().tolist() == [10, 20, 30]
    assert report.observed_data["group.y"].dims == ("case",)
