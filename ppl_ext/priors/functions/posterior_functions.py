"""Any fit read in function space: what its draws predict at given inputs, how well, and whether its chains
agree there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.handlers import seed, trace

from ppl_ext.diagnostics.chunks import default_chunk, map_draws, over_draws
from ppl_ext.diagnostics.sites import FullPlates, Unconditioned, describe, given
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors.functions import readings
from ppl_ext.runtime.arguments import check_call, check_count, check_key, check_program, described
from ppl_ext.runtime.constants import odd_data_blamed
from ppl_ext.runtime.explain import explained
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised
from ppl_ext.runtime.verdict import Verdict, judged

LEVELS = tuple(np.round(np.arange(0.1, 1.0, 0.1), 1).tolist())
FEWEST_DRAWS = 4
"""Split R-hat halves each chain, and a half of one draw has no variance."""

AGREE = 1.05
"""R-hat on predictions above which chains say different things."""


@dataclass(frozen=True, repr=False)
class FunctionDraws(Summarised):
    r"""Draws of a function at given inputs, and how well they predict.

    ``values`` (chain, draw, ...): the output at the inputs. ``replicated`` (chain, draw, ...): data drawn
    anew at the site ``site``. With targets also ``targets``, y; ``log_scores`` (chain, draw, ...),
    log p(y_i | draw); and either ``probabilities`` (chain, draw, ..., class), where the site has finitely
    many values, or ``means`` of its law and ``levels``, its distribution function at the target, both
    (chain, draw, ...).

    >>> # as posterior_functions returns them
    >>> draws = FunctionDraws("f", None, np.arange(24.0).reshape(2, 4, 3))
    >>> draws, draws.r_hat.shape
    (FunctionDraws('f', num_chains=2, num_draws=4, shape=(3,)), (3,))
    """

    output: str
    site: str | None
    values: np.ndarray
    replicated: np.ndarray | None = None
    targets: np.ndarray | None = None
    means: np.ndarray | None = None
    log_scores: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    levels: np.ndarray | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        chains, draws = self.values.shape[:2]
        return (
            f"FunctionDraws('{self.output}', num_chains={chains}, num_draws={draws}, "
            f"shape={self.values.shape[2:]})"
        )

    # --- do the chains agree, as functions

    @cached_property
    def r_hat(self) -> np.ndarray:
        """Split R-hat of the values, by input; NaN where there are fewer than 4 draws a chain, or all are
        equal.
        """
        return self._by_input(split_gelman_rubin)

    @cached_property
    def ess(self) -> np.ndarray:
        """Effective number of draws, by input; NaN where R-hat is."""
        return self._by_input(effective_sample_size)

    def _by_input(self, statistic: Callable[[np.ndarray], Any]) -> np.ndarray:
        x = self.values.astype(np.float64)
        moving = np.ptp(x, axis=(0, 1)) > 0.0
        found = np.full(x.shape[2:], np.nan)
        if x.shape[1] >= FEWEST_DRAWS and moving.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                found[moving] = statistic(x[:, :, moving])
        return found

    # --- how well they predict

    @property
    def rmse(self) -> float:
        r"""Root mean square error of the predictive mean,
        :math:`\sqrt{\frac1n \sum_i (y_i - \frac1S \sum_s E[y_i \mid z_s])^2}`.
        """
        if self.probabilities is not None:
            raise ArgumentError(f"rmse: the targets of '{self.site}' are classes; see accuracy.")
        mean = _with_targets("rmse", self.means).astype(np.float64).mean((0, 1))
        return float(np.sqrt(np.mean((self._y - mean) ** 2)))

    @property
    def nll(self) -> float:
        r"""Mean negative log score of the predictive mixture,
        :math:`-\frac1n \sum_i \log \frac1S \sum_s p(y_i \mid z_s)`, in nats.
        """
        scores = _with_targets("nll", self.log_scores).astype(np.float64)
        scores = scores.reshape(-1, *scores.shape[2:])
        return float(np.log(len(scores)) - np.mean(np.logaddexp.reduce(scores, axis=0)))

    @property
    def accuracy(self) -> float:
        """Share of the targets that have the largest predictive probability."""
        return float(np.mean(self._predicted.argmax(-1) == self._y.astype(int)))

    def coverage(self, levels: Sequence[float] = LEVELS) -> np.ndarray:
        r"""Share of the targets inside the central predictive interval of each level: (level,).

        A target is inside the interval of level p if the mixture's distribution function there,
        :math:`\frac1S \sum_s F(y_i \mid z_s)`, lies within p/2 of 1/2. For laws without a closed F, and for
        counts, F comes from one replicate a draw, half of the ties counted.
        """
        asked = np.asarray(levels, np.float64)
        if asked.ndim != 1 or not ((asked > 0.0) & (asked < 1.0)).all():
            raise ArgumentError(f"coverage: levels must lie between 0 and 1, got {np.ravel(asked).tolist()}.")
        if self.probabilities is not None:
            raise ArgumentError(
                "coverage: the targets are classes, which have no intervals; see calibration_error."
            )
        at = _with_targets("coverage", self.levels).astype(np.float64).mean((0, 1)).ravel()
        return np.array([np.mean(np.abs(at - 0.5) <= 0.5 * p) for p in asked])

    def calibration_error(self, num_bins: int = 10) -> float:
        r"""How far stated probabilities are from frequencies.

        Classes: the expected calibration error,
        :math:`\sum_b \frac{n_b}{n} |\text{accuracy}_b - \text{confidence}_b|` over ``num_bins`` equal bins of
        the largest predictive probability (Guo et al. 2017, eq. 5). Else: the mean of ``|coverage - level|``
        at levels .1 to .9.
        """
        check_count("calibration_error: num_bins", num_bins)
        if self.probabilities is None:
            return float(np.mean(np.abs(self.coverage() - np.array(LEVELS))))
        predicted = self._predicted.reshape(-1, self._predicted.shape[-1])
        sure, right = predicted.max(-1), predicted.argmax(-1) == self._y.astype(int).ravel()
        which = np.minimum((sure * num_bins).astype(int), num_bins - 1)
        gaps = [abs(right[which == b].sum() - sure[which == b].sum()) for b in range(num_bins)]
        return float(np.sum(gaps) / len(sure))

    @property
    def _y(self) -> np.ndarray:
        return _with_targets("a score", self.targets).astype(np.float64)

    @property
    def _predicted(self) -> np.ndarray:
        """(..., class): the mixture's probabilities."""
        if self.targets is not None and self.probabilities is None:
            raise ArgumentError(f"The site '{self.site}' has no classes; see rmse, nll and coverage.")
        return _with_targets("accuracy", self.probabilities).astype(np.float64).mean((0, 1))

    # --- where it goes

    def to_arviz(self, inputs: Any = None) -> Any:
        """The ArviZ report: ``posterior`` has the functions, so that R-hat and ESS are those of predictions;
        ``predictions`` the replicated data; ``log_likelihood`` and ``observed_data`` those of the targets, if
        there are any.

        :param inputs: kept as ``constant_data``.
        """
        from ppl_ext.diagnostics.likelihood import Terms
        from ppl_ext.diagnostics.report.arviz_export import build_report
        from ppl_ext.diagnostics.report.run_record import versions

        axes = ["input", *(f"input_dim_{i}" for i in range(1, self.values.ndim))]
        groups: dict[str, Any] = {"posterior": {self.output: self.values}}
        terms, dims = {}, {self.output: axes}
        if self.site is not None:
            dims |= {self.site: axes}
            groups["predictions"] = {self.site: self.replicated}
            if self.targets is not None:
                groups["observed_data"] = {self.site: self.targets}
            if (scores := self.log_scores) is not None:
                terms[self.site] = Terms(
                    scores,
                    np.zeros(scores.shape[2:], bool),
                    (self.site,),
                    tuple(axes[: scores.ndim - 2]),
                    False,
                )
        if inputs is not None:
            groups["constant_data"] = {"inputs": np.asarray(inputs)}
            dims["inputs"] = [axes[0]]
        return build_report(groups, terms=terms, dims=dims, attrs={**self.attrs, **versions()})

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.diagnostics.verdicts.chains import reasons_of_chains

        return judged(reasons_of_chains({self.output: self.values}))

    def summary(self) -> str:
        """How far the chains agree as functions, and the scores, if there were targets."""
        chains, draws = self.values.shape[:2]
        lines = [
            f"'{self.output}' at {int(np.prod(self.values.shape[2:]))} inputs, {chains} chains of {draws} "
            "draws."
        ]
        if np.isfinite(self.r_hat).any():
            worst = float(np.nanmax(self.r_hat))
            words = (
                "the chains agree"
                if worst < AGREE
                else "the chains disagree: run longer, or with another step size"
            )
            lines.append(
                f"Largest R-hat {worst:.3f}, smallest ESS {float(np.nanmin(self.ess)):.0f}: {words}."
            )
        if self.probabilities is not None:
            lines.append(
                f"Accuracy {self.accuracy:.4f}, NLL {self.nll:.4f}, calibration error "
                f"{self.calibration_error():.4f}."
            )
        elif self.targets is not None:
            half, nine = self.coverage((0.5, 0.9))
            lines.append(
                f"RMSE {self.rmse:.4f}, NLL {self.nll:.4f}, coverage of 50 % intervals {half:.2f}, of 90 % "
                f"intervals {nine:.2f}."
            )
        return "\n".join(lines)


def _with_targets(what: str, x: np.ndarray | None) -> np.ndarray:
    if x is None:
        raise ArgumentError(f"{what} needs targets: pass y= to posterior_functions.")
    return x


def posterior_functions(
    model: Callable,
    samples: Any,
    *args: Any,
    output: str | Callable[[dict[str, Any]], Any] | None = None,
    site: str | None = None,
    y: Any = None,
    rng_key: jax.Array | None = None,
    num_samples: int = NUM_SAMPLES,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> FunctionDraws:
    """What a fit says of the function at inputs of your choice.

    The model runs once a draw on the given arguments, its latent sites at the draw, plates on all of their
    rows, in chunks that fit in memory. What it observes there is drawn anew.

    :param model: a NumPyro model; ``args`` and ``kwargs`` are its arguments, with the inputs that are asked
        for in them.
    :param samples: a numpyro ``MCMC`` that has run, a :class:`~ppl_ext.result.Fit`, an ArviZ report, or draws
        by site, (draw, ...) or (chain, draw, ...), as from ``MCMC.get_samples`` or ``Predictive``.
    :param output: the function: a deterministic site; a sample site, whose mean is taken (of a categorical
        one the probabilities); or a function of the dict of all the model's values. By default the mean of
        ``site``.
    :param site: the sample site that predicts; by default the only one without a draw.
    :param y: targets at the inputs, of the shape of ``site``. Without them there are no scores.
    :param num_samples: draws a chain from the guide of a ``Fit``.
    :param chunk_size: draws at once.
    :return: :class:`FunctionDraws`.
    :raises ModelError: if a latent site has no draw, or the model does not run on these arguments.
    :raises ArgumentError: if a name is no site, or shapes do not fit.
    :raises NonFiniteError: if draws are not finite.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> def model(x, y=None):
    ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(x)):
    ...         numpyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)
    >>> draws = {"slope": jnp.array([0.9, 1.0, 1.1])}
    >>> found = posterior_functions(model, draws, jnp.array([0.0, 1.0]), y=jnp.array([0.1, 1.3]))
    >>> found.values.shape, round(found.rmse, 3), round(found.nll, 3)
    ((1, 3, 2), 0.224, 0.33)
    """
    here = "posterior_functions"
    check_program(f"{here}: model", model)
    check_count(f"{here}: num_samples", num_samples)
    if chunk_size is not None:
        check_count(f"{here}: chunk_size", chunk_size)
    if rng_key is not None:
        check_key(f"{here}: rng_key", rng_key)
    if site is not None and not isinstance(site, str):
        raise ArgumentTypeError(f"{here}: site must be the name of a sample site, got {described(site)}.")
    if not (output is None or isinstance(output, str) or callable(output)):
        raise ArgumentTypeError(
            f"{here}: output must be the name of a site or a function of all values, got {described(output)}."
        )
    refuse_open_handlers(here)
    check_call(f"{here}: model", model, args, kwargs)

    found, params = readings.draws_of(samples, num_samples)
    free = readings.predictable(model)
    with odd_data_blamed(f"{here}:", args, kwargs), explained(model):
        sites = describe(free, {}, args, kwargs, jax.tree.map(lambda x: x[0], params))
    draws, num_chains, num_draws = readings.arranged(found, sites, site)
    site = readings.predicting_site(sites, draws, site)
    source = readings.source_of(output, site, sites)
    targets = None if y is None else readings.targets_of(y, site, sites)

    def run(params, draw):
        values, key = draw
        with FullPlates(), trace() as record:
            seed(Unconditioned(given(model, values, params)), key)(*args, **kwargs)
        values = {n: m["value"] for n, m in record.items() if m["type"] in ("sample", "deterministic")}
        if source is None:
            read = {"values": output(values)}  # type: ignore[misc, operator]
        else:
            read = {
                "values": values[source]
                if sites[source].kind == "deterministic"
                else readings.location(record[source])
            }
        if site is not None:
            read["replicated"] = values[site]
        if targets is not None:
            read |= readings.scores(record[site], targets)
        return read

    keys = jax.random.split(jax.random.key(0) if rng_key is None else rng_key, (num_chains, num_draws))
    chunk = chunk_size or default_chunk([s.shape for s in sites.values()])
    with explained(model):
        arrays = map_draws(over_draws(run), (draws, keys), params, num_chains, num_draws, chunk)
    name = source or str(getattr(output, "__name__", "f"))
    attrs = {"model": getattr(model, "__name__", None)}
    return FunctionDraws("f" if name == "<lambda>" else name, site, targets=targets, attrs=attrs, **arrays)
