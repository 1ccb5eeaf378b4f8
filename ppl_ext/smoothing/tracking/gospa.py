"""How far an estimated set of targets is from the true one."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_positive, described


class Gospa(NamedTuple):
    """``distance``; with alpha = 2 its p-th power is ``localisation + missed + false``, of ``num_missed``
    targets and ``num_false`` estimates. ``pairs`` (n, 2): which estimate is of which target. With another
    alpha the sum has no such parts: they are None, and pairs beyond the cut-off may be among them.

    >>> Gospa(1.0, 1.0, 0.0, 0.0, 0, 0, np.zeros((1, 2), int)).distance
    1.0
    """

    distance: float
    localisation: float | None
    missed: float | None
    false: float | None
    num_missed: int | None
    num_false: int | None
    pairs: np.ndarray


def gospa(estimates: Any, truth: Any, c: float, p: float = 1.0, alpha: float = 2.0) -> Gospa:
    r"""The generalized optimal sub-pattern assignment metric between two finite sets of points.

    .. math:: d(X, Y) = \Big( \min_{\gamma} \sum_{(i, j) \in \gamma} d(x_i, y_j)^p
        + \frac{c^p}{2} (|X| + |Y| - 2 |\gamma|) \Big)^{1/p}

    over assignments γ of at most one to one, with alpha = 2: what is left over is missed or false, c^p / 2
    each. For any alpha, with :math:`|X| \le |Y|`,

    .. math:: d(X, Y) = \Big( \min_{\pi} \sum_{i=1}^{|X|} \min(d(x_i, y_{\pi(i)}), c)^p
        + \frac{c^p}{\alpha} (|Y| - |X|) \Big)^{1/p}

    Distances are Euclidean; the best assignment is found exactly, on the host.

    :param estimates: (n, d).
    :param truth: (m, d).
    :param c: the cut-off, in the unit of the points.
    :param p: at least 1.
    :param alpha: in (0, 2].
    :raises ArgumentError: for points of different dimensions or that are not finite, or a number out of its
        range.

    >>> found = gospa([[0.0, 0.0], [9.0, 9.0]], [[1.0, 0.0]], c=5.0)
    >>> found.distance, found.localisation, found.num_missed, found.num_false
    (3.5, 1.0, 0, 1)

    Source: Rahmathullah, García-Fernández, Svensson 2017, "Generalized optimal sub-pattern assignment
    metric", definition 1 and proposition 1.
    """
    check_positive("gospa: c", c)
    check_positive("gospa: p", p)
    check_positive("gospa: alpha", alpha)
    if p < 1.0 or alpha > 2.0:
        raise ArgumentError(f"gospa: p must be at least 1 and alpha at most 2, got {p:g} and {alpha:g}.")
    x, y = _points("estimates", estimates), _points("truth", truth)
    if len(x) and len(y) and x.shape[1] != y.shape[1]:
        raise ArgumentError(
            f"gospa: estimates have {x.shape[1]} coordinates and truth {y.shape[1]}; take the same of both."
        )
    if not len(x) or not len(y):
        rows = columns = np.zeros(0, int)
        apart = np.zeros(0)
    else:
        every = np.minimum(np.linalg.norm(x[:, None] - y[None], axis=-1), c)
        rows, columns = linear_sum_assignment((every / c) ** p)
        apart = every[rows, columns]
    pairs = np.stack([rows, columns], 1)
    uneven = abs(len(x) - len(y))
    # in units of the largest, since a high power of a distance may be no number
    unit = c if uneven else apart.max(initial=0.0) or c
    distance = float(unit * (((apart / unit) ** p).sum() + uneven / alpha) ** (1.0 / p))
    if alpha != 2.0:
        return Gospa(distance, None, None, None, None, None, pairs)
    near = apart < c
    num_missed, num_false = len(y) - int(near.sum()), len(x) - int(near.sum())
    with np.errstate(over="ignore"):
        close, cut = (apart[near] ** p).sum(), np.float64(c) ** p / 2.0
    missed, false = (cut * n if n else 0.0 for n in (num_missed, num_false))
    return Gospa(distance, float(close), float(missed), float(false), num_missed, num_false, pairs[near])


def _points(name: str, x: Any) -> np.ndarray:
    check_array(f"gospa: {name}", x)
    x = np.asarray(x, float)
    if x.size == 0:
        return x.reshape(0, x.shape[-1] if x.ndim == 2 else 1)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ArgumentError(
            f"gospa: {name} must be points (n, d) that are finite, got {described(x)}. An empty set is an "
            "array without rows; padding is left out."
        )
    return x
