"""Gaps (NaN) in data that a step hands on: whether there are any, and words for those that cannot be drawn.

What ``numpyro.sample`` returns for a value that was not seen is drawn where it is used
(:mod:`ppl_ext.state_space.missing`). A step that uses the NaN itself, from its inputs, cannot be helped:
:func:`refuse_raw` finds out which input and what it reaches, once a run has failed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from ppl_ext.errors import ModelError
from ppl_ext.state_space.lowering import RunUpToScan, run_step
from ppl_ext.tracing.jaxprs import constants_used, uses


def without_gaps(*data: Any) -> bool:
    """Whether all arrays in these trees are known, and none holds NaN.

    >>> without_gaps(jnp.ones(2), {"n": 3}), without_gaps(np.array([1.0, np.nan]))
    (True, False)
    """
    return all(_holds_nan(leaf) is False for leaf in jax.tree.leaves(data))


def _holds_nan(x: Any) -> bool | None:
    """``None`` where nobody knows yet: inside a trace."""
    if isinstance(x, jax.core.Tracer):
        return None
    dtype = getattr(x, "dtype", np.asarray(x).dtype)
    return bool(jnp.issubdtype(dtype, jnp.floating)) and bool(np.isnan(np.asarray(x, np.float64)).any())


def gap_of(first: RunUpToScan, name: str, whole: bool = False) -> bool | None:
    """Whether an observed site of the step has a gap at some time, or ``None`` if its data are not known yet.

    :param whole: of data that are not known yet, none holds NaN.
    """
    assert first.scan is not None and first.step is not None
    scan = first.scan
    latent = {n: first.step.sites[n]["value"] for n in first.step.latent}
    leaves, tree = jax.tree.flatten(scan.sources)
    x = [leaf[0] if len(leaf) else jnp.zeros(jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves]

    def value(*x):
        return run_step(scan, scan.init, jax.tree.unflatten(tree, x), latent)[2].sites[name]["value"]

    closed = jax.make_jaxpr(value)(*x)
    used = uses(closed, [True])
    data = [*constants_used(closed), *(leaf for leaf, is_used in zip(leaves, used, strict=True) if is_used)]
    found = [_holds_nan(x) for x in data]
    if True not in found or not scan.length:
        return None if None in found and scan.length and not whole else False
    # What it is made from holds NaN. A model may put numbers in their place, as one with obs_mask= does: look
    # at the values themselves.
    with jax.ensure_compile_time_eval():
        values = jax.vmap(value)(*(jnp.asarray(leaf) for leaf in leaves))
    return _holds_nan(values)


def refuse_known(names: Iterable[str]) -> None:
    """:raises ModelError: for sites whose gaps are handed on, where what is drawn of them has no place."""
    for name in names:
        raise ModelError(
            f"Site '{name}' has gaps (NaN), and the step hands its value on: what was not seen is a state, "
            "and an observed site has no place for it here. Make it a latent site of its own: "
            f"numpyro.sample('{name}', ..., obs=jnp.nan_to_num(y_t), obs_mask=~jnp.isnan(y_t)) draws it as "
            f"'{name}_unobserved'."
        )


def no_exact_answer(name: str) -> str:
    return (
        f"Site '{name}' has gaps (NaN), and the step hands its value on: what was not seen is a state, and "
        "together with it the model is neither finite nor linear-Gaussian, so there is no exact answer. Use "
        "a particle filter, such as backward='mcmc'."
    )


def refuse_raw(what: str, lowered: Callable[[], Any]) -> None:
    """Find out whether a run failed because the step uses a NaN of its inputs as it is. Outside of any trace.

    :param lowered: makes the state-space form.
    :raises ModelError: if so; the message names the input, the step and what it reaches.
    """
    with numpyro.validation_enabled(False):  # laws get NaN here, and we say where it is from
        _refuse_raw(what, lowered())


def _refuse_raw(what: str, space: Any) -> None:
    if not without_gaps(particle := space.start(jax.random.key(0))[0].carry):
        held = ", ".join(f"'{n}'" for n, s in space.initial_observed.items()) or "its data"
        raise ModelError(
            f"{what}: the carry that the scan begins with is NaN: it depends on a gap in {held}, before the "
            "first step. Sample what was not seen there, as a latent site, or begin at the first value that "
            "was."
        )
    paths, tree = jax.tree_util.tree_flatten_with_path(space.xs)
    for index, (path, leaf) in enumerate(paths):
        if (
            not jnp.issubdtype(leaf.dtype, jnp.floating)
            or not (gone := np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1)).any()
        ):
            continue
        step = int(np.argmax(gone))
        inputs = [x[step] for _, x in paths]
        full = [jnp.nan_to_num(x, nan=0.0) if i == index else x for i, x in enumerate(inputs)]
        broken, whole = (_broken(space, particle, jax.tree.unflatten(tree, x)) for x in (inputs, full))
        if reached := [name for name in broken if name not in whole]:
            where = jax.tree_util.keystr(path[1:]) if str(path[0]) == ".x" else f" for site {path[-1]}"
            number = space.num_steps - 1 - step if space.reverse else step
            raise ModelError(
                f"{what}: the scan's input{where} is NaN at step {number}, and the step uses it as it is: "
                f"{reached[0]} becomes NaN. What was not seen is drawn only where the step takes it from "
                "its site: hand on y_t = numpyro.sample('y', ..., obs=y_t), through the carry and not as a "
                "lagged input; or give a number there and mask what was not seen."
            )


def _broken(space: Any, carry: Any, x: Any) -> list[str]:
    """What of a step is NaN."""
    new, record = space.run_from(carry, x, jax.random.key(0))
    found = [
        f"the carry{jax.tree_util.keystr(path)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(new)
        if _holds_nan(jnp.asarray(leaf))
    ]
    laws = {name: site["fn"] for name, site in record.sites.items()}
    return found + [
        f"the law of site '{n}'"
        for n, fn in laws.items()
        if any(_holds_nan(leaf) for leaf in jax.tree.leaves(fn))
    ]
