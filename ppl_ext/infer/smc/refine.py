"""A fitted guide taken on to the posterior, beside a run from the prior that tells what the guide missed."""

import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
from numpyro.handlers import substitute

from ppl_ext.algorithms.tempered.start import ImproperPriorError
from ppl_ext.algorithms.tempered_smc import TemperedSMC
from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.infer.smc.comparison import PRIOR
from ppl_ext.infer.smc.result import SMCResult
from ppl_ext.infer.smc.smc import SMC, best_params
from ppl_ext.result import Fit
from ppl_ext.runtime.arguments import check_flag, check_key, described
from ppl_ext.runtime.checkpoint import Checkpoint


def refined(
    fit: Fit, rng_key: jax.Array, algorithm: TemperedSMC, from_prior: bool = True, **options: Any
) -> SMCResult:
    """Run :meth:`ppl_ext.result.Fit.refined`."""
    if not isinstance(algorithm, TemperedSMC):
        raise ArgumentTypeError(
            f"refined: algorithm must be a TemperedSMC, as TemperedSMC(1000), got {described(algorithm)}."
        )
    if algorithm.initial is not None:
        raise ArgumentError("refined: the run starts from the fitted guide; leave initial= out.")
    if algorithm.along is not None:
        raise ArgumentError(
            "refined: the guide has seen all data, which cannot then come in order; leave along= out."
        )
    check_key("refined: rng_key", rng_key)
    check_flag("refined: from_prior", from_prior)
    settings = {f.name: getattr(algorithm, f.name) for f in fields(algorithm)}
    del settings["initial"], settings["params"]
    key, key_prior = jax.random.split(rng_key)
    run = SMC(fit.model, initial=fit, **settings, **options).run(key, *fit.args, **fit.kwargs)
    if not from_prior:
        return run
    model = substitute(fit.model, data=best_params(fit))
    smc = SMC(model, **settings, **(options | _apart(options)))
    try:
        wide = smc.run(key_prior, *fit.args, **fit.kwargs)
    except (
        ImproperPriorError,
        NonFiniteError,
    ) as error:  # there is nothing to compare with, and the verdict says so
        return replace(run, how={**run.how, "not_compared": str(error)})
    wide = replace(wide, how={**wide.how, "started_from": PRIOR})
    first, second = (run, wide) if _is_larger(run, wide) else (wide, run)
    return replace(first, beside=second)


def _apart(options: dict[str, Any]) -> dict[str, Any]:
    """The second run's checkpoint: a file of its own."""
    saved = options.get("checkpoint")
    if not isinstance(saved, Checkpoint):
        return {}
    path = Path(os.fspath(saved.path))
    return {"checkpoint": Checkpoint(path.with_name(path.name + ".prior"), saved.every)}


def _is_larger(run: SMCResult, wide: SMCResult) -> bool:
    """Whether the guide's run found more of the evidence, beyond noise; else the prior's, which starts wider,
    is taken.
    """
    if not math.isfinite(wide.log_evidence) or not math.isfinite(run.log_evidence):
        return math.isfinite(run.log_evidence)
    one, two = run.side(), wide.side()
    return one.log_evidence - two.log_evidence > 2.0 * math.hypot(one.spread, two.spread)
