"""The set-up of a run of ``SVI`` in one compiled program.

NumPyro sets a run up number by number, and each of a hundred little programs is compiled on its own: four
fifths of the time to the first step. Under one ``jit`` they are one. What an automatic guide then keeps of
its set-up is traced, and is replaced by its values.

JAX keeps the little programs, so that a process that has compiled many has these, too, and they run in no
time: one program serves while a process is young.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import is_dependent
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoGuide, AutoNormal
from numpyro.primitives import Messenger

from ppl_ext.runtime.reads import Walk

YOUNG = 150
"""Programs that a process compiles before it has most of those that a set-up takes number by number."""
_compiled = [0]


def _count(event: str, duration_secs: float, **_: Any) -> None:
    _compiled[0] += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(_count)


def is_young() -> bool:
    """Whether this process has compiled few programs so far."""
    return _compiled[0] < YOUNG


def of_the_user(guide: AutoGuide) -> list[Any]:
    """What an automatic guide was made of, and its set-up leaves as it is."""
    return [vars(guide).get(name) for name in ("model", "init_loc_fn", "create_plates")]


class Sound(Messenger):
    """What NumPyro looks at where it has numbers: whether the parameters of laws are what they must be, and
    the densities of what is seen are finite. ``held``: whether they are, site by site; a law that
    no site has is not met here.
    """

    def __init__(self):
        super().__init__()
        self.held: list[jax.Array] = []

    def postprocess_message(self, msg):
        if msg["type"] != "sample" or msg.get("_control_flow_done"):
            return
        self.held += _parameters_hold(msg["fn"])
        if msg["is_observed"]:
            self.held.append(jnp.isfinite(msg["fn"].log_prob(msg["value"])).all())


def _parameters_hold(fn: Distribution) -> list[jax.Array]:
    own = [
        jnp.all(constraint(vars(fn)[name]))
        for name, constraint in fn.arg_constraints.items()
        if name in vars(fn) and not is_dependent(constraint)
    ]
    inside = [x for x in jax.tree.leaves(list(vars(fn).values()), is_leaf=_is_law) if _is_law(x)]
    return own + [held for law in inside for held in _parameters_hold(law)]


def _is_law(x: Any) -> bool:
    return isinstance(x, Distribution)


class Before:
    """What programs keep (attributes, cells, globals, lists), as it was before a run of them, to be put
    back.
    """

    def __init__(self, *programs: Any):
        found = [part for x in Walk({}, programs).seen.values() for part in _parts(x)]
        self.parts = [(part, names, _copied(part, names)) for part, names in found]

    def put_back(self) -> None:
        for part, names, before in self.parts:
            if isinstance(part, CellType):
                part.cell_contents = before
            elif isinstance(part, list):
                part[:] = before
            else:
                for name in () if names else [*part]:
                    if name not in before:
                        del part[name]
                part.update(before)


def _parts(x: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """What of a thing may change, each with the names in it that are its own; none for all."""
    if isinstance(x, dict | list):
        return [(x, ())]
    if isinstance(x, FunctionType):
        return [(x.__globals__, x.__code__.co_names), *((cell, ()) for cell in x.__closure__ or ())]
    return [(vars(x), ())] if hasattr(x, "__dict__") and not isinstance(x, type | ModuleType) else []


def _copied(part: Any, names: tuple[str, ...]) -> Any:
    if isinstance(part, CellType):
        return part.cell_contents
    return part.copy() if not names else {name: part[name] for name in names if name in part}


def keep_tracers(*programs: Any) -> bool:
    """Whether something that is traced can be reached from programs: what they computed once, and keep."""
    return any(isinstance(x, jax.core.Tracer) for x in Walk({}, programs).seen.values())


def in_order(guide: Any) -> bool:
    """Whether an automatic guide, and each part of one, has its sites in the model's order.

    A traced loop hands a dictionary on in the order of its names. A guide that lays its sites out in one
    vector takes the order that it finds; ``AutoNormal`` and ``AutoDelta`` go by names.
    """
    parts = [guide, *vars(guide).get("_guides", ())] if isinstance(guide, AutoGuide) else []
    for part in parts:
        locs = vars(part).get("_init_locs", {})
        in_model = [name for name in part.prototype_trace or () if name in locs]
        if list(locs) != in_model and not isinstance(part, AutoNormal | AutoDelta):
            return False
    return True


class Kept:
    """What ``svi`` and its automatic guide keep of a set-up that was traced. ``traced``: the tracers in it.

    :param given: the traced arguments of the set-up.
    """

    def __init__(self, svi: SVI, given: Any):
        kept, theirs = (
            (vars(svi.guide), of_the_user(svi.guide)) if isinstance(svi.guide, AutoGuide) else ({}, [])
        )
        self.what, self.given = [svi.constrain_fn, kept], jax.tree.leaves(given)
        self.others = {id(x): x for x in (svi.model, svi.guide, *theirs)}
        found: dict[int, Any] = {}
        replaced(self.what, lambda x: found.setdefault(id(x), x), dict(self.others))
        self.traced = [x for x in found.values() if all(x is not known for known in self.given)]

    def set(self, svi: SVI, values: list, given: Any) -> None:
        """Put values in the place of what was traced."""
        tracers, found = (*self.traced, *self.given), (*values, *jax.tree.leaves(given))
        known = {id(x): value for x, value in zip(tracers, found, strict=True)}
        replaced(self.what, lambda x: known[id(x)], dict(self.others))
        svi.constrain_fn = self.what[0]


def replaced(x: Any, value: Callable[[Any], Any], seen: dict[int, Any]) -> Any:
    """``x`` with ``value(tracer)`` for every tracer that can be reached from it, through containers, objects
    and closures: in place, but for tuples.

    :param seen: by ``id``, what was met, and stays as it is: at first, what is none of ours.

    >>> kept = {"a": [1, (2, 3)]}
    >>> jax.make_jaxpr(lambda x: kept.update(b=(x, {"c": x})))(1.0) and None
    >>> replaced(kept, lambda tracer: "traced", {})
    {'a': [1, (2, 3)], 'b': ('traced', {'c': 'traced'})}
    """
    if isinstance(x, jax.core.Tracer):
        return value(x)
    if id(x) in seen or isinstance(x, type | ModuleType):
        return seen.get(id(x), x)
    seen[id(x)] = x
    of = partial(replaced, value=value, seen=seen)
    if isinstance(x, dict):
        x.update({name: of(part) for name, part in x.items()})
    elif isinstance(x, list):
        x[:] = [of(part) for part in x]
    elif isinstance(x, tuple):
        parts = [of(part) for part in x]
        if any(part is not old for part, old in zip(parts, x, strict=True)):
            seen[id(x)] = x._make(parts) if hasattr(x, "_make") else type(x)(parts)
    elif isinstance(x, partial):
        state = of(x.func), of(x.args), of(x.keywords), of(vars(x))
        x.__setstate__(state)  # type: ignore[attr-defined]
    elif isinstance(x, FunctionType):
        x.__defaults__, x.__kwdefaults__ = of(x.__defaults__), of(x.__kwdefaults__)
        for cell in x.__closure__ or ():
            with suppress(ValueError):  # an empty one
                cell.cell_contents = of(cell.cell_contents)
    elif isinstance(x, MethodType):
        of(x.__self__)
    elif hasattr(x, "__dict__"):
        of(vars(x))
    return seen[id(x)]
