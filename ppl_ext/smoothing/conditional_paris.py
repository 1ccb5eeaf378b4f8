r"""Conditional PaRIS: particles with one of them frozen on a path, estimates from all, and a new path.

If the frozen path is a draw from the smoothing law, then the estimates are unbiased and the new path is again
such a draw, for any number of particles from 2 on (Cardoso, Janati El Idrissi, Le Corff, Moulines, Olsson
2023, theorem 1 and algorithm 2).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.additive_statistic import estimate
from ppl_ext.smoothing.backward import Tally
from ppl_ext.smoothing.space import Space
from ppl_ext.smoothing.trajectories import drawn, kept


class Sweep(NamedTuple):
    """What one conditional sweep returns.

    :param path: the new trajectory: values by latent site, those of the steps in the order of the run.
    :param estimates: of the functionals, leaves (...); None without functionals.
    :param renewed: (T + 1,) whether the new path left the old one at that time.
    :param log_evidence: log of the estimated evidence; under a frozen path it is biased.
    :param ess: (T + 1,) effective sample size of the weights: 0 where no lane survives, not the frozen one
        either. What comes after it, the path and the estimates are then NaN.
    :param tally: of the backward draws.
    """

    path: dict[str, jax.Array]
    estimates: Any
    renewed: jax.Array
    log_evidence: jax.Array
    ess: jax.Array
    tally: Tally


def conditional_paris(rng_key: jax.Array, space: Space, path: dict[str, jax.Array]) -> Sweep:
    """One sweep given ``path``: lane 0 runs along it, the other lanes are resampled multinomially from all
    lanes at every step, and every lane draws backward, the frozen one as well.

    :param space: of at least 2 particles.
    """
    filter_key, back_key = jax.random.split(rng_key)
    run = kept(filter_key, space._replace(rules=space.rules._replace(threshold=1.0)), path)
    state = run.state
    new, index, tally = drawn(back_key, space, run, 1)
    return Sweep(
        path=jax.tree.map(lambda x: x[0], new),
        estimates=None if space.functional is None else estimate(state.statistic, state.filter.log_weights),
        renewed=index[:, 0] != 0,
        log_evidence=state.log_evidence,
        ess=jnp.concatenate([run.first.ess[None], run.ess]),
        tally=Tally(state.tally.fallbacks, jnp.maximum(state.tally.excess, tally.excess)),
    )
