"""The table. Every run, whatever its algorithm, is read from its ArviZ report and in the same way."""

from functools import cached_property
from typing import Any

import numpy as np
from numpyro.diagnostics import split_gelman_rubin
from scipy.special import logsumexp

from ppl_ext.diagnostics import PSIS, psis

LEGEND = """\
bound         the objective over the last tenth of the steps (nats)
log evidence  importance sampling from the fitted guide (nats)
max shift     largest difference from NUTS's posterior means over all continuous sites, in NUTS's posterior sds
min sd        narrowest posterior sd of any continuous site, NUTS's being 1
IS ESS        effective sample size of the guide's draws as an importance sample; k-hat: its tail, good under 0.7
R-hat         the largest: between chains for NUTS, between independent restarts for the others
"""


class Run:
    """One algorithm's result: its ArviZ report, and the seconds it took."""

    def __init__(self, name: str, report: Any, compile_seconds: float, run_seconds: float):
        self.name = name
        self.report = report
        self.compile_seconds = compile_seconds
        self.run_seconds = run_seconds

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
        return np.asarray(stats["log_weight"].values, np.float64).reshape(-1) if "log_weight" in stats else None

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
        # The step size has decayed to nothing by then, so these are independent estimates at the final parameters.
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
        """Largest difference of posterior means in the reference's sds, and the narrowest sd relative to the reference's."""
        shifts, widths = [], []
        for site in self.continuous.keys() & reference.continuous.keys():
            expected, got = reference.draws(site), self.draws(site)
            sd = expected.std(axis=0)
            shifts.append(np.max(np.abs(got.mean(axis=0) - expected.mean(axis=0)) / sd))
            widths.append(np.min(got.std(axis=0) / sd))
        return float(max(shifts)), float(min(widths))


def say(text: str) -> None:
    print(f"--- {text}", flush=True)


def print_table(title: str, runs: list[Run], shown: dict[Any, str]) -> None:
    """One row per run. ``shown`` maps a site, or (site, index), to its heading; the first run is the reference."""
    keys = ["max shift", "min sd", "IS ESS", "k-hat", "R-hat", "compile", "run"]
    header = ["algorithm", "bound ± se", "log evidence", *shown.values(), *keys]
    rows = [header] + [_row(run, runs[0], list(shown)) for run in runs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]) for row in rows]
    print("\n".join([title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]]), end="\n\n")


def _row(run: Run, reference: Run, shown: list) -> list[str]:
    row = [run.name, _estimate(run.bound), _estimate(run.log_evidence)]
    row += [f"{run.draws(site).mean():.3f} ± {run.draws(site).std():.3f}" for site in shown]
    row += ["-", "-"] if run is reference else [f"{number:.2f}" for number in run.distance_from(reference)]
    row += ["-", "-"] if run.psis is None else [f"{run.psis.ess:.0f}/{run.log_weights.size}", f"{run.psis.pareto_k:.2f}"]
    return row + [f"{run.worst_r_hat:.3f}", f"{run.compile_seconds:.1f} s", f"{run.run_seconds:.1f} s"]


def _estimate(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"
