"""Many targets at once, some unseen, among measurements that may be of none: the filter as one object."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count
from ppl_ext.smoothing.tracking.associations import NUM_ROUNDS
from ppl_ext.smoothing.tracking.checks import check_fits, check_read, check_tracker, padded, series
from ppl_ext.smoothing.tracking.filtering import Caps, TrackState
from ppl_ext.smoothing.tracking.linear_step import OneTarget, read_step
from ppl_ext.smoothing.tracking.target_sets import BernoulliTargets, PoissonTargets
from ppl_ext.smoothing.tracking.tracks import Tracks
from ppl_ext.smoothing.tracking.whole_series import Given, tracked

_READ = jax.jit(read_step, static_argnums=(0, 1, 2))
_TRACKED = jax.jit(tracked, static_argnums=5)


class Tracker(eqx.Module):
    r"""A Poisson multi-Bernoulli filter of many targets, each of which moves and is measured as a step says.

    .. math:: x' \sim \mathcal{N}(F x + c, Q), \quad z \sim \mathcal{N}(H x' + d, R), \quad
        X_t \mid Z_{1:t} \sim \text{Poisson}(\lambda) \cup \bigcup_i \text{Bernoulli}(r_i, m_i, P_i)

    In every step each target survives with one probability, moves, and is measured with another; targets are
    born; and measurements of none come on top, a Poisson number of them. Who was measured is not known:
    see :func:`association_marginals`. One target that is there for sure and always measured, without
    clutter, is Kalman's filter.

    The numbers of slots are fixed, so that any number of targets and measurements below them is one
    compilation. ``filter`` is a function of arrays, for use within ``jit``, ``grad`` and NumPyro models (its
    ``log_evidence`` as a factor); ``run`` takes measurements as they come, and raises where a slot was
    missing.

    :param step: ``step(x, z) -> (x, None)`` as of a ``scan``: one latent site, the new state (d,), and
        observed sites that take z, (m,). Linear and Gaussian; the matrices are read off it.
    :param births: :class:`PoissonTargets` or :class:`BernoulliTargets`, new ones in every step.
    :param clutter: how many measurements of no target are expected in a step; zero only where unseen targets
        can explain every measurement.
    :param clutter_law: the law of one of them, (m,).
    :param detection: the probability that a target is measured, in (0, 1].
    :param survival: that it goes on to the next step, in (0, 1].
    :param initial: targets at the time before the first step, of one of these kinds.
    :param max_targets: slots of Bernoullis, for targets and for candidates.
    :param max_measurements: of one step.
    :param max_undetected: components of the intensity of unseen targets.
    :param recycle_below: a Bernoulli less likely than this gives up its slot, and joins the unseen.
    :param num_rounds: of belief propagation in each step.
    :raises ArgumentError: for numbers out of their range. The message names the argument.
    :raises ArgumentTypeError: for other kinds of births.

    >>> import numpyro
    >>> def step(x, z):  # position and velocity; the position is measured
    ...     noise = jnp.array([[1 / 3, 1 / 2], [1 / 2, 1.0]])
    ...     x = numpyro.sample("x", dist.MultivariateNormal(jnp.array([x[0] + x[1], x[1]]), 0.1 * noise))
    ...     numpyro.sample("z", dist.Normal(x[:1], 0.5).to_event(1), obs=z)
    ...     return x, None
    >>> born = PoissonTargets(0.2, dist.Normal(jnp.array([0.0, 0.0]), jnp.array([9.0, 1.0])).to_event(1))
    >>> wherever = dist.Uniform(-10.0, 10.0).expand([1]).to_event(1)
    >>> tracker = Tracker(step, born, clutter=1.0, clutter_law=wherever, detection=0.95, survival=0.99)
    >>> tracks = tracker.run([[[1.0]], [[1.2], [-8.0]], [[1.3]], [[1.5], [7.0]]])  # a list of scans
    >>> tracks.estimates(3).shape  # one target, position and velocity
    (1, 2)

    Sources: Williams 2015, "Marginal multi-Bernoulli filters"; García-Fernández, Williams, Granström,
    Svensson 2018, "Poisson multi-Bernoulli mixture filter: direct derivation and implementation".
    """

    step: Callable = eqx.field(static=True)
    births: PoissonTargets | BernoulliTargets
    clutter: Any
    clutter_law: dist.Distribution
    detection: Any = 0.9
    survival: Any = 0.99
    initial: PoissonTargets | BernoulliTargets | None = None
    max_targets: int = eqx.field(static=True, default=40)
    max_measurements: int = eqx.field(static=True, default=60)
    max_undetected: int = eqx.field(static=True, default=60)
    recycle_below: Any = 0.01
    num_rounds: int = eqx.field(static=True, default=NUM_ROUNDS)

    def __check_init__(self):
        for name in ("max_targets", "max_measurements", "max_undetected", "num_rounds"):
            check_count(f"Tracker: {name}", getattr(self, name))
        check_tracker(self)

    def one_target(self) -> OneTarget:
        """The matrices of the step: laws ``motion`` and ``measurement``, each with ``slope``, ``offset`` and
        ``covariance``.
        """
        read = _READ if isinstance(self.step, Hashable) else read_step
        found = read(self.step, self.size, self.measured)
        check_read(found)
        return found

    @property
    def size(self) -> int:
        """The dimension of a state."""
        return self.births.law.event_shape[0]

    @property
    def measured(self) -> int:
        """The dimension of a measurement."""
        return self.clutter_law.event_shape[0]

    def filter(self, values: jax.Array, seen: jax.Array, state: TrackState | None = None) -> Tracks:
        """The filter as a function of arrays, which may be traced.

        :param values: (T, M, m), measurements of T steps, padded.
        :param seen: (T, M), which of them there are. What is not seen is never read. NaN in what is seen
            makes all that follows NaN.
        :param state: where an earlier result's ``last`` left off; by default there is what ``initial`` says.
        :return: :class:`Tracks`. It carries the counts of what found no slot; nothing is raised.
        """
        # compiled as one, and anew: the numbers of the step may be traced ones
        target = jax.jit(lambda: read_step(self.step, self.size, self.measured))()
        check_read(target)
        return self._tracks(target, values, seen, state)

    def run(self, measurements: Sequence[Any], state: TrackState | None = None) -> Tracks:
        """Filter measurements as they come, compiled once for all numbers below the caps.

        :param measurements: one array (n, m) a step, or one of (T, n, m); a step without any may be empty.
        :param state: where an earlier result's ``last`` left off.
        :raises ArgumentError: for measurements of another dimension, NaN among them, more than
            ``max_measurements`` in a step, or more targets than ``max_targets``. The message names the step.
        """
        values, seen = padded(series(measurements, self.measured), self.max_measurements, self.measured)
        tracks = self._tracks(self.one_target(), values, seen, state)
        check_fits(tracks, self.max_targets)
        return tracks

    def _tracks(self, target: OneTarget, values, seen, state) -> Tracks:
        shape = jnp.shape(values)
        if len(shape) != 3 or shape[2] != self.measured or jnp.shape(seen) != shape[:2] or not shape[0]:
            raise ArgumentError(
                f"Tracker.filter: values must be (T, M, {self.measured}) and seen (T, M), with at least one "
                f"step, got shapes {shape} and {jnp.shape(seen)}."
            )
        given = Given(
            self.births,
            self.initial,
            self.clutter,
            self.clutter_law,
            (self.detection, self.survival, self.recycle_below),
        )
        caps = Caps(self.max_targets, self.max_undetected, self.num_rounds)
        return _TRACKED(given, target, values, seen, state, caps)
