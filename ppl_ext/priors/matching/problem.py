"""One problem of matching: draws of a lifted model's functions and of the target's, the distance between
them, and what broke.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from ppl_ext.errors import ArgumentError, NonFiniteError
from ppl_ext.priors.distances.distance import Distance, Functions
from ppl_ext.priors.functions.outputs import Output, as_function, draw_function, read, run_once
from ppl_ext.priors.lifting import Layout, Lifted, Raw
from ppl_ext.priors.matching.readout import find_readout, functions_with_moments
from ppl_ext.priors.targets.target import Target
from ppl_ext.runtime.arguments import described
from ppl_ext.runtime.outside import Outside


class Matching:
    """One problem of matching: draws of both laws at measurement sets, and the distance between them."""

    def __init__(
        self,
        lifted: Lifted,
        layout: Layout,
        output: Output,
        sampler: Callable[[jax.Array], jax.Array],
        target: Target,
        distance: Distance,
        num_draws: int,
        args: tuple,
        kwargs: dict[str, Any],
    ):
        self.lifted, self.layout, self.output, self.sampler = lifted, layout, output, sampler
        self.target, self.distance, self.num_draws = target, distance, num_draws
        self.args, self.kwargs = args, kwargs
        self.shape: tuple[int, ...] = ()
        self.readout: tuple[str, ...] = ()  # sites that a distance of moments can integrate out
        # what all of these read from outside of their arguments, once it has been matched
        self.outside: Outside | None = None

    def read(self) -> tuple:
        """The programs and values whose outside counts."""
        return self.lifted, self.output, self.target, self.distance

    def unchanged(self, where: str) -> None:
        """Refuse to go on with other data than were matched.

        :raises ModelError: if data that model or target read from outside have changed since they were
            matched.
        """
        if self.outside is not None:
            self.outside.check(where, *self.read())

    @property
    def num_values(self) -> int:
        return int(np.prod(self.shape))

    def check(self, rng_key: jax.Array) -> None:
        """Shapes of both laws, without computing anything; then one set of target draws, which must be
        finite.
        """
        inputs = self.sampler(rng_key)
        function = partial(
            draw_function,
            self.lifted.at(self.layout, self.layout.init()),
            self.output,
            args=self.args,
            kwargs=self.kwargs,
        )
        self.shape = jax.eval_shape(function, rng_key, inputs).shape
        if self.distance.wants_moments:
            self.readout = find_readout(
                function.args[0], self.output, rng_key, inputs, self.args, self.kwargs
            )
        drawn = self.target.sample(rng_key, inputs, 2)
        shape = getattr(drawn, "shape", None)
        if shape is None or tuple(shape) not in ((2, *self.shape), (2, *self.shape, 1)):
            hint = " A Gaussian target for P outputs takes num_outputs=P." if len(self.shape) == 2 else ""
            raise ArgumentError(
                f"match: target.sample must return shape {(2, *self.shape)} for 2 draws, as the model's "
                f"functions are {self.shape}; got {described(drawn)}.{hint}"
            )
        if not np.isfinite(np.asarray(drawn)).all():
            raise NonFiniteError(
                "match: before the first step, draws of the target are not finite. Look at its kernel and "
                "mean at the inputs."
            )

    def network_functions(self, raw: Raw, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        """(num_draws, M) or (num_draws, M, P)."""
        program = self.lifted.at(self.layout, raw)
        function = partial(
            draw_function, program, self.output, inputs=inputs, args=self.args, kwargs=self.kwargs
        )
        return jax.vmap(lambda key: function(rng_key=key))(random.split(rng_key, num_draws))

    def target_functions(self, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        return self.target.sample(rng_key, inputs, num_draws).reshape(num_draws, *self.shape)

    def network(self, raw: Raw, rng_key: jax.Array, inputs: jax.Array) -> Functions:
        if self.readout:
            program, keys = self.lifted.at(self.layout, raw), random.split(rng_key, self.num_draws)
            return functions_with_moments(
                program, self.readout, self.output, keys, inputs, self.args, self.kwargs
            )
        values = self.network_functions(raw, rng_key, inputs, self.num_draws)
        return Functions(values.reshape(self.num_draws, -1))

    def of_target(self, rng_key: jax.Array, inputs: jax.Array) -> Functions:
        values = self.target_functions(rng_key, inputs, self.num_draws).reshape(self.num_draws, -1)
        if not self.distance.wants_moments:
            return Functions(values)
        mean, cov = (getattr(self.target, name, None) for name in ("mean", "cov"))
        mean, cov = (None if fn is None else fn(inputs) for fn in (mean, cov))
        return Functions(values, None if mean is None else mean.reshape(-1), cov)

    def loss(self, raw: Raw, keys: jax.Array, state: Any, inputs: jax.Array) -> jax.Array:
        network = self.network(raw, keys[0], inputs)
        return self.distance(keys[2], state, network, self.of_target(keys[1], inputs))

    def prepare(self, raw: Raw, rng_key: jax.Array, state: Any, inputs: jax.Array) -> Any:
        def draw(key):
            of_network, of_target = random.split(key)
            return lax.stop_gradient(
                (self.network(raw, of_network, inputs), self.of_target(of_target, inputs))
            )

        return self.distance.prepare(rng_key, state, draw)

    def one_step(self, raw: Raw, rng_key: jax.Array, state: Any, inputs: jax.Array) -> jax.Array:
        """The distance at one measurement set: what a match computes again and again."""
        _, of_state, of_loss = self.step_keys(rng_key)
        return self.loss(raw, of_loss, self.prepare(raw, of_state, state, inputs), inputs)

    def step_keys(self, rng_key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        of_inputs, of_state, *of_loss = random.split(rng_key, 5)
        return of_inputs, of_state, jnp.stack(of_loss)

    def what_broke(self, raw: Raw, rng_key: jax.Array, state: Any) -> str:
        """Run the step again, site by site, and say where the first number that is not finite stands."""
        of_inputs, of_state, of_loss = self.step_keys(rng_key)
        inputs = self.sampler(of_inputs)
        program = self.lifted.at(self.layout, raw)

        def values(key):
            sites, returned = run_once(program, key, inputs, self.args, self.kwargs)
            out = {
                f"site '{n}'": s["value"]
                for n, s in sites.items()
                if s["type"] in ("sample", "deterministic")
            }
            return out | {
                "the model's output": as_function(
                    read(sites, returned, self.output), inputs.shape[0], self.output
                )
            }

        for name, value in _ordered(values, random.split(of_loss[0], self.num_draws)):
            bad = ~np.isfinite(np.asarray(value, np.float64)).reshape(self.num_draws, -1).all(1)
            if bad.any():
                return f"{name} was not finite in {bad.sum()} of {self.num_draws} draws of the model."
        if not np.isfinite(np.asarray(self.target_functions(of_loss[1], inputs, self.num_draws))).all():
            return "draws of the target were not finite."
        state = self.prepare(raw, of_state, state, inputs)
        value, slopes = jax.value_and_grad(self.loss)(raw, of_loss, state, inputs)
        for pattern, units in slopes.items():
            for unit, params in units.items():
                for name, slope in params.items():
                    if np.isfinite(value) and not np.isfinite(np.asarray(slope)).all():
                        return f"the gradient by '{name}' of '{unit}' (pattern '{pattern}') was not finite."
        if np.isfinite(value):
            return "the optimiser made a hyperparameter that is not finite. A smaller step may help."
        return f"the distance was {float(value)}. A smaller step of the optimiser or more draws may help."


def _ordered(values: Callable, keys: jax.Array) -> list[tuple[str, Any]]:
    """The values of a vmapped function in the order in which it made them: JAX sorts dicts."""
    order: list[str] = []

    def noted(key):
        out = values(key)
        order[:] = list(out)
        return out

    found = jax.jit(jax.vmap(noted))(keys)
    return [(name, found[name]) for name in order]
