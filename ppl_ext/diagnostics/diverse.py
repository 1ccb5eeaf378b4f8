"""A few of many draws that show what there is, rare kinds too."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from ppl_ext.designs.projection_dpp import ProjectionDPP
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, check_key, check_values, described

MOST = 4000
"""Draws whose distances to each other are kept in memory."""


def diverse_subset(draws: Any, k: int, method: str = "farthest", *, rng_key: Any = None) -> np.ndarray:
    r"""Which k of n draws to look at, so that rare modes are among them.

    k plain draws miss a mode of probability p with probability :math:`(1 - p)^k`. Here draws are points,
    every coordinate in units of its standard deviation, and

    - ``"farthest"``: begin with the draw nearest the median, and go on to the one farthest from those before:
      :math:`\arg\max_x \min_{s \in S} \|x - s\|`. Every draw is then at most twice as far from the subset as
      it would be from the best one. It goes to the extremes.
    - ``"kmeans"``: the draws nearest the centres of a k-means whose draws weigh :math:`1/\hat p(x)`, so that
      it sees where draws are, and not how many; :math:`\hat p` is a Gaussian kernel estimate. They are
      typical of their regions.
    - ``"dpp"``: a draw of the :class:`~ppl_ext.designs.ProjectionDPP` on the k leading eigenvectors of
      :math:`D^{-1/2} K D^{-1/2}`, with K the Gaussian kernel of the draws and D its row sums. At random, so
      that repeated it shows others. Each of up to k modes that K keeps apart has an eigenvector of its own,
      and is drawn from with certainty.

    The width of both kernels is the median distance to the :math:`\lceil\sqrt n\rceil`-th neighbour. These
    two keep n² distances, of at most 4,000 different draws.

    :param draws: an array (n, ...), or a dict of them by site, n the same; all chains in one axis.
    :param k: how many.
    :param rng_key: for ``"dpp"``.
    :return: (k,) indices of draws, all different; with ``"farthest"`` in the order in which they are chosen.
    :raises ArgumentTypeError: for draws that are no arrays of numbers, or a missing key.
    :raises ArgumentError: for an unknown method, sites of different lengths, draws that are not finite, fewer
        different draws than k, or more than can be kept; it names the site.

    >>> draws = np.concatenate([np.linspace(-1, 1, 95), np.linspace(9, 10, 5)])  # a mode of 5 %
    >>> chosen = diverse_subset(draws, 3)
    >>> draws[chosen].round(1).tolist()
    [0.0, 10.0, -1.0]

    Source: Cohen, Manor, Bahat, Michaeli 2024, "From posterior sampling to meaningful diversity in image
    restoration".
    """
    where = "diverse_subset"
    check_count(f"{where}: k", k)
    if method not in _METHODS:
        raise ArgumentError(f"{where}: method must be one of {', '.join(_METHODS)}, got {described(method)}.")
    if method == "dpp":
        check_key(f"{where}: rng_key", rng_key)
    points, which = np.unique(_as_points(draws), axis=0, return_index=True)
    if len(points) < k:
        raise ArgumentError(
            f"{where}: {k} draws are asked for, and only {len(points)} of those given differ. Ask "
            "for fewer, or give more draws."
        )
    if method != "farthest" and len(points) > MOST:
        raise ArgumentError(
            f"{where}: method '{method}' takes at most {MOST} different draws, got {len(points)}. Thin them, "
            "such as to every tenth, or use method 'farthest', which takes any number."
        )
    return which[_METHODS[method](points, int(k), rng_key)]


def _as_points(draws: Any) -> np.ndarray:
    """The draws as rows (n, d), every coordinate in units of its standard deviation."""
    sites = draws if isinstance(draws, dict) else {"draws": draws}
    check_values("diverse_subset: draws", sites)
    if not sites:
        raise ArgumentError("diverse_subset: draws is empty.")
    columns, num = [], None
    for name, value in sites.items():
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value)):
            raise ArgumentTypeError(f"diverse_subset: '{name}' is traced by jit; call it outside.")
        for leaf in jax.tree.leaves(value):
            x = np.asarray(leaf, np.float64)
            num = num if num is not None or not x.ndim else len(x)
            if not x.ndim or len(x) != num or not num:
                raise ArgumentError(
                    f"diverse_subset: '{name}' must have one entry for each of the {num or 0} draws, got "
                    f"{described(x)}."
                )
            if not np.isfinite(x).all():
                raise ArgumentError(f"diverse_subset: '{name}' must be finite; leave out draws that are not.")
            columns.append(x.reshape(num, -1))
    points = np.concatenate(columns, 1)
    spread = points.std(0)
    return points / np.where(spread > 0, spread, 1.0)


def _farthest(points: np.ndarray, k: int, _: Any = None) -> np.ndarray:
    chosen = [int(((points - np.median(points, 0)) ** 2).sum(1).argmin())]
    away = np.full(len(points), np.inf)
    for _ in range(k - 1):
        away = np.minimum(away, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(away.argmax()))
    return np.array(chosen)


def _kernel(points: np.ndarray) -> np.ndarray:
    distances = cdist(points, points)
    neighbour = min(int(np.ceil(len(points) ** 0.5)), len(points) - 1)
    width = np.median(np.partition(distances, neighbour, axis=1)[:, neighbour])
    return np.exp(-0.5 * (distances / (width or 1.0)) ** 2)


def _kmeans(points: np.ndarray, k: int, _: Any = None) -> np.ndarray:
    weights = 1.0 / _kernel(points).sum(1)
    centres, label = points[_farthest(points, k)], None
    while True:
        # in no round is the weighted sum of squares larger than before, so that it ends
        nearest = cdist(points, centres, "sqeuclidean").argmin(1)
        if label is not None and (nearest == label).all():
            break
        label = nearest
        for j in set(label):
            own = label == j
            centres[j] = np.average(points[own], axis=0, weights=weights[own])
    away = cdist(points, centres, "sqeuclidean")
    chosen: list[int] = []
    for j in range(k):  # a centre that lost all its draws takes the nearest that is left
        away[chosen] = np.inf
        own = np.where(label == j, away[:, j], np.inf)
        chosen.append(int((own if np.isfinite(own).any() else away[:, j]).argmin()))
    return np.array(chosen)


def _dpp(points: np.ndarray, k: int, rng_key: Any) -> np.ndarray:
    kernel = _kernel(points)
    scale = kernel.sum(1) ** -0.5
    vectors = eigh(scale[:, None] * kernel * scale, subset_by_index=[len(points) - k, len(points) - 1])[1]
    return np.asarray(_drawn(ProjectionDPP(vectors), rng_key))


_drawn = jax.jit(lambda law, rng_key: law.sample(rng_key))

_METHODS: dict[str, Callable] = {"farthest": _farthest, "kmeans": _kmeans, "dpp": _dpp}
