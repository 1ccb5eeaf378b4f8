"""What a tracker returns: the targets by time, and what is to be told of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.results import as_html
from ppl_ext.runtime.verdict import Reason, Verdict, judged
from ppl_ext.smoothing.tracking.filtering import TrackState
from ppl_ext.state_space.prefixes import tree_sum

SETTLED = 1e-3
"""Belief propagation has come to rest where no probability changes by more than this."""


class Tracks(NamedTuple):
    """Targets given the measurements up to their own time, in N slots.

    ``existence`` (T, N): the probability that there is a target; ``mean`` (T, N, d) and ``covariance`` of its
    state; ``label`` (T, N): the same number for the same target at all times, −1 in an empty slot.
    ``undetected`` (T,): how many more are expected that have no slot. ``log_increments`` (T,): of the
    evidence, by Bethe's formula. ``residual`` (T,): by how much association probabilities changed in the last
    round. ``crowded`` (T,): how many Bernoullis above the threshold found no slot and joined the unseen, and
    ``crowded_most`` the largest probability among them; ``lost`` (T,): how many expected targets were dropped
    with components of the intensity of unseen ones. ``last``: where to go on from.

    >>> from ppl_ext.smoothing.tracking.filtering import TrackState
    >>> zeros = jnp.zeros(1)
    >>> found = Tracks(jnp.array([[0.9, 0.2]]), jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3, 3)),
    ...     jnp.array([[0, 1]]), zeros, zeros, zeros, zeros, zeros, zeros, None)
    >>> found.estimates(0).shape, round(float(found.expected_number[0]), 1)
    ((1, 3), 1.1)
    """

    existence: jax.Array
    mean: jax.Array
    covariance: jax.Array
    label: jax.Array
    undetected: jax.Array
    log_increments: jax.Array
    residual: jax.Array
    crowded: jax.Array
    crowded_most: jax.Array
    lost: jax.Array
    last: TrackState

    @property
    def log_evidence(self) -> jax.Array:
        """The log density of all sets of measurements, by Bethe's formula."""
        return tree_sum(jnp.moveaxis(self.log_increments, -1, 0)).value

    @property
    def expected_number(self) -> jax.Array:
        """How many targets are expected at each time, (T,), unseen ones included."""
        return self.existence.sum(-1) + self.undetected

    def estimates(self, t: int, at_least: float = 0.5) -> np.ndarray:
        """The means (n, d) of the targets at step t that are at least so likely, in the order of their
        labels.
        """
        label, existence = np.asarray(self.label[t]), np.asarray(self.existence[t])
        there = [i for i in np.argsort(label) if existence[i] >= at_least]
        return np.asarray(self.mean[t])[there]

    def labels(self, t: int, at_least: float = 0.5) -> np.ndarray:
        """The labels (n,) of :meth:`estimates`."""
        return np.sort(np.asarray(self.label[t])[np.asarray(self.existence[t]) >= at_least])

    def __repr__(self) -> str:
        return f"Tracks(existence={jnp.shape(self.existence)}, mean={jnp.shape(self.mean)})"

    def summary(self) -> str:
        """Say in words what :meth:`print_summary` prints."""
        if np.ndim(self.existence) != 2:
            return f"Tracks of shape {np.shape(self.existence)}: of many series at once. A summary is of one."
        existence, number = np.asarray(self.existence), np.asarray(self.expected_number)
        there = existence >= 0.5
        names = np.unique(np.asarray(self.label)[there])
        return "\n".join(
            [
                f"{len(existence)} steps, {existence.shape[1]} slots, at most {there.sum(1).max()} targets "
                f"at a time, {len(names)} in all.",
                f"Expected at the end: {number[-1]:.1f} targets, {float(self.undetected[-1]):.2f} of them "
                "unseen.",
                f"Log evidence {float(self.log_evidence):.2f}, by Bethe's formula.",
                f"{int(np.sum(self.crowded))} candidates found no slot and joined the unseen; "
                f"{float(np.sum(self.lost)):.2g} expected targets were dropped.",
                "Given each time's past and itself, not its future.",
            ]
        )

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        found = [Reason("unknown", "mixtures over associations are taken as one normal law a target")]
        if not np.isfinite(np.asarray(self.log_increments)).all():
            found.append(Reason("bad", "the log evidence is not finite: a measurement was impossible or NaN"))
        if (worst := float(np.max(self.residual))) > SETTLED:
            found.append(
                Reason("doubtful", f"associations moved by {worst:.2g} at the end; raise num_rounds")
            )
        if (most := float(np.max(self.crowded_most))) > 0.1:
            found.append(
                Reason("doubtful", f"a target of probability {most:.2f} had no slot; raise max_targets")
            )
        if (lost := float(np.max(self.lost))) > 0.01:
            found.append(Reason("doubtful", f"{lost:.2g} targets dropped in a step; raise max_undetected"))
        return judged(found)

    def print_summary(self) -> None:
        """Print the summary."""
        print(f"{self.summary()}\n{self.verdict()}")

    def _repr_html_(self) -> str:
        return as_html(f"{self.summary()}\n{self.verdict()}")

    def to_arviz(self) -> Any:
        """The ArviZ report: ``estimates`` by ``time``, ``slot`` and ``state``. No ``posterior``: these are
        laws of each time given its own past, which no draw of a track has.

        :raises ArgumentError: of many series at once.
        """
        from ppl_ext.smoothing.tracking.report import of_tracks

        if np.ndim(self.existence) != 2:
            raise ArgumentError(
                f"to_arviz: existence has shape {np.shape(self.existence)}, of many series at once; report "
                "one: jax.tree.map(lambda x: x[0], result)."
            )
        return of_tracks(self)
