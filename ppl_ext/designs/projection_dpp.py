"""Points that repel each other: the determinantal process that projects on the span of given features."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from ppl_ext.designs.orthonormal import orthonormal
from ppl_ext.errors import ArgumentError


def one_of(rng_key: jax.Array, masses: jax.Array) -> jax.Array:
    r"""A number drawn with probability proportional to its mass, of (N,).

    First which of :math:`\sqrt N` blocks, then which within: few random numbers, and no sum over all whose
    rounding would count against a single mass.

    >>> int(one_of(jax.random.key(0), jnp.array([0.0, 0.0, 3.0, 0.0, 0.0])))
    2
    """
    width = math.ceil(len(masses) ** 0.5)
    blocks = jnp.pad(masses, (0, -len(masses) % width)).reshape(-1, width)
    of_block, of_row = jax.random.split(rng_key)
    block = jax.random.categorical(of_block, jnp.log(blocks.sum(1)))
    return block * width + jax.random.categorical(of_row, jnp.log(blocks[block]))


class ProjectionDPP(Distribution):
    r"""A distribution over m of N candidates which prefers those whose m features are far from each other.

    .. math:: p(x_1, \dots, x_m) = \frac{1}{m!} \det(\varphi_{x} \varphi_{x}^\top), \qquad
        p(x_k \mid x_{<k}) \propto \|\varphi(x_k)\|^2 - \|P_{k-1} \varphi(x_k)\|^2

    with features :math:`\varphi` made orthonormal under the measure, which changes nothing but their
    coordinates, and :math:`P_{k-1}` the projection on the features of the points before. A draw is a vector
    (m,) of different row numbers whose order says nothing. It is drawn by the chain rule, exactly, in
    O(N m²), also under ``jit`` and ``vmap``.

    Measured there and weighted by :meth:`weights`, least squares are unbiased for the best approximation in
    the span, and their expected square error is m + 1 times its own.

    :param features: (N, m), of each candidate.
    :param measure: (N,), the masses of candidates, such as those of a quadrature; uniform without.
    :raises ArgumentTypeError: for features that are no array of numbers.
    :raises ArgumentError: for fewer candidates than features, features without full rank, or masses that are
        negative or not N. Under ``jit``, where numbers are not known, shapes alone are checked.

    >>> x = jnp.linspace(-1.0, 1.0, 101)
    >>> design = ProjectionDPP(x[:, None] ** jnp.arange(3))  # for a parabola
    >>> rows = design.sample(jax.random.key(0))
    >>> rows.shape, len(set(rows.tolist())), round(float(design.inclusion.sum()), 3)
    ((3,), 3, 3.0)

    Source: Nouy and Michel 2024, "Weighted least-squares approximation with determinantal point processes and
    generalized volume sampling"; Derezinski, Warmuth, Hsu 2018, "Leveraged volume sampling for linear
    regression".
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("basis", "measure")

    def __init__(self, features: Any, measure: Any = None, *, validate_args=None):
        self.basis, self.measure = orthonormal(type(self).__name__, features, measure)
        super().__init__((), (self.basis.shape[1],), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return constraints.independent(constraints.integer_interval(0, len(self.basis) - 1), 1)

    @property
    def inclusion(self) -> jax.Array:
        r"""The probability (N,) that a candidate is drawn, :math:`\mu_i \|\varphi(x_i)\|^2`: its leverage."""
        return (self.basis**2).sum(-1)

    def weights(self, rows: Any) -> jax.Array:
        r"""Weights of rows, :math:`w(x) = m / \|\varphi(x)\|^2`, which make means over them unbiased.

        .. math:: \mathbb{E} \, \frac{1}{n} \sum_i w(x_i) g(x_i) = \int g \, d\mu

        for every g that is zero where all features are. They are those of least squares too.

        :raises ArgumentError: for a row that is not there; where rows are traced its weight is NaN.
        """
        rows = jnp.asarray(rows)
        there = (rows >= 0) & (rows < len(self.basis))
        if not isinstance(rows, jax.core.Tracer) and not bool(there.all()):
            raise ArgumentError(
                f"ProjectionDPP.weights: there are the rows 0 to {len(self.basis) - 1}, got "
                f"{int(rows.ravel()[jnp.argmin(there.ravel())])}."
            )
        return jnp.where(there, self.basis.shape[1] * self.measure[rows] / self.inclusion[rows], jnp.nan)

    def sample(self, key, sample_shape=()):
        keys = jax.random.split(key, sample_shape)
        draw = self._draw
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(keys)

    def _draw(self, key) -> jax.Array:
        basis = self.basis
        m = basis.shape[1]

        def step(state, key_and_place):
            left, taken = state
            key, k = key_and_place
            row = one_of(key, left)
            rest = basis[row]
            for _ in range(2):  # once more, for what rounding leaves
                rest = rest - taken.T @ (taken @ rest)
            direction = rest / jnp.linalg.norm(rest)
            left = jnp.maximum(left - (basis @ direction) ** 2, 0.0).at[row].set(0.0)
            return (left, taken.at[k].set(direction)), row

        start = self.inclusion, jnp.zeros((m, m), basis.dtype)
        return jax.lax.scan(step, start, (jax.random.split(key, m), jnp.arange(m)))[1]

    @validate_sample
    def log_prob(self, value):
        m = self.basis.shape[1]
        volume = jnp.linalg.slogdet(self.basis[value])[1]
        in_order = jnp.sort(value, -1)
        apart = (in_order[..., 1:] > in_order[..., :-1]).all(-1)
        return jnp.where(apart & self.support(value), 2.0 * volume - gammaln(m + 1.0), -jnp.inf)
