r"""Covariances of infinitely wide networks: the recursion over layers, and what one layer does to a pair of
Gaussians.

With weights :math:`N(0, \sigma_w^2/\text{fan-in})` and biases :math:`N(0, \sigma_b^2)`, a network's outputs
tend to a Gaussian process as its layers grow (Neal 1996; Lee et al. 2018; Matthews et al. 2018).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, check_count, check_number, described

ACTIVATIONS = ("relu", "erf", "step", "linear")
Activation = str | Callable[[jax.Array], jax.Array]


def nngp_kernel(
    x1: Any,
    x2: Any = None,
    *,
    depth: int,
    activation: Activation = "relu",
    weight_scale: float | Sequence[float] = 1.0,
    bias_scale: float | Sequence[float] = 1.0,
    nodes: int = 32,
) -> jax.Array:
    r"""Covariance of the outputs of an infinitely wide network.

    .. math:: K^0(x, x') = \sigma_b^2 + \sigma_w^2 \tfrac{x \cdot x'}{d}, \qquad
        K^{l+1}(x, x') = \sigma_b^2 + \sigma_w^2\, E[\phi(u)\phi(v)], \quad
        (u, v) \sim N\Big(0, \begin{pmatrix} K^l(x,x) & K^l(x,x') \\ K^l(x,x') & K^l(x',x') \end{pmatrix}\Big)

    :param x1: inputs, (n, d) or (n,) for d = 1; ``x2``, (m, d) or (m,), is ``x1`` by default.
    :param depth: number of hidden layers, 0 for a linear function.
    :param activation: "relu", "erf", "step" (Heaviside) or "linear", in closed form; or an elementwise
        function such as ``jnp.tanh``, whose expectation is a Gauss-Hermite sum on ``nodes`` squared points:
        right to about 1e-5 for smooth functions of moderate scale.
    :param weight_scale: :math:`\sigma_w`, one number or one a layer, the first layer first (depth + 1 of
        them); so is ``bias_scale``.
    :return: (n, m).
    :raises ArgumentError: for inputs that do not fit together, or scales that are negative or not one a
        layer.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> # 1/2 K on the diagonal
    >>> print(np.round(nngp_kernel(x, depth=1, activation="relu", bias_scale=0.0), 4))
    [[0.25   0.1592]
     [0.1592 1.    ]]

    Lee et al., *Deep Neural Networks as Gaussian Processes*, ICLR 2018, eqs. 4-5. Cho and Saul, *Kernel
    Methods for Deep Learning*, 2009, eqs. 1 and 6, for relu and step. Williams, *Computing with Infinite
    Networks*, 1996, eq. 11, for erf.
    """
    weights, biases = layer_scales("nngp_kernel", depth, weight_scale, bias_scale)
    check_count("nngp_kernel: nodes", nodes)
    check_activation("nngp_kernel", activation)
    x1 = _rows("x1", x1)
    x2 = x1 if x2 is None else _rows("x2", x2)
    if x1.shape[1] != x2.shape[1]:
        raise ArgumentError(
            f"nngp_kernel: x1 and x2 must have as many columns, got shapes {x1.shape} and {x2.shape}."
        )
    dim = x1.shape[1]

    def affine(layer: int, value: jax.Array) -> jax.Array:
        return biases[layer] ** 2 + weights[layer] ** 2 * value

    k12 = affine(0, x1 @ x2.T / dim)
    k11, k22 = (affine(0, jnp.sum(x**2, axis=1) / dim) for x in (x1, x2))
    for layer in range(1, depth + 1):
        k12 = affine(layer, expected_product(activation, k11[:, None], k22[None, :], k12, nodes))
        k11, k22 = (affine(layer, expected_square(activation, k, nodes)) for k in (k11, k22))
    return k12


def expected_product(
    activation: Activation, k11: jax.Array, k22: jax.Array, k12: jax.Array, nodes: int = 32
) -> jax.Array:
    r""":math:`E[\phi(u)\phi(v)]` for centred Gaussians with these variances and this covariance; all
    broadcast together.

    >>> float(expected_product("linear", jnp.array(2.0), jnp.array(3.0), jnp.array(0.5)))
    0.5
    """
    if activation == "linear":
        return k12 + jnp.zeros_like(k11 * k22)
    if activation == "erf":
        return (2.0 / jnp.pi) * jnp.arcsin(2.0 * k12 / jnp.sqrt((1.0 + 2.0 * k11) * (1.0 + 2.0 * k22)))
    scale = jnp.sqrt(k11 * k22)
    cosine = jnp.clip(jnp.where(scale > 0.0, k12 / jnp.where(scale > 0.0, scale, 1.0), 0.0), -1.0, 1.0)
    if activation == "relu":
        return scale * _arc_cosine_1(cosine) / (2.0 * jnp.pi)
    if activation == "step":
        return (jnp.pi - jnp.arccos(cosine)) / (2.0 * jnp.pi)
    assert callable(activation)
    z, w = _gauss_hermite(nodes, k12.dtype)
    wide = (..., None, None)
    a, b = jnp.sqrt(k11)[wide], jnp.sqrt(k22)[wide]
    c, s = cosine[wide], jnp.sqrt((1.0 - cosine) * (1.0 + cosine))[wide]
    u = a * z[:, None]
    v = b * (c * z[:, None] + s * z[None, :])
    return jnp.sum(activation(u) * activation(v) * w[:, None] * w[None, :], axis=(-2, -1))


def expected_square(activation: Activation, k: jax.Array, nodes: int = 32) -> jax.Array:
    r""":math:`E[\phi(u)^2]` for :math:`u \sim N(0, k)`."""
    if activation == "linear":
        return k
    if activation == "relu":
        return 0.5 * k
    if activation == "step":
        return jnp.full_like(k, 0.5)
    if activation == "erf":
        return (2.0 / jnp.pi) * jnp.arcsin(2.0 * k / (1.0 + 2.0 * k))
    assert callable(activation)
    z, w = _gauss_hermite(nodes, k.dtype)
    return jnp.sum(activation(jnp.sqrt(k)[..., None] * z) ** 2 * w, axis=-1)


@jax.custom_jvp
def _arc_cosine_1(cosine: jax.Array) -> jax.Array:
    """sin t + (π - t) cos t at t = arccos(cosine): its derivative is π - t, while those of its two terms are
    infinite at t = 0.
    """
    return jnp.sqrt((1.0 - cosine) * (1.0 + cosine)) + (jnp.pi - jnp.arccos(cosine)) * cosine


@_arc_cosine_1.defjvp
def _arc_cosine_1_jvp(primals, tangents):
    (cosine,), (tangent,) = primals, tangents
    return _arc_cosine_1(cosine), (jnp.pi - jnp.arccos(cosine)) * tangent


def _gauss_hermite(nodes: int, dtype) -> tuple[jax.Array, jax.Array]:
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    return jnp.asarray(z, dtype), jnp.asarray(w / w.sum(), dtype)


def layer_scales(where: str, depth: Any, weight_scale: Any, bias_scale: Any) -> tuple[tuple, tuple]:
    """One weight and one bias scale a layer, checked."""
    if not isinstance(depth, int | np.integer) or isinstance(depth, bool) or depth != 0:
        check_count(f"{where}: depth", depth)
    scales = []
    for name, value in (("weight_scale", weight_scale), ("bias_scale", bias_scale)):
        if isinstance(value, jax.core.Tracer) or (isinstance(value, jax.Array) and value.ndim == 0):
            value = [value[i] for i in range(value.shape[0])] if value.ndim else [value] * (depth + 1)
        elif (
            isinstance(value, Sequence | np.ndarray | jax.Array)
            and not isinstance(value, str)
            and np.ndim(value) == 1
        ):
            value = list(value)
        else:
            value = [value] * (depth + 1)
        if len(value) != depth + 1:
            raise ArgumentError(
                f"{where}: {name} must be one number or {depth + 1}, one a layer, got {len(value)}."
            )
        for v in value:
            if not isinstance(v, jax.Array):
                check_number(f"{where}: {name}", v, at_least=0.0)
        scales.append(tuple(value))
    return scales[0], scales[1]


def check_activation(where: str, activation: Any) -> None:
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        raise ArgumentError(
            f"{where}: activation must be one of {', '.join(map(repr, ACTIVATIONS))} or a function, got "
            f"{activation!r}."
        )
    if not isinstance(activation, str) and (not callable(activation) or isinstance(activation, type)):
        raise ArgumentTypeError(
            f"{where}: activation must be a name or an elementwise function, got {described(activation)}."
        )


def _rows(name: str, x: Any) -> jax.Array:
    check_array(f"nngp_kernel: {name}", x, tables=True)
    x = jnp.asarray(x)
    if x.ndim not in (1, 2):
        raise ArgumentError(f"nngp_kernel: {name} must have shape (n, d) or (n,), got {x.shape}.")
    if not isinstance(x, jax.core.Tracer) and not np.isfinite(x).all():
        raise ArgumentError(f"nngp_kernel: {name} holds numbers that are not finite.")
    x = x.astype(jnp.result_type(float)) if not jnp.issubdtype(x.dtype, jnp.floating) else x
    return x[:, None] if x.ndim == 1 else x
