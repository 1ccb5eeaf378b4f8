"""Simulation-based calibration: does an algorithm find what is true, when it is the model that says what is
true?
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.diagnostics import autocovariance
from numpyro.infer import MCMC

from ppl_ext.diagnostics.calibration.simulations import (
    Arrays,
    arguments_of,
    draws_of_sites,
    latent_sites,
    run_batches,
    run_each,
    simulations,
    template,
)
from ppl_ext.diagnostics.calibration.uniformity import uniformity_p_value
from ppl_ext.diagnostics.sites import FullPlates
from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.program import log_density
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.results import Summarised
from ppl_ext.runtime.verdict import Verdict

LIKELIHOOD = "log_likelihood"
"""The quantity that ranks how well each draw explains its data."""

FEW_DRAWS = 20
"""Ranks among fewer draws than this hardly tell a good posterior from a bad one."""


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Summarised):
    """What :func:`calibrate` found.

    :param ranks: by quantity, (simulation, ...): how many of the draws lie below the truth, 0 to
        ``num_draws``.
    :param num_draws: L, how many draws each truth was ranked among.
    :param thin: one draw in how many was kept, so that the kept ones are nearly independent.
    :param truths: by site, (simulation, ...): what was drawn from the prior.
    :param data: by argument, what followed from it.
    :param failed: by simulation, why it has no rank; its row is left out of ``ranks``, ``truths`` and
        ``data``.

    >>> uniform, narrow = np.repeat(np.arange(10), 20), np.repeat([0, 9], 100)
    >>> Calibration({"mu": uniform}, num_draws=9), Calibration({"mu": narrow}, num_draws=9).p_value < 0.01
    (Calibration(num_simulations=200, num_draws=9, p_value=1), True)
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    thin: int = 1
    truths: dict[str, np.ndarray] = field(default_factory=dict)
    data: dict[str, np.ndarray] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def num_simulations(self) -> int:
        """How many simulations have a rank."""
        return len(next(iter(self.ranks.values())))

    @cached_property
    def p_values(self) -> dict[str, np.ndarray]:
        """By quantity, of the shape of its site: how probable such ranks are if the posterior is right."""
        return {
            name: np.apply_along_axis(uniformity_p_value, 0, x, self.num_draws)
            for name, x in self.ranks.items()
        }

    @property
    def p_value(self) -> float:
        """The smallest of the p-values, times their number (Bonferroni): below 0.01, say, something is
        wrong.
        """
        every = np.concatenate([np.ravel(p) for p in self.p_values.values()])
        return min(1.0, float(every.min()) * every.size)

    def __repr__(self) -> str:
        return (
            f"Calibration(num_simulations={self.num_simulations}, num_draws={self.num_draws}, "
            f"p_value={self.p_value:.2g})"
        )

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.diagnostics.calibration.summary import judge

        return judge(self)

    def summary(self) -> str:
        """For each quantity the mean and spread of its ranks (0.5 and 1 if uniform), a p-value, and what is
        wrong in words.
        """
        from ppl_ext.diagnostics.calibration.summary import in_words

        return in_words(self)

    def to_arviz(self) -> Any:
        """The ArviZ report: ``prior`` has the truths and ``prior_predictive`` the data, one draw a
        simulation; ``ranks`` the ranks by ``simulation``; ``estimates`` the p-values, as
        ``p_value_<quantity>``. No ``posterior``: each simulation had its own, and none is kept."""
        from ppl_ext.diagnostics.calibration.summary import to_arviz

        return to_arviz(self)


def calibrate(
    rng_key: jax.Array,
    model: Callable,
    algorithm: Callable[[jax.Array, Arrays], Any] | MCMC,
    *args,
    data: str | Sequence[str] | Mapping[str, str],
    num_simulations: int = 200,
    num_draws: int = 99,
    batch_size: int | None = None,
    guide: Callable | None = None,
    quantities: Callable[[Arrays, Arrays], Arrays] | None = None,
    progress_bar: bool = True,
    **kwargs,
) -> Calibration:
    r"""Run an algorithm on data simulated from the model, and see where the truth falls among its draws.

    .. math:: \theta_i \sim p(\theta), \quad y_i \sim p(y \mid \theta_i), \quad \theta_{i1}, \dots,
        \theta_{iL} \sim \text{algorithm}(y_i),
        \quad r_i = \#\{l : \theta_{il} < \theta_i\}

    If the algorithm draws from the posterior, every rank is uniform on 0, ..., L. Truths at the ends of the
    ranks mean an over-confident posterior, truths in the middle one that is too wide, truths on one side a
    biased one. Ties (discrete sites) are broken at random. The log likelihood is ranked too: an algorithm
    that ignores the data and returns its prior passes for every site, but not for that.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> def model(y=None):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> def halved(key, data):  # the posterior is Normal(y/2, sqrt(1/2)); this one is half as wide
    ...     return {"mu": data["y"] / 2.0 + 0.5 * jnp.sqrt(0.5) * jax.random.normal(key, (99,))}
    >>> result = calibrate(jax.random.key(0), model, halved, data="y", batch_size=200, progress_bar=False)
    >>> print(result.summary())
    200 simulations, each truth ranked among 99 draws (one in 1 kept)
                       mean    spread         p
    mu                 ...  over-confident: too narrow
    log_likelihood     ...
    Over all 2 quantities: p = ...: not calibrated.

    :param model: a NumPyro model, run as ``model(*args, **kwargs)`` with the data's arguments set to None (or
        to what ``kwargs`` has for them, if the model takes sizes from its data). Subsampled plates are run in
        full.
    :param algorithm: ``algorithm(rng_key, data)``, with data by argument name so that ``**data`` passes it on
        to the model. It returns draws: a ``Fit``, a numpyro ``MCMC``, an ``SVIRunResult`` (then ``guide`` is
        needed), a report, or a dict of arrays (draw, ...) or (chain, draw, ...). Or a numpyro ``MCMC`` on the
        model that has not run: it is run on every data set, with ``args`` and ``kwargs``. A call of ``fit``
        in it is compiled once if guide, objective and optimiser are made outside of it.
    :param data: the observed sites to simulate, whose argument has the same name; ``{site: argument}`` if it
        has another.
    :param num_simulations: N. A posterior half as wide as it should be shows at 50, one a tenth too narrow
        takes some 1000.
    :param num_draws: L, at most; 99 makes the ranks percentages. Autocorrelated draws are thinned to as many
        as they are worth, the same in all simulations, by the autocorrelation of the worst site.
    :param batch_size: how many data sets at once, by ``vmap`` and with a single compilation; the algorithm
        must then be a JAX function (a numpyro ``MCMC`` or ``SVI`` without its progress bar is one,
        :func:`ppl_ext.infer.fit` is not). By default one after the other, but 50 at once if ``algorithm`` is
        an ``MCMC``.
    :param quantities: ``quantities(values, data)`` to a dict of more arrays to rank, from one draw's values
        by site and one data set.
    :return: :class:`Calibration`. ``plot_calibration`` draws it.
    :raises ModelError: if the model cannot be simulated forward: a factor, a scale, an improper prior, an
        observed site not in ``data``.
    :raises ArgumentError: if a site or argument is not there, or draws have another shape than the site.
    :raises NonFiniteError: if simulated data or truths are not finite, or every simulation failed.
    :raises HandlerError: if a handler is open around the call.

    Source: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, "Validating Bayesian inference algorithms with
    simulation-based calibration", Algorithms 1 and 2 (thinning); the log likelihood: Modrák et al. 2023,
    "Simulation-based calibration checking for Bayesian computation".
    """
    refuse_open_handlers("calibrate")
    for name, number in (
        ("num_simulations", num_simulations),
        ("num_draws", num_draws),
        ("batch_size", batch_size),
    ):
        if name == "batch_size" and number is None:
            continue
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
            raise ArgumentError(f"calibrate: {name} must be a positive integer, got {number!r}.")
    arguments = arguments_of(model, data)
    kwargs = {argument: None for argument in arguments.values()} | kwargs
    if isinstance(algorithm, MCMC):
        algorithm, batch_size = template(algorithm, args, kwargs), 50 if batch_size is None else batch_size
    elif not callable(algorithm):
        raise ArgumentTypeError(
            "calibrate: algorithm must be a function of (rng_key, data) or a numpyro MCMC, got "
            f"{type(algorithm).__name__}."
        )
    prior_key, run_key, tie_key = random.split(rng_key, 3)
    latent = latent_sites(model, arguments, args, kwargs)
    truths, simulated = simulations(prior_key, model, arguments, args, kwargs, num_simulations)
    reader = functools.partial(
        draws_of_sites, sites=truths, num_draws=num_draws, guide=guide, args=args, kwargs=kwargs
    )
    run = (
        run_each
        if batch_size is None
        else functools.partial(run_batches, batch_size=batch_size, guide=guide, args=args, kwargs=kwargs)
    )
    draws, failed = run(
        algorithm, reader, random.split(run_key, num_simulations), simulated, progress_bar=progress_bar
    )
    ok = np.array([i for i in range(num_simulations) if i not in failed])
    truths, simulated = ({n: x[ok] for n, x in d.items()} for d in (truths, simulated))
    kept, thin = _thinned(draws, num_draws)
    kept_truths, kept = _with_quantities(
        model, arguments, latent, truths, kept, simulated, args, kwargs, quantities
    )
    ranks = {n: _rank(kept_truths[n], x, random.fold_in(tie_key, i)) for i, (n, x) in enumerate(kept.items())}
    length = next(iter(kept.values())).shape[1]
    if length < min(FEW_DRAWS, num_draws):
        warnings.warn(
            f"calibrate: the chains are worth only {length} independent draws, so the ranks tell little. "
            "Run them longer.",
            stacklevel=2,
        )
    return Calibration(ranks, length, thin, truths, simulated, failed)


# --- ranks


def _thinned(draws: Arrays, num_draws: int) -> tuple[Arrays, int]:
    """At most ``num_draws`` evenly spaced draws, (simulation, draw, ...), no more than the worst site's are
    worth; and one in how many.
    """
    num, num_chains, length = next(iter(draws.values())).shape[:3]
    worst = max(_autocorrelation_time(x) for x in draws.values())
    step = 1 if worst < 1.2 else math.ceil(worst)  # independent draws measure about 1
    count = max(1, min(-(-num_draws // num_chains), length // step))
    chosen = (np.arange(1, count + 1) * length) // count - 1
    kept = {n: x[:, :, chosen].reshape(num, num_chains * count, *x.shape[3:]) for n, x in draws.items()}
    return kept, length // count


def _autocorrelation_time(x: np.ndarray) -> float:
    """How many draws of (simulation, chain, draw, ...) are worth one, at the worst element; 1 for independent
    ones.

    The correlations are averaged over simulations before they are summed (as far as Geyer's pairs stay
    positive): those of a single chain would be too noisy to choose by.
    """
    length = x.shape[2]
    series = np.moveaxis(x.astype(np.float64), 2, -1).reshape(x.shape[0] * x.shape[1], -1, length)
    spread = series.var(axis=-1, keepdims=True)
    moving = (spread > 0.0).all(axis=(1, 2))  # a point that never moves has no time
    if length < 8 or not moving.any():
        return 1.0
    correlation = (autocovariance(series[moving], axis=-1) / spread[moving]).mean(axis=0)
    pairs = correlation[:, : length // 2 * 2].reshape(len(correlation), -1, 2).sum(-1)
    positive = np.logical_and.accumulate(pairs > 0.0, axis=-1)
    return float(np.max(2.0 * np.where(positive, pairs, 0.0).sum(-1) - 1.0))


def _with_quantities(
    model, arguments, latent, truths, kept, data, args, kwargs, quantities
) -> tuple[Arrays, Arrays]:
    """Truths and draws of the sites, and of the log likelihood and the user's own quantities."""
    names = list(kept)

    def one(values, here):
        out = {}
        if LIKELIHOOD not in truths and all(n in values for n in latent):
            with FullPlates():
                density = log_density(
                    model, {n: values[n] for n in latent}, *args, rng_key=random.key(0), **kwargs | here
                )
            out[LIKELIHOOD] = sum(density.by_site[site] for site in arguments)
        return out | ({} if quantities is None else dict(quantities(values, here)))

    values = {n: np.concatenate([truths[n][:, None], kept[n]], axis=1) for n in names}
    per_simulation = jax.vmap(one, in_axes=(0, None))
    more = jax.device_get(jax.jit(lambda v, d: lax.map(lambda x: per_simulation(*x), (v, d)))(values, data))
    values |= more
    for name, x in values.items():
        if np.isnan(x).any():
            raise NonFiniteError(f"calibrate: '{name}' is not a number at some draw, so it cannot be ranked.")
    return {n: x[:, 0] for n, x in values.items()}, {n: x[:, 1:] for n, x in values.items()}


def _rank(truth: np.ndarray, draws: np.ndarray, rng_key) -> np.ndarray:
    """How many draws lie below the truth, (simulation, ...); equal ones at random."""
    below = (draws < truth[:, None]).sum(axis=1)
    ties = (draws == truth[:, None]).sum(axis=1)
    return below + np.asarray(random.randint(rng_key, ties.shape, 0, jnp.asarray(ties) + 1))
