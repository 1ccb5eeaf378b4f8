"""Newton's method with a regularisation that the gradient sets, as a NumPyro optimiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.optim import _NumPyroOptim

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_number, check_positive, described

MOST_TRIALS = 60
"""How often one step is tried again, each time with four times the regularisation."""


class RegularizedNewton(_NumPyroOptim):
    r"""Newton's method that does not run away: for a mode, and a Laplace approximation there.

    .. math:: x^+ = x - (|B| + \lambda \|g\|^a I)^{-1} g

    with gradient g and Hessian B of the loss, and :math:`|B|` with the absolute eigenvalues of B, so that it
    goes down where the loss is not convex too. :math:`\lambda` is four times as large where the loss would
    not fall enough, and a quarter of what served at the next step. Far from a mode it is gradient descent
    with a step size of its own; near one it is Newton's method, and squares the error.

    ``SVI(model, AutoDelta(model), RegularizedNewton(), Trace_ELBO())``, or :func:`~ppl_ext.infer.fit` with
    ``AutoLaplaceApproximation``. The loss should not be random. A step costs O(d³) in the number of
    parameters and as many gradients as there are of these, so that it is for some hundreds.

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
        check_number("RegularizedNewton: power", power)
        if power < 0:
            raise ArgumentError(f"RegularizedNewton: power must be at least 0, got {described(power)}.")
        check_positive("RegularizedNewton: regularization", regularization)
        self.power, self.regularization = power, regularization
        super().__init__(lambda: (self._begin, self._no_step, lambda state: state[0]))

    def _begin(self, params):
        return params, jnp.asarray(self.regularization, float)

    def _no_step(self, *args, **kwargs):
        raise ArgumentError(
            "RegularizedNewton needs the loss as a function, and was given its gradient alone. Run it by "
            "SVI.run, SVI.update or fit."
        )

    def eval_and_update(
        self, fn: Callable[[Any], tuple], state: Any, forward_mode_differentiation: bool = False
    ) -> tuple[tuple[Any, Any], Any]:
        """The loss, and the state after one step."""
        i, (params, regularization) = state
        x, unravel = ravel_pytree(params)

        def loss(x):
            return fn(unravel(x))

        grad = jax.jacfwd if forward_mode_differentiation else jax.grad
        value, aux = loss(x)
        slope = grad(lambda x: loss(x)[0])(x)
        values, axes = jnp.linalg.eigh(jax.jacfwd(grad(lambda x: loss(x)[0]))(x))
        along, size = axes.T @ slope, jnp.linalg.norm(slope) ** self.power
        slack = 4 * jnp.finfo(x.dtype).eps * jnp.abs(value)

        def moved(regularization):
            scaled = along / (jnp.abs(values) + regularization * size)
            return x - axes @ scaled, along @ scaled

        def too_far(trial):
            k, regularization = trial
            there, fall = moved(regularization)
            return (k < MOST_TRIALS) & ~(loss(there)[0] <= value - 1e-4 * fall + slack)

        k, regularization = jax.lax.while_loop(
            too_far, lambda trial: (trial[0] + 1, 4.0 * trial[1]), (0, regularization)
        )
        found = k < MOST_TRIALS
        x = jnp.where(found, moved(regularization)[0], x)
        tiny = jnp.finfo(x.dtype).tiny
        after = jnp.where(found, jnp.maximum(regularization / 4.0, 1e3 * tiny), self.regularization)
        return (value, aux), (i + 1, (unravel(x), after))

    def eval_and_stable_update(
        self, fn: Callable[[Any], tuple], state: Any, forward_mode_differentiation: bool = False
    ) -> tuple[tuple[Any, Any], Any]:
        """What ``eval_and_update`` does, which goes nowhere where the loss is not finite."""
        return self.eval_and_update(fn, state, forward_mode_differentiation)
