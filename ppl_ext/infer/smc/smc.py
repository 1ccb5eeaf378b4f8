"""Tempered sequential Monte Carlo of a whole model: one pass from the prior, or a fitted guide, to the
posterior.
"""

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpyro.handlers import substitute

from ppl_ext.algorithms.anywhere import Anywhere
from ppl_ext.algorithms.held_sites import HeldAsGiven
from ppl_ext.algorithms.hidden_sites import Inner, unused_run
from ppl_ext.algorithms.target import RecordInside, Target
from ppl_ext.algorithms.tempered.points import Path
from ppl_ext.algorithms.tempered.stages import (
    Rules,
    State,
    begun,
    found_stage,
    is_under_way,
    planned_stage,
    run_found,
)
from ppl_ext.algorithms.tempered_smc import TemperedSMC
from ppl_ext.densities.numbers_at_hand import AlsoDrawn, Numbers
from ppl_ext.diagnostics.report.asked import refuse_unknown
from ppl_ext.diagnostics.report.run_record import name_of
from ppl_ext.errors import ModelError, NonFiniteError
from ppl_ext.infer.smc.result import SMCResult
from ppl_ext.infer.svi.checks import non_finite_of_draws
from ppl_ext.program import Program, log_density, simulate
from ppl_ext.result import Fit
from ppl_ext.runtime.arguments import check_call, check_flag, check_key, check_program
from ppl_ext.runtime.checkpoint import Checkpoint, digest
from ppl_ext.runtime.checkpoint import program as program_of
from ppl_ext.runtime.constants import compiled, odd_data_blamed, split
from ppl_ext.runtime.explain import explained
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.sharding import everywhere, gathered
from ppl_ext.runtime.training import Saver, check_checkpoint, progress, train

OPTIONS = tuple(f.name for f in fields(TemperedSMC) if f.name not in ("num_particles", "initial"))


class SMC:
    r"""Particles from the prior, or a fitted guide, to the posterior of a model: draws and the evidence.

    .. math:: \log \hat Z = \sum_t \log \frac1N \sum_i p(y \mid z^i_{t-1})^{\tau_t - \tau_{t-1}}

    It needs no warm-up, finds several peaks where the prior covers them, and estimates p(y) on the way.
    Finite sites are summed out. Arguments of the model may change between runs without compiling again.

    Temperatures and moves are found from the particles as they go, so the evidence is consistent: right as N
    grows. With given ``temperatures`` and moves of fixed size and covariance it is unbiased for every N, as
    with ``unbiased=True``, which finds both in a run beside and takes twice the time.

    :param model: a NumPyro model.
    :param num_particles: N, at least 2.
    :param initial: start from this :class:`~ppl_ext.infer.Fit`, or guide with ``params=``, or proposal,
        instead of the prior. Of a fit with several chains the one with the lowest loss at its end is taken.
    :param unbiased: find temperatures and moves in a run beside.
    :param progress_bar: a bar with the temperature, one stage a launch; without it all stages are one launch.
    :param checkpoint: :class:`~ppl_ext.infer.Checkpoint`, whose ``every`` counts stages: save as it goes, and
        go on from there, to the last bit, if the file exists.
    :param options: those of :class:`~ppl_ext.algorithms.TemperedSMC`: ``temperatures``, ``moves``, ``ess``,
        ``along``, ``waste_free``, ``resampling``, ``max_stages``, ``mesh``, ...
    :raises ArgumentError: as :class:`~ppl_ext.algorithms.TemperedSMC`.
    :raises ModelError: when run, as there.

    Sources: see :class:`~ppl_ext.algorithms.TemperedSMC`.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 3.0))
    ...     numpyro.sample("y", dist.Normal(z ** 2, 0.5), obs=y)
    >>> result = SMC(model, num_particles=1000, progress_bar=False).run(jax.random.key(0), 4.0)
    >>> bool(0.4 < (result.values["z"] > 0).mean() < 0.6)  # two peaks
    True
    """

    def __init__(
        self,
        model: Callable,
        num_particles: int = 1000,
        initial: Fit | Callable | None = None,
        unbiased: bool = False,
        progress_bar: bool = True,
        checkpoint: Checkpoint | None = None,
        **options: Any,
    ):
        check_program("SMC: model", model)
        check_flag("SMC: unbiased", unbiased)
        check_flag("SMC: progress_bar", progress_bar)
        check_checkpoint("SMC", checkpoint)
        refuse_unknown("SMC", options, OPTIONS)
        self.model = model
        if isinstance(initial, Fit):
            params = best_params(initial)
            # The model's own param sites are fitted, too.
            self.model = substitute(model, data=params)
            initial, options = initial.guide, {"params": params, **options}
        self.algorithm = TemperedSMC(num_particles, initial=initial, **options)
        self._unbiased, self._progress_bar, self._checkpoint = unbiased, progress_bar, checkpoint
        self._start, self._advance = compiled(self._started, 2), compiled(self._advanced, 2)
        self._finish = compiled(self._finished, 2)

    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> SMCResult:
        """Take the particles to the posterior given these arguments of the model.

        :raises NonFiniteError: if a density is NaN at every particle.
        :raises ModelError: see :class:`~ppl_ext.algorithms.TemperedSMC`.
        """
        check_key("SMC: rng_key", rng_key)
        check_call("SMC: model", self.model, args, kwargs)
        refuse_open_handlers("SMC.run")

        def at_a_draw():
            key, drawn = jax.random.key(0), AlsoDrawn(self.model)
            values = simulate(drawn, *args, rng_key=key, **kwargs).values
            names = self._target(args, kwargs)
            finite = [n for n in names.free if names.sites[n]["fn"].support.is_discrete]
            log_density(drawn, {n: x for n, x in values.items() if n not in finite}, *args, **kwargs)

        with (
            odd_data_blamed("SMC: model", args, kwargs),
            reading(self.model, self.algorithm) as seen,
            Numbers(at_a_draw),
        ):
            start = self._start(seen, rng_key, args, kwargs)
            steps = _Stages(self, seen, (args, kwargs), start)
            saver = Saver(self._checkpoint, self._about(steps, rng_key, args, kwargs))
            found = np.zeros((4, 0), np.float32)
            if (saved := saver.load(start)) is not None:
                steps.state, found = saved
            with progress("SMC", None, found.shape[1], self._progress_bar) as bar:
                found, _ = train(steps, found, saver, bar, _shown)
            values = everywhere(self._finish(seen, steps.state, args, kwargs))
        return self._result(steps.state, found, values, (args, kwargs), rng_key, seen)

    def whole(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> State:
        """The state at the end of a run, as one pure function: for a ``jit`` or ``vmap`` of one's own.

        Its ``log_evidence.value`` is the log evidence; ``points.position`` are unconstrained.
        """
        start = self._started(None, rng_key, args, kwargs)
        return self._advanced(None, start, args, kwargs, self.algorithm.rules().max_stages)

    def _about(self, steps: "_Stages", rng_key, args, kwargs) -> dict[str, Any]:
        if self._checkpoint is None:
            return {}
        return {
            "rng_key": np.asarray(jax.random.key_data(rng_key)).ravel().tolist(),
            "data": digest(split(args, kwargs)[0]),
            "settings": self._described(),
            **steps.program(),
        }

    def _described(self) -> str:
        rules = self.algorithm.rules()
        given = self.algorithm.temperatures
        parts = [x for name, x in rules._asdict().items() if name not in ("mesh", "scheme")]
        return repr((parts, self.algorithm.resampling, given, self._unbiased))

    def _result(self, state: State, found, values, data, rng_key, seen) -> SMCResult:
        increments, ess, acceptance, temperatures = found
        log_evidence = np.asarray(state.log_evidence.value)
        num, num_nan = self.algorithm.num_particles, int(state.num_nan)
        if np.isneginf(log_evidence):
            reason = self._impossible_site(rng_key, *data)
            if num_nan or "NaN" in reason:  # a law may call data of NaN impossible
                raise NonFiniteError(
                    f"SMC: every density is NaN or zero at stage {len(increments)} ({num_nan} were NaN). "
                    f"{reason}ppl_ext.log_density(model, values, ...).by_site says which site's it is."
                )
            warnings.warn(
                f"SMC: no particle is possible given the data at stage {len(increments)}: all {num} weights "
                "are zero, so the evidence is estimated as 0 (log evidence -inf), and the draws are none. "
                f"{reason}Look at the data and the supports of their laws; if they are possible, use more "
                "particles or a guide, initial=.",
                stacklevel=3,
            )
        elif self._ran_out(ess):
            warnings.warn(
                f"SMC: max_stages={self.algorithm.max_stages} temperatures were not enough, so that the last "
                f"step left an effective sample size of {ess[-1]:.0f} of {num}. Raise max_stages.",
                stacklevel=3,
            )
        fixed = self.algorithm.temperatures is not None and self.algorithm.moving().is_fixed
        unbiased = (fixed or self._unbiased) and self.algorithm.moving().alone
        how = {
            "evidence": "unbiased" if unbiased else "consistent, as temperatures or moves were found",
            "num_steps": self.algorithm.moving().num_steps,
        }
        if self.algorithm.initial is not None:
            how["started_from"] = name_of(self.algorithm.initial)
        return SMCResult(
            {n: np.asarray(x) for n, x in values.items()},
            np.full(num, -np.log(num)),
            log_evidence,
            temperatures,
            ess,
            acceptance,
            increments,
            num_nan,
            self.model,
            args=data[0],
            kwargs=data[1],
            rng_key=rng_key,
            how=how,
            outside=seen,
        )

    def _impossible_site(self, rng_key, args, kwargs) -> str:
        """Which site rules the data out, and why, as far as draws from the prior tell."""
        try:
            reason = non_finite_of_draws(self.model, self.model, rng_key, args, kwargs)
        except Exception:  # an improper prior, say: there are no better words
            reason = None
        return "" if reason is None else f"{reason[0].upper()}{reason[1:]} "

    def _ran_out(self, ess: np.ndarray) -> bool:
        """Whether the last temperature is 1 for want of more, which the weights then feel."""
        most, wanted = self.algorithm.max_stages, self.algorithm.ess * self.algorithm.num_particles
        return self.algorithm.temperatures is None and len(ess) == most and ess[-1] < 0.5 * wanted

    def _target(self, args, kwargs) -> Target:
        program = Program(HeldAsGiven(self.model), args, kwargs)
        pilot = Inner("smc", unused_run(), {}, frozenset(), True)
        record = RecordInside()

        def where():
            return f"after site '{next(reversed(record.sites))}'" if record.sites else "before its first site"

        with explained(self.model, where), pilot, record, Anywhere():
            program()
        free = tuple(n for n, s in record.sites.items() if s["type"] == "sample" and not s["is_observed"])
        if not free:
            raise ModelError("SMC: the model has no latent site, so there is nothing to draw.")
        return Target(program, {}, free, pilot, record.sites)

    def _path(self, args, kwargs) -> tuple[Path, Rules]:
        return self.algorithm.path(self._target(args, kwargs)), self.algorithm.rules()

    def _started(self, seen: Outside | None, rng_key, args, kwargs) -> State:
        path, rules = self._path(args, kwargs)
        pilot_key, key = jax.random.split(rng_key)
        state = begun(key, path, rules)
        if not self._unbiased:
            return state
        pilot = self.algorithm.rules(self.algorithm.pilot_particles)
        return state._replace(plan=run_found(pilot_key, path, pilot, self.algorithm.given()).plan)

    def _advanced(self, seen: Outside | None, state: State, args, kwargs, num) -> State:
        """The state at most ``num`` stages later."""
        path, rules = self._path(args, kwargs)
        given, end = self.algorithm.given(), state.stage + num

        def stage(state: State) -> State:
            if self._unbiased:
                return planned_stage(path, rules, state, state.plan)
            return found_stage(path, rules, state, given)

        return lax.while_loop(lambda s: is_under_way(s, rules) & (s.stage < end), stage, state)

    def _finished(self, seen: Outside, state: State, args, kwargs) -> dict[str, jax.Array]:
        path, rules = self._path(args, kwargs)
        return gathered(rules.mesh, jax.vmap(path.values)(state.points.position))


def best_chain(fit: Fit) -> int:
    """The chain that ended lowest."""
    losses = np.asarray(fit.losses)
    last = np.nanmean(losses[:, -max(1, losses.shape[1] // 10) :], axis=1)
    return int(np.nanargmin(last)) if np.isfinite(last).any() else 0


def best_params(fit: Fit) -> dict[str, Any]:
    """The parameters of the chain that ended lowest."""
    return jax.tree.map(lambda x: jnp.asarray(x)[best_chain(fit)], dict(fit.params))


def _shown(found: np.ndarray) -> str:
    return f"temperature {found[3, -1]:.3g}, acceptance {found[2, -1]:.2g}"


class _Stages:
    """The stages of one run (:class:`ppl_ext.runtime.training.Steps`)."""

    def __init__(self, smc: SMC, seen: Outside, data: tuple, start: State):
        self.smc, self.seen, self.data, self.state = smc, seen, data, start
        looked_at = smc._progress_bar or smc._checkpoint is not None
        self.at_once = 1 if looked_at else smc.algorithm.rules().max_stages

    def some(self) -> np.ndarray | None:
        """By stage, its log mean weight, effective sample size, acceptance and temperature: (4, stages)."""
        if not bool(is_under_way(self.state, self.smc.algorithm.rules())):
            return None
        before = int(self.state.stage)
        self.state = self.smc._advance(self.seen, self.state, *self.data, jnp.int32(self.at_once))
        state = everywhere(self.state)
        new = slice(before, int(state.stage))
        parts = (*state.trace, state.plan.temperatures)
        return np.stack([np.asarray(x)[new] for x in parts])

    def program(self) -> dict[str, str]:
        """What a stage computes, for a checkpoint."""
        args, kwargs = self.smc._advance.arguments(self.seen, *self.data)

        def one(state):
            return self.smc._advanced(self.seen, state, args, kwargs, 1)

        return program_of(one, self.state)
