"""Exact sums over finite sites."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.hidden_sites import unused_run
from ppl_ext.algorithms.target import Retained, Target, is_estimated, log_quotient
from ppl_ext.errors import ArgumentError, ModelError


class Enumeration(Algorithm):
    r"""Sum over every joint value of the free sites, all of which must be finite and discrete.

    .. math:: p(x) = \sum_z p(x, z)

    Exact, without randomness (unless a density inside is itself estimated), hence tagged so and
    differentiable everywhere. The program runs once for each joint value, in one ``vmap``. ``normalize``
    draws one of them, site ``"index"``, from the exact posterior.

    :param max_assignments: the largest number of joint values to accept.
    :raises ModelError: when run, if a site is not finite or there are more joint values; the message names
        the sites.

    >>> Enumeration(max_assignments=100)
    Enumeration(max_assignments=100)
    """

    max_assignments: int = eqx.field(static=True, default=4096)

    exact = True

    def __check_init__(self):
        if (
            not isinstance(self.max_assignments, int)
            or isinstance(self.max_assignments, bool)
            or self.max_assignments < 1
        ):
            raise ArgumentError(
                f"Enumeration(max_assignments=...) must be a positive integer, got {self.max_assignments!r}."
            )

    def evidence(self, target: Target) -> jax.Array:
        return logsumexp(_log_densities(target, self._assignments(target)))

    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        assignments = self._assignments(target)
        log_densities = _log_densities(target, assignments)
        # Where a density inside is an estimate, the retained values keep the one that they came with.
        here = jnp.stack([_equal(assignments[n], retained.values[n]) for n in target.free]).all(0)
        return logsumexp(jnp.where(here, retained.log_density, log_densities))

    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        assignments = self._assignments(target)
        log_densities = _log_densities(target, assignments)
        index, possible = target.pick(log_densities)
        log_w = log_quotient(log_densities[index], logsumexp(log_densities), possible)
        return {n: v[index] for n, v in assignments.items()}, log_w

    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        log_density = target.log_density(values).total
        return log_density - self.evidence_through(target, Retained(values, log_density, lambda: log_density))

    def _assignments(self, target: Target) -> dict[str, jax.Array]:
        """Every joint value: one array per free site, with a leading axis over assignments."""
        supports, shapes = {}, {}
        for name in target.free:
            site = target.sites[name]
            if not site["fn"].has_enumerate_support:
                raise ModelError(
                    f"Enumeration cannot sum over site '{name}' ({type(site['fn']).__name__}): it is not "
                    "finite. Keep it, or use ImportanceSampling."
                )
            supports[name] = site["fn"].enumerate_support(expand=False)
            supports[name] = supports[name].reshape(supports[name].shape[:1] + site["fn"].event_shape)
            shapes[name] = jnp.shape(site["value"])[: jnp.ndim(site["value"]) - site["fn"].event_dim]
        sizes = {n: len(supports[n]) ** math.prod(shapes[n]) for n in target.free}
        total = math.prod(sizes.values())
        if total > self.max_assignments:
            counts = ", ".join(f"'{n}': {size}" for n, size in sizes.items())
            raise ModelError(
                f"Enumeration would sum over {total} joint values ({counts}), more than "
                f"max_assignments={self.max_assignments}. Raise that, keep some of these sites, or use "
                "ImportanceSampling."
            )
        out, stride = {}, 1
        for name in target.free:
            code = np.arange(total) // stride % sizes[name]
            stride *= sizes[name]
            digits = (
                code[:, None]
                // len(supports[name]) ** np.arange(math.prod(shapes[name]))
                % len(supports[name])
            )
            out[name] = supports[name][digits.reshape(-1, *shapes[name])]
        return out


def _log_densities(target: Target, assignments: dict[str, jax.Array]) -> jax.Array:
    if is_estimated(target.sites):  # what it draws matters, and an expectation cannot look inside a vmap
        rows = range(len(next(iter(assignments.values()))))
        return jnp.stack([target.log_density({n: v[i] for n, v in assignments.items()}).total for i in rows])

    def one(values):  # a transformation inside may draw, but nothing depends on it
        return target.log_density(values, unused_run()).total

    return jax.vmap(one)(assignments)


def _equal(support: jax.Array, value: jax.Array) -> jax.Array:
    return (support == value).reshape(len(support), -1).all(-1)
