"""The one idea: a program is a NumPyro model, and it can be simulated and scored.

``simulate(program, *args)`` draws from a program and says how likely the draw was. ``log_density(program, values, *args)`` scores given
values. Objectives, gradient strategies and inference algorithms are built from these two, so whatever NumPyro accepts as a model (plates,
subsampling, masks, ``scale``, ``factor``, ``param``, ``scan``, modules, observed sites) works everywhere.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, Unit
from numpyro.handlers import block, infer_config, seed
from numpyro.primitives import _PYRO_STACK, Messenger

from ppl_ext.arguments import check_call, check_key, check_program, check_values
from ppl_ext.by_plates import AlsoDrawn, Numbers
from ppl_ext.density import LogDensity, site_term
from ppl_ext.elimination import finite_site
from ppl_ext.errors import ModelError
from ppl_ext.explain import explained, past_inner_jits, trace_state
from ppl_ext.laws import check_draw
from ppl_ext.scan_bodies import run_in_scan_body, scan_length
from ppl_ext.summing import Aside, summed_out
from ppl_ext.vmapped import Outside, sent_out, was_sent


class Program(eqx.Module):
    """A NumPyro model together with (some of) its arguments: ``Program(model, args, kwargs)(*more)`` runs it.

    It is itself a NumPyro model: handlers wrap it, and NUTS or SVI take it. Arrays in the arguments are leaves, so a program passes through
    ``jit`` and ``vmap``.

    >>> import numpyro, numpyro.distributions as dist
    >>> program = Program(lambda loc, y: numpyro.sample("y", dist.Normal(loc, 1.0), obs=y), (0.0,))
    >>> round(float(log_density(program, {}, 0.0).total), 4)  # more arguments follow those it has
    -0.9189
    """

    fn: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = eqx.field(default_factory=dict)

    def __call__(self, *args, **kwargs):
        return self.fn(*self.args, *args, **self.kwargs, **kwargs)


@jax.tree_util.register_pytree_node_class
class SiteValues(dict):
    """Values by site name, remembering which were auxiliary (``infer={"is_auxiliary": True}``) and so concern no other program."""

    def __init__(self, values=(), auxiliary: frozenset[str] = frozenset()):
        super().__init__(values)
        self.auxiliary = auxiliary

    def tree_flatten(self):
        names = tuple(self)
        return tuple(self[n] for n in names), (names, self.auxiliary)

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(zip(aux[0], leaves, strict=True), aux[1])


class Draw(NamedTuple):
    """What :func:`simulate` returns.

    ``values``: the unobserved sites by name, and the indices a subsampling plate drew, under the plate's name.
    ``log_density``: a :class:`~ppl_ext.density.LogDensity` of the whole run (latent and observed sites, factors), masks and scales applied.
    ``output``: what the program returned.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> draw = simulate(lambda: 2 * numpyro.sample("z", dist.Delta(3.0)), rng_key=jax.random.key(0))
    >>> float(draw.values["z"]), float(draw.log_density.total), float(draw.output)
    (3.0, 0.0, 6.0)
    """

    values: SiteValues
    log_density: LogDensity
    output: Any


def whole_message(name: str, fn: Distribution, infer: dict | None = None) -> dict:
    """A latent sample site's message with all the fields that NumPyro gives it, for a handler that is asked what it would do."""
    return {
        "type": "sample",
        "name": name,
        "fn": fn,
        "args": (),
        "kwargs": {"rng_key": None, "sample_shape": ()},
        "value": None,
        "scale": None,
        "is_observed": False,
        "intermediates": [],
        "cond_indep_stack": [],
        "infer": {} if infer is None else infer,
    }


def hides_all(handler: Messenger) -> bool:
    """Whether a handler is a ``block`` that hides any site, so that none outside of it is reached."""
    return isinstance(handler, block) and bool(handler.hide_fn(whole_message("", Unit(0.0))))


class _NoKey(Outside):
    """Refuse to draw: there is no key."""

    def process_message(self, msg):
        super().process_message(msg)
        if msg["type"] in ("sample", "plate") and msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            raise ModelError(
                f"No random key to draw {msg['type']} '{msg['name']}'. Pass rng_key=..., or wrap the program in handlers.seed."
            )


class _Record(Messenger):
    """Keep the final message of every site of a run. (NumPyro's ``trace`` reports duplicates by a bare assertion.)"""

    def __init__(self, program: Callable | None = None):
        super().__init__()
        self.program = program
        self.sites: OrderedDict[str, dict] = OrderedDict()
        self.state, self.stands = trace_state(), "before its first site"

    def process_message(self, msg):
        if "name" in msg:
            self.stands = f"at {'plate' if msg['type'] == 'plate' else 'site'} '{msg['name']}'"
        if sent_out(self, self.state, msg):
            return
        keys = any(isinstance(h, seed) or getattr(h, "brings_keys", False) for h in _PYRO_STACK)
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: Outside() if keys or msg["kwargs"]["substitute_stack"] else _NoKey())
        if keys:
            return
        _NoKey().process_message(msg)

    def postprocess_message(self, msg):
        if "name" not in msg or was_sent(self, msg):
            return
        name = msg["name"]
        if msg["type"] in ("sample", "deterministic") and name in self.sites:
            raise ModelError(f"Site '{name}' appears twice in one run; site names must be unique (see numpyro.handlers.scope).")
        if msg["type"] == "sample" and not msg["is_observed"] and not msg.get("_control_flow_done"):
            check_draw(name, msg["fn"], msg["value"], msg["kwargs"]["sample_shape"])
        self.sites[name] = msg.copy()
        self.stands = self.stands.replace("at ", "after ", 1)

    def plate_scales(self) -> dict[str, float]:
        out = {}
        for name, site in self.sites.items():
            if site["type"] == "plate":
                size, subsample_size = site["args"]
                out[name] = 1.0 if not subsample_size else size / subsample_size
        return out

    def log_density(self) -> LogDensity:
        scales, pairs = self.plate_scales(), []
        for name, site in self.sites.items():
            if site["type"] == "sample":
                with explained(self.program, partial(_where_density, name), site):
                    pairs.append(site_term(site, scales))
        return LogDensity(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), 0)


def _where_density(name: str) -> str:
    return f"where the density of site '{name}' is taken"


class _Impose(Messenger):
    """Give latent sites and subsampling plates their values, inside ``scan`` too, and refuse to draw what was not given."""

    strict = True

    def __init__(self, values, seen: set[str], summed: set[str] | None = None):
        super().__init__()
        self.values, self.seen, self.state = values, seen, trace_state()
        self.summed = summed  # collects latent sites without a value that are marked for enumeration; None refuses them

    def process_message(self, msg):
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "control_flow":
            length = scan_length(msg)
            values = dict(self.values)
            series = {n: v for n, v in values.items() if length is not None and jnp.shape(v)[:1] == (length,)}
            # A body site takes its slice; a site of the same shape at every step (no time axis) takes the value whole.
            # What handlers outside the body will condition or substitute there needs no value; a function may do so to any site.
            later = [held for _, held in msg["kwargs"]["substitute_stack"]]
            lenient = not self.strict or any(not isinstance(held, dict) for held in later)
            given = {n for held in later if isinstance(held, dict) for n in held}
            marks = [h.config_fn for h in _PYRO_STACK if isinstance(h, infer_config)]  # they do not reach into the body
            run_in_scan_body(
                self, msg, lambda slices: _ImposeStep(values, slices, self.seen, None if lenient else given, self.summed, marks), series
            )
        elif msg["type"] == "sample" and not msg.get("_control_flow_done"):
            self._sample(msg, self.values)
        elif msg["type"] in ("plate", "param") and msg["value"] is None and msg["name"] in self.values:
            self.seen.add(msg["name"])
            msg["value"] = self.values[msg["name"]]

    def _sample(self, msg, values):
        name = msg["name"]
        if name in values:
            if msg["is_observed"]:
                raise ModelError(
                    f"Site '{name}' is observed in the program, so it takes no value. Leave it out, or pass the data as `obs`."
                )
            self.seen.add(name)
            msg["value"] = _checked(name, values[name], msg["fn"].shape(msg["kwargs"]["sample_shape"]))
        elif msg["value"] is None and not msg["is_observed"]:
            hint = ""
            if msg["infer"].get("enumerate") == "parallel":
                if self.summed is not None and msg["fn"].has_enumerate_support:
                    self.summed.add(name)
                    msg["value"] = finite_site(name, msg).value(jnp.zeros((), int))  # any will do: its terms are made anew
                    return
                finite = msg["fn"].has_enumerate_support
                kind = type(msg["fn"]).__name__
                why, how = ("", ", with infer={'gradient': 'enumerate'}") if finite else (f", and {kind} has no list of values", "")
                hint = f" (it is marked for enumeration in the model{why}; give the guide a site of that name{how})"
            raise ModelError(
                f"No value for latent site '{name}'{hint}. Given: {_listed(values)}. If these come from a guide, it misses '{name}', or "
                "draws it inside a jax.jit of its own."
            )


class _ImposeStep(_Impose):
    def __init__(self, values, slices, seen, given_later: set[str] | None, summed: set[str] | None, marks: list[Callable]):
        super().__init__(values, seen, summed)
        self.slices, self.given_later, self.marks = slices, given_later, marks

    def _sample(self, msg, values):
        name, shape = msg["name"], msg["fn"].shape(msg["kwargs"]["sample_shape"])
        if name not in values and (self.given_later is None or name in self.given_later):
            return
        for config in self.marks if msg["value"] is None and not msg["is_observed"] else ():
            msg["infer"] = {**config(msg), **msg["infer"]}
        whole = values.get(name)
        if name in self.slices and (whole is None or jnp.ndim(whole) != len(shape)):
            values = {**values, name: self.slices[name]}
        super()._sample(msg, values)


def _listed(names) -> str:
    names = [f"'{n}'" for n in names]
    return ", ".join(names) if names else "none"


def _checked(name: str, value, shape: tuple[int, ...]):
    """A value fits a site if their shapes agree up to leading axes of size one."""
    given = jnp.shape(value)
    n = max(len(given), len(shape))
    if (1,) * (n - len(given)) + given != (1,) * (n - len(shape)) + tuple(shape):
        raise ModelError(f"Shapes disagree at site '{name}': the program expects {tuple(shape)}, the value has {given}. Check the plates.")
    return value


def _seeded(what: str, program: Callable, rng_key, args: tuple, kwargs: dict) -> Callable:
    """The program with its key, if there is one; all of it checked."""
    check_program(f"{what}: program", program)
    check_call(f"{what}: program", program, args, kwargs)
    if rng_key is None:
        return program
    if not isinstance(rng_key, int):  # a number is a seed to NumPyro
        check_key(f"{what}: rng_key", rng_key)
    return seed(program, rng_key)


def _past_inner_jits(attempt: Callable) -> Any:
    """As :func:`~ppl_ext.explain.past_inner_jits`; with handlers open, which have seen the first run, it is theirs to run again."""
    return past_inner_jits(attempt, again=not _PYRO_STACK)


def simulate(program: Callable, *args, rng_key: jax.Array | None = None, **kwargs) -> Draw:
    r"""Draw the unobserved sites of a program and score the run.

    .. math:: z \sim \prod_s p(z_s \mid z_{<s}), \qquad \ell = \sum_s \text{scale}_s \cdot \text{mask}_s \cdot \log p(z_s \mid z_{<s})

    with the log density :math:`\ell` over all sample sites, observed ones and factors included.

    :param program: a NumPyro model or guide; ``args`` and ``kwargs`` are passed to it.
    :param rng_key: needed outside :func:`ppl_ext.expectation` and ``numpyro.handlers.seed``, which bring their own.
    :return: :class:`Draw`.
    :raises ModelError: if two sites share a name, or no key is to be had.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> draw = simulate(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), rng_key=jax.random.key(0))
    >>> bool(draw.log_density.total == dist.Normal(0.0, 1.0).log_prob(draw.values["z"]))
    True
    """
    run = _seeded("simulate", program, rng_key, args, kwargs)

    def attempt():
        record = _Record(program)
        with explained(program, lambda: record.stands), record:
            return record, run(*args, **kwargs)

    record, output = _past_inner_jits(attempt)
    values, auxiliary = {}, set()
    for name, site in record.sites.items():
        if site["type"] == "sample" and not site["is_observed"]:
            values[name] = site["value"]
            if site["infer"].get("is_auxiliary"):
                auxiliary.add(name)
        elif site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            values[name] = site["value"]
            auxiliary.add(name)
    return Draw(SiteValues(values, frozenset(auxiliary)), record.log_density(), output)


def log_density(program: Callable, values: dict[str, Any], *args, rng_key: jax.Array | None = None, **kwargs) -> LogDensity:
    r"""The log density of a program at given values of its unobserved sites.

    .. math:: \sum_s \text{scale}_s \cdot \text{mask}_s \cdot \log p(z_s \mid z_{<s})

    over all sample sites, observed ones and factors included. A subsampling plate takes its indices from ``values`` (as
    :func:`simulate` returns them); if they are missing it draws them, and the result is then an unbiased estimate. Finite latent sites that
    are marked ``infer={"enumerate": "parallel"}`` (``numpyro.contrib.funsor.config_enumerate`` marks them all) and have no value are summed
    out, exactly and along the structure of the program (:mod:`ppl_ext.elimination`); the terms that they link are one term.

    :param values: one entry per unobserved site, shaped as the site; sites in ``scan`` have a leading time axis.
    :param rng_key: only for subsampling without given indices, outside :func:`ppl_ext.expectation`.
    :return: :class:`~ppl_ext.density.LogDensity`; ``.total`` is the number.
    :raises ModelError: if a latent site has no value, a value has no site, shapes disagree, or a marked site cannot be summed out. The
        message names the site.

    >>> import numpyro, numpyro.distributions as dist
    >>> model = lambda y: numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> round(float(log_density(model, {"z": 0.0}, 0.0)), 4)
    -1.8379
    """
    run = _seeded("log_density", program, rng_key, args, kwargs)
    check_values("log_density: values", values)

    def once(values, seen: set[str], summed: set[str]) -> _Record:
        record = _Record(program)
        with explained(program, lambda: record.stands), record, _Impose(values, seen, summed):
            run(*args, **kwargs)
        return record

    summed = set[str]()

    def attempt():
        seen = set[str]()
        summed.clear()
        record = once(values, seen, summed)
        if not summed:
            return record, seen, record.log_density()

        def aside(more: Mapping[str, jax.Array]) -> dict[str, dict]:
            with Aside():
                return once({**values, **more}, set(), set()).sites

        return record, seen, summed_out(record.sites, record.log_density(), summed, aside)

    def at_a_draw():
        key, numeric = jax.random.key(0), AlsoDrawn(program)
        drawn = simulate(numeric, *args, rng_key=key, **kwargs)
        log_density(numeric, {n: x for n, x in drawn.values.items() if n not in summed}, *args, rng_key=key, **kwargs)

    with Numbers(at_a_draw):
        record, seen, result = _past_inner_jits(attempt)
    extra = [n for n in values if n not in seen and n not in getattr(values, "auxiliary", ())]
    # Values of observed sites were refused above; a value for a deterministic site or a param is a misunderstanding too.
    if extra:
        latent = [n for n, s in record.sites.items() if s["type"] == "sample" and not s["is_observed"]]
        raise ModelError(
            f"The program has no latent site {_listed(extra)}; it has {_listed(latent)}. If the values come from a guide, rename the site "
            "or mark it infer={'is_auxiliary': True}."
        )
    return result
