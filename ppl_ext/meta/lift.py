"""Lift an episode model into a hierarchy over a stream of episodes (Kim and Hospedales 2024)."""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.checks import check_shapes
from ppl_ext.meta.distributions.niw import NIW
from ppl_ext.meta.episode import episode_form, traced
from ppl_ext.meta.fit import fit
from ppl_ext.meta.fitted import MetaFit, State, as_terms, saved_part, setup_of, start
from ppl_ext.meta.groups import parts, together
from ppl_ext.meta.hierarchy import Hierarchy, layout
from ppl_ext.meta.padding import row_plates
from ppl_ext.meta.solvers.laplace import LaplaceGGN
from ppl_ext.meta.solvers.local import LocalSolver
from ppl_ext.meta.streams.arriving import Stream, as_stream, example, finite_stream
from ppl_ext.meta.streams.stream import EpisodeStream
from ppl_ext.runtime.arguments import (
    check_call,
    check_flag,
    check_key,
    check_number,
    check_program,
    described,
)
from ppl_ext.runtime.checkpoint import Checkpoint
from ppl_ext.runtime.outside import reading


class Lifted(eqx.Module):
    """An episode model with its local and shared sites named; see :func:`lift`."""

    model: Callable = eqx.field(static=True)
    local: tuple[str, ...] = eqx.field(static=True)
    shared: tuple[str, ...] | None = eqx.field(static=True)
    structure: str = eqx.field(static=True)
    num_episodes: float | None = eqx.field(static=True)
    prior: NIW | None
    keep_prior: bool = eqx.field(static=True)

    def hierarchy(self, stream: Stream | Sequence[Any], rng_key: jax.Array | None = None) -> Hierarchy:
        """The hierarchy over a stream, from a trace of its longest episode.

        :raises ModelError: if a named site does not fit, or is not the same in episodes of different lengths.
        """
        stream = as_stream("lift", stream)
        if rng_key is not None:
            check_key("lift: rng_key", rng_key)
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        longest = example(stream)
        check_call("lift: the episode model", self.model, longest, {})
        with reading(self.model) as outside:
            form = episode_form(
                self.model, self.local, self.shared, longest, {}, rng_key, self.keep_prior, outside
            )
            check_shapes(self.model, traced(self.model, longest, {}, rng_key))
        if self.num_episodes is None and not isinstance(stream, EpisodeStream):
            raise ArgumentError(
                "lift: a simulator or a generator does not say how many episodes there are: say "
                "num_episodes=..., how many the data stand for, or math.inf."
            )
        num = (
            float(len(stream))
            if isinstance(stream, EpisodeStream) and self.num_episodes is None
            else float(self.num_episodes or 1)
        )
        like = tuple(layout(x) for x in longest)
        prior = self._prior(form.dim)
        plates = row_plates(form, prior.loc, stream, rng_key) if any(stream.ragged) else None
        return Hierarchy(form, prior, num, plates or (), like, plates is not None)

    def _prior(self, d: int) -> NIW:
        if self.prior is not None:
            if self.prior.dim != d:
                raise ArgumentError(
                    f"lift: prior is over {self.prior.dim} dimensions, the local sites have {d}."
                )
            if self.prior.structure != self.structure and d > 1:
                raise ArgumentError(
                    f"lift: prior is {self.prior.structure}, structure is '{self.structure}'."
                )
            return self.prior
        if self.structure == "diagonal":
            return NIW(jnp.zeros(d), 0.01, jnp.ones(d), 2.0)
        return NIW(jnp.zeros(d), 0.01, jnp.eye(d), d + 1.0)

    def fit(self, rng_key: jax.Array, stream: Stream | Sequence[Any], **options) -> MetaFit:
        """Train over a stream, or a list of episodes, or a generator of them: :func:`ppl_ext.meta.fit.fit` of
        :meth:`hierarchy`, which has the options."""
        check_key("fit: rng_key, the first argument,", rng_key)
        if options and (unknown := sorted(set(options) - set(inspect.signature(fit).parameters))):
            raise ArgumentError(
                f"fit: there is no option {unknown}; there are "
                f"{sorted(list(inspect.signature(fit).parameters)[3:])}."
            )
        stream = as_stream("fit", stream)
        of_form, of_steps = jax.random.split(rng_key)
        return fit(self.hierarchy(stream, of_form), of_steps, stream, **options)

    def untrained(self, stream: Stream | Sequence[Any], local_solver: LocalSolver | None = None) -> MetaFit:
        """The hierarchy as it stands before training: the shared law is its prior, shared values are where
        they start. To see what the prior says of an episode, or what training has changed."""
        hierarchy = self.hierarchy(stream)
        return MetaFit(hierarchy, _solver(local_solver), start(hierarchy), as_terms(np.zeros((3, 0))), 0.0)

    def load(
        self, path: str | os.PathLike, stream: Stream | Sequence[Any], local_solver: LocalSolver | None = None
    ) -> MetaFit:
        """A fit that :meth:`MetaFit.save` wrote, here or in another process; it adapts, and
        ``fit(..., init=...)`` goes on from it.

        :param stream: episodes like those trained on, from which the hierarchy is laid out again.
        :raises ArgumentError: if there is no such file, or it is of another hierarchy; it says what differs.
        """
        hierarchy = self.hierarchy(stream)
        found = Checkpoint(path).load(saved_part(start(hierarchy)), setup_of(hierarchy))
        if found is None:
            raise ArgumentError(f"load: there is no file '{path}'.")
        (niw, shared, step), losses = found
        return MetaFit(
            hierarchy, _solver(local_solver), State(niw, shared, None, step), as_terms(losses), 0.0
        )

    def as_model(self, stream: EpisodeStream, hierarchy: Hierarchy | None = None) -> Callable[[], None]:
        """The very same hierarchy as a plain NumPyro model without arguments, which NUTS and SVI take.

        Sites: ``"covariance"`` (or ``"variance"``, if diagonal), ``"mean"``, the shared sites under their own
        names, and ``"theta"`` in the plate ``"episodes"``, with the local sites as deterministic ones stacked
        by episode. ``param`` sites stay where they start, or where ``numpyro.handlers.substitute`` puts them.
        """
        stream = finite_stream("as_model", stream)
        built = self.hierarchy(stream) if hierarchy is None else hierarchy
        form, prior = built.form, built.prior
        found = parts(built, stream, stream.batch(np.arange(len(stream))))
        first = jax.tree.map(lambda x: x[0], found[-1].batch.args)
        built.form.unchanged("as_model")

        def losses(theta, shared):
            def one(t, args, length):
                return built.loss(shared, args, length)(t)

            each = [jax.vmap(one)(theta[p.places], p.batch.args, p.batch.lengths) for p in found]
            return together(each, [p.places for p in found])

        def model():
            covariance = _sample_covariance(prior)
            mean = numpyro.sample("mean", _normal(prior.loc, covariance / prior.mean_precision))
            options = {n: {"constraint": c} for n, c in form.constraints.items()}
            params = form.free({n: numpyro.param(n, v, **options.get(n, {})) for n, v in form.params.items()})
            latent = [
                numpyro.sample(f"_{s.name}", dist.ImproperUniform(dist.constraints.real, (), (s.size,)))
                for s in form.shared_sites
            ]
            shared = {"params": params, "latent": jnp.concatenate(latent) if latent else jnp.zeros(0)}
            for name, value in form.shared_values(shared).items():
                numpyro.deterministic(name, value)
            numpyro.factor("_shared", form.log_prior_of_shared(shared, first, {}))
            with numpyro.plate("episodes", len(stream)):
                theta = numpyro.sample("theta", _normal(mean, covariance))
                numpyro.factor("_episodes", -losses(theta, shared))
            for name, value in jax.vmap(form.values)(theta).items():
                numpyro.deterministic(name, value)

        return model


def lift(
    model: Callable,
    local: Sequence[str],
    shared: Sequence[str] | None = None,
    structure: str = "full",
    num_episodes: float | None = None,
    prior: NIW | None = None,
    keep_prior: bool = False,
) -> Lifted:
    r"""Lift a model of one episode into a hierarchy over many, with a Normal-Inverse-Wishart law that they
    share.

    .. math:: \mu, \Sigma \sim \mathrm{NIW}(\text{prior}), \quad \theta_i \sim N(\mu, \Sigma), \quad
        D_i \sim p(D \mid \theta_i, \text{shared})

    θ is the vector of the local sites, each in unconstrained space; their own priors are replaced by
    :math:`N(\mu, \Sigma)`, or with ``keep_prior`` kept as a factor, with its Jacobian.

    :param model: a NumPyro model of one episode; its arguments are the episode.
    :param local: names of latent sites that each episode has its own of, or patterns of a shell such as
        ``"net/*"`` (all weights of a network from ``numpyro.contrib.module.random_nnx_module``; take
        ``structure="diagonal"`` and a prior located at initial weights).
    :param shared: names of ``param`` and latent sites that all episodes have in common, estimated as points;
        default: all others.
    :param structure: of Σ: ``"full"``, ``"diagonal"``, or ``"block"`` (give ``prior`` with ``blocks``).
    :param num_episodes: N, how many episodes the hierarchy has; default: the stream's number. The divergence
        of the shared law from the prior weighs 1/N an episode; ``math.inf`` drops it and makes the shared law
        a point (empirical Bayes), an explicit choice.
    :param prior: a :class:`NIW` over θ; default: location 0, mean precision 0.01, unit scale matrix, d + 1
        degrees of freedom (2 if diagonal).
    :raises ArgumentError: for options that do not fit together.

    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import EpisodeStream
    >>> def episode(y):
    ...     level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(y)):
    ...         numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
    >>> stream = EpisodeStream([np.ones(3, np.float32), np.zeros(2, np.float32)])
    >>> lift(episode, local=["level"]).hierarchy(stream).form.dim
    1
    """
    check_program("lift: model", model)
    for name, names in (("local", local), ("shared", shared)):
        if names is None and name == "shared":
            continue
        if (
            isinstance(names, str)
            or hasattr(names, "dtype")
            or not isinstance(names, Iterable)
            or not all(isinstance(n, str) for n in names)
        ):
            raise ArgumentError(f"lift: {name} must be a list of site names, got {described(names)}.")
    if not isinstance(structure, str) or structure not in ("full", "diagonal", "block"):
        raise ArgumentError(f"lift: structure is 'full', 'diagonal' or 'block', got {described(structure)}.")
    if structure == "block" and prior is None:
        raise ArgumentError(
            "lift: structure='block' needs prior=NIW(..., blocks=...), which says where the blocks are."
        )
    if prior is not None and not isinstance(prior, NIW):
        raise ArgumentError(f"lift: prior must be a ppl_ext.meta.NIW, got {described(prior)}.")
    if num_episodes is not None:
        check_number("lift: num_episodes", num_episodes, at_least=1)
    check_flag("lift: keep_prior", keep_prior)
    return Lifted(
        model,
        tuple(local),
        None if shared is None else tuple(shared),
        structure,
        num_episodes,
        prior,
        keep_prior,
    )


def _solver(local_solver: LocalSolver | None) -> LocalSolver:
    if local_solver is not None and not isinstance(local_solver, LocalSolver):
        raise ArgumentTypeError(
            f"lift: local_solver must be an instance such as LaplaceGGN(), got {described(local_solver)}."
        )
    return LaplaceGGN() if local_solver is None else local_solver


def _normal(mean: jax.Array, covariance: jax.Array) -> dist.Distribution:
    if covariance.ndim == 1:
        return dist.Normal(mean, jnp.sqrt(covariance)).to_event(1)
    return dist.MultivariateNormal(mean, covariance_matrix=covariance)


def _sample_covariance(prior: NIW) -> jax.Array:
    laws = prior.covariance_law()
    if not isinstance(laws, list):
        return numpyro.sample("variance", laws)
    if len(laws) == 1:
        return numpyro.sample("covariance", laws[0])
    blocks = [numpyro.sample(f"covariance_{i}", law) for i, law in enumerate(laws)]
    return numpyro.deterministic("covariance", jax.scipy.linalg.block_diag(*blocks))
