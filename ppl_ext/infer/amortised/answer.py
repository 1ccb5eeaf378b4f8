"""What a trained guide says of one data set: a fit, whose draws are compiled once for all data sets."""

import inspect
from collections.abc import Callable
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


def drawing_together(run: Fit) -> Fit:
    """The :class:`Fit` of one data set, whose draws are compiled once for all answers of its guide.

    Data sets, all of the full shape, are an argument of what is compiled. What is made of this fit by
    ``dataclasses.replace`` draws as any other.
    """

    def sample(rng_key: jax.Array, num_samples: int) -> Draws:
        data, samplers = run.guide.pilot.data, run.guide.samplers  # type: ignore[attr-defined]
        given = data.bound(run.args, run.kwargs).arguments  # which warns of numbers beyond all simulations
        read = {name: jnp.asarray(given[name]) for name in data.reach}
        of_chains = jax.tree.map(lambda x: jnp.broadcast_to(x, (run.num_chains, *x.shape)), read)
        shared = {**run.params, DATA: of_chains}
        ours = hasattr(run.objective, "initial_state")
        key = id(run.model), run.num_chains, ours  # a sampler holds its model: no other gets this number
        if key not in samplers:
            model, guide = (_Reading(program, data.signature) for program in (run.model, run.guide))
            mirrored = None if ours else "this run was not made by one of them"
            samplers[key] = guide_sampler(
                model, guide, shared, run.num_chains, run.args, run.kwargs, mirrored
            )
        return samplers[key](rng_key, num_samples, shared)

    run.__dict__["_sampler"] = sample  # where the fit keeps its own, once it is asked for
    return run
