"""What a trained guide says of one data set: a fit, whose draws are compiled once for all data sets."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpyro

from ppl_ext.diagnostics.draws import Draws, guide_sampler
from ppl_ext.result import Fit

DATA = "amortised$data"
"""The param site that holds the data set in what is compiled."""


class _Reading:
    """A program that takes its data from a param site, so that they are an argument of what is compiled."""

    def __init__(self, program: Callable, signature: inspect.Signature):
        self.program, self.signature = program, signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.signature.bind(*args, **kwargs)
        given.arguments.update(numpyro.param(DATA))
        return self.program(*given.args, **given.kwargs)


@dataclass(frozen=True, eq=False, repr=False)
class Answer(Fit):
    """What :meth:`Amortised.answer` returns: the :class:`Fit` of one data set.

    Draws of a second data set need no second compilation: those of all answers of a guide share what is
    compiled, and data sets are an argument of it, all of the full shape.

    >>> # of Amortised.answer
    >>> Answer.sample is Fit.sample
    True
    """

    @cached_property
    def _sampler(self) -> Callable[[jax.Array, int], Draws]:
        data, samplers = self.guide.pilot.data, self.guide.samplers  # type: ignore[attr-defined]
        given = data.signature.bind(*self.args, **self.kwargs).arguments
        read = {name: jnp.asarray(given[name]) for name in data.reach}
        of_chains = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_chains, *x.shape)), read)
        shared = {**self.params, DATA: of_chains}
        key = id(self.model), self.num_chains  # the sampler holds the model, so that its number stays its own
        if key not in samplers:
            model, guide = (_Reading(program, data.signature) for program in (self.model, self.guide))
            ours = hasattr(self.objective, "initial_state")
            mirrored = None if ours else "this run was not made by one of them"
            samplers[key] = guide_sampler(
                model, guide, shared, self.num_chains, self.args, self.kwargs, mirrored
            )
        return lambda rng_key, num_samples: samplers[key](rng_key, num_samples, shared)
