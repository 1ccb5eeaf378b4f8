"""Rows that a plate declares to be independent, where the data flow cannot see it: looked at once, by
numbers, before they are trusted.

Some densities mix axes inside (a mixture of multivariates, a Fourier transform, whatever goes through an
operation without a rule), so that the elements of an enumerated plate seem to meet. The plate says that they
do not. That is believed if each element, given an outcome of its own at random, has the density that the
tables say; and never where there are no numbers to look at. Inside a ``jit`` there are none, and
those that the verb was called with serve (:mod:`ppl_ext.densities.numbers_at_hand`).
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.densities.elimination_structure import Declared
from ppl_ext.densities.finite_sites import Finite
from ppl_ext.densities.numbers_at_hand import known, seen
from ppl_ext.densities.variable_elimination import Elimination
from ppl_ext.errors import ModelError

Run = Callable[[Mapping[str, jax.Array]], Sequence[jax.Array]]
ROUNDS = 3  # of outcomes at random


def eliminated(
    run: Run, sites: Mapping[str, Finite], names: Sequence[str], declared: Declared
) -> Elimination:
    """The elimination by the data flow; where that refuses, by the plates, once they are seen to be right.

    :raises ModelError: if neither can; the message names the sites.
    """
    try:
        return Elimination(run, sites, names)
    except ModelError as error:
        refusal = error
    try:
        trusted = Elimination(run, sites, names, declared)
    except ModelError:
        raise refusal from None
    what = (tuple(names), tuple((s, site.shape) for s, site in sites.items()))
    if (right := known(what)) is None:
        right = seen(what, agrees(trusted, run))
    if right is None:
        raise ModelError(
            f"{refusal} Their plate says that they do not meet, which is checked by numbers; here, inside a "
            "jit or vmap, are none. Call it with numbers, or by fit or expectation, which look at their "
            "arguments first."
        )
    if not right:
        raise ModelError(
            f"{refusal} Their plate says that they do not meet, and at one draw, by numbers, they do."
        )
    return trusted


def agrees(elimination: Elimination, run: Run) -> jax.Array:
    """Whether the tables are those of the program, each element of the sites having an outcome of its own, at
    random.
    """
    rng = np.random.default_rng(0)
    indices = {
        n: jnp.asarray(rng.integers(len(s.support), size=(ROUNDS, *s.shape)))
        for n, s in elimination.sites.items()
    }

    def look(indices):
        tables = elimination.looked_up(indices)
        terms = run({n: elimination.sites[n].value(i) for n, i in indices.items()})
        pairs = [tuple(map(jax.lax.stop_gradient, pair)) for pair in zip(tables, terms, strict=True)]
        same = [jnp.allclose(table, term, rtol=1e-3, atol=1e-3, equal_nan=True) for table, term in pairs]
        return jnp.stack(same).all(), jnp.stack([jnp.isfinite(term).any() for _, term in pairs])

    same, finite = jax.vmap(look)(indices)
    # of a term that is nowhere finite, nothing was seen
    tells = jnp.array([bool(deps) for deps in elimination.credit])
    return same.all() & (finite.any(0) | ~tells).all()
