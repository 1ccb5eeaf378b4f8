"""Whether to believe a result of smoothing."""

from typing import Any

import numpy as np

from ppl_ext.diagnostics.verdicts.chains import reason_of_renewal, reasons_of_chains
from ppl_ext.diagnostics.verdicts.particles import reasons_of_particles
from ppl_ext.runtime.verdict import Reason, Verdict, judged
from ppl_ext.smoothing.summaries import flat, on_the_move


def of_smoothing(result: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.smoothing.SmoothingResult`."""
    if not np.isfinite(float(result.log_evidence)):
        return judged([Reason("bad", f"the log evidence is {float(result.log_evidence)}")])
    if result.ess is None:
        return judged([Reason("good", "exact for this model at these parameters")])
    settings, ess = dict(result.how), np.asarray(result.ess)
    num = settings.get("num_particles")
    found = reasons_of_particles(ess, num)
    if (
        result.expectations
        and str(settings.get("backward")).lower() == "path"
        and num is not None
        and len(ess) > num
    ):
        found.append(
            Reason(
                "doubtful",
                f"the {num} particles' own paths meet long before {len(ess)} steps are over: expectations of "
                "early steps rest on one of them; use another backward kernel",
            )
        )
    return judged([*found, *_fallbacks(result.fallbacks)])


def of_sweeps(result: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.smoothing.ParticleGibbsSmoothing`."""
    found = [reason_of_renewal(np.asarray(result.renewal)), *_fallbacks(result.fallbacks)]
    if result.estimates:
        found += reasons_of_chains(flat(result.estimates))
    else:
        found.append(
            Reason("unknown", "nothing was estimated in the sweeps: whether chains agree is not known")
        )
    return judged(found)


def of_ascent(result: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.smoothing.Learned`."""
    iterates = flat(result.iterates)
    if wrong := [n for n, x in iterates.items() if not np.isfinite(x[-1:]).all()]:
        return judged([Reason("bad", f"the last iterate of {_listed(wrong)} is not finite")])
    moving = on_the_move(iterates)
    if moving is None:
        return judged([Reason("unknown", "too few steps to tell whether they have settled")])
    if moving:
        return judged([Reason("doubtful", f"still on the move in the last quarter: {_listed(moving)}")])
    return judged([Reason("unknown", "the iterates have come to rest, as they would at a local optimum")])


def of_stream(result: Any) -> Verdict:
    """Judge an :class:`~ppl_ext.smoothing.OnlineResult`."""
    evidence = np.asarray(result.log_evidence)
    if not np.isfinite(evidence).all():
        return judged([Reason("bad", "the log evidence is not finite: no particle survived")])
    alone = "a stream keeps no effective sample sizes: run a second one with another key, and compare"
    return judged([Reason("unknown", alone), *_fallbacks(np.sum(result.fallbacks))])


def of_discriminative(result: Any) -> Verdict:
    """Judge a :class:`~ppl_ext.smoothing.DiscriminativeResult`."""
    found = [Reason("unknown", "as good as the regression behind it, which is not looked at here")]
    if not np.isfinite(np.asarray(result.mean)).all():
        found.append(Reason("bad", "a filtered mean is not finite"))
    if count := int(np.asarray(result.guarded).sum()):
        found.append(Reason("doubtful", f"at {count} steps the prior was not divided out"))
    return judged(found)


def _fallbacks(count: Any) -> list[Reason]:
    words = f"{int(count)} backward rows in which no particle before could have led to the one after"
    return [Reason("doubtful", words)] if int(count) else []


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))
