"""Tracks as an ArviZ report."""

from typing import Any

from ppl_ext.diagnostics.report.arviz_export import ESTIMATES, arviz_version, build_report
from ppl_ext.diagnostics.report.run_record import versions

AXES = {
    "existence": ["time", "slot"],
    "mean": ["time", "slot", "state"],
    "covariance": ["time", "slot", "state", "state_bis"],
    "label": ["time", "slot"],
    **dict.fromkeys(("undetected", "log_increments", "residual", "crowded", "lost"), ["time"]),
}


def of_tracks(tracks: Any) -> Any:
    """Write the report of :meth:`~ppl_ext.smoothing.tracking.Tracks.to_arviz`."""
    groups = {ESTIMATES: {name: getattr(tracks, name) for name in AXES}}
    return build_report(groups, dims=AXES, attrs={**versions(), "arviz_version": arviz_version()})
