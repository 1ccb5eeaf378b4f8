"""Sums and integrals over the states of a ``scan`` without error, where the model allows it."""

from typing import ClassVar

import equinox as eqx
import jax

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.target import Retained, Target
from ppl_ext.errors import ModelError
from ppl_ext.runtime.arguments import check_count, check_flag
from ppl_ext.state_space.exact import exact_evidence
from ppl_ext.state_space.model import lower


class ExactFilter(Algorithm):
    r"""The states of a finite or a linear-Gaussian ``scan``, summed out exactly
    (:mod:`ppl_ext.state_space.exact`).

    .. math:: p(\theta, y) = p(\theta) \int p(x_{0:T}, y \mid \theta) \, dx_{0:T}

    The marginal's density is exact and differentiable everywhere, so NUTS and any objective may use it. It
    does not draw: ``normalize`` takes :class:`~ppl_ext.algorithms.ParticleFilter`.

    :param max_states: the largest number of joint states of a finite model.
    :param parallel: sum over all times at once, by products in a tree (Särkkä and García-Fernández 2021;
        Hassan, Särkkä and García-Fernández 2021): the same numbers to rounding, in twice log T rounds. It is
        for accelerators and long series, most of an accelerator being idle in one step. On a CPU it is
        slower: several times the operations, with K states K times as many, and a compilation that takes
        three times as long. Second derivatives of a linear-Gaussian model are those of ``jax.jacfwd`` twice
        then; by way of ``jax.grad`` they may be NaN.
    :raises ModelError: when run: the model is neither finite nor linear-Gaussian, or ``normalize`` asks for a
        draw.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from ppl_ext import log_density, marginal
    >>> def model(y):
    ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    ...     def step(x, y_t):
    ...         x = numpyro.sample("x", dist.Normal(x, sigma))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)
    >>> program, key = marginal(model, ["sigma"], ExactFilter()), jax.random.key(0)
    >>> summed = log_density(program, {"sigma": 1.0}, jnp.ones(1), rng_key=key)
    >>> bool(abs(summed.total - dist.HalfNormal(1.0).log_prob(1.0) - dist.Normal(0.0, 3**0.5).log_prob(1.0))
    ...     < 1e-4)
    True
    """

    max_states: int = eqx.field(static=True, default=4096)
    parallel: bool = eqx.field(static=True, default=False)

    exact: ClassVar[bool] = True
    scans: ClassVar[bool] = True

    def __check_init__(self):
        check_count("ExactFilter: max_states", self.max_states)
        check_flag("ExactFilter: parallel", self.parallel)

    def evidence(self, target: Target) -> jax.Array:
        with target.inside():
            space = lower(target.program, parameters=target.given, initial="rest")
        return space.log_prior + exact_evidence(space, self.max_states, self.parallel)

    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        return self.evidence(target)

    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        return target.log_density(values).total - self.evidence(target)

    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        raise ModelError(
            f"ExactFilter does not draw the sites of {target.scope}; use ParticleFilter, or smooth_exactly "
            "for the moments."
        )
