"""An episode model laid out over episodes: local fits, the bound they give, and the shared law's update."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ppl_ext.meta.distributions.low_rank import LowRank
from ppl_ext.meta.distributions.niw import NIW
from ppl_ext.meta.episode import EpisodeForm, EpisodeLoss, Rows
from ppl_ext.meta.solvers.local import Gaussian, LocalSolver, Quadratic, closed_form, expected
from ppl_ext.meta.streams.stream import Batch

POINT = 1e6
"""How many episodes stand for infinitely many: the shared law is then a point, and its divergence from the
prior weighs nothing.
"""


Layout = tuple[Any, tuple[tuple[int, ...], ...]]
"""An argument's structure and the shapes of its arrays in an episode trained on."""


def layout(arg: Any) -> Layout:
    leaves, structure = jax.tree.flatten(arg)
    return structure, tuple(jnp.shape(x) for x in leaves)


class Terms(NamedTuple):
    """The bound's parts, per episode: expected loss, expected divergence from the shared law, and what the
    globals cost.
    """

    loss: jax.Array
    divergence: jax.Array
    globals: jax.Array

    @property
    def total(self) -> jax.Array:
        return self.loss + self.divergence + self.globals


class Hierarchy(eqx.Module):
    """An episode model laid out over episodes: what :func:`lift` becomes once it has seen one. All its
    methods are pure.

    ``row_plates`` mask the padding of episodes of different lengths, if ``pads`` says that the model does not
    see it otherwise; where it does, a batch is of one length, unpadded (:mod:`ppl_ext.meta.groups`).
    """

    form: EpisodeForm
    prior: NIW
    num_episodes: float = eqx.field(static=True)
    row_plates: tuple[str, ...] = eqx.field(static=True)
    like: tuple[Layout, ...] | None = eqx.field(static=True, default=None)
    pads: bool = eqx.field(static=True, default=True)

    def loss(self, shared: Mapping[str, Any], args: tuple, length: jax.Array) -> EpisodeLoss:
        """One episode's negative log likelihood, as a function of θ."""
        rows = Rows(self.row_plates, length) if self.row_plates or not self.pads else None
        return EpisodeLoss(self.form, dict(shared), args, {}, rows)

    def fits(
        self, niw: NIW, shared: Mapping[str, Any], batch: Batch, solver: LocalSolver, rng_key: jax.Array
    ) -> Quadratic:
        """A local fit of each episode of a batch, held fixed under differentiation; ``rng_key`` is one key,
        or one for each.
        """
        niw, shared = jax.lax.stop_gradient((niw, dict(shared)))
        precision = niw.expected_precision()
        one_key = jnp.ndim(rng_key) == (0 if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) else 1)
        keys = jax.random.split(rng_key, batch.lengths.shape[0]) if one_key else rng_key

        def one(args, length, key):
            return solver(self.loss(shared, args, length), niw.loc, precision, key)

        fits = jax.vmap(one)(batch.args, batch.lengths, keys)
        # Without rows there is nothing to learn from, whatever a solver's noise says.
        none = batch.lengths == 0
        fits = jax.tree.map(lambda x: jnp.where(none.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x), fits)
        return jax.lax.stop_gradient(fits)

    def terms(
        self,
        niw: NIW,
        shared: Mapping[str, Any],
        batch: Batch,
        fits: Quadratic,
        noise: jax.Array | None = None,
    ) -> Terms:
        r"""The bound to be minimised, for each episode of a batch on average.

        .. math:: \tfrac1B \sum_i \big[ \mathbb{E}_{q_i} \ell_i(\theta) + \mathbb{E}_q \mathrm{KL}(q_i \|
            N(\mu, \Sigma)) \big]
            + \tfrac1N \big[ \mathrm{KL}(q(\mu, \Sigma) \| p(\mu, \Sigma)) - \log p(\text{shared}) \big]

        :math:`q_i` follows from the fits and ``niw`` in closed form, and gradients flow through that.
        """
        q = jax.vmap(partial(closed_form, niw=niw))(fits)

        def one(q, args, length):
            return expected(self.loss(shared, args, length), q, noise)

        loss = jax.vmap(one)(q, batch.args, batch.lengths).mean()
        divergence = jax.vmap(niw.expected_kl)(q.mean, q.covariance).mean()
        first = jax.tree.map(lambda x: x[0], batch.args)
        return Terms(loss, divergence, self.of_globals(niw, shared, first))

    def of_globals(self, niw: NIW, shared: Mapping[str, Any], args: tuple) -> jax.Array:
        """What the shared law and values cost an episode.

        :param args: of any episode: the priors of shared sites do not depend on it.
        """
        cost = (
            niw.kl(self.prior) if math.isfinite(self.num_episodes) else 0.0
        ) - self.form.log_prior_of_shared(shared, args, {})
        return (1 / self.num_episodes if math.isfinite(self.num_episodes) else 0.0) * cost

    def update(self, niw: NIW, q: Gaussian, rate: jax.Array | float) -> NIW:
        """A natural-gradient step of the shared law towards what these episodes, standing for all, would make
        of the prior.
        """
        total = min(self.num_episodes, POINT)
        # Of low rank only where the law is diagonal, which takes no more than the variances.
        covariance = (
            jax.vmap(LowRank.diagonal)(q.covariance) if isinstance(q.covariance, LowRank) else q.covariance
        )
        return niw.towards(self.prior.posterior(q.mean, covariance, total), rate)
