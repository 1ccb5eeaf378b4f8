"""What chains say of themselves: whether they agree, how many draws they are worth, and where they failed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC
from scipy.special import ndtri
from scipy.stats import rankdata

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.verdict import Level, Reason, Verdict, judged

APART, FAR_APART = 1.05, 1.2
"""R-hat above which chains have not met, and above which they tell of different laws."""

FEW, HARDLY_ANY = 100.0, 25.0
"""Effective draws below which a mean has a standard error of a tenth, and of a fifth, of the posterior's
standard deviation.
"""


UNSURE = 0.12
"""A standard error of a spread, as a share of it: two and a half of them are as much as a verdict allows."""


DIVERGENT = 0.01
"""A share of divergent transitions below which they are no more than mentioned."""


def r_hat(x: np.ndarray) -> np.ndarray:
    r"""Rank-normalised split R-hat of draws (chain, draw, ...): the larger of bulk and tail.

    .. math:: z = \Phi^{-1}\Big(\frac{r - 3/8}{S + 1/4}\Big), \quad \hat R = \max\{\hat R(z), \hat R(z
        \text{ of } |x - \operatorname{median}|)\}

    NaN where all draws are equal. Source: Vehtari et al. 2021, eqs. 4, 14 and § 4.1.

    >>> draws = np.random.default_rng(0).normal(size=(4, 500, 2)) + np.array([0, 0, 0, 1])[:, None, None]
    >>> bool((r_hat(draws) > 1.1).all()), bool((r_hat(draws[:3]) < 1.01).all())
    (True, True)
    """
    folded = np.abs(x - np.median(x, axis=(0, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [split_gelman_rubin(_normal_scores(y)) for y in (x, folded)]
    return np.where(np.ptp(x, axis=(0, 1)) > 0.0, np.fmax(*found), np.nan)


def bulk_ess(x: np.ndarray) -> np.ndarray:
    """Effective sample size of the normal scores of draws (chain, draw, ...), halved chains (Vehtari et al.
    2021, § 3.2 and 4.1); NaN where all draws are equal.
    """
    half = x.shape[1] // 2
    split = np.concatenate([x[:, :half], x[:, -half:]])
    with np.errstate(divide="ignore", invalid="ignore"):
        ess = np.asarray(effective_sample_size(_normal_scores(split)))
    return np.where(np.ptp(x, axis=(0, 1)) > 0.0, ess, np.nan)


def spread_error(x: np.ndarray) -> np.ndarray:
    r"""The standard error of the standard deviation s of draws (chain, draw, ...), as a share of it.

    .. math:: \frac{1}{2 s^2} \sqrt{\frac{\operatorname{var}(d^2)}{\mathrm{ESS}(d^2)}}, \qquad d = x - \bar x

    the delta method, with the ESS of halved chains. It is :math:`1/\sqrt{2S}` for S normal draws, and large
    where few draws in a long tail make most of the spread. NaN where all draws are equal.

    >>> rng = np.random.default_rng(0)
    >>> wide = rng.standard_t(1.5, size=(4, 500))
    >>> [round(float(spread_error(x)), 2) for x in (rng.normal(size=(4, 500)), wide)]
    [0.02, 0.15]

    Source: Vehtari et al. 2021, § 4.2, for the ESS; Gelman et al. 2013, § 11.5, for the use of it.
    """
    half = x.shape[1] // 2
    split = np.concatenate([x[:, :half], x[:, -half:]])
    squares = np.square(split - split.mean((0, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ess = np.asarray(effective_sample_size(squares))
        found = 0.5 * np.sqrt(squares.var((0, 1)) / ess) / squares.mean((0, 1))
    return np.where(np.ptp(x, axis=(0, 1)) > 0.0, found, np.nan)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    ranks = rankdata(x.reshape(-1, *x.shape[2:]), axis=0).reshape(x.shape)
    return ndtri((ranks - 0.375) / (x.shape[0] * x.shape[1] + 0.25))


def reasons_of_chains(values: Mapping[str, Any], what: str = "chains") -> list[Reason]:
    """What draws (chain, draw, ...) by name say of chains that have run side by side."""
    arrays = {n: np.asarray(x, np.float64) for n, x in values.items()}
    arrays = {n: x.reshape(*x.shape[:2], -1) for n, x in arrays.items() if x.size}
    if not arrays:
        return []
    num_chains, num_draws = next(iter(arrays.values())).shape[:2]
    wrong = [n for n, x in arrays.items() if not np.isfinite(x).all()]
    if wrong:
        return [Reason("bad", f"draws of {', '.join(map(repr, wrong))} are NaN or infinite")]
    if num_draws < 8:
        return [Reason("unknown", f"{num_draws} draws are too few to tell of convergence")]
    found = []
    worst = _worst({n: r_hat(x) for n, x in arrays.items()}, np.nanmax)
    fewest = _worst({n: bulk_ess(x) for n, x in arrays.items()}, np.nanmin)
    if worst is None or fewest is None:
        return [Reason("bad", f"the {what} never moved: all draws are the same")]
    stuck = [n for n, x in arrays.items() if ((np.ptp(x, 1) == 0.0).all(0) & (np.ptp(x, (0, 1)) > 0.0)).any()]
    if stuck:
        found.append(Reason("bad", f"{', '.join(map(repr, stuck))} never moved within any of the {what}"))
    site, r = worst
    if r > APART or math.isnan(r):
        level: Level = "bad" if r > FAR_APART else "doubtful"
        found.append(Reason(level, f"the {what} disagree (R-hat {r:.2f} at '{site}')"))
    elif num_chains == 1:
        found.append(
            Reason("unknown", f"one chain, whose halves agree (R-hat {r:.3f}): run four from other starts")
        )
    else:
        found.append(Reason("good", f"the {what} agree (largest R-hat {r:.3f}, at '{site}')"))
    site, ess = fewest
    few: Level = "good" if ess >= FEW else "doubtful" if ess >= HARDLY_ANY else "bad"
    found.append(Reason(few, f"at least {ess:.0f} effective draws of {num_chains * num_draws}, at '{site}'"))
    tail = _worst({n: spread_error(x) for n, x in arrays.items()}, np.nanmax)
    if tail is not None and tail[1] > UNSURE:
        words = f"a few draws in a long tail make the spread of '{tail[0]}', which is known to {tail[1]:.0%}"
        found.append(Reason("doubtful", f"{words} (one standard error): draw more, or look at its quantiles"))
    return found


def _worst(by_site: Mapping[str, np.ndarray], which) -> tuple[str, float] | None:
    known = {n: float(which(x)) for n, x in by_site.items() if not np.isnan(x).all()}
    if not known:
        return None
    site = (max if which is np.nanmax else min)(known, key=known.__getitem__)
    return site, known[site]


def of_mcmc(mcmc: MCMC) -> Verdict:
    """The verdict on a NumPyro ``MCMC`` that has run."""
    try:
        samples = mcmc.get_samples(group_by_chain=True)
    except (AssertionError, AttributeError, TypeError) as error:
        raise ArgumentError("verdict: this MCMC has no draws yet; call run first.") from error
    fields = mcmc.get_extra_fields(group_by_chain=True)
    found = reasons_of_chains(samples if isinstance(samples, dict) else {"draws": samples})
    if "diverging" in fields and (count := int(np.sum(fields["diverging"]))):
        found.append(reason_of_divergences(count, np.size(fields["diverging"])))
    if "energy" in fields:
        energy = np.asarray(fields["energy"], np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            lowest = float(np.min(np.square(np.diff(energy, axis=1)).mean(1) / energy.var(1)))
        if lowest < 0.2:
            found.append(Reason("doubtful", f"the momenta explore the energies slowly (E-BFMI {lowest:.2f})"))
    found += _reasons_of_renewal(fields)
    return judged(found)


def reason_of_divergences(count: int, num: int) -> Reason:
    """What ``count`` of ``num`` divergent transitions say.

    A share below ``DIVERGENT`` is mentioned: single divergences are often false alarms (Betancourt 2017,
    § 6.2), and a region that a chain misses moves a mean by .3 standard deviations only if it holds some 8 %
    of the posterior.
    """
    words = f"{count} of {num} transitions diverged"
    if count < DIVERGENT * num:
        return Reason("good", f"{words}, which are few; a higher target_accept_prob may spare them")
    return Reason(
        "doubtful", f"{words}: there the posterior is too steep for the step size, and may be missed"
    )


def _reasons_of_renewal(fields: Mapping[str, Any]) -> list[Reason]:
    if "renewed" not in fields:
        return []
    return [reason_of_renewal(np.asarray(fields["renewed"], float).mean((0, 1)))]


def reason_of_renewal(renewal: np.ndarray) -> Reason:
    """What it says how often each time of a sampled path was renewed, (T + 1,)."""
    at = int(renewal.argmin())
    place = f"step {at - 1}" if at else "the time before the first step"
    words = f"the path was renewed least often at {place}: in {renewal[at]:.0%} of the sweeps"
    return Reason("good" if renewal[at] >= 0.1 else "doubtful" if renewal[at] >= 0.01 else "bad", words)
