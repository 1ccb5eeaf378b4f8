"""Log likelihood of each observation at each posterior draw, finite latent sites summed out."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import seed, trace

from ppl_ext.diagnostics.chunks import default_chunk, map_draws, over_draws
from ppl_ext.diagnostics.sites import (
    TIME,
    FullPlates,
    Site,
    check_complete,
    describe,
    given,
    observations,
    refuse_chains,
)
from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_call, check_count, check_program, check_values, described
from ppl_ext.runtime.constants import odd_data_blamed
from ppl_ext.runtime.open_handlers import refuse_open_handlers

Units = Literal["observation", "independent", "one_step"]


class Terms(NamedTuple):
    """The log likelihood terms of one observed site, or of several that go together.

    ``values``: (chain, draw, *shape), NaN where masked. ``masked``: (*shape). ``sites``: the observed sites.
    ``plates``: the plates along ``shape`` if observations were joined, ``None`` if ``shape`` is the site's
    own batch shape. ``one_step``: the terms are log p(y_t | y_<t), whose first axis is time (:data:`TIME`
    among the plates).
    """

    values: np.ndarray
    masked: np.ndarray
    sites: tuple[str, ...]
    plates: tuple[str, ...] | None
    one_step: bool = False


def log_likelihood(
    model: Callable,
    samples: Mapping[str, Any],
    *args: Any,
    batch_ndims: int = 2,
    chunk_size: int | None = None,
    units: Units = "observation",
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    r"""Pointwise log likelihood, with every finite latent site d summed out exactly.

    .. math:: \ell_{si} = \log p(y_i \mid \theta_s) = \log \sum_d p(y_i \mid d, \theta_s)\, p(d \mid \theta_s)

    Finite sites are summed out even if ``samples`` holds draws of them: a term that conditions on a drawn
    assignment belongs to another model than the one that was fitted, and leave-one-out on it is much too
    confident. A subsampled plate is evaluated on all of its indices, without scale; so pass the whole data.
    ``handlers.scale`` does not count, ``factor`` sites are not observations, and masked observations are NaN
    (leave them out of sums).

    If several observations share a finite site (a class per group, say), they depend on each other given
    :math:`\theta`. The terms above are then still right, but do not add up to the log likelihood, and
    leave-one-out must not use them: it needs :math:`\log p(y_i \mid y_{-i}, \theta)`. With
    ``units="independent"`` such observations are joined into one term, over the plates they do not share;
    those terms always add up to :math:`\log p(y \mid \theta)`, and ``to_arviz`` uses them.

    The steps of a chain (a finite site in ``scan`` that carries over) are all linked, and no terms of these
    kinds exist. With ``units="one_step"`` its terms are :math:`\log p(y_t \mid y_{<t}, \theta)`, by the
    forward algorithm, exactly; they add up to :math:`\log p(y \mid \theta)` too, but say nothing of
    :math:`p(y_t \mid y_{-t}, \theta)`, so leave-one-out must not use them. Sites beside the chain have terms
    as with "independent".

    :param model: a NumPyro model; ``args`` and ``kwargs`` are passed to it.
    :param samples: by site, arrays of shape ``(*batch, *site shape)``, in NumPyro's constrained space. Other
        names are ignored.
    :param batch_ndims: the number of leading batch axes: 2 for (chain, draw).
    :param chunk_size: draws evaluated at once; by default so many that their factors fill about 16 MB.
    :param units: "observation"; "independent" to join what a finite site links; or "one_step" for a chain.
    :return: by observed site, float arrays of shape ``(*batch, *site batch shape)`` in nats. With
        "independent", joined terms have the axes of the plates they do not share, under the sites' names
        joined by "+"; with "one_step", those of a chain have the axis of time and the plates of the chain's
        finite sites.
    :raises ArgumentError: if batch axes disagree, or an option has no such value.
    :raises ModelError: if a latent site has no value and is not finite, a finite site is in ``scan`` (the
        terms do not exist; those one step ahead do), or a term cannot be had exactly.
    :raises HandlerError: if a handler is open around the call.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> def mixture(y):
    ...     w = numpyro.sample("w", dist.Beta(1.0, 1.0))
    ...     with numpyro.plate("n", 2):
    ...         z = numpyro.sample("z", dist.Bernoulli(w))
    ...         numpyro.sample("y", dist.Normal(3.0 * z, 1.0), obs=y)
    >>> terms = log_likelihood(mixture, {"w": jnp.full((1, 1), 0.5)}, jnp.array([0.0, 3.0]))
    >>> terms["y"].shape, [round(float(x), 3) for x in terms["y"][0, 0]]
    ((1, 1, 2), [-1.601, -1.601])

    Source for what leave-one-out needs: Bürkner, Gabry, Vehtari 2021, "Efficient leave-one-out
    cross-validation for Bayesian non-factorized normal and Student-t models".
    """
    check_program("log_likelihood: model", model)
    check_values("log_likelihood: samples", samples)
    check_call("log_likelihood: model", model, args, kwargs)
    if not isinstance(units, str) or units not in ("observation", "independent", "one_step"):
        raise ArgumentError(
            "log_likelihood: units must be 'observation', 'independent' or 'one_step', got "
            f"{described(units)}."
        )
    if chunk_size is not None:
        check_count("log_likelihood: chunk_size", chunk_size)
    if type(batch_ndims) is not int or batch_ndims != 0:
        check_count("log_likelihood: batch_ndims, if not 0,", batch_ndims)
    refuse_open_handlers("log_likelihood")
    batch = batch_shape(samples, batch_ndims)
    num_draws = math.prod(batch)
    draws = {
        n: np.reshape(np.asarray(v), (1, num_draws, *np.shape(v)[batch_ndims:])) for n, v in samples.items()
    }
    with odd_data_blamed("log_likelihood: model", args, kwargs):
        terms = pointwise(model, draws, args, kwargs, num_draws=num_draws, chunk_size=chunk_size, units=units)
    return {name: t.values.reshape(batch + t.values.shape[2:]) for name, t in terms.items()}


def batch_shape(samples: Mapping[str, Any], batch_ndims: int) -> tuple[int, ...]:
    """The leading axes that all samples share."""
    shapes = {name: np.shape(v)[:batch_ndims] for name, v in samples.items()}
    if not shapes:
        return (1,) * batch_ndims
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if len(shape) < batch_ndims or shape != shapes[first]:
            raise ArgumentError(
                f"Samples disagree on their {batch_ndims} batch axes: '{first}' has {shapes[first]}, "
                f"'{name}' {shape}. Set batch_ndims to the number of leading axes that are draws."
            )
    return shapes[first]


def pointwise(
    model: Callable,
    draws: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None = None,
    num_draws: int,
    chunk_size: int | None = None,
    units: Units = "independent",
) -> dict[str, Terms]:
    """:func:`log_likelihood` for arrays (chain, draw, ...), and params (chain, ...); with what an export
    needs.
    """
    params = {} if params is None else dict(params)
    leaves = jax.tree.leaves((params, dict(draws)))
    num_chains = np.shape(leaves[0])[0] if leaves else 1
    one, here = jax.tree.map(lambda x: x[0, 0], dict(draws)), jax.tree.map(lambda x: x[0], params)
    sites = describe(model, one, args, kwargs, here)
    draws = {n: v for n, v in draws.items() if n in sites and sites[n].kind == "latent"}
    finite = frozenset(s.name for s in sites.values() if s.finite)
    check_complete(sites, {*draws, *finite}, "`samples` hold")
    observed = [s for s in sites.values() if s.kind == "observed"]
    if not observed:
        return {}
    if units == "one_step" and any(sites[n].in_scan for n in finite):
        plan, size, evaluate = _plan_one_step(model, one, args, kwargs, here, sites, finite)
    elif finite:
        names = [s.name for s in observed]
        plan, size, evaluate = _plan_enumerated(model, one, args, kwargs, here, sites, finite, units, names)
    else:
        plan, size, evaluate = _plan_plain(model, args, kwargs, observed)
    chunk_size = default_chunk([(size,)]) if chunk_size is None else chunk_size
    values = map_draws(over_draws(evaluate), draws, params, num_chains, num_draws, chunk_size)
    masks = observations(model, one, args, kwargs, here)[1] if any(s.masked for s in observed) else {}
    return {name: _terms(values[name], masks, sites, *plan[name]) for name in plan}


def _terms(
    values,
    masks,
    sites,
    names: tuple[str, ...],
    plates: tuple[tuple[str, int], ...] | None,
    one_step: bool = False,
) -> Terms:
    """Put NaN where no observation is seen; a joined term is seen if any part of it is."""
    shape = values.shape[2:]
    masked = np.ones(shape, bool)
    for name in names:
        mask = masks.get(name, np.zeros(sites[name].batch_shape, bool))
        if plates is not None:
            kept = [0 if plate == TIME else mask.ndim + dim for plate, dim in plates]
            mask = mask.all(axis=tuple(a for a in range(mask.ndim) if a not in kept))
        masked &= mask
    if masked.any():
        values = np.where(masked, np.nan, values)
    return Terms(
        values, masked, names, None if plates is None else tuple(name for name, _ in plates), one_step
    )


def _plan_plain(model, args, kwargs, observed: list[Site]):
    """No finite site: the log probability of each observed site as it stands."""
    names = [s.name for s in observed]

    def evaluate(params, draw):
        with trace() as record, FullPlates():
            seed(given(model, draw, params), jax.random.key(0))(*args, **kwargs)
        return {n: jnp.asarray(record[n]["fn"].log_prob(record[n]["value"])) for n in names}

    return {n: ((n,), None) for n in names}, sum(math.prod(s.shape) for s in observed), evaluate


def _plan_one_step(model, one, args, kwargs, here, sites: dict[str, Site], finite: frozenset[str]):
    """Chains by the forward algorithm; the observed sites beside them as ever."""
    from ppl_ext.diagnostics.enumeration.one_step import ChainsPlan
    from ppl_ext.diagnostics.enumeration.summed_terms import by_plates_needed, elimination_at

    by_plates = by_plates_needed(model, one, args, kwargs, here, sites, finite)
    plans: list[ChainsPlan] = []

    def at(params, draw):
        return elimination_at(model, draw, args, kwargs, params, sites, finite, by_plates)

    def planned(params, draw):
        plans.append(ChainsPlan(at(params, draw), sites))
        return 0

    jax.eval_shape(planned, dict(here), dict(one))
    (chains,) = plans
    beside = [s for s in sites.values() if s.kind == "observed" and s.name not in chains.observed]
    plan: dict[str, tuple] = {}
    size, evaluate_beside = chains.size, None
    if beside and chains.free:
        plan, more, evaluate_beside = _plan_enumerated(
            model, one, args, kwargs, here, sites, chains.free, "independent", [s.name for s in beside]
        )
        size += more
    elif beside:
        plan, more, evaluate_beside = _plan_plain(model, args, kwargs, beside)
        size += more

    def evaluate(params, draw):
        out = {} if evaluate_beside is None else evaluate_beside(params, draw)
        return out | chains.evaluate(at(params, draw))

    return plan | chains.plan, size, evaluate


def _plan_enumerated(
    model,
    one,
    args,
    kwargs,
    here,
    sites: dict[str, Site],
    finite: frozenset[str],
    units: Units,
    observed: list[str],
):
    """Which tables make up each term is the same at every draw: decide it once, on shapes."""
    from ppl_ext.diagnostics.enumeration.summed_terms import TermsPlan, by_plates_needed, elimination_at

    refuse_chains([n for n in finite if sites[n].in_scan])
    by_plates = by_plates_needed(model, one, args, kwargs, here, sites, finite)
    plans: list[tuple[TermsPlan, int]] = []

    def at(params, draw):
        return elimination_at(model, draw, args, kwargs, params, sites, finite, by_plates)

    def planned(params, draw):
        elimination = at(params, draw)
        plan = TermsPlan(
            elimination, sites, "observation" if units == "observation" else "independent", observed
        )
        plans.append((plan, elimination.lane_size))
        return 0

    jax.eval_shape(planned, dict(here), dict(one))
    (terms, size) = plans[0]
    return terms.plan, size, lambda params, draw: terms.evaluate(at(params, draw))
