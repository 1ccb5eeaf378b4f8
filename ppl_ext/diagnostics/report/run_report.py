"""The report of one run: its groups, the terms that exist, and why others do not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ppl_ext.diagnostics.feeding import feeding_sites
from ppl_ext.diagnostics.likelihood import Terms, Units, pointwise
from ppl_ext.diagnostics.report.run_record import RunRecord, versions
from ppl_ext.diagnostics.sites import Site, describe, observations, refuse_chains, refuse_series
from ppl_ext.errors import ArgumentError, ModelError


def report_of(
    run: RunRecord,
    rng_key: jax.Array | None,
    groups: Mapping[str, Any],
    *,
    log_likelihood: bool | None,
    posterior_predictive: bool | Mapping[str, Any],
    dims: Mapping[str, Sequence[str]] | None,
    pred_dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Any] | None,
) -> Any:
    """What :func:`ppl_ext.to_arviz` returns, whose options these are.

    :param groups: of the report, as they were given.
    """
    from ppl_ext.diagnostics.report.arviz_export import arviz_version, build_report, site_dims

    every: dict[str, Any] = {
        "posterior": run.values,
        "sample_stats": run.sample_stats,
        "vi_trace": run.traces,
        **groups,
    }
    attrs, names = dict(run.attrs), {}
    terms: dict[str, Terms] = {}
    if run.model is not None:
        one, here = {n: x[0, 0] for n, x in run.values.items()}, jax.tree.map(lambda x: x[0], run.params)
        sites = describe(run.model, one, run.args, run.kwargs, here)
        names = site_dims(sites)
        every["observed_data"] = observations(run.model, one, run.args, run.kwargs, here)[0]
        if log_likelihood is not False:
            terms, omitted = _terms(run, run.model, sites, one, here)
            if omitted is not None and log_likelihood:
                raise omitted
            attrs["log_likelihood_omitted"] = None if omitted is None else str(omitted)
        if posterior_predictive is True:
            from ppl_ext.diagnostics.report.predicted import replicates

            key = jax.random.fold_in(jax.random.key(0) if rng_key is None else rng_key, 1)
            posterior_predictive = replicates(run.model, run.values, run.params, key, run.args, run.kwargs)
    elif posterior_predictive is True:
        raise ArgumentError("posterior_predictive=True needs the model; this run has none. Pass model=...")
    if posterior_predictive:
        every["posterior_predictive"] = posterior_predictive
    attrs |= versions() | {"arviz_version": arviz_version()}
    asked = list(dims or {})
    return build_report(
        every,
        terms=terms,
        dims={**names, **(dims or {})},
        pred_dims=pred_dims,
        coords=coords,
        attrs=attrs,
        asked=asked,
    )


def _terms(
    run: RunRecord,
    model: Callable,
    sites: Mapping[str, Site],
    one: Mapping[str, Any],
    here: Mapping[str, Any],
) -> tuple[dict[str, Terms], ModelError | None]:
    """The terms of the log likelihood, and why they are none, or none for leave-one-out."""
    chained = [n for n, s in sites.items() if s.finite and s.in_scan]
    num_draws = next(iter(run.values.values())).shape[1] if run.values else 1
    terms: dict[str, Terms] = {}
    try:
        units: Units = "one_step" if chained else "independent"
        terms = pointwise(
            model, run.values, run.args, run.kwargs, params=run.params, num_draws=num_draws, units=units
        )
        linked = any(t.one_step for t in terms.values())
        series = feeding_sites(model, one, run.args, run.kwargs, here, sites) if terms else frozenset()
        terms = {
            n: t._replace(one_step=t.one_step or not series.isdisjoint(t.sites)) for n, t in terms.items()
        }
        if linked:
            refuse_chains(chained)
        refuse_series(sorted(series))
    except ModelError as error:
        return terms, error
    return terms, None
