"""Rows that a plate declares to be independent, where the data flow cannot see it: looked at once, by
numbers, before they are trusted.

Some densities mix axes inside (a mixture of multivariates, a Fourier transform, whatever goes through an
operation without a rule), so that the elements of an enumerated plate seem to meet. The plate says that they
do not. That is believed if each element, given an outcome of its own at random, has the density that the
tables say; and never where there are no numbers to look at. Inside a ``jit`` there are none: so each verb
says, by :class:`Numbers`, how to run its program on the numbers that it was called with.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import _PYRO_STACK, Messenger

from ppl_ext.densities.elimination_structure import Declared
from ppl_ext.densities.finite_sites import Finite
from ppl_ext.densities.variable_elimination import Elimination
from ppl_ext.errors import ModelError
from ppl_ext.tracing.jaxprs import eval_context

Run = Callable[[Mapping[str, jax.Array]], Sequence[jax.Array]]
ROUNDS = 3  # of outcomes at random
_at_hand: ContextVar[tuple["Numbers", ...]] = ContextVar("at_hand", default=())
_looking: ContextVar[list[tuple[tuple, bool]] | None] = ContextVar("looking", default=None)


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
    right: bool | jax.Array | None = _known(what)
    if right is None:
        right = agrees(trusted, run)
        if isinstance(right, jax.core.Tracer):
            right = _later(what, right)
        elif (looks := _looking.get()) is not None:
            looks.append((what, bool(right)))
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


class Numbers:
    """Inside of ``with Numbers(set_up)``, rows may be looked at by ``set_up()``: a run of the program on
    numbers, if it has them. It runs only if one must, and once for all times that this is entered."""

    def __init__(self, set_up: Callable[[], object]):
        self.set_up, self.has_run, self.before = set_up, False, list[Token]()
        self.found: dict[tuple, bool] = {}

    def __enter__(self) -> None:
        self.before.append(_at_hand.set((*_at_hand.get(), self)))

    def __exit__(self, *_) -> None:
        _at_hand.reset(self.before.pop())

    def seen(self) -> dict[tuple, bool]:
        """What a run met. Nothing if it cannot run: what it needs is traced, or not there."""
        if not self.has_run:
            self.has_run, looks = True, list[tuple[tuple, bool]]()
            stack, _PYRO_STACK[:] = _PYRO_STACK[:], []
            looking, at_hand = _looking.set(looks), _at_hand.set(())
            try:
                with eval_context():  # as if no trace were open
                    self.set_up()
            # whatever a program raises that is run on tracers from outside; the refusal stands
            except Exception:
                pass
            finally:
                jax.effects_barrier()
                for what, right in looks:
                    self.found[what] = self.found.get(what, True) and right
                _looking.reset(looking)
                _at_hand.reset(at_hand)
                _PYRO_STACK[:] = stack
        return self.found


class AlsoDrawn(Messenger):
    """Draw what a program observes of which there are no numbers: data that are traced."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["is_observed"] and isinstance(msg["value"], jax.core.Tracer):
            msg["value"], msg["is_observed"] = None, False


def _known(what: tuple) -> bool | None:
    """What has been seen of these rows by one who has numbers."""
    return next((n.found[what] for n in reversed(_at_hand.get()) if what in n.found), None)


def _later(what: tuple, right: jax.Array) -> bool | None:
    """The verdict on rows whose numbers are traced: that of a run on numbers; in that run itself, left to be
    told when it has them.
    """
    looks = _looking.get()
    if looks is not None:
        jax.debug.callback(lambda right: looks.append((what, bool(right))), right)
        return True
    return next(
        (verdict for n in reversed(_at_hand.get()) if (verdict := n.seen().get(what)) is not None), None
    )
