"""SMC²: the posterior of a state-space model's parameters along its series."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ppl_ext.algorithms.particle_filter import ParticleFilter
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer.particle_mcmc.particle_gibbs import initial_names, path_sites
from ppl_ext.infer.smc2 import cloud as engine
from ppl_ext.infer.smc2.cloud import Cloud, Notes
from ppl_ext.infer.smc2.parameters import Parameters, latent_sites
from ppl_ext.infer.smc2.result import SMC2Result
from ppl_ext.infer.smc2.rules import options_of, rules_of
from ppl_ext.runtime.arguments import check_call, check_data, check_flag, check_key, check_program, described
from ppl_ext.runtime.checkpoint import Checkpoint, digest
from ppl_ext.runtime.checkpoint import program as program_of
from ppl_ext.runtime.constants import compiled, odd_data_blamed, split
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.training import Saver, check_checkpoint, progress, train
from ppl_ext.state_space.gaps import refuse_raw
from ppl_ext.state_space.model import lower, scan_shape
from ppl_ext.state_space.streams import check_streams, time_slice


class Run(NamedTuple):
    """Where a run is, and what was noted of its steps, leaves (T, ...)."""

    cloud: Cloud
    notes: Notes


class SMC2State(NamedTuple):
    """A stream of :class:`SMC2`: its ``run``; ``data``, the arguments so far, with room for more; the
    parameters' ``names``, and the key that it began with."""

    run: Run
    data: tuple[tuple, dict[str, Any]]
    names: tuple[str, ...]
    rng_key: jax.Array


class SMC2:
    r"""Posterior of the parameters of a state-space model after every observation, and the evidence.

    .. math:: \log \hat p(y_{1:T}) = \sum_t \log \sum_i W^i_{t-1} \, \hat p(y_t \mid y_{<t}, \theta^i)

    N parameters go through the series, each with a particle filter of its own, whose estimates of
    :math:`p(y_t \mid y_{<t}, \theta)` weigh them. When the weights are uneven the parameters are resampled
    and moved by particle marginal Metropolis-Hastings: normal steps in unconstrained positions, a new filter
    of the data so far at each, accepted by the ratio of prior times estimated evidence. When few moves are
    accepted the filters are too noisy, and get twice as many states. The states are integrated out, and the
    number of states costs time and no bias.

    It is called by its name in the literature, and stands beside :class:`~ppl_ext.infer.SMC`, which tempers
    the likelihood of any model and needs its density, and :class:`~ppl_ext.infer.PMMH`, one chain given all
    data. After T steps with moves every so often, it has cost :math:`O(N M T^2)` at most and, as moves become
    rare, about :math:`O(N M T \log T)`.

    **What is unbiased.** With moves at every step or at none (``ess=1`` or ``ess=0``), of given scale and
    covariance, and filters that stay as they are, :math:`\mathbb{E}\, \hat p(y_{1:T}) = p(y_{1:T})` for every
    N and M. Times of moves, proposals and numbers of states that are found from the particles make that a
    limit in N; the summary says "consistent" then.

    :param model: a NumPyro model with one ``scan``; see :class:`~ppl_ext.algorithms.ParticleFilter`. Its
        parameters, the latent sites before the scan that are not the first state, must be continuous.
    :param num_particles: N, at least 2.
    :param algorithm: the filter of each parameter: states at first, proposals, resampling.
    :param progress_bar: a bar with the evidence, one step a launch; without it as many as possible.
    :param checkpoint: :class:`~ppl_ext.infer.Checkpoint`, whose ``every`` counts steps: save as it goes, and
        go on from there, to the last bit, if the file exists.
    :param moves: :class:`~ppl_ext.algorithms.RandomWalk` (three steps) or
        :class:`~ppl_ext.algorithms.IndependentMoves`, fitted to the weighted parameters. The scale of the
        former is :math:`2.38 / \sqrt D` unless given.
    :param ess: move where the effective sample size is below this share of N: 0 never, 1 at every step.
    :param min_acceptance: double the states of all filters where fewer moves than this were accepted: 0
        never, 1 at every step with moves.
    :param max_states: states of a filter at most; 16 times those of ``algorithm`` by default.
    :param resampling: of the parameters, as for :class:`~ppl_ext.algorithms.ParticleFilter`.
    :param initial: sites before the scan that belong to the first state; as for
        :class:`~ppl_ext.infer.ParticleGibbs`.
    :raises ArgumentError: for numbers out of range.
    :raises ModelError: when run: a model without a scan, without parameters, with discrete ones, or with a
        prior that cannot be drawn from. The message names the site.

    Source: Chopin, Jacob, Papaspiliopoulos 2013, section 3.1 for the algorithm, 3.6.1 for the exchange.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext.algorithms import ParticleFilter
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> smc2 = SMC2(model, 50, ParticleFilter(20), progress_bar=False, min_acceptance=0.0)
    >>> result = smc2.run(jax.random.key(0), jnp.array([0.3, -0.1, 0.5]))
    >>> result.values["phi"].shape, result.mean["phi"].shape, bool(-5 < result.log_evidence < -3)
    ((50,), (3,), True)
    """

    def __init__(
        self,
        model: Callable,
        num_particles: int = 500,
        algorithm: ParticleFilter | None = None,
        progress_bar: bool = True,
        checkpoint: Checkpoint | None = None,
        **options: Any,
    ):
        check_program("SMC2: model", model)
        check_flag("SMC2: progress_bar", progress_bar)
        check_checkpoint("SMC2", checkpoint)
        found = options_of(options)
        self.model, self._initial = model, initial_names("SMC2", found.initial)
        self.rules = rules_of(num_particles, ParticleFilter(100) if algorithm is None else algorithm, found)
        self._progress_bar, self._checkpoint = progress_bar, checkpoint
        self._start = compiled(self._started, 3, static_argnums=(1, 5))
        self._advance = compiled(self._advanced, 3, static_argnums=(1,))
        self._exchange = compiled(self._exchanged, 3, static_argnums=(1, 5))
        self._finish = compiled(self._finished, 3, static_argnums=(1,))

    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> SMC2Result:
        """Go through the whole series, with these arguments of the model.

        :raises ModelError: see :class:`SMC2`.
        """
        check_key("SMC2: rng_key", rng_key)
        check_call("SMC2: model", self.model, args, kwargs)
        refuse_open_handlers("SMC2.run")
        names = self._names(args, kwargs)
        with odd_data_blamed("SMC2: model", args, kwargs), reading(self) as seen:
            steps = Steps(self, seen, names, (args, kwargs))
            steps.state = self._start(seen, names, rng_key, args, kwargs, self.rules.states.num_particles)
            saver = Saver(self._checkpoint, self._about(steps, rng_key, args, kwargs))
            found = np.zeros((2, 0), np.float32)
            if (saved := self._loaded(saver, steps, rng_key)) is not None:
                steps.state, found = saved
            with progress("SMC2", steps.num, found.shape[1], self._progress_bar) as bar:
                train(steps, found, saver, bar, _shown)
            return self._result(steps, rng_key)

    def init(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> "SMC2State":
        """Where a stream begins, before its first observation. ``args`` and ``kwargs`` hold one time slice,
        for its shapes.

        :raises ModelError: as :meth:`run`, or if the model cannot be called with one time after another.
        """
        check_key("SMC2.init: rng_key", rng_key)
        check_data("SMC2.init:", args, kwargs)
        refuse_open_handlers("SMC2.init")
        args, kwargs = data = time_slice((args, kwargs))
        check_call("SMC2: model", self.model, args, kwargs)
        names = self._names(args, kwargs)
        with reading(self) as seen:
            run = self._start(seen, names, rng_key, args, kwargs, self.rules.states.num_particles)
            steps = Steps(self, seen, names, data, run)
            check_streams(self.model, args, kwargs, steps.first_values())
        return SMC2State(run, data, names, rng_key)

    def update(self, state: "SMC2State", *args: Any, **kwargs: Any) -> "SMC2State":
        """The state with one observation more: a time slice of the model's arguments.

        A move needs all observations, so that they are kept: memory grows with time, and a step with moves
        costs as much as a filter of all of them. The step is compiled anew whenever their number has
        doubled.
        """
        if not isinstance(state, SMC2State):
            raise ArgumentTypeError(
                f"SMC2.update: state must be what init or update returned, got {described(state)}."
            )
        check_data("SMC2.update:", args, kwargs)
        refuse_open_handlers("SMC2.update")
        new = time_slice((args, kwargs))
        if str(jax.tree.structure(new)) != str(jax.tree.structure(state.data)):
            raise ArgumentError(
                "SMC2.update: the time slice must have the arguments that init had; their structure was "
                f"{jax.tree.structure(state.data)}, now it is {jax.tree.structure(new)}."
            )
        for given, kept in zip(jax.tree.leaves(new), jax.tree.leaves(state.data), strict=True):
            if given.shape[1:] != kept.shape[1:]:
                raise ArgumentError(
                    "SMC2.update: the time slice must have the shapes that init had; one of its arrays had "
                    f"{kept.shape[1:]}, and has {given.shape[1:]} now."
                )
        time, room = int(state.run.cloud.time), len(state.run.notes.ess)
        data, run = state.data, state.run
        if time == room:  # twice the room; what stands beyond the present is never looked at
            data = jax.tree.map(lambda x: jnp.concatenate([x, x]), data)
            notes = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), run.notes)
            run = run._replace(notes=notes)
        data = jax.tree.map(lambda x, y: x.at[time].set(y[0].astype(x.dtype)), data, new)
        with reading(self) as seen:
            steps = Steps(self, seen, state.names, data, run)
            steps.some(1)
        return SMC2State(steps.state, data, state.names, state.rng_key)

    def result(self, state: "SMC2State") -> SMC2Result:
        """What is known of a stream so far."""
        if not isinstance(state, SMC2State):
            raise ArgumentTypeError(
                f"SMC2.result: state must be what init or update returned, got {described(state)}."
            )
        if not (time := int(state.run.cloud.time)):
            raise ArgumentError("SMC2.result: nothing was observed yet; update(state, ...) comes first.")
        data = jax.tree.map(lambda x: x[:time], state.data)
        with reading(self) as seen:
            return self._result(Steps(self, seen, state.names, data, state.run), state.rng_key)

    def _result(self, steps: "Steps", rng_key: jax.Array) -> SMC2Result:
        cloud, done = steps.state.cloud, int(steps.state.cloud.time)
        notes = jax.tree.map(lambda x: np.asarray(x)[:done], steps.state.notes)
        self._warn(notes, steps)
        values = self._finish(steps.seen, steps.names, cloud.position, *steps.data)
        told = "unbiased"
        if not self.rules.is_fixed:
            told = "consistent, as times of moves, proposals or numbers of states were found"
        return SMC2Result(
            {n: np.asarray(x) for n, x in values.items()},
            np.asarray(cloud.log_weights),
            notes.log_evidence,
            notes.mean,
            notes.sd,
            notes.state_mean,
            notes.state_sd,
            notes.ess,
            np.where(notes.acceptance < 0, np.nan, notes.acceptance),
            notes.num_states,
            notes.died,
            self.model,
            args=steps.data[0],
            kwargs=steps.data[1],
            rng_key=rng_key,
            how={"evidence": told, **({"ran_out": True} if self._ran_out(notes) else {})},
            outside=steps.seen,
        )

    def _names(self, args: tuple, kwargs: dict[str, Any]) -> tuple[str, ...]:
        """The parameters: latent sites before the scan that are not the first state."""
        latent = latent_sites(self.model, args, kwargs)
        if not scan_shape(self.model, args, kwargs).num_steps:
            raise ModelError("SMC2: the series is empty: the scan has no step to weigh parameters by.")
        path = path_sites(self.model, args, kwargs, self._initial, "SMC2")
        if not (names := tuple(n for n in latent if n not in path)):
            raise ModelError(
                "SMC2: the model has no parameter to weigh; use ppl_ext.smoothing.smooth for its states, or "
                "ParticleFilter for its evidence."
            )
        return names

    def _started(self, seen: Outside | None, names, rng_key, args, kwargs, num_states: int) -> Run:
        parameters = Parameters(self.model, (args, kwargs), names)
        rules = engine.sized(self.rules, num_states)
        cloud = engine.begin(rng_key, parameters, rules)
        num = parameters.space(jnp.zeros(parameters.size))[0].num_steps
        return Run(cloud, engine.no_notes(cloud, parameters, num))

    def _advanced(self, seen: Outside | None, names, run: Run, args, kwargs, num) -> Run:
        """The run at most ``num`` steps later, or where its filters shall have more states."""
        parameters, last = Parameters(self.model, (args, kwargs), names), len(run.notes.ess)
        end = jnp.minimum(run.cloud.time + num, last)

        def goes_on(run):
            possible = run.cloud.log_evidence.value > -jnp.inf
            return (run.cloud.time < end) & ~run.cloud.wants_more & possible

        def one(run):
            cloud, notes = engine.step(run.cloud, parameters, self.rules)
            at = run.cloud.time
            kept = jax.tree.map(lambda all, x: all.at[at].set(x.astype(all.dtype)), run.notes, notes)
            return Run(cloud._replace(wants_more=cloud.wants_more & (cloud.time < last)), kept)

        return lax.while_loop(goes_on, one, run)

    def _exchanged(self, seen: Outside | None, names, run: Run, args, kwargs, num_states: int) -> Run:
        parameters = Parameters(self.model, (args, kwargs), names)
        cloud = engine.exchange(run.cloud, parameters, self.rules, num_states)
        evidence = run.notes.log_evidence.at[cloud.time - 1].set(cloud.log_evidence.value)
        return Run(cloud, run.notes._replace(log_evidence=evidence))

    def _finished(self, seen: Outside, names, position, args, kwargs) -> dict[str, jax.Array]:
        return jax.vmap(Parameters(self.model, (args, kwargs), names).values)(position)

    def _loaded(self, saver: Saver, steps: "Steps", rng_key) -> tuple[Run, np.ndarray] | None:
        """What was saved, of filters of any size that they may have come to."""
        if self._checkpoint is None:
            return None
        num, failed = self.rules.states.num_particles, None
        while num <= self.rules.max_states:
            try:
                like = self._start(steps.seen, steps.names, rng_key, *steps.data, num)
                return saver.load(like)
            except ArgumentError as error:
                failed, num = failed or error, 2 * num
        raise failed or AssertionError

    def _about(self, steps: "Steps", rng_key, args, kwargs) -> dict[str, Any]:
        if self._checkpoint is None:
            return {}
        parts = {n: x for n, x in self.rules._asdict().items() if n not in ("scheme", "states")}
        return {
            "rng_key": np.asarray(jax.random.key_data(rng_key)).ravel().tolist(),
            "data": digest(split(args, kwargs)[0]),
            "settings": repr(parts),
            **steps.program(),
        }

    def _warn(self, notes: Notes, steps: "Steps") -> None:
        num, cloud = self.rules.num_particles, steps.state.cloud
        if np.isneginf(notes.log_evidence[-1:]).any() or not len(notes.ess):
            values = steps.first_values()
            args, kwargs = steps.data
            refuse_raw("SMC2", lambda: lower(self.model, args, kwargs, values, initial="rest"))
            nan = int(np.asarray(cloud.filters.num_nan).sum())
            more = f" {nan} densities were NaN, which counts as zero." if nan else ""
            place = f"step {len(notes.ess) - 1}" if len(notes.ess) else "what is observed before the scan"
            warnings.warn(
                f"SMC2: no parameter is possible given the data up to {place}: in the filters of all {num} "
                "no state survives, so the evidence is estimated as 0 (log evidence -inf), and the draws are "
                f"none.{more} Look at the data there and the supports of their laws; if they are possible, "
                "use more states, ParticleFilter(1000), or a proposal= that looks at them.",
                stacklevel=4,
            )
        elif self._ran_out(notes):
            low = notes.acceptance[notes.acceptance >= 0].min()
            warnings.warn(
                f"SMC2: with filters of {cloud.num_states} states moves were accepted in {low:.1%} only, and "
                f"max_states={self.rules.max_states} allows no more. Raise max_states, or give the filter a "
                "proposal= that looks at the data.",
                stacklevel=4,
            )

    def _ran_out(self, notes: Notes) -> bool:
        if not len(notes.ess):
            return False
        rules, last = self.rules, int(notes.num_states[-1])
        few = (notes.acceptance >= 0) & (notes.acceptance < rules.min_acceptance)
        return rules.min_acceptance < 1 and not rules.more(last) and bool(few[notes.num_states == last].any())


def _shown(found: np.ndarray) -> str:
    return f"log evidence {found[0, -1]:.4g}, {int(found[1, -1])} states"


class Steps:
    """The steps of one run (:class:`ppl_ext.runtime.training.Steps`)."""

    def __init__(self, smc2: SMC2, seen: Outside, names: tuple[str, ...], data: tuple, state: Any = None):
        self.smc2, self.seen, self.names, self.data, self.state = smc2, seen, names, data, state

    @property
    def num(self) -> int:
        return len(self.state.notes.ess)

    def some(self, num: int | None = None) -> np.ndarray | None:
        """By step, the log evidence and the states of a filter: (2, steps).

        :param num: steps at most; by default one if somebody looks at them, else all."""
        smc2, before = self.smc2, int(self.state.cloud.time)
        if before == self.num or not float(self.state.cloud.log_evidence.value) > -np.inf:
            return None
        if bool(self.state.cloud.wants_more):
            more = 2 * self.state.cloud.num_states
            self.state = smc2._exchange(self.seen, self.names, self.state, *self.data, more)
        looked_at = smc2._progress_bar or smc2._checkpoint is not None
        num = (1 if looked_at else self.num) if num is None else num
        self.state = smc2._advance(self.seen, self.names, self.state, *self.data, jnp.int32(num))
        notes, new = self.state.notes, slice(before, int(self.state.cloud.time))
        return np.stack(
            [np.asarray(x)[new].astype(np.float32) for x in (notes.log_evidence, notes.num_states)]
        )

    def first_values(self) -> dict[str, jax.Array]:
        """The first parameter's values."""
        position = self.state.cloud.position[:1]
        values = self.smc2._finish(self.seen, self.names, position, *self.data)
        return {n: x[0] for n, x in values.items()}

    def program(self) -> dict[str, str]:
        """What a step computes, for a checkpoint."""
        args, kwargs = self.smc2._advance.arguments(self.seen, *self.data)

        def one(run):
            return self.smc2._advanced(self.seen, self.names, run, args, kwargs, 1)

        return program_of(one, self.state)
