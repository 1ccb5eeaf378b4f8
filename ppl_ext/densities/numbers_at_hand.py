"""What was seen of a program on numbers, for a run of it that has none: inside of a ``jit``, say.

Each verb says, by :class:`Numbers`, how to run its program on the numbers that it was called with.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token

import jax
from numpyro.primitives import _PYRO_STACK, Messenger

from ppl_ext.tracing.jaxprs import eval_context

_at_hand: ContextVar[tuple["Numbers", ...]] = ContextVar("at_hand", default=())
_looking: ContextVar[list[tuple[tuple, bool]] | None] = ContextVar("looking", default=None)


class Numbers:
    """Inside of ``with Numbers(set_up)``, what is asked of numbers is looked at by ``set_up()``: a run of the
    program on numbers, if it has them. It runs only if it must, and once for all times that this is
    entered.
    """

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


def known(what: tuple) -> bool | None:
    """What has been seen of this by one who has numbers."""
    return next((n.found[what] for n in reversed(_at_hand.get()) if what in n.found), None)


def seen(what: tuple, right: jax.Array) -> bool | None:
    """Whether this is right, kept for who has no numbers. If ``right`` is traced: what a run on numbers says;
    in that run itself, left to be told when it has them. None if nobody can say.
    """
    looks = _looking.get()
    if not isinstance(right, jax.core.Tracer):
        if looks is not None:
            looks.append((what, bool(right)))
        return bool(right)
    if looks is not None:
        jax.debug.callback(lambda right: looks.append((what, bool(right))), right)
        return True
    found = (numbers.seen().get(what) for numbers in reversed(_at_hand.get()))
    return next((right for right in found if right is not None), None)
