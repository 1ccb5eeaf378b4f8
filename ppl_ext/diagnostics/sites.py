"""What a model's sites look like (kind, plates, shapes), and how to run it on whole plates.

Diagnostics judge a fit on all of the data: a subsampled plate is therefore opened to its full size, so that
no draw is scored on a minibatch of its own and no scale stands in for data that were not seen.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.handlers import seed, substitute
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import element_mask, elements, mask_of
from ppl_ext.densities.given import Given
from ppl_ext.densities.recording import Aside, Record
from ppl_ext.errors import ModelError
from ppl_ext.tracing.scan_bodies import run_in_scan_body

TIME = "_time"
"""Stands for the axis of time among the plates of a term; the site that it belongs to knows its name."""


class PlateAxis(NamedTuple):
    """A plate as a site sees it: its name, its axis counted from the right of the batch shape, its full
    size.
    """

    name: str
    dim: int
    size: int


class Site(NamedTuple):
    """One site of a model run on its full plates.

    ``kind``: "latent", "observed", "factor", "deterministic", "param" or "mutable".
    ``shape``: of the value; ``batch_shape`` and ``event_ndim``: of the distribution at that value (for a
    deterministic site the batch shape is what its plates span). A site of a ``scan`` has its steps as the
    leading axis, in the order of the inputs; ``scan`` says which scan that is.
    ``finite``: a latent site whose values can be listed. ``masked``: some mask is on it. ``event_dims``:
    names the user gave the event's axes (``infer={"event_dims": [...]}``).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    batch_shape: tuple[int, ...]
    event_ndim: int
    plates: tuple[PlateAxis, ...]
    finite: bool
    auxiliary: bool
    scan: "ScanOfSite | None"
    masked: bool
    event_dims: tuple[str, ...]

    @property
    def in_scan(self) -> bool:
        return self.scan is not None


class ScanOfSite(NamedTuple):
    """The scan that a site is in: its place among the program's scans, whether its last step runs first, and
    how many steps back NumPyro's enumeration looks.
    """

    number: int
    reversed: bool
    history: int


class FullPlates(Messenger):
    """Run every plate on all of its indices, in order, whatever ``subsample_size`` it asks for; in ``scan``
    too.

    ``opened`` collects the names of the plates that were subsampled.

    >>> import numpyro, numpyro.distributions as dist
    >>> def model(x):
    ...     with numpyro.plate("rows", 6, subsample_size=2) as rows:
    ...         return x[rows]
    >>> with (plates := FullPlates()):
    ...     model(jnp.arange(6.0)).shape, plates.opened
    ((6,), {'rows'})
    """

    @staticmethod
    def around(program: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """One run of a program on its full plates."""
        with FullPlates():
            return program(*args, **kwargs)

    def __init__(self, opened: set[str] | None = None):
        super().__init__()
        self.opened: set[str] = set() if opened is None else opened

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda *_: FullPlates(self.opened))
        elif msg["type"] == "plate":
            size, subsample_size = msg["args"]
            if subsample_size not in (None, size):
                self.opened.add(msg["name"])
            # known numbers even where JAX traces, so that they index NumPy's arrays too
            with jax.ensure_compile_time_eval():
                msg["args"], msg["value"] = (size, size), jnp.arange(size)


class Unconditioned(Messenger):
    """Draw observed sites anew instead of reading the data; in ``scan`` too, where NumPyro's handler does
    nothing.
    """

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda *_: Unconditioned())
        elif msg["type"] == "sample" and msg["is_observed"] and not is_factor(msg):
            msg["is_observed"], msg["value"] = False, None


class _Recorder(Messenger):
    """Keep the final message of every site, and which of them came out of a ``scan``."""

    def __init__(self):
        super().__init__()
        self.messages: dict[str, dict] = {}
        self.scans: dict[str, ScanOfSite] = {}
        self._scan: ScanOfSite | None = None
        self._count = 0

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            self._scan = None
            if msg["fn"] is scan_wrapper:
                self._scan = ScanOfSite(self._count, bool(msg["args"][4]), msg["kwargs"].get("history", 1))
                self._count += 1

    def postprocess_message(self, msg):
        if "name" in msg:
            self.messages[msg["name"]] = msg.copy()
            if self._scan is not None and msg.get("_control_flow_done"):
                self.scans[msg["name"]] = self._scan


def given(model: Callable, values: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> Callable:
    """The model with these latent sites and params imposed; other names in ``values`` (deterministic sites)
    are ignored.

    The values of deterministic and observed sites are functions of the rest on the full plates, so stored
    ones may not override them.
    """
    model = Given(model, values)
    return substitute(model, data=dict(params)) if params else model


def is_factor(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message comes from ``numpyro.factor``."""
    fn = msg["fn"]
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


def describe(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping | None = None,
) -> dict[str, Site]:
    """The sites of a model on its full plates, by name and in order, without computing anything.

    :param values: one draw of the latent sites, arrays or ``jax.ShapeDtypeStruct``. Missing sites are drawn.
    :raises ModelError: if a value has not its site's shape, or the model cannot run on a plate it subsamples.
    """
    record, plates = _Recorder(), FullPlates()
    found: dict[str, Site] = {}

    def run(values, params):
        with record, plates:
            seed(given(model, values, params), jax.random.key(0))(*args, **kwargs)
        _explain(record, plates.opened, None)
        # Here and not after: a mask that the model computes is known as long as this trace lasts.
        messages = {n: m for n, m in record.messages.items() if m["type"] in _KINDS}
        found.update((n, _site(m, record.scans.get(n))) for n, m in messages.items())
        return 0

    try:
        jax.eval_shape(run, dict(values), dict(params or {}))
    except (TypeError, ValueError) as error:
        _explain(record, plates.opened, error)
        raise
    return found


def _explain(record: "_Recorder", opened: set[str], error: Exception | None) -> None:
    """Say in the user's words why a model does not run on its full plates."""
    remedy = (
        f" It subsamples {', '.join(map(repr, sorted(opened)))}; here it runs on all of it, so pass the "
        "whole data, and give local latent sites a value for every index."
        if opened
        else ""
    )
    for name, msg in record.messages.items():
        if msg["type"] == "sample" and msg["is_observed"]:
            batch = np.shape(msg["value"])[: np.ndim(msg["value"]) - msg["fn"].event_dim]
            if not _fits(batch, msg, opened):
                raise ModelError(
                    f"Site '{name}' has batch shape {tuple(msg['fn'].batch_shape)}, but its data "
                    f"{batch}.{remedy}"
                ) from error
        elif msg["type"] == "sample":
            expected, got = tuple(msg["fn"].shape()), tuple(np.shape(msg["value"]))
            if expected != got:
                raise ModelError(
                    f"Site '{name}' has shape {expected} in the model, but its value {got}.{remedy}"
                ) from error
    if error is not None and opened and not isinstance(error, ModelError):
        raise ModelError(f"The model does not run on its full plates ({error}).{remedy}") from error


def _fits(batch: tuple[int, ...], msg: dict, opened: set[str]) -> bool:
    """Data may be broadcast over a site, but one element is not the whole of a plate that was subsampled."""
    try:
        np.broadcast_shapes(batch, msg["fn"].batch_shape)
    except ValueError:
        return False
    plates = [f for f in msg["cond_indep_stack"] if f.name in opened and f.size > 1 and -f.dim <= len(batch)]
    return all(batch[f.dim] != 1 for f in plates)


_KINDS = ("sample", "deterministic", "param", "mutable")


def _site(msg: dict, scan: ScanOfSite | None) -> Site:
    sample = msg["type"] == "sample"
    kind = msg["type"]
    if sample:
        kind = "latent" if not msg["is_observed"] else "factor" if is_factor(msg) else "observed"
    # A param or mutable site may hold a whole network; only arrays have a shape to report.
    shape = np.shape(msg["value"]) if kind not in ("param", "mutable") else ()
    stack = () if kind in ("param", "mutable") else msg["cond_indep_stack"]
    plates = tuple(sorted((PlateAxis(f.name, f.dim, f.size) for f in stack), key=lambda p: p.dim))
    event_ndim = msg["fn"].event_dim if sample else 0
    if sample:
        batch_shape = np.broadcast_shapes(msg["fn"].batch_shape, shape[: len(shape) - event_ndim])
    else:
        span = max((-p.dim for p in plates), default=0) + (scan is not None)
        batch_shape, event_ndim = shape[:span], max(len(shape) - span, 0)
    return Site(
        name=msg["name"],
        kind=kind,
        shape=shape,
        batch_shape=tuple(batch_shape),
        event_ndim=event_ndim,
        plates=plates,
        finite=kind == "latent" and bool(msg["fn"].has_enumerate_support),
        auxiliary=sample and bool(msg["infer"].get("is_auxiliary")),
        scan=scan,
        masked=sample and mask_of(msg["fn"]) is not None,
        event_dims=tuple(msg["infer"].get("event_dims", ())) if sample else (),
    )


def messages_at(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
) -> dict[str, dict]:
    """The messages of a run on the full plates in which latent sites have these values, kept from handlers
    around.
    """
    with Aside(), (record := Record(model)), FullPlates():
        seed(given(model, values, params), jax.random.key(0))(*args, **kwargs)
    return record.sites


def observations(
    model: Callable,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The data a model sees on its full plates, NaN where they are masked out, and where each element is so
    (True), by observed site.
    """

    @jax.jit
    def run(values, params):
        with (record := _Recorder()), FullPlates():
            seed(given(model, values, params), jax.random.key(0))(*args, **kwargs)
        data, masked, hidden = {}, {}, {}
        for name, msg in record.messages.items():
            if msg["type"] == "sample" and msg["is_observed"] and not is_factor(msg):
                fn, data[name] = msg["fn"], jnp.asarray(msg["value"])
                seen = mask_of(fn)
                batch = data[name].shape[: data[name].ndim - fn.event_dim]
                shape = jnp.broadcast_shapes(fn.batch_shape, batch)
                masked[name] = jnp.zeros(shape, bool) if seen is None else jnp.broadcast_to(~seen, shape)
                if (each := element_mask(fn)) is not None:
                    hidden[name] = jnp.expand_dims(~each, [*range(-elements(fn).event_dim, 0)])
        return data, masked, hidden

    data, masked, hidden = jax.device_get(run(dict(values), dict(params or {})))
    return data | {name: _seen(data[name], x) for name, x in hidden.items()}, masked


def _seen(data: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Data with NaN where all that they are broadcast to is hidden: what stands there only fills a place."""
    hidden = np.all(hidden, tuple(range(hidden.ndim - data.ndim)))
    sizes = data.shape[data.ndim - hidden.ndim :]
    hidden = np.all(hidden, tuple(i for i, size in enumerate(sizes) if size == 1), keepdims=True)
    return np.where(hidden, np.nan, data) if hidden.any() else data


def check_complete(sites: Mapping[str, Site], values: Container[str], whose: str) -> tuple[str, ...]:
    """The finite latent sites without a value; any other latent site without one is an error."""
    missing = [s for s in sites.values() if s.kind == "latent" and s.name not in values]
    lost = [f"'{s.name}'" for s in missing if not s.finite]
    if lost:
        raise ModelError(
            f"{whose} no value for the latent site {', '.join(lost)}. Only sites with finitely many values "
            "can be summed out: give it a value, or a site of that name in the guide."
        )
    return tuple(s.name for s in missing)


def refuse_series(names: Sequence[str]) -> None:
    """Observations that feed the next are independent of each other given nothing but the past."""
    if names:
        raise ModelError(
            f"The observed site {', '.join(map(repr, sorted(names)))} has observations that the density of "
            "others reads, as in an autoregression: its terms are log p(y_t | y_<t, parameters), one step "
            "ahead, which leave-one-out cannot use. See ppl_ext.diagnostics.leave_future_out."
        )


def refuse_chains(names: Sequence[str]) -> None:
    """Finite sites inside ``scan`` are a chain: its observations are not independent given the other
    sites.
    """
    if names:
        raise ModelError(
            f"The finite site {', '.join(map(repr, sorted(names)))} is in a scan: its steps depend on each "
            "other, so there is no log p(y_t | parameters) apart from the other observations. Terms of that "
            "kind do not exist for a chain; only log p(y_t | y_<t, parameters) does (units='one_step'), "
            "which leave-one-out cannot use."
        )
