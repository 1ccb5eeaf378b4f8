"""Newton's method with a regularisation that the gradient sets: for optax, and as a NumPyro optimiser."""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from ppl_ext.errors import ArgumentError
from ppl_ext.infer.svi.line_searches import WithLoss
from ppl_ext.runtime.arguments import check_number, check_positive, described

MOST_TRIALS = 60
"""How often one step is tried again, each time with four times the regularisation."""

NO_LOSS = (
    "RegularizedNewton needs the loss as a function, and was given its gradient alone. Run it by SVI.run, "
    "SVI.update or fit, or hand update of the transformation params and value_fn=."
)


def regularized_newton(
    power: float = 0.5, regularization: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Newton's method that does not run away, as a transformation of optax.

    .. math:: x^+ = x - (|B| + \lambda \|g\|^a I)^{-1} g

    as :class:`RegularizedNewton`, which says more. ``update`` wants the params and, as optax's line searches
    do, the loss as a function: ``update(grads, state, params, value_fn=loss)``, and ``value=`` if it is
    known. The state is :math:`\lambda` of the next step. :func:`~ppl_ext.infer.fit` takes it as it is.

    :param power: a, at least 0.
    :param regularization: :math:`\lambda` of the first step, above 0.
    :raises ArgumentError: for numbers outside of these; of ``update``, if params or loss are not given.

    >>> newton, x = regularized_newton(), jnp.array([3.0, -1.0])
    >>> def loss(x):
    ...     return jnp.sum(jnp.cosh(x))
    >>> state = newton.init(x)
    >>> for _ in range(8):
    ...     step, state = newton.update(jax.grad(loss)(x), state, x, value_fn=loss)
    ...     x = optax.apply_updates(x, step)
    >>> bool(abs(x).max() < 1e-4)
    True

    Source: Semenov, Jaggi, Doikov 2025, "Gradient-normalized smoothness for optimization with approximate
    Hessians".
    """
    check_number("RegularizedNewton: power", power)
    if power < 0:
        raise ArgumentError(f"RegularizedNewton: power must be at least 0, got {described(power)}.")
    check_positive("RegularizedNewton: regularization", regularization)

    def init(params):
        return jnp.asarray(regularization, float)

    def update(updates, state, params=None, *, value=None, value_fn=None, **extra_args):
        if params is None or value_fn is None:
            raise ArgumentError(NO_LOSS)
        (x, unravel), (slope, _) = ravel_pytree(params), ravel_pytree(updates)

        def loss(x):
            return value_fn(unravel(x))

        forward = extra_args.get("forward_mode_differentiation", False)
        value = loss(x) if value is None else value
        bend = jax.jacfwd((jax.jacfwd if forward else jax.grad)(loss))(x)
        values, axes = jnp.linalg.eigh(bend)
        along, size = axes.T @ slope, jnp.linalg.norm(slope) ** power
        slack = 4 * jnp.finfo(x.dtype).eps * jnp.abs(value)

        def moved(regularization):
            scaled = along / (jnp.abs(values) + regularization * size)
            return -axes @ scaled, along @ scaled

        def too_far(trial):
            k, regularization = trial
            step, fall = moved(regularization)
            return (k < MOST_TRIALS) & ~(loss(x + step) <= value - 1e-4 * fall + slack)

        k, used = jax.lax.while_loop(too_far, lambda trial: (trial[0] + 1, 4.0 * trial[1]), (0, state))
        found = k < MOST_TRIALS
        step = jnp.where(found, moved(used)[0], 0.0)
        least = 1e3 * jnp.finfo(x.dtype).tiny
        return unravel(step), jnp.where(found, jnp.maximum(used / 4.0, least), regularization)

    return optax.GradientTransformationExtraArgs(init, update)


class RegularizedNewton(WithLoss):
    r"""Newton's method that does not run away: for a mode, and a Laplace approximation there.

    .. math:: x^+ = x - (|B| + \lambda \|g\|^a I)^{-1} g

    with gradient g and Hessian B of the loss, and :math:`|B|` with the absolute eigenvalues of B, so that it
    goes down where the loss is not convex too. :math:`\lambda` is four times as large where the loss would
    not fall enough, and a quarter of what served at the next step. Far from a mode it is gradient descent
    with a step size of its own; near one it is Newton's method, and squares the error.

    ``SVI(model, AutoDelta(model), RegularizedNewton(), Trace_ELBO())``, or :func:`~ppl_ext.infer.fit` with
    ``AutoLaplaceApproximation``; :func:`regularized_newton` is the same for optax. The loss should not be
    random. A step costs O(d³) in the number of parameters and as many gradients as there are of these, so
    that it is for some hundreds.

    :param power: a, at least 0; 1/2 suits losses with a Lipschitz Hessian, 1 logistic and softmax regression.
    :param regularization: :math:`\lambda` of the first step, above 0.
    :raises ArgumentError: for numbers outside of these.

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from numpyro.infer.autoguide import AutoDelta
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 10.0))
    ...     with numpyro.plate("rows", len(y)):
    ...         numpyro.sample("y", dist.Bernoulli(logits=z), obs=y)
    >>> y = jnp.array([1.0, 1.0, 1.0, 0.0])
    >>> svi = SVI(model, AutoDelta(model), RegularizedNewton(), Trace_ELBO())
    >>> found = svi.run(jax.random.key(0), 15, y, progress_bar=False)
    >>> print(f"{found.params['z_auto_loc']:.3f}")  # near log 3
    1.084

    Source: Semenov, Jaggi, Doikov 2025, "Gradient-normalized smoothness for optimization with approximate
    Hessians".
    """

    def __init__(self, power: float = 0.5, regularization: float = 1.0):
        super().__init__(regularized_newton(power, regularization))
        self.power, self.regularization = power, regularization

    def update(self, *args, **kwargs):
        raise ArgumentError(NO_LOSS)
