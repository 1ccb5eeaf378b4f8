"""What SMC² returns."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.diagnostics.regimes import weight_regime
from ppl_ext.diagnostics.report.run_record import RunRecord, name_of, seed_numbers
from ppl_ext.diagnostics.report.summary import table
from ppl_ext.diagnostics.verdicts.particles import reasons_of_nested
from ppl_ext.errors import ArgumentError
from ppl_ext.result import to_arviz
from ppl_ext.runtime.arguments import check_count
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised, number
from ppl_ext.runtime.verdict import Reason, Verdict, judged
from ppl_ext.state_space.resampling import systematic

FEW = 100
"""Parameters of which a mean has an error of a tenth of the posterior's standard deviation."""


@dataclass(frozen=True, eq=False, repr=False)
class SMC2Result(Summarised):
    """Weighted parameters given the whole series, the evidence, and what was known after each step: what
    :meth:`ppl_ext.infer.SMC2.run` returns. Steps are those of the run; a scan with ``reverse=True`` begins at
    the last of its inputs.

    :param values: by parameter, (particle, ...), constrained.
    :param log_weights: (particle,), of weights that sum to one. :meth:`sample` draws by them.
    :param log_evidences: (step,) the estimated log p(y_1, ..., y_t), the last one of the series.
    :param mean: by parameter, (step, ...), posterior means given the data so far; ``sd`` their standard
        deviations.
    :param state_mean: by latent site of the step, (step, ...), filtered means with parameters integrated out;
        ``state_sd`` their standard deviations. Those of finite sites are of their numbers.
    :param ess: (step,) effective sample size of the weights of the parameters, before they move.
    :param acceptance: (step,) of the moves; NaN where there were none.
    :param num_states: (step,) of each filter.
    :param num_died: (step,) parameters without weight: no state of their filter is possible.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext.algorithms import ParticleFilter
    >>> from ppl_ext.infer import SMC2
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(0.5 * x_prev + mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, 0.0, y)
    >>> smc2 = SMC2(model, 50, ParticleFilter(20), progress_bar=False, min_acceptance=0.0)
    >>> result = smc2.run(jax.random.key(0), jnp.array([1.3, 2.1, 1.5]))
    >>> result.sample(num_samples=10)["mean"].shape, result.state_mean["x"].shape, result.num_steps
    ((10,), (3,), 3)
    """

    values: dict[str, np.ndarray]
    log_weights: np.ndarray
    log_evidences: np.ndarray
    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    state_mean: dict[str, np.ndarray]
    state_sd: dict[str, np.ndarray]
    ess: np.ndarray
    acceptance: np.ndarray
    num_states: np.ndarray
    num_died: np.ndarray
    model: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    rng_key: jax.Array | None = None
    how: dict[str, Any] = field(default_factory=dict)
    outside: Outside | None = None

    @property
    def log_evidence(self) -> np.ndarray:
        """The estimated log p(y)."""
        return self.log_evidences[-1] if len(self.log_evidences) else np.asarray(-np.inf)

    @property
    def log_increments(self) -> np.ndarray:
        """(step,) the estimated log p(y_t | y_<t); the first with what is observed before the scan."""
        return np.diff(self.log_evidences, prepend=0.0)

    @property
    def num_particles(self) -> int:
        return len(self.log_weights)

    @property
    def num_steps(self) -> int:
        return len(self.log_evidences)

    def __repr__(self) -> str:
        known = f"log_evidence={number(self.log_evidence)}, num_particles={self.num_particles}"
        return f"SMC2Result({known}, num_steps={self.num_steps}, num_states={self._last_states})"

    @property
    def _last_states(self) -> int:
        return int(self.num_states[-1]) if self.num_steps else 0

    def sample(
        self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES
    ) -> dict[str, np.ndarray]:
        """Equally weighted draws of the parameters, (num_samples, ...), by systematic resampling.

        :raises ArgumentError: if no parameter is possible given the data.
        """
        check_count("SMC2Result.sample: num_samples", num_samples)
        if not np.isfinite(self.log_evidence):
            raise ArgumentError(
                "SMC2Result.sample: no parameter is possible given the data, so none is drawn."
            )
        if rng_key is None:
            rng_key = jax.random.fold_in(jax.random.key(0) if self.rng_key is None else self.rng_key, 0x5A)
        ancestors = np.asarray(systematic(rng_key, jnp.asarray(self.log_weights), int(num_samples)))
        return {n: x[ancestors] for n, x in self.values.items()}

    def summary(self) -> str:
        if not np.isfinite(self.log_evidence):
            return f"No parameter is possible given the data, from step {max(0, self.num_steps - 1)} on."
        moved = self.acceptance[~np.isnan(self.acceptance)]
        about = [
            f"log evidence {number(self.log_evidence)} of {self.num_steps} steps, {self.num_particles} "
            f"parameters with filters of {self._last_states} states; "
            f"{self.how.get('evidence', 'consistent')}.",
            f"Smallest effective sample size {self.ess.min():.0f}, moves at {len(moved)} steps"
            + (f", accepted in {moved.min():.0%} to {moved.max():.0%}." if len(moved) else "."),
            "Another run with another key shows how far the evidence varies.",
        ]
        return (
            f"{table({n: x[None] for n, x in self.sample(num_samples=self.num_particles).items()})}\n\n"
            + "\n".join(about)
        )

    def verdict(self) -> Verdict:
        """Whether to believe the run, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        if not np.isfinite(self.log_evidence):
            return judged([Reason("bad", "no parameter is possible given the data")])
        ran_out = self.how.get("ran_out", False)
        found = reasons_of_nested(self.ess, self.acceptance, self.num_particles, ran_out)
        if self.num_particles < FEW:
            found.append(Reason("doubtful", f"{self.num_particles} parameters are few draws"))
        return judged(found)

    def run_record(self) -> RunRecord:
        """What a report needs: one chain of equally weighted draws, whose states are integrated out."""
        if self.outside is not None:
            self.outside.check("to_arviz", self.model)
        stats: dict[str, np.ndarray] = {}
        traces = {
            "log_evidence": self.log_evidences,
            "ess": self.ess,
            "acceptance_rate": self.acceptance,
            "num_states": self.num_states,
            "num_died": self.num_died,
        }
        for what, series in (("mean", self.mean), ("sd", self.sd)):
            traces |= {f"{n}_{what}": x for n, x in series.items()}
        attrs = {
            "algorithm": "SMC2",
            "model": name_of(self.model),
            "log_evidence": float(self.log_evidence),
            "num_particles": self.num_particles,
            "num_steps": self.num_steps,
            "weight_regime": weight_regime(self.log_weights).regime,
            "seed": seed_numbers(self.rng_key),
            "lp_omitted": "the states are integrated out",
            **self.how,
        }
        values = {n: x[None] for n, x in self.sample(num_samples=self.num_particles).items()}
        traces = {n: np.asarray(x)[None] for n, x in traces.items()}
        return RunRecord(None, self.args, self.kwargs, {}, values, stats, traces, attrs)

    def to_arviz(self, rng_key: jax.Array | None = None, **options: Any) -> Any:
        """The ArviZ report, one chain of equally weighted draws of the parameters; ``options`` are those of
        :func:`ppl_ext.to_arviz`.

        ``vi_trace`` has, by step, ``log_evidence``, ``ess``, ``acceptance_rate``, ``num_states``,
        ``num_died`` and each parameter's mean and standard deviation so far. States are integrated out, so
        that there is no pointwise likelihood. R-hat and ESS that ArviZ reads off the order of the draws mean
        nothing.
        """
        return to_arviz(self, rng_key=rng_key, **options)

    def save(self, path: str | os.PathLike, **options: Any) -> Path:
        """Write the ArviZ report to ``path`` (netCDF), whole or not at all; ``options`` as in
        :meth:`to_arviz`. ``arviz.from_netcdf`` reads it.
        """
        from ppl_ext.diagnostics.report.arviz_export import report_path, write_report

        path = report_path(path)
        return write_report(self.to_arviz(**options), path)
