"""What windowed inference carries along a stream, and what it tells of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_ext.diagnostics.report.arviz_export import arviz_version, build_report
from ppl_ext.diagnostics.report.run_record import versions
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.results import Summarised
from ppl_ext.runtime.verdict import Reason, Verdict, judged


class WindowState(NamedTuple):
    """All that a stream needs to go on, of a size that does not grow: of :class:`windowed`.

    :param before: draws of the carry before the window, (P, ...).
    :param xs: the data in the window, (W, ...); ``inside``, (W,), says where there are any yet.
    :param free: the guide's parameters, (W, ...); ``moments`` are the optimiser's.
    :param losses: of the gradient steps of the last time.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
    >>> from ppl_ext.infer import windowed
    >>> def step(x, y):
    ...     x = numpyro.sample("x", dist.Normal(x, 1.0))
    ...     numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    ...     return x, None
    >>> def guide(free, x, y):
    ...     numpyro.sample("x", dist.Normal(free, 1.0))
    >>> run = windowed(step, guide, jnp.zeros(()), 3, optax.adam(0.1), 5)
    >>> state = run.init(jax.random.key(0), jnp.zeros(()), 0.0)
    >>> state.free.shape, state.inside.tolist(), int(state.time)
    ((3,), [False, False, False], 0)
    """

    key: jax.Array
    before: Any
    xs: Any
    inside: jax.Array
    free: Any
    moments: Any
    time: jax.Array
    losses: jax.Array
    seen: Outside


@dataclass(frozen=True, eq=False, repr=False)
class WindowResult(Summarised):
    """What the guide says now: P draws of the window's steps, given P of what came before it.

    :param draws: latent sites, (P, steps, ...), oldest first.
    :param carry: the carry after the last step, (P, ...): where a forecast begins.
    :param free: the guide's parameters of these steps.
    :param losses: of the gradient steps of the last time.
    :param num_steps: how long the stream is.

    >>> # of windowed.result
    >>> result = WindowResult({"x": np.ones((2, 3))}, np.ones(2), np.zeros(3), np.ones(5), 7)
    >>> result
    WindowResult(draws=['x'], steps 5 to 7 of 7, loss 1)
    """

    draws: dict[str, np.ndarray]
    carry: Any
    free: Any
    losses: np.ndarray
    num_steps: int

    def __repr__(self) -> str:
        return f"WindowResult(draws={[*self.draws]}, {self._steps}, loss {self._loss:.4g})"

    @property
    def _steps(self) -> str:
        first = self.num_steps - len(jax.tree.leaves(self.free)[0]) + 1
        return f"steps {first} to {self.num_steps} of {self.num_steps}"

    @property
    def _loss(self) -> float:
        """The mean of the last half."""
        return float(np.nanmean(self.losses[len(self.losses) // 2 :]))

    def summary(self) -> str:
        """Say in words what :meth:`print_summary` prints."""
        num = len(jax.tree.leaves(self.carry)[0])
        rows = [f"A window of {self._steps}, {num} draws. Loss at the end {self._loss:.4g}."]
        for name, x in self.draws.items():
            last = np.reshape(x[:, -1], (num, -1))[:, :5]
            told = ", ".join(f"{m:.3g} ± {s:.2g}" for m, s in zip(last.mean(0), last.std(0), strict=True))
            rows.append(f"{name} at the last step: {told}{', ...' if np.size(x[0, -1]) > 5 else ''}")
        return "\n".join(rows)

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        found = [Reason("unknown", "how far the guide is from the posterior is not known")]
        if missed := int((~np.isfinite(self.losses)).sum()):
            found.append(Reason("doubtful", f"{missed} gradient steps of the last time were not finite"))
        halves = [x[np.isfinite(x)] for x in np.array_split(self.losses, 2)]
        if min(map(len, halves)) > 3:
            fall = halves[0].mean() - halves[1].mean()
            error = sum(x.var(ddof=1) / len(x) for x in halves) ** 0.5
            if abs(fall) > 4.5 * error and abs(fall) > 0.1:
                words = f"the loss still fell by {fall:.2g} at the last time; raise num_steps"
                found.append(Reason("doubtful", words))
        return judged(found)

    def to_arviz(self) -> Any:
        """The ArviZ report: ``posterior`` with the draws of the window's steps, by their ``time`` in the
        stream."""
        dims = {name: ["time", *_axes(name, x)] for name, x in self.draws.items()}
        groups = {"posterior": {name: x[None] for name, x in self.draws.items()}}
        first = self.num_steps - len(jax.tree.leaves(self.free)[0])
        coords = {"time": np.arange(first, self.num_steps)}
        return build_report(
            groups, dims=dims, coords=coords, attrs={**versions(), "arviz_version": arviz_version()}
        )


def _axes(name: str, x: np.ndarray) -> list[str]:
    return [f"{name}_dim_{i}" for i in range(np.ndim(x) - 2)]
