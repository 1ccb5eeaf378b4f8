"""The report every inference gives, as ArviZ reads it. Only this module knows ArviZ 0.23 from 1.x.

ArviZ 0.23 (what Python 3.11 gets) keeps a report in an ``InferenceData``, ArviZ 1.x in an xarray
``DataTree``. Both hold one xarray ``Dataset`` per group, so the datasets are built here and only the
container differs.
"""

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_ext.diagnostics.likelihood import TIME, Terms
from ppl_ext.diagnostics.sites import Site
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import described

SAMPLE_GROUPS = (
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "sample_stats",
    "log_likelihood",
    "predictions",
)
ESTIMATES = "estimates"
"""The group of what is no draw and no data: point estimates, moments by time, scores by episode."""
DATA_GROUPS = ("observed_data", "constant_data", "predictions_constant_data", ESTIMATES, "ranks")
TRACES = ("vi_trace", "ascent_trace")
PREDICTION_GROUPS = ("predictions", "predictions_constant_data")
ONE_STEP = "log_predictive_one_step"
"""The group of terms log p(y_t | y_<t). Not in ``log_likelihood``, where ``arviz.loo`` would take them for
something else.
"""
RESERVED = ("chain", "draw", "step")

Arrays = Mapping[str, Any]


def build_report(
    groups: Mapping[str, Arrays | None],
    *,
    terms: Mapping[str, Terms] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    pred_dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    asked: Sequence[str] = (),
) -> Any:
    """Build the ArviZ report from plain dictionaries of arrays.

    :param groups: by group, arrays by variable. Groups of draws (posterior, posterior_predictive, prior,
        prior_predictive, predictions, sample_stats) are (chain, draw, ...); observed_data, both
        constant_data, estimates and ranks are plain; vi_trace and ascent_trace are (chain, step, ...). Empty
        groups are left out. A "/" in a name, which netCDF keeps for itself, becomes a ".".
    :param terms: the log likelihood. Masked elements are dropped, since leave-one-out would count them: such
        a variable has one axis ``<site>_seen``, labelled by what is left of the plate (or, over several axes,
        by one coordinate ``<site>_<axis>`` each). One-step-ahead terms go to a group of their own,
        :data:`ONE_STEP`, with a note.
    :param dims: by variable, the names of the axes behind the group's own; by default ``<variable>_dim_0``
        and so on.
    :param coords: by axis name, labels; by default 0, 1, 2, ...
    :param attrs: what to write on the report and on its posterior. ``None`` values are left out.
    :param pred_dims: as ``dims``, of the groups of predictions, where it goes before them.
    :param asked: names in ``dims`` that a user gave: like those of ``pred_dims`` and ``coords``, each must
        fit something.
    :raises ArgumentError: if an axis has not as many labels as entries, a file does not keep labels such as
        these, or a name that was asked for fits nothing.
    :return: ``arviz.InferenceData`` with ArviZ 0.23, ``xarray.DataTree`` with 1.x.

    >>> import numpy as np
    >>> report = build_report({"posterior": {"mu": np.zeros((2, 5, 3))}}, dims={"mu": ["country"]})
    >>> dict(report.posterior["mu"].sizes)
    {'chain': 2, 'draw': 5, 'country': 3}
    """
    dims, pred_dims, coords = (
        dict(dims or {}),
        dict(pred_dims or {}),
        {axis: _labels(axis, labels) for axis, labels in (coords or {}).items()},
    )
    datasets: dict[str, xr.Dataset] = {}
    for group, variables in groups.items():
        leading = () if group in DATA_GROUPS else ("chain", "step" if group in TRACES else "draw")
        here = {**dims, **pred_dims} if group in PREDICTION_GROUPS else dims
        arrays = [
            _array(name, x, leading, here.get(name), coords, group) for name, x in (variables or {}).items()
        ]
        if arrays:
            datasets[group] = _dataset(arrays)
    terms = {name: t for name, t in (terms or {}).items() if not t.masked.all()}
    for group, one_step in (("log_likelihood", False), (ONE_STEP, True)):
        chosen = [_likelihood(name, t, dims, coords) for name, t in terms.items() if t.one_step is one_step]
        if chosen:
            datasets[group] = _dataset(chosen)
    of_terms = [*terms, *(n for t in terms.values() for n in t.sites)]
    _check_names("dims", {n: dims[n] for n in asked}, datasets, of_terms)
    _check_names("pred_dims", pred_dims, {g: datasets[g] for g in PREDICTION_GROUPS if g in datasets}, [])
    _check_axes(coords, datasets)
    attributes = _attributes(attrs or {})
    if "posterior" in datasets:
        datasets["posterior"].attrs.update(attributes)
    return _container(datasets, attributes)


def _check_names(
    option: str,
    dims: Mapping[str, Sequence[str]],
    datasets: Mapping[str, xr.Dataset],
    of_terms: Sequence[str],
) -> None:
    """Whether each name is one of a variable, with as many axes at least."""
    ranks: dict[str, int] = dict.fromkeys(map(_name, of_terms), 0)
    for group, dataset in datasets.items():
        for name, x in dataset.data_vars.items():
            ranks[str(name)] = max(ranks.get(str(name), 0), x.ndim - (0 if group in DATA_GROUPS else 2))
    where = "prediction" if option == "pred_dims" else "report"
    for name, axes in dims.items():
        if _name(name) not in ranks:
            shown = ", ".join(sorted(ranks)) or "none"
            raise ArgumentError(
                f"{option} names '{name}', which is no variable of the {where}. There are: {shown}."
            )
        if len(axes) > ranks[_name(name)]:
            raise ArgumentError(
                f"{option} names {len(axes)} axes of '{name}', which has {ranks[_name(name)]}: "
                f"{', '.join(axes)}."
            )


def _check_axes(coords: Mapping[str, Any], datasets: Mapping[str, xr.Dataset]) -> None:
    axes = {str(d) for dataset in datasets.values() for d in dataset.dims}
    for name in coords:
        if _name(name) not in axes:
            shown = ", ".join(sorted(axes - {"chain", "draw", "step"})) or "none"
            raise ArgumentError(f"coords names '{name}', which is no axis of the report. There are: {shown}.")


_KINDS = dict(
    b="truth values",
    i="numbers",
    u="numbers",
    f="numbers",
    c="numbers",
    U="strings",
    S="strings",
    M="dates",
    m="spans",
)


def _labels(axis: str, labels: Any) -> np.ndarray:
    """Labels that a file keeps: all strings, or all numbers, or all dates."""
    kinds = {
        _KINDS.get(np.asarray(x).dtype.kind) or ("dates" if isinstance(x, datetime.date) else described(x))
        for x in labels
    }
    lost = sorted(kinds - set(_KINDS.values()))
    if lost or len(kinds) > 1:
        found = f"{lost[0]}, among others" if lost else " and ".join(sorted(kinds))
        raise ArgumentError(
            f"The labels of the axis '{axis}' are {found}; a netCDF file keeps labels that are all strings, "
            "all numbers or all dates. Give strings: list(map(str, labels))."
        )
    return np.asarray(labels)


def site_dims(sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """Names for the axes of each site: its plates, ``time`` for the steps of a ``scan``, the user's event
    names, else ``<site>_dim_0`` and so on. Scans of other lengths than the first get ``time_<length>``."""
    lengths = [s.shape[0] for s in sites.values() if s.in_scan and s.shape]
    return {
        s.name: _site_dims(s, sites, lengths[:1])
        for s in sites.values()
        if s.kind not in ("param", "mutable")
    }


def _site_dims(site: Site, sites: Mapping[str, Site], lengths: Sequence[int]) -> list[str]:
    names: list[str | None] = [None] * len(site.shape)
    batch = len(site.shape) - site.event_ndim
    for plate in site.plates:
        axis = batch + plate.dim
        if 0 <= axis and site.shape[axis] == plate.size:
            names[axis] = _free(plate.name, "_plate", sites)
    if site.in_scan and names and names[0] is None:
        names[0] = _free("time" if site.shape[0] == lengths[0] else f"time_{site.shape[0]}", "_axis", sites)
    if site.event_dims and len(site.event_dims) == site.event_ndim:
        names[batch:] = [_free(name, "_event", sites) for name in site.event_dims]
    count = iter(range(len(names)))
    return [f"{site.name}_dim_{next(count)}" if name is None else name for name in names]


def _free(name: str, suffix: str, sites: Mapping[str, Site]) -> str:
    """xarray takes a variable named like an axis for that axis's labels."""
    return name + suffix if name in sites or name in RESERVED else name


def _name(name: str) -> str:
    return name.replace("/", ".")


def _array(
    name: str, x: Any, leading: tuple[str, ...], dims: Sequence[str] | None, coords: Mapping, group: str = ""
) -> xr.DataArray:
    x = np.asarray(x)
    rest = x.shape[len(leading) :]
    names = list(dims or [])[: len(rest)]
    names += [f"{name}_dim_{i}" for i in range(len(rest) - len(names))]
    labels = {}
    for axis, size in zip(names, rest, strict=True):
        if axis in coords and len(coords[axis]) != size:
            apart = (
                f" of the {group}. Name an axis of their own by pred_dims."
                if group in PREDICTION_GROUPS
                else "."
            )
            raise ArgumentError(
                f"coords has {len(coords[axis])} labels for the axis '{axis}', which has length {size} in "
                f"'{name}'{apart}"
            )
        labels[_name(axis)] = coords.get(axis, np.arange(size))
    for axis, size in zip(leading, x.shape, strict=False):
        labels[axis] = np.arange(size)
    return xr.DataArray(x, dims=[*leading, *map(_name, names)], coords=labels, name=_name(name))


def _likelihood(name: str, term: Terms, dims: Mapping[str, Sequence[str]], coords: Mapping) -> xr.DataArray:
    if term.plates is None:
        axes = list(dims.get(term.sites[0], []))[: term.masked.ndim]
    else:
        axes = [p if not p.startswith("_pyro_dim") else f"{name}_dim_{i}" for i, p in enumerate(term.plates)]
        axes = [dims[term.sites[0]][0] if p == TIME else p for p in axes]
    # In float32 ArviZ's importance weights of bad draws underflow, and a hopeless k-hat of 24 reads as 0.05.
    values = term.values.astype(np.float64)
    whole = _array(name, values, ("chain", "draw"), axes, coords)
    if term.one_step:
        whole.attrs["terms"] = "log p(y_t | y_<t, parameters), one step ahead: not for leave-one-out"
    if not term.masked.any():
        return whole
    axes = [str(d) for d in whole.dims[2:]]
    seen = f"{_name(name)}_seen"
    kept = np.nonzero(~term.masked)
    labels: dict[str, Any] = {"chain": whole["chain"].values, "draw": whole["draw"].values}
    if len(axes) == 1:
        labels[seen] = whole[axes[0]].values[kept[0]]
    else:
        labels[seen] = np.arange(len(kept[0]))
        labels |= {f"{_name(name)}_{a}": (seen, whole[a].values[i]) for a, i in zip(axes, kept, strict=True)}
    dims_seen = ["chain", "draw", seen]
    return xr.DataArray(
        values[:, :, ~term.masked], dims=dims_seen, coords=labels, name=_name(name), attrs=whole.attrs
    )


def _dataset(arrays: Sequence[xr.DataArray]) -> xr.Dataset:
    """One dataset; an axis whose size or labels another variable disputes is renamed after its variable."""
    taken: dict[str, np.ndarray] = {}
    variables: dict[str, xr.DataArray] = {}
    for x in arrays:
        renames = {}
        for axis in map(str, x.dims):
            labels = x[axis].values
            if axis in taken and not np.array_equal(taken[axis], labels):
                renames[axis] = f"{x.name}_{axis}"
            else:
                taken[axis] = labels
        variables[str(x.name)] = x.rename(renames) if renames else x
    return xr.Dataset(variables)


def _attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """netCDF holds strings, numbers and flat arrays of them."""
    out: dict[str, Any] = {}
    for name, value in attrs.items():
        if value is None:
            continue
        if isinstance(value, str):
            out[name] = value
            continue
        array = np.asarray(value)
        if array.dtype.kind == "b":
            array = array.astype(np.int64)
        out[name] = (
            str(value)
            if array.dtype.kind not in "iuf"
            else array.item()
            if array.ndim == 0
            else array.ravel()
        )
    return out


def _container(datasets: dict[str, xr.Dataset], attrs: dict[str, Any]) -> Any:
    import arviz  # seconds, and with 0.23 a warning: only those who export pay

    # Asking 1.x whether it has an InferenceData would make it warn.
    if arviz.__version__.startswith("0."):
        groups: dict[str, Any] = dict(datasets)
        return arviz.InferenceData(attrs=attrs, **groups)
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs = attrs
    return tree


def variables_of(report: Any) -> dict[str, list[str]] | None:
    """Names of the variables by group; ``None`` if this is no report."""
    if isinstance(report, xr.DataTree):
        return {name: list(map(str, node.data_vars)) for name, node in report.children.items()}
    import arviz

    if not arviz.__version__.startswith("0.") or not isinstance(report, arviz.InferenceData):
        return None
    return {name: list(map(str, report[name].data_vars)) for name in report.groups()}


def arviz_version() -> str:
    import arviz

    return arviz.__version__


def report_path(path: Any) -> Path:
    """Where a result is to be saved, looked at before anything is computed for it.

    :raises ArgumentTypeError: if it is no name of a file.
    :raises ArgumentError: if it is a folder, or in one that does not exist.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ArgumentTypeError(f"save: path must be the name of a file, got {described(path)}.")
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(f"save: path '{path}' must name a file in a folder that exists.")
    return path


def write_report(report: Any, path: str | os.PathLike) -> Path:
    """Write a report as netCDF: to a file beside ``path``, then renamed, so that ``path`` is never half a
    report.

    ``arviz.from_netcdf`` reads it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        report.to_netcdf(str(partial), engine="h5netcdf")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
