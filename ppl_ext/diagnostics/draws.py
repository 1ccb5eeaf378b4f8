"""Draws of a guide on the full plates, and how the model and the guide score them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.util import cholesky_of_inverse
from numpyro.handlers import infer_config, seed, substitute, trace
from numpyro.infer.autoguide import AutoGuide, AutoGuideList, AutoLaplaceApproximation
from numpyro.primitives import Messenger

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.diagnostics.chunks import default_chunk, map_draws, over_draws
from ppl_ext.diagnostics.depending import depending
from ppl_ext.diagnostics.reversed_scans import refuse_reversed, reversed_latents
from ppl_ext.diagnostics.sites import FullPlates, Site, check_complete, describe, given
from ppl_ext.diagnostics.slices import slice_weights
from ppl_ext.errors import ModelError, ProgramError
from ppl_ext.expectations.masked_latents import NONE_ABSENT, absent_elements
from ppl_ext.program import log_density, simulate


class Draws(NamedTuple):
    """Posterior draws of a guide, on the host.

    ``values``: by site, (chain, draw, *site shape): the model's latent sites, constrained, and its
    deterministic ones. ``log_p``, ``log_q``, ``log_weights``: (chain, draw), float64 nats: the model's joint
    density, the guide's density, and their difference, all on the full plates.
    ``slices``: by plate in which the guide draws each slice by itself, (chain, draw, size): what each adds to
    the log weight (:func:`~ppl_ext.diagnostics.slices.slice_weights`).
    ``points``: the continuous latent sites at which the guide is a single point (``AutoDelta``), or says by
    its attribute ``points`` that it is one in part (``SparseSubspace``). A point has no density: the weights
    are then those of all else given it, and if nothing is left, they mean nothing.
    """

    values: dict[str, np.ndarray]
    log_p: np.ndarray
    log_q: np.ndarray
    log_weights: np.ndarray
    points: tuple[str, ...] = ()
    slices: Mapping[str, np.ndarray] = {}


class _Redistribute(Messenger):
    """Draw one site from another distribution."""

    def __init__(self, name: str, fn: dist.Distribution):
        super().__init__()
        self.name, self.distribution = name, fn

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] == self.name:
            msg["fn"] = self.distribution


def guide_sampler(
    model: Callable,
    guide: Callable,
    params: Mapping[str, Any],
    num_chains: int,
    args: tuple,
    kwargs: Mapping[str, Any],
    mirrored: str | None = None,
) -> Callable[..., Draws]:
    """``(rng_key, num_samples) -> Draws`` from a fitted guide, each draw scored; everything on the full
    plates. Called with other params as well, of the same shapes, it draws with these, and compiles nothing.

    A finite latent site that the guide leaves to the model is summed out of ``log_p``, exactly; deterministic
    sites that depend on one have no value and are left out. ``AutoLaplaceApproximation``, whose guide is a
    point, is drawn from and scored as the normal distribution around it.

    :param params: by param site, leaves (chain, ...).
    :param mirrored: why draws in a scan that runs backward may have been fitted mirrored, which is then
        refused.
    :raises ModelError: if guide or model cannot run on the full plates, or a latent site has no counterpart.
    """
    params = dict(params)
    here = jax.tree.map(lambda x: x[0], params)
    _set_up(guide, args, kwargs)
    shapes = _guide_shapes(guide, here, args, kwargs)
    sites = describe(model, shapes, args, kwargs, here)
    if mirrored is not None:
        refuse_reversed(sites, mirrored)
    missing = check_complete(sites, shapes, "The guide gives")
    score = scorer(model, sites, missing, shapes, args, kwargs, here)

    masked = any(s.kind == "latent" and s.masked and not s.finite for s in sites.values())

    def one(params, key):
        absent = NONE_ABSENT
        if masked:
            bound = (
                partial(FullPlates.around, substitute(program, data=params), args, kwargs)
                for program in (model, guide)
            )
            absent = absent_elements(next(bound), next(bound), jax.random.fold_in(key, 2))
        values, log_q = _run_guide(absent.of_guide(guide), params, args, kwargs, key)
        # A density that is estimated, by a particle filter say, has noise of its own at every draw: shared,
        # it would look like no noise.
        log_p, deterministic = score(params, values, jax.random.fold_in(key, 1), absent)
        parts = slice_weights(log_p, log_q, sites)
        return {**values, **deterministic}, log_p.total, log_q.total, parts

    shared: Any = params
    draw = one
    if isinstance(guide, AutoLaplaceApproximation):
        shared = (params, _laplace(guide, one, params, num_chains))
        latent = f"_{guide.prefix}_latent"

        def draw(shared, key):
            params, (loc, scale_tril) = shared
            with _Redistribute(latent, dist.MultivariateNormal(loc, scale_tril=scale_tril)):
                return one(params, key)

    step = over_draws(draw)
    chunk = _chunk(model, sites, missing, shapes, args, kwargs, here)
    continuous = [n for n, s in sites.items() if s.kind == "latent" and not s.finite and n in shapes]

    def sample(rng_key: jax.Array, num_samples: int, shared: Any = shared) -> Draws:
        keys = jax.random.split(rng_key, (num_chains, num_samples))
        values, log_p, log_q, slices = map_draws(step, keys, shared, num_chains, num_samples, chunk)
        log_p, log_q = log_p.astype(np.float64), log_q.astype(np.float64)
        points = [
            n
            for n in continuous
            if n in getattr(guide, "points", ())
            or num_samples > 1
            and np.array_equal(values[n].min(1), values[n].max(1))
        ]
        return Draws(values, log_p, log_q, log_p - log_q, tuple(points), slices)

    return sample


def rescored(
    model: Callable,
    draws: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    ordered: Callable | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray | None, str | None]:
    """Stored draws (chain, draw, ...) with their log joint density (chain, draw), everything on the full
    plates.

    Finite sites without a draw are summed out. Deterministic sites are computed anew: what a sampler stored
    was on its minibatch, or (NumPyro's enumeration) one value per value of a finite site. Those below a
    summed-out site are dropped.

    If finite sites cannot be summed out there is no density: ``None``, and the reason.

    :param ordered: ``(names, draws) -> draws``, with the named sites, which lie in scans that run backward,
        in the order of the inputs.
    """
    num_chains, num_draws = np.shape(jax.tree.leaves(dict(draws))[0])[:2]
    one = {name: x[0, 0] for name, x in draws.items()}
    sites = describe(model, one, args, kwargs)
    if ordered is not None and (backward := reversed_latents(sites)):
        draws = ordered(backward, draws)
    latent = {n: np.asarray(x) for n, x in draws.items() if n in sites and sites[n].kind == "latent"}
    missing = check_complete(sites, latent, "The draws hold")
    shapes = {n: jax.ShapeDtypeStruct(x.shape[2:], x.dtype) for n, x in latent.items()}
    refusal = None
    try:
        chunk = _chunk(model, sites, missing, shapes, args, kwargs, {})
    except ModelError as error:
        chunk, refusal = default_chunk(s.shape for s in sites.values()), str(error)
    score = scorer(model, sites, missing, shapes, args, kwargs, {}, density=refusal is None)
    keys = jax.random.split(jax.random.key(0), (num_chains, num_draws))

    def scored(_, draw):
        log_p, found = score({}, *draw)
        return log_p.total, found

    step = over_draws(scored)
    log_p, deterministic = map_draws(step, (latent, keys), {}, num_chains, num_draws, chunk)
    others = {n: np.asarray(x) for n, x in draws.items() if n not in sites}
    return {**latent, **deterministic, **others}, None if refusal else log_p.astype(np.float64), refusal


def _chunk(model, sites, missing, shapes, args, kwargs, params) -> int:
    """Draws scored at once: so many that their sites, and the tables of summed ones, fit in memory."""
    sizes = [s.shape for s in sites.values()]
    if missing:
        from ppl_ext.diagnostics.enumeration.summed_terms import elimination_at

        def tables(values, params):
            sizes.append((elimination_at(model, values, args, kwargs, params, sites, missing).lane_size,))
            return 0

        jax.eval_shape(tables, dict(shapes), dict(params))
    return default_chunk(sizes)


def scorer(
    model: Callable,
    sites: Mapping[str, Site],
    missing: tuple[str, ...],
    shapes: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    density: bool = True,
) -> Callable:
    """``(params, values, rng_key) -> (log_p, deterministic sites)`` on the full plates; ``missing`` finite
    sites summed out. The key is for densities that are estimated, and for random numbers that the model takes
    for itself.

    :param shapes: of the values. Deterministic sites that depend on a missing site are left out.
    :param density: whether there is one; else zero stands in its place.
    """
    keep = {n for n, s in sites.items() if s.kind == "deterministic"}
    if missing and keep:
        keep -= depending(
            model, missing, lambda record: {n: record[n]["value"] for n in keep}, shapes, args, kwargs, params
        )

    def marks(msg):
        return {"enumerate": "parallel"} if msg["name"] in missing else {}

    def run(params, values, rng_key, absent=NONE_ABSENT):
        with FullPlates(), trace() as record:
            program = absent.of_model(
                substitute(infer_config(model, marks) if missing else model, data=params)
            )
            log_p = log_density(program, values, *args, rng_key=rng_key, **kwargs)
        return log_p, {n: record[n]["value"] for n in keep}

    def run_unscored(params, values, rng_key):
        with FullPlates(), trace() as record:
            seed(given(model, values, params), rng_key)(*args, **kwargs)
        return LogDensity((), ()), {n: record[n]["value"] for n in keep}

    return run if density else run_unscored


def _run_guide(guide, params, args, kwargs, key, plates=None):
    with FullPlates() if plates is None else plates:
        draw = simulate(substitute(guide, data=params), *args, rng_key=key, **kwargs)
    values = {n: v for n, v in draw.values.items() if n not in draw.values.auxiliary}
    return values, draw.log_density


def _set_up(guide: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    if isinstance(guide, AutoGuideList) and any(isinstance(g, AutoLaplaceApproximation) for g in guide):
        raise ModelError(
            "AutoLaplaceApproximation inside AutoGuideList has no joint normal distribution to draw from. "
            "Use it alone."
        )
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        # An automatic guide writes down its model on the first run; under jit it would keep tracers.
        with FullPlates():
            seed(guide, jax.random.key(0))(*args, **kwargs)


def _guide_shapes(guide, params, args, kwargs) -> dict[str, jax.ShapeDtypeStruct]:
    plates = FullPlates()
    try:
        values, _ = jax.eval_shape(
            lambda p, k: _run_guide(guide, p, args, kwargs, k, plates), params, jax.random.key(0)
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ModelError) and not isinstance(error, ProgramError) or not plates.opened:
            raise
        names = ", ".join(map(repr, sorted(plates.opened)))
        raise ModelError(
            f"The guide does not run on all of the plate {names} it subsamples ({error}). Give its local "
            "params an entry for every index of the plate (numpyro.param inside the plate, with event_dim, "
            "takes the minibatch's), or compute them from the data; and pass the whole data."
        ) from error
    return values


def _laplace(guide, one, params, num_chains: int):
    r"""Location and Cholesky factor of the normal distribution :math:`N(z^*, H^{-1})` around each chain's
    optimum.

    H is the Hessian of -log p(y, z) in unconstrained space, Jacobian included: minus the log weight that a
    draw at z has under the guide's point.
    """
    name = f"{guide.prefix}_loc"

    @jax.jit
    def curvature(params):
        def loss(z):
            _, log_p, log_q, _ = one({**params, name: z}, jax.random.key(0))
            return log_q - log_p

        return cholesky_of_inverse(guide._hessian_fn(loss, params[name]))

    factors = []
    for c in range(num_chains):
        factor = curvature(jax.tree.map(lambda x, c=c: x[c], params))
        if not np.isfinite(factor).all():
            raise ModelError(
                f"The Hessian of chain {c} at its optimum is not positive definite, so there is no Laplace "
                "approximation. The optimum has not been reached (run more steps), or the posterior is flat "
                "there (use AutoNormal)."
            )
        factors.append(factor)
    return params[name], jnp.stack(factors)
