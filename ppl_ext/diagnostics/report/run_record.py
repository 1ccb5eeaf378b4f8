"""What a report needs to know of a run, whatever made it."""

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC

from ppl_ext.diagnostics.draws import rescored
from ppl_ext.diagnostics.reversed_scans import in_order_of_inputs
from ppl_ext.errors import ArgumentError, NonFiniteError


class RunRecord(NamedTuple):
    """What the report needs to know of a run of any kind."""

    model: Callable | None
    args: tuple
    kwargs: dict[str, Any]
    params: dict[str, Any]
    values: dict[str, np.ndarray]
    sample_stats: dict[str, np.ndarray]
    traces: dict[str, np.ndarray]
    attrs: dict[str, Any]


_ARVIZ_NAMES = {
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "mean_accept_prob": "mean_acceptance_rate",
    "adapt_state.step_size": "step_size",
    "log_density": "lp",
}


def run_of_mcmc(
    what: str, mcmc: MCMC, model: Callable | None, model_args: tuple | None, model_kwargs: Any
) -> RunRecord:
    """A finished MCMC run, each draw scored by the log joint density, deterministic sites on the full plates.

    :raises ArgumentError: if it has not run.
    :raises NonFiniteError: if the kernel can tell that it broke down.
    """
    try:
        samples = mcmc.get_samples(group_by_chain=True)
    except (AssertionError, AttributeError, TypeError) as error:  # NumPyro reads its own missing state
        raise ArgumentError("This MCMC has not run yet: call mcmc.run(rng_key, ...) first.") from error
    if _only_warmed_up(mcmc):
        raise ArgumentError(
            f"{what}: this MCMC has warmed up and not run: it has no posterior draws. Call "
            "mcmc.run(rng_key, ...) first."
        )
    if hasattr(samples, "_asdict"):
        samples = samples._asdict()
    if not isinstance(samples, dict):
        # A kernel on a bare potential function: the leaves have no names of their own.
        samples = {f"param_{i}": x for i, x in enumerate(jax.tree.leaves(samples))}
    values = {n: np.asarray(x) for n, x in samples.items()}
    if model is None and not getattr(mcmc.sampler, "sums_out_states", False):
        model = getattr(mcmc.sampler, "model", None)
    args = tuple(mcmc._args if model_args is None else model_args)
    kwargs = dict(mcmc._kwargs if model_kwargs is None else model_kwargs)
    if model is not None and (model_args is not None or model_kwargs is not None):
        from ppl_ext.diagnostics.report.predicted import refuse_lost_data

        refuse_lost_data(what, model, (mcmc._args, mcmc._kwargs), (args, kwargs), {})
    if hasattr(mcmc.sampler, "why_failed") and (
        reason := mcmc.sampler.why_failed(mcmc.last_state, args, kwargs)
    ):
        broken = NonFiniteError(reason)
        broken.result = mcmc.last_state
        raise broken
    stats: dict[str, np.ndarray] = {}
    refusal = None
    for name, x in mcmc.get_extra_fields(group_by_chain=True).items():
        if isinstance(x, np.ndarray | jax.Array) and np.ndim(x) == 2:
            stats[_ARVIZ_NAMES.get(name, name)] = np.asarray(x)
    if "n_steps" in stats:
        stats["tree_depth"] = np.log2(stats["n_steps"]).astype(np.int64) + 1
    if model is not None and values:

        def ordered(names, draws):
            return in_order_of_inputs(mcmc, names, draws, args, kwargs)

        values, log_p, refusal = rescored(model, values, args, kwargs, ordered)
        stats |= {} if log_p is None else {"lp": log_p}
    attrs = {
        "kernel": type(mcmc.sampler).__name__,
        "model": None if model is None else name_of(model),
        "num_warmup": mcmc.num_warmup,
        "num_samples": mcmc.num_samples,
        "thinning": mcmc.thinning,
        "lp_omitted": refusal,
    }
    return RunRecord(model, args, kwargs, {}, values, stats, {}, attrs)


def _only_warmed_up(mcmc: MCMC) -> bool:
    """Whether what was collected, if anything was, is warm-up.

    After ``warmup`` the last state is where a run would go on. So it is where a user says that another run
    should go on from this one; then the kernel has counted more steps than those of the warm-up, or, if it
    does not count, there are as many draws as a run has.
    """
    state = mcmc.last_state
    if mcmc.post_warmup_state is None or mcmc.post_warmup_state is not state:
        return False
    if (steps := _steps(state)) is not None:
        return bool(np.max(steps) <= mcmc.num_warmup)
    num_draws = np.shape(jax.tree.leaves(mcmc.get_samples(group_by_chain=True))[0])[1]
    return num_draws == mcmc.num_warmup != mcmc.num_samples


def _steps(state: Any) -> Any:
    """How many steps a kernel, or one inside of it, has counted; ``None`` if it does not."""
    fields = getattr(state, "_fields", None)
    if fields is None:
        return (
            next((i for part in state if (i := _steps(part)) is not None), None)
            if type(state) is tuple
            else None
        )
    return (
        state.i
        if "i" in fields
        else next((i for f in fields if (i := _steps(getattr(state, f))) is not None), None)
    )


def seed_numbers(rng_key: jax.Array | None) -> np.ndarray | None:
    """A key of either kind as plain numbers."""
    if rng_key is None:
        return None
    typed = jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(rng_key) if typed else rng_key)


def objective_name(objective: Any) -> str:
    """Name an objective: its repr, unless that is Python's own, which names an address."""
    text = repr(objective)
    return type(objective).__name__ if " object at 0x" in text else text


def name_of(fn: Any) -> str:
    """A function's name; of another callable, its type's."""
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    return getattr(fn, "__name__", type(fn).__name__)


def versions() -> dict[str, Any]:
    """The versions of what made the run."""
    found: dict[str, Any] = {"inference_library": "ppl_ext"}
    for name, package in (("inference_library", "ppl-ext"), ("numpyro", "numpyro"), ("jax", "jax")):
        try:
            found[f"{name}_version"] = version(package)
        except PackageNotFoundError:  # run from a checkout
            continue
    return found
