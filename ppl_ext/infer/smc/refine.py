"""A fitted guide taken on to the posterior."""

from dataclasses import fields
from typing import Any

import jax

from ppl_ext.algorithms.tempered_smc import TemperedSMC
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer.smc.result import SMCResult
from ppl_ext.infer.smc.smc import SMC
from ppl_ext.result import Fit
from ppl_ext.runtime.arguments import described


def refined(fit: Fit, rng_key: jax.Array, algorithm: TemperedSMC, **options: Any) -> SMCResult:
    """Run :meth:`ppl_ext.result.Fit.refined`."""
    if not isinstance(algorithm, TemperedSMC):
        raise ArgumentTypeError(
            f"refined: algorithm must be a TemperedSMC, as TemperedSMC(1000), got {described(algorithm)}."
        )
    if algorithm.initial is not None:
        raise ArgumentError("refined: the run starts from the fitted guide; leave initial= out.")
    settings = {f.name: getattr(algorithm, f.name) for f in fields(algorithm)}
    del settings["initial"], settings["params"]
    return SMC(fit.model, initial=fit, **settings, **options).run(rng_key, *fit.args, **fit.kwargs)
