"""Draws of data: replicates of what was observed, and predictions for rows that were not."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from numpyro.handlers import seed, trace

from ppl_ext.diagnostics.chunks import default_chunk, map_draws, over_draws
from ppl_ext.diagnostics.depending import depending
from ppl_ext.diagnostics.sites import FullPlates, Site, Unconditioned, describe, given, messages_at
from ppl_ext.errors import ArgumentError, ModelError


def replicates(
    model: Callable,
    draws: Mapping[str, Any],
    params: Mapping[str, Any],
    rng_key: jax.Array,
    args: tuple,
    kwargs: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Replicated data: the observed sites drawn anew on the full plates, (chain, draw, *site shape).

    Finite latent sites are drawn anew too, as the log likelihood sums them out.
    """
    _refuse_none(draws, "Replicated data")
    one, here = _first(draws, params)
    sites = describe(model, one, args, kwargs, here)
    latent = {
        n: x for n, x in draws.items() if n in sites and sites[n].kind == "latent" and not sites[n].finite
    }
    observed = [n for n, s in sites.items() if s.kind == "observed"]

    def anew(values, params):
        return Unconditioned(given(model, values, params))

    return _runs(anew, observed, latent, draws, params, rng_key, args, kwargs, sites)


def predictions(
    model: Callable,
    draws: Mapping[str, Any],
    params: Mapping[str, Any],
    rng_key: jax.Array,
    args: tuple,
    kwargs: Mapping[str, Any],
    redraw: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    r"""Draws (chain, draw, ...) of what a model run on other arguments does not know.

    .. math:: \tilde y_s \sim p(\tilde y \mid \theta_s), \qquad \theta_s \text{ the posterior draws}

    Sites with posterior draws have these values; what has data there is conditioned on; all else is drawn:
    data that are ``None``, finite sites, sites that are new, and the latent sites named by ``redraw``.
    Deterministic sites are among the results. Data that are given may not depend on a site that is drawn:
    that would be a draw from its prior, whatever the data say.
    """
    _refuse_none(draws, "Predictions")
    _, here = _first(draws, params)
    sites = describe(model, {}, args, kwargs, here)
    latent = {n: np.asarray(x) for n, x in draws.items() if n in sites and sites[n].kind == "latent"}
    if unknown := sorted(set(redraw) - set(latent)):
        raise ArgumentError(
            f"predict: redraw names '{unknown[0]}', which is no latent site with draws. There are: "
            f"{', '.join(sorted(latent))}."
        )
    latent = {n: x for n, x in latent.items() if n not in redraw}
    for name, x in latent.items():
        if x.shape[2:] != sites[name].shape:
            raise ArgumentError(
                f"predict: the latent site '{name}' has shape {sites[name].shape} for these arguments, and "
                f"draws of shape {x.shape[2:]}. {_remedy(sites[name])}"
            )
    drawn = [n for n, s in sites.items() if s.kind == "latent" and n not in latent and not s.auxiliary]
    given_data = [n for n, s in sites.items() if s.kind in ("observed", "factor")]
    _refuse_upstream(model, drawn, given_data, latent, args, kwargs, here)
    kept = [n for n, s in sites.items() if s.kind in ("deterministic", "observed") or n in drawn]
    found = _runs(partial(given, model), kept, latent, draws, params, rng_key, args, kwargs, sites)
    # A series whose first steps alone have data is observed as a whole, and drawn in part.
    data = [n for n in given_data if n in found and (found[n] == found[n][:1, :1]).all()]
    found = {n: x for n, x in found.items() if n not in data}
    if all(sites[n].kind == "deterministic" for n in found) and (data or not found):
        raise ArgumentError(
            "predict: with these arguments nothing is drawn; pass None for the data that are to be predicted."
        )
    return found


def _remedy(site: Site) -> str:
    if site.in_scan:
        return (
            "A step elsewhere knows of the data only in a run of its own: run again with all the steps that "
            "are wanted (of priors.markov, also_at=). "
            f"redraw=['{site.name}'] draws a new series, given the other sites alone."
        )
    return (
        f"If it belongs to rows that are new, redraw=['{site.name}'] draws it from the model, given the "
        "other sites."
    )


def warn_of_other_rows(run: Any, args: tuple, kwargs: Mapping[str, Any], redraw: Sequence[str]) -> None:
    """Draws of a site of rows, or of a series, are for those of the run. That others are asked for shows in
    its law.

    :param run: a record of it (:mod:`ppl_ext.diagnostics.report.run_record`).
    :param args: with ``kwargs``, the arguments of the prediction.
    """
    one, here = _first(run.values, run.params)
    sites = describe(run.model, one, run.args, run.kwargs, here)
    latent = [s for s in sites.values() if s.kind == "latent" and not s.auxiliary]
    rows = {p.name for s in sites.values() if s.kind == "observed" for p in s.plates}
    of_rows = [s for s in latent if s.in_scan or not rows.isdisjoint(p.name for p in s.plates)]
    of_rows = [s for s in of_rows if s.name not in redraw]
    if not of_rows or any(s.name not in one for s in latent):  # what is drawn now may move any law
        return
    before = messages_at(run.model, one, run.args, run.kwargs, here)
    after = messages_at(run.model, one, args, kwargs, here)
    for site in of_rows:
        laws = [m[site.name]["fn"].log_prob(m[site.name]["value"]) for m in (before, after) if site.name in m]
        if not np.allclose(laws[0], laws[-1], 1e-4, 1e-4, equal_nan=True):
            warnings.warn(
                f"predict: with these arguments '{site.name}' has another law than in the run, and its draws "
                f"are for the rows or steps of the run. {_remedy(site)}",
                stacklevel=3,
            )
            return


def refuse_lost_data(
    what: str,
    model: Callable,
    of_run: tuple[tuple, Mapping],
    asked: tuple[tuple, Mapping],
    params: Mapping[str, Any],
) -> None:
    """A report is of data: those of the run, or others in their place. A finite site that has lost its data
    would be summed out in silence.

    :param of_run: the arguments of the run; ``asked``: those of the report.
    """
    before, after = (describe(model, {}, args, kwargs, params) for args, kwargs in (of_run, asked))
    if lost := [
        n for n, s in before.items() if s.kind == "observed" and n in after and after[n].kind == "latent"
    ]:
        raise ArgumentError(
            f"{what}: '{lost[0]}' had data in the run and has none with these model_args. Rows without data "
            "are predicted: predictions=ppl_ext.predict(rng_key, result, ...)."
        )


def _refuse_upstream(model, drawn, given_data, latent, args, kwargs, params) -> None:
    if not drawn or not given_data:
        return
    shapes = {n: jax.ShapeDtypeStruct(x.shape[2:], x.dtype) for n, x in latent.items()}

    def densities(record):
        return {n: record[n]["fn"].log_prob(record[n]["value"]) for n in given_data}

    if blamed := sorted(depending(model, drawn, densities, shapes, args, kwargs, params)):
        raise ModelError(
            f"predict: the data of '{blamed[0]}' depend on {', '.join(map(repr, drawn))}, of which there "
            "are no posterior draws: drawn anew, it would know nothing of them. Pass None for these data; "
            "sample the states of a series with it (ParticleGibbs)."
        )


def _first(draws: Mapping[str, Any], params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {n: x[0, 0] for n, x in draws.items()}, jax.tree.map(lambda x: x[0], dict(params))


def _refuse_none(draws: Mapping[str, Any], what: str) -> None:
    if not draws:
        raise ModelError(f"{what} need posterior draws, and there are none.")


def _runs(program, names, latent, draws, params, rng_key, args, kwargs, sites) -> dict[str, np.ndarray]:
    """The values of some sites of ``program(values, params)``, run once at each draw of the latent ones."""

    def run(params, draw):
        values, key = draw
        with FullPlates(), trace() as record:
            seed(program(values, params), key)(*args, **kwargs)
        return {n: record[n]["value"] for n in names}

    num_chains, num_draws = np.shape(next(iter(draws.values())))[:2]
    keys = jax.random.split(rng_key, (num_chains, num_draws))
    chunk = default_chunk(s.shape for s in sites.values())
    return map_draws(over_draws(run), (latent, keys), dict(params), num_chains, num_draws, chunk)
