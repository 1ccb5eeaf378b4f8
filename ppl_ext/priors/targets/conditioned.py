"""Gaussian targets under linear operators: conditioned on what an operator gives, or seen through one."""

from collections.abc import Callable
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors.linear_algebra import as_rows, cholesky
from ppl_ext.priors.targets.gaussian_process import GaussianTarget
from ppl_ext.runtime.arguments import check_array, check_function, check_number, described
from ppl_ext.runtime.explain import in_one_line, name_of

Function = Callable[[jax.Array], jax.Array]
Operator = Callable[[Function], jax.Array]


def values_at(points: Any) -> Operator:
    """The operator that reads a function at points (K, d) or (K,).

    :return: from a function to its values, (K,).
    :raises ArgumentTypeError: if the points are no array of numbers.

    >>> print(values_at([0.0, 3.0])(lambda x: x[:, 0] ** 2))
    [0. 9.]
    """
    points = as_rows(_points("values_at", points))
    return lambda f: f(points)


def derivative_at(points: Any, dim: int = 0) -> Operator:
    """The operator that takes a function's derivative by input ``dim`` at points (K, d) or (K,).

    >>> print(derivative_at([0.0, 1.0])(lambda x: x[:, 0] ** 2))
    [0. 2.]
    """
    points = as_rows(_points("derivative_at", points))
    if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < points.shape[1]:
        raise ArgumentError(
            f"derivative_at: dim must be a column of the points, 0 to {points.shape[1] - 1}, got "
            f"{described(dim)}."
        )
    return lambda f: jax.vmap(jax.grad(lambda x: f(x[None])[0]))(points)[:, dim]


def integral(nodes: Any, weights: Any) -> Operator:
    """The operator that integrates a function by a quadrature rule: Σ w f(node), one number.

    >>> print(integral([0.0, 0.5, 1.0], [1 / 6, 4 / 6, 1 / 6])(lambda x: x[:, 0] ** 2).round(3))
    [0.333]
    """
    nodes, weights = as_rows(_points("integral: nodes", nodes)), _points("integral: weights", weights)
    if weights.shape != nodes.shape[:1]:
        raise ArgumentError(
            f"integral: there must be a weight for each of the {len(nodes)} nodes, got shape {weights.shape}."
        )
    return lambda f: (weights @ f(nodes))[None]


def stacked(*operators: Operator) -> Operator:
    """Several operators as one, their results joined.

    :param operators: each from a function to numbers.
    :return: one to all of them, (K,), in this order.
    :raises ArgumentTypeError: if one is no function.

    >>> print(stacked(values_at([2.0]), derivative_at([2.0]))(lambda x: x[:, 0] ** 2))
    [4. 4.]
    """
    for i, operator in enumerate(operators):
        check_function(f"stacked: operator {i}", operator)
    return lambda f: jnp.concatenate([jnp.ravel(g(f)) for g in operators])


class Conditioned(GaussianTarget):
    r"""A Gaussian target given what a linear operator gives for it: a law of conservation, a boundary value,
    a slope.

    .. math:: f \mid G f = b \;\sim\; \mathrm{GP}\big(m + k G^* S^{-1} (b - G m),\; k - k G^* S^{-1} G k\big),
        \qquad
        S = G k G^* + \nu^2 I

    G is a linear function of a function: it may evaluate it, differentiate it with JAX, or sum it, as
    :func:`derivative_at`, :func:`integral` and :func:`values_at` do. What is conditioned is Gaussian again,
    and can be conditioned again.

    :param base: a Gaussian target, with one output.
    :param operator: G: takes f, a function from inputs (n, d) to values (n,), and returns (K,) numbers,
        linear in f.
    :param value: b, (K,) numbers, or one for all.
    :param noise: ν, standard deviation of an error in b.
    :raises ArgumentTypeError: for a base without a mean and a covariance, or an operator that is no function.
    :raises ArgumentError: for several outputs, values that are not one for each number of the operator, or an
        operator whose results have no law: a rough process has no derivative.

    >>> import tinygp
    >>> from ppl_ext.priors import GaussianProcess
    >>> flat = Conditioned(GaussianProcess(tinygp.kernels.ExpSquared()), derivative_at([0.0]), 0.0)
    >>> f = flat.sample(jax.random.key(0), jnp.array([-0.01, 0.01]), 4)
    >>> bool((abs(f[:, 0] - f[:, 1]) < 1e-2).all())
    True

    Särkkä, *Linear Operators and Stochastic Partial Differential Equations in Gaussian Process Regression*,
    2011, eqs. 8-11.
    """

    base: GaussianTarget
    operator: Operator = eqx.field(static=True)
    value: jax.Array
    noise: float = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)

    def __init__(self, base: GaussianTarget, operator: Operator, value: Any, noise: float = 0.0):
        _check_base("Conditioned", base, operator)
        check_number("Conditioned: noise", noise, at_least=0.0)
        value = _points("Conditioned: value", value, dims=(0, 1))
        self.base, self.operator, self.noise, self.num_outputs = base, operator, float(noise), 1
        self.value = value
        variances = jax.jit(lambda: jnp.diagonal(self._solve(_gram(base, operator, operator))))()
        if not isinstance(variances, jax.core.Tracer) and not jnp.isfinite(variances).all():
            self._refuse()

    def _refuse(self) -> NoReturn:
        gram = _gram(self.base, self.operator, self.operator)
        raise ArgumentError(
            f"Conditioned: what the operator '{name_of(self.operator)}' gives has no law under this base: "
            f"its covariance would be {gram.round(3).tolist()}. A rough process, as with the "
            "kernels Exp and Brownian motion, has no derivative; and of what is certain anyway nothing can "
            "be learned, unless noise > 0 is given."
        )

    def mean_at(self, inputs: jax.Array) -> jax.Array:
        of_mean = _apply(self.operator, self.base.mean_at)
        if self.value.ndim and self.value.shape != of_mean.shape:
            raise ArgumentError(
                f"Conditioned: the operator gives {of_mean.shape[0]} numbers, but value has shape "
                f"{self.value.shape}."
            )
        return self.base.mean_at(inputs) + _cross(self.base, self.operator, inputs) @ self._solve(
            self.value - of_mean
        )

    def cov_between(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        left, right = (_cross(self.base, self.operator, x) for x in (x1, x2))
        return self.base.cov_between(x1, x2) - left @ self._solve(right.T)

    def _solve(self, right: jax.Array) -> jax.Array:
        gram = _gram(self.base, self.operator, self.operator)
        factor = cholesky(gram + self.noise**2 * jnp.eye(len(gram), dtype=gram.dtype))
        return jax.scipy.linalg.cho_solve((factor, True), right)


class Image(GaussianTarget):
    r"""What a linear operator makes of a Gaussian target, at each set of inputs: its derivative, say.

    .. math:: g(x) = (A_x f), \qquad f \sim \mathrm{GP}(m, k) \quad\Rightarrow\quad g \sim \mathrm{GP}(A m,\;
        A k A^*)

    :param base: a Gaussian target, with one output.
    :param operator: takes f and inputs (n, d), and returns (n,) numbers, linear in f.
    :raises ArgumentTypeError: for a base without a mean and a covariance, or an operator that is no function.
    :raises ArgumentError: for several outputs.

    >>> import tinygp
    >>> from ppl_ext.priors import GaussianProcess
    >>> slope = Image(GaussianProcess(tinygp.kernels.ExpSquared(scale=2.0)), lambda f, x: derivative_at(x)(f))
    >>> print(slope.cov(jnp.array([0.0, 0.0]))[0])  # 1 / length scale squared
    [0.25 0.25]
    """

    base: GaussianTarget
    operator: Callable[[Function, jax.Array], jax.Array] = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)

    def __init__(self, base: GaussianTarget, operator: Callable[[Function, jax.Array], jax.Array]):
        _check_base("Image", base, operator)
        self.base, self.operator, self.num_outputs = base, operator, 1

    def mean_at(self, inputs: jax.Array) -> jax.Array:
        return _apply(self._at(inputs), self.base.mean_at)

    def cov_between(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        return _gram(self.base, self._at(x1), self._at(x2))

    def _at(self, inputs: jax.Array) -> Operator:
        return lambda f: self.operator(f, as_rows(inputs))


def _apply(operator: Operator, f: Function) -> jax.Array:
    try:
        found = operator(f)
        check_array(f"What the operator '{name_of(operator)}' gives", found)
        out = jnp.ravel(jnp.asarray(found))
    except ArgumentTypeError:
        raise
    except TypeError as error:
        raise ArgumentTypeError(
            f"The operator '{name_of(operator)}' must turn a function of inputs (n, d) into numbers, but "
            f"raised {in_one_line(error)}"
        ) from error
    return out.astype(jnp.result_type(float)) if not jnp.issubdtype(out.dtype, jnp.floating) else out


def _cross(base: GaussianTarget, operator: Operator, inputs: jax.Array) -> jax.Array:
    """(n, K): covariance of f at the inputs with G f."""
    rows = as_rows(inputs)
    return jax.vmap(lambda x: _apply(operator, lambda xs: base.cov_between(xs, x[None])[:, 0]))(rows)


def _gram(base: GaussianTarget, left: Operator, right: Operator) -> jax.Array:
    """(K, L): covariance of G f with H f."""
    count = jax.eval_shape(lambda: _apply(right, base.mean_at)).shape[0]
    return jax.vmap(lambda j: _apply(left, lambda xs: _cross(base, right, xs)[:, j]), out_axes=1)(
        jnp.arange(count)
    )


def _check_base(where: str, base: Any, operator: Any) -> None:
    if not isinstance(base, GaussianTarget) or getattr(base, "hyper", None) is not None:
        raise ArgumentTypeError(
            f"{where}: base must be a Gaussian target, as GaussianProcess(kernel) and NNGP(depth=2) are, "
            f"got {described(base)}."
        )
    if base.num_outputs != 1:
        raise ArgumentError(f"{where}: base must have one output, got num_outputs={base.num_outputs}.")
    check_function(f"{where}: operator", operator)


def _points(where: str, x: Any, dims: tuple[int, ...] = (1, 2)) -> jax.Array:
    check_array(where, x, tables=True)
    x = jnp.asarray(x, jnp.result_type(float))
    if x.ndim not in dims or x.size == 0:
        raise ArgumentError(
            f"{where} must have {' or '.join(map(str, dims))} axes and at least one entry, got shape "
            f"{x.shape}."
        )
    if not isinstance(x, jax.core.Tracer) and not jnp.isfinite(x).all():
        raise ArgumentError(f"{where} holds numbers that are not finite.")
    return x
