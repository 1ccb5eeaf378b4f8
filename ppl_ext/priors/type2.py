"""The factors of a sparse array's variances, by type-II maximum likelihood (He, Joseph 2022)."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.priors.kronecker_algebra import along, back, eigen, evidence, outer, variances
from ppl_ext.priors.kronecker_ard import KroneckerARD
from ppl_ext.runtime.arguments import check_array, check_count, check_flag, check_key, check_number, described
from ppl_ext.runtime.results import NUM_SAMPLES

M_STEPS = ("alternating", "rank_one")
SWEEPS = 3
LEAST = 1e-12
"""Of the largest variance of a factor: what is below it counts as zero."""


class KroneckerPosterior(NamedTuple):
    """What :func:`type2_em` returns: a normal posterior of the array.

    ``factors``: of the variances, the largest of each but the first is 1; ``noise``: variance; ``mean`` and
    ``variance``, of the array's shape; ``log_evidence`` (steps,): log p(y) after each, nats.
    """

    prior: KroneckerARD
    factors: tuple[jax.Array, ...]
    noise: jax.Array
    mean: jax.Array
    variance: jax.Array
    log_evidence: jax.Array
    y: jax.Array
    matrices: tuple[jax.Array, ...]

    def sample(self, rng_key: jax.Array, num_samples: int = NUM_SAMPLES) -> jax.Array:
        """Draws of the array, ``(num_samples, *shape)``: those of the prior, moved by what the data say."""
        check_key("sample: rng_key", rng_key)
        check_count("sample: num_samples", num_samples)
        gamma, of = outer(self.factors), eigen(self.factors, self.matrices)

        def one(key):
            first, second = jax.random.split(key)
            x = jnp.sqrt(gamma) * jax.random.normal(first, gamma.shape, gamma.dtype)
            noise = jnp.sqrt(self.noise) * jax.random.normal(second, self.y.shape, gamma.dtype)
            return x + gamma * back(self.y - along(x, self.matrices) - noise, self.noise, of)

        return jax.lax.map(one, jax.random.split(rng_key, num_samples), batch_size=64)


def type2_em(
    prior: KroneckerARD,
    y: Any,
    matrices: Sequence[Any],
    noise: float | None = None,
    *,
    num_steps: int = 250,
    m_step: str = "alternating",
    accelerated: bool = True,
) -> KroneckerPosterior:
    r"""Maximise the evidence over the factors of a :class:`KroneckerARD`, in closed form a step.

    .. math:: y = (H_1 \otimes \dots \otimes H_K)\, x + n, \quad n \sim \mathcal{N}(0, \sigma^2), \qquad
        C = \sigma^2 I + \bigotimes_k H_k \Gamma_k H_k^\top

    The eigenvectors of C are products of those of small matrices, one an axis: nothing of the size of x or y
    squared is made. With :math:`d = \mathbb{E}[x^2 \mid y]` under the old factors, the M-step solves

    .. math:: \gamma^1_i = \operatorname{mean}_{jk} \frac{d_{ijk}}{\gamma^2_j \gamma^3_k}

    and so on in turn, which never lowers the evidence; or takes the leading singular vectors of d, the
    nearest product of vectors, which may. Only products of factors matter, so that each but the first is
    scaled to a largest value of 1.

    :param y: (m_1, ..., m_K), or the same flattened.
    :param matrices: :math:`H_k`, (m_k, n_k) with (n_1, ..., n_K) the prior's shape.
    :param noise: :math:`\sigma^2`; None: learned with the factors, from a tenth of the data's variance.
    :param num_steps: EM steps.
    :param m_step: "alternating" or "rank_one".
    :param accelerated: whether each third step starts from an extrapolation of the two before it (SQUAREM),
        where that does not lower the evidence.
    :return: :class:`KroneckerPosterior`.
    :raises ArgumentError: for shapes that do not fit, or an unknown ``m_step``.
    :raises NonFiniteError: if the evidence stops being finite.

    >>> rng = np.random.default_rng(0)
    >>> h = [rng.normal(size=(3, 4)), rng.normal(size=(3, 4))]
    >>> x = np.zeros((4, 4)); x[1, 2] = 2.0
    >>> found = type2_em(KroneckerARD((4, 4)), h[0] @ x @ h[1].T, h, 1e-3)
    >>> [int(f.argmax()) for f in found.factors], round(float(found.mean[1, 2]), 1)
    ([1, 2], 2.0)

    Sources: as of :class:`KroneckerARD`; Varadhan and Roland 2008, "Simple and globally convergent methods
    for accelerating the convergence of any EM algorithm", for the extrapolation.
    """
    y, seen, start = _checked(prior, y, matrices, noise, m_step)
    check_count("type2_em: num_steps", num_steps)
    check_flag("type2_em: accelerated", accelerated)
    options = {"m_step": m_step, "learned": noise is None, "accelerated": accelerated}
    *found, trace = _run(y, seen, start, int(num_steps), **options)
    factors, sigma, mean, variance = found
    if not bool(jnp.isfinite(trace).all()):
        step = int(np.argmin(np.isfinite(trace)))
        raise NonFiniteError(
            f"type2_em: log p(y) is not finite after step {step}. Scale y and the matrices to numbers near "
            "1, give a larger noise, or use double precision."
        )
    return KroneckerPosterior(prior, factors, sigma, mean, variance, trace, y, seen)


@partial(jax.jit, static_argnames=("num_steps", "m_step", "learned", "accelerated"))
def _run(y, matrices, start, num_steps, m_step, learned, accelerated):
    def point(theta):
        of = eigen(theta[0], matrices)
        return theta, of, evidence(y, theta[1], of)

    def em(at):
        (factors, sigma), of, _ = at
        gamma = outer(factors)
        mean = gamma * back(y, sigma, of)
        d = mean**2 + variances(gamma, sigma, of)
        new = _alternating(factors, d) if m_step == "alternating" else _rank_one(d)
        if learned:
            known = outer(of.values)
            sigma = jnp.mean((y - along(mean, matrices)) ** 2) + sigma * jnp.mean(known / (known + sigma))
        return point((_normalised(new), sigma))

    def step(carry, i):
        before, last, now = carry
        after = em(now)
        if accelerated:

            def leap():
                away = em(point(_extrapolated(before, last, now[0])))
                return jax.lax.cond(away[2] >= after[2], lambda: away, lambda: after)

            after = jax.lax.cond(i % 3 == 2, leap, lambda: after)
        return (last, now[0], after), after[2]

    (_, _, at), trace = jax.lax.scan(step, (start, start, point(start)), jnp.arange(num_steps))
    (factors, sigma), of, _ = at
    gamma = outer(factors)
    return factors, sigma, gamma * back(y, sigma, of), variances(gamma, sigma, of), trace


def _extrapolated(before, last, now):
    """Along the last two steps of the logarithms, by the ratio of their lengths."""
    a, b, c = (jax.tree.map(jnp.log, theta) for theta in (before, last, now))
    r = jax.tree.map(jnp.subtract, b, a)
    v = jax.tree.map(lambda x, y, z: z - 2.0 * y + x, a, b, c)
    size_r, size_v = (sum((jnp.sum(x**2) for x in jax.tree.leaves(t)), jnp.zeros(())) for t in (r, v))
    alpha = jnp.maximum(jnp.sqrt(size_r / jnp.maximum(size_v, 1e-30)), 1.0)
    factors, sigma = jax.tree.map(lambda x, r, v: jnp.exp(x + 2.0 * alpha * r + alpha**2 * v), a, r, v)
    return _normalised(factors), sigma


def _alternating(factors, d):
    factors = list(factors)
    for _ in range(SWEEPS):
        for k, factor in enumerate(factors):
            others = [jnp.ones_like(factor) if j == k else f for j, f in enumerate(factors)]
            factors[k] = jnp.mean(d / outer(others), [j for j in range(d.ndim) if j != k])
            factors = list(_normalised(factors))
    return factors


def _rank_one(d):
    """Leading singular vectors of each unfolding, and their weight."""
    vectors = []
    for k in range(d.ndim):
        flat = jnp.moveaxis(d, k, 0).reshape(d.shape[k], -1)
        vectors.append(jnp.abs(jnp.linalg.eigh(flat @ flat.T)[1][:, -1]))
    weight = jnp.sum(d * outer(vectors))
    return [weight * vectors[0], *vectors[1:]]


def _normalised(factors):
    """The largest value of each but the first 1, and none below the least."""
    sizes = [jnp.max(f) for f in factors]
    scaled = [jnp.maximum(f / size, LEAST) for f, size in zip(factors, sizes, strict=True)]
    return (scaled[0] * reduce(jnp.multiply, sizes), *scaled[1:])


def _checked(prior, y, matrices, noise, m_step):
    if not isinstance(prior, KroneckerARD):
        raise ArgumentTypeError(f"type2_em: prior must be a KroneckerARD, got {described(prior)}.")
    if m_step not in M_STEPS:
        raise ArgumentError(f"type2_em: m_step must be one of {M_STEPS}, got {described(m_step)}.")
    if noise is not None:
        check_number("type2_em: noise", noise)
        if not 0.0 < noise < np.inf:
            raise ArgumentError(f"type2_em: noise must be a positive variance, got {noise}.")
    check_array("type2_em: y", y)
    if not isinstance(matrices, list | tuple):
        raise ArgumentTypeError(
            f"type2_em: matrices must be a list of one matrix an axis, got {described(matrices)}."
        )
    if len(matrices) != len(prior.shape):
        raise ArgumentError(
            f"type2_em: matrices must be {len(prior.shape)}, one an axis of the prior, got {len(matrices)}."
        )
    for k, (h, size) in enumerate(zip(matrices, prior.shape, strict=True)):
        check_array(f"type2_em: matrices[{k}]", h)
        if np.ndim(h) != 2 or np.shape(h)[1] != size:
            raise ArgumentError(
                f"type2_em: matrices[{k}] must have shape (m, {size}), as axis {k} of the prior, got "
                f"{np.shape(h)}."
            )
    dtype = jnp.result_type(float)
    seen = tuple(jnp.asarray(h, dtype) for h in matrices)
    shape = tuple(len(h) for h in seen)
    if jnp.shape(y) not in (shape, (int(np.prod(shape)),)):
        raise ArgumentError(f"type2_em: y must have shape {shape}, or be flat, got {jnp.shape(y)}.")
    y = jnp.asarray(y, dtype).reshape(shape)
    for name, x in (("y", y), *((f"matrices[{k}]", h) for k, h in enumerate(seen))):
        if not bool(jnp.isfinite(x).all()):
            raise ArgumentError(f"type2_em: {name} holds numbers that are not finite.")
    if not y.size:
        raise ArgumentError("type2_em: y is empty; give at least one equation.")
    power = jnp.mean(y**2)
    if not float(power) > 0.0:
        raise ArgumentError("type2_em: y is all zero, which every factor of zero explains.")
    # variances such that the data are as large as they are
    scale = power / np.prod([float(jnp.mean(jnp.sum(h**2, 1))) for h in seen])
    factors = _normalised([jnp.full(n, 1.0, dtype) for n in prior.shape])
    start = (factors[0] * scale, *factors[1:])
    return y, seen, (start, jnp.asarray(0.1 * power if noise is None else noise, dtype))
