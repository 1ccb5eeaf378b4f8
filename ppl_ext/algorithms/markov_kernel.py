"""What a step of a Markov chain inside an objective is."""

from typing import Any, NamedTuple, Protocol

import jax


class Move(NamedTuple):
    """What a kernel returns: the next ``values``, and weighted ``particles`` (leading axis K) with
    ``weights`` (K,) that add up to one.

    In stationarity the weighted particles, too, have the posterior's expectations; a kernel without such
    returns its values alone, with an axis in front and the weight 1.

    >>> import jax.numpy as jnp
    >>> move = Move({"z": jnp.array(2.0)}, {"z": jnp.array([0.0, 2.0])}, jnp.array([0.25, 0.75]))
    >>> float(move.weights @ move.particles["z"])
    1.5
    """

    values: Any
    particles: Any
    weights: jax.Array


class MarkovKernel(Protocol):
    """A step of a Markov chain that leaves p(z | y) unchanged.

    It runs inside the objective: it may use :func:`~ppl_ext.replicate`, :func:`~ppl_ext.simulate`,
    :func:`~ppl_ext.log_density` and ``numpyro.prng_key``. ``values`` maps the guide's sites to their retained
    values. No gradient is taken through a step.

    >>> import jax, jax.numpy as jnp
    >>> def flip(model, guide, values):  # leaves any law of a fair coin unchanged
    ...     z = {"z": 1 - values["z"]}
    ...     return Move(z, jax.tree.map(lambda x: x[None], z), jnp.ones(1))
    >>> step: MarkovKernel = flip
    >>> int(step(None, None, {"z": jnp.array(1)}).values["z"])
    0
    """

    def __call__(self, model, guide, values) -> Move: ...
