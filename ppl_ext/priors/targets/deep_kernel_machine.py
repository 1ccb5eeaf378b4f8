"""Wide networks that learn features: Gram matrices as parameters (Yang et al. 2023)."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import solve_triangular

from ppl_ext.errors import ArgumentError, NonFiniteError
from ppl_ext.priors.linear_algebra import as_rows
from ppl_ext.priors.targets.deep_kernel_posterior import DeepKernelPosterior, rounded_cholesky, solved
from ppl_ext.priors.targets.nngp import check_activation, expected_product, expected_square, layer_scales
from ppl_ext.runtime.arguments import check_array, check_count, check_positive


class DeepKernelMachine(eqx.Module):
    r"""An infinitely wide network whose hidden layers follow the data.

    .. math:: \max_{G_1, \dots, G_L} \; \log p(Y \mid G_L) - \sum_{l=1}^{L} \nu_l \,
        \mathrm{KL}\big(\mathcal{N}(0, G_l) \,\|\, \mathcal{N}(0, K(G_{l-1}))\big)

    :math:`G_l` are covariances of the rows in layer l, and K what a layer makes of them, as in
    :func:`~ppl_ext.priors.nngp_kernel`. For :math:`\nu \to \infty` every :math:`G_l = K(G_{l-1})`, and the
    machine is :class:`~ppl_ext.priors.NNGP`; the smaller :math:`\nu`, the further layers move for the data,
    and the sooner they follow its noise: with few rows a small :math:`\nu` predicts worse than the NNGP.

    :param depth: L, hidden layers.
    :param nu: :math:`\nu`, one number or one a layer.
    :param activation: as of :func:`~ppl_ext.priors.nngp_kernel`, as are ``weight_scale``, ``bias_scale``.
    :raises ArgumentError: for numbers out of their range.

    >>> x = jnp.array([[-1.0], [0.0], [1.0]])
    >>> fitted = DeepKernelMachine(depth=1, nu=2.0).fit(x, jnp.array([1.0, 0.0, 1.0]), noise=0.01)
    >>> fitted.mean(x).shape, bool(fitted.objective[-1] > fitted.objective[0])
    ((3,), True)

    Source: Yang, Robeyns, Milsom, Anson, Schoots, Aitchison 2023, "A theory of representation learning gives
    a deep generalisation of kernel methods" (arXiv:2108.13097).
    """

    depth: int = eqx.field(static=True)
    nu: float | Sequence[float] = eqx.field(static=True)
    activation: Any = eqx.field(static=True, default="relu")
    weight_scale: float | Sequence[float] = eqx.field(static=True, default=1.0)
    bias_scale: float | Sequence[float] = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        check_count("DeepKernelMachine: depth", self.depth)
        layer_scales("DeepKernelMachine", self.depth, self.weight_scale, self.bias_scale)
        check_activation("DeepKernelMachine", self.activation)
        if len(self.weights) != self.depth:
            raise ArgumentError(
                f"DeepKernelMachine: nu must be one number or {self.depth}, one a layer, got "
                f"{len(self.weights)}."
            )
        for value in self.weights:
            check_positive("DeepKernelMachine: nu", value)

    @property
    def weights(self) -> tuple[float, ...]:
        """One :math:`\\nu` a layer."""
        return tuple(self.nu) if isinstance(self.nu, Sequence) else (self.nu,) * self.depth

    def fit(
        self, x: Any, y: Any, *, noise: float, inducing: Any = None, num_steps: int = 200
    ) -> DeepKernelPosterior:
        r"""Maximise the objective over the Gram matrices, by L-BFGS from those of the NNGP.

        With inducing rows Z only their Gram matrices are parameters: other rows follow by the conditionals
        of the prior, and :math:`\log p(Y \mid G_L)` becomes the lower bound of Titsias 2009.

        :param x: (n, d) or (n,); ``y`` (n,), or (n, P) for outputs that share the covariance.
        :param noise: variance of y given the function.
        :param inducing: Z (m, d); by default all rows, and the likelihood is exact.
        :raises ArgumentError: for shapes that do not fit.
        :raises NonFiniteError: if the objective is not finite.
        """
        here = "DeepKernelMachine.fit"
        check_positive(f"{here}: noise", noise)
        check_count(f"{here}: num_steps", num_steps)
        for name, value in (("x", x), ("y", y), *(() if inducing is None else (("inducing", inducing),))):
            check_array(f"{here}: {name}", value)
            if not np.size(value):
                raise ArgumentError(f"{here}: {name} is empty; give at least one row.")
            if not bool(jnp.isfinite(jnp.asarray(value)).all()):
                raise ArgumentError(f"{here}: {name} holds numbers that are not finite.")
        x, y = as_rows(x), jnp.asarray(y, jnp.result_type(float))
        z = x if inducing is None else as_rows(inducing)
        if y.ndim not in (1, 2) or len(y) != len(x) or z.shape[1:] != x.shape[1:] or x.ndim != 2:
            raise ArgumentError(
                f"{here}: x must be (n, d), y (n,) or (n, P) and inducing (m, d), got shapes {x.shape}, "
                f"{y.shape} and {z.shape}."
            )
        sizes = (x.shape[1] + 1, *(len(z),) * (self.depth - 1))
        start = tuple(jnp.zeros((k, k), x.dtype) for k in sizes)
        raw, trace = _ascended(self, start, x, y.reshape(len(y), -1), z, noise, int(num_steps))
        if not bool(jnp.isfinite(trace).all()):
            step = int(np.argmin(np.isfinite(trace)))
            raise NonFiniteError(
                f"{here}: the objective is not finite at step {step}. Repeated rows make a covariance "
                "singular: give a bias_scale, more noise, fewer inducing rows, or use double precision."
            )
        return DeepKernelPosterior(self, _factors(self, raw), z, x, y, float(noise), trace)

    def covariances(self, factors: Any, z: jax.Array, x: jax.Array, whole: bool = True) -> tuple:
        """Covariances of outputs among the inducing rows, between these and x, and among x (or variances)."""
        weights, biases = layer_scales("", self.depth, self.weight_scale, self.bias_scale)

        def features(rows):
            return jnp.concatenate(
                [weights[0] * rows / rows.shape[1] ** 0.5, jnp.full((len(rows), 1), biases[0])], 1
            )

        a, b = features(z) @ factors[0], features(x) @ factors[0]
        uu, ux, xx = a @ a.T, a @ b.T, b @ b.T if whole else jnp.sum(b**2, 1)
        for layer in range(1, self.depth + 1):
            u, v, act = jnp.diagonal(uu), jnp.diagonal(xx) if whole else xx, self.activation
            uu, ux = expected_product(act, u[:, None], u, uu), expected_product(act, u[:, None], v, ux)
            xx = expected_product(act, v[:, None], v, xx) if whole else expected_square(act, v)
            uu, ux, xx = (biases[layer] ** 2 + weights[layer] ** 2 * k for k in (uu, ux, xx))
            if layer < self.depth:
                root = rounded_cholesky(uu)
                half = solve_triangular(root, ux, lower=True)
                moved = factors[layer].T @ half
                uu = root @ factors[layer]
                ux, uu = uu @ moved, uu @ uu.T
                xx = xx + (moved.T @ moved - half.T @ half if whole else (moved**2 - half**2).sum(0))
        return uu, ux, xx


def _bound(machine, raw, x, y, z, noise):
    factors = _factors(machine, raw)
    uu, ux, xx = machine.covariances(factors, z, x, whole=False)
    a, _, factor, inner = solved(uu, ux, y, noise)
    n, outputs = y.shape
    value = -0.5 * (jnp.sum(y**2) / noise - jnp.sum(inner**2))
    value -= outputs * jnp.sum(jnp.log(jnp.diagonal(factor)))
    value -= 0.5 * outputs * (n * jnp.log(2 * jnp.pi * noise))
    if z is not x:
        value -= 0.5 * outputs * (jnp.sum(xx) / noise - jnp.sum(a**2))
    for nu, t in zip(machine.weights, factors, strict=True):
        logs = jnp.log(jnp.diagonal(t))
        value -= 0.5 * nu * (jnp.sum(jnp.tril(t, -1) ** 2) + jnp.sum(jnp.expm1(2.0 * logs) - 2.0 * logs))
    return value


def _ascended(machine, start, x, y, z, noise, num_steps):
    optim = optax.lbfgs()
    size = len(y)

    def loss(raw):
        return -_bound(machine, raw, x, y, z, noise) / size

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        raw, state = carry
        value, grad = value_and_grad(raw, state=state)
        updates, state = optim.update(grad, state, raw, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(raw, updates), state), -size * value

    @jax.jit
    def run(start):
        (raw, _), trace = jax.lax.scan(step, (start, optim.init(start)), length=num_steps)
        return raw, trace

    return run(start)


def _factors(machine, raw):
    """Lower triangular matrices near I, on the scale on which each layer's divergence is felt."""

    def factor(x, nu):
        x = x / (1.0 + nu) ** 0.5
        return jnp.tril(x, -1) + jnp.diag(jnp.exp(jnp.diagonal(x)))

    return tuple(factor(x, nu) for x, nu in zip(raw, machine.weights, strict=True))
