r"""The discriminative Kalman filter: linear-Gaussian states, observed through a regression of the state on
the observation.

.. math:: x_t \mid x_{t-1} \sim \mathcal{N}(A x_{t-1}, \Gamma), \qquad
    p(y_t \mid x_t) \propto \frac{\mathcal{N}(x_t;\, f(y_t), Q(y_t))}{\mathcal{N}(x_t;\, 0, S)}, \qquad S = A
    S A^\top + \Gamma

By Bayes' rule the right-hand side is what p(x | y) from a regression says of p(y | x), with the stationary
law of the states as its prior. With the one-step prediction N(ν, M) the filter's update is then closed:

.. math:: \Sigma_t = (Q^{-1} + M^{-1} - S^{-1})^{-1}, \qquad \mu_t = \Sigma_t (Q^{-1} f(y_t) + M^{-1} \nu)

Where Q⁻¹ − S⁻¹ is not positive semidefinite (a regression that is less sure than the prior) the division is
left out: Σ_t = (Q⁻¹ + M⁻¹)⁻¹.

Source: Burkhart, Brandman, Franco, Hochberg, Harrison 2020, "The discriminative Kalman filter for Bayesian
filtering with nonlinear and non-Gaussian observation models", Neural Computation 32(5).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.scipy.linalg import cho_solve

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, described
from ppl_ext.runtime.results import as_html
from ppl_ext.runtime.verdict import Verdict


class DiscriminativeResult(NamedTuple):
    """``mean`` (T, d) and ``covariance`` (T, d, d) of the states given the observations up to their own time;
    ``guarded`` (T,): where the prior was not divided out; ``mean_0`` and ``covariance_0`` of the state before
    them.

    >>> means, covariances = np.zeros((3, 2)), np.tile(4.0 * np.eye(2), (3, 1, 1))
    >>> found = DiscriminativeResult(means, covariances, np.zeros(3, bool), np.zeros(2), np.eye(2))
    >>> np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2)).tolist()  # standard deviations, (T, d)
    [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """

    mean: jax.Array
    covariance: jax.Array
    guarded: jax.Array
    mean_0: jax.Array
    covariance_0: jax.Array

    def __repr__(self) -> str:
        return f"DiscriminativeResult(mean={jnp.shape(self.mean)}, covariance={jnp.shape(self.covariance)})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.smoothing.verdicts import of_discriminative

        return of_discriminative(self)

    def summary(self) -> str:
        from ppl_ext.smoothing.summaries import of_discriminative

        return of_discriminative(self)

    def print_summary(self) -> None:
        """Print the summary."""
        print(f"{self.summary()}\n{self.verdict()}")

    def _repr_html_(self) -> str:
        return as_html(f"{self.summary()}\n{self.verdict()}")

    def to_arviz(self) -> Any:
        """The ArviZ report: ``estimates`` with the filtered means and covariances by ``time`` and ``state``,
        where the prior was not divided out, and the moments before the first step. No ``posterior``: these
        are laws of each time given its own past, which no draw of a trajectory has.

        :raises ArgumentError: of many series at once.
        """
        from ppl_ext.smoothing.arviz_reports import of_discriminative

        return of_discriminative(self)


def discriminative_factor(name: str, x, mean, covariance, prior_covariance) -> None:
    r"""A factor for a step of a model: log N(x; f, Q) − log N(x; 0, S), up to a constant that the state does
    not enter.

    With it the same state-space model goes to particle filters, to ``smooth`` and to NUTS. Its evidence is
    known up to a factor of the observations alone. Where Q⁻¹ − S⁻¹ is not positive semidefinite the second
    term is left out. NaN in ``mean``: nothing was seen.

    :param name: of the factor site.
    :param x: (d,) the state.
    :param mean: (d,) f(y), what the regression says of it.
    :param covariance: (d, d) Q(y).
    :param prior_covariance: (d, d) S.
    :raises ArgumentError: if shapes do not fit.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext.smoothing import smooth
    >>> def model(f, Q):
    ...     def step(x_prev, at):
    ...         x = numpyro.sample("x", dist.MultivariateNormal(0.9 * x_prev, 0.19 * jnp.eye(2)))
    ...         discriminative_factor("seen", x, *at, jnp.eye(2))
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), (f, Q))
    >>> spreads = jnp.tile(0.5 * jnp.eye(2), (3, 1, 1))
    >>> run = smooth(model, backward="exact").run(jax.random.key(0), jnp.ones((3, 2)), spreads)
    >>> run.filtered().keys()
    dict_keys(['x'])
    """
    given = {"x": x, "mean": mean, "covariance": covariance, "prior_covariance": prior_covariance}
    x, mean, covariance, prior_covariance = _arrays("discriminative_factor", given)
    _check("discriminative_factor", x, mean=mean, covariance=covariance, prior_covariance=prior_covariance)
    seen = ~jnp.isnan(mean).any()
    precision, shift, _ = _information(jnp.where(seen, mean, 0.0), covariance, prior_covariance)
    numpyro.factor(name, jnp.where(seen, -0.5 * x @ precision @ x + shift @ x, 0.0))


def discriminative_kalman(
    means, covariances, transition, noise, prior_covariance=None, initial=None
) -> DiscriminativeResult:
    """Filter the outputs of a regression.

    :param means: (T, d), f(y_t); NaN where nothing was seen.
    :param covariances: (T, d, d) Q(y_t), or (d, d) for all times.
    :param transition: (d, d) A.
    :param noise: (d, d) Γ.
    :param prior_covariance: (d, d) S; by default the stationary one.
    :param initial: mean and covariance of the state before the first step; by default 0 and S.
    :raises ArgumentError: if shapes do not fit, a covariance is none, or there is no stationary one.

    >>> found = discriminative_kalman(jnp.ones((3, 1)), 0.5 * jnp.eye(1), 0.9 * jnp.eye(1), 0.19 * jnp.eye(1))
    >>> found.mean.shape, bool(found.guarded.any())
    ((3, 1), False)
    """
    given = {"means": means, "covariances": covariances, "transition": transition, "noise": noise}
    means, covariances, transition, noise = _arrays("discriminative_kalman", given)
    if means.ndim != 2:
        raise ArgumentError(f"discriminative_kalman: means must be (T, d), got shape {means.shape}.")
    length, d = means.shape
    if covariances.shape not in ((d, d), (length, d, d)):
        raise ArgumentError(
            f"discriminative_kalman: covariances must be {(length, d, d)}, or {(d, d)} for all times, got "
            f"shape {covariances.shape}."
        )
    covariances = jnp.broadcast_to(covariances, (length, d, d))
    for name, array in (("transition", transition), ("noise", noise)):
        if array.shape != (d, d):
            raise ArgumentError(f"discriminative_kalman: {name} must be {(d, d)}, got shape {array.shape}.")
    if prior_covariance is None:
        prior = stationary_covariance(transition, noise)
    else:
        (prior,) = _arrays("discriminative_kalman", {"prior_covariance": prior_covariance})
    _check("discriminative_kalman", jnp.zeros(d), prior_covariance=prior)
    start = (jnp.zeros(d), prior) if initial is None else _initial(initial, d)
    for name, array in (
        ("covariances", covariances),
        ("noise", noise),
        ("prior_covariance", prior),
        ("initial", start[1]),
    ):
        if not isinstance(array, jax.core.Tracer) and not (np.linalg.eigvalsh(np.asarray(array)) > 0).all():
            raise ArgumentError(
                f"discriminative_kalman: {name} holds a matrix that is not positive definite."
            )

    def step(state, at):
        mean, covariance = state
        f, q = at
        seen = ~jnp.isnan(f).any()
        predicted, spread = transition @ mean, transition @ covariance @ transition.T + noise
        precision, shift, guarded = _information(jnp.where(seen, f, 0.0), q, prior)
        before = _inverse(spread)
        updated = _inverse(before + precision)
        new = (
            jnp.where(seen, updated @ (before @ predicted + shift), predicted),
            jnp.where(seen, updated, spread),
        )
        return new, (*new, guarded & seen)

    _, (mean, covariance, guarded) = jax.lax.scan(step, start, (means, covariances))
    return DiscriminativeResult(mean, covariance, guarded, *start)


def stationary_covariance(transition, noise) -> jax.Array:
    r"""The solution of :math:`S = A S A^\top + \Gamma`.

    :raises ArgumentError: if an eigenvalue of A has modulus one or more, outside of a trace.
    """
    d = len(transition)
    if (
        not isinstance(transition, jax.core.Tracer)
        and not (worst := float(jnp.abs(jnp.linalg.eigvals(transition)).max())) < 1.0
    ):
        raise ArgumentError(
            f"The states have no stationary law: the transition has an eigenvalue of modulus {worst:.3g}. "
            "Pass prior_covariance."
        )
    flat = jnp.linalg.solve(jnp.eye(d * d) - jnp.kron(transition, transition), noise.reshape(-1))
    covariance = flat.reshape(d, d)
    return 0.5 * (covariance + covariance.T)


def _information(mean, covariance, prior_covariance) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Precision and shift of N(x; f, Q) / N(x; 0, S), and whether the guard left out the division."""
    sharp = _inverse(covariance)
    precision = sharp - _inverse(prior_covariance)
    least = jnp.linalg.eigvalsh(0.5 * (precision + precision.T)).min()
    guarded = ~(least > -1e-5 * jnp.abs(precision).max())
    return jnp.where(guarded, sharp, precision), sharp @ mean, guarded


def _inverse(matrix) -> jax.Array:
    root = jnp.linalg.cholesky(matrix)
    inverse = cho_solve((root, True), jnp.eye(len(matrix), dtype=root.dtype))
    return 0.5 * (inverse + inverse.T)


def _arrays(where: str, given: dict[str, Any]) -> list[jax.Array]:
    for name, value in given.items():
        check_array(f"{where}: {name}", value)
    return [jnp.asarray(value) for value in given.values()]


def _initial(initial, d: int) -> tuple[jax.Array, jax.Array]:
    wanted = f"discriminative_kalman: initial must be a mean {(d,)} and a covariance {(d, d)}, got"
    if not isinstance(initial, tuple | list) or len(initial) != 2:
        raise ArgumentTypeError(f"{wanted} {described(initial)}.")
    mean, covariance = _arrays("discriminative_kalman", {"initial[0]": initial[0], "initial[1]": initial[1]})
    if (mean.shape, covariance.shape) != ((d,), (d, d)):
        raise ArgumentError(f"{wanted} the shapes {mean.shape} and {covariance.shape}.")
    return mean, covariance


def _check(where: str, x: jax.Array, **others: jax.Array) -> None:
    """``x`` is a vector (d,), the means of ``others`` are too, and their covariances are (d, d)."""
    d = x.shape[-1] if x.ndim else 0
    for name, array in {"x": x, **others}.items():
        shape = (d, d) if "covariance" in name else (d,)
        if array.shape != shape or not d:
            wanted = shape if d else "(d,)"
            raise ArgumentError(
                f"{where}: {name} must have the shape {wanted}, got {array.shape}; write a scalar state as "
                "(1,)."
            )
