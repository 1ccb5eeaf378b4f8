"""A sample site whose law is known by its score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count, check_function
from ppl_ext.scores.law import ScoreLaw
from ppl_ext.scores.schedule import VariancePreserving, check_schedule


def score_prior(
    name: str,
    score: Callable,
    schedule: VariancePreserving = VariancePreserving(),  # noqa: B008 (frozen)
    *,
    dim: int | None = None,
    num_levels: int = 60,
    infer: dict | None = None,
):
    """A latent site whose prior is known by its score, such as that of a diffusion model.

    It is ``numpyro.sample(name, ScoreLaw(...))``, in plates, beside other sites, under any likelihood. Every
    objective and sampler takes it by the density of :class:`ScoreLaw`; :class:`ScoreKL` asks for the score
    alone, which is far cheaper.

    :param name: of the site.
    :param score: ``score(x, sigma)`` of one point (d,) and one level of noise; a network ``network(x_t, t)``
        of a variance-preserving diffusion becomes one by ``schedule.score_of(network)``.
    :param dim: d; may be left out where the score has a ``dim``.
    :param num_levels: steps of the flow, where its density is wanted.
    :return: the site's value, (..., d).
    :raises ArgumentError: if ``dim`` is neither given nor known, the score is not one of points (d,), or the
        noise of the schedule does not grow with time; it names the site.

    >>> import numpyro
    >>> from ppl_ext import log_density
    >>> from ppl_ext.scores import GaussianScore
    >>> score = GaussianScore(jnp.zeros(2), jnp.eye(2))
    >>> model = lambda: score_prior("x", score)
    >>> round(float(log_density(model, {"x": jnp.zeros(2)}).total), 4)
    -1.8379
    """
    check_function(f"score_prior '{name}': score", score)
    check_schedule(f"score_prior '{name}'", schedule)
    dim = getattr(score, "dim", None) if dim is None else dim
    if dim is None:
        raise ArgumentError(
            f"score_prior '{name}': dim=... must be given, the number of coordinates, for this score says "
            "nothing of it."
        )
    _check_score(name, score, dim)
    return numpyro.sample(name, ScoreLaw(score, dim, schedule, num_levels), infer=infer)


def _check_score(name: str, score: Callable, dim: int) -> None:
    """Ask the score at one point, without computing it."""
    check_count(f"score_prior '{name}': dim", dim)
    own = getattr(score, "dim", dim)
    if own != dim:
        raise ArgumentError(
            f"score_prior '{name}': dim={dim} was given for a score of {own} coordinates. Leave dim out."
        )
    point = jax.ShapeDtypeStruct((dim,), jnp.zeros(()).dtype)
    try:
        found = jnp.shape(jax.eval_shape(score, point, jax.ShapeDtypeStruct((), point.dtype)))
    except Exception as error:
        raise ArgumentError(
            f"score_prior '{name}': the score cannot be asked at a point of shape ({dim},) and a level of "
            f"noise of shape (): {type(error).__name__}: {error}"
        ) from error
    if found != (dim,):
        raise ArgumentError(
            f"score_prior '{name}': the score of a point of shape ({dim},) must have that shape, and has "
            f"{found}."
        )
