"""An algorithm on data sets simulated from the prior: the truths, the data, and the draws it made of them."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions.util import is_identically_one
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC
from numpyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation
from numpyro.infer.svi import SVIRunResult
from tqdm.auto import tqdm

from ppl_ext.diagnostics.reading import is_fit, mcmc_draws, posterior_draws
from ppl_ext.diagnostics.sites import FullPlates, Unconditioned, describe
from ppl_ext.errors import ArgumentError, ModelError, NonFiniteError
from ppl_ext.program import Program, simulate

Arrays = dict[str, Any]


def arguments_of(model: Callable, data: Any) -> dict[str, str]:
    """Argument by observed site."""
    if isinstance(data, str):
        data = [data]
    arguments = dict(data) if isinstance(data, Mapping) else {site: site for site in data}
    if not arguments:
        raise ArgumentError(
            "calibrate: data names no site. Say which observed sites to simulate, for instance data='y'."
        )
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return arguments
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for site, argument in arguments.items():
            if argument not in parameters:
                raise ArgumentError(
                    f"calibrate: the model has no argument '{argument}' for the data of site '{site}'; it "
                    f"takes {list(parameters)}. Name the argument: data={{'{site}': '...'}}."
                )
    return arguments


def latent_sites(model, arguments: dict[str, str], args, kwargs) -> tuple[str, ...]:
    """Names of the unknowns, after checking that running the model forward draws from it."""
    try:
        sites = describe(model, {}, args, kwargs)
    except NotImplementedError as error:
        raise ModelError(
            f"calibrate: a prior of the model cannot be drawn from ({error}). Give every site a proper prior."
        ) from error
    for name in arguments:
        if name not in sites or sites[name].kind not in ("latent", "observed"):
            raise ArgumentError(
                f"calibrate: data names '{name}', which is no sample site of the model. There are: "
                f"{list(sites)}."
            )
    for name, site in sites.items():
        if site.kind == "factor":
            raise ModelError(
                f"calibrate: the factor '{name}' changes the prior without being drawn, so forward runs are "
                "not draws from the model. Write it as a distribution."
            )
        if site.kind == "observed" and name not in arguments:
            raise ModelError(
                f"calibrate: site '{name}' is observed, but not simulated. Add it to data, or pass its "
                "argument as None."
            )
    latent = tuple(
        n for n, s in sites.items() if s.kind == "latent" and n not in arguments and not s.auxiliary
    )
    if not latent:
        raise ModelError("calibrate: the model has no latent site, so there is nothing to rank.")
    return latent


def simulations(rng_key, model, arguments: dict[str, str], args, kwargs, num: int) -> tuple[Arrays, Arrays]:
    """Truths by site and data by argument, (simulation, ...), on the host."""

    def one(key):
        with FullPlates(), trace() as record:
            seed(Unconditioned(model), key)(*args, **kwargs)
        sites = {n: s for n, s in record.items() if s["type"] in ("sample", "deterministic")}
        scaled = [
            n
            for n, s in sites.items()
            if s["type"] == "sample" and s["scale"] is not None and not is_identically_one(s["scale"])
        ]
        if scaled:
            raise ModelError(
                f"calibrate: site '{scaled[0]}' is scaled (handlers.scale), which no forward run shows. "
                "Take the scale away."
            )
        return {n: s["value"] for n, s in sites.items() if n not in arguments}, {
            a: sites[n]["value"] for n, a in arguments.items()
        }

    truths, data = jax.device_get(jax.jit(jax.vmap(one))(random.split(rng_key, num)))
    for name, x in (truths | data).items():
        if not np.isfinite(x).all():
            raise NonFiniteError(
                f"calibrate: the prior gives '{name}' values that are not finite. Give its priors lighter "
                "tails."
            )
    return truths, data


# --- the algorithm, on every data set


def template(mcmc: MCMC, args, kwargs) -> Callable[[jax.Array, Arrays], MCMC]:
    if mcmc.last_state is not None:
        # Its kernel keeps what it has traced, and would mix it with what is traced here.
        raise ArgumentError("calibrate: this MCMC has run already. Pass a new one, MCMC(NUTS(model), ...).")

    def run(key, data):
        run = MCMC(
            copy.deepcopy(mcmc.sampler),
            num_warmup=mcmc.num_warmup,
            num_samples=mcmc.num_samples,
            num_chains=mcmc.num_chains,
            thinning=mcmc.thinning,
            chain_method="vectorized",
            progress_bar=False,
        )
        run.run(key, *args, **kwargs | data)
        return run

    return run


def run_each(algorithm, reader, keys, data: Arrays, *, progress_bar: bool) -> tuple[Arrays, dict[int, str]]:
    """One data set after the other: draws by site, (simulation, chain, draw, ...), and why some have none."""
    found, failed = [], {}
    for i, key in enumerate(tqdm(keys, disable=not progress_bar, desc="calibrate", unit="simulation")):
        algorithm_key, draw_key = random.split(key)
        here = {n: jnp.asarray(x[i]) for n, x in data.items()}
        try:
            found.append(jax.device_get(reader(algorithm(algorithm_key, here), draw_key, here)))
        except NonFiniteError as error:
            failed[i] = str(error)
    if not found:
        raise NonFiniteError(f"calibrate: all {len(keys)} simulations failed. The first: {failed[0]}")
    shapes = [jax.tree.map(np.shape, x) for x in found]
    if any(s != shapes[0] for s in shapes):
        raise ArgumentError(
            "calibrate: the algorithm returned draws of different names or shapes for different data sets."
        )
    draws = {n: np.stack([x[n] for x in found]) for n in found[0]}
    return _finite(draws, failed, [i for i in range(len(keys)) if i not in failed])


def run_batches(
    algorithm, reader, keys, data: Arrays, *, progress_bar: bool, batch_size: int, guide, args, kwargs
) -> tuple[Arrays, dict[int, str]]:
    """Run the algorithm on all data sets, ``batch_size`` of them at once."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        # An automatic guide writes down its model on the first run; under jit it would keep tracers.
        seed(guide, random.key(0))(*args, **kwargs | {n: x[0] for n, x in data.items()})

    @jax.jit
    @jax.vmap
    def run(key, here):
        algorithm_key, draw_key = random.split(key)
        return reader(algorithm(algorithm_key, here), draw_key, here)

    num, batch_size = len(keys), min(batch_size, len(keys))
    pieces = []
    with tqdm(total=num, disable=not progress_bar, desc="calibrate", unit="simulation") as bar:
        for start in range(0, num, batch_size):
            # The last batch reaches back instead of being shorter, so that one compilation serves all.
            first = min(start, num - batch_size)
            chosen = slice(first, first + batch_size)
            try:
                out = jax.device_get(run(keys[chosen], {n: x[chosen] for n, x in data.items()}))
            except jax.errors.JAXTypeError as error:
                raise ArgumentError(
                    "calibrate: batch_size needs an algorithm that is a JAX function, and this one looks at "
                    f"its numbers ({type(error).__name__}). Leave batch_size out to run it on one data set "
                    "after the other."
                ) from error
            pieces.append({n: x[start - first :] for n, x in out.items()})
            bar.update(num - bar.n if start + batch_size >= num else batch_size)
    draws = {n: np.concatenate([x[n] for x in pieces]) for n in pieces[0]}
    return _finite(draws, {}, list(range(num)))


def _finite(draws: Arrays, failed: dict[int, str], indices: list[int]) -> tuple[Arrays, dict[int, str]]:
    """Leave out simulations with a draw that is not a number.

    That is a choice by the data and the algorithm's own randomness, never by the truth, so the other ranks
    stay uniform.
    """
    good = np.ones(len(indices), bool)
    for name, x in draws.items():
        bad = (
            np.isnan(x.reshape(len(indices), -1)).any(axis=1)
            if x.dtype.kind == "f"
            else np.zeros(len(indices), bool)
        )
        failed |= {
            indices[i]: f"its draws of '{name}' are not all numbers" for i in np.flatnonzero(bad & good)
        }
        good &= ~bad
    if not good.any():
        raise NonFiniteError(
            f"calibrate: all {len(failed)} simulations failed. The first: {failed[min(failed)]}"
        )
    return {n: x[good] for n, x in draws.items()}, failed


def draws_of_sites(
    result: Any, rng_key, data: Arrays, *, sites: Arrays, num_draws: int, guide, args, kwargs
) -> Arrays:
    """What an algorithm returned as draws of the model's sites, (chain, draw, ...)."""
    if isinstance(result, SVIRunResult):
        if guide is None or isinstance(guide, AutoLaplaceApproximation):
            raise ArgumentError(
                "calibrate: an SVIRunResult does not know its guide: pass guide=... (for "
                "AutoLaplaceApproximation, let the algorithm return the draws of guide.sample_posterior "
                "instead)."
            )
        params = jax.tree.map(lambda x: jnp.asarray(x)[None], result.params)
        values = _guide_draws(Program(guide, args, kwargs | data), params, rng_key, num_draws)
    elif is_fit(result) and not isinstance(result.guide, AutoLaplaceApproximation):
        # Not by its own method, which would compile anew for each of them, and weigh the draws as well.
        values = _guide_draws(
            Program(result.guide, result.args, result.kwargs), result.params, rng_key, num_draws
        )
    elif isinstance(result, MCMC):
        values = mcmc_draws(result)
    else:
        values = posterior_draws(result, num_samples=num_draws)
    out = {n: _with_chains(n, values[n], np.shape(x)[1:]) for n, x in sites.items() if n in values}
    if not out:
        raise ArgumentError(
            f"calibrate: the algorithm returned draws of {sorted(values)}, and the model has the sites "
            f"{sorted(sites)}."
        )
    return out


def _guide_draws(program: Program, params, rng_key, num_draws: int) -> Arrays:
    num_chains = jax.tree.leaves(params)[0].shape[0] if jax.tree.leaves(params) else 1
    return _sample_guide(program, params, random.split(rng_key, (num_chains, -(-num_draws // num_chains))))


@eqx.filter_jit
def _sample_guide(program: Program, params, keys) -> Arrays:
    def one(params, key):
        with FullPlates():
            draw = simulate(substitute(program, data=params), rng_key=key)
        return {n: v for n, v in draw.values.items() if n not in draw.values.auxiliary}

    return jax.vmap(jax.vmap(one, (None, 0)))(params, keys)


def _with_chains(name: str, x: Any, shape: tuple[int, ...]) -> Any:
    x = getattr(x, "values", x)
    leading = np.ndim(x) - len(shape)
    if leading not in (1, 2) or np.shape(x)[leading:] != shape:
        raise ArgumentError(
            f"calibrate: draws of '{name}' have shape {np.shape(x)}; expected (draw, ...) or (chain, draw, "
            f"...) before the site's {shape}."
        )
    return x[None] if leading == 1 else x
