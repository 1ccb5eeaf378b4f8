"""Importance sampling, forward and conditional, and the draw by resampling."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from ppl_ext.algorithms.absent_sites import draw_absent
from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.target import Particle, Retained, Target, log_quotient, log_ratio
from ppl_ext.densities.log_density import log_mean_exp
from ppl_ext.errors import ArgumentError, ArgumentTypeError


class ImportanceSampling(Algorithm):
    r"""K weighted draws from a proposal.

    .. math:: w = \tfrac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k; x)}

    Forward, all :math:`z_k \sim q`; conditional, one of them is the retained particle and K − 1 are fresh.
    Both hold for every K: K = 1 is a single weight forward, and conditionally the retained particle's own
    weight. A draw is one of the K, picked with probability proportional to its weight: the index is a site,
    ``"index"``, with a gradient strategy (by default it is enumerated up to 64 particles).

    :param num_particles: K, at least 1.
    :param proposal: a program that draws the free sites under their names, called as
        ``proposal(given, *args, **kwargs)`` with the dict of given values (``marginal``: the kept sites;
        ``normalize``: the data) before the program's own arguments. A site of its own it must sum out by
        ``marginal``. By default the program itself, run forward with the given values in place.
    :raises ArgumentError: if num_particles is not a positive integer.
    :raises ModelError: when run, if the proposal misses a free site or draws another.

    Sources: Lew et al. 2023 (ADEV); Becker et al. 2024; Sobolev and Vetrov 2019 for the conditional run.

    >>> ImportanceSampling(num_particles=5)
    ImportanceSampling(num_particles=5)
    """

    num_particles: int = eqx.field(static=True)
    proposal: Callable | None = None

    def __check_init__(self):
        if (
            not isinstance(self.num_particles, int)
            or isinstance(self.num_particles, bool)
            or self.num_particles < 1
        ):
            raise ArgumentError(
                "ImportanceSampling(num_particles=...) must be a positive integer, got "
                f"{self.num_particles!r}."
            )
        if self.proposal is not None and not callable(self.proposal):
            raise ArgumentTypeError(
                f"ImportanceSampling(proposal=...) must be a program, got {type(self.proposal).__name__}."
            )

    def evidence(self, target: Target) -> jax.Array:
        self._admit(target)
        return log_mean_exp(target.replicate(lambda: self._particle(target).log_weight, self.num_particles))

    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        self._admit(target)
        if self.proposal is not None:
            log_weight = retained.log_density - target.log_proposal(self.proposal, retained.values).total
        else:
            log_weight = retained.log_weight()
        log_weights = log_weight[None]
        if self.num_particles > 1:
            fresh = target.replicate(lambda: self._particle(target).log_weight, self.num_particles - 1)
            log_weights = jnp.concatenate([log_weights, fresh])
        return log_mean_exp(log_weights)

    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        self._admit(target)
        particles = target.replicate(lambda: self._particle(target), self.num_particles)
        index, possible = target.pick(particles.log_weight)
        values, log_density = jax.tree.map(lambda x: x[index], (particles.values, particles.log_density))
        return values, log_quotient(log_density, log_mean_exp(particles.log_weight), possible)

    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        draw_absent(target)
        if self.proposal is None:
            particle = target.forward(values)
            retained = Retained(values, particle.log_density, lambda: particle.log_weight)
        else:
            log_density = target.log_density(values).total
            retained = Retained(values, log_density, lambda: log_density)
        return retained.log_density - self.evidence_through(target, retained)

    def _admit(self, target: Target) -> None:
        draw_absent(target)
        if self.proposal is not None:
            target.admit(self.proposal)

    def _particle(self, target: Target) -> Particle:
        if self.proposal is None:
            return target.forward()
        draw = target.propose(self.proposal)
        above = target.log_density(dict(draw.values))
        return Particle(dict(draw.values), above.total, log_ratio(above, draw.log_density))
