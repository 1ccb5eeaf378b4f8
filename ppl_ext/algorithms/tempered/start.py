"""Where a tempered run starts: the program's own forward run, a proposal, or a fitted guide."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro.handlers import block, substitute
from numpyro.infer.autoguide import AutoContinuous

from ppl_ext.algorithms.held_sites import NothingHidden
from ppl_ext.algorithms.target import Target
from ppl_ext.algorithms.tempered.points import Path
from ppl_ext.algorithms.tempered.unconstrained import Unconstrained, rows_of
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentError, ModelError


class ImproperPriorError(ModelError):
    """A run was to start from the prior, which has no draws."""


def path_from_prior(where: str, target: Target, along: str | None, num_blocks: int | None) -> Path:
    r"""Likelihood tempering: :math:`\pi_\tau(z) \propto p(z)\, p(y \mid z)^\tau`, or the rows of a plate, or
    steps of a scan, one block after the other.

    :raises ImproperPriorError: if the prior cannot be drawn from.
    :raises ModelError: if nothing lies along ``along``.
    """
    rows = None if along is None else rows_of(where, target, along, num_blocks)
    space = Unconstrained(where, target, rows)

    def draw(key):
        return space.position(space.draw(key))

    try:
        jax.eval_shape(draw, random.key(0))
    except NotImplementedError as error:
        improper = next(
            (n for n in target.free if type(target.sites[n]["fn"]).__name__ == "ImproperUniform"),
            target.free[0],
        )
        raise ImproperPriorError(
            f"{where} starts from draws of the prior, and site '{improper}' cannot be drawn. Start from "
            "a guide, initial=, or give the site a proper prior."
        ) from error
    num_parts = 1 if rows is None else rows.num_blocks
    return Path(space.size, num_parts, draw, space.prior_and_parts, space.values)


def path_from_guide(where: str, target: Target, initial: Callable, params: Mapping[str, Any] | None) -> Path:
    r"""A geometric bridge, :math:`\pi_\tau(z) \propto q(z)^{1 - \tau} p(y, z)^\tau`.

    :raises ModelError: if the guide draws other sites than the program leaves free and continuous, or a site
        at a point.
    """
    space = Unconstrained(where, target, from_prior=False)
    if isinstance(initial, AutoContinuous):
        if params is None:
            raise ArgumentError(f"{where}: initial is a {type(initial).__name__}; give its params=, too.")
        draw, log_q = _by_latent(where, space, initial, params)
    else:
        draw, log_q = _by_sites(space, initial, params)

    def density(position):
        log_p, log_det = space.joint(position)
        base = log_q(position, log_det)
        return base, jnp.reshape(log_p + log_det - base, 1)

    return Path(space.size, 1, draw, density, space.values)


def _by_sites(space: Unconstrained, initial: Callable, params: Mapping[str, Any] | None):
    """A guide whose sites are those of the program."""
    target, names = space.target, space.free.continuous
    if params is not None:
        # what a guide writes to its mutable sites, nobody is to carry from one trace to another
        fitted = block(substitute(initial, data=dict(params)), hide_fn=lambda msg: msg["type"] == "mutable")

        def proposal(given, *args, **kwargs):
            return fitted(*args, **kwargs)
    else:
        proposal = initial
    continuous = target.only(names)
    proposed = continuous.admit(proposal)

    def scored(*args, **kwargs):
        with NothingHidden(f"{space.where}: initial", proposed, of_guide=True):
            return proposal(*args, **kwargs)

    def draw(key):
        with target.apart(key):
            values = continuous.propose(proposal).values
        return space.position({n: values[n] for n in names})

    def log_q(position, log_det):
        with target.apart():
            return continuous.log_proposal(scored, space.values(position)).total + log_det

    return draw, log_q


def _by_latent(where: str, space: Unconstrained, guide: AutoContinuous, params: Mapping[str, Any]):
    """A guide of NumPyro's over one vector of all unconstrained positions."""
    law, unpack = guide.get_posterior(dict(params)), guide._unpack_latent
    with jax.ensure_compile_time_eval():
        places = unpack(jnp.arange(guide.latent_dim))
        sites, order = list(places), np.asarray(ravel_pytree(places)[0])
    back = np.argsort(order)
    if set(sites) != set(space.free.continuous):
        raise ModelError(
            f"{where}: initial draws {listed(sites)}, and the program leaves {listed(space.free.continuous)} "
            "free."
        )

    def draw(key):
        return law.sample(key)[order]

    def log_q(position, log_det):
        return law.log_prob(position[back])

    return draw, log_q
