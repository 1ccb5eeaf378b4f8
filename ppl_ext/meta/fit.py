"""Train a lifted model over a stream of episodes, and adapt it to a new one."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from ppl_ext.arguments import check_count, check_flag, check_key, told
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.meta.adapt import Adapted, adapted, draws, scale_nodes
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.hierarchy import Hierarchy, Terms
from ppl_ext.meta.local import Gaussian, LocalSolver, closed_form
from ppl_ext.meta.niw import NIW
from ppl_ext.meta.solvers import ExactLinearGaussian, LaplaceGGN
from ppl_ext.meta.stream import Batch, EpisodeStream, SimulatedStream

CUBATURE_UP_TO = 64
"""Local dimensions up to which expected losses are taken over 2d points; beyond, over ``num_draws`` antithetic pairs."""


class State(NamedTuple):
    """All that training carries from step to step: a small pytree of arrays."""

    niw: NIW
    shared: dict[str, Any]
    optim: Any
    step: jax.Array


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

    def start(self, niw: NIW | None) -> State:
        shared = self.hierarchy.form.initial_shared()
        return State(self.hierarchy.prior if niw is None else niw, shared, self.optim.init(shared), jnp.zeros((), jnp.int32))

    def step(self, state: State, batch: Batch, rng_key: jax.Array) -> tuple[State, Terms]:
        """Local fits; then the shared values by a gradient at fixed local laws, and the shared law by a natural-gradient step."""
        key = jax.random.fold_in(rng_key, state.step)
        of_fits, of_noise = jax.random.split(key)
        h, d = self.hierarchy, self.hierarchy.form.dim
        noise = None if d <= CUBATURE_UP_TO else jax.random.normal(of_noise, (self.num_draws, d), state.niw.loc.dtype)
        fits = h.fits(state.niw, state.shared, batch, self.solver, of_fits)

        def loss(shared):
            terms = h.terms(state.niw, shared, batch, fits, noise)
            return terms.total, terms

        grads, terms = jax.grad(loss, has_aux=True)(state.shared)
        updates, optim = self.optim.update(grads, state.optim, state.shared)
        shared = optax.apply_updates(state.shared, updates)
        q = jax.vmap(partial(closed_form, niw=state.niw))(fits)
        niw = h.update(state.niw, q, self.rate(state.step))
        new = State(niw, shared, optim, state.step + 1)
        finite = jnp.isfinite(terms.total) & jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((niw, shared))]).all()
        return jax.tree.map(partial(jnp.where, finite), new, state._replace(step=state.step)), terms._replace(
            loss=jnp.where(finite, terms.loss, jnp.nan)
        )


def fit(
    hierarchy: Hierarchy,
    rng_key: jax.Array,
    stream: EpisodeStream | SimulatedStream,
    local_solver: LocalSolver | None = None,
    optim: optax.GradientTransformation | None = None,
    num_steps: int = 200,
    batch_size: int | None = None,
    rate: float | Callable[[jax.Array], jax.Array] | None = None,
    num_draws: int = 8,
    init: "MetaFit | None" = None,
    progress_bar: bool = True,
) -> "MetaFit":
    r"""Fit the shared law and the shared values of a lifted model to a stream of episodes.

    Each step fits the episodes of a batch from m₀ (nothing is stored per episode, and nothing is differentiated through the fit), moves the
    Normal-Inverse-Wishart law by a natural gradient, and the shared values by the optimiser. With the whole stream as one batch, an exact
    local solver and nothing shared this is coordinate ascent.

    :param hierarchy: of a lifted model over the stream (:meth:`Lifted.hierarchy`).
    :param rng_key: a JAX key.
    :param stream: the episodes.
    :param local_solver: default :class:`LaplaceGGN`.
    :param optim: an optax optimiser of the shared values; default ``optax.adam(1e-2)``.
    :param num_steps: steps.
    :param batch_size: episodes a step; default all (needed for a simulator).
    :param rate: of the natural-gradient step, in (0, 1], or a function of the step; default 1 for the whole stream, else (step + 1)^-0.7.
        Shared features that keep moving want a constant, 0.05 say.
    :param num_draws: pairs of draws for expected losses where θ has more than 64 dimensions.
    :param init: an earlier fit to go on from.
    :return: :class:`MetaFit`.
    :raises ModelError: for :class:`ExactLinearGaussian` with a model that is not quadratic in θ.
    :raises NonFiniteError: if the bound or a parameter stops being finite; ``error.result`` is the last good fit.
    """
    check_key("fit: rng_key, the first argument,", rng_key)
    check_count("fit: num_steps", num_steps)
    check_flag("fit: progress_bar", progress_bar)
    if batch_size is not None:
        check_count("fit: batch_size", batch_size)
    if local_solver is not None and not isinstance(local_solver, LocalSolver):
        raise ArgumentTypeError(f"fit: local_solver must be an instance such as LaplaceGGN(), got {told(local_solver)}.")
    if optim is not None and not isinstance(optim, optax.GradientTransformation):
        raise ArgumentTypeError(f"fit: optim must be an optimiser of optax such as optax.adam(0.01), got {told(optim)}.")
    of_batches, of_steps = jax.random.split(rng_key)
    whole = isinstance(stream, EpisodeStream) and (batch_size is None or batch_size >= len(stream))
    solver = LaplaceGGN() if local_solver is None else local_solver
    trainer = Trainer(hierarchy, solver, optax.adam(1e-2) if optim is None else optim, _rate(rate, whole), num_draws)
    state = trainer.start(None) if init is None else init.state
    batches = stream.batches(of_batches, batch_size, int(state.step))
    batch = next(batches)
    if isinstance(solver, ExactLinearGaussian):
        _check_quadratic(hierarchy, state, batch)
    step = eqx.filter_jit(lambda state, batch, key: trainer.step(state, batch, key))
    losses: list[Terms] = []
    started = time.perf_counter()
    with tqdm(total=num_steps, disable=not progress_bar, desc="episodes", unit="step") as bar:
        for i in range(num_steps):
            state, terms = step(state, batch, of_steps)
            losses.append(terms)
            if i % 50 == 49 or i == num_steps - 1:
                bar.update(i + 1 - bar.n)
                bar.set_postfix_str(f"loss {float(terms.total):.4g}", refresh=False)
                if not math.isfinite(float(terms.total)):
                    break
            if i < num_steps - 1:
                batch = next(batches)
    stacked = jax.tree.map(lambda *x: np.asarray(jnp.stack(x)), *losses)
    result = MetaFit(hierarchy, solver, state, stacked, time.perf_counter() - started)
    if not math.isfinite(float(losses[-1].total)):
        at = int(np.argmin(np.isfinite(stacked.total)))
        error = NonFiniteError(
            f"The bound or a shared parameter stopped being finite at step {at}: smaller optimiser steps, or a prior with more df, may "
            "help. The last good state is in this error's `.result`."
        )
        error.result = replace(result, terms=jax.tree.map(lambda x: x[:at], stacked))
        raise error
    return result


def _posteriors(hierarchy: Hierarchy, state: State, batch: Batch, solver: LocalSolver, rng_key: jax.Array) -> Gaussian:
    fits = hierarchy.fits(state.niw, state.shared, batch, solver, rng_key)
    return jax.vmap(partial(closed_form, niw=state.niw))(fits)


def _rate(rate, whole: bool) -> Callable[[jax.Array], jax.Array]:
    if rate is None:
        return partial(default_rate, whole=whole)
    if callable(rate):
        return rate
    if not 0.0 < float(rate) <= 1.0:
        raise ArgumentError(f"fit: rate must lie in (0, 1], got {told(rate)}.")
    return lambda step: jnp.full((), float(rate))


def _check_quadratic(hierarchy: Hierarchy, state: State, batch: Batch) -> None:
    """A quadratic is told from anything else by its slope: linear between any three points."""
    first = jax.tree.map(lambda x: x[0], batch.args)
    loss = hierarchy.loss(state.shared, first, batch.lengths[0])
    a = state.niw.loc
    b = a + jax.random.normal(jax.random.key(1), a.shape, a.dtype)
    slopes = [np.asarray(jax.grad(loss)(x), np.float64) for x in (a, (a + b) / 2, b)]
    scale = max(float(np.abs(s).max()) for s in slopes)
    if not np.abs(slopes[0] + slopes[2] - 2 * slopes[1]).max() <= 1e-3 * scale + 1e-6:
        raise ModelError(
            "ExactLinearGaussian serves episodes whose log likelihood is quadratic in the local sites (a Normal with fixed scale around a "
            "linear function of real-valued sites); this one is not. Use LaplaceGGN()."
        )


@dataclass(frozen=True)
class MetaFit:
    """What training returns: the fitted shared law and values.

    ``niw``: q(μ, Σ), a :class:`~ppl_ext.meta.NIW`. ``shared``: the shared sites by name. ``losses``: the bound per episode, by step;
    ``terms`` its parts.
    """

    hierarchy: Hierarchy
    solver: LocalSolver
    state: State
    terms: Terms
    run_seconds: float

    @property
    def niw(self) -> NIW:
        return self.state.niw

    @property
    def losses(self) -> np.ndarray:
        return np.asarray(self.terms.total)

    @property
    def shared(self) -> dict[str, jax.Array]:
        """``param`` sites and shared latent sites by name, constrained."""
        return self.hierarchy.form.params_of(self.state.shared) | self.hierarchy.form.shared_values(self.state.shared)

    def posteriors(self, stream: EpisodeStream, rng_key: jax.Array | None = None) -> Gaussian:
        """Each episode's Gaussian over θ in a stream that was trained on: means (n, d), covariances (n, d, d) or (n, d)."""
        key = jax.random.key(0) if rng_key is None else rng_key
        batch = stream.batch(np.arange(len(stream)))
        return eqx.filter_jit(_posteriors)(self.hierarchy, self.state, batch, self.solver, key)

    def adapt(self, rng_key: jax.Array, *args, prior: str = "student_t", num_samples: int = 1000, num_nodes: int = 64) -> Adapted:
        r"""The posterior of the local sites on a new episode.

        With ``prior="student_t"`` θ has the law that the fitted hierarchy predicts, a scale mixture of Gaussians
        :math:`N(m_0, S/u),\; u \sim \mathrm{Gamma}(\nu/2, \nu/2)`: the local fit is combined in closed form with each of ``num_nodes``
        values of u, weighed by the evidence each gives; exact (up to the nodes) for linear-Gaussian episodes. ``"mode"`` takes
        :math:`N(m_0, V_0/(n_0+d+2))`, and so does ``"student_t"`` where n₀ is beyond any counting.

        :param args: the new episode. Without rows (all its arrays empty) the posterior is the prior.
        :raises ArgumentError: for an unknown prior.
        """
        check_key("adapt: rng_key, the first argument,", rng_key)
        check_count("adapt: num_samples", num_samples)
        if prior not in ("student_t", "mode"):
            raise ArgumentError(f"adapt: prior is 'student_t' or 'mode', got {told(prior)}.")
        of_fit, of_nodes, of_draws = jax.random.split(rng_key, 3)
        args = jax.tree.map(jnp.asarray, args)
        rows = [x.shape[0] for x in jax.tree.leaves(args) if x.ndim]
        loss = EpisodeLoss(self.hierarchy.form, self.state.shared, args, {})
        nodes = scale_nodes(self.niw, num_nodes, of_nodes) if prior == "student_t" else None
        mixture = adapted(None if rows and not any(rows) else loss, self.niw, self.solver, of_fit, nodes)
        theta = draws(mixture, of_draws, num_samples)
        return Adapted(jax.vmap(self.hierarchy.form.values)(theta), theta, mixture, self.shared)
