"""A few simulations of a model, which say what sites it has, how large their values are, and whether a
network can answer for them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute, trace

from ppl_ext.errors import ModelError
from ppl_ext.handlers import unobserved
from ppl_ext.infer.amortised.checks import (
    RefuseImproper,
    alike,
    check_masks,
    checked_rows,
    checked_sites,
    latent_sites,
)
from ppl_ext.infer.amortised.data import PILOT, DataSets, Reach, scaled
from ppl_ext.program import simulate
from ppl_ext.runtime.explain import explained


class Latent(NamedTuple):
    """A latent site in unconstrained space: its place in the vector of all, and where that is centred.

    :param shape: of the unconstrained value.
    """

    support: Any
    shape: tuple[int, ...]
    start: int
    end: int


class Piloted(NamedTuple):
    """What the simulations say: data sets, latent sites that are answered for, where these are centred and
    how wide, and the latent sites that are averaged over."""

    data: DataSets
    latent: dict[str, Latent]
    center: np.ndarray
    scale: np.ndarray
    others: tuple[str, ...]


def piloted(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    rows: Sequence[str],
    count: str | None,
    sites: Any,
) -> Piloted:
    """Simulate the model and look.

    :raises ModelError: if a network that learns from simulations cannot answer for the model's sites; the
        message names the site.
    """
    names: set[str] = set()
    program = unobserved(model, names)
    runs = []
    for number in range(2):
        with explained(model), trace() as run, RefuseImproper():
            seed(program, random.key(number))(*args, **kwargs)
        runs.append(run)
    signature = inspect.signature(model)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    template = dict(bound.arguments)
    latent = checked_sites(runs[0], names, template, sites)
    rows, count = checked_rows(rows, count, names, template)
    for of_few in (1, len(template[rows[0]]) - 1) if count else ():
        with trace() as run:
            seed(substitute(program, data={count: jnp.asarray(of_few)}), random.key(0))(*args, **kwargs)
        runs.append(run)
    check_masks(runs, names, rows, count)
    keys = random.split(random.key(2), PILOT)
    drawn = jax.jit(jax.vmap(lambda key: dict(simulate(program, *args, rng_key=key, **kwargs).values)))(keys)
    reach = {}
    for name in (n for n in template if n in names):
        x = np.asarray(drawn[name], float)
        x = x.reshape(-1, *x.shape[2:]) if name in rows else x
        moves = not alike(runs[0][name]["fn"].support, runs[1][name]["fn"].support)
        support = None if moves else runs[0][name]["fn"].support
        reach[name] = Reach(*scaled(x), x.min(0), x.max(0), support, x[0])
    placed, free, start = {}, [], 0
    for name in latent:
        support = runs[0][name]["fn"].support
        if not alike(support, runs[1][name]["fn"].support):
            raise ModelError(
                f"amortise: the support of site '{name}' depends on other sites, and the network's law has "
                f"one support. Wrap the model: ppl_ext.handlers.fixed_support(model, '{name}')."
            )
        x = np.asarray(biject_to(support).inv(drawn[name]), float)
        placed[name] = Latent(support, x.shape[1:], start, start := start + int(np.prod(x.shape[1:])))
        free.append(x.reshape(PILOT, -1))
    center, scale = scaled(np.concatenate(free, 1))
    others = tuple(n for n in latent_sites(runs[0], names) if n not in placed)
    return Piloted(DataSets(signature, template, rows, count, reach), placed, center, scale, others)
