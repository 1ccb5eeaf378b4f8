"""What the verdict on a fit asks beyond its weights: where short chains from its draws go, and whether they
see all of the posterior that the prior leads to.
"""

import warnings

import jax
import numpy as np
from numpyro.handlers import substitute

from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.verdicts.stays import reason_of_evidence, reasons_of_ends
from ppl_ext.errors import PplExtError
from ppl_ext.infer.short_chains import NUM_CHAINS, moved_on
from ppl_ext.infer.smc.smc import SMC, best_chain, best_params
from ppl_ext.result import Fit
from ppl_ext.runtime.verdict import Reason, judged

FROM_PRIOR = 200
"""Particles from the prior, which are asked for the evidence where the chains find nothing wrong."""


def reasons_of_moves(fit: Fit, draws: Draws) -> list[Reason]:
    """What short chains from a guide's draws say of them; nothing where none can move: a density that is
    estimated, a discrete site without a list of values, a site at a point.
    """
    if draws.points or not np.isfinite(draws.log_weights).all():
        return []
    num = max(2, NUM_CHAINS // fit.num_chains)
    first = {n: x[:, :num] for n, x in draws.values.items()}
    ends = moved_on(jax.random.key(0), fit.model, first, fit.args, fit.kwargs, fit.params)
    if ends is None or ends.most is None:
        return []
    found = reasons_of_ends(draws, ends)
    if judged(found).level == "good" and (lost := missed(fit, ends.most)) is not None:
        found.append(lost)
    return found


def missed(fit: Fit, most: np.ndarray) -> Reason | None:
    r"""What tempered particles from the prior say of draws that are good as far as their neighbourhood goes.

    .. math:: \log\hat Z > \log 20 + \operatorname{E} \log \tilde p + \tfrac12 \log\det(2 \pi e \Sigma)

    A fit that found a lesser peak in all of its restarts has draws that stay where they are. The evidence of
    that peak is at most the right side's last two terms, of the chains' ends; an unbiased estimate of the
    whole is larger by so much once in twenty runs at most. Few particles are enough: what they miss makes
    their estimate smaller. None where they find no more, or where the prior has no draws.

    :param most: the bound, by restart; that with the lowest loss is asked.
    """
    chain = best_chain(fit)
    smc = SMC(substitute(fit.model, data=best_params(fit)), FROM_PRIOR, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few particles
        try:
            run = smc.run(jax.random.key(1), *fit.args, **fit.kwargs)
        except (PplExtError, NotImplementedError):
            return None
    return reason_of_evidence(float(most[chain]), float(run.log_evidence), FROM_PRIOR)
