"""Gaussian processes as targets, with kernels of tinygp or any function of two sets of inputs."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.priors.linear_algebra import as_rows, cholesky
from ppl_ext.priors.targets.nngp import Activation, check_activation, layer_scales, nngp_kernel
from ppl_ext.runtime.arguments import check_count, check_function, check_mapping, check_number, described

Kernel = Callable[[jax.Array, jax.Array], jax.Array]
Mean = float | Callable[[jax.Array], jax.Array]


class GaussianTarget(eqx.Module):
    """A target with Gaussian marginals: everything follows from a mean function and a covariance function."""

    num_outputs: eqx.AbstractVar[int]

    @abstractmethod
    def mean_at(self, inputs: jax.Array) -> jax.Array:
        """(M,)."""

    @abstractmethod
    def cov_between(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """(n, m)."""

    def mean(self, inputs: jax.Array) -> jax.Array:
        """(M,), or (M, P) for several outputs."""
        mean = self.mean_at(inputs)
        return mean if self.num_outputs == 1 else jnp.repeat(mean[:, None], self.num_outputs, axis=1)

    def cov(self, inputs: jax.Array) -> jax.Array:
        """(M, M), or (M·P, M·P) for P outputs, which are independent, the output's index running fastest."""
        cov = self.cov_between(inputs, inputs)
        return cov if self.num_outputs == 1 else jnp.kron(cov, jnp.eye(self.num_outputs, dtype=cov.dtype))

    def sample(self, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        """(num_draws, M), or (num_draws, M, P)."""
        factor = cholesky(self.cov_between(inputs, inputs))
        shape = (num_draws, self.num_outputs, factor.shape[0])
        draws = self.mean_at(inputs) + jax.random.normal(rng_key, shape, factor.dtype) @ factor.T
        return draws[:, 0] if self.num_outputs == 1 else jnp.swapaxes(draws, 1, 2)


class GaussianProcess(GaussianTarget):
    r"""A Gaussian process, or one whose hyperparameters are drawn anew for every function.

    .. math:: f \sim \mathrm{GP}(m, k) \qquad\text{or}\qquad \theta \sim p(\theta),\; f \mid \theta \sim
        \mathrm{GP}(m, k_\theta)

    :param kernel: a tinygp kernel, of times too (``quasisep``), or any function of inputs (n, d) and (m, d)
        that returns (n, m): of GPJax, ``GaussianProcess(kernel.cross_covariance)``. With ``hyper``, a
        function of a dict of its draws that returns such a kernel.
    :param mean: a number, or a function from inputs (M, d) to (M,).
    :param hyper: distributions of the kernel's hyperparameters by name. The law of f is then no Gaussian, and
        ``cov`` is not there.
    :param num_outputs: P independent functions with this law.
    :raises ArgumentError: if the kernel does not return a matrix.

    >>> import tinygp
    >>> target = GaussianProcess(tinygp.kernels.ExpSquared(scale=0.6))
    >>> target.sample(jax.random.key(0), jnp.linspace(-1, 1, 5), 3).shape
    (3, 5)
    >>> import numpyro.distributions as dist
    >>> kernel = lambda h: tinygp.kernels.ExpSquared(scale=h["length"])
    >>> target = GaussianProcess(kernel, hyper={"length": dist.LogNormal(0.0, 1.0)})
    >>> target.sample(jax.random.key(0), jnp.linspace(-1, 1, 5), 3).shape
    (3, 5)
    """

    kernel: Any
    offset: Mean
    hyper: dict[str, dist.Distribution] | None
    num_outputs: int = eqx.field(static=True)

    def __init__(
        self,
        kernel: Any,
        mean: Mean = 0.0,
        hyper: Mapping[str, dist.Distribution] | None = None,
        num_outputs: int = 1,
    ):
        check_function("GaussianProcess: kernel", kernel)
        if isinstance(kernel, type):
            raise ArgumentTypeError(
                f"GaussianProcess: kernel must be an instance, such as {kernel.__name__}(), got "
                f"{described(kernel)}."
            )
        if not callable(mean):
            check_number("GaussianProcess: mean", mean)
        if hyper is not None:
            check_mapping("GaussianProcess: hyper", hyper, "from names to distributions")
            for name, law in hyper.items():
                if not isinstance(law, dist.Distribution):
                    raise ArgumentTypeError(
                        f"GaussianProcess: hyper['{name}'] must be a NumPyro distribution, got "
                        f"{described(law)}."
                    )
        check_count("GaussianProcess: num_outputs", num_outputs)
        self.kernel, self.offset, self.num_outputs = kernel, mean, num_outputs
        self.hyper = None if hyper is None else dict(hyper)

    def mean_at(self, inputs: jax.Array) -> jax.Array:
        rows = as_rows(inputs)
        if not callable(self.offset):
            return jnp.full(rows.shape[0], self.offset, rows.dtype)
        mean = jnp.asarray(self.offset(rows))
        if mean.shape != rows.shape[:1]:
            raise ArgumentError(
                f"GaussianProcess: mean must return shape {rows.shape[:1]} for inputs {rows.shape}, got "
                f"{mean.shape}."
            )
        return mean

    def cov_between(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        if self.hyper is not None:
            raise ArgumentError(
                "GaussianProcess: with hyper, functions have no one covariance; draw them, or fix the "
                "hyperparameters."
            )
        return _matrix(self.kernel, x1, x2)

    def cov(self, inputs: jax.Array) -> jax.Array | None:  # type: ignore[override]  # none with hyper
        """The covariance, as of every Gaussian target; ``None`` with ``hyper``."""
        return None if self.hyper is not None else super().cov(inputs)

    def sample(self, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        if self.hyper is None:
            return super().sample(rng_key, inputs, num_draws)
        laws = self.hyper

        def one(key):
            keys = jax.random.split(key, len(laws) + 1)
            draws = {name: law.sample(k) for (name, law), k in zip(laws.items(), keys[1:], strict=True)}
            kernel = self.kernel(draws)
            if not callable(kernel):
                raise ArgumentTypeError(
                    f"GaussianProcess: with hyper, kernel must return a kernel, got {described(kernel)}."
                )
            return GaussianProcess(kernel, self.offset, None, self.num_outputs).sample(keys[0], inputs, 1)[0]

        return jax.vmap(one)(jax.random.split(rng_key, num_draws))


class NNGP(GaussianTarget):
    r"""The Gaussian process that a network tends to as its layers grow: :func:`~ppl_ext.priors.nngp_kernel`
    is its covariance.

    :param depth: number of hidden layers.
    :param activation: "relu", "erf", "step", "linear" or an elementwise function.
    :param weight_scale: one number or one a layer, as is ``bias_scale``.
    :param num_outputs: P independent outputs.

    >>> NNGP(depth=2, activation="erf").sample(jax.random.key(0), jnp.ones((4, 3)), 2).shape
    (2, 4)
    """

    depth: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    weight_scale: float | Sequence[float]
    bias_scale: float | Sequence[float]
    num_outputs: int = eqx.field(static=True)

    def __init__(
        self,
        depth: int,
        activation: Activation = "relu",
        weight_scale: float | Sequence[float] = 1.0,
        bias_scale: float | Sequence[float] = 1.0,
        num_outputs: int = 1,
    ):
        layer_scales("NNGP", depth, weight_scale, bias_scale)
        check_activation("NNGP", activation)
        check_count("NNGP: num_outputs", num_outputs)
        self.depth, self.activation, self.num_outputs = depth, activation, num_outputs
        self.weight_scale, self.bias_scale = weight_scale, bias_scale

    def mean_at(self, inputs: jax.Array) -> jax.Array:
        return jnp.zeros(inputs.shape[0], inputs.dtype)

    def cov_between(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        weights, biases = layer_scales("NNGP", self.depth, self.weight_scale, self.bias_scale)
        kernel = partial(
            nngp_kernel, depth=self.depth, activation=self.activation, weight_scale=weights, bias_scale=biases
        )
        return kernel(as_rows(x1), as_rows(x2))


def _matrix(kernel: Kernel, x1: jax.Array, x2: jax.Array) -> jax.Array:
    x1, x2 = as_rows(x1), as_rows(x2)
    if hasattr(kernel, "coord_to_sortable"):  # tinygp's kernels with a state-space form are of times
        if x1.shape[1] != 1:
            raise ArgumentError(
                f"GaussianProcess: {described(kernel)} is a kernel of one input, and these have "
                f"{x1.shape[1]}. Take one of tinygp.kernels."
            )
        matrix = jnp.asarray(kernel(x1[:, 0], x2[:, 0]))
    else:
        matrix = jnp.asarray(kernel(x1, x2))
    if matrix.shape != (len(x1), len(x2)):
        raise ArgumentError(
            f"GaussianProcess: the kernel must return shape {(len(x1), len(x2))} for inputs {x1.shape} and "
            f"{x2.shape}, got {matrix.shape}."
        )
    return matrix
