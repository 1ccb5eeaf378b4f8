"""NumPyro's ``scope`` around a ``scan`` or ``cond``, and its ``reparam`` inside of one, as who works on
states has to meet them.

**Scopes.** Handlers outside of a scope meet the sites inside of the scan by the names that the scope gives
them.

NumPyro's scope does not reach the body: there the sites have their bare names, and the long ones only when
they are stacked, so that values given by the long names do not arrive. Here the body of whoever opens a
handler in it is wrapped twice: around the model's body the names become long, for the handler, and outside of
the handler they become bare again, for NumPyro, whose scope then makes them long.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.handlers import reparam, scope
from numpyro.primitives import _PYRO_STACK, Messenger

_NAMES = "_ppl_ext_names"


class Scoped(Messenger):
    """Long names, of these scopes, the innermost first."""

    def __init__(self, scopes: Sequence[Messenger]):
        super().__init__()
        self.scopes = tuple(scopes)

    def rename(self, msg: dict) -> None:
        for each in self.scopes:
            each.rename(msg) if isinstance(each, Scoped) else each.process_message(msg)

    def process_message(self, msg):
        bare = _names(msg)
        self.rename(msg)
        msg[_NAMES] = [*msg.get(_NAMES, ()), (bare, _names(msg))]

    def postprocess_message(self, msg):
        if msg.get(_NAMES):
            *msg[_NAMES], (bare, _) = msg[_NAMES]
            msg.update(bare)


class _Bare(Messenger):
    """The bare names again, for what lies further out."""

    def process_message(self, msg):
        if msg.get(_NAMES):
            msg.update(msg[_NAMES][-1][0])

    def postprocess_message(self, msg):
        if msg.get(_NAMES):
            msg.update(msg[_NAMES][-1][1])


def scopes_within(handler: Messenger) -> tuple[Messenger, ...]:
    """The open scopes between a handler and the site whose message it processes, the innermost first; not
    those that a :class:`Reaching` between them has dealt with."""
    found: list[Messenger] = []
    inside = False
    for each in _PYRO_STACK:
        if inside and isinstance(each, Reaching):
            break
        if inside and isinstance(each, scope | Scoped):
            found.insert(0, each)
        inside |= each is handler
    return tuple(found)


def within(scopes: Sequence[Messenger], handler: Callable[[], Messenger], body: Callable[[], Any]) -> Any:
    """Run a body with a handler that meets its sites by their long names."""
    with _Bare() if scopes else nullcontext(), handler(), Scoped(scopes) if scopes else nullcontext():
        return body()


_listening: list[list[str]] = []
_own: list[Callable] = []


@contextmanager
def as_written() -> Iterator[list[str]]:
    """Sites as the model writes them: while this is open NumPyro's ``reparam`` does nothing, and the sites
    that it would have changed are listed. It does not change the law of a site, but makes it a function of
    noise, which no longer says where the state is.

    A model opens ``reparam`` in its own code, where no handler of ours lies between it and the site; so its
    method is replaced meanwhile.
    """
    if not _listening:
        _own[:], reparam.process_message = [reparam.process_message], _only_told
    found: list[str] = []
    _listening.append(found)
    try:
        yield found
    finally:
        # By identity: of two runs in two threads, the one that began last need not be the one that ends
        # first.
        _listening[:] = [x for x in _listening if x is not found]
        if not _listening:
            reparam.process_message = _own.pop()


def _only_told(self, msg) -> None:
    if (
        msg["type"] == "sample"
        and (self.config.get(msg["name"]) if isinstance(self.config, dict) else self.config(msg)) is not None
    ):
        for found in _listening:
            found.append(msg["name"])


class Reaching(Messenger):
    """For a kernel of NumPyro's around a model with a scan: values that its handlers give by long names reach
    the sites inside, and these are as written."""

    def process_message(self, msg):
        if msg["type"] != "control_flow" or msg["fn"] is not scan_wrapper:
            return
        scopes = scopes_within(self)
        named = Scoped(scopes)

        def long(name: str) -> str:
            named.rename(copy := {"type": "sample", "name": name})
            return copy["name"]

        def body(carry, x, fn=msg["args"][0]):
            with as_written(), _Bookkeeping(scopes, bare):
                return fn(carry, x)

        bare: dict[str, dict] = {}
        held = msg["kwargs"]["substitute_stack"]
        held[:] = [
            (kind, {long(n): v for n, v in values.items()} if isinstance(values, dict) else values)
            for kind, values in held
        ]
        msg["args"], msg["_ppl_ext_bare"] = (body, *msg["args"][1:]), bare

    def postprocess_message(self, msg):
        if "_ppl_ext_bare" in msg:
            for site in msg["value"][1][0].trace.values():
                site.update(msg["_ppl_ext_bare"].get(site.get("name"), {}))


class _Bookkeeping(Scoped):
    """Long names that stay, and what they were."""

    def __init__(self, scopes: Sequence[Messenger], bare: dict[str, dict]):
        super().__init__(scopes)
        self.bare = bare

    def process_message(self, msg):
        names = _names(msg)
        self.rename(msg)
        if "name" in msg:
            self.bare[msg["name"]] = names

    def postprocess_message(self, msg):
        pass


def bare_names(msg: dict) -> dict:
    """Give a site that was recorded with its long names what it had before."""
    return msg[_NAMES][-1][0] if msg.get(_NAMES) else _names(msg)


def names_within(scopes: Sequence[Messenger], msg: dict) -> list[str]:
    """What a site is called inside of each of these scopes, and outside of all."""
    copy, names = dict(msg), [msg["name"]]
    for each in scopes:
        Scoped([each]).rename(copy)
        names.append(copy["name"])
    return names


def _names(msg: dict) -> dict:
    return {key: msg[key] for key in ("name", "cond_indep_stack") if key in msg}
