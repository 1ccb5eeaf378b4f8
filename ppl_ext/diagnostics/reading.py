"""Draws, weights and losses out of whatever holds them: a fit, an MCMC run, a report, or plain arrays."""

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from numpyro.infer import MCMC
from numpyro.infer.svi import SVIRunResult

from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.reversed_scans import in_order_of_inputs, reversed_latents
from ppl_ext.diagnostics.sites import describe
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.runtime.results import NUM_SAMPLES


def is_fit(result: Any) -> bool:
    """Whether this is a :class:`ppl_ext.result.Fit`, which stands on a higher floor."""
    return all(hasattr(result, name) for name in ("params", "losses", "guide", "sample"))


def posterior_draws(result: Any, num_samples: int = NUM_SAMPLES) -> dict[str, Any]:
    """Draws by site, (chain, draw, ...).

    :param result: a ``Fit`` (``num_samples`` draws a chain), a numpyro ``MCMC`` that has run,
        :class:`~ppl_ext.diagnostics.draws.Draws`, a report with a ``posterior``, or a mapping from names to
        arrays (chain, draw, ...). The arrays of a report keep their axes' names.
    :raises ArgumentTypeError: if it is none of these.
    """
    if isinstance(result, Draws):
        return dict(result.values)
    if isinstance(result, MCMC):
        return mcmc_draws(result)
    if is_fit(result):
        return dict(result.sample(num_samples=num_samples).values)
    if _is_report(result):
        return {str(name): x for name, x in _group(result, "posterior", "posterior draws").items()}
    if isinstance(result, Mapping):
        return dict(result)
    _refuse(result, "posterior draws", "a mapping from names to arrays (chain, draw, ...)")


def mcmc_draws(mcmc: MCMC) -> dict[str, Any]:
    """Draws of a finished run by site, (chain, draw, ...), steps of a scan in the order of its inputs;
    tracers if it ran inside ``jit``.
    """
    try:
        samples = mcmc.get_samples(group_by_chain=True)
    except (AssertionError, AttributeError, TypeError) as error:  # NumPyro reads its own missing state
        raise ArgumentError("This MCMC has not run yet: call mcmc.run(rng_key, ...) first.") from error
    if hasattr(samples, "_asdict"):
        samples = samples._asdict()
    if not isinstance(samples, Mapping):
        return {f"param_{i}": x for i, x in enumerate(jax.tree.leaves(samples))}
    return _ordered(mcmc, dict(samples))


def _ordered(mcmc: MCMC, samples: dict[str, Any]) -> dict[str, Any]:
    model, args, kwargs = getattr(mcmc.sampler, "model", None), tuple(mcmc._args), dict(mcmc._kwargs)
    if model is None or getattr(mcmc.sampler, "samples_by_input", False):
        return samples
    one = {n: jax.ShapeDtypeStruct(np.shape(x)[2:], x.dtype) for n, x in samples.items()}
    try:
        backward = reversed_latents(describe(model, one, args, kwargs))
    except ModelError:  # of a minibatch, say: the draws are all that is asked for here
        return samples
    return in_order_of_inputs(mcmc, backward, samples, args, kwargs) if backward else samples


def log_weights(result: Any, num_samples: int = NUM_SAMPLES) -> np.ndarray:
    """Log importance weights, (chain, draw), float64; or (draw,) if a plain array has that shape.

    :param result: a ``Fit``, :class:`~ppl_ext.diagnostics.draws.Draws`, a report of a guide, or an array
        (..., draw).
    """
    if isinstance(result, Draws):
        return result.log_weights
    if is_fit(result):
        return result.sample(num_samples=num_samples).log_weights
    if _is_report(result):
        stats = _group(result, "sample_stats", "importance weights")
        if "log_weight" not in stats:
            raise ArgumentError(
                "This report has no sample_stats['log_weight']: only draws from a guide have importance "
                "weights."
            )
        return np.asarray(stats["log_weight"].values, np.float64)
    return _array(result, "importance weights", "an array (..., draw)")


def losses(result: Any) -> np.ndarray:
    """Losses by restart and step, (chain, step), float64.

    :param result: a ``Fit``, an ``SVIRunResult``, a report with a ``vi_trace``, or an array (step,) or
        (chain, step).
    """
    if is_fit(result) or isinstance(result, SVIRunResult):
        found = np.asarray(result.losses, np.float64)
    elif _is_report(result):
        found = np.asarray(_group(result, "vi_trace", "losses")["loss"].values, np.float64)
    else:
        found = _array(result, "losses", "an array (step,) or (chain, step)")
    if found.ndim not in (1, 2) or found.size == 0:
        raise ArgumentError(
            f"Losses are (step,) or (chain, step) with at least one step, got shape {found.shape}."
        )
    return np.atleast_2d(found)


def _is_report(result: Any) -> bool:
    # An ArviZ 0.23 InferenceData or an xarray DataTree, told by its groups so that neither needs to be
    # imported.
    return (
        not isinstance(result, Mapping | MCMC)
        and any(hasattr(result, g) for g in ("posterior", "sample_stats", "vi_trace"))
        or (type(result).__name__ in ("InferenceData", "DataTree"))
    )


def _group(report: Any, group: str, what: str) -> Any:
    if not hasattr(report, group):
        raise ArgumentError(f"This report has no group '{group}', so there are no {what} to read from it.")
    dataset = report[group]
    return getattr(dataset, "dataset", dataset)


def _array(values: Any, what: str, otherwise: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except Exception:  # JAX's errors for tracers share no public base
        _refuse(values, what, otherwise)
    if array.ndim == 0 or not (array.dtype.kind in "fiu" or np.can_cast(array.dtype, np.float64)):
        _refuse(values, what, otherwise)
    return array.astype(np.float64)


def _refuse(result: Any, what: str, otherwise: str) -> NoReturn:
    remedy = (
        " It does not know its guide: pass ppl_ext.to_arviz(result, model=..., guide=...)."
        if isinstance(result, SVIRunResult)
        else ""
    )
    raise ArgumentTypeError(
        f"No {what} in {type(result).__name__}: expected a Fit, an MCMC run, an ArviZ report or "
        f"{otherwise}.{remedy}"
    )
