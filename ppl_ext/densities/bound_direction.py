r"""Which way an estimated log density errs, and what linear operations and averages of weights make of it.

A term of a log density may be the log of a random weight w that stands for a density p. By Jensen's
inequality it then errs to one side:

========== ====================== ============================ =========================================
kind       what holds             hence                        where it comes from
========== ====================== ============================ =========================================
unbiased   E[w] = p               E[log w] ≤ log p             ``log_density`` of a marginal
reciprocal E[1/w] = 1/p           E[log w] ≥ log p             ``simulate`` of a marginal, at its draw
lower      E[log w] ≤ log p       the same                     averages of powers of weights
upper      E[log w] ≥ log p       the same                     averages of weights that err upwards
========== ====================== ============================ =========================================

So log p̂ − log q̂ is a lower bound in the mean where p̂ is unbiased and q̂ reciprocal (Burda, Grosse and
Salakhutdinov 2016 for one side, Grosse, Ghahramani and Adams 2015 for both).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ppl_ext.errors import DirectionError


class Estimate(NamedTuple):
    """A term ``power * log w``; power 0 means that its sign is not known while tracing, infinity that its
    size is not.
    """

    kind: str = "exact"
    power: float = 1.0

    def times(self, factor, positive: bool = False) -> "Estimate":
        """The estimate multiplied by a number. By a traced one the direction is lost, unless it is said to be
        positive.
        """
        if self.kind == "exact":
            return self
        try:
            values = np.asarray(factor, dtype=float)
        except Exception:  # a tracer: each kind raises its own type
            return Estimate(self.kind, self.power * float("inf") if positive and self.power else 0.0)
        if not values.any():
            return Estimate()
        if values.ndim:  # scales that differ by element: their sign is one number, their size is not
            values = np.asarray(np.inf if (values > 0).all() else -np.inf if (values < 0).all() else 0.0)
        return Estimate(self.kind, self.power * float(values) if self.power and values else 0.0)

    @property
    def errs(self) -> str:
        """``"exact"``, ``"lower"`` or ``"upper"`` in the mean, or ``"unknown"``.

        >>> Estimate("reciprocal").times(-2.0).errs
        'lower'
        """
        if self.kind == "exact":
            return "exact"
        if self.power == 0:
            return "unknown"
        return "lower" if (self.kind in ("unbiased", "lower")) == (self.power > 0) else "upper"

    @property
    def weighs(self) -> bool:
        """Whether E[exp(term)] is at most the exact one: what a log of an average of weights needs to err
        downwards.
        """
        return (
            self.kind in ("exact", "unbiased", "reciprocal")
            and self.errs in ("exact", "lower")
            and abs(self.power) <= 1
        )

    def __str__(self) -> str:
        if self.power == 0:
            return f"times a number that is only known at run time, {_MEANING[self.kind]}"
        return f"with the sign {'+' if self.power > 0 else '−'}, {_MEANING[self.kind]}"


_MEANING = {
    "unbiased": "estimated without bias (E[w] = p, so log w errs downwards)",
    "reciprocal": "estimated reciprocally (E[1/w] = 1/p, so log w errs upwards)",
    "lower": "as a bound from below",
    "upper": "as a bound from above",
}


def averaged(parts: Iterable[tuple[str, Estimate]]) -> Estimate:
    """What a log of an average of weights is, whose terms (site and estimate) are these.

    :raises DirectionError: if it would err to neither side for certain.
    """
    estimates = [(site, e) for site, e in parts if e.kind != "exact"]
    if not estimates:
        return Estimate()
    if all(e.weighs for _, e in estimates):
        return Estimate("unbiased" if all(abs(e.power) == 1 for _, e in estimates) else "lower")
    if all(e.errs == "upper" for _, e in estimates):
        return Estimate("upper")  # a log of a sum of exponentials is convex
    raise DirectionError(
        f"This average of weights would be no bound. {_listed(estimates)}. A weight wants unbiased "
        f"densities above the line and reciprocal ones below, to a power of at most one. {_REMEDY} To "
        "average the numbers all the same, pass an array: `.total`."
    )


def powered(order: float) -> Callable[[Iterable[tuple[str, Estimate]]], Estimate]:
    r"""What the log of :math:`\mathbb{E}[w^n]`, n ≥ 1, is for such terms of log w: a bound from above, since
    x ↦ xʳ is convex for r ≥ 1 and r ≤ 0.

    :raises DirectionError: if a term is of another kind, so that it would err to neither side for certain.
    """

    def direction(parts: Iterable[tuple[str, Estimate]]) -> Estimate:
        estimates = [(site, e) for site, e in parts if e.kind != "exact"]
        for site, e in estimates:
            power = order * e.power * (-1 if e.kind == "reciprocal" else 1)
            convex = e.kind in ("unbiased", "reciprocal") and e.power != 0 and (power >= 1 or power <= 0)
            if not (convex or e.errs == "upper"):
                raise DirectionError(
                    f"A power of this weight would be no upper bound. {_listed([(site, e)])}."
                )
        return Estimate("upper") if estimates else Estimate()

    return direction


def require(direction: str, parts: Iterable[tuple[str, Estimate]]) -> None:
    """:raises DirectionError: unless every term is exact or errs in this direction."""
    wrong = [(site, e) for site, e in parts if e.errs not in ("exact", direction)]
    if wrong:
        way = {"lower": "+ unbiased − reciprocal", "upper": "+ reciprocal − unbiased"}[direction]
        raise DirectionError(
            f"This would not be a {direction} bound, which takes {way}. {_listed(wrong)}. {_REMEDY}"
        )


def _listed(parts: Iterable[tuple[str, Estimate]]) -> str:
    return "; ".join(dict.fromkeys(f"'{site}' enters {e}" for site, e in parts))


_REMEDY = (
    "Score given values by `log_density` (unbiased); score a program's own draw by the `log_density` that "
    "`simulate` returned with it (reciprocal, unless the program has observed or rescaled sites: then use "
    "`normalize`); or use an exact algorithm such as Enumeration."
)
