"""One episode of a model as a function of a flat, unconstrained vector: its local sites, what it shares, the
log likelihood of its data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import biject_to
from numpyro.handlers import block, seed, substitute, trace
from numpyro.primitives import Messenger

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.meta.streams.static_arguments import opening
from ppl_ext.program import log_density
from ppl_ext.runtime.explain import explained, name_of
from ppl_ext.runtime.outside import Outside
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class Site(eqx.Module):
    """Where a local or shared site stands in the flat vector."""

    name: str = eqx.field(static=True)
    start: int = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    transform: Any = eqx.field(static=True)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def constrain(self, vector: jax.Array) -> jax.Array:
        return self.transform(vector[self.start : self.start + self.size].reshape(self.shape))


class EpisodeForm(eqx.Module):
    """An episode model cut into its local vector θ, its shared values and its data; made by
    :func:`episode_form`.
    """

    model: Callable = eqx.field(static=True)
    sites: tuple[Site, ...]
    params: dict[str, Any]
    constraints: dict[str, Any] = eqx.field(static=True)
    shared_sites: tuple[Site, ...]
    start: jax.Array
    keep_prior: bool = eqx.field(static=True)
    outside: Outside | None = eqx.field(static=True, default=None)

    def unchanged(self, where: str) -> None:
        """Refuse to go on with other data than the model was lifted with.

        :raises ModelError: if data that the model reads from outside of its arguments have changed since it
            was lifted.
        """
        if self.outside is not None:
            self.outside.check(where, self.model)

    @property
    def dim(self) -> int:
        """d, the length of θ."""
        return sum(s.size for s in self.sites)

    def values(self, theta: jax.Array) -> dict[str, jax.Array]:
        """Local sites by name, in their own supports; θ of shape (d,)."""
        return {s.name: s.constrain(theta) for s in self.sites}

    def initial_shared(self) -> dict[str, Any]:
        """Initial values, unconstrained: ``param`` sites by name (trees, for a module's), shared latent sites
        as one vector.
        """
        return {"params": self.free(self.params), "latent": self.start}

    def free(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """``param`` sites by name, unconstrained."""
        return {
            n: jax.tree.map(biject_to(self.constraints[n]).inv, x) if n in self.constraints else x
            for n, x in params.items()
        }

    def params_of(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """``param`` sites by name, constrained."""
        return {
            n: jax.tree.map(biject_to(self.constraints[n]), x) if n in self.constraints else x
            for n, x in shared["params"].items()
        }

    def shared_values(self, shared: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Shared latent sites by name, in their own supports."""
        return {s.name: s.constrain(shared["latent"]) for s in self.shared_sites}

    def program(self, shared: Mapping[str, Any]) -> Callable:
        """The episode model with its ``param`` sites set."""
        return substitute(opening(self.model), data=self.params_of(shared))

    def given(self, values: Mapping[str, Any], shared: Mapping[str, Any]) -> Callable:
        """The episode model with ``param`` sites and these sample sites set."""
        return substitute(self.program(shared), data=dict(values))

    def by_site(
        self,
        theta: jax.Array,
        shared: Mapping[str, Any],
        args: tuple,
        kwargs: dict,
        rows: "Rows | None" = None,
    ) -> dict[str, jax.Array]:
        """The terms of :meth:`log_likelihood` by site; kept priors under the names of their sites, their
        Jacobian under ``"_jacobian"``.
        """
        program = self.program(shared)
        values = self.values(theta) | self.shared_values(shared)
        with block():  # a hierarchy as one model has sites of its own around this
            terms = log_density(
                program if rows is None else Masked(program, rows), values, *args, **kwargs
            ).by_site
        local, given = {s.name for s in self.sites}, {s.name for s in self.shared_sites}
        left_out = given if self.keep_prior else given | local
        kept = {name: v for name, v in terms.items() if name not in left_out}
        # an episode that is not padded has rows, or it has nothing to say
        if rows is not None and not rows.plates:
            kept = {
                name: v if name in local else jnp.where(rows.length > 0, v, 0.0) for name, v in kept.items()
            }
        return kept | {"_jacobian": self._log_jacobian(self.sites, theta)} if self.keep_prior else kept

    def log_likelihood(
        self,
        theta: jax.Array,
        shared: Mapping[str, Any],
        args: tuple,
        kwargs: dict,
        rows: "Rows | None" = None,
    ) -> jax.Array:
        """log p(D | θ, shared), over the real rows; the local sites' own priors are left out, or kept with
        their Jacobian.
        """
        return sum(self.by_site(theta, shared, args, kwargs, rows).values(), start=jnp.zeros((), theta.dtype))

    def log_prior_of_shared(self, shared: Mapping[str, Any], args: tuple, kwargs: dict) -> jax.Array:
        """log density of the shared latent sites in unconstrained space (their own priors, with the
        Jacobian).
        """
        if not self.shared_sites:
            return jnp.zeros(())
        values = self.values(jnp.zeros(self.dim, shared["latent"].dtype)) | self.shared_values(shared)
        with block():
            terms = log_density(self.program(shared), values, *args, **kwargs).by_site
        own = sum((terms[s.name] for s in self.shared_sites), start=jnp.zeros((), shared["latent"].dtype))
        return own + self._log_jacobian(self.shared_sites, shared["latent"])

    def _log_jacobian(self, sites: tuple[Site, ...], vector: jax.Array) -> jax.Array:
        total = jnp.zeros((), vector.dtype)
        for s in sites:
            x = vector[s.start : s.start + s.size].reshape(s.shape)
            total += jnp.sum(s.transform.log_abs_det_jacobian(x, s.transform(x)))
        return total


class EpisodeLoss(eqx.Module):
    """θ ↦ −log p(D | θ, shared) of one episode, and the same cut in two: the parameters of its observed
    distributions, and their loss.
    """

    form: EpisodeForm
    shared: dict[str, Any]
    args: tuple
    kwargs: dict[str, Any]
    rows: "Rows | None" = None

    def __call__(self, theta: jax.Array) -> jax.Array:
        return -self.form.log_likelihood(theta, self.shared, self.args, self.kwargs, self.rows)

    def outputs(self, theta: jax.Array) -> list[jax.Array]:
        """The real-valued parameters of every observed distribution."""
        return self._cut(theta)[0]

    def of_outputs(self, theta: jax.Array) -> Callable[[list[jax.Array]], jax.Array]:
        """The loss as a function of :meth:`outputs`, other things as they are at ``theta``."""
        return self._cut(theta)[1]

    def _cut(self, theta):
        values = self.form.values(theta) | self.form.shared_values(self.shared)
        program = self.form.given(values, self.shared)
        program = program if self.rows is None else Masked(program, self.rows)
        with numpyro.validation_enabled(False), block():
            with explained(self.form.model):
                sites = trace(seed(program, jax.random.key(0))).get_trace(*self.args, **self.kwargs)
            observed = list(observed_sites(sites).values())
            leaves, structure = jax.tree.flatten([s["fn"] for s in observed])
        real = [isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

        def loss(outputs):
            outputs = iter(outputs)
            filled = jax.tree.unflatten(
                structure, [next(outputs) if r else x for x, r in zip(leaves, real, strict=True)]
            )
            total = jnp.zeros((), theta.dtype)
            for fn, site in zip(filled, observed, strict=True):
                scale = 1.0 if site["scale"] is None else site["scale"]
                total -= jnp.sum(scale * fn.log_prob(site["value"]))
            return total

        return [x for x, r in zip(leaves, real, strict=True) if r], loss


class Rows(eqx.Module):
    """Which rows of a padded episode are real: the first ``length`` of each plate named.

    :param plates: names of the plates that range over rows; none for an episode that is not padded.
    :param length: how many rows are real, a number that may be traced.
    """

    plates: tuple[str, ...] = eqx.field(static=True)
    length: jax.Array


class Masked(eqx.Module):
    """A program in which only the real rows count."""

    program: Callable
    rows: Rows

    def __call__(self, *args, **kwargs):
        with _Mask(self.rows):
            return self.program(*args, **kwargs)


class _Mask(Messenger):
    def __init__(self, rows: Rows):
        super().__init__()
        self.rows = rows

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _Mask(self.rows))
        if msg["type"] != "sample":
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.rows.plates:
                real = jnp.arange(frame.size) < self.rows.length
                real = real.reshape((-1,) + (1,) * (-frame.dim - 1))
                msg["fn"] = msg["fn"].mask(real)


def traced(model: Callable, args: tuple, kwargs: dict, rng_key: jax.Array) -> dict[str, dict]:
    """The sites of one run of an episode model."""
    with numpyro.validation_enabled(False), explained(model), block():
        return trace(seed(opening(model), rng_key)).get_trace(*args, **kwargs)


def observed_sites(sites: Mapping[str, dict]) -> dict[str, dict]:
    """Observed sites and factors of a trace."""
    return {n: s for n, s in sites.items() if s["type"] == "sample" and s["is_observed"]}


def episode_form(
    model: Callable,
    local: Sequence[str],
    shared: Sequence[str] | None,
    args: tuple,
    kwargs: dict,
    rng_key: jax.Array,
    keep_prior: bool = False,
    outside: Outside | None = None,
) -> EpisodeForm:
    """Trace a model on one episode and lay its local sites out in a vector.

    :raises ModelError: for a local site that is missing, observed, discrete or inside ``scan``; for a latent
        site that is neither local nor shared; for a subsampled plate. The message names the site.
    """
    sites = traced(model, args, kwargs, rng_key)
    local = _expanded(local, sites)
    latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
    params = {n: s for n, s in sites.items() if s["type"] == "param"}
    who = f"The episode model '{name_of(model)}'"
    listed = ", ".join(f"'{n}'" for n in latent) or "none"
    if not local:
        raise ArgumentError(f"lift: name at least one local site; {who.lower()} has {listed}.")
    for name in local:
        if name in sites and name not in latent:
            raise ModelError(
                f"{who}: local site '{name}' is {_what(sites[name])}, not a latent sample site. It has "
                f"{listed}."
            )
        if name not in sites:
            raise ModelError(
                f"{who} has no site '{name}' to be local. It has {listed}. Sites inside scan or cond cannot "
                "be local."
            )
    wanted = set(shared) if shared is not None else set(latent) - set(local) | set(params)
    for name in sorted(set(shared or ()) & set(local)):
        raise ArgumentError(f"lift: site '{name}' is named both local and shared.")
    for name in sorted(wanted - set(latent) - set(params)):
        raise ModelError(
            f"{who} has no latent or param site '{name}' to be shared. It has {listed}; params "
            f"{sorted(params)}."
        )
    for name in latent + list(params):
        if name not in wanted and name not in local:
            raise ModelError(f"{who}: site '{name}' is neither local nor shared. Add it to one of the two.")
    for name, site in sites.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ModelError(
                f"{who}: plate '{name}' is subsampled. An episode is scored whole: leave subsample_size away."
            )
    return EpisodeForm(
        model=model,
        sites=_laid_out(sites, [n for n in latent if n in local], who),
        params={n: s["value"] for n, s in params.items()},
        constraints={n: s["kwargs"]["constraint"] for n, s in params.items() if "constraint" in s["kwargs"]},
        shared_sites=(laid := _laid_out(sites, [n for n in latent if n in wanted], who)),
        start=jnp.concatenate([jnp.ravel(s.transform.inv(sites[s.name]["value"])) for s in laid])
        if laid
        else jnp.zeros(0),
        keep_prior=keep_prior,
        outside=outside,
    )


def _expanded(local: Sequence[str], sites: Mapping[str, dict]) -> list[str]:
    """Names as they are; patterns of a shell replaced by the latent sites that they fit."""
    free = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
    names = []
    for pattern in local:
        names += [pattern] if pattern in sites else [n for n in free if fnmatchcase(n, pattern)] or [pattern]
    return list(dict.fromkeys(names))


def _what(site: dict) -> str:
    return "observed" if site.get("is_observed") else f"a {site['type']} site"


def _laid_out(sites: dict[str, dict], names: Sequence[str], who: str) -> tuple[Site, ...]:
    laid, start = [], 0
    for name in names:
        fn, value = sites[name]["fn"], sites[name]["value"]
        if fn.support.is_discrete:
            raise ModelError(
                f"{who}: site '{name}' is discrete ({type(fn).__name__}), and a Gaussian cannot stand for "
                "it. Sum it out, or enumerate it inside an observed mixture."
            )
        with numpyro.validation_enabled(False):
            transform = biject_to(fn.support)
        shape = jax.eval_shape(partial(_inverse, transform), value).shape
        laid.append(Site(name, start, shape, transform))
        start += math.prod(shape)
    return tuple(laid)


def _inverse(transform, value):
    return transform.inv(value)
