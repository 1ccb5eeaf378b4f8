"""Leave-one-out cross-validation, where the terms allow it."""

from typing import Any

import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError

FEWEST = 25
"""Draws of which a fifth, the tail that a Pareto law is fitted to, are five."""


def loo(result: Any, var_name: str | None = None, **options: Any) -> Any:
    r"""``arviz.loo``, refused with the reason where it would be wrong.

    .. math:: \widehat{\text{elpd}} = \sum_i \log p(y_i \mid y_{-i}), \qquad
        p(y_i \mid y_{-i})^{-1} = \mathbb{E}_{\theta \mid y}\, p(y_i \mid y_{-i}, \theta)^{-1}

    Pareto-smoothed importance sampling estimates it from terms :math:`\log p(y_i \mid y_{-i}, \theta)`. Terms
    that are independent given :math:`\theta`, which is what ``to_arviz`` puts into ``log_likelihood``, are of
    that kind; the one-step-ahead terms :math:`\log p(y_t \mid y_{<t}, \theta)` of a chain, or of a series
    whose observations feed the next (group ``log_predictive_one_step``), are not. For those there is
    :func:`~ppl_ext.diagnostics.leave_future_out`.

    :param result: an ArviZ report, or a result with ``to_arviz()``. For a numpyro ``MCMC``:
        ``loo(ppl_ext.to_arviz(mcmc))``.
    :param var_name: which observed site; needed if there are several.
    :param options: of ``arviz.loo``, such as ``pointwise=True``.
    :return: ``arviz.ELPDData``.
    :raises ModelError: if the site's terms are one-step-ahead terms.
    :raises ArgumentError: if the report has no log likelihood (it says why), none of that name, fewer than 25
        draws, or terms that are the same at all of them.
    :raises ArgumentTypeError: if ``result`` is no report.

    >>> import jax, numpyro, numpyro.distributions as dist, ppl_ext
    >>> from numpyro.infer import MCMC, NUTS
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", 8):
    ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=200, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jax.numpy.linspace(-1.0, 1.0, 8))
    >>> int(loo(ppl_ext.to_arviz(mcmc)).n_data_points)
    8

    Source: Vehtari, Gelman, Gabry 2017; for what a chain needs instead, Bürkner, Gabry, Vehtari 2020,
    "Approximate leave-future-out cross-validation for Bayesian time series models".
    """
    import arviz  # it and xarray are slow to import

    from ppl_ext.diagnostics.report.arviz_export import ONE_STEP, variables_of

    report = result.to_arviz() if hasattr(result, "to_arviz") else result
    found = variables_of(report)
    if found is None:
        raise ArgumentTypeError(
            f"loo: result must be an ArviZ report or have to_arviz(), got {type(result).__name__}. Make one "
            "with ppl_ext.to_arviz(...)."
        )
    terms, one_step = found.get("log_likelihood", []), found.get(ONE_STEP, [])
    if one_step and (var_name is None or var_name in one_step):
        others = f" Pass var_name= for the others: {', '.join(map(repr, terms))}." if terms else ""
        raise ModelError(
            f"loo: the terms of {', '.join(map(repr, one_step))} are log p(y_t | y_<t, parameters), one "
            "step ahead. Leaving y_t out while later steps stay needs log p(y_t | all others, parameters), "
            "which they are not: too confident a result. Use leave-future-out instead, "
            f"ppl_ext.diagnostics.leave_future_out: fit the steps before t, and predict step t.{others}"
        )
    if not terms:
        reason = getattr(report, "attrs", {}).get(
            "log_likelihood_omitted", "it was made without; see to_arviz(log_likelihood=True)"
        )
        raise ArgumentError(f"loo: the report has no log_likelihood: {reason}")
    if var_name is None and len(terms) > 1 or var_name is not None and var_name not in terms:
        raise ArgumentError(f"loo: var_name must be one of {', '.join(map(repr, terms))}, got {var_name!r}.")
    name = terms[0] if var_name is None else var_name
    draws = np.asarray(report["log_likelihood"][name])
    draws = draws.reshape(draws.shape[0] * draws.shape[1], -1)
    # ArviZ 0.23 gives numbers for either all the same, 1.x an error of its own.
    if len(draws) < FEWEST:
        raise ArgumentError(
            f"loo: {len(draws)} draws have no tail to be smoothed; make {FEWEST} at least, by num_samples=, "
            "and better hundreds."
        )
    if (draws == draws[:1]).all():
        raise ArgumentError(_same(f"all terms of '{name}'"))
    try:
        return arviz.loo(report, var_name=var_name, **options)
    except ValueError as error:
        if "tail values are the same" not in str(error):
            raise
        raise ArgumentError(_same(f"terms of '{name}'")) from error


def _same(which: str) -> str:
    return (
        f"loo: {which} are the same at all draws, or at those of the tail, so that there is nothing to "
        "reweigh: the posterior is a point (AutoDelta), or nothing latent reaches these observations. Use a "
        "guide with a width; mask what nothing explains."
    )
