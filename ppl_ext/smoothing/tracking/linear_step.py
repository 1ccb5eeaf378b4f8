r"""How one target moves and is measured, read off a NumPyro step.

.. math:: x' \sim \mathcal{N}(F x + c, Q), \qquad z \sim \mathcal{N}(H x' + d, R)

The step is written as that of a ``scan``. That it is linear and Gaussian is asked of its traced program, as
exact filters do (:mod:`ppl_ext.state_space.exact`): the second derivatives of its log density in the states
and the measurement depend on neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.handlers import block, seed, trace

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.program import log_density
from ppl_ext.state_space.kalman import Law, law_of
from ppl_ext.tracing.depends import depends


class Linear(NamedTuple):
    """A normal law around ``slope @ x + offset``."""

    slope: jax.Array
    offset: jax.Array
    covariance: jax.Array


class OneTarget(NamedTuple):
    """The laws of a target's next state and of its measurement; ``excess``: by how much the log densities
    of the step are more than theirs, at two places each.
    """

    motion: Linear
    measurement: Linear
    excess: jax.Array


def read_step(step: Callable, size: int, measured: int) -> OneTarget:
    """The matrices of a step ``step(x, z) -> (x, anything)``, for states (size,) and measurements
    (measured,).

    :raises ModelError: if the step is no linear and Gaussian one of such states. The message names the site.
    :raises ArgumentError: if it measures something of another dimension.
    """
    x, z = jnp.zeros(size), jnp.zeros(measured)
    latent, observed = _sites(step, x, z)

    def terms(a, b, z):
        with block():
            found = log_density(step, {latent: b}, a, z).by_site
        return found[latent], sum(found[name] for name in observed)

    joint = jax.make_jaxpr(jax.hessian(lambda a, b, z: sum(terms(a, b, z)), (0, 1, 2)))(x, x, z)
    if any(depends(joint, [True] * 3)):
        raise ModelError(
            f"Tracker: the step is not linear and Gaussian in its state '{latent}' and its measurement: the "
            "second derivatives of its log density change with them. Linearise it, or take a particle "
            "filter of one target."
        )
    if any(depends(jax.make_jaxpr(lambda a, b, z: terms(a, b, z)[1])(x, x, z), [True, False, False])):
        raise ModelError(
            f"Tracker: the measurement in the step depends on the state before it; write it of '{latent}', "
            "the new one."
        )
    motion = law_of(lambda a, b: terms(a, b, z)[0], x, x)
    measurement = law_of(lambda b, z: terms(x, b, z)[1], x, z)
    off = [
        fn(jnp.ones_like(a), law.slope @ jnp.ones_like(a) + law.offset) - fn(jnp.zeros_like(a), law.offset)
        for fn, law, a in (
            (lambda a, b: terms(a, b, z)[0], motion, x),
            (lambda b, z: terms(x, b, z)[1], measurement, x),
        )
    ]
    excess = jnp.stack([motion.excess, measurement.excess, *off])
    return OneTarget(_linear(motion), _linear(measurement), excess)


def _linear(law: Law) -> Linear:
    return Linear(law.slope, law.offset, law.covariance)


def _sites(step: Callable, x: jax.Array, z: jax.Array) -> tuple[str, list[str]]:
    """The names of the state and of what is measured, with their shapes checked."""
    with block(), trace() as record, seed(rng_seed=0):
        output = step(x, z)
    samples = {n: s for n, s in record.items() if s["type"] == "sample"}
    latent = [n for n, s in samples.items() if not s["is_observed"]]
    observed = [n for n, s in samples.items() if s["is_observed"]]
    if len(latent) != 1 or not observed:
        raise ModelError(
            "Tracker: the step must have one latent site, the new state, and at least one observed one, the "
            f"measurement; it has {_names(latent)} and {_names(observed)}. Put the parts of a state into "
            "one vector."
        )
    [name] = latent
    if tuple(samples[name]["fn"].shape()) != x.shape:
        raise ModelError(
            f"Tracker: the state '{name}' has shape {tuple(samples[name]['fn'].shape())} in the step, and "
            f"births have shape {x.shape}; make both one vector of the same length."
        )
    if not isinstance(output, tuple) or len(output) != 2 or output[0] is not samples[name]["value"]:
        raise ModelError(
            f"Tracker: the step must return the value of its latent site '{name}' as the new state, and "
            f"something beside it: return {name}, None."
        )
    for n in observed:
        law, value = tuple(samples[n]["fn"].shape()), jnp.shape(samples[n]["value"])
        if law != value:
            raise ArgumentError(
                f"Tracker: measurements have dimension {len(z)}, of which the observed site '{n}' gets "
                f"shape {value}, and its law has shape {law}. Give measurements (n, dimension) that fit, or "
                "mend the step."
            )
    total = sum(int(jnp.size(samples[n]["value"])) for n in observed)
    if total != len(z):
        raise ArgumentError(
            f"Tracker: measurements have dimension {len(z)}, and the step observes {total} numbers, at "
            f"{_names(observed)}. Give measurements (n, {total}), or mend the step."
        )
    return name, observed


def _names(names: Any) -> str:
    return ", ".join(f"'{n}'" for n in names) or "none"
