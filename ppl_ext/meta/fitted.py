"""What training over a stream returns: the fitted shared law, and what can be done with it."""

import inspect
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, NonFiniteError
from ppl_ext.meta.adapt import Adapted, adapted, scale_nodes
from ppl_ext.meta.checks import bad_site, check_new_episode, is_empty
from ppl_ext.meta.distributions.niw import NIW
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.groups import bad_of_stream, each
from ppl_ext.meta.hierarchy import Hierarchy, Terms
from ppl_ext.meta.solvers.local import Gaussian, LocalSolver, closed_form
from ppl_ext.meta.streams.arriving import finite_stream
from ppl_ext.meta.streams.static_arguments import held
from ppl_ext.meta.streams.stream import Batch, EpisodeStream
from ppl_ext.runtime.arguments import check_count, check_key, described
from ppl_ext.runtime.checkpoint import Checkpoint
from ppl_ext.runtime.explain import explained
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised
from ppl_ext.runtime.verdict import Verdict


class State(NamedTuple):
    """All that training carries from step to step: a small pytree of arrays."""

    niw: NIW
    shared: dict[str, Any]
    optim: Any
    step: jax.Array


def start(hierarchy: Hierarchy) -> State:
    """Where training starts, without an optimiser."""
    shared = jax.tree.map(jnp.asarray, hierarchy.form.initial_shared())
    return State(hierarchy.prior, shared, None, jnp.zeros((), jnp.int32))


def saved_part(state: State) -> tuple:
    """What a finished fit keeps: all but the optimiser."""
    return state.niw, state.shared, state.step


def setup_of(hierarchy: Hierarchy) -> dict[str, Any]:
    """Which hierarchy a file is of."""
    sites = [f"{s.name}{list(s.shape)}" for s in hierarchy.form.sites]
    return {
        "local sites": ", ".join(sites),
        "structure": hierarchy.prior.structure,
        "num_episodes": hierarchy.num_episodes,
    }


def as_terms(losses: np.ndarray) -> Terms:
    """The bound's parts by step, from rows of an array."""
    return Terms(*np.asarray(losses))


@eqx.filter_jit
def _posteriors(
    hierarchy: Hierarchy, state: State, solver: LocalSolver, batch: Batch, keys: jax.Array
) -> Gaussian:
    fits = hierarchy.fits(state.niw, state.shared, batch, solver, keys)
    return jax.vmap(partial(closed_form, niw=state.niw))(fits)


@dataclass(frozen=True, repr=False)
class MetaFit(Summarised):
    """What training returns: the fitted shared law and values.

    ``niw``: q(μ, Σ), a :class:`~ppl_ext.meta.NIW`. ``shared``: the shared sites by name. ``losses``: the
    bound per episode, by step; ``terms`` its parts.

    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import ExactLinearGaussian, lift
    >>> def episode(y):
    ...     level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(y)):
    ...         numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
    >>> rows = [(np.full(2, y, np.float32),) for y in (1.0, 2.0, 3.0)]
    >>> lift(episode, ["level"]).untrained(rows, ExactLinearGaussian())  # .fit(key, rows) trains
    MetaFit(ExactLinearGaussian, full NIW over 1, num_steps=0)
    """

    hierarchy: Hierarchy
    solver: LocalSolver
    state: State
    terms: Terms
    run_seconds: float

    def __repr__(self) -> str:
        last = f", loss={self.losses[-1]:.4g}" if self.losses.size else ""
        return (
            f"MetaFit({type(self.solver).__name__}, {self.niw.structure} NIW over {self.niw.dim}, "
            f"num_steps={self.losses.size}{last})"
        )

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.meta.verdicts import of_fit

        return of_fit(self)

    def summary(self) -> str:
        """The shared law and values, and whether the bound still falls."""
        from ppl_ext.meta.summaries import of_fit

        return of_fit(self)

    @property
    def niw(self) -> NIW:
        return self.state.niw

    @property
    def losses(self) -> np.ndarray:
        return np.asarray(self.terms.total)

    @property
    def shared(self) -> dict[str, jax.Array]:
        """``param`` sites and shared latent sites by name, constrained."""
        return self.hierarchy.form.params_of(self.state.shared) | self.hierarchy.form.shared_values(
            self.state.shared
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the shared law and values to a file, whole or not at all; :meth:`Lifted.load` reads it. Plain
        arrays, never pickled.

        The optimiser is not in it: to go on with a run to the last bit, give ``fit`` a ``checkpoint``.
        """
        losses = np.stack([np.asarray(x) for x in self.terms])
        Checkpoint(path).save(saved_part(self.state), losses, setup_of(self.hierarchy))
        return Path(path)

    def posteriors(self, stream: EpisodeStream, rng_key: jax.Array | None = None) -> Gaussian:
        """Each episode's Gaussian over θ in a stream that was trained on: means (n, d), covariances (n, d, d)
        or (n, d).

        :raises NonFiniteError: if an episode's density is not finite, naming episode and site.
        """
        stream = finite_stream("posteriors", stream)
        if rng_key is not None:
            check_key("posteriors: rng_key", rng_key)
        key = jax.random.key(0) if rng_key is None else rng_key
        self.hierarchy.form.unchanged("posteriors")
        batch = stream.batch(np.arange(len(stream)))
        first = next(i for i, n in enumerate(stream.lengths) if n)
        check_new_episode(
            "posteriors", self.hierarchy.form, self.state.shared, stream[first], {}, self.hierarchy.like
        )
        with explained(self.hierarchy.form.model):
            keys = jax.random.split(key, len(stream))
            q = each(
                self.hierarchy,
                stream,
                batch,
                partial(_posteriors, self.hierarchy, self.state, self.solver),
                keys,
            )
        finite = all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(q))
        why = bad_of_stream(self.hierarchy, self.state.shared, stream, batch, self.niw.loc)
        if why is not None or not finite:
            raise NonFiniteError(f"posteriors: {why or 'a local fit is not finite'}")
        return q

    def to_arviz(
        self, episodes: Any, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES, **options: Any
    ) -> Any:
        """The ArviZ report over the episodes trained on: :func:`ppl_ext.meta.arviz_report.fit_to_arviz`,
        which has the options.
        """
        from ppl_ext.meta.arviz_report import fit_to_arviz

        known = list(inspect.signature(fit_to_arviz).parameters)[4:]
        if unknown := sorted(set(options) - set(known)):
            raise ArgumentError(f"to_arviz: there is no option {unknown}; there are {known}.")
        return fit_to_arviz(self, episodes, rng_key, num_samples, **options)

    def new_episode(self, where: str, args: tuple, kwargs: dict[str, Any]) -> EpisodeLoss | None:
        """An episode that was not trained on, checked; ``None`` if it has no rows.

        :raises ArgumentError: for arguments unlike those of the episodes trained on.
        :raises ModelError: for data that do not fit.
        :raises NonFiniteError: for data whose density is not finite, naming the site.
        """
        form, shared = self.hierarchy.form, self.state.shared
        form.unchanged(where)
        given = jax.tree.map(
            lambda x: np.asarray(x) if isinstance(x, list | float | int) else x,
            (args, kwargs),
            is_leaf=_is_list,
        )
        args, kwargs = held(given)
        check_new_episode(where, form, shared, args, kwargs, self.hierarchy.like)
        args, kwargs = jax.tree.map(jnp.asarray, (args, kwargs))
        loss = None if is_empty(args, kwargs) else EpisodeLoss(form, shared, args, kwargs)
        if loss is not None and (why := bad_site(loss, self.niw.loc)) is not None:
            raise NonFiniteError(f"{where}: {why}")
        return loss

    def adapt(
        self,
        rng_key: jax.Array,
        *args,
        prior: str = "student_t",
        num_samples: int = NUM_SAMPLES,
        num_nodes: int = 64,
        **kwargs,
    ) -> Adapted:
        r"""The posterior of the local sites on a new episode.

        With ``prior="student_t"`` θ has the law that the fitted hierarchy predicts, a scale mixture of
        Gaussians :math:`N(m_0, S/u),\; u \sim \mathrm{Gamma}(\nu/2, \nu/2)`: the local fit is combined in
        closed form with each of ``num_nodes`` values of u, weighed by the evidence each gives; exact (up to
        the nodes) for linear-Gaussian episodes. ``"mode"`` takes :math:`N(m_0, V_0/(n_0+d+2))`, and so does
        ``"student_t"`` where n₀ is beyond any counting.

        :param args: the new episode, as are all other keywords. Without rows (all its arrays empty) the
            posterior is the prior.
        :raises ArgumentError: for an unknown prior, or arguments unlike those of the episodes trained on.
        :raises ModelError: for data that do not fit their distribution, naming the site.
        :raises NonFiniteError: for data whose density is not finite, naming the site.
        """
        check_key("adapt: rng_key, the first argument,", rng_key)
        check_count("adapt: num_samples", num_samples)
        check_count("adapt: num_nodes", num_nodes)
        if not isinstance(prior, str) or prior not in ("student_t", "mode"):
            raise ArgumentError(f"adapt: prior is 'student_t' or 'mode', got {described(prior)}.")
        form, loss = self.hierarchy.form, self.new_episode("adapt", args, kwargs)
        of_fit, of_nodes, of_draws = jax.random.split(rng_key, 3)
        nodes = scale_nodes(self.niw, num_nodes, of_nodes) if prior == "student_t" else None
        with explained(form.model):
            mixture = adapted(loss, self.niw, self.solver, of_fit, nodes)
        check_finite("adapt", mixture)
        theta = mixture.draw(of_draws, num_samples)
        return Adapted(jax.vmap(form.values)(theta), theta, mixture, self.shared)


def check_finite(where: str, law: Any) -> None:
    """:raises NonFiniteError: for the law of a new episode."""
    if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(law)):
        raise NonFiniteError(
            f"{where}: the local fit is not finite. A solver with smaller or fewer steps, or a prior with "
            "more df, may help."
        )


def _is_list(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(v, int | float) for v in x)
