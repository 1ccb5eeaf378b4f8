"""The ArviZ reports of smoothing: of trajectories, and of results that have estimates and no draws.

An ascent, a stream and a discriminative filter have no group ``posterior``: iterates of an optimiser and
moments of a filter are no draws, and R-hat, ESS and quantiles of them would mean nothing.
"""

from typing import Any

import numpy as np

from ppl_ext.diagnostics.likelihood import TIME, Terms
from ppl_ext.diagnostics.report.arviz_export import ESTIMATES, arviz_version, build_report, site_dims
from ppl_ext.diagnostics.report.run_record import name_of, versions
from ppl_ext.diagnostics.sites import describe, observations
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.smoothing.summaries import flat
from ppl_ext.state_space.model import lower


def of_trajectories(result: Any, values, stats, attrs, one_step=None) -> Any:
    """The ArviZ report of a result's trajectories, at its parameters.

    :param values: by latent site, (chain, draw, ...).
    :param stats: by name, (chain, draw, time).
    :param one_step: log p(y_t | y_<t), (chain, draw, time).
    """
    if any(not x.shape[-1] for x in stats.values()):
        raise ModelError(
            "The series is empty, so there is nothing to report by time; the results themselves are in the "
            "fields."
        )
    model, args, kwargs, params = result.model, result.args, result.kwargs, result.params
    one = {name: x[0, 0] for name, x in values.items()}
    # where nothing survived, of integers too: the model is only asked what it looks like
    if any(np.isnan(x).any() for x in one.values()):
        lowered = lower(model, args, kwargs, params)
        known = lowered.initial_sites | lowered.step_sites
        one = {name: np.nan_to_num(x).astype(known[name].dtype) for name, x in one.items()}
    one |= {name: np.asarray(x) for name, x in params.items()}
    sites = describe(model, one, args, kwargs, {})
    terms = {}
    observed = [name for name, site in sites.items() if site.kind == "observed" and site.in_scan]
    if observed and one_step is not None:
        # All that a step observes goes into one term, under the name of the first.
        terms[observed[0]] = Terms(
            one_step, np.zeros(one_step.shape[2:], bool), tuple(observed), (TIME,), True
        )
    given = {f"param_{name}": np.asarray(x) for name, x in params.items()}
    return build_report(
        {
            "posterior": values,
            "sample_stats": stats,
            "observed_data": observations(model, one, args, kwargs, {})[0],
        },
        terms=terms,
        dims={**site_dims(sites), **{name: ["time"] for name in stats}},
        attrs={"model": name_of(model), **attrs, **given, **versions(), "arviz_version": arviz_version()},
    )


def of_ascent(result: Any) -> Any:
    """Write the report of :meth:`~ppl_ext.smoothing.Learned.to_arviz`."""
    trace = flat(result.iterates) | {f"score_{n}": x for n, x in flat(result.scores).items()}
    groups = {"ascent_trace": {n: x[None] for n, x in trace.items()}, ESTIMATES: flat(result.params)}
    return _built(groups, {})


def of_stream(result: Any) -> Any:
    """Write the report of :meth:`~ppl_ext.smoothing.OnlineResult.to_arviz`."""
    found = {"log_evidence": result.log_evidence, "num_steps": result.num_steps}
    found |= {n if n not in found else f"{n}_": x for n, x in flat(result.expectations).items()}
    return _built({ESTIMATES: found}, {}, backward_fallbacks=np.asarray(result.fallbacks))


def of_discriminative(result: Any) -> Any:
    """Write the report of :meth:`~ppl_ext.smoothing.DiscriminativeResult.to_arviz`."""
    if np.ndim(result.mean) != 2:
        raise ArgumentError(
            f"to_arviz: the means have shape {np.shape(result.mean)}, of many series at once; report one: "
            "jax.tree.map(lambda x: x[0], result)."
        )
    axes = {
        "mean": ["time", "state"],
        "covariance": ["time", "state", "state_bis"],
        "guarded": ["time"],
        "mean_0": ["state"],
        "covariance_0": ["state", "state_bis"],
    }
    return _built({ESTIMATES: {name: getattr(result, name) for name in axes}}, axes)


def _built(groups: dict[str, Any], dims: dict[str, list[str]], **attrs: Any) -> Any:
    return build_report(groups, dims=dims, attrs={**attrs, **versions(), "arviz_version": arviz_version()})
