"""What is wrong with an episode, in the user's words: its shapes before anything runs, its densities where a
number breaks down.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.meta.episode import EpisodeForm, EpisodeLoss, Rows, observed_sites, traced
from ppl_ext.meta.hierarchy import Layout
from ppl_ext.meta.streams.stream import Batch
from ppl_ext.runtime.arguments import check_call, check_data
from ppl_ext.runtime.explain import name_of


def check_shapes(model, sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Data must have the shape of their distribution, and of the plates around it; NumPyro would silently
    spread one over the other.

    :param sites: a trace of the episode model.
    :raises ModelError: naming the site.
    """
    for name, site in sites.items():
        if site["type"] != "sample" or not site["is_observed"] or type(site["fn"]).__name__ == "Unit":
            continue
        fn, value = tuple(site["fn"].shape()), tuple(jnp.shape(site["value"]))
        try:
            both = np.broadcast_shapes(fn, value)
        except ValueError:
            both = None
        wrong = both not in (fn, value)
        for frame in site["cond_indep_stack"]:
            axis = frame.dim - site["fn"].event_dim
            wrong |= -axis <= len(value) and value[axis] != frame.size
        if wrong:
            plates = ", ".join(f"'{f.name}' of size {f.size}" for f in site["cond_indep_stack"])
            inside = f", in plate {plates}" if plates else ""
            raise ModelError(
                f"The episode model '{name_of(model)}': site '{name}' has data of shape {value}, but its "
                f"distribution has shape {fn}{inside}. Arguments of one episode must agree in their rows."
            )


def check_new_episode(
    where: str,
    form: EpisodeForm,
    shared: Mapping[str, Any],
    args: tuple,
    kwargs: dict,
    like: tuple[Layout, ...] | None,
) -> None:
    """A new episode against those trained on.

    :param like: how the arguments of one of them were laid out.
    :raises ArgumentError: naming the argument.
    :raises ModelError: naming the site.
    """
    check_call(f"{where}: the episode model", form.model, args, kwargs)
    check_data(f"{where}: the episode model's", args, kwargs)
    if like and not kwargs:
        if len(args) != len(like):
            raise ArgumentError(
                f"{where}: the episodes trained on had {len(like)} arguments, this one has {len(args)}."
            )
        for i, (new, old) in enumerate(zip(args, like, strict=True)):
            _check_alike(f"{where}: argument {i}", new, old)
        single = [
            (i, x, shapes[0])
            for i, (x, (_, shapes)) in enumerate(zip(args, like, strict=True))
            if len(shapes) == 1 and shapes[0]
        ]
        rows = [(i, jnp.shape(x)[0]) for i, x, shape in single if shape[0]]
        empty, full = [i for i, n in rows if n == 0], [i for i, n in rows if n]
        if empty and full:
            raise ArgumentError(f"{where}: argument {empty[0]} is empty and argument {full[0]} is not.")
    if not is_empty(args, kwargs):
        program = form.program(shared)
        sites = traced(program, args, kwargs, jax.random.key(0))
        if not observed_sites(sites):
            raise ModelError(
                f"{where}: the episode model '{name_of(form.model)}' observes nothing with these arguments. "
                "Pass the new episode's data."
            )
        check_shapes(form.model, sites)


def is_empty(args: tuple, kwargs: dict) -> bool:
    """Whether an episode has arrays, and none has rows."""
    rows = [jnp.shape(x)[0] for x in jax.tree.leaves((args, kwargs)) if jnp.ndim(x)]
    return bool(rows) and not any(rows)


def _check_alike(where: str, new: Any, old: Layout) -> None:
    structure, shapes = old
    if jax.tree.structure(new) != structure:
        raise ArgumentError(f"{where} has another structure than in the episodes trained on: {structure}.")
    for x, shape in zip(jax.tree.leaves(new), shapes, strict=True):
        if jnp.ndim(x) != len(shape) or jnp.shape(x)[1:] != shape[1:]:
            wanted = (
                ("(rows" + "".join(f", {n}" for n in shape[1:]) + ("," if len(shape) == 1 else "") + ")")
                if shape
                else "()"
            )
            raise ArgumentError(
                f"{where} has shape {jnp.shape(x)}; in the episodes trained on it was {wanted}."
            )


@eqx.filter_jit
def _by_site(form: EpisodeForm, shared, args, kwargs, rows, theta):
    return form.by_site(theta, shared, args, kwargs, rows)


def bad_site(loss: EpisodeLoss, theta: jax.Array) -> str | None:
    """Which observed site or factor of an episode first has a density that is not finite at θ, and why;
    ``None`` if none has.
    """
    for name, value in _by_site(loss.form, loss.shared, loss.args, loss.kwargs, loss.rows, theta).items():
        if not np.isfinite(value):
            return f"the log density of site '{name}' is {value}. {_why(loss, theta, name)}"
    return None


def bad_episode(losses: Any, batch: Batch, theta: jax.Array) -> str | None:
    """The first episode of a batch with a density that is not finite at θ.

    :param losses: ``losses(args, length)`` is an episode's :class:`EpisodeLoss`.
    """
    for i in range(batch.lengths.shape[0]):
        if not batch.lengths[i]:
            continue
        args = jax.tree.map(lambda x, i=i: x[i], batch.args)
        if (found := bad_site(losses(args, batch.lengths[i]), theta)) is not None:
            return f"in episode {int(batch.numbers[i])} {found}"
    return None


def _why(loss: EpisodeLoss, theta: jax.Array, name: str) -> str:
    values = loss.form.values(theta) | loss.form.shared_values(loss.shared)
    site = traced(loss.form.given(values, loss.shared), loss.args, loss.kwargs, jax.random.key(0))[name]
    value = np.asarray(site["value"])
    if isinstance(loss.rows, Rows) and site["cond_indep_stack"] and value.ndim:
        value = value[: int(loss.rows.length)]
    if value.dtype.kind == "f" and np.isnan(value).any():
        return (
            f"Its data hold {int(np.isnan(value).sum())} NaN of {value.size}: drop them, or mask them with "
            "numpyro.handlers.mask."
        )
    try:
        outside = ~np.asarray(site["fn"].support(value))
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        outside = np.zeros((), bool)
    if outside.any():
        return (
            f"Its data lie outside the support of {_law(site)} in {outside.sum()} of {outside.size} places."
        )
    return f"Look at the parameters that {_law(site)} gets there."


def _law(site: Mapping[str, Any]) -> str:
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__
