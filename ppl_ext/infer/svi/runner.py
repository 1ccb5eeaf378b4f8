"""``SVI`` for one model, guide, objective and optimiser, compiled once: how its chains start, and many of
their steps in one launch.
"""

import copy
import warnings
from collections import OrderedDict
from functools import partial, reduce
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax, random
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.expectations.run import NotStartedError
from ppl_ext.infer.svi.checks import check_set_up, densities_by_site
from ppl_ext.infer.svi.set_up import Before, Kept, Sound, in_order, is_young, keep_tracers, of_the_user
from ppl_ext.infer.svi.supports import moving_supports, told_of_moving_support
from ppl_ext.runtime import checkpoint
from ppl_ext.runtime.constants import join, split
from ppl_ext.runtime.explain import discrete_site, explained
from ppl_ext.runtime.one_off import plain_options
from ppl_ext.runtime.outside import Outside
from ppl_ext.tracing.inner_jits import past_inner_jits

AT_ONCE = 4000  # steps in one launch, at most: the length of the buffer of their losses


class _ReplayDraws(Messenger):
    """Keep the draws alone of a trace that is replayed in a ``scan``.

    NumPyro looks there at the shape of every site of the trace, and the params of a flow are no arrays.
    """

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            stack = msg["kwargs"]["substitute_stack"]
            stack[:] = [(kind, _draws(sites) if kind == "replay" else sites) for kind, sites in stack]


def _draws(record):
    return {name: site for name, site in record.items() if site["type"] in ("sample", "plate")}


class Runner:
    """SVI for one (model, guide, objective, optimiser), compiled once per shape of the data."""

    def __init__(self, model, guide, objective, optim):
        if isinstance(optim, optax.GradientTransformationExtraArgs):
            optim = import_module("ppl_ext.infer.svi.line_searches").WithLoss(optim)
        self.svi = SVI(model, guide, optim, loss=objective)
        self.guide = guide
        self.unset = _unset(guide)
        # sites whose support the guide does not follow, once it is known
        self.moving: dict[str, list[str]] | None = None
        self.many = bool(getattr(objective, "options", vars(objective)).get("multi_sample_guide"))
        self.carries = False  # until a step asks for what the objective carries
        self.freely, self.carefully = (
            jax.jit(partial(self._steps, how), static_argnums=2) for how in ("freely", "carefully")
        )
        self.stably = jax.jit(partial(self._steps, "stably"), static_argnums=2)
        self.by_site = jax.jit(self._by_site, static_argnums=1)
        self.start = jax.jit(self._start, static_argnums=1, compiler_options=plain_options())
        self.at_once = is_young()  # whether a run is set up by one program, until it cannot be
        self.kept: Kept | None = None  # what the last trace of a set-up left

    def init(self, rng_key, num_chains: int, init_params, args, kwargs, stable: bool = False):
        """One initial state per chain, stacked."""
        keys = random.split(rng_key, num_chains)
        states = self._at_once(keys, init_params, args, kwargs) if self.at_once else None
        if states is None:
            states = self._number_by_number(keys, init_params, args, kwargs)
        self._check_init_params(init_params)
        self._check_supports(args, kwargs, stable)
        return states

    def _at_once(self, keys, init_params, args, kwargs):
        """The states by one program; ``None`` where that cannot be, or where something is not as it must be:
        NumPyro finds out what on numbers.
        """
        data, constants = split((init_params, *args), kwargs)
        self.kept, before = None, Before(self.svi.model, self.guide)
        try:
            states, sound, values = zip(*[self.start(data, constants, key) for key in keys], strict=True)
            if all(sound):
                if self.kept is not None:
                    self.kept.set(self.svi, values[0], (data, keys[0]))
                    self.kept = None
                return jax.tree.map(lambda *x: jnp.concatenate(x), *states) if len(keys) > 1 else states[0]
        except Exception:  # told number by number, in words of NumPyro's or ours
            pass
        self.at_once = False
        before.put_back()
        return None

    def _start(self, data, constants, key):
        """One state, whether all that was met is sound, and the values of what was kept."""
        (init_params, *args), kwargs = join(data, constants)
        again = _is_set_up(self.guide)
        with (sound := Sound()):
            state = self._begun(self.svi, key, init_params, args, kwargs)
        self.kept = Kept(self.svi, (data, key))
        theirs = [self.guide] if not isinstance(self.guide, AutoGuide) else of_the_user(self.guide)
        if not in_order(self.guide) or keep_tracers(self.svi.model, *theirs):
            raise NotImplementedError("a set-up by one program")
        if again:
            state = self._restart(key, init_params, args, kwargs)
        return jax.tree.map(lambda x: x[None], state), jnp.array(sound.held).all(), self.kept.traced

    def _number_by_number(self, keys, init_params, args, kwargs):
        # A guide that an earlier fit set up would start its first chain where that one did.
        again = _is_set_up(self.guide)
        try:
            first = self._begun(self.svi, keys[0], init_params, args, kwargs)
        except Exception as error:
            if init_params:
                self._check_init_shapes(keys[0], init_params, args, kwargs)
            if discrete_site(error) is None:
                check_set_up(self.svi.model, self.guide, keys[0], args, kwargs)
            with explained(self.guide, lambda: "to be set up"):
                raise
        if again:
            first = self._restart(keys[0], init_params, args, kwargs)
        others = [self._restart(key, init_params, args, kwargs) for key in keys[1:]]
        return jax.tree.map(lambda *x: jnp.stack(x), first, *others)

    def carrying(self, states, data, constants):
        """The states, with what the objective itself carries from step to step.

        Most objectives carry nothing. So nothing is looked for until a step fails for want of it.
        """
        if not self.carries:
            return states

        def start(state, data):
            args, kwargs = join(data, constants)
            params = self.svi.get_params(state) | (state.mutable_state or {})
            key = random.fold_in(state.rng_key, 0)
            started = self.svi.loss.initial_state(key, params, self.svi.model, self.guide, *args, **kwargs)
            return jax.tree.map(jnp.asarray, started)

        started = jax.jit(jax.vmap(start, in_axes=(0, None)))(states, data)
        return states._replace(mutable_state={**started, **(states.mutable_state or {})} or None)

    def _restart(self, key, init_params, args, kwargs):
        return self._begun(self._fresh_svi(), key, init_params, args, kwargs)

    def _begun(self, svi: SVI, key, init_params, args, kwargs):
        def start():
            with _ReplayDraws():
                return svi.init(key, *args, init_params=init_params, **kwargs)

        return past_inner_jits(start, checked=False)

    def _fresh_svi(self) -> SVI:
        """An autoguide draws its initial location when it is set up, once; each restart sets up a copy."""
        return SVI(self.svi.model, _unset(self.unset), self.svi.optim, loss=self.svi.loss)

    def _check_supports(self, args, kwargs, stable: bool) -> None:
        """Refuse, or warn of, supports that an automatic guide does not follow.

        :raises ModelError: for an automatic guide of sites whose support it does not follow; where steps may
            fail, a warning.
        """
        if self.moving is None:
            self.moving = (
                moving_supports(self.guide, args, kwargs) if isinstance(self.guide, AutoGuide) else {}
            )
        if self.moving:
            told = f"fit: before the first step, {told_of_moving_support(self.guide, self.moving)}"
            if not stable:
                raise ModelError(told)
            warnings.warn(told, stacklevel=4)

    def _check_init_params(self, init_params) -> None:
        known = self.svi.constrain_fn.args[0]
        unknown = sorted(set(init_params or {}) - set(known))
        if unknown:
            raise ArgumentError(
                f"init_params names {unknown}, which are no param sites. There are: {sorted(known)}."
            )

    def _check_init_shapes(self, rng_key, init_params, args, kwargs) -> None:
        """If the run can be set up without them, initial values of the wrong shape are the cause."""
        try:
            default = self.svi.get_params(self.svi.init(rng_key, *args, **kwargs))
        except Exception:
            return
        for name, value in init_params.items():
            if name in default and jax.tree.map(jnp.shape, value) != (
                expected := jax.tree.map(jnp.shape, default[name])
            ):
                raise ArgumentError(
                    f"fit: init_params gives '{name}' shape {jnp.shape(value)}, but the param has {expected}."
                ) from None

    def params(self, states) -> dict[str, Any]:
        """Constrained values by ``param`` site, and those of ``numpyro.mutable`` sites: neither model nor
        guide runs without them.
        """
        return jax.vmap(self.svi.get_params)(states) | (states.mutable_state or {})

    def described(self, states, data, constants) -> dict[str, str]:
        """Which program a run is of, for a checkpoint: that of the loss, with all numbers that it holds."""

        def loss(state, data):
            args, kwargs = join(data, constants)
            return self.svi.evaluate(state, *args, **kwargs)

        return checkpoint.program(loss, jax.tree.map(lambda x: x[0], states), data)

    def traced(self, states, data, constants):
        """Whether a step can be traced for these data, at the cost of tracing it."""
        return self.begun(states, lambda s: self.freely.eval_shape(s, data, constants, 0), data, constants)

    def begun(self, states, run, data, constants):
        """``run(states)``, which has steps taken, with what the objective carries if it carries anything."""
        try:
            return run(self.carrying(states, data, constants))
        except NotStartedError:
            if self.carries:
                raise
            self.carries = True
            return run(self.carrying(states, data, constants))

    def _by_site(self, data, constants, keys, params):
        args, kwargs = join(data, constants)
        return jax.vmap(
            partial(densities_by_site, self.svi.model, self.guide, args, kwargs), in_axes=(0, None)
        )(keys, params)

    def _steps(self, how: str, states, data, constants, num: jax.Array):
        """``num`` steps of every chain: (states, losses in a buffer of ``AT_ONCE``, which chains are still
        alive).

        A check of each step would cost as much as a small model's step itself. So steps go ``freely``,
        without any, and if numbers broke down in them, they are taken again ``carefully``, to end where the
        last good state was. Taken ``stably``, a step that is not finite is left out, its loss is NaN, and the
        run goes on.
        """
        args, kwargs = join(data, constants)

        def free(i, carry):
            state, losses = carry
            state, loss = self.svi.update(state, *args, **kwargs)
            return state, losses.at[i].set(loss)

        def careful(i, carry):
            state, losses, alive = carry
            new, loss = self.svi.update(state, *args, **kwargs)
            finite = alive & jnp.isfinite(loss) & self._finite(new)
            # The last good state is kept, its key included, so that what broke can be looked at again.
            state = jax.tree.map(partial(_select, finite), new, state)
            return state, losses.at[i].set(jnp.where(finite, loss, jnp.nan)), finite

        def stable(i, carry):
            state, losses = carry
            new, loss = self.svi.stable_update(state, *args, **kwargs)
            if state.mutable_state is not None:
                kept = jax.tree.map(
                    partial(_select, jnp.isfinite(loss)), new.mutable_state, state.mutable_state
                )
                new = new._replace(mutable_state=kept)
            return new, losses.at[i].set(loss)

        def chain(state):
            start = (state, jnp.zeros(AT_ONCE))
            if how == "stably":
                return *lax.fori_loop(0, num, stable, start), self._finite(state)
            if how == "carefully":
                return lax.fori_loop(0, num, careful, (*start, jnp.array(True)))
            state, losses = lax.fori_loop(0, num, free, start)
            return state, losses, jnp.isfinite(losses).all() & self._finite(state)

        if jax.tree.leaves(states)[0].shape[0] > 1:
            return jax.vmap(chain)(states)
        # an axis of one would slow products down
        return jax.tree.map(lambda x: x[None], chain(jax.tree.map(lambda x: x[0], states)))

    def _finite(self, state) -> jax.Array:
        leaves = jax.tree.leaves(self.svi.optim.get_params(state.optim_state))
        return reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in leaves], jnp.array(True))


def _is_set_up(guide) -> bool:
    return isinstance(guide, AutoGuide) and guide.prototype_trace is not None


def _unset(guide):
    """A copy of an autoguide as it was before it was set up; any other guide itself.

    Kept from before the first run: a guide that was set up holds arrays, and to copy these compiles.
    """
    if not isinstance(guide, AutoGuide):
        return guide
    guide = copy.copy(guide)
    guide.prototype_trace = None
    return copy.deepcopy(guide)


def _select(keep, new, old):
    return jnp.where(keep, new, old)


KEPT = 16  # runners, at most
_runners: "OrderedDict[Outside, Runner]" = OrderedDict()


def runner_for(outside: Outside, model, guide, objective, optim) -> Runner:
    """The runner of these four, the same one for as long as what they read from outside is the same.

    :param outside: of :func:`ppl_ext.runtime.outside.reading` the four.
    """
    runner = _runners.get(outside)
    if runner is None:
        runner = _runners[outside] = Runner(model, guide, objective, optim)
        if len(_runners) > KEPT:
            _runners.popitem(last=False)
    _runners.move_to_end(outside)
    return runner
