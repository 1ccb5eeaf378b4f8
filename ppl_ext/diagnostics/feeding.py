"""Which observations feed the density of others, as in an autoregression: leave-one-out has no use of their
terms, given the past.

Two ways lead from one observation to the next: the value that ``sample`` returns (carried through a scan,
say), and the array among the model's arguments that the data come from, read again elsewhere. Where the data
flow says that an element of either reaches only its own term, nothing is computed. Where it does not say so,
some elements change places and one sees which terms move. So a statistic of all the data (a law whose width
is their standard deviation) is no such link.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import seed
from numpyro.primitives import Messenger

from ppl_ext.densities.recording import Record
from ppl_ext.diagnostics.sites import FullPlates, Site, given, is_factor
from ppl_ext.tracing.credit import Deps, distrust, mark, trace_credit
from ppl_ext.tracing.inner_jits import trace_state
from ppl_ext.tracing.scan_bodies import run_in_scan_body
from ppl_ext.tracing.vmapped_sites import sent_out

ROUNDS = 32
"""How often a random half of the elements changes places: a link between two of them is missed with
probability of about (3/4)^32 = 1e-4. A short series whose terms feel a threshold has few links that show, so
few rounds would do for smooth densities only."""

Run = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


class _Returned(Messenger):
    """Change what an observed site returns to the program, and not what its own density is taken at."""

    def __init__(
        self, change: Callable[[str, jax.Array, Any], jax.Array], series: Mapping[str, Any] | None = None
    ):
        super().__init__()
        self.change, self.series, self.state = change, {} if series is None else series, trace_state()

    def process_message(self, msg):
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda step: _Returned(self.change, step), dict(self.series))

    def postprocess_message(self, msg):
        if (
            msg["type"] == "sample"
            and msg["is_observed"]
            and not is_factor(msg)
            and not msg.get("_control_flow_done")
        ):
            msg["value"] = self.change(msg["name"], msg["value"], self.series.get(msg["name"]))


def feeding_sites(
    model: Callable,
    draw: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    sites: Mapping[str, Site],
) -> frozenset[str]:
    """The observed sites with a term that depends on another observation, at one draw of the latent sites."""
    names = [n for n, s in sites.items() if s.kind == "observed" and np.prod(s.batch_shape, dtype=int) > 1]
    if not names:
        return frozenset()
    given_here = {n: jnp.asarray(v) for n, v in draw.items() if n in sites and sites[n].kind == "latent"}
    params = jax.tree.map(jnp.asarray, dict(params))

    def run(leaves: Sequence[Any], change: Callable, series: Mapping[str, Any]) -> tuple[dict, dict]:
        """What is observed, and its terms."""
        here_args, here_kwargs = restored(leaves)
        with (record := Record(model)), FullPlates(), _Returned(change, series):
            seed(given(model, given_here, params), jax.random.key(0))(*here_args, **here_kwargs)
        values = {n: record.sites[n]["value"] for n in names}
        return values, {n: jnp.asarray(record.sites[n]["fn"].log_prob(values[n])) for n in names}

    flat, tree = jax.tree.flatten((args, dict(kwargs)))
    places = [
        i
        for i, x in enumerate(flat)
        if isinstance(x, np.ndarray | jax.Array) and np.size(x) > 1 and x.dtype.kind in "fiub"
    ]

    def restored(leaves):
        every = list(flat)
        for i, x in zip(places, leaves, strict=True):
            every[i] = x
        return jax.tree.unflatten(tree, every)

    arrays = [jnp.asarray(flat[i]) for i in places]
    try:
        suspects = _by_flow(run, arrays, names, sites)
    # sizes are read off the data, which therefore cannot be traced
    except (TypeError, ValueError, IndexError):
        arrays, places = [], []
        suspects = _by_flow(run, arrays, names, sites)
    found: set[str] = set()
    if suspects.returned:
        found |= _by_exchange(_exchanges_of_returned(run, arrays, names), names)
    for place in suspects.leaves:
        found |= _by_exchange(_exchanges_of_leaf(run, arrays, names, place), names)
    return frozenset(found)


class _Suspects:
    def __init__(self, returned: bool, leaves: list[int]):
        self.returned, self.leaves = returned, leaves


def _by_flow(run: Run, arrays: list[jax.Array], names: list[str], sites: Mapping[str, Site]) -> _Suspects:
    """What may link one observation to the term of another, as far as the data flow tells."""
    batch = {n: len(sites[n].batch_shape) for n in names}

    def outputs():
        marked = [mark(x, f"argument {i}", x.ndim) for i, x in enumerate(arrays)]

        def change(name, value, _):
            ndim = batch[name] - sites[name].in_scan if name in batch else 0
            return mark(value, f"site {name}", min(ndim, jnp.ndim(value))) if name in batch else value

        values, terms = run(marked, change, {})
        shapes.update({n: jnp.shape(t) for n, t in terms.items()})
        return [jnp.asarray(values[n]) for n in names] + [terms[n] for n in names]

    shapes: dict[str, tuple[int, ...]] = {}
    credit, met = trace_credit(outputs)
    distrust(
        credit,
        met,
        {f"site {n}": batch[n] for n in names} | {f"argument {i}": x.ndim for i, x in enumerate(arrays)},
    )
    values, terms = (
        dict(zip(names, credit, strict=False)),
        dict(zip(names, credit[len(names) :], strict=True)),
    )
    returned = any(
        _crosses(f"site {n}", {f"site {n}": _itself(batch[n])}, terms[m], shapes[m])
        for n in names
        for m in names
    )
    leaves = [
        i
        for i in range(len(arrays))
        if any(
            _crosses(f"argument {i}", values[n], terms[m], shapes[m])
            for n in names
            if f"argument {i}" in values[n]
            for m in names
        )
    ]
    return _Suspects(returned, leaves)


def _itself(ndim: int) -> tuple:
    return tuple(("at", a) for a in range(ndim))


def _crosses(source: str, value: Deps, term: Deps, shape: tuple[int, ...]) -> bool:
    """Whether an element of the source may be seen at one observation and, in a term, at another."""
    if source not in term:
        return False
    pairs = list(zip(value[source], term[source], strict=False))
    pinned = {there[1] for here, there in pairs if here is not None and here == there and here[0] == "at"}
    return any(n > 1 and axis not in pinned for axis, n in enumerate(shape))


Exchange = Callable[[np.random.Generator], tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None]
"""From random numbers to where observations changed, and where their terms did; ``None`` if there is nothing
to change.
"""


def _by_exchange(exchange: Exchange, names: list[str]) -> set[str]:
    found: set[str] = set()
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        if (changed := exchange(rng)) is None:
            return found
        values, terms = changed
        for n in names:
            own = np.zeros(terms[n].shape, bool)
            for m in names:
                if values[m].shape == terms[n].shape:
                    own |= values[m]
            if (terms[n] & ~own).any():
                found.add(n)
        if len(found) == len(names):
            return found
    return found


def _half(rng: np.random.Generator, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A random half of some places, two at least, and the same in another order; of two places one, and the
    other.
    """
    if len(places) == 2:
        return tuple(np.split(rng.permutation(places), 2))  # type: ignore[return-value]
    chosen = places[rng.random(len(places)) < 0.5]
    if len(chosen) < 2:
        chosen = rng.choice(places, min(2, len(places)), replace=False)
    return chosen, np.roll(rng.permutation(chosen), 1) if len(chosen) > 1 else chosen


def _moved(before: Any, after: Any, ndim: int) -> np.ndarray:
    before, after = np.asarray(before), np.asarray(after)
    with np.errstate(invalid="ignore"):
        same = (
            (before == after)
            | (np.abs(before.astype(float) - after) <= 1e-6 * np.abs(before))
            | (np.isnan(before) & np.isnan(after))
        )
    return ~same.reshape(*same.shape[:ndim], -1).all(-1)


def _exchanges_of_leaf(run: Run, arrays: list[jax.Array], names: list[str], place: int) -> Exchange:
    evaluate = jax.jit(
        lambda leaf: run(
            [leaf if i == place else x for i, x in enumerate(arrays)], lambda name, value, _: value, {}
        )
    )
    leaf = arrays[place]
    before = jax.device_get(evaluate(leaf))
    feeds = _feeds(lambda x: evaluate(x)[0], leaf)

    def exchange(rng):
        chosen, others = _half(rng, feeds)
        if not len(chosen) or len(feeds) < 2:
            return None
        flat = np.asarray(leaf).reshape(-1).copy()
        flat[chosen] = flat[others]
        after = jax.device_get(evaluate(flat.reshape(leaf.shape)))
        ndim = {n: np.ndim(before[1][n]) for n in names}
        return tuple({n: _moved(before[k][n], after[k][n], ndim[n]) for n in names} for k in (0, 1))

    return exchange


def _feeds(values: Callable, leaf: jax.Array) -> np.ndarray:
    """The elements of an array that observed values are made of."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        out, pull = jax.vjp(
            lambda x: {n: v for n, v in values(x).items() if jnp.issubdtype(v.dtype, jnp.inexact)}, leaf
        )
        rng = np.random.default_rng(1)
        (slope,) = pull({n: jnp.asarray(rng.normal(size=v.shape), v.dtype) for n, v in out.items()})
        return np.flatnonzero(np.asarray(slope))
    if leaf.dtype == bool:
        return np.arange(leaf.size)
    # Of integers: each element gets a number of its own, and one sees which come out as they went in.
    seen = values(jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape))
    numbers = np.unique(np.concatenate([np.asarray(v).ravel() for v in seen.values()]))
    return np.array([i for i in numbers if 0 <= i < leaf.size and i == int(i)], int)


def _exchanges_of_returned(run: Run, arrays: list[jax.Array], names: list[str]) -> Exchange:
    evaluate = jax.jit(
        lambda series: run(arrays, lambda name, value, other: value if other is None else other, series)
    )
    values, before = jax.device_get(run(arrays, lambda name, value, _: value, {}))

    def exchange(rng):
        series, moved = {}, {}
        for n in names:
            flat = (
                np.asarray(values[n]).reshape(*np.shape(before[n]), -1).reshape(np.size(before[n]), -1).copy()
            )
            chosen, others = _half(rng, np.arange(len(flat)))
            old = flat.copy()
            flat[chosen] = flat[others]
            moved[n] = (old != flat).any(-1).reshape(np.shape(before[n]))
            series[n] = jnp.asarray(flat.reshape(np.shape(values[n])))
        after = jax.device_get(evaluate(series)[1])
        return moved, {n: _moved(before[n], after[n], np.ndim(before[n])) for n in names}

    return exchange
