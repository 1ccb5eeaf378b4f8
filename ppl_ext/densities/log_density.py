"""A log density that still knows its terms: which site each came from, and in which plates it lies.

Sums, differences and multiples of log densities keep the terms apart. So an objective can weigh or report
single sites, a bound can be taken element by element over a plate, and the gradient of a random choice is
charged only with the costs it touches.
"""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp as _logsumexp
from numpyro.distributions.util import is_identically_one

from ppl_ext.densities.bound_direction import Estimate, averaged, require
from ppl_ext.densities.distributions import log_prob
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError

_stop = jax.lax.stop_gradient


class Plate(NamedTuple):
    """A plate as a term sees it: where its axis lies, and N/B if it was subsampled."""

    name: str
    dim: int
    size: int
    scale: float


class Label(NamedTuple):
    site: str
    plates: tuple[Plate, ...]
    estimate: Estimate = Estimate()


class LogDensity(eqx.Module):
    r"""A sum of log-density terms, :math:`\sum_t \sum_e \ell_t[e]`, kept apart by site and plate element.

    ``+``, ``-`` and ``*`` by a scalar keep the terms; :attr:`total` adds them up to an array. The first
    ``batch_ndim`` axes of every term are particles (from :func:`ppl_ext.replicate`) and stay: :attr:`total`
    has their shape, ``()`` for a single draw. Use ``jnp.exp(x.total)`` and the like for functions of JAX, and
    :func:`log_mean_exp` to combine particles.

    >>> import jax.numpy as jnp
    >>> from ppl_ext.densities.log_density import Label, LogDensity
    >>> x = LogDensity((jnp.array([-1.0, -2.0]),), (Label("z", ()),))
    >>> float((2 * x).total), {k: float(v) for k, v in x.by_site.items()}
    (-6.0, {'z': -3.0})
    """

    terms: tuple[jax.Array, ...]
    labels: tuple[Label, ...] = eqx.field(static=True)
    batch_ndim: int = eqx.field(static=True, default=0)

    __array_ufunc__ = None  # or NumPy would make `array * log_density` an array of log densities

    @property
    def total(self) -> jax.Array:
        """The density itself: an array over particles, a scalar without them."""
        sums = [jnp.sum(x, axis=tuple(range(self.batch_ndim, x.ndim))) for x in self.terms]
        return sum(sums[1:], start=sums[0]) if sums else jnp.zeros(())

    @property
    def by_site(self) -> dict[str, jax.Array]:
        """The terms summed by site name; terms with the same name (say, of a model and a guide) are added."""
        out: dict[str, jax.Array] = {}
        for x, label in zip(self.terms, self.labels, strict=True):
            value = jnp.sum(x, axis=tuple(range(self.batch_ndim, x.ndim)))
            out[label.site] = out[label.site] + value if label.site in out else value
        return out

    def weigh(self, weights: dict[str, float | jax.Array]) -> "LogDensity":
        """The terms of each site multiplied by the weight of the first name pattern (that of a shell) that
        fits; the others unchanged.

        >>> x = LogDensity((jnp.array(-1.0), jnp.array(-2.0)), (Label("z", ()), Label("y", ())))
        >>> {k: float(v) for k, v in x.weigh({"z*": 0.5}).by_site.items()}
        {'z': -0.5, 'y': -2.0}

        :raises ModelError: if a pattern fits no site.
        """
        sites = dict.fromkeys(label.site for label in self.labels)
        for pattern in weights:
            if not any(fnmatchcase(site, pattern) for site in sites):
                raise ModelError(
                    f"No site of this log density fits '{pattern}'. Its sites: "
                    f"{', '.join(map(repr, sites)) or 'none'}."
                )
        parts = [
            LogDensity((x,), (label,), self.batch_ndim)
            for x, label in zip(self.terms, self.labels, strict=True)
        ]
        factors = [
            next((w for p, w in weights.items() if fnmatchcase(label.site, p)), 1) for label in self.labels
        ]
        parts = [
            part if isinstance(w, int) and w == 1 else part * w
            for part, w in zip(parts, factors, strict=True)
        ]
        return LogDensity(
            tuple(p.terms[0] for p in parts), tuple(p.labels[0] for p in parts), self.batch_ndim
        )

    def select(self, *patterns: str) -> "LogDensity":
        """The terms of the sites whose name fits one of the patterns (those of a shell), the others left out.

        >>> x = LogDensity((jnp.array(-1.0), jnp.array(-2.0)), (Label("z", ()), Label("y", ())))
        >>> float(x.select("z").total)
        -1.0

        :raises ModelError: if a pattern fits no site.
        """
        self.weigh(dict.fromkeys(patterns, 1))  # names what fits nothing
        return self.split(
            [label.site for label in self.labels if any(fnmatchcase(label.site, p) for p in patterns)]
        )[0]

    def split(self, sites: Collection[str]) -> tuple["LogDensity", "LogDensity"]:
        """The terms of these sites, by their exact names, and the others."""

        def part(inside: bool) -> LogDensity:
            pairs = [
                (x, label)
                for x, label in zip(self.terms, self.labels, strict=True)
                if (label.site in sites) == inside
            ]
            return LogDensity(tuple(x for x, _ in pairs), tuple(label for _, label in pairs), self.batch_ndim)

        return part(True), part(False)

    def _scalar(self, other, what: str) -> jax.Array:
        if not isinstance(other, int | float | jax.Array) and not hasattr(other, "dtype"):
            raise ArgumentTypeError(
                f"Cannot {what} a LogDensity and a {type(other).__name__}; use numbers, or `.total` for an "
                "array."
            )
        other = jnp.asarray(other)
        if other.ndim > self.batch_ndim:
            raise ArgumentError(
                f"Cannot {what} a LogDensity over {self.batch_ndim} particle axes and an array of shape "
                f"{other.shape}; use `.total`."
            )
        return other

    def __add__(self, other):
        if isinstance(other, LogDensity):
            if self.terms and other.terms and self.batch_ndim != other.batch_ndim:
                raise ArgumentError(
                    "Cannot add log densities with and without a particle axis: reduce one with `.mean()` "
                    "first."
                )
            ndim = max(self.batch_ndim, other.batch_ndim)
            return LogDensity(self.terms + other.terms, self.labels + other.labels, ndim)
        other = self._scalar(other, "add")
        shape = self.terms[0].shape[: self.batch_ndim] if self.terms else ()
        return LogDensity(
            (*self.terms, jnp.broadcast_to(other, shape)), (*self.labels, Label("", ())), self.batch_ndim
        )

    __radd__ = __add__

    def __neg__(self):
        return LogDensity(tuple(map(jnp.negative, self.terms)), _scaled(self.labels, -1), self.batch_ndim)

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return (-self) + other

    def __mul__(self, other):
        labels = _scaled(self.labels, other)
        other = self._scalar(other, "multiply")
        terms = tuple(x * other.reshape(other.shape + (1,) * (x.ndim - other.ndim)) for x in self.terms)
        return LogDensity(terms, labels, self.batch_ndim)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self * (1 / other)

    def __float__(self) -> float:
        return float(self.total)

    def sum(self) -> "LogDensity":
        """Sum over particles, term by term."""
        return LogDensity(self.terms, self.labels, 0)

    def mean(self) -> "LogDensity":
        """Mean over particles, term by term."""
        axes = range(self.batch_ndim)
        return LogDensity(tuple(x / math.prod(x.shape[a] for a in axes) for x in self.terms), self.labels, 0)


def site_log_prob(site: dict) -> jax.Array:
    """The elementwise log density of one traced sample site, its mask applied."""
    return jnp.asarray(log_prob(site["fn"], site["value"], site["intermediates"]))


def site_term(site: dict, plate_scales: dict[str, float]) -> tuple[jax.Array, Label]:
    """The elementwise log density of one traced sample site, its mask and scale applied, and its label."""
    term, scale = site_log_prob(site), site["scale"]
    if scale is not None and not is_identically_one(scale):
        term = scale * term
    plates = tuple(
        Plate(f.name, f.dim, f.size, plate_scales[f.name])
        for f in site["cond_indep_stack"]
        if f.name in plate_scales
    )
    estimate = (
        site["infer"]
        .get("_ppl_ext_estimate", Estimate())
        .times(1.0 if scale is None else scale, positive=True)
    )
    return term, Label(site["name"], plates, estimate)


def lower_bound(log_density: LogDensity) -> LogDensity:
    r"""State that a log density is a lower bound in the mean; it is returned as it is.

    .. math:: \mathbb{E}[\textstyle\sum_t \pm \log w_t] \le \sum_t \pm \log p_t

    :raises DirectionError: if a term is an estimate that errs upwards (see
        :mod:`ppl_ext.densities.bound_direction`); the message names it.

    >>> import jax.numpy as jnp
    >>> float(lower_bound(LogDensity((jnp.array(-1.0),), (Label("z", ()),))).total)
    -1.0
    """
    require("lower", [(label.site, label.estimate) for label in log_density.labels])
    return log_density


def upper_bound(log_density: LogDensity) -> LogDensity:
    """State that a log density is an upper bound in the mean; it is returned as it is.

    :raises DirectionError: if a term is an estimate that errs downwards; the message names it.

    >>> import jax.numpy as jnp
    >>> float(upper_bound(LogDensity((jnp.array(-1.0),), (Label("z", ()),))).total)
    -1.0
    """
    require("upper", [(label.site, label.estimate) for label in log_density.labels])
    return log_density


def _estimated(labels: Sequence[Label]) -> str:
    """The name of an average of weights: that of its estimated terms, for errors to come."""
    return ", ".join(dict.fromkeys(label.site for label in labels if label.estimate.kind != "exact"))


def _scaled(labels: Sequence[Label], factor) -> tuple[Label, ...]:
    return tuple(
        label if label.estimate.kind == "exact" else label._replace(estimate=label.estimate.times(factor))
        for label in labels
    )


def _common_plates(labels: Sequence[Label]) -> tuple[Plate, ...]:
    first, *rest = [set(label.plates) for label in labels]
    return tuple(sorted(first.intersection(*rest), key=lambda p: p.dim))


def uneven_plates(labels: Sequence[Label]) -> list[Plate]:
    """Subsampled plates that hold some of the sites and not all."""
    return sorted(
        {p for label in labels for p in label.plates if not is_identically_one(p.scale)}
        - set(_common_plates(labels))
    )


def _warn_if_no_bound(labels: Sequence[Label]) -> None:
    for plate in uneven_plates(labels):
        warnings.warn(
            f"Plate '{plate.name}' is subsampled (every term times {plate.scale:g}) but does not hold every "
            "site, so a log of an average of weights is no bound on the evidence here. Put all sites in the "
            "plate, use the full data, or use ELBO.",
            stacklevel=4,
        )


def log_mean_exp(log_weights):
    r"""Log of the average of weights over particles, separately for each element of the plates that hold
    every site.

    .. math:: \sum_{e} s \log \tfrac1K \sum_{k=1}^K \exp \ell_k[e]

    With independent data points (every site of model and guide in the same plate) this is a sum of one bound
    per point, which is far tighter than one bound for all of them (Burda, Grosse, Salakhutdinov 2016, eq. 8);
    a subsampled plate's N/B = s multiplies outside the log. Where no plate holds every site there is a single
    element.

    :param log_weights: a :class:`LogDensity` over one particle axis, or an array whose first axis is
        particles.
    :return: a :class:`LogDensity` without the particle axis; for an array, the array without its first axis.
    :raises ArgumentError: for a scalar, or a log density without one axis of particles.

    >>> import jax.numpy as jnp
    >>> float(log_mean_exp(jnp.zeros(8)))
    0.0
    """
    return per_element(_log_mean_exp, log_weights)


def per_element(
    fn: Callable[..., jax.Array], log_weights, *others, direction: Callable[..., Estimate] = averaged
):
    r"""A function of K particles' log weights, separately for each element of the plates that hold every
    site.

    .. math:: \sum_{e} s \, f\big(\ell_1[e], \dots, \ell_K[e]\big)

    It is what :func:`log_mean_exp` does with :math:`f` the log of the average, for other bounds that are made
    of particles. A subsampled plate's N/B = s multiplies outside; inside, log weights are those of single
    elements.

    :param fn: from arrays of shape (K, ...), one of each log density, to an array of shape (...).
    :param log_weights: as in :func:`log_mean_exp`.
    :param others: more of them, over the same particles.
    :param direction: which way the result errs, from the sites and estimates of ``log_weights``; by default
        as a log of an average of weights does.

    >>> largest = lambda x: x.max(axis=0)
    >>> float(per_element(largest, jnp.array([1.0, 3.0, 2.0])))
    3.0
    """
    if not isinstance(log_weights, LogDensity):
        arrays = [jnp.asarray(x) for x in (log_weights, *others)]
        if any(x.ndim == 0 for x in arrays):
            raise ArgumentError(
                "log_mean_exp needs an axis of particles, got a scalar; use `replicate(fn, num_particles)` "
                "to draw several."
            )
        return fn(*arrays)
    every = (log_weights, *others)
    for x in every:
        if x.batch_ndim != 1:
            raise ArgumentError(
                f"log_mean_exp needs one axis of particles, got {x.batch_ndim}; see `replicate`."
            )
    if not log_weights.terms:
        return LogDensity((), (), 0)
    common = _common_plates([label for x in every for label in x.labels])
    _warn_if_no_bound([label for x in every for label in x.labels])
    scale = math.prod(p.scale for p in common)
    estimate = direction((label.site, label.estimate.times(1 / scale)) for label in log_weights.labels).times(
        scale
    )
    value = fn(*[_merged(x, common, scale) for x in every])
    return LogDensity(
        (scale * value if scale != 1 else value,),
        (Label(_estimated(log_weights.labels), common, estimate),),
        0,
    )


def _merged(log_weights: LogDensity, common: Sequence[Plate], scale: float) -> jax.Array:
    """One array over particles and the elements of the common plates, its subsampling scale taken off."""
    summed = []
    for x in log_weights.terms:
        kept = {0} | {x.ndim + p.dim for p in common}
        x = jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a not in kept), keepdims=True)
        # Singleton axes left of the plates go, so that terms of different rank line up: (K, plates and what
        # lies between them).
        x = x.reshape(x.shape[:1] + x.shape[max(1, x.ndim + (common[0].dim if common else 0)) :])
        summed.append(x)
    total = sum(summed[1:], start=summed[0])
    return total / scale if scale != 1 else total


def _log_mean_exp(x: jax.Array) -> jax.Array:
    """Over the first axis; where every weight is zero, −inf with a gradient of zero and not NaN (enumeration
    meets such cases).
    """
    value = _logsumexp(_stop(x), axis=0)
    sane = jnp.isfinite(value)
    value = jnp.where(sane, _logsumexp(jnp.where(sane[None], x, 0.0), axis=0), value)
    return value - math.log(x.shape[0])
