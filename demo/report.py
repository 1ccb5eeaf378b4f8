"""Runs, tables and chapters. Every run, whatever its algorithm, is read from its ArviZ report and in the same
way.
"""

import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
from numpyro.diagnostics import split_gelman_rubin
from scipy.special import logsumexp

from ppl_ext.diagnostics import PSIS, psis


class Run:
    """One algorithm's result: its ArviZ report, and the seconds it took."""

    def __init__(self, name: str, report: Any, compile_seconds: float, run_seconds: float):
        self.name = name
        self.report = report
        self.compile_seconds = compile_seconds
        self.run_seconds = run_seconds

    @property
    def seconds(self) -> float:
        return self.compile_seconds + self.run_seconds

    @cached_property
    def continuous(self) -> dict[str, np.ndarray]:
        """Posterior draws of the continuous sites, (chain, draw, ...)."""
        posterior = self.report["posterior"]
        return {name: x.values for name, x in posterior.items() if np.issubdtype(x.dtype, np.floating)}

    def draws(self, site: str | tuple[str, int]) -> np.ndarray:
        """All chains' draws of a site, (draw, ...); ``(site, index)`` picks an element."""
        name, index = site if isinstance(site, tuple) else (site, ...)
        values = self.report["posterior"][name].values
        return values.reshape(-1, *values.shape[2:])[:, index]

    @property
    def log_weights(self) -> np.ndarray | None:
        """Of all restarts' draws, as one importance sample; ``None`` for an algorithm without a guide."""
        stats = self.report["sample_stats"]
        return (
            np.asarray(stats["log_weight"].values, np.float64).reshape(-1) if "log_weight" in stats else None
        )

    @property
    def losses(self) -> np.ndarray | None:
        """(chain, step), for a fitted guide."""
        return self.report["vi_trace"]["loss"].values if "vi_trace" in self.report else None

    @cached_property
    def psis(self) -> PSIS | None:
        return None if self.log_weights is None else psis(self.log_weights)

    @property
    def bound(self) -> tuple[float, float] | None:
        """The objective where the fit ended, and its standard error."""
        if self.losses is None:
            return None
        # The step size has decayed to nothing by then, so these are independent estimates at the final
        # parameters.
        last = -self.losses[:, -self.losses.shape[1] // 10 :]
        return float(last.mean()), float(last.std(ddof=1) / np.sqrt(last.size))

    @property
    def log_evidence(self) -> tuple[float, float] | None:
        """Importance-sampling estimate of the log evidence, and its standard error by the delta method."""
        if self.log_weights is None:
            return None
        weights = np.exp(self.log_weights - self.log_weights.max())
        relative_error = weights.std(ddof=1) / weights.mean() / np.sqrt(weights.size)
        return float(logsumexp(self.log_weights) - np.log(weights.size)), float(relative_error)

    @property
    def worst_r_hat(self) -> float:
        return max(float(np.max(split_gelman_rubin(x))) for x in self.continuous.values())

    def distance_from(self, reference: "Run") -> tuple[float, float]:
        """Largest difference of posterior means in the reference's sds, and the narrowest sd relative to the
        reference's.
        """
        shifts, widths = [], []
        for site in self.continuous.keys() & reference.continuous.keys():
            expected, got = reference.draws(site), self.draws(site)
            sd = expected.std(axis=0)
            shifts.append(np.max(np.abs(got.mean(axis=0) - expected.mean(axis=0)) / sd))
            widths.append(np.min(got.std(axis=0) / sd))
        return float(max(shifts)), float(min(widths))


@dataclass
class Table:
    """Rows of text under a title, for the terminal and for the page."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        every = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
            )
            for row in every
        ]
        return (
            "\n".join([self.title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]]) + "\n"
        )


@dataclass
class Chapter:
    """What a chapter of the demo found: ``finding`` in a sentence, ``story`` in paragraphs, ``picture`` a
    Matplotlib figure.
    """

    name: str
    title: str
    finding: str
    story: list[str]
    tables: list[Table]
    picture: Any
    caption: str
    runs: list[Run] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    @property
    def summaries(self) -> dict[str, pd.DataFrame]:
        """ArviZ's own summary of each run."""
        return {run.name: az.summary(run.report, var_names=self.shown) for run in self.runs}


# a progress bar of the other process may stand on this line
CLEAR = "\r\x1b[2K" if sys.stdout.isatty() else ""


def say(text: str) -> None:
    print(f"{CLEAR}--- {text}", flush=True)


def compared(title: str, runs: list[Run], shown: dict[Any, str]) -> Table:
    """One row per run. ``shown`` maps a site, or (site, index), to its heading; the first run is the
    reference.
    """
    keys = ["max shift", "min sd", "IS ESS", "k-hat", "R-hat", "compile", "run"]
    header = ["algorithm", "bound ± se", "log evidence", *shown.values(), *keys]
    return Table(title, header, [_row(run, runs[0], list(shown)) for run in runs])


def _row(run: Run, reference: Run, shown: list) -> list[str]:
    row = [run.name, _estimate(run.bound), _estimate(run.log_evidence)]
    row += [f"{run.draws(site).mean():.3f} ± {run.draws(site).std():.3f}" for site in shown]
    row += ["-", "-"] if run is reference else [f"{number:.2f}" for number in run.distance_from(reference)]
    row += (
        ["-", "-"]
        if run.psis is None
        else [f"{run.psis.ess:.0f}/{run.log_weights.size}", f"{run.psis.pareto_k:.2f}"]
    )
    return row + [f"{run.worst_r_hat:.3f}", f"{run.compile_seconds:.1f} s", f"{run.run_seconds:.1f} s"]


def _estimate(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"
