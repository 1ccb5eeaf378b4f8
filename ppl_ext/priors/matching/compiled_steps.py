"""What a match compiles: its steps and its report, kept so that another match of the same kind compiles
nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from numpyro.optim import _NumPyroOptim, optax_to_numpyro

from ppl_ext.priors.matching.problem import Matching
from ppl_ext.priors.matching.report import measure
from ppl_ext.runtime.constants import Same
from ppl_ext.runtime.training import CHUNK, chunk_of


class Programs:
    """The compiled parts of matches that differ in nothing but their keys and the numbers of their inputs."""

    def __init__(self, matching: Matching, optimiser: _NumPyroOptim):
        self.matching, self.optimiser = matching, optimiser
        self.other = eqx.partition(matching.sampler, eqx.is_array)[1]
        self._jitted = jax.jit(self._steps, donate_argnums=1)
        # Run once a match, it is not worth optimising: that would take longer than the steps of a small
        # network.
        self.measured = jax.jit(
            partial(measure, matching), compiler_options={"xla_backend_optimization_level": 0}
        )

    def steps(
        self, sampler: Callable, carry: Any, rng_key: jax.Array, start: int, num: int
    ) -> tuple[Any, jax.Array]:
        """``num`` steps from the one of number ``start``: what they leave, and their losses in a buffer of
        :data:`ppl_ext.runtime.training.CHUNK`.
        """
        return self._jitted(eqx.partition(sampler, eqx.is_array)[0], carry, rng_key, start, num)

    def _steps(self, arrays: Any, carry: Any, rng_key: jax.Array, start: jax.Array, num: jax.Array):
        matching, optimiser = copy.copy(self.matching), self.optimiser
        matching.sampler = eqx.combine(arrays, self.other)

        def step(i, carry):
            (optim_state, state, alive), losses = carry
            of_inputs, of_state, of_loss = matching.step_keys(random.fold_in(rng_key, start + i))
            inputs = matching.sampler(of_inputs)
            raw = optimiser.get_params(optim_state)
            new_state = matching.prepare(raw, of_state, state, inputs)
            loss, slopes = jax.value_and_grad(matching.loss)(raw, of_loss, new_state, inputs)
            new = optimiser.update(slopes, optim_state, value=loss)
            finite = alive & jnp.isfinite(loss)
            for x in jax.tree.leaves((slopes, optimiser.get_params(new))):
                finite &= jnp.isfinite(x).all()
            # A step that broke down leaves everything as it was, and so do those after it.
            kept = jax.tree.map(partial(jnp.where, finite), (new, new_state), (optim_state, state))
            return (*kept, finite), losses.at[i].set(jnp.where(finite, loss, jnp.nan))

        return lax.fori_loop(0, num, step, (carry, jnp.zeros(CHUNK)))


class Steps:
    """The steps of one match (:class:`ppl_ext.runtime.training.Steps`)."""

    def __init__(self, programs: Programs, sampler: Callable, state: Any, rng_key: jax.Array, num_steps: int):
        self.programs, self.sampler, self.rng_key, self.num_steps = programs, sampler, rng_key, num_steps
        self.state, _ = jax.block_until_ready(programs.steps(sampler, state, rng_key, 0, 0))  # compiles
        self.done = 0

    def some(self) -> np.ndarray | None:
        if (num := min(chunk_of(self.num_steps), self.num_steps - self.done)) <= 0:
            return None
        self.state, losses = self.programs.steps(self.sampler, self.state, self.rng_key, self.done, num)
        self.done += num
        return np.asarray(losses)[:num]


@dataclass(frozen=True)
class _Kind:
    """What two matches have in common that may share their programs."""

    key: tuple
    build: Callable[[], Programs] = field(compare=False)


@lru_cache(maxsize=16)
def _kept(kind: _Kind) -> Programs:
    return kind.build()


def programs_for(matching: Matching, optim: Any, num_steps: int) -> Programs:
    """The programs of an earlier match with the same lifted model, target (the same objects) and settings, or
    new ones.

    What the model, the target and the others read from outside of their arguments is the same, too
    (``matching.outside``). A target that is no equinox module may have changed meanwhile, and so may further
    arguments: then nothing is shared.
    """

    def build() -> Programs:
        return Programs(matching, _optimiser(optim, num_steps))

    if matching.args or matching.kwargs or not isinstance(matching.target, eqx.Module):
        return build()
    leaves, structure = jax.tree.flatten(eqx.partition(matching.sampler, eqx.is_array)[1])
    key = (
        matching.outside,
        Same(matching.lifted),
        tuple((pattern, tuple(units)) for pattern, _, units in matching.layout.rules),
        matching.output,
        (structure, tuple(leaves)),
        Same(matching.target),
        matching.distance,
        (matching.num_draws, matching.shape, matching.readout),
        num_steps if optim is None else optim,
    )
    try:
        return _kept(_Kind(key, build))
    except TypeError:  # something in it cannot be hashed: it works, without the cache
        return build()


def _optimiser(optim: Any, num_steps: int) -> _NumPyroOptim:
    if isinstance(optim, _NumPyroOptim):
        return optim
    chosen = optax.adam(optax.cosine_decay_schedule(0.05, num_steps)) if optim is None else optim
    return optax_to_numpyro(chosen)
