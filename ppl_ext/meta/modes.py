"""Whether one Gaussian can stand for an episode's posterior: its other modes, looked for from many starts."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentTypeError, NonFiniteError
from ppl_ext.meta.checks import check_new_episode
from ppl_ext.meta.fitted import MetaFit, State
from ppl_ext.meta.groups import bad_of_stream, each
from ppl_ext.meta.hierarchy import Hierarchy
from ppl_ext.meta.solvers.laplace import LaplaceGGN, curvature
from ppl_ext.meta.streams.arriving import finite_stream
from ppl_ext.meta.streams.stream import Batch
from ppl_ext.runtime.arguments import check_count, check_key, described

SAME = 2.0
"""Two modes are one if they lie within so many standard deviations of each other, as each sees it."""


def mass_elsewhere(
    fit: MetaFit, episodes: Any, rng_key: jax.Array | None = None, num_starts: int = 16, num_steps: int = 30
) -> np.ndarray:
    r"""The share of each episode's posterior that the mode used does not have: near 0 if one Gaussian will
    do, to be flagged above 0.05.

    .. math:: w_k \propto e^{-U(\theta_k)} |\nabla^2 U(\theta_k)|^{-1/2}, \qquad U = \ell + \tfrac12 (\theta -
        m_0)^\top P_0 (\theta - m_0)

    Modes are looked for by damped Gauss-Newton steps from m₀, where training starts, and from ``num_starts``
    draws of the shared Gaussian; each mode found gets its weight by Laplace's method. A mode that no start
    leads to is not seen.

    :param fit: a fitted hierarchy.
    :param episodes: an ``EpisodeStream`` or a list of episodes.
    :return: (n,), between 0 and 1.
    :raises NonFiniteError: naming episode and site.

    >>> import jax, numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import ExactLinearGaussian, lift
    >>> def episode(x, y=None):
    ...     level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(x)):
    ...         numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
    >>> rows = [(np.zeros(2, np.float32), np.full(2, y, np.float32)) for y in (1.0, 2.0, 3.0)]
    >>> fit = lift(episode, ["level"]).untrained(rows, ExactLinearGaussian())  # .fit(key, rows) trains
    >>> # Gaussian posteriors have one mode
    >>> mass_elsewhere(fit, rows, num_starts=2, num_steps=2).round(3).tolist()
    [0.0, 0.0, 0.0]

    Source: Laplace's method, for instance Gelman et al. 2013, section 13.3, mixtures of normals at the modes.
    """
    if not isinstance(fit, MetaFit):
        raise ArgumentTypeError(f"mass_elsewhere: fit must be a MetaFit, got {described(fit)}.")
    check_count("mass_elsewhere: num_starts", num_starts)
    check_count("mass_elsewhere: num_steps", num_steps)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key("mass_elsewhere: rng_key", rng_key)
    stream, h = finite_stream("mass_elsewhere", episodes), fit.hierarchy
    check_new_episode(
        "mass_elsewhere", h.form, fit.state.shared, stream[int(np.argmax(stream.lengths))], {}, h.like
    )
    batch = stream.batch(np.arange(len(stream)))
    h.form.unchanged("mass_elsewhere")
    if (why := bad_of_stream(h, fit.state.shared, stream, batch, fit.niw.loc)) is not None:
        raise NonFiniteError(f"mass_elsewhere: {why}")
    noise = jax.random.normal(rng_key, (num_starts, fit.niw.dim), fit.niw.loc.dtype)
    return np.asarray(
        each(h, stream, batch, lambda batch, _: _elsewhere(h, fit.state, batch, noise, LaplaceGGN(num_steps)))
    )


@eqx.filter_jit
def _elsewhere(h: Hierarchy, state: State, batch: Batch, noise: jax.Array, solver: LaplaceGGN) -> jax.Array:
    mean, precision = state.niw.loc, state.niw.expected_precision()
    precision = jnp.diag(precision) if precision.ndim == 1 else precision
    starts = mean + jnp.linalg.solve(jnp.linalg.cholesky(precision).T, noise.T).T
    starts = jnp.concatenate([mean[None], starts])

    def one(args, length):
        loss = h.loss(state.shared, args, length)

        def at(start):
            theta = solver.mode(loss, start, mean, precision)
            sharp = curvature(loss, theta, "full") + precision
            r = theta - mean
            return theta, sharp, -loss(theta) - 0.5 * r @ precision @ r - 0.5 * jnp.linalg.slogdet(sharp)[1]

        theta, sharp, log_weight = jax.lax.map(at, starts)
        r = theta[:, None] - theta[None]
        apart = jnp.einsum("ijd,ide,ije->ij", r, sharp, r)
        same = jnp.minimum(apart, apart.T) < SAME**2
        # Each mode counts once, by the first start that led to it; starts that lead nowhere do not count.
        first = jnp.argmax(same, axis=1) == jnp.arange(len(starts))
        log_weight = jnp.where(first & jnp.isfinite(log_weight), log_weight, -jnp.inf)
        return 1 - jax.nn.softmax(log_weight)[0]

    return jax.vmap(one)(batch.args, batch.lengths)
