"""Whether to believe a result, whatever made it."""

import inspect
from typing import Any

from numpyro.infer import MCMC

from ppl_ext.diagnostics.report.asked import refuse_unknown
from ppl_ext.errors import ArgumentTypeError
from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.verdict import Verdict


def verdict(result: Any, **options: Any) -> Verdict:
    r"""Whether to believe a result, in one word with its reasons: good, doubtful, bad or unknown.

    A posterior is called bad if a mean is likely off by more than 0.3 posterior standard deviations, or a
    standard deviation by more than 30 %. What is looked at:

    - of a :func:`~ppl_ext.infer.fit`, Pareto :math:`\hat k` and the importance ESS of its draws in double
      precision, how far these weights move its means and standard deviations, and whether restarts agree
      (one restart alone is "unknown": weights say nothing of a peak that no draw has seen). Where weights are
      not good, as in many dimensions they never are, short chains from the draws are asked where they go
      (:func:`~ppl_ext.diagnostics.verdicts.stays.reasons_of_ends`), and where they stay, particles from the
      prior whether all restarts missed most of the evidence
      (:func:`~ppl_ext.diagnostics.verdicts.stays.reason_of_evidence`). If it is not good, the weights of
      single slices of a plate say where;
    - of MCMC, and of sweeps of particle Gibbs, rank-normalised split R-hat and ESS (Vehtari et al. 2021), the
      standard error of each spread, divergences, and how often each step of a sampled path was renewed;
    - of a particle smoother, and of tempered particles, the ESS of each step, and the spread that these give
      to the log evidence; where short chains from tempered particles go; what is exact is good;
    - of an ascent or a bound, whether it has come to rest. A rest alone is no more than "unknown".

    :param result: anything that this library returns, a NumPyro ``MCMC`` that has run, or an object of one's
        own with a method ``verdict``.
    :param options: passed to ``result.verdict``: ``rng_key`` and ``num_samples`` of a fit, say.
    :return: :class:`Verdict`, which prints as text.
    :raises ArgumentTypeError: for anything else.
    :raises ArgumentError: for an option that this result does not take, or if an ``MCMC`` has not run.

    Sources: Vehtari, Simpson, Gelman, Yao, Gabry 2024 for k-hat; Vehtari, Gelman, Simpson, Carpenter, Bürkner
    2021, eqs. 3-14, for R-hat and ESS; Yao, Vehtari, Simpson, Gelman 2018 for k-hat of a guide; Wang,
    Kasprzak, Huggins 2023, for short chains from a guide's draws, whose moves bound its errors from below.

    >>> import jax, numpyro, numpyro.distributions as dist, optax
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> from ppl_ext.infer import fit
    >>> from ppl_ext.objectives import ELBO
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> key, steady = jax.random.key(0), optax.adam(optax.cosine_decay_schedule(0.05, 800))
    >>> result = fit(
    ...     key, model, AutoNormal(model), ELBO(), steady, 800, 2.0, num_chains=2, progress_bar=False
    ... )
    >>> verdict(result).level
    'good'
    """
    if isinstance(result, MCMC):
        from ppl_ext.diagnostics.verdicts.chains import of_mcmc

        refuse_unknown("verdict: that of an MCMC", options, ())
        return of_mcmc(result)
    if isinstance(result, type) or not callable(getattr(result, "verdict", None)):
        raise ArgumentTypeError(
            "verdict takes what this library returns, a NumPyro MCMC that has run, or an object that has a "
            f"method verdict; got {described(result)}."
        )
    parameters = inspect.signature(result.verdict).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        refuse_unknown(f"verdict: that of a {type(result).__name__}", options, [p.name for p in parameters])
    return result.verdict(**options)
