"""Two tempered runs from different starts, compared."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ppl_ext.runtime.results import number
from ppl_ext.runtime.verdict import Reason

SHIFT, RATIO = 0.3, 1.3
"""Means that differ by more standard deviations, or standard deviations by a larger factor, do not agree."""

PRIOR = "the prior"
"""What a run that starts from it says that it started from."""

AT_LEAST = 0.2
"""Log evidences that differ by less agree, whatever their noise: it is a guess."""


class Side(NamedTuple):
    """One of two runs: what it started from, its log evidence and a guess of its standard deviation, and its
    draws (draw, ...) by site.
    """

    start: str
    log_evidence: float
    spread: float
    values: Mapping[str, np.ndarray]


class Apart(NamedTuple):
    """The site at which two sets of draws differ most: by ``shift`` of the smaller standard deviation in a
    mean, and by a factor of ``ratio`` in standard deviations. ``far``: beyond what is allowed, and noise.
    """

    site: str
    shift: float
    ratio: float
    far: bool


def apart(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> Apart:
    """How far draws (draw, ...) of two runs are apart, where they are so most.

    >>> draws = np.random.default_rng(0).normal(size=(2, 1000))
    >>> apart({"z": draws[0]}, {"z": draws[1]}).far, apart({"z": draws[0]}, {"z": draws[1] + 1.0}).far
    (False, True)
    """
    worst, worst_excess = Apart("", 0.0, 1.0, False), -1.0
    for name, x in one.items():
        a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (x, two[name]))
        noise = 3.0 * math.sqrt(1.0 / len(a) + 1.0 / len(b))
        sd = np.stack([a.std(0), b.std(0)])
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = np.abs(a.mean(0) - b.mean(0)) / sd.min(0)
            ratio = sd.max(0) / sd.min(0)
        shift, ratio = np.where(np.isnan(shift), 0.0, shift), np.where(np.isnan(ratio), 1.0, ratio)
        excess = np.maximum(shift / (SHIFT + noise), np.log(ratio) / (math.log(RATIO) + noise))
        at = int(np.argmax(excess))
        if excess[at] > worst_excess:
            worst_excess = float(excess[at])
            worst = Apart(name, float(shift[at]), float(ratio[at]), worst_excess > 1.0)
    return worst


def compared(taken: Side, other: Side) -> Reason:
    """What a run beside says of the one whose draws are taken."""
    if not math.isfinite(other.log_evidence):
        return alone(taken.start, f"a run from {other.start} found no possible particle")
    from_each = [f"{number(s.log_evidence)} from {s.start}" for s in (taken, other)]
    evidences = f"log evidence {', '.join(from_each)}"
    noise = math.hypot(taken.spread, other.spread)
    found = apart(taken.values, other.values)
    if abs(taken.log_evidence - other.log_evidence) > max(3.0 * noise, AT_LEAST):
        if taken.start == PRIOR:
            return Reason("good", f"{evidences}: the prior's draws cover what the guide missed")
        return Reason(
            "unknown",
            f"{evidences}: the prior's run lost its way, and tells nothing of what lies far from the guide; "
            "take more particles, or moves=NUTS",
        )
    where = (
        f"by {found.shift:.2f} standard deviations in a mean, and a factor of {found.ratio:.2f} in a spread"
    )
    if found.far:
        return Reason(
            "doubtful",
            f"{evidences}, and yet '{found.site}' differs {where}: take more particles, or moves=NUTS",
        )
    return Reason("good", f"two starts agree: {evidences}; '{found.site}' differs most, {where}")


def alone(start: str, why: str | None = None) -> Reason:
    """What the start of a run says of it where nothing was beside."""
    remedy = "compare with a run from the prior" if why is None else f"no run from the prior: {why}"
    missed = "what lies far from it, another peak or a heavy tail, may not be found"
    return Reason("unknown", f"started from {start}: {missed}; {remedy}")
