"""The latent sites of a model that a prior can be lifted from: found without computing anything, chosen by
pattern, put into layers.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import block, seed
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from ppl_ext.diagnostics.sites import is_factor
from ppl_ext.errors import ModelError
from ppl_ext.runtime.explain import explained


class Site(NamedTuple):
    """A latent site: the shape of its value, and how many of the axes on the right are its distribution's
    event.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Found(NamedTuple):
    """A site as it was met. ``problem`` says why its prior cannot be replaced, or is empty."""

    site: Site
    problem: str


class _Survey(Messenger):
    """Give every latent site a value of the right shape, and note what is met."""

    def __init__(self, values: Mapping[str, Any]):
        super().__init__()
        self.values = values
        self.latent: dict[str, Any] = {}
        self.laws: dict[str, dist.Distribution] = {}
        self.found: dict[str, Found] = {}
        self.mutable: list[str] = []

    def process_message(self, msg):
        if msg["type"] == "mutable":
            self.mutable.append(msg["name"])
        if msg["type"] != "sample" or msg.get("_control_flow_done") or is_factor(msg):
            return
        if msg["is_observed"] or msg["value"] is not None:
            return
        fn = msg["fn"]
        shape = (*msg["kwargs"].get("sample_shape", ()), *fn.shape())
        default = jnp.zeros(
            shape, jnp.int32 if fn.support is not None and fn.support.is_discrete else jnp.result_type(float)
        )
        msg["value"] = self.values.get(msg["name"], default)

    def postprocess_message(self, msg):
        if msg["type"] != "sample" or is_factor(msg):
            return
        name, fn = msg["name"], msg["fn"]
        self.found[name] = Found(Site(name, tuple(jnp.shape(msg["value"])), fn.event_dim), _problem(msg))
        if not msg["is_observed"] and not msg.get("_control_flow_done"):
            self.latent[name] = jax.typeof(msg["value"])
            self.laws[name] = fn


def _problem(msg) -> str:
    fn = msg["fn"]
    if msg["is_observed"]:
        return "is observed: only latent sites have a prior to tune"
    if msg.get("_control_flow_done"):
        return "lies inside scan, where a prior cannot be replaced from outside: sample it before the scan"
    if fn.support is not None and fn.support.is_discrete:
        return "is discrete: the families are over the reals"
    if not _is_real(fn.support):
        return (
            f"has support {fn.support}, and the families are over all reals: transform it in the model, or "
            "leave it out of the pattern"
        )
    if msg["kwargs"].get("sample_shape", ()):
        return "uses sample_shape: write numpyro.sample(name, fn.expand(shape)) instead"
    return ""


def _is_real(support: Any) -> bool:
    while isinstance(support, type(dist.constraints.independent(dist.constraints.real, 1))):
        support = support.base_constraint
    return any(
        support is c
        for c in (dist.constraints.real, dist.constraints.real_vector, dist.constraints.real_matrix)
    )


def survey(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Found]:
    """The sample sites of the model at these arguments, in order, each with why its prior cannot be replaced,
    if so.

    :raises ModelError: if the model keeps mutable state: a batch norm's statistics, a dropout's key.
    """

    def run(values: Mapping[str, Any]) -> _Survey:
        record = _Survey(values)

        def last() -> str:
            return (
                f"after site '{next(reversed(record.found))}'"
                if record.found
                else "before its first sample site"
            )

        with explained(model, last), numpyro.validation_enabled(False), block(), seed(rng_seed=0), record:
            model(*args, **kwargs)
        return record

    kept: list[_Survey] = []

    def once():
        kept.append(run({}))
        return 0

    jax.eval_shape(once)
    record = kept[0]
    if record.mutable:
        raise ModelError(
            f"The model keeps mutable state in {_listed(record.mutable)}, which many draws of a function at "
            "once would overwrite for each other. Leave out batch normalisation, dropout and the like, or "
            "use them in evaluation mode."
        )

    def laws(**values):
        return {name: jax.tree.leaves(fn) for name, fn in run(values).laws.items()}

    latent = {name: jax.ShapeDtypeStruct(t.shape, t.dtype) for name, t in record.latent.items()}
    found = dict(record.found)
    for name, sources in eval_provenance(laws, **latent).items() if latent else ():
        parents = sorted(
            frozenset().union(*jax.tree.leaves(sources, is_leaf=lambda s: isinstance(s, frozenset))) - {name}
        )
        if parents and not found[name].problem:
            found[name] = found[name]._replace(
                problem=f"is hierarchical already: its prior depends on {_listed(parents)}. Give it a prior "
                "without them, or lift "
                "that one instead"
            )
    return found


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Some names in quotes, and how many there are beside them."""
    shown = ", ".join(f"'{n}'" for n in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def choose(found: Mapping[str, Found], patterns: Sequence[str]) -> dict[str, list[Site]]:
    """The sites of each pattern, in the model's order.

    A name that is written out matches itself; otherwise ``*`` stands for any characters and ``?`` for one.
    Brackets are what they are, since names such as ``net/layers[0].weight`` have them.

    :raises ModelError: if a pattern matches nothing, two match one site, or a site's prior cannot be
        replaced.
    """
    chosen: dict[str, list[Site]] = {}
    taken: dict[str, str] = {}
    latent = [name for name, f in found.items() if not f.problem]
    for pattern in patterns:
        names = [pattern] if pattern in found else [n for n in found if _glob(pattern).fullmatch(n)]
        if not names:
            there = (
                f"Latent sites that can be lifted: {_listed(latent)}."
                if latent
                else "The model has no latent site that can be lifted."
            )
            raise ModelError(f"lift_prior: the pattern '{pattern}' matches no site. {there}")
        for name in names:
            if found[name].problem:
                raise ModelError(
                    f"lift_prior: the pattern '{pattern}' matches site '{name}', which {found[name].problem}."
                )
            if name in taken:
                raise ModelError(
                    f"lift_prior: site '{name}' is matched by '{taken[name]}' and by '{pattern}'; make one "
                    "of them narrower."
                )
            taken[name] = pattern
        chosen[pattern] = [found[name].site for name in names]
    return chosen


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)


def layer_of(name: str) -> str:
    """The name without its last part: the layer that a kernel and its bias have in common.

    >>> layer_of("net/Dense_0.kernel"), layer_of("net/layers[2].weight"), layer_of("w")
    ('net/Dense_0', 'net/layers[2]', 'w')
    """
    cut = max(name.rfind("."), name.rfind("/"))
    return name if cut < 0 else name[:cut]


def fan_in_of(site: Site) -> int:
    """How many inputs one output of this weight sums over, by the conventions of the libraries.

    Flax's ``kernel`` is (..., in, out), convolutions included; the ``weight`` of an equinox module
    (out, in, ...). Any other name is taken for a matrix (in, out), of a plain model. Vectors are biases or
    scales, and embeddings rows that are looked up: 1.

    >>> shapes = {"net/kernel": (3, 3, 4, 8), "net/weight": (8, 4, 3), "w": (5, 2), "net/bias": (8,)}
    >>> [fan_in_of(Site(name, shape, 0)) for name, shape in shapes.items()]
    [36, 12, 5, 1]
    """
    last = name[-1] if (name := re.split(r"[./]", site.name)) else ""
    if len(site.shape) < 2 or last in ("bias", "scale", "embedding"):
        return 1
    if last == "weight" and len(name) > 1:
        return math.prod(site.shape[1:])
    return math.prod(site.shape[:-1])
