"""NumPyro's MCMC kernels as moves of particles."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.infer import HMC, NUTS, SA
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.sa import SAAdaptState

from ppl_ext.algorithms.tempered.moves import Fitted, Moves, Tally, as_array, normal_fit
from ppl_ext.algorithms.tempered.points import Path, Points, points_at, shares_of_parts, weighed
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_array, check_count, check_positive, described

_TARGETS = {NUTS: 0.8, HMC: 0.8}
_OURS = {"potential_fn", "model", "step_size", "inverse_mass_matrix", "adapt_step_size", "adapt_mass_matrix"}


class NumPyroMoves(Moves):
    r"""Steps of NumPyro's ``NUTS``, ``HMC`` or ``SA`` on the density at each temperature.

    Their own adaptation is off. The inverse mass matrix is the particles' variances, and the step size
    follows the acceptance from temperature to temperature, towards 0.8; both can be fixed. ``NUTS`` and
    ``HMC`` move each particle by itself and are reversible. ``SA`` proposes from several points, and so moves
    particles in groups: that leaves the density unchanged too, but evidence with it is consistent and not
    unbiased, so that it is for :class:`ppl_ext.infer.SMC` alone.

    :param kernel: the class ``NUTS``, ``HMC`` or ``SA``.
    :param num_steps: steps of the kernel at each temperature; with ``SA`` as often as there are particles in
        a group.
    :param step_size: by default it is fitted.
    :param inverse_mass: (D,), fixed; by default it is fitted.
    :param options: what else the kernel takes, such as ``{"max_tree_depth": 5}`` or ``{"num_steps": 10}`` of
        leapfrog for ``HMC``, ``{"adapt_state_size": 8}`` for ``SA``, the particles in a group.
    :raises ArgumentTypeError: if the kernel is no such class.
    :raises ArgumentError: if an option is one that is set here.

    Source: Buchholz, Chopin, Jacob 2021, section 3, for step sizes and mass matrices from particles.

    >>> from numpyro.infer import HMC
    >>> NumPyroMoves(HMC, num_steps=2, options={"num_steps": 5}).is_fixed
    False
    """

    kernel: type = eqx.field(static=True, default=NUTS)
    num_steps: int = eqx.field(static=True, default=1)
    step_size: float | None = None
    inverse_mass: Any = eqx.field(default=None, converter=as_array)
    options: Mapping[str, Any] = eqx.field(static=True, default_factory=dict)

    def __check_init__(self):
        if not isinstance(self.kernel, type) or self.kernel not in (NUTS, HMC, SA):
            raise ArgumentTypeError(
                "NumPyroMoves: kernel must be one of NumPyro's classes NUTS, HMC or SA (the class, not an "
                f"instance: its density changes with the temperature), got {described(self.kernel)}."
            )
        check_count("NumPyroMoves: num_steps", self.num_steps)
        if self.step_size is not None and not isinstance(self.step_size, jax.Array):
            check_positive("NumPyroMoves: step_size", self.step_size)
        if self.inverse_mass is not None:
            check_array("NumPyroMoves: inverse_mass", self.inverse_mass)
        if taken := sorted(_OURS & set(self.options)):
            raise ArgumentError(
                f"NumPyroMoves: options must not hold '{taken[0]}': the density is that of the temperature, "
                "and step_size= and inverse_mass= fix what would be fitted to the particles."
            )

    @property
    def alone(self) -> bool:  # type: ignore[override]  # a field of other moves, here as the kernel is
        return self.kernel is not SA

    @property
    def is_fixed(self) -> bool:
        return self.step_size is not None and self.inverse_mass is not None

    def begin(self, size: int) -> Fitted:
        step = 0.5 / max(size, 1) ** 0.25 if self.step_size is None else self.step_size
        factor = jnp.ones(size)
        if self.inverse_mass is not None:
            if jnp.shape(self.inverse_mass) != (size,):
                raise ArgumentError(
                    f"NumPyroMoves: inverse_mass has shape {jnp.shape(self.inverse_mass)}, and the "
                    f"unconstrained positions have {size} elements."
                )
            factor = jnp.sqrt(jnp.asarray(self.inverse_mass, float))
        return Fitted(jnp.zeros(size), factor, jnp.log(step))

    def fit(self, points: Points, shares: jax.Array, last: Fitted, acceptance: jax.Array) -> Fitted:
        mean, factor = normal_fit(points.position, shares, dense=False)
        size = last.size
        if self.step_size is None and self.kernel in _TARGETS:
            size = size + jnp.where(jnp.isnan(acceptance), 0.0, acceptance - _TARGETS[self.kernel])
        return Fitted(mean, last.factor if self.inverse_mass is not None else factor, size)

    def run(self, key, path: Path, tau, points: Points, fitted: Fitted, keep: bool):
        def potential(u):
            base, parts = path.density(u)
            energy = -(base + weighed(parts, shares_of_parts(path, tau)))
            return jnp.where(jnp.isnan(energy), jnp.inf, energy)

        if self.kernel is SA:
            if keep:
                raise ArgumentError(
                    "NumPyroMoves: SA moves particles in groups, and takes no waste_free=True."
                )
            position, acceptance = self._by_groups(key, potential, points.position)
        else:
            position, acceptance = self._one_by_one(key, potential, points.position, fitted)
            position = jnp.moveaxis(position, 1, 0) if keep else position[:, -1]
        if not keep:
            moved, num_nan = points_at(path, position)
            return moved, Tally(acceptance, num_nan)
        moved, num_nan = jax.vmap(lambda u: points_at(path, u))(position)
        return moved, Tally(acceptance, num_nan.sum(dtype=jnp.int32))

    def _kernel(self, potential, fitted: Fitted) -> MCMCKernel:
        return self.kernel(
            potential_fn=potential,
            step_size=jnp.exp(fitted.size),
            inverse_mass_matrix=jnp.square(fitted.factor),
            adapt_step_size=False,
            adapt_mass_matrix=False,
            **self.options,
        )

    def _one_by_one(self, key, potential, position: jax.Array, fitted: Fitted):
        def one(key, u):
            kernel = self._kernel(potential, fitted)
            state = kernel.init(key, 0, u, (), {})

            def step(state, _):
                state = kernel.sample(state, (), {})
                return state, (state.z, state.accept_prob)

            return lax.scan(step, state, None, length=self.num_steps)[1]

        places, acceptance = jax.vmap(one)(random.split(key, len(position)), position)
        return places, jnp.nan_to_num(acceptance).mean()

    def _by_groups(self, key, potential, position: jax.Array):
        num, size = position.shape
        members = self.options.get("adapt_state_size", max(d for d in range(1, 2 * size + 1) if num % d == 0))
        if members < 2 or num % members:
            raise ArgumentError(
                f"NumPyroMoves: {num} particles do not divide into groups of {max(members, 2)} for SA. Set "
                "options={'adapt_state_size': ...} to a divisor of at least 2."
            )
        options = {**self.options, "adapt_state_size": members}

        def one(key, points):
            kernel = SA(potential_fn=potential, **options)
            state = kernel.init(key, 0, points[0], (), {})
            scale = jnp.std(points, 0)
            if options.get("dense_mass"):
                scale = jnp.diag(scale)
            own = SAAdaptState(points, jax.vmap(potential)(points), points.mean(0), scale)
            state = state._replace(z=points[0], potential_energy=own.pes[0], adapt_state=own)

            def step(state, _):
                state = kernel.sample(state, (), {})
                return state, state.accept_prob

            state, acceptance = lax.scan(step, state, None, length=self.num_steps * members)
            return state.adapt_state.zs, acceptance.mean()

        # Offspring of one ancestor stand side by side: members of a group are taken from far apart.
        groups = jnp.swapaxes(position.reshape(members, num // members, size), 0, 1)
        moved, acceptance = jax.vmap(one)(random.split(key, num // members), groups)
        return jnp.swapaxes(moved, 0, 1).reshape(num, size), acceptance.mean()
