"""References by long NUTS, and how far a result is from them.

A result is *bad* if, for any scalar that the reference has, its mean is off by more than .3 of the
reference's standard deviations, or its standard deviation by more than 30 % of the reference's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from benchmarks.reference.problem import Problem
from ppl_ext.diagnostics.verdicts.chains import bulk_ess, r_hat

FILE = Path(__file__).parent / "posteriors.json"
SHIFT, SPREAD = 0.3, 0.3
AT_MOST = 20
"""Scalars that are kept of a site: the first ones."""

BAND = 0.05
"""A row whose largest error is this near to the border is right either way, or within two standard errors of
it: draws and references have Monte Carlo errors of a hundredth or two, more where tails are heavy, and of
many scalars the worst counts.
"""


class Error(NamedTuple):
    """How far a result is off, at its worst scalars: ``mean`` in reference sds, ``sd`` as a share of them,
    and the Monte Carlo standard error of the larger of both.
    """

    mean: float
    sd: float
    noise: float = 0.0

    @property
    def largest(self) -> float:
        return max(self.mean / SHIFT, self.sd / SPREAD) * SHIFT

    @property
    def bad(self) -> bool:
        return not self.largest <= SHIFT

    @property
    def border(self) -> bool:
        return abs(self.largest - SHIFT) <= max(BAND, 2.0 * self.noise)


def kept(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draws (chain, draw, ...) by site as (chain, draw, scalar), the first scalars of each."""
    arrays = {n: np.asarray(x, np.float64) for n, x in values.items()}
    return {n: x.reshape(*x.shape[:2], -1)[..., :AT_MOST] for n, x in arrays.items()}


def error(values: Mapping[str, Any], reference: Mapping[str, Any], independent: bool = True) -> Error:
    """Of draws (chain, draw, ...) by site, all chains together; sites that either lacks do not count.

    :param independent: whether the draws are; else they count for a tenth in the standard error.
    """
    found = []
    for name, x in kept(values).items():
        if name not in reference["sites"]:
            continue
        mean, sd = (np.asarray(reference["sites"][name][k]) for k in ("mean", "sd"))
        flat = x.reshape(-1, x.shape[-1])
        num = len(flat) if independent else len(flat) / 10.0
        shift, ratio = np.abs(flat.mean(0) - mean) / sd, flat.std(0) / sd
        with np.errstate(divide="ignore", invalid="ignore"):
            flatness = np.mean(((flat - flat.mean(0)) / flat.std(0)) ** 4, 0)
        noise = ratio * np.sqrt(np.maximum(np.nan_to_num(flatness, nan=1.0) - 1.0, 0.0) / num) / 2.0
        found.append(np.stack([shift, np.abs(ratio - 1.0), ratio / np.sqrt(num), noise]))
    if not found:
        raise ValueError("no site of the draws has a reference")
    shift, spread, *noises = np.concatenate(found, 1)
    worst_shift, worst_spread = int(np.argmax(shift)), int(np.argmax(spread))
    by_mean = shift[worst_shift] / SHIFT > spread[worst_spread] / SPREAD
    noise = noises[0][worst_shift] if by_mean else noises[1][worst_spread]
    return Error(float(shift[worst_shift]), float(spread[worst_spread]), float(noise))


def references() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def make_reference(problem: Problem, num_samples: int = 2500, num_chains: int = 4) -> dict[str, Any]:
    """Means and standard deviations of a problem's scalars, by NUTS, with what vouches for them: longer runs
    of smaller steps until R-hat is at most 1.005 and at most one transition in a thousand diverges. R-hat
    alone does not see a tail that no chain enters: GARCH(1,1) had 1.002, and half of its spread.

    :raises ValueError: if that is not reached.
    """
    model = problem.of or problem.model
    for accept, longer in ((0.95 if problem.of else 0.8, 1), (0.95, 2), (0.99, 8)):
        mcmc = MCMC(
            NUTS(model, target_accept_prob=accept, dense_mass=problem.steep, init_strategy=problem.start),
            num_warmup=1000,
            num_samples=num_samples * longer,
            thinning=longer,
            num_chains=num_chains,
            chain_method="sequential",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(19 + longer), *problem.data(), extra_fields=("diverging",))
        values = kept(mcmc.get_samples(group_by_chain=True))
        worst = max(float(np.nanmax(r_hat(x))) for x in values.values())
        diverging = np.asarray(mcmc.get_extra_fields()["diverging"])
        if worst <= 1.005 and diverging.mean() <= 1e-3:
            break
    else:
        raise ValueError(
            f"{problem.name}: NUTS has R-hat {worst:.4f} and {diverging.sum()} divergences; give of=."
        )
    sites = {
        name: {"mean": _short(x.mean((0, 1))), "sd": _short(x.std((0, 1)))} for name, x in values.items()
    }
    return {
        "r_hat": round(worst, 4),
        "ess": int(min(np.nanmin(bulk_ess(x)) for x in values.values())),
        "diverging": int(diverging.sum()),
        "sites": sites,
    }


def _short(x: np.ndarray) -> list[float]:
    return [float(f"{v:.5g}") for v in x]
