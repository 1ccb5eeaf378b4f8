"""Fractional Brownian motion as a scan, by Markov processes that share one noise (Daems et al. 2024)."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ArgumentError
from ppl_ext.priors import fractional_weights as weights
from ppl_ext.priors.times import as_times, check_name, check_one_each, check_order
from ppl_ext.runtime.arguments import check_array, check_count, check_function, check_positive, described

SLOWEST = {"I": 1e-3, "II": 0.1}
"""Slowest rate times the horizon. What was before 0 is felt through rates far below 1/T."""
FASTEST = 20.0
"""Fastest rate times the shortest lag."""
MUCH = 0.1
"""The share of the variance above which what is missed is told."""
ROUGH = "Give a smaller finest, and more num_terms."
SMOOTH = "Take kind='II', which misses nothing there."


class Steps(eqx.Module):
    """What :meth:`MarkovFBM.step` takes of each time: arrays (n, ...), computed in double precision. They are
    of one choice of horizon and rates, and serve every Hurst index.
    """

    slope: jax.Array
    """(n, K, K), of the coordinates."""
    scale: jax.Array
    """(n, K), standard deviations of their noise, which is independent."""
    turn: jax.Array
    """(n, K, K), V − e^{Ft} V(0) from the coordinates."""
    lost: jax.Array
    """(n, K, K), e^{Ft} − I."""
    pull: jax.Array
    """(n, K), what a control of one adds to the coordinates."""
    length: jax.Array
    """(n,), since the time before."""
    horizon: float = eqx.field(static=True)
    rates: tuple[float, ...] = eqx.field(static=True)


class NoiseState(NamedTuple):
    """Where the process is: its value, and the coordinates (D,) of its parts."""

    value: jax.Array
    coordinates: jax.Array


class MarkovFBM(eqx.Module):
    r"""Fractional Brownian motion B of variance t^{2H}, approximated by K Ornstein-Uhlenbeck processes that
    share one Brownian motion W.

    .. math:: B(t) \approx \sum_{k=1}^K w_k (Y_k(t) - Y_k(0)), \qquad dY_k = -\gamma_k Y_k\, dt + dW

    H = ½ is Brownian motion; below ½ increments are negatively correlated and paths rough, above positively
    and paths smoother. Rates γ are a geometric series; weights w are those of least squared error over
    [0, horizon]. The transition of the Y is Gaussian and exact for any step, so that a model with this noise
    is a state-space model: :class:`~ppl_ext.algorithms.ExactFilter` and
    ``smooth(backward="exact")`` serve Gaussian data in O(n), particle methods and every objective others.

    :meth:`path` is a whole scan. In a scan of one's own, :meth:`start` stands before it and :meth:`step` in
    it, with the rows of :meth:`steps`.

    ``hurst`` may be a site of the model: weights are then interpolated in H, to 1e-5 of B's standard
    deviation at the horizon (type I and 0.1 ≤ H ≤ 0.9: 1e-7), for H in [0.02, 0.98], and NaN outside. So its
    likelihood has a gradient in H, in single precision too.

    The states are combinations of the Y whose noise is independent at each step and of which B is no small
    difference, beside, for type I, what the Y were at 0. So single precision serves: log evidences of 200
    times are right to 0.03, with noise of a thousandth of B(T) too. Give ``finest`` and ``times`` of the
    data as they are: of many more times than horizon / finest the shortest lags are not approximated.

    What K processes miss is variance: with the defaults 11, 1 and 0.1 % at H = 0.1, 0.2 and 0.3 of type I,
    and 1, 5 and 24 % at 0.7, 0.8 and 0.9; of type II 8, 0.6 and 0.04 %, and nothing above ½. :meth:`missed`
    says how much. A warning tells of more than 10 % where H is a number; of a site's H nobody can, so give
    it a law on indices that are served well.

    :param hurst: the Hurst index H, in (0, 1).
    :param horizon: T; times are in [0, T].
    :param finest: the shortest lag that matters; by default T/200.
    :param num_terms: K, at least 2.
    :param kind: "I", of Mandelbrot and Van Ness, whose increments are stationary, or "II", of Riemann and
        Liouville, which knows nothing before 0.
    :raises ArgumentError: for numbers out of their range.

    >>> import ppl_ext
    >>> from ppl_ext.algorithms import ExactFilter
    >>> def model(t, y):
    ...     hurst = numpyro.sample("hurst", dist.Uniform(0.1, 0.9))
    ...     noise = MarkovFBM(hurst, horizon=1.0, num_terms=4, kind="II")
    ...     def observe(b, y_t):
    ...         numpyro.sample("y", dist.Normal(b, 0.1), obs=y_t)
    ...     noise.path("b", t, observe, y)
    >>> of_hurst = ppl_ext.marginal(model, ["hurst"], ExactFilter())
    >>> t, y = np.array([0.1, 0.2, 0.5, 1.0]), np.array([0.3, 0.1, 0.3, 0.2])
    >>> round(float(ppl_ext.log_density(of_hurst, {"hurst": 0.7}, t, y)), 2)
    -0.7

    Source: Daems, Opper, Crevecoeur, Birdal 2024, "Variational inference for SDEs driven by fractional
    noise".
    """

    hurst: Any
    readout: jax.Array
    horizon: float = eqx.field(static=True)
    rates: tuple[float, ...] = eqx.field(static=True)
    kind: weights.Kind = eqx.field(static=True)

    def __init__(
        self,
        hurst: Any,
        horizon: float,
        *,
        finest: float | None = None,
        num_terms: int = 10,
        kind: weights.Kind = "I",
    ):
        _check_hurst(hurst)
        check_positive("MarkovFBM: horizon", horizon)
        finest = horizon / 200.0 if finest is None else finest
        check_positive("MarkovFBM: finest", finest)
        if not finest < horizon:
            raise ArgumentError(
                f"MarkovFBM: finest must be below the horizon {horizon:g}, got {described(finest)}: it is "
                "the shortest lag of the data."
            )
        check_count("MarkovFBM: num_terms", num_terms)
        if num_terms < 2:
            raise ArgumentError(
                "MarkovFBM: num_terms must be at least 2: one process has no memory of its own."
            )
        if kind not in ("I", "II"):
            raise ArgumentError(f"MarkovFBM: kind must be 'I' or 'II', got {described(kind)}.")
        self.hurst, self.horizon, self.kind = hurst, float(horizon), kind
        self.rates = tuple(np.geomspace(SLOWEST[kind] / horizon, FASTEST / finest, num_terms).tolist())
        self.readout = _readout(hurst, self.horizon, self.rates, kind)
        if not isinstance(hurst, jax.core.Tracer) and (missed := self.missed()) > MUCH:
            warnings.warn(
                f"MarkovFBM: {missed:.0%} of the variance is missed with hurst={float(hurst):g}, "
                f"kind='{kind}', num_terms={num_terms} and finest={finest:g}, and the noise is too small. "
                f"{ROUGH if hurst < 0.5 else SMOOTH}",
                stacklevel=2,
            )

    def steps(self, times: Any) -> Steps:
        """The transitions to each of the times from the one before it, and from 0 to the first.

        They do not depend on H. Times that a ``jit`` around the model traces cannot be served: call this
        before, and give what it returns to the model.

        :param times: (n,), in [0, T], not decreasing.
        :raises ArgumentError: for other times, or traced ones.

        >>> noise = MarkovFBM(0.7, horizon=2.0)
        >>> noise.steps([0.5, 1.0, 2.0]).scale.shape
        (3, 10)
        """
        return self._steps("MarkovFBM", times)

    def start(self, name: str) -> NoiseState:
        """The state at time 0, of value 0: of type I with a site ``name``, (K,), for what was before."""
        none = jnp.zeros(len(self.rates))
        if self.kind == "II":
            return NoiseState(jnp.zeros(()), none)
        before = numpyro.sample(name, dist.Normal(none, 1.0).to_event(1))
        return NoiseState(jnp.zeros(()), jnp.concatenate([none, before]))

    def step(self, name: str, state: NoiseState, step: Steps, control: Any = 0.0) -> NoiseState:
        r"""The state after a step: the site ``name``, (D,).

        :param step: a row of :meth:`steps`.
        :param control: u, for guides: dW becomes dW + u dt during the step. That costs at most ½ u² times
            its length in nats.
        """
        self._check_own(f"MarkovFBM '{name}'", step)
        x, before = jnp.split(state.coordinates, [len(self.rates)])
        mean = jnp.concatenate([step.slope @ x + control * step.pull, before])
        scale = jnp.append(step.scale, jnp.full_like(before, weights.LEAST_NOISE**0.5))
        new = numpyro.sample(name, dist.Normal(mean, scale).to_event(1))
        x, before = jnp.split(new, [len(self.rates)])
        value = self.readout @ (step.turn @ x)
        if self.kind == "I":
            value += self.readout @ (step.lost @ before)
        return NoiseState(value, new)

    def path(
        self, name: str, times: Any, observe: Callable[[Any, Any], Any] | None = None, data: Any = None
    ) -> jax.Array:
        """B at n times, as a scan with the sites ``<name>_start`` (type I) and ``<name>_state``. Call it
        within a model. B is the deterministic site ``name``.

        :param times: (n,), or what :meth:`steps` returned for them.
        :param observe: ``observe(b, data_t)``, the sample statements of one time, given B there.
        :param data: an array (n, ...) or a tree of them, or None.
        :return: B, (n,).
        :raises ArgumentError: for times outside [0, T] or backwards, or data of another length; the message
            names the site.
        """
        check_name("MarkovFBM.path", name)
        where = f"MarkovFBM '{name}'"
        if observe is not None:
            check_function(f"{where}: observe", observe)
        steps = times if isinstance(times, Steps) else self._steps(where, times)
        self._check_own(where, steps)
        check_one_each(where, data, len(steps.length))

        def body(state, inputs):
            step, now = inputs
            state = self.step(f"{name}_state", state, step)
            numpyro.deterministic(name, state.value)
            if observe is not None:
                observe(state.value, now)
            return state, state.value

        return scan(body, self.start(f"{name}_start"), (steps, data))[1]

    def _steps(self, where: str, times: Any) -> Steps:
        if isinstance(times, jax.core.Tracer):
            raise ArgumentError(
                f"{where}: times are traced, and transitions are computed in double precision before any "
                "jit. Call noise.steps(times) outside, and pass what it returns to the model as an argument."
            )
        at = self._known_times(where, times, in_order=True)
        found = weights.transitions(self.horizon, np.array(self.rates), at)
        slope, scale, turn, lost, pull, length = (jnp.asarray(x, float) for x in found)
        return Steps(slope, scale, turn, lost, pull, length, self.horizon, self.rates)

    def _check_own(self, where: str, steps: Steps) -> None:
        if (steps.horizon, steps.rates) != (self.horizon, self.rates):
            raise ArgumentError(
                f"{where}: the steps are those of a MarkovFBM of another horizon, finest, num_terms or kind. "
                "Only its hurst may differ: call steps(times) of one that agrees in the others."
            )

    def _known_times(self, where: str, times: Any, in_order: bool = False) -> np.ndarray:
        """Times in [0, T], in double precision whatever the model's."""
        as_times(where, "times", times)
        at = np.asarray(times, float)
        if in_order:
            check_order(where, at)
        if not (at.min() >= 0.0 and at.max() <= self.horizon * (1.0 + 1e-6)):
            raise ArgumentError(
                f"{where}: times must lie between 0, where the process is 0, and the horizon "
                f"{self.horizon:g}; they go from {at.min():g} to {at.max():g}. Shift them, or raise the "
                "horizon."
            )
        return at

    def covariance(self, times: Any) -> np.ndarray:
        """The covariance (n, n) of what approximates B, in double precision, to be laid beside that of
        :meth:`exact_covariance`.

        >>> noise, t = MarkovFBM(0.7, horizon=1.0), np.linspace(0.1, 1.0, 10)
        >>> bool(abs(noise.covariance(t) - noise.exact_covariance(t)).max() < 0.02)
        True
        """
        at = self._known_times("MarkovFBM.covariance", times)
        return weights.covariance(self._known(), self.horizon, at, np.array(self.rates), self.kind)

    def exact_covariance(self, times: Any) -> np.ndarray:
        """The covariance (n, n) of fractional Brownian motion itself."""
        at = self._known_times("MarkovFBM.exact_covariance", times)
        return weights.exact_covariance(self._known(), at, self.kind)

    def missed(self) -> float:
        """The share of the variance, integrated over [0, T], that the approximation misses.

        >>> MarkovFBM(0.7, horizon=1.0, kind="II").missed() < 1e-4
        True
        """
        return weights.readout(self._known(), self.horizon, np.array(self.rates), self.kind)[1]

    def _known(self) -> float:
        if isinstance(self.hurst, jax.core.Tracer):
            raise ArgumentError(
                "MarkovFBM: the covariance is computed in double precision before any jit, and hurst is "
                "traced. Ask a MarkovFBM whose hurst is a number for it."
            )
        return float(self.hurst)


def _readout(hurst: Any, horizon: float, rates: tuple[float, ...], kind: weights.Kind) -> jax.Array:
    """h (K,) with B(t) = h'(V(t) − V(0)), V the orthogonal coordinates of the Y."""
    if not isinstance(hurst, jax.core.Tracer):
        return jnp.asarray(weights.readout(float(hurst), horizon, np.array(rates), kind)[0], float)
    series = jnp.asarray(weights.readout_series(horizon, rates, kind), float)
    x = (2.0 * hurst - weights.LEAST - weights.MOST) / (weights.MOST - weights.LEAST)
    angle = jnp.arccos(jnp.clip(x, -1.0 + jnp.finfo(series.dtype).eps, 1.0 - jnp.finfo(series.dtype).eps))
    found = jnp.cos(jnp.arange(len(series)) * angle) @ series
    return jnp.where(jnp.abs(x) <= 1.0, found, jnp.nan)


def _check_hurst(hurst: Any) -> None:
    if isinstance(hurst, jax.core.Tracer):
        return
    check_array("MarkovFBM: hurst", hurst)
    if np.ndim(hurst) or not 0.0 < float(hurst) < 1.0:
        raise ArgumentError(
            f"MarkovFBM: hurst must be one number between 0 and 1, got {described(hurst)}. ½ is "
            "Brownian motion."
        )
