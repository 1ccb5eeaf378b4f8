"""What tempered sequential Monte Carlo returns."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppl_ext.diagnostics.draws import rescored
from ppl_ext.diagnostics.report.run_record import RunRecord, name_of, seed_numbers
from ppl_ext.diagnostics.report.summary import table
from ppl_ext.diagnostics.verdicts.particles import evidence_spread, reasons_of_particles
from ppl_ext.infer.short_chains import reasons_of_particles_moves
from ppl_ext.infer.smc.comparison import Side, alone, compared
from ppl_ext.result import to_arviz
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.results import Summarised, number
from ppl_ext.runtime.verdict import Level, Reason, Verdict, judged

STUCK, SLOW = 0.1, 0.4
"""A share of the particles that moves at the last temperature renew, below which they do not, and below which
they hardly do.
"""

EVEN = 0.99
"""An effective sample size above this share of the particles has drawn hardly any of them twice."""

FEW = 100
"""Particles of which a mean has an error of a tenth of the posterior's standard deviation."""


@dataclass(frozen=True, eq=False, repr=False)
class SMCResult(Summarised):
    """Particles of the posterior, and the evidence: what :meth:`ppl_ext.infer.SMC.run` returns.

    :param values: by latent site, (particle, ...), constrained; finite sites are summed out and have none.
    :param log_weights: (particle,), of weights that sum to one: all the same, since the last move comes after
        the last resampling.
    :param log_evidence: the estimated log p(y).
    :param temperatures: (stage,) at the end of each, the last one 1; for data in order, the share of them
        that is in.
    :param ess: (stage,) effective sample size of the weights before resampling, in particles.
    :param acceptance: (stage,) mean acceptance of the moves.
    :param log_increments: (stage,) what each adds to the log evidence.
    :param num_nan: how many densities were NaN, which count as zero.
    :param beside: a run from another start, which found less of the evidence or as much
        (:meth:`ppl_ext.result.Fit.refined`).

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.infer import SMC
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> result = SMC(model, num_particles=500, progress_bar=False).run(jax.random.key(0), 2.0)
    >>> result.values["mu"].shape, bool(abs(result.log_evidence + 2.27) < 0.2), result.num_stages
    ((500,), True, 2)
    """

    values: dict[str, np.ndarray]
    log_weights: np.ndarray
    log_evidence: np.ndarray
    temperatures: np.ndarray
    ess: np.ndarray
    acceptance: np.ndarray
    log_increments: np.ndarray
    num_nan: int
    model: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    rng_key: jax.Array | None = None
    how: dict[str, Any] = field(default_factory=dict)
    outside: Outside | None = None
    beside: "SMCResult | None" = None

    @property
    def num_particles(self) -> int:
        return len(self.log_weights)

    @property
    def num_stages(self) -> int:
        return len(self.temperatures)

    def __repr__(self) -> str:
        return (
            f"SMCResult(log_evidence={number(self.log_evidence)}, num_particles={self.num_particles}, "
            f"num_stages={self.num_stages})"
        )

    def summary(self) -> str:
        about = [
            f"log evidence {number(self.log_evidence)}, {self.num_particles} particles, {self.num_stages} "
            f"stages; {self.how.get('evidence', 'consistent')}.",
            f"Smallest effective sample size {self.ess.min():.0f}, mean acceptance of the moves "
            f"{self.acceptance.min():.0%} to {self.acceptance.max():.0%}.",
            "Another run with another key shows how far the evidence varies.",
        ]
        if "started_from" in self.how:
            about.insert(0, f"Started from {self.how['started_from']}.")
        if self.beside is not None:
            about[-1] = (
                f"A run from {self.beside.how['started_from']} beside it: log evidence "
                f"{number(self.beside.log_evidence)}."
            )
        return f"{table({n: x[None] for n, x in self.values.items()})}\n\n" + "\n".join(about)

    def verdict(self) -> Verdict:
        """Whether to believe the run, with reasons: see :func:`ppl_ext.diagnostics.verdict`. Short chains
        from the particles are among them, which take seconds, most of these for compiling.
        """
        if not np.isfinite(self.log_evidence):
            return judged([Reason("bad", "no particle is possible given the data")])
        if self.temperatures[-1] < 1.0:
            return judged(
                [Reason("bad", f"the run ended at temperature {self.temperatures[-1]:.3g}, not at 1")]
            )
        found = reasons_of_particles(np.asarray(self.ess), self.num_particles, "stage")
        if np.nanmin(self.ess) < EVEN * self.num_particles:
            found.append(self._reason_of_moves())
        if self.num_particles < FEW:
            found.append(Reason("doubtful", f"{self.num_particles} particles are few draws"))
        if self.beside is not None:
            found.append(compared(self.side(), self.beside.side()))
        elif "started_from" in self.how:
            found.append(alone(self.how["started_from"], self.how.get("not_compared")))
        if self.num_nan:
            found.append(Reason("doubtful", f"{self.num_nan} densities were NaN and count as zero"))
        # A random walk is accepted, and the weights are even, where particles hardly move in many dimensions.
        return judged(found + reasons_of_particles_moves(self))

    def side(self) -> Side:
        """What is compared with a run from another start."""
        spread = evidence_spread(np.asarray(self.ess), self.num_particles)
        return Side(self.how["started_from"], float(self.log_evidence), spread, self.values)

    def _reason_of_moves(self) -> Reason:
        """Whether moves part what resampling has made the same: how many particles they renew at all."""
        last, num_steps = float(self.acceptance[-1]), int(self.how.get("num_steps", 1))
        renewed = 1.0 - (1.0 - last) ** num_steps
        level: Level = "good" if renewed >= SLOW else "doubtful" if renewed >= STUCK else "bad"
        remedy = "" if level == "good" else ": take more steps, NUTS, or a smaller scale"
        return Reason(
            level,
            f"moves renew {renewed:.0%} of the particles at the last temperature (acceptance {last:.0%}, "
            f"{num_steps} steps){remedy}",
        )

    def run_record(self) -> RunRecord:
        """What a report needs: one chain, whose draws are the particles."""
        draws = {n: np.asarray(x)[None] for n, x in self.values.items()}
        if self.outside is not None:
            self.outside.check("to_arviz", self.model)
        values, log_p, refusal = rescored(self.model, draws, self.args, self.kwargs)
        stats = {"log_weight": np.asarray(self.log_weights, np.float64)[None]}
        stats |= {} if log_p is None else {"lp": log_p}
        traces = {
            "temperature": self.temperatures,
            "ess": self.ess,
            "acceptance_rate": self.acceptance,
            "log_evidence_increment": self.log_increments,
        }
        attrs = {
            "algorithm": "SMC",
            "model": name_of(self.model),
            "log_evidence": float(self.log_evidence),
            "num_particles": self.num_particles,
            "num_stages": self.num_stages,
            "num_nan": self.num_nan or None,
            "seed": seed_numbers(self.rng_key),
            "lp_omitted": refusal,
            **self.how,
        }
        if self.beside is not None:
            attrs["started_beside_from"] = self.beside.how["started_from"]
            attrs["log_evidence_beside"] = float(self.beside.log_evidence)
        traces = {n: np.asarray(x)[None] for n, x in traces.items()}
        return RunRecord(self.model, self.args, self.kwargs, {}, values, stats, traces, attrs)

    def to_arviz(self, rng_key: jax.Array | None = None, **options: Any) -> Any:
        """The ArviZ report, one chain of equally weighted draws; ``options`` are those of
        :func:`ppl_ext.to_arviz`.

        ``sample_stats`` has ``lp`` and ``log_weight``; ``vi_trace``, by stage, ``temperature``, ``ess``,
        ``acceptance_rate`` and ``log_evidence_increment``. Draws come from one run of interacting particles:
        R-hat and ESS that ArviZ reads off their order mean nothing.
        """
        return to_arviz(self, rng_key=rng_key, **options)

    def save(self, path: str | os.PathLike, **options: Any) -> Path:
        """Write the ArviZ report to ``path`` (netCDF), whole or not at all; ``options`` as in
        :meth:`to_arviz`. ``arviz.from_netcdf`` reads it.
        """
        from ppl_ext.diagnostics.report.arviz_export import report_path, write_report

        path = report_path(path)
        return write_report(self.to_arviz(**options), path)
