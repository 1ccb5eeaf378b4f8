"""A step of training where episodes are not padded: those of one length are run together, and what they say
is put together.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.meta.distributions.low_rank import LowRank
from ppl_ext.meta.groups import Part, parts
from ppl_ext.meta.hierarchy import Terms
from ppl_ext.meta.solvers.local import Gaussian, closed_form, expected
from ppl_ext.meta.streams.stream import Batch, few_lengths


class Grouped:
    """A step, as :meth:`ppl_ext.meta.fit.Trainer.step`, compiled once for each length and, roughly,
    number of episodes of it.
    """

    def __init__(self, trainer: Any, stream: Any, example: tuple):
        self.trainer, self.stream = trainer, stream
        # what shared sites' priors are taken at, the same for all episodes
        self.example = jax.tree.map(jnp.asarray, example)
        self._part, self._end = eqx.filter_jit(self._of_part), eqx.filter_jit(self._moved)
        self._last: tuple[Any, list[Part]] = (None, [])

    def step(self, state: Any, batch: Batch, rng_key: jax.Array) -> tuple[Any, Terms]:
        h, d = self.trainer.hierarchy, self.trainer.hierarchy.form.dim
        of_fits, of_noise = jax.random.split(jax.random.fold_in(rng_key, state.step))
        noise = (
            None
            if d <= self.trainer.cubature_up_to
            else jax.random.normal(of_noise, (self.trainer.num_draws, d), state.niw.loc.dtype)
        )
        if self._last[0] is not batch:  # the same at every step where a batch is the whole stream
            self._last = (batch, [_evened(p) for p in parts(h, self.stream, batch)])
        keys = jax.random.split(of_fits, len(batch.lengths))
        loss = divergence = jnp.zeros((), state.niw.loc.dtype)
        slopes, means, covariances = None, [], []
        for part in self._last[1]:
            real = jnp.arange(part.batch.lengths.shape[0]) < len(part.places)
            more, q = self._part(
                state.niw, state.shared, part.batch, keys[_to(part.places, real.shape[0])], real, noise
            )
            loss, divergence = loss + more[0], divergence + more[1]
            slopes = more[2] if slopes is None else jax.tree.map(jnp.add, slopes, more[2])
            means.append(np.asarray(q.mean)[: len(part.places)])
            covariances.append(np.asarray(q.covariance)[: len(part.places)])
        q = Gaussian(jnp.asarray(np.concatenate(means)), jnp.asarray(np.concatenate(covariances)))
        return self._end(
            state, loss / len(batch.lengths), divergence / len(batch.lengths), slopes, q, len(batch.lengths)
        )

    def _of_part(self, niw, shared, batch: Batch, keys, real, noise):
        """Sums over the real episodes of a part: losses, divergences, and slopes of the losses by the shared
        values; each one's q.
        """
        h = self.trainer.hierarchy
        fits = h.fits(niw, shared, batch, self.trainer.solver, keys)
        q = jax.vmap(partial(closed_form, niw=niw))(fits)

        def loss(shared):
            each = jax.vmap(lambda q, args, length: expected(h.loss(shared, args, length), q, noise))(
                q, batch.args, batch.lengths
            )
            return jnp.where(real, each, 0.0).sum()

        total, slopes = jax.value_and_grad(loss)(shared)
        divergence = jnp.where(real, jax.vmap(niw.expected_kl)(q.mean, q.covariance), 0.0).sum()
        covariance = (
            jax.vmap(LowRank.diagonal)(q.covariance) if isinstance(q.covariance, LowRank) else q.covariance
        )
        return (total, divergence, slopes), Gaussian(q.mean, covariance)

    def _moved(self, state, loss, divergence, slopes, q, num: int):
        h, trainer = self.trainer.hierarchy, self.trainer
        of_globals, more = jax.value_and_grad(lambda shared: h.of_globals(state.niw, shared, self.example))(
            state.shared
        )
        grads = jax.tree.map(lambda x, y: x / num + y, slopes, more)
        return trainer.moved(state, grads, Terms(loss, divergence, of_globals), q)


def _evened(part: Part) -> Part:
    """With copies of an episode up to a power of two, so that few numbers of episodes are compiled."""
    size = few_lengths(np.asarray([len(part.places)]))
    chosen = _to(np.arange(len(part.places)), size)
    return Part(part.places, jax.tree.map(lambda x: x[chosen], part.batch))


def _to(places: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([places, np.repeat(places[:1], size - len(places))])
