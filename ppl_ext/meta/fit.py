"""Train a lifted model over a stream of episodes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.fitted import MetaFit, State, as_terms, setup_of, start
from ppl_ext.meta.grouped import Grouped
from ppl_ext.meta.groups import bad_of_stream, parts
from ppl_ext.meta.hierarchy import Hierarchy, Terms
from ppl_ext.meta.solvers.laplace import ExactLinearGaussian, LaplaceGGN
from ppl_ext.meta.solvers.local import Gaussian, LocalSolver, closed_form
from ppl_ext.meta.streams.arriving import ArrivingStream, Stream, as_stream, example
from ppl_ext.meta.streams.stream import Batch, EpisodeStream, SimulatedStream, check_batch_size
from ppl_ext.runtime.apart import apart
from ppl_ext.runtime.arguments import check_count, check_flag, check_key, check_number, described
from ppl_ext.runtime.checkpoint import Checkpoint, digest, program
from ppl_ext.runtime.explain import explained, name_of
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.sharding import check_mesh, gathered, placed
from ppl_ext.runtime.training import Saver, check_checkpoint, progress, train

CUBATURE_UP_TO = 64
"""Local dimensions up to which expected losses are taken over 2d points; beyond, over ``num_draws``
antithetic pairs.
"""

LOOK = 50
"""Steps between two looks at the losses; the batches since the last one are kept, so that what breaks down
can be named.
"""


AHEAD = 4
"""Steps that may be under way at once."""


def default_rate(step: jax.Array, whole: bool) -> jax.Array:
    """1 for whole streams, (step + 1)^-0.7 for batches (Hoffman et al. 2013, section 2.5)."""
    return jnp.ones(()) if whole else (step + 1.0) ** -0.7


@dataclass(frozen=True)
class Trainer:
    """One step of training, compiled once per shape of the batch."""

    hierarchy: Hierarchy
    solver: LocalSolver
    optim: optax.GradientTransformation
    rate: Callable[[jax.Array], jax.Array]
    num_draws: int
    mesh: Mesh | None = None
    cubature_up_to: int = CUBATURE_UP_TO

    def start(self) -> State:
        state = start(self.hierarchy)
        return state._replace(optim=self.optim.init(state.shared))

    def step(self, state: State, batch: Batch, rng_key: jax.Array) -> tuple[State, Terms]:
        """Local fits; then the shared values by a gradient at fixed local laws, and the shared law by a
        natural-gradient step.
        """
        key = jax.random.fold_in(rng_key, state.step)
        of_fits, of_noise = jax.random.split(key)
        h, d = self.hierarchy, self.hierarchy.form.dim
        noise = (
            None
            if d <= self.cubature_up_to
            else jax.random.normal(of_noise, (self.num_draws, d), state.niw.loc.dtype)
        )

        def fit_all(niw, shared, batch, keys):
            return h.fits(niw, shared, batch, self.solver, keys)

        # Each device fits its own episodes, as long as these take. Were a local fit's loop one for all of
        # them, they would have to agree at each of its steps whether to go on.
        fits = apart(self.mesh, fit_all)(
            (state.niw, state.shared), (batch, jax.random.split(of_fits, batch.lengths.shape[0]))
        )

        def loss(shared):
            terms = h.terms(state.niw, shared, batch, fits, noise)
            return terms.total, terms

        grads, terms = jax.grad(loss, has_aux=True)(state.shared)
        return self.moved(state, grads, terms, jax.vmap(partial(closed_form, niw=state.niw))(fits))

    def moved(self, state: State, grads: Any, terms: Terms, q: Gaussian) -> tuple[State, Terms]:
        """The next state, from the slope of the bound by the shared values and each episode's Gaussian."""
        h = self.hierarchy
        updates, optim = self.optim.update(grads, state.optim, state.shared)
        shared = optax.apply_updates(state.shared, updates)
        niw = h.update(state.niw, q, self.rate(state.step))
        new = State(niw, shared, optim, state.step + 1)
        finite = (
            jnp.isfinite(terms.total)
            & jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((niw, shared))]).all()
        )
        state = jax.tree.map(partial(jnp.where, finite), new, state)
        return gathered(self.mesh, (state, terms._replace(loss=jnp.where(finite, terms.loss, jnp.nan))))


def fit(
    hierarchy: Hierarchy,
    rng_key: jax.Array,
    stream: Stream,
    local_solver: LocalSolver | None = None,
    optim: optax.GradientTransformation | None = None,
    num_steps: int | None = 200,
    batch_size: int | None = None,
    rate: float | Callable[[jax.Array], jax.Array] | None = None,
    num_draws: int = 8,
    init: MetaFit | None = None,
    checkpoint: Checkpoint | None = None,
    progress_bar: bool = True,
    mesh: Mesh | None = None,
) -> MetaFit:
    r"""Fit the shared law and the shared values of a lifted model to a stream of episodes.

    Each step fits the episodes of a batch from m₀ (nothing is stored per episode, and nothing is
    differentiated through the fit), moves the Normal-Inverse-Wishart law by a natural gradient, and the
    shared values by the optimiser. With the whole stream as one batch, an exact local solver and nothing
    shared this is coordinate ascent.

    :param hierarchy: of a lifted model over the stream (:meth:`Lifted.hierarchy`).
    :param rng_key: a JAX key.
    :param stream: the episodes.
    :param local_solver: default :class:`LaplaceGGN`.
    :param optim: an optax optimiser of the shared values; default ``optax.adam(1e-2)``.
    :param num_steps: steps, at most as many as an :class:`ArrivingStream` has batches; ``None`` for all of
        those.
    :param batch_size: episodes a step; default all (needed for a simulator or a generator).
    :param rate: of the natural-gradient step, in (0, 1], or a function of the step; default 1 for the whole
        stream, else (step + 1)^-0.7. Shared features that keep moving want a constant, 0.05 say.
    :param num_draws: pairs of draws for expected losses where θ has more than 64 dimensions.
    :param init: an earlier fit to go on from.
    :param checkpoint: a :class:`~ppl_ext.runtime.checkpoint.Checkpoint`: save the run as it goes; go on from
        there, to the last bit, if the file exists. ``num_steps`` then counts the steps made before, too. The
        file of a run on other episodes, or whose model read other numbers from outside, is refused.
    :param mesh: devices over which the episodes of a batch are spread,
        ``jax.make_mesh((8,), ("episodes",), axis_types=(AxisType.Auto,))``; every batch is then a multiple of
        their number.
    :return: :class:`MetaFit`.
    :raises ModelError: for :class:`ExactLinearGaussian` with a model that is not quadratic in θ.
    :raises NonFiniteError: if the bound or a parameter stops being finite, naming episode and site;
        ``error.result`` is the last good fit.
    """
    stream = as_stream("fit", stream)
    hierarchy.form.unchanged("fit")
    _check_arguments(
        rng_key, stream, local_solver, optim, num_steps, batch_size, num_draws, init, checkpoint, progress_bar
    )
    check_mesh("fit", mesh)
    of_batches, of_steps = jax.random.split(rng_key)
    whole = isinstance(stream, EpisodeStream) and (batch_size is None or batch_size >= len(stream))
    solver = LaplaceGGN() if local_solver is None else local_solver
    trainer = Trainer(
        hierarchy, solver, optax.adam(1e-2) if optim is None else optim, _rate(rate, whole), num_draws, mesh
    )
    state, losses = _resumed(trainer, init), np.zeros((3, 0))
    about = setup_of(hierarchy) | {
        "local_solver": repr(solver),
        "batch_size": batch_size,
        "rng_key": np.asarray(jax.random.key_data(rng_key)).ravel().tolist(),
    }
    if checkpoint is not None:
        about |= program(partial(_scored, hierarchy), state, example(stream))
        if isinstance(stream, EpisodeStream):
            about["data"] = digest(jax.tree.leaves(stream.episodes))
    saver = Saver(checkpoint, about)
    if (found := saver.load(state)) is not None:
        state, losses = found
    first = int(state.step)
    batches = stream.batches(of_batches, batch_size, first)
    total = None if num_steps is None else num_steps - (losses.shape[1] if checkpoint is not None else 0)
    run = _Run(trainer, stream, state, of_steps, batches, total)
    started = time.perf_counter()
    with progress("episodes", num_steps, losses.shape[1], progress_bar) as bar:
        losses, looked = train(run, losses, saver, bar)
    if not losses.size:
        raise ArgumentError(
            f"fit: there are fewer episodes than batch_size, {batch_size}, so no step could be made."
        )
    result = MetaFit(hierarchy, solver, run.state, as_terms(losses), time.perf_counter() - started)
    if not np.isfinite(losses).all():
        at = int(np.argmin(np.isfinite(losses).all(0)))
        error = NonFiniteError(f"The bound stopped being finite at step {at}: {run.why(at - looked)}")
        error.result = replace(result, terms=as_terms(losses[:, :at]))
        raise error
    return result


def _scored(hierarchy: Hierarchy, state: State, args: tuple) -> tuple[jax.Array, jax.Array]:
    """What an episode and the globals cost: the program that a checkpoint is of."""
    loss = EpisodeLoss(hierarchy.form, state.shared, args, {})
    return loss(state.niw.loc), hierarchy.of_globals(state.niw, state.shared, args)


class _Run:
    """Steps in the background, looked at every now and then."""

    def __init__(
        self,
        trainer: Trainer,
        stream: Stream,
        state: State,
        rng_key: jax.Array,
        batches: Iterator[Batch],
        total: int | None,
    ):
        self.trainer, self.stream, self.rng_key, self.batches, self.left = (
            trainer,
            stream,
            rng_key,
            batches,
            total,
        )
        self.state = placed(trainer.mesh, state, leading=False)
        self.step: Callable[[State, Batch, jax.Array], tuple[State, Terms]]
        if trainer.hierarchy.pads or isinstance(stream, SimulatedStream) or not any(stream.ragged):
            self.step = eqx.filter_jit(lambda state, batch, key: trainer.step(state, batch, key))
        else:
            if trainer.mesh is not None:
                raise ModelError(
                    f"fit: the episode model '{name_of(trainer.hierarchy.form.model)}' sees more of its "
                    "rows than a plate over them does, so episodes of different lengths are not padded, and "
                    "cannot be spread over a mesh. Leave mesh out, or have all that depends on the rows "
                    "inside of numpyro.plate('rows', len(data))."
                )
            self.step = Grouped(trainer, stream, stream[int(np.argmax(stream.lengths))]).step
        self.first = True

    def some(self) -> np.ndarray | None:
        """The bound's parts over the next steps, (3, steps); ``None`` if there are none left."""
        losses: list[Terms] = []
        self.seen: list[Batch] = []
        while len(losses) < LOOK and self.left != 0 and (batch := next(self.batches, None)) is not None:
            check_mesh("fit", self.trainer.mesh, len(batch.numbers), "the number of episodes in a batch")
            if self.first and isinstance(self.trainer.solver, ExactLinearGaussian):
                _check_quadratic(
                    self.trainer.hierarchy,
                    self.state,
                    parts(self.trainer.hierarchy, self.stream, batch)[-1].batch,
                )
            with explained(self.trainer.hierarchy.form.model):
                self.state, terms = self.step(self.state, placed(self.trainer.mesh, batch), self.rng_key)
            losses.append(terms)
            if len(losses) > AHEAD:  # or a whole look's batches would be queued
                jax.block_until_ready(losses[-1 - AHEAD])
            self.seen.append(batch)
            self.first, self.left = False, None if self.left is None else self.left - 1
        return (
            np.stack([np.stack([np.asarray(x) for x in terms]) for terms in losses], axis=1)
            if losses
            else None
        )

    def why(self, at: int) -> str:
        """What broke down at a step since the last look; the state has stayed as it was before."""
        hierarchy, state = self.trainer.hierarchy, self.state
        found = bad_of_stream(hierarchy, state.shared, self.stream, self.seen[at], state.niw.loc)
        found = (
            found
            or "its gradient, or a shared parameter after the step, is not. Smaller steps, or a prior with "
            "more df, may help."
        )
        return f"{found} The last good state is in this error's `.result`."


def _resumed(trainer: Trainer, init: MetaFit | None) -> State:
    state = trainer.start()
    if init is None:
        return state
    old = init.state if init.state.optim is not None else init.state._replace(optim=state.optim)
    wanted, got = (jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), s) for s in (state, old))
    if {jax.tree.structure(wanted)} != {jax.tree.structure(got)} or jax.tree.leaves(
        wanted
    ) != jax.tree.leaves(got):
        raise ArgumentError(
            "fit: init is of another hierarchy, or was trained with another kind of optimiser: their states "
            "differ."
        )
    return old


def _check_arguments(
    rng_key, stream, local_solver, optim, num_steps, batch_size, num_draws, init, checkpoint, progress_bar
) -> None:
    check_key("fit: rng_key, the first argument,", rng_key)
    if num_steps is not None or not isinstance(stream, ArrivingStream):
        check_count("fit: num_steps", num_steps)
    check_count("fit: num_draws", num_draws)
    check_flag("fit: progress_bar", progress_bar)
    if not isinstance(stream, EpisodeStream):
        check_batch_size("fit:", stream, batch_size)
    elif batch_size is not None:
        check_count("fit: batch_size", batch_size)
    if local_solver is not None and not isinstance(local_solver, LocalSolver):
        raise ArgumentTypeError(
            f"fit: local_solver must be an instance such as LaplaceGGN(), got {described(local_solver)}."
        )
    if optim is not None and not isinstance(optim, optax.GradientTransformation):
        raise ArgumentTypeError(
            f"fit: optim must be an optimiser of optax such as optax.adam(0.01), got {described(optim)}."
        )
    if init is not None and not isinstance(init, MetaFit):
        raise ArgumentTypeError(
            f"fit: init must be a MetaFit, what an earlier fit returned, got {described(init)}."
        )
    check_checkpoint("fit", checkpoint)
    refuse_open_handlers("fit")


def _rate(rate: Any, whole: bool) -> Callable[[jax.Array], jax.Array]:
    if rate is None:
        return partial(default_rate, whole=whole)
    if callable(rate):
        return rate
    check_number("fit: rate", rate)
    if not 0.0 < float(rate) <= 1.0:
        raise ArgumentError(f"fit: rate must lie in (0, 1], got {described(rate)}.")
    return lambda step: jnp.full((), float(rate))


def _check_quadratic(hierarchy: Hierarchy, state: State, batch: Batch) -> None:
    """A quadratic is told from anything else by its slope: linear between any three points."""
    longest = int(np.argmax(batch.lengths))
    loss = hierarchy.loss(
        state.shared, jax.tree.map(lambda x: x[longest], batch.args), batch.lengths[longest]
    )
    a = state.niw.loc
    b = a + jax.random.normal(jax.random.key(1), a.shape, a.dtype)
    slopes = [np.asarray(jax.grad(loss)(x), np.float64) for x in (a, (a + b) / 2, b)]
    if not np.isfinite(slopes).all():  # the first step will say where
        return
    scale = max(float(np.abs(s).max()) for s in slopes)
    if not np.abs(slopes[0] + slopes[2] - 2 * slopes[1]).max() <= 1e-3 * scale + 1e-6:
        raise ModelError(
            "ExactLinearGaussian serves episodes whose log likelihood is quadratic in the local sites (a "
            "Normal with fixed scale around a linear function of real-valued sites); this one is not. Use "
            "LaplaceGGN()."
        )
