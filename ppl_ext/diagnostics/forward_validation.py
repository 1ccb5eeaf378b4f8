"""Leave-future-out cross-validation: how well a series is predicted one step ahead from its past alone."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_ext.diagnostics.likelihood import pointwise
from ppl_ext.diagnostics.psis import psis
from ppl_ext.diagnostics.reading import posterior_draws
from ppl_ext.diagnostics.sites import describe
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.runtime.arguments import (
    check_call,
    check_count,
    check_function,
    check_key,
    check_number,
    check_program,
)
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.results import NUM_SAMPLES, as_html, number
from ppl_ext.runtime.verdict import Verdict


class LeaveFutureOut(NamedTuple):
    """What :func:`leave_future_out` returns, in float64 nats on the host.

    ``elpd``: the sum of ``pointwise``, with its standard error ``se``. ``pointwise``: (predicted steps,), log
    p(y_t | y_<t) for t from ``min_steps`` on. ``pareto_k``: likewise, of the weights that brought the last
    fit to step t; -inf where step t was refitted. ``refits``: the numbers of steps that were fitted.

    >>> terms, khat = np.array([-1.4, -1.0]), np.array([-np.inf, 0.2])
    >>> round(float(LeaveFutureOut(-2.4, 0.3, terms, khat, (2,)).pointwise.sum()), 6)
    -2.4
    """

    elpd: float
    se: float
    pointwise: np.ndarray
    pareto_k: np.ndarray
    refits: tuple[int, ...]

    def __repr__(self) -> str:
        counts = f"num_steps={len(self.pointwise)}, num_refits={len(self.refits)}"
        return f"LeaveFutureOut(elpd={number(self.elpd)}, se={number(self.se)}, {counts})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.diagnostics.leave_future_out_report import judge

        return judge(self)

    def summary(self) -> str:
        """The expected log predictive density, and how far its importance weights are to be trusted."""
        from ppl_ext.diagnostics.leave_future_out_report import in_words

        return in_words(self)

    def print_summary(self) -> None:
        """Print the summary."""
        print(f"{self.summary()}\n{self.verdict()}")

    def _repr_html_(self) -> str:
        return as_html(f"{self.summary()}\n{self.verdict()}")

    def to_arviz(self) -> Any:
        """The ArviZ report: ``estimates`` with ``elpd_pointwise`` and ``pareto_k`` by ``time`` (-inf where
        the step was refitted), ``elpd`` and ``se``. No ``posterior``: each refit had its own."""
        from ppl_ext.diagnostics.leave_future_out_report import to_arviz

        return to_arviz(self)


def leave_future_out(
    rng_key: jax.Array,
    refit: Callable[[jax.Array, int], Any],
    model: Callable,
    *args: Any,
    min_steps: int,
    threshold: float = 0.7,
    var_name: str | None = None,
    num_samples: int = NUM_SAMPLES,
    **kwargs: Any,
) -> LeaveFutureOut:
    r"""Expected log density of each step given the steps before it, the posterior following by importance
    weights and a few refits.

    .. math:: \mathrm{elpd} = \sum_{t \ge L} \log p(y_t \mid y_{<t}), \qquad
        p(y_t \mid y_{<t}) \approx \sum_s w_s\, p(y_t \mid y_{<t}, \theta_s), \qquad
        w_s \propto \prod_{j = t^*}^{t - 1} p(y_j \mid y_{<j}, \theta_s)

    with draws :math:`\theta_s` of the posterior given the first :math:`t^*` steps. Where the Pareto shape of
    the smoothed weights passes ``threshold`` the model is fitted anew, on all steps before t.

    :param refit: ``refit(rng_key, num_steps)`` fits the first ``num_steps`` steps and returns what has draws
        of the parameters: a :class:`~ppl_ext.result.Fit`, an ``MCMC`` that has run, a report, or arrays
        (chain, draw, ...) by name.
    :param model: the model on the whole series; ``args`` and ``kwargs`` are passed to it.
    :param min_steps: L, how many steps the first fit has, at least 1.
    :param threshold: the largest Pareto shape that is trusted; ``-math.inf`` refits at every step, which is
        exact up to the draws.
    :param var_name: which observed site; needed if there are several. Its first axis is time.
    :param num_samples: draws per chain, where ``refit`` returns a ``Fit``.
    :return: :class:`LeaveFutureOut`.
    :raises ArgumentError: if there is no such site or step.
    :raises ModelError: if the model has latent sites with an entry per step: the fit of a part of the series
        has no draws of the others.
    :raises ModelError: if a density is NaN that no mask leaves out.
    :raises HandlerError: if a handler is open around the call.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = np.array([0.3, -0.2, 0.9, 0.4])
    >>> def refit(rng_key, n):  # the posterior of a normal mean
    ...     draws = jax.random.normal(rng_key, (1, 4000)) / (n + 1) ** 0.5
    ...     return {"mu": y[:n].sum() / (n + 1) + draws}
    >>> found = leave_future_out(jax.random.key(0), refit, model, jnp.asarray(y), min_steps=2)
    >>> found.pointwise.shape, found.refits, bool(abs(found.elpd + 2.35) < 0.1)
    ((2,), (2,), True)

    Source: Bürkner, Gabry, Vehtari 2020, "Approximate leave-future-out cross-validation for Bayesian time
    series models", eqs. 2 to 9 with one step ahead.
    """
    check_key("leave_future_out: rng_key", rng_key)
    check_function("leave_future_out: refit", refit)
    check_program("leave_future_out: model", model)
    check_call("leave_future_out: model", model, args, kwargs)
    check_count("leave_future_out: min_steps", min_steps)
    check_count("leave_future_out: num_samples", num_samples)
    if threshold != -math.inf:
        check_number("leave_future_out: threshold", threshold)
    refuse_open_handlers("leave_future_out")

    def fitted(num_steps: int) -> np.ndarray:
        """Log p(y_t | y_<t, theta_s) of every step, (draws, steps), at draws of a fit of the first steps."""
        draws = posterior_draws(refit(jax.random.fold_in(rng_key, num_steps), num_steps), num_samples)
        return _terms(model, {n: np.asarray(x) for n, x in draws.items()}, args, kwargs, var_name)

    terms = fitted(min_steps)
    steps = terms.shape[1]
    if min_steps >= steps:
        raise ArgumentError(
            f"leave_future_out: min_steps must be below the number of steps, {steps}, got {min_steps}."
        )
    pointwise_terms, shapes, refits = [], [], [min_steps]
    for t in range(min_steps, steps):
        shape, weights = -math.inf, np.full(len(terms), -math.log(len(terms)))
        if t > refits[-1]:
            smoothed = psis(terms[:, refits[-1] : t].sum(1))
            shape, weights = float(smoothed.pareto_k), smoothed.log_weights
            if not shape <= threshold:  # NaN too
                terms = fitted(t)
                refits.append(t)
                shape, weights = -math.inf, np.full(len(terms), -math.log(len(terms)))
        pointwise_terms.append(np.logaddexp.reduce(weights + terms[:, t]))
        shapes.append(shape)
    each = np.array(pointwise_terms)
    se = math.sqrt(len(each)) * float(each.std())
    return LeaveFutureOut(float(each.sum()), se, each, np.array(shapes), tuple(refits))


def _terms(
    model: Callable, draws: dict[str, np.ndarray], args: tuple, kwargs: dict, var_name: str | None
) -> np.ndarray:
    sites = describe(model, {n: x[0, 0] for n, x in draws.items()}, args, kwargs)
    local = [n for n, s in sites.items() if s.kind == "latent" and s.in_scan and not s.finite]
    if local:
        raise ModelError(
            f"leave_future_out: the latent site '{local[0]}' has an entry for each step of a scan, so that "
            "a fit of the first steps says nothing of the later ones. Sum the states out, and use "
            "log_evidence_increments of ppl_ext.smoothing.smooth for one-step-ahead densities."
        )
    chained = any(s.finite and s.in_scan for s in sites.values())
    draw = next(iter(draws.values()))
    found = pointwise(
        model, draws, args, kwargs, num_draws=draw.shape[1], units="one_step" if chained else "independent"
    )
    if var_name is None and len(found) != 1 or var_name is not None and var_name not in found:
        raise ArgumentError(
            f"leave_future_out: var_name must be one of {', '.join(map(repr, found)) or 'none'}, got "
            f"{var_name!r}."
        )
    term = next(iter(found.values())) if var_name is None else found[var_name]
    values = term.values.astype(np.float64)
    if values.ndim < 3:
        raise ArgumentError(
            f"leave_future_out: the terms of {term.sites[0]!r} have no axis of time to predict along."
        )
    values = np.where(term.masked, 0.0, values)
    if (bad := np.isnan(values).any(axis=(0, 1, *range(3, values.ndim)))).any():
        raise ModelError(
            f"leave_future_out: the log density of {term.sites[0]!r} is NaN at step {int(np.argmax(bad))}. "
            "What was not observed must be masked (numpyro.handlers.mask, or obs_mask=), and no later step "
            "may read it."
        )
    return values.reshape(-1, values.shape[2], int(np.prod(values.shape[3:]))).sum(axis=-1)
