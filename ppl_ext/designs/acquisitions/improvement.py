"""How far a measurement is expected to be above the best so far."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from ppl_ext.designs.acquisitions.functions import Gaussian, as_functions, as_rows, needs_draws
from ppl_ext.errors import ArgumentTypeError
from ppl_ext.runtime.arguments import check_number


def mean_above(z: jax.Array) -> jax.Array:
    r"""E max(z + Z, 0) of a standard normal Z.

    .. math:: \varphi(z) + z \Phi(z)

    to rounding far below zero too.

    >>> [float(f"{float(x):.4g}") for x in mean_above(jnp.array([0.0, -3.0, -9.0]))]
    [0.3989, 0.0003822, 1.225e-20]
    """
    # 1 - |z| times Mills' ratio, by its continued fraction, which does not cancel
    far = jnp.maximum(-z, 2.0)
    fraction = far
    for k in range(24, 1, -1):
        fraction = far + k / fraction
    return jnp.where(z < -2.5, norm.pdf(z) / (far * fraction + 1.0), norm.pdf(z) + z * norm.cdf(z))


class ExpectedImprovement(eqx.Module):
    r"""How far a candidate is expected to be above the best value so far.

    .. math:: a(x) = \mathbb{E} \max(f(x) - b, 0)

    With draws of the function it is their mean, and in closed form for a normal law. With ``pending``
    candidates, which will be measured too, it is the improvement of all of them together: the best of each
    draw is that of b and f at the pending ones.

    :param best: b. By default the greatest posterior mean among the candidates, which is how noisy
        measurements are served. A number for measurements without noise: the best of them.
    :return: called with functions, (n,) values, one for each candidate; larger is better.
    :raises ArgumentTypeError: for a normal law with pending candidates: hand draws of it.

    To look for a minimum hand the negated functions.

    >>> import numpyro.distributions as dist
    >>> law = dist.Normal(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0])).to_event(1)
    >>> print(ExpectedImprovement(best=1.0)(law).round(4))
    [0.3956 0.3989]

    Source: Jones, Schonlau, Welch 1998, "Efficient global optimization of expensive black-box functions"; for
    several at once Ginsbourger, Le Riche, Carraro 2010, "Kriging is well-suited to parallelize optimization".
    """

    best: Any = None

    def __check_init__(self):
        if self.best is not None and not isinstance(self.best, jax.Array):
            check_number("ExpectedImprovement: best", self.best)

    def __call__(self, functions: Any, pending: Any = ()) -> jax.Array:
        where = "ExpectedImprovement"
        functions = as_functions(where, functions)
        rows = as_rows(f"{where}: pending", pending, functions.num_candidates)
        if isinstance(functions, Gaussian):
            if len(rows):
                raise ArgumentTypeError(
                    f"{where}: with pending candidates it wants draws of the function, got a normal law of "
                    "it. Draw from it: law.sample(rng_key, (1000,))."
                )
            best = functions.mean.max() if self.best is None else self.best
            spread = jnp.sqrt(jnp.maximum(functions.covariance.diagonal(), 0.0))
            some = spread > 0
            above = spread * mean_above((functions.mean - best) / jnp.where(some, spread, 1.0))
            return jnp.where(some, above, jnp.maximum(functions.mean - best, 0.0))
        values = functions.values
        best = jnp.broadcast_to(values.mean(0).max() if self.best is None else self.best, (len(values),))
        return _mean_gain(values, best, rows)


class NoisyExpectedImprovement(eqx.Module):
    r"""How far a candidate is expected to be above the best *function value* so far, which noise hides.

    .. math:: a(x) = \mathbb{E} \max\big(f(x) - \max_{i} f(x_i), 0\big)

    over draws of the function at the candidates and at the measured inputs, jointly.

    :param measured: which of the candidates have been measured: their numbers. Put the measured inputs among
        the candidates.
    :return: called with draws (draws, n), and maybe ``pending`` candidates, (n,) values.
    :raises ArgumentTypeError: for a normal law: hand draws of it.
    :raises ArgumentError: for numbers that are not those of candidates.

    >>> draws = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    >>> NoisyExpectedImprovement(measured=[0])(draws).tolist()
    [0.0, 0.5]

    Source: Letham, Karrer, Ottoni, Bakshy 2019, "Constrained Bayesian optimization with noisy experiments".
    """

    measured: Any

    def __call__(self, functions: Any, pending: Any = ()) -> jax.Array:
        where = "NoisyExpectedImprovement"
        values = needs_draws(where, as_functions(where, functions))
        measured = as_rows(f"{where}: measured", self.measured, values.shape[1])
        rows = as_rows(f"{where}: pending", pending, values.shape[1])
        best = values[:, measured].max(1, initial=-jnp.inf)
        return _mean_gain(values, jnp.where(jnp.isfinite(best), best, values.mean(0).max()), rows)


def _mean_gain(values: jax.Array, best: jax.Array, pending: jax.Array) -> jax.Array:
    """What a candidate and those pending gain together."""
    ahead = jnp.maximum(values[:, pending].max(1, initial=-jnp.inf) - best, 0.0)
    return jnp.maximum(values - best[:, None], ahead[:, None]).mean(0)
