"""What programs read from outside of their arguments: the part of a compilation's key that arguments do not
show.

A model may read data from its object, a closure's cell, a global, a default or a ``partial``. What was
compiled has them baked in, so it serves only as long as they are what they were. :func:`reading` gives each
state of a program's outside a value that can be hashed, the same one whenever that state is met again;
:func:`structure` is the part of it that is plain to see, by which objectives are told apart.

JAX's arrays cannot change and count by identity; NumPy's can, and count by content; numbers and strings by
value; functions, lists, dicts and objects by identity, and what is read from them. What a program changes
itself while it runs (a counter, a cache, an autoguide's prototype) is no part of it.
"""

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import jax

from ppl_ext.errors import ModelError
from ppl_ext.runtime.reads import Edge, Walk, wording

STATES = 8  # of one program's outside that are remembered, at most
PROGRAMS = 256  # whose outsides are remembered, at most

REMEDY = (
    ", and what was found before does not speak of it. Put it back to ask further, or run again; data that "
    "change are best passed as arguments."
)
_NUMBERS = count()
_watched: "OrderedDict[tuple, _Watch]" = OrderedDict()


@jax.tree_util.register_static
class Outside:
    """One state of what some programs read from outside; equal to itself alone, so that it can be a static
    argument of a ``jit``, or a part without arrays of what one carries along.

    :param here: whether it is of this process, and not of one that saved it.
    """

    def __init__(self, walk: Walk, here: bool = True):
        self.here = here
        self.number = next(_NUMBERS)
        self.edges: dict[Edge, Any] = dict(walk.edges)
        self._alive = [_weakly(x) for x in walk.seen.values()]
        self._skip: dict[Edge, Any] = {}

    def __repr__(self) -> str:
        return f"Outside({self.number})"

    def __reduce__(self) -> tuple:
        return _unknown, ()  # identities mean nothing in another process

    def __deepcopy__(self, memo: dict) -> "Outside":
        return self

    def holds(self, walk: Walk) -> bool:
        """Whether all that this walk met is as it was; what died meanwhile may have passed its identity
        on.
        """
        if any(ref() is None for ref in self._alive):
            return False
        edges = self.edges
        return len(walk.edges) <= len(edges) and all(
            edges.get(edge, _unknown) == value for edge, value in walk.edges.items()
        )

    def check(self, where: str, *programs: Any, remedy: str = REMEDY) -> None:
        """Whether what these programs read is still what it was when this was made.

        :raises ModelError: naming what has changed.
        """
        walk = Walk(self._skip, programs)
        for edge, value in walk.edges.items():
            if edge in self.edges and self.edges[edge] != value:
                raise ModelError(f"{where}: {wording(edge, walk)} has changed since{remedy}")


def _unknown() -> Outside:
    return Outside(Walk({}, ()), here=False)


def _weakly(x: Any) -> Any:
    try:
        return weakref.ref(x)
    except TypeError:  # a list, a dict: held for as long as it is part of a key
        return lambda: x


class _Watch:
    """The states in which the outside of one set of programs was met."""

    def __init__(self):
        self.states: list[Outside] = []
        # changed by the programs themselves, while they ran; and the owners, weakly
        self.skip: dict[Edge, Any] = {}

    def find(self, programs: tuple) -> tuple[Outside, bool]:
        """The state now, and whether it is new."""
        for edge in [e for e, owner in self.skip.items() if owner() is None]:
            del self.skip[edge]  # its identity may be another's by now
        walk = Walk(self.skip, programs)
        for state in self.states:
            if state.holds(walk):
                return state, False
        state = Outside(walk)
        state._skip = self.skip
        if walk.countable:
            self.states = [*self.states[1 - STATES :], state]
        return state, True

    def settle(self, state: Outside, programs: tuple) -> None:
        """After the first run in a state: what that run has changed is no reason to compile again."""
        walk = Walk(self.skip, programs)
        for edge in [e for e, value in walk.edges.items() if state.edges.get(e, _unknown) != value]:
            self.skip[edge] = _weakly(walk.seen[edge[0]] if edge[0] in walk.seen else walk.classes[edge[0]])
            state.edges.pop(edge, None)


@contextmanager
def reading(*programs: Any) -> Iterator[Outside]:
    """The present state of what ``programs`` read from outside, around their first run in it.

    >>> import numpy as np
    >>> class Mean:
    ...     def __init__(self, y):
    ...         self.y = y
    ...     def model(self):
    ...         return self.y.mean()
    >>> mean = Mean(np.zeros(3))
    >>> states = []
    >>> for value in (0.0, 0.0, 1.0, 0.0):
    ...     mean.y[:] = value
    ...     with reading(mean.model) as outside:
    ...         states.append(outside)
    >>> states[0] == states[1] == states[3], states[0] == states[2]
    (True, False)
    """
    key = structure(*programs)
    watch = _watched.get(key)
    if watch is None:
        watch = _Watch()
        if _hashable(key):
            _watched[key] = watch
            if len(_watched) > PROGRAMS:
                _watched.popitem(last=False)
    elif len(_watched) > PROGRAMS // 2:
        _watched.move_to_end(key)
    state, is_new = watch.find(programs)
    if not is_new:
        yield state
        return
    try:
        yield state
        watch.settle(state, programs)
    except BaseException:  # it did not get so far that what it changed could be told
        watch.states = [s for s in watch.states if s is not state]
        raise


def seen_by(state: Any, *programs: Any) -> Any:
    """The context in which a stream's next step is compiled: nothing new, if its state says in which state of
    the outside it began; else, after another process saved it, the present one."""
    return nullcontext(state) if state is not None and state.here else reading(*programs)


def still_there(where: str, state: Outside | None, *programs: Any) -> None:
    """Where a step of a stream is compiled: whether what it reads is what the stream began with.

    :raises ModelError: naming what has changed.
    """
    if state is not None:
        state.check(
            where, *programs, remedy=" the stream began. Put it back to go on, or begin another stream."
        )


def structure(*things: Any) -> tuple:
    """What can be seen of things without looking into them: numbers by value, NumPy's arrays by content,
    functions and objects by identity, tuples, frozen values and objectives by their parts.

    >>> import numpy as np
    >>> zeros, ones = np.zeros(2000), np.ones(2000)
    >>> structure(zeros, 1) == structure(np.zeros(2000), 1), structure(zeros) == structure(ones)
    (True, False)
    """
    walk = Walk({}, ())
    return tuple(walk.key(x) for x in things)


def _hashable(key: tuple) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
