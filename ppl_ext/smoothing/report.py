"""What smoothing returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_count, check_key, described
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised, number
from ppl_ext.runtime.verdict import Verdict


@dataclass(frozen=True, eq=False, repr=False)
class SmoothingResult(Summarised):
    """A smoothed series.

    :param log_evidence: the estimated log p(y_1, ..., y_T); its exponential is unbiased.
    :param expectations: smoothed expectations by functional.
    :param ess: (T,) effective sample size of the weights after each step, 0 where no particle survives; None
        where the answer is exact.
    :param resampled: (T,) whether the particles were resampled before that step; None where the answer is
        exact.
    :param log_evidence_increments: (T,) ``log p(y_t | y_<t)``, estimated; ``log_evidence_initial`` is that of
        what is observed before the scan. What is by time is in the order of the inputs; of a scan that runs
        backward the increment is ``log p(y_t | y_>t)``.
    :param fallbacks: backward rows in which no particle before could have led to the one after.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(0.6 * x_prev, 0.8))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> from ppl_ext.smoothing import smooth
    >>> result = smooth(model, backward="exact").run(jax.random.key(0), jnp.ones(1))
    >>> round(float(result.log_evidence), 2), result.ess  # y is Normal(0, sqrt(2))
    (-1.52, None)
    """

    log_evidence: jax.Array
    expectations: dict[str, Any]
    log_evidence_increments: jax.Array
    log_evidence_initial: jax.Array
    fallbacks: jax.Array
    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    params: dict[str, jax.Array]
    rng_key: jax.Array
    draw: Callable
    quantiles: Callable
    ess: jax.Array | None = None
    resampled: jax.Array | None = None
    how: dict[str, Any] = field(default_factory=dict)
    outside: Outside | None = None

    def __repr__(self) -> str:
        num_steps = len(self.log_evidence_increments)
        return f"SmoothingResult(log_evidence={number(self.log_evidence)}, num_steps={num_steps}, {self.how})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.smoothing.verdicts import of_smoothing

        return of_smoothing(self)

    def summary(self) -> str:
        from ppl_ext.smoothing.summaries import of_smoothing

        return of_smoothing(self)

    def sample(
        self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES
    ) -> dict[str, jax.Array]:
        """Whole trajectories from the smoothing law, drawn backward through the particles of this run, which
        is repeated for it with everything kept: memory grows as N T. A draw costs O(T) with ``"mcmc"`` and
        ``"path"``, O(N T) with ``"dense"``: there fewer than by default may do.

        :raises ModelError: if data that the model reads from outside of its arguments have changed since.
        :return: by latent site (draw, ...), those of the steps (draw, time, ...).
        """
        check_count("sample: num_samples", num_samples)
        if rng_key is None:
            rng_key = jax.random.fold_in(self.rng_key, 0xB4C)
        check_key("sample: rng_key", rng_key)
        return self.draw(rng_key, self.rng_key, self.params, self.args, self.kwargs, int(num_samples))

    def filtered(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> dict[str, jax.Array]:
        """Quantiles of each state given the observations up to its own time, element by element: by site of a
        step (levels, T, ...).

        The particles of this run are made once more for it; nothing of them is kept.
        """
        check_array("filtered: levels", levels)
        found = np.asarray(levels, np.float32)
        if found.ndim != 1 or not found.size or not ((found > 0) & (found < 1)).all():
            raise ArgumentError(f"filtered: levels must be numbers between 0 and 1, got {described(levels)}.")
        return self.quantiles(self.rng_key, self.params, self.args, self.kwargs, found)

    def to_arviz(self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES) -> Any:
        """The ArviZ report, one chain.

        ``posterior``: smoothed trajectories, (chain, draw, time). ``sample_stats``: ``ess``, ``resampled``
        and ``log_evidence_increment`` by time, the same for every draw; ``lp``, the log joint density of a
        trajectory and the observations. ``log_predictive_one_step``: log p(y_t | y_<t), which leave-one-out
        must not use. ``observed_data``.
        """
        from ppl_ext.smoothing.arviz_reports import of_trajectories

        values = {name: np.asarray(x)[None] for name, x in self.sample(rng_key, num_samples).items()}

        def each(x):
            return np.broadcast_to(np.asarray(x), (1, num_samples, *np.shape(x)))

        stats = {"log_evidence_increment": each(self.log_evidence_increments)}
        if self.ess is not None:
            stats |= {"ess": each(self.ess), "resampled": each(self.resampled)}
        attrs = {
            "log_evidence": float(self.log_evidence),
            "backward_fallbacks": int(self.fallbacks),
            **self.how,
        }
        return of_trajectories(self, values, stats, attrs, stats["log_evidence_increment"])
