"""What can be known to be wrong before a run starts, or after one broke down: in the user's words, naming the
site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.gibbs import GIBBS_SITES_KWARG

from ppl_ext.errors import ArgumentError, ModelError, NonFiniteError, PplExtError
from ppl_ext.program import log_density, simulate
from ppl_ext.runtime.arguments import check_key, check_values
from ppl_ext.runtime.explain import explained, is_foreign
from ppl_ext.runtime.outside import reading

NUM_DRAWS = 4
"""Draws of the guide that a check scores."""


class Where(NamedTuple):
    """Where densities are looked at: at these parameters, from this key, for these arguments."""

    model: Callable
    guide: Callable
    params: dict[str, Any]
    rng_key: jax.Array
    args: tuple
    kwargs: dict[str, Any]


@contextmanager
def named(model: Callable, rng_key, args: tuple, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """While a sampler looks at a model: what NumPyro and JAX raise is said in our words, with the site, if
    running the model meets it too.

    :raises PplExtError: in place of an error of theirs.
    """
    try:
        yield
    except Exception as error:
        if is_foreign(error):
            simulate(
                model,
                *args,
                rng_key=rng_key,
                **{name: x for name, x in kwargs.items() if name != GIBBS_SITES_KWARG},
            )
        with explained(model):
            raise


@contextmanager
def begun(where: str, kernel: Any) -> Iterator[None]:
    """While a kernel of ``MCMC`` begins its chains; ``kernel._seen`` holds what its model read from outside
    the last time.

    :raises ModelError: if that has changed, naming what: ``MCMC`` keeps what it compiled then.
    """
    if kernel._seen is not None:
        remedy = (
            ", and NumPyro's MCMC keeps what it compiled for this kernel. Make a new kernel and a new MCMC."
        )
        kernel._seen.check(where, kernel.model, remedy=remedy)
    with reading(kernel.model) as kernel._seen:
        yield


def check_one_key(where: str, rng_key: Any) -> None:
    """A kernel that NumPyro does not vectorise over chains has one key."""
    typed = isinstance(rng_key, jax.Array) and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    if getattr(rng_key, "ndim", 0) > (0 if typed else 1):
        raise ArgumentError(
            f"{where}: rng_key must be one random key, got {rng_key.shape[0]}. numpyro.infer.MCMC runs "
            "several chains of this kernel at once by chain_method=jax.vmap, or one after the other by "
            "'sequential'; 'vectorized' is for kernels that vectorise themselves."
        )
    check_key(f"{where}: rng_key", rng_key)


def check_init_params(where: str, init_params: Any, sites: Mapping[str, Any], exactly: bool = False) -> None:
    """Unconstrained values of the latent sites of a trace, each of its shape and finite.

    :param sites: those that there must be a value of.
    :param exactly: and of no other.
    """
    check_values(f"{where}: init_params", init_params)
    if exactly and set(init_params) != set(sites):
        raise ArgumentError(
            f"{where}: init_params must hold {sorted(sites)}, unconstrained, got {sorted(init_params)}."
        )
    if missing := [name for name in sites if name not in init_params]:
        raise ArgumentError(
            f"{where}: init_params has no value for '{missing[0]}'; it must hold all parameters, "
            "unconstrained."
        )
    for name, site in sites.items():
        shape, support = np.shape(site["value"]), site["fn"].support
        shape = shape if support.is_discrete else biject_to(support).inverse_shape(shape)
        if np.shape(init_params[name]) != shape:
            raise ArgumentError(
                f"{where}: init_params: '{name}' must have shape {shape}, unconstrained, got "
                f"{np.shape(init_params[name])}."
            )
    for name, value in init_params.items():
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(np.asarray(value)).all():
            raise ArgumentError(f"{where}: init_params: the value of '{name}' is not finite.")


def densities_by_site(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, key, params: dict
) -> dict[str, dict[str, jax.Array]]:
    """Score one draw of the guide under guide and model, site by site."""
    from ppl_ext.densities.strict_values import StrictValues

    with numpyro.validation_enabled(False):  # NumPyro's own checks raise without the site's name
        draw = simulate(substitute(guide, data=params), *args, rng_key=key, **kwargs)
        joint = log_density(
            StrictValues(substitute(model, data=params)), draw.values, *args, rng_key=key, **kwargs
        )
    return {"guide": draw.log_density.by_site, "model": joint.by_site}


def check_set_up(model: Callable, guide: Callable, rng_key, args: tuple, kwargs: dict) -> None:
    """NumPyro failed to set a run up, in its own words: where a program or a site is to blame, name it.

    :raises PplExtError: if one is.
    """
    programs = (model,) if isinstance(guide, AutoGuide) else (model, guide)
    for program in programs:
        simulate(program, *args, rng_key=rng_key, **kwargs)
        for site in trace(seed(program, rng_key)).get_trace(*args, **kwargs).values():
            if site["type"] in ("param", "mutable") and site.get("_control_flow_done"):
                raise ModelError(
                    f"{site['type']} site '{site['name']}' stands inside the step of a scan, where NumPyro "
                    "gives it no value but its first. Declare it before the scan, and use it in the step."
                )
    try:
        # an automatic guide that was not set up has no draws: the prior's are scored
        reason = non_finite_of_draws(model, programs[-1], rng_key, args, kwargs)
    except PplExtError:
        raise
    except Exception:  # the caller goes on with NumPyro's own error
        return
    if reason is not None:
        raise NonFiniteError(f"Before the first step, {reason}")


def non_finite_of_draws(model: Callable, guide: Callable, rng_key, args: tuple, kwargs: dict) -> str | None:
    """:func:`non_finite_site` of a guide without parameters, or of the prior: the model in the guide's
    place.
    """
    densities_by_site(model, guide, args, kwargs, rng_key, {})
    by_site = jax.vmap(partial(densities_by_site, model, guide, args, kwargs), in_axes=(0, None))
    reason = non_finite_site(by_site, Where(model, guide, {}, rng_key, args, kwargs))
    if reason is not None and guide is model:
        reason = reason.replace("in the guide", "in the model").replace("of the guide", "of the prior")
    return reason


@contextmanager
def sites_blamed(by_site, where: Where, at_once: bool) -> Iterator[None]:
    """Where a first step cannot be traced: the site that is to blame, if sites do not match or shapes do not
    agree.

    :param at_once: look before the step: NumPyro's own objectives draw from the prior what a guide leaves
        out, and say nothing. Ours raise as the step is traced, and a look would cost a third as much again.
    :raises ModelError: if model and guide do not fit together.
    """

    def look():
        jax.eval_shape(by_site, jax.random.split(where.rng_key, NUM_DRAWS), where.params)

    if at_once:
        look()
    try:
        yield
    except Exception:
        look()
        raise


def check_first_step(by_site, where: Where, stable: bool = False) -> None:
    """Score draws of the guide: sites must match, shapes agree, and every density be finite.

    :param by_site: :func:`densities_by_site` of many keys and the parameters, compiled.
    :param stable: some of the draws may be bad, since the steps of such are left out.
    :raises ModelError: if model and guide do not fit together.
    :raises NonFiniteError: if a site's log density is not finite at the initial parameters, or its data hold
        NaN.
    """
    reason = non_finite_site(by_site, where)
    if reason is not None and not (stable and f"({NUM_DRAWS} of {NUM_DRAWS} draws" not in reason):
        raise NonFiniteError(f"Before the first step, {reason}")


def non_finite_site(by_site, where: Where, num_draws: int = NUM_DRAWS, gradients: bool = False) -> str | None:
    """Say which site first has a log density (or gradient of it) that is not finite; ``None`` if all are
    finite.
    """
    keys, params = jax.random.split(where.rng_key, num_draws), where.params
    values = by_site(keys, params)
    for program in ("guide", "model"):
        for name, value in values[program].items():
            bad = ~np.isfinite(np.asarray(value))
            if bad.any():
                k = int(np.argmax(bad))
                why = _why(where._replace(rng_key=keys[k]), program, name)
                share = f"{bad.sum()} of {num_draws} draws of the guide"
                return f"the log density of site '{name}' in the {program} is {value[k]} ({share}). {why}"
    if gradients:
        floats = {
            k: v
            for k, v in params.items()
            if all(np.issubdtype(np.asarray(x).dtype, np.floating) for x in jax.tree.leaves(v))
        }
        for program in ("guide", "model"):
            for name in values[program]:
                # Site by site: a zero cotangent of one site times an infinite slope of another would be NaN
                # for both.
                slopes = jax.grad(
                    lambda p, program=program, name=name: by_site(keys, {**params, **p})[program][name].sum()
                )(floats)
                for param, slope in slopes.items():
                    if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(slope)):
                        return (
                            f"the gradient of the log density of site '{name}' in the {program} by the "
                            f"parameter '{param}' is not finite."
                        )
    return None


def _why(where: Where, program: str, name: str) -> str:
    """The likely cause of a density that is not finite: NaN in the data, a value outside the support, or the
    parameters.
    """
    model, guide, params, key, args, kwargs = where
    with numpyro.validation_enabled(False):
        draw = simulate(substitute(guide, data=params), *args, rng_key=key, **kwargs)
        run = guide if program == "guide" else model
        site = trace(substitute(seed(run, key), data={**params, **draw.values})).get_trace(*args, **kwargs)[
            name
        ]
    value = np.asarray(site["value"])
    if site["is_observed"] and np.isnan(value).any():
        return (
            f"Its data hold {np.isnan(value).sum()} NaN of {value.size}: drop them, or mask them with "
            "numpyro.handlers.mask."
        )
    try:
        outside = ~np.asarray(site["fn"].support(site["value"]))
    except (NotImplementedError, TypeError):
        outside = np.zeros((), bool)
    if outside.any():
        source = "Its data" if site["is_observed"] else "Values drawn for it"
        return (
            f"{source} lie outside the support of {type(site['fn']).__name__} in {outside.sum()} of "
            f"{outside.size} places."
        )
    return f"Look at the parameters that {type(site['fn']).__name__} gets there."
