"""Any NumPyro model as a target."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax import random

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.priors.functions.outputs import Output, check_output, draw_function
from ppl_ext.runtime.arguments import check_mapping, check_program, described


class ModelTarget:
    """The functions that a NumPyro model draws: a physical model, say, or a larger network.

    :param model: a NumPyro model whose first argument are the inputs.
    :param output: where the function is, as in :func:`~ppl_ext.priors.match`.
    :param args: further arguments of the model, as are ``kwargs``.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> target = ModelTarget(lambda x: numpyro.sample("rate", dist.LogNormal(0.0, 1.0)) * x)
    >>> target.sample(random.key(0), jnp.ones(4), 3).shape
    (3, 4)
    """

    def __init__(
        self,
        model: Callable,
        output: Output = None,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ):
        check_program("ModelTarget: model", model)
        check_output("ModelTarget: output", output)
        if not isinstance(args, tuple):
            raise ArgumentTypeError(f"ModelTarget: args must be a tuple, got {described(args)}.")
        check_mapping("ModelTarget: kwargs", {} if kwargs is None else kwargs, "of arguments of the model")
        self.model, self.output, self.args, self.kwargs = model, output, args, dict(kwargs or {})

    def sample(self, rng_key: jax.Array, inputs: jax.Array, num_draws: int) -> jax.Array:
        function = partial(
            draw_function, self.model, self.output, inputs=inputs, args=self.args, kwargs=self.kwargs
        )
        return jax.vmap(lambda key: function(rng_key=key))(random.split(rng_key, num_draws))
