"""Moves of particles that leave a density unchanged, and how they are fitted to the particles."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ppl_ext.algorithms.tempered.points import Path, Points, chosen, log_density_at, points_at
from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_count, check_positive, described
from ppl_ext.runtime.random_bits import normals, split
from ppl_ext.runtime.random_choices import log_uniforms

DENSE = 64  # positions of more numbers are fitted by variances alone, unless asked for more
ROOM = 1e-6  # of a variance, so that no direction is lost


class Tally(NamedTuple):
    """What moves tell of themselves: the mean acceptance, and how many densities were NaN."""

    acceptance: jax.Array
    num_nan: jax.Array


class Fitted(NamedTuple):
    """What a move is fitted with: ``mean`` (D,), ``factor`` of the covariance, (D, D) or (D,), and the log of
    a ``size`` of steps.
    """

    mean: jax.Array
    factor: jax.Array
    size: jax.Array


class Moves(eqx.Module):
    """How particles move at each temperature: an abstract base.

    A move leaves the density at its temperature unchanged once what it is fitted with is given. Those here
    are reversible, which the conditional run needs: it goes back along the path by the same moves.

    >>> from ppl_ext.algorithms import RandomWalk
    >>> isinstance(RandomWalk(num_steps=3), Moves), RandomWalk().num_steps
    (True, 5)
    """

    num_steps: eqx.AbstractVar[int]

    alone: ClassVar[bool] = True  # each particle moves by itself, so that evidence can be unbiased

    @property
    @abstractmethod
    def is_fixed(self) -> bool:
        """Whether nothing is fitted to the particles."""

    @abstractmethod
    def begin(self, size: int) -> Fitted:
        """What it is fitted with before any particles, D being ``size``."""

    @abstractmethod
    def fit(self, points: Points, shares: jax.Array, last: Fitted, acceptance: jax.Array) -> Fitted:
        """Fitted to weighted particles, the last fit and the acceptance under it (NaN: none yet)."""

    @abstractmethod
    def run(
        self, key: jax.Array, path: Path, tau: jax.Array, points: Points, fitted: Fitted, keep: bool
    ) -> tuple[Points, Tally]:
        """Move every point ``num_steps`` times: where they end, or, if ``keep``, (``num_steps``, N, ...) all
        of their places after the first.
        """


def as_array(x: Any) -> Any:
    """A regular list of numbers as an array; what is none as it is, for a check to tell."""
    if isinstance(x, list | tuple):
        try:
            return np.asarray(x, float)
        except (TypeError, ValueError):
            return x
    return x


def _plain(x: Any) -> Any:
    """A scalar array as a number; anything else as it is, for a check to tell."""
    return float(x) if isinstance(x, jax.Array) and x.ndim == 0 else x


def _is_covariance(x: Any) -> bool:
    x = np.asarray(x, float)
    if x.ndim == 1:
        return bool((np.isfinite(x) & (x > 0.0)).all())
    if x.shape[0] != x.shape[1] or not np.isfinite(x).all() or not np.allclose(x, x.T, rtol=1e-4):
        return False
    return bool((np.linalg.eigvalsh(x) > 0.0).all())


class _Metropolis(Moves):
    """Proposals by a normal law, taken or left."""

    num_steps: int = eqx.field(static=True, default=5)
    scale: float | None = None
    covariance: Any = eqx.field(default=None, converter=as_array)
    dense: bool | None = eqx.field(static=True, default=None)

    target_acceptance: ClassVar[float] = 0.3

    def __check_init__(self):
        where = type(self).__name__
        check_count(f"{where}: num_steps", self.num_steps)
        if isinstance(self.scale, jax.Array):
            check_array(f"{where}: scale", self.scale)
        if self.scale is not None and not isinstance(self.scale, jax.core.Tracer):
            check_positive(f"{where}: scale", _plain(self.scale))
        if self.dense not in (None, True, False):
            raise ArgumentError(f"{where}: dense must be True, False or None, got {described(self.dense)}.")
        if self.covariance is not None:
            check_array(f"{where}: covariance", self.covariance)
            if jnp.ndim(self.covariance) not in (1, 2):
                raise ArgumentError(
                    f"{where}: covariance must be a matrix over the unconstrained positions, or the vector "
                    f"of its diagonal, got {described(self.covariance)}."
                )
            if not isinstance(self.covariance, jax.core.Tracer) and not _is_covariance(self.covariance):
                raise ArgumentError(
                    f"{where}: covariance must be finite, and a matrix symmetric and positive definite, a "
                    f"diagonal positive; got {described(self.covariance)}."
                )

    def _is_dense(self, size: int) -> bool:
        return size <= DENSE if self.dense is None else self.dense

    def _own_factor(self, size: int) -> jax.Array | None:
        if self.covariance is None:
            return None
        covariance = jnp.asarray(self.covariance, float)
        if covariance.shape not in ((size,), (size, size)):
            raise ArgumentError(
                f"{type(self).__name__}: covariance has shape {covariance.shape}, and the unconstrained "
                f"positions have {size} elements."
            )
        return jnp.sqrt(covariance) if covariance.ndim == 1 else jnp.linalg.cholesky(covariance)

    def begin(self, size: int) -> Fitted:
        factor = self._own_factor(size)
        if factor is None:
            factor = jnp.eye(size) if self._is_dense(size) else jnp.ones(size)
        return Fitted(jnp.zeros(size), factor, jnp.log(self._first_size(size)))

    @abstractmethod
    def _first_size(self, size: int) -> Any:
        """The size of steps before any have been made."""

    def fit(self, points: Points, shares: jax.Array, last: Fitted, acceptance: jax.Array) -> Fitted:
        mean, factor = normal_fit(points.position, shares, last.factor.ndim == 2)
        size = last.size
        if self.scale is None:
            size = size + jnp.where(jnp.isnan(acceptance), 0.0, acceptance - self.target_acceptance)
        factor = last.factor if self.covariance is not None else factor
        return Fitted(mean, factor, size)

    def run(self, key, path, tau, points, fitted, keep):
        def step(carry, key):
            points, accepted, num_nan = carry
            noise_key, coin_key = split(key, (2,))
            position, log_ratio = self.propose(noise_key, points.position, fitted)
            new, broken = points_at(path, position)
            log_ratio = log_ratio + log_density_at(path, new, tau) - log_density_at(path, points, tau)
            is_taken = log_uniforms(coin_key, log_ratio.shape) < log_ratio
            points = chosen(is_taken, new, points)
            return (points, accepted + is_taken.mean(), num_nan + broken), points if keep else None

        start = points, jnp.zeros(()), jnp.zeros((), jnp.int32)
        (last, accepted, num_nan), places = lax.scan(step, start, split(key, (self.num_steps,)))
        return places if keep else last, Tally(accepted / self.num_steps, num_nan)

    @abstractmethod
    def propose(self, key: jax.Array, position: jax.Array, fitted: Fitted) -> tuple[jax.Array, jax.Array]:
        """New positions (N, D), and the log ratio (N,) of the proposal's densities, back over forth."""


def normal_fit(position: jax.Array, shares: jax.Array, dense: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and factor of the covariance of weighted positions (N, D): lower triangular, or the deviations.

    What few particles say of correlations is shrunk towards none, by D / (D + effective sample size).
    """
    mean = shares @ position
    apart = position - mean
    variances = shares @ jnp.square(apart)
    floor = ROOM * jnp.maximum(1e-4, jnp.maximum(variances.max(), jnp.square(mean).max() * 1e-6))
    variances = jnp.maximum(variances, floor)
    if not dense:
        return mean, jnp.sqrt(variances)
    size = position.shape[1]
    effective = 1.0 / jnp.square(shares).sum()
    trust = effective / (effective + size)
    deviations = jnp.sqrt(variances)
    scaled = apart / deviations
    correlations = trust * ((scaled * shares[:, None]).T @ scaled)
    correlations = jnp.where(jnp.eye(size, dtype=bool), 1.0, correlations)
    return mean, deviations[:, None] * jnp.linalg.cholesky(correlations)


def spread(noise: jax.Array, factor: jax.Array) -> jax.Array:
    """Standard normal numbers (N, D) with this factor of a covariance."""
    return noise * factor if factor.ndim == 1 else noise @ factor.T


class RandomWalk(_Metropolis):
    r"""Normal steps around each particle, preconditioned by the particles' covariance.

    .. math:: u' = u + s L \varepsilon, \qquad L L^\top = \operatorname{cov}(u), \qquad
        s = 2.38 / \sqrt{D} \text{ at first}

    on the unconstrained positions, taken with probability :math:`\min(1, \pi_\tau(u') / \pi_\tau(u))`.

    :param num_steps: steps at each temperature.
    :param scale: s; by default it follows the acceptance, towards 0.3.
    :param covariance: (D, D), or (D,) for its diagonal: fixed, where it would be that of the particles. With
        it and ``scale`` nothing is fitted.
    :param dense: whether correlations are fitted; by default up to 64 numbers.
    :raises ArgumentError: for fewer than one step, a scale that is not positive, or a covariance of another
        shape.

    Sources: Metropolis et al. 1953; Roberts, Gelman, Gilks 1997 for 2.38; Chopin and Papaspiliopoulos 2020,
    section 17.2, for the covariance.

    >>> RandomWalk(num_steps=3, scale=0.5)
    RandomWalk(num_steps=3, scale=0.5)
    """

    @property
    def is_fixed(self) -> bool:
        return self.scale is not None and self.covariance is not None

    def _first_size(self, size: int) -> Any:
        return 2.38 / max(size, 1) ** 0.5 if self.scale is None else self.scale

    def propose(self, key, position, fitted):
        noise = normals(key, position.shape).astype(position.dtype)
        return position + jnp.exp(fitted.size) * spread(noise, fitted.factor), jnp.zeros(len(position))


class IndependentMoves(_Metropolis):
    r"""Proposals that do not look at where a particle is: a normal law fitted to all of them.

    .. math:: u' \sim \mathcal N(m, s^2 L L^\top), \qquad \alpha = \min\Big(1, \frac{\pi_\tau(u')\, q(u)}
        {\pi_\tau(u)\, q(u')}\Big)

    They forget a particle's place at once where the posterior is nearly normal, and are seldom taken where it
    is not, or has many dimensions.

    :param num_steps: proposals at each temperature.
    :param scale: s, 1.1 by default, so that the tails are covered.
    :param covariance: (D, D), or (D,): fixed, as is then ``mean``.
    :param mean: (D,), needed with ``covariance`` and without use otherwise.
    :param dense: whether correlations are fitted; by default up to 64 numbers.
    :raises ArgumentError: as :class:`RandomWalk`, or if of mean and covariance one is missing.

    Source: Chopin 2002, section 3.2, with the fit to the particles.

    >>> IndependentMoves(num_steps=2).is_fixed
    False
    """

    mean: Any = eqx.field(default=None, converter=as_array)

    target_acceptance: ClassVar[float] = 0.0

    def __check_init__(self):
        if (self.mean is None) != (self.covariance is None):
            raise ArgumentError(
                "IndependentMoves: mean and covariance are fixed together: give both, or neither."
            )

    @property
    def is_fixed(self) -> bool:
        return self.mean is not None

    def _first_size(self, size: int) -> Any:
        return 1.1 if self.scale is None else self.scale

    def begin(self, size: int) -> Fitted:
        begun = super().begin(size)
        return begun if self.mean is None else begun._replace(mean=jnp.asarray(self.mean, float))

    def fit(self, points, shares, last, acceptance):
        return (
            last if self.is_fixed else super().fit(points, shares, last, acceptance)._replace(size=last.size)
        )

    def propose(self, key, position, fitted):
        noise = normals(key, position.shape).astype(position.dtype)
        scale = jnp.exp(fitted.size)
        new = fitted.mean + scale * spread(noise, fitted.factor)
        back = (position - fitted.mean) / scale
        if fitted.factor.ndim == 1:
            back = back / fitted.factor
        else:
            back = jax.scipy.linalg.solve_triangular(fitted.factor, back.T, lower=True).T
        return new, 0.5 * (jnp.square(noise).sum(-1) - jnp.square(back).sum(-1))
