"""The law of points that is known by its score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, constraints

from ppl_ext.runtime.arguments import check_count, check_function
from ppl_ext.scores.density import carried_along, flow_log_density, levels_of
from ppl_ext.scores.flow import over_points
from ppl_ext.scores.schedule import VariancePreserving, check_schedule


class _Held:
    """A score as it is: no axis of a plate or of time belongs to its arrays, so that it is no leaf of its
    law.
    """

    def __init__(self, score: Callable):
        self.score = score

    def __eq__(self, other) -> bool:
        return isinstance(other, _Held) and self.score is other.score

    def __hash__(self) -> int:
        return id(self.score)


class ScoreLaw(Distribution):
    r"""The law of points (d,) with a given score: the gradient of its log density, at every level of noise.

    Its density is ``score.log_prob(x, 0)`` where the score has that (:class:`~ppl_ext.scores.GaussianScore`,
    :class:`~ppl_ext.scores.MixtureScore`, or yours), and otherwise that of the probability flow, which is
    deterministic and costs 4 (d + 1) ``num_levels`` scores a point:

    .. math:: \log p(x) = \log \mathcal{N}(x_T; 0, (1 + u_T^2) I) - \int u^2 \, \nabla \cdot s(x_u, u) \; d
        \log u, \qquad \frac{dx}{d \log u} = -u^2 s

    So every handler, objective and sampler takes it. Draws are ``score.sample(rng_key, shape)``, or those of
    the flow backwards. The flow takes the data to have mean zero and variance about one: it ends in
    :math:`\mathcal{N}(0, (1 + u_T^2) I)`.

    :param score: ``score(x, sigma)`` of one point and one level.
    :param dim: d.
    :param schedule: which levels of noise the flow passes.
    :param num_levels: how many steps it takes.
    :raises ArgumentTypeError: if ``score`` is no function or ``schedule`` none.
    :raises ArgumentError: for counts below one, or a schedule whose noise does not grow with time.

    >>> law = ScoreLaw(lambda x, sigma: -x / (1 + sigma**2), dim=2)  # a standard Gaussian
    >>> round(float(law.log_prob(jnp.array([1.0, -1.0]))), 3)
    -2.838

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
    eq. 39.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    pytree_aux_fields = ("held", "schedule", "num_levels")

    def __init__(
        self,
        score: Callable,
        dim: int,
        schedule: VariancePreserving = VariancePreserving(),  # noqa: B008 (frozen)
        num_levels: int = 60,
        batch_shape: tuple[int, ...] = (),
        *,
        validate_args=None,
    ):
        check_function("ScoreLaw: score", score)
        check_count("ScoreLaw: dim", dim)
        check_count("ScoreLaw: num_levels", num_levels)
        check_schedule("ScoreLaw", schedule)
        self.held = _Held(score)
        self.schedule, self.num_levels = schedule, num_levels
        super().__init__(tuple(batch_shape), (dim,), validate_args=validate_args)

    @property
    def score(self) -> Callable:
        return self.held.score

    def expand(self, batch_shape) -> "ScoreLaw":
        shape = jnp.broadcast_shapes(self.batch_shape, tuple(batch_shape))
        return ScoreLaw(self.score, self.event_shape[0], self.schedule, self.num_levels, shape)

    def each(self, fn: Callable, value, *others) -> jax.Array:
        """``fn(point, *others)`` at every point of a value, of others one each."""
        shape = jnp.broadcast_shapes(jnp.shape(value)[:-1], self.batch_shape)
        points = jnp.broadcast_to(value, (*shape, *self.event_shape)).reshape(-1, *self.event_shape)
        return jax.vmap(fn)(points, *others).reshape(shape)

    def log_prob(self, value):
        score = self.score
        if hasattr(score, "log_prob"):
            return self.each(lambda x: score.log_prob(x, 0.0), value)
        return self.each(lambda x: flow_log_density(score, self.schedule, x, self.num_levels), value)

    def sample(self, key, sample_shape=()):
        shape, score = (*sample_shape, *self.batch_shape), self.score
        if hasattr(score, "sample"):
            return score.sample(key, shape)
        levels = levels_of(self.schedule, self.num_levels)[::-1]
        start = jnp.sqrt(1 + levels[0] ** 2) * jax.random.normal(key, (*shape, *self.event_shape))
        return over_points(lambda x, _: carried_along(score, x, levels)[0], len(shape))(start, 0.0)
