"""The posterior of a new episode under a fitted hierarchy, in closed form given its local fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy.linalg import block_diag, cho_factor, cho_solve

from ppl_ext.meta.distributions.low_rank import Factored, LowRank
from ppl_ext.meta.distributions.mixtures import Factorised, Law, LowRankNormal, Mixture
from ppl_ext.meta.distributions.niw import NIW
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.solvers.local import LocalSolver, Quadratic, solved
from ppl_ext.runtime.results import Summarised
from ppl_ext.runtime.verdict import Verdict

ROUNDS = 30
"""Of the fixed point for the scales of a low-rank episode's coordinates."""


class Nodes(NamedTuple):
    """A scale mixture of Gaussians: shared scale matrices are divided by ``scales`` (k, d), with log weights
    (k,).
    """

    scales: jax.Array
    log_weights: jax.Array


@dataclass(frozen=True, repr=False)
class Adapted(Summarised):
    """The posterior of one new episode.

    ``samples``: local sites under the episode model's own names, shape (num_samples, ...), for
    ``numpyro.infer.Predictive``; ``theta``: the same draws as vectors; ``mixture``: their law; ``shared``:
    the shared sites, to be substituted with them.

    >>> draws = jnp.array([0.9, 1.0, 1.1])
    >>> Adapted({"level": draws}, draws[:, None], None, {})  # as fit.adapt(key, ...) returns it
    Adapted(level, num_samples=3)
    """

    samples: dict[str, jax.Array]
    theta: jax.Array
    mixture: Law
    shared: dict[str, jax.Array]

    def __repr__(self) -> str:
        return f"Adapted({', '.join(self.samples)}, num_samples={len(self.theta)})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.meta.verdicts import of_adapted

        return of_adapted(self)

    def summary(self) -> str:
        """The posterior of each local site."""
        from ppl_ext.meta.summaries import of_adapted

        return of_adapted(self)

    @property
    def mean(self) -> jax.Array:
        """E θ, shape (d,)."""
        return self.mixture.mean

    @property
    def covariance(self) -> jax.Array:
        """Cov θ, shape (d, d); (d,) where the coordinates are independent."""
        return self.mixture.covariance

    def to_arviz(self, episode: int | str = 0) -> Any:
        """The ArviZ report: local sites (chain, draw, episode, ...) with one episode, of this label. Of
        several at once: :func:`ppl_ext.meta.adapted_to_arviz`."""
        from ppl_ext.meta.arviz_report import adapted_to_arviz

        return adapted_to_arviz({episode: self})

    @staticmethod
    def several_to_arviz(posteriors: Mapping[Any, "Adapted"] | Sequence["Adapted"]) -> Any:
        """One report of several, a dict by label or a list: :func:`ppl_ext.meta.adapted_to_arviz`, for
        :func:`ppl_ext.to_arviz`."""
        from ppl_ext.meta.arviz_report import adapted_to_arviz

        return adapted_to_arviz(
            posteriors if isinstance(posteriors, Mapping) else dict(enumerate(posteriors))
        )


def scale_nodes(niw: NIW, num: int, rng_key: jax.Array) -> Nodes:
    """The predictive Student-t as a scale mixture: u of each block is Gamma(ν/2, ν/2).

    One block, or a diagonal (whose coordinates go one by one): Gauss-Legendre nodes in probability. Several
    blocks, each with its own u: ``8 * num`` random ones.
    """
    blocks = np.asarray(niw.blocks)
    df = float(niw.df) - blocks + 1
    if len(blocks) == 1 or niw.diagonal:
        at, weights = np.polynomial.legendre.leggauss(num)
        u = scipy.stats.gamma.ppf((at + 1) / 2, df[0] / 2)[:, None] / (df[0] / 2)
        log_weights = np.log(weights / 2)
        return Nodes(
            jnp.asarray(np.repeat(u, niw.dim, axis=1), niw.loc.dtype), jnp.asarray(log_weights, niw.loc.dtype)
        )
    u = np.asarray(jax.random.gamma(rng_key, df / 2, (8 * num, len(blocks)))) / (df / 2)
    log_weights = np.full(8 * num, -np.log(8 * num))
    return Nodes(
        jnp.asarray(np.repeat(u, blocks, axis=1), niw.loc.dtype), jnp.asarray(log_weights, niw.loc.dtype)
    )


@eqx.filter_jit
def adapted(
    loss: EpisodeLoss | None,
    niw: NIW,
    solver: LocalSolver,
    rng_key: jax.Array,
    nodes: Nodes | None,
    length: jax.Array | int = 1,
) -> Law:
    """Fit the episode once from the mode of the shared law, and combine the fit with each Gaussian of its
    prior (no nodes: the mode's).

    A diagonal law has a scale for every coordinate. With a diagonal fit the coordinates stay independent, and
    each is its own mixture, exactly. A full fit couples them: the mixture is then taken over random scales; a
    low-rank one gets the scales' variational optimum.

    :param loss: ``None`` for an episode without data, which NumPyro's plates could not hold.
    :param length: its rows; of an episode that is padded, and has none, nothing is learnt.
    """
    matrix = _spread(niw, mode=True)
    fit = local_fit(loss, niw, solver, rng_key, length)
    if not niw.diagonal:
        return _mixture(fit, niw, nodes, matrix, None if nodes is None else _spread(niw, mode=False))
    wide = matrix if nodes is None else _spread(niw, mode=False)
    if isinstance(fit.precision, Factored):
        return _low_rank(fit.linear, fit.precision, niw, wide, student=nodes is not None)
    if fit.precision.ndim == 1:
        return _factorised(fit, niw, nodes, wide)
    if nodes is not None:  # a full fit couples coordinates whose scales are independent
        of_scales = jax.random.fold_in(rng_key, 1)
        u = jax.random.gamma(
            of_scales, niw.df / 2, (8 * nodes.log_weights.shape[0], niw.dim), niw.loc.dtype
        ) / (niw.df / 2)
        nodes = Nodes(u, jnp.full(u.shape[0], -jnp.log(u.shape[0]), niw.loc.dtype))
    return _mixture(fit, niw, nodes, jnp.diag(matrix), jnp.diag(wide))


def local_fit(
    loss: EpisodeLoss | None, niw: NIW, solver: LocalSolver, rng_key: jax.Array, length: jax.Array | int = 1
) -> Quadratic:
    """The quadratic of a new episode, from the mode of the shared law; zero without data."""
    if loss is None:
        return Quadratic(jnp.zeros_like(niw.loc), jnp.zeros_like(niw.loc))
    matrix = _spread(niw, mode=True)
    fit = solver(loss, niw.loc, 1 / matrix if niw.diagonal else _inverse(matrix), rng_key)
    return jax.tree.map(lambda x: jnp.where(jnp.asarray(length) == 0, 0.0, x), fit)


def of_laws(fit: Quadratic, laws: Sequence[NIW], log_shares: jax.Array, nodes: Sequence[Nodes]) -> Mixture:
    """The posterior under several laws, none of them diagonal, each a scale mixture by its nodes; the shares
    are known beforehand.
    """
    spreads = [_spread(law, mode=False) for law in laws]
    spreads = [jnp.diag(s) if s.ndim == 1 else s for s in spreads]
    parts = [_components(fit, law.loc, n, s) for law, n, s in zip(laws, nodes, spreads, strict=True)]
    log_weights = jnp.concatenate(
        [share + log_weights for share, (log_weights, _, _) in zip(log_shares, parts, strict=True)]
    )
    means, covariances = (jnp.concatenate([part[i] for part in parts]) for i in (1, 2))
    return Mixture(jax.nn.softmax(log_weights), means, covariances)


def _components(
    fit: Quadratic, loc: jax.Array, nodes: Nodes, wide: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log weights with the evidence in them, means and covariances, by node."""
    roots = 1 / jnp.sqrt(nodes.scales)
    spreads = roots[:, :, None] * wide * roots[:, None, :]
    means, covariances, evidence = jax.vmap(lambda spread: _combined(fit, loc, spread))(spreads)
    return nodes.log_weights + evidence, means, covariances


def _mixture(
    fit: Quadratic, niw: NIW, nodes: Nodes | None, at_mode: jax.Array, wide: jax.Array | None
) -> Mixture:
    if nodes is None or wide is None:
        nodes, wide = Nodes(jnp.ones((1, niw.dim), niw.loc.dtype), jnp.zeros(1, niw.loc.dtype)), at_mode
    log_weights, means, covariances = _components(fit, niw.loc, nodes, wide)
    return Mixture(jax.nn.softmax(log_weights), means, covariances)


def _factorised(fit: Quadratic, niw: NIW, nodes: Nodes | None, wide: jax.Array) -> Factorised:
    if nodes is None:
        log_weights, prior = jnp.zeros((1, 1), niw.loc.dtype), 1 / wide[None]
    else:
        log_weights, prior = nodes.log_weights[:, None], nodes.scales / wide
    precision, pull = jnp.asarray(fit.precision) + prior, prior * niw.loc
    mean = (fit.linear + pull) / precision
    evidence = 0.5 * ((fit.linear + pull) * mean - niw.loc * pull - jnp.log(precision) + jnp.log(prior))
    return Factorised(jax.nn.softmax(log_weights + evidence, axis=0), mean, 1 / precision)


def _low_rank(
    linear: jax.Array, precision: Factored, niw: NIW, wide: jax.Array, student: bool
) -> LowRankNormal:
    r"""With Student-t priors, :math:`u_j = (\nu + 1) / (\nu + \mathbb{E}(\theta_j - m_j)^2 / s_j)`, by
    iteration (variational).
    """

    def at(u):
        law = LowRank(wide / u, precision.factor)
        return law, law.times(linear + u / wide * niw.loc)

    def again(u, _):
        law, mean = at(u)
        return (niw.df + 1) / (niw.df + (law.diagonal() + (mean - niw.loc) ** 2) / wide), None

    u = jnp.ones_like(wide)
    u = jax.lax.scan(again, u, None, length=ROUNDS)[0] if student else u
    law, mean = at(u)
    return LowRankNormal(mean, law)


def _spread(niw: NIW, mode: bool) -> jax.Array:
    """The scale matrix of a new θ, (d, d) or (d,): of the Gaussian at the mode of (μ, Σ), or of the
    Student-t.
    """
    if niw.diagonal:
        factor = 1 / (niw.df + 3) if mode else (niw.mean_precision + 1) / (niw.mean_precision * niw.df)
        return factor * niw.scale_matrix
    parts = []
    for b, v in zip(niw.blocks, niw.split(niw.scale_matrix), strict=True):
        parts.append(
            v / (niw.df + b + 2)
            if mode
            else v * (niw.mean_precision + 1) / (niw.mean_precision * (niw.df - b + 1))
        )
    return block_diag(*parts)


def _combined(fit: Quadratic, loc: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """N(loc, spread) times the quadratic: mean, covariance, and the log of the integral, up to a constant of
    the fit.
    """
    prior = _inverse(spread)
    pull = prior @ loc
    mean, factor = solved(fit, prior, loc)
    log_det = 2 * jnp.log(jnp.diagonal(factor)).sum() + jnp.linalg.slogdet(spread)[1]
    evidence = 0.5 * ((fit.linear + pull) @ mean - loc @ pull - log_det)
    return mean, cho_solve((factor, True), jnp.eye(loc.shape[0], dtype=loc.dtype)), evidence


def _inverse(matrix: jax.Array) -> jax.Array:
    return cho_solve(cho_factor(matrix, lower=True), jnp.eye(matrix.shape[0], dtype=matrix.dtype))
