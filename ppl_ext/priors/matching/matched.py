"""What matching returns: the tuned model, its hyperparameters, and how well its functions match."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import random

from ppl_ext.errors import ArgumentError
from ppl_ext.priors.excursions import excursion_times
from ppl_ext.priors.functions.outputs import run_once
from ppl_ext.priors.lifting import Layout, Raw, Tuned
from ppl_ext.priors.matching.inputs import check_inputs
from ppl_ext.priors.matching.report import Report
from ppl_ext.priors.targets.gaussian_process import GaussianTarget
from ppl_ext.runtime.arguments import check_count, check_key, check_program
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised

if TYPE_CHECKING:
    from ppl_ext.priors.matching.problem import Matching
from ppl_ext.runtime.verdict import Verdict


@dataclass(eq=False, repr=False)
class Matched(Summarised):
    """A lifted prior after :func:`~ppl_ext.priors.match`.

    ``model``: an ordinary NumPyro model, with the arguments and sites of the one that was lifted; the tuned
    values are constants of it, which SVI does not train again. ``hyperparameters``: by pattern, layer (or
    site, or the pattern itself) and name, as arrays. ``losses``: the optimised distance at each step.
    ``report``: :class:`~ppl_ext.priors.matching.report.Report`, with a distance that was not optimised.
    """

    model: Tuned
    hyperparameters: dict[str, dict[str, dict[str, np.ndarray]]]
    losses: np.ndarray
    matching: "Matching" = field(repr=False)
    layout: Layout
    raw: Raw
    initial: Raw
    rng_key: jax.Array
    compile_seconds: float
    run_seconds: float
    report: Report | None = None

    def __repr__(self) -> str:
        return (
            f"Matched({self.model!r}, {type(self.matching.distance).__name__}, num_steps={len(self.losses)})"
        )

    @property
    def untuned(self) -> Tuned:
        """The model with the families' starting values."""
        return self.matching.lifted.at(self.layout, jax.tree.map(np.asarray, self.initial))

    def on(self, model: Callable) -> Tuned:
        """Another NumPyro model with the tuned priors on its sites of the same names: a transition tuned
        alone, then in a ``scan``.

        :raises ArgumentTypeError: if ``model`` is no NumPyro model. A tuned site of another shape raises when
            the model runs.
        """
        check_program("on: model", model)
        return Tuned(model, self.layout, self.raw)

    def functions(
        self, rng_key: jax.Array, inputs: Any, num_draws: int = NUM_SAMPLES
    ) -> dict[str, np.ndarray]:
        """Draws at these inputs, (num_draws, M) or (num_draws, M, P), "before", "after", and of the "target".

        :raises ModelError: if data that model or target read from outside have changed since they were
            matched.
        """
        check_key("functions: rng_key", rng_key)
        check_count("functions: num_draws", num_draws)
        self.matching.unchanged("functions")
        x = check_inputs("functions: inputs", inputs)
        of_before, of_after, of_target = random.split(rng_key, 3)
        target = self.matching.target.sample(of_target, x, num_draws)
        before, after = (
            self._drawn(self.initial, of_before, x, num_draws),
            self._drawn(self.raw, of_after, x, num_draws),
        )
        return {
            "before": np.asarray(before),
            "after": np.asarray(after),
            "target": np.asarray(target).reshape(after.shape),
        }

    @cached_property
    def _drawn(self) -> Callable:
        return jax.jit(self.matching.network_functions, static_argnums=3)

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.priors.matching.report import judge

        return judge(self)

    def summary(self) -> str:
        """The tuned hyperparameters, and how well the functions match."""
        return "\n".join(self.summary_lines())

    def summary_lines(self) -> list[str]:
        kind = type(self.matching.distance).__name__
        lines = [
            f"{len(self.losses)} steps of {kind}, {self.run_seconds:.1f} s and {self.compile_seconds:.1f} s "
            "to compile",
            "",
        ]
        start = self.layout.values(self.initial)
        for pattern, units in self.hyperparameters.items():
            for unit, values in units.items():
                where = pattern if unit == pattern else f"{pattern}  {unit}"
                for name, value in values.items():
                    was = np.asarray(start[pattern][unit][name])
                    if value.ndim == 0:
                        lines.append(f"  {where:<40} {name:<6} {float(was):9.4g} -> {float(value):.4g}")
                    else:
                        lines.append(
                            f"  {where:<40} {name:<6} {value.size} numbers, root mean square "
                            f"{_rms(was):.4g} -> {_rms(value):.4g}"
                        )
        if self.report is None:
            return [*lines, "", "The run broke down: no report."]
        return [*lines, "", *self.report.words(), *self._excursions]

    @cached_property
    def _excursions(self) -> list[str]:
        """How long the target stays on one side of its mean, of a target that this is known of."""
        of = self.matching.target
        if self.report is None or self.report.crossings is None or not isinstance(of, GaussianTarget):
            return []  # several inputs, or no Gaussian process
        try:
            found = excursion_times(of)
        except ArgumentError:  # not stationary, without derivative, or oscillating
            return []
        falls = f"about as exp(-{found.exponent:.4g} t)" if found.exponent else "slower than any exp(-t / a)"
        return [
            f"The target stays {found.mean:.4g} on one side of its mean on average, and longer than t with a "
            f"probability that falls {falls}."
        ]

    def to_arviz(
        self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES, inputs: Any = None
    ) -> Any:
        """The ArviZ report: ``prior`` has draws of the tuned model's sites; ``prior_predictive`` the
        functions "untuned", "tuned" and of the "target" at ``inputs`` (by default those of the report)."""
        from ppl_ext.diagnostics.report.arviz_export import build_report  # ArviZ takes seconds to import

        check_count("to_arviz: num_samples", num_samples)
        key = self.rng_key if rng_key is None else rng_key
        check_key("to_arviz: rng_key", key)
        x = self.matching.sampler(key) if inputs is None else check_inputs("to_arviz: inputs", inputs)
        of_sites, of_functions = random.split(random.fold_in(key, 1))

        def sites(key):
            found, _ = run_once(self.model, key, x, self.matching.args, self.matching.kwargs)
            return {n: s["value"] for n, s in found.items() if s["type"] == "sample" and not s["is_observed"]}

        draws = jax.jit(jax.vmap(sites))(random.split(of_sites, num_samples))
        functions = self.functions(of_functions, x, num_samples)
        names = {"before": "untuned", "after": "tuned", "target": "target"}
        axes = ["input", "output"][: functions["after"].ndim - 1]
        return build_report(
            {
                "prior": {n: np.asarray(v)[None] for n, v in draws.items()},
                "prior_predictive": {names[which]: v[None] for which, v in functions.items()},
                "constant_data": {"inputs": np.asarray(x)},
            },
            dims={**{name: axes for name in names.values()}, "inputs": ["input", "feature"][: np.ndim(x)]},
            attrs={"distance": repr(self.matching.distance), "num_steps": len(self.losses)},
        )

    def plot_function_draws(
        self,
        inputs: Any,
        axes: Any = None,
        *,
        rng_key: jax.Array | None = None,
        num_draws: int = 500,
        **options: Any,
    ) -> Any:
        """Function draws before and after tuning and of the target, side by side:
        ``ppl_ext.diagnostics.plot_function_draws``.
        """
        from ppl_ext.diagnostics import plot_function_draws

        x = check_inputs("plot_function_draws: inputs", inputs)
        draws = self.functions(self.rng_key if rng_key is None else rng_key, x, num_draws)
        return plot_function_draws(np.asarray(x).reshape(len(x), -1)[:, 0], draws, axes, **options)


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))
