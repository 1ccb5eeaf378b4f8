"""What smoothing asks of a state-space model: particles to move and to weigh, and the density of one state
after another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.backward import BackwardKernel, Pairs
from ppl_ext.smoothing.backward.kernel import rows


class Particles(NamedTuple):
    """States of a step, every leaf (N, ...): ``carry`` is what the next step sees of them, ``sites`` what was
    sampled.
    """

    carry: Any
    sites: Any


class Space(Protocol):
    """A model with its parameters and a proposal. ``inputs`` are what a step is given from outside, its
    observations among them.
    """

    def initial(self, rng_key: jax.Array, num: int) -> Particles:
        """Draw the states before the first step."""

    def weigh_initial(self, particles: Particles) -> jax.Array:
        """Log weights (N,) of those states: model over proposal."""

    def move(self, rng_key: jax.Array, carry: Any, inputs: Any) -> Particles:
        """Draw each particle's next state."""

    def weigh(self, carry: Any, particles: Particles, inputs: Any) -> jax.Array:
        """Log incremental weights (N,): transition times emission over proposal, at ``particles`` that came
        from ``carry``.
        """

    def log_pair(
        self, carry: Any, particles: Particles, inputs: Any
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """``(j, i)`` to log m(carry_j, particle_i), with the emission where that depends on the carry."""

    def log_bound(self, carry: Any, inputs: Any) -> jax.Array | None:
        """A number that ``log_pair`` never exceeds from these carries; None where none is known."""


class Functional(NamedTuple):
    """Terms of an additive functional, of one pair of states: ``step(inputs, carry, particle)``, and
    ``initial(particle)`` of the state before the first step. None instead of ``initial`` or of a subtree of
    what it returns stands for zeros."""

    initial: Callable[[Particles], Any] | None
    step: Callable[[Any, Any, Particles], Any]


def first_values(functional: Functional | None, space: Space, particles: Particles, inputs: Any) -> Any:
    """Values of the functional at the particles before the first step, leaves (N, ...).

    :param inputs: of all steps, for their shapes; there may be none.
    """
    if functional is None:
        return None
    num = len(jax.tree.leaves(particles)[0])
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), inputs)
    moved = jax.eval_shape(space.move, jax.random.key(0), particles.carry, x)
    shapes = jax.eval_shape(jax.vmap(functional.step, (None, 0, 0)), x, particles.carry, moved)
    values = None if functional.initial is None else jax.vmap(functional.initial)(particles)

    def filled(value, shape):
        return (
            jax.tree.map(lambda s: jnp.zeros((num, *s.shape[1:]), s.dtype), shape) if value is None else value
        )

    return jax.tree.map(filled, values, shapes, is_leaf=lambda x: x is None)


def terms(
    step: Callable, inputs: Any, carry: Any, particles: Particles
) -> Callable[[jax.Array, jax.Array], Any]:
    """A functional's step for pairs: ``(j, i)`` to leaves that begin with the shape of the two index
    arrays.
    """

    def increment(j, i):
        earlier, later = rows(carry, j.ravel()), rows(particles, i.ravel())
        values = jax.vmap(lambda before, after: step(inputs, before, after))(earlier, later)
        return jax.tree.map(lambda x: x.reshape(j.shape + x.shape[1:]), values)

    return increment


def pairs_of(
    space: Space,
    kernel: BackwardKernel,
    carry: Any,
    particles: Particles,
    inputs: Any,
    log_weights: jax.Array,
    ancestors: jax.Array,
) -> Pairs:
    """Two neighbouring clouds for a backward kernel, with the bound if it reads one."""
    bound = space.log_bound(carry, inputs) if kernel.needs_bound else None
    return Pairs(log_weights, ancestors, space.log_pair(carry, particles, inputs), bound)
