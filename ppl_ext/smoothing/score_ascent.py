"""Parameters of a state-space model by ascent of its score on a series."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.runtime.arguments import check_call, check_count, check_flag, check_key, check_number, described
from ppl_ext.runtime.constants import compiled, odd_data_blamed
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.results import Summarised, number
from ppl_ext.smoothing.additive import constrained, score, unconstrained
from ppl_ext.smoothing.backward import BackwardKernel
from ppl_ext.smoothing.conditional_paris import conditional_paris
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.settings import settings
from ppl_ext.smoothing.trajectories import path_of, trajectories, values_of
from ppl_ext.state_space.gaps import refuse_raw, without_gaps
from ppl_ext.state_space.model import lower


class ScoreAscent:
    """Maximum likelihood by stochastic ascent: each step one conditional PaRIS sweep on the path that the
    last one drew.

    The path is kept warm, so that a few particles give a score with little bias from the second step on
    (Cardoso et al. 2023, section 4).

    :param optimizer: an optax transformation; it is given minus the score.
    :param num_particles: N, at least 2.
    :param average_from: the share of the steps after which iterates are averaged (Polyak and Ruppert); 1 for
        the last iterate alone.
    :param prior: whether the log prior, in constrained space, is ascended too.
    :raises ArgumentError: for fewer than 2 particles, or a share outside of [0, 1]; see :meth:`run` for the
        rest.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(mean, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> ascent = ScoreAscent(model, optax.adam(0.1), num_particles=20)
    >>> result = ascent.run(jax.random.key(0), 200, jnp.array([2.3, 1.9, 2.5, 2.1]), params={"mean": 0.0})
    >>> bool(abs(result.params["mean"] - 2.2) < 0.2)
    True
    """

    def __init__(
        self,
        model: Callable,
        optimizer: optax.GradientTransformation,
        num_particles: int = 100,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
        average_from: float = 0.5,
        prior: bool = False,
    ):
        self._how = settings(
            "ScoreAscent",
            model,
            {"score": score()},
            num_particles,
            backward,
            num_backward,
            "systematic",
            0.5,
            None,
        )
        if num_particles < 2:
            raise ArgumentError(
                "ScoreAscent: num_particles must be at least 2: one of them is frozen on the path."
            )
        if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
            raise ArgumentTypeError(
                f"ScoreAscent: optimizer must be an optax transformation, got {described(optimizer)}."
            )
        check_number("ScoreAscent: average_from", average_from, at_least=0.0)
        if average_from > 1.0:
            raise ArgumentError(
                f"ScoreAscent: average_from must be a share of the steps, from 0 to 1, got {average_from}."
            )
        check_flag("ScoreAscent: prior", prior)
        self._optimizer, self._average_from, self._prior = optimizer, float(average_from), bool(prior)
        self._run = compiled(self._ascend, 3, (5, 6))

    def run(
        self, rng_key: jax.Array, num_steps: int, *args: Any, params: Mapping[str, Any], **kwargs: Any
    ) -> "Learned":
        """Ascend from ``params``, constrained values of all parameters.

        :raises NonFiniteError: if a score is not finite.
        :raises ModelError: see :func:`~ppl_ext.smoothing.additive.score`.
        """
        check_key("ScoreAscent: rng_key", rng_key)
        check_count("ScoreAscent: num_steps", num_steps)
        check_call("ScoreAscent: model", self._how.model, args, kwargs)
        refuse_open_handlers("ScoreAscent.run")
        params = parameters("ScoreAscent", params, floating=True)
        whole = without_gaps(args, kwargs)
        with odd_data_blamed("ScoreAscent:", args, kwargs), reading(self._how, self._optimizer) as seen:
            (iterates, scores, final), misplaced = self._run(
                seen, rng_key, params, args, kwargs, int(num_steps), whole
            )
        check_inside("ScoreAscent", misplaced, params)
        for name, x in scores.items():
            if not np.isfinite(x).all():
                if not whole:
                    refuse_raw("ScoreAscent", lambda: lower(self._how.model, args, kwargs, params))
                at = int(np.argmin(np.isfinite(np.asarray(x)).reshape(num_steps, -1).all(1)))
                raise NonFiniteError(
                    f"The score of '{name}' is not finite at step {at}. Begin nearer, or use a smaller "
                    "learning rate. (Where no particle survives the data, ppl_ext.smoothing.smooth at the "
                    "parameters of that step says which of them.)"
                )
        return Learned(final, iterates, scores)

    def _ascend(self, seen: Outside, rng_key, params, args, kwargs, num_steps: int, whole: bool):
        how, model = self._how._replace(whole=whole), self._how.model
        at_start = lower(model, args, kwargs, params)
        theta = unconstrained(at_start)
        path_key, filter_key, sweep_key = jax.random.split(rng_key, 3)
        space, _ = how.begin(params, args, kwargs)
        values = jax.tree.map(
            lambda x: x[0], values_of(trajectories(path_key, filter_key, how, params, space, 1)[0])
        )

        def body(state, key):
            theta, optimizer, values = state
            params = constrained(at_start, theta)
            space, functional = how.begin(params, args, kwargs)
            path = path_of(space.lowered, values)
            sweep = conditional_paris(
                key,
                space,
                space.lowered.xs,
                path,
                how.num_particles,
                how.backward,
                how.num_backward,
                functional,
            )
            slope = sweep.estimates["score"]
            if self._prior:
                prior = jax.grad(
                    lambda theta: lower(model, args, kwargs, constrained(at_start, theta)).log_prior
                )(theta)
                slope = jax.tree.map(jnp.add, slope, prior)
            updates, optimizer = self._optimizer.update(jax.tree.map(jnp.negative, slope), optimizer, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, optimizer, values_of(sweep.path)), (theta, slope)

        start = theta, self._optimizer.init(theta), values
        _, (thetas, slopes) = jax.lax.scan(body, start, jax.random.split(sweep_key, num_steps))
        begun = min(int(self._average_from * num_steps), num_steps - 1)
        final = constrained(at_start, jax.tree.map(lambda x: x[begun:].mean(0), thetas))
        return (jax.vmap(lambda theta: constrained(at_start, theta))(thetas), slopes, final), outside(
            at_start
        )


@dataclass(frozen=True, eq=False, repr=False)
class Learned(Summarised):
    """What :meth:`ScoreAscent.run` found.

    :param params: the estimate, constrained.
    :param iterates: by step, (num_steps, ...).
    :param scores: in unconstrained parameters.

    >>> found = Learned({"mean": jnp.array(2.0)}, {"mean": jnp.array([0.0, 1.5, 2.5])}, {"mean": jnp.array([
    ...     3.0, 0.5, -0.5])})
    >>> # as ScoreAscent.run with average_from=1/3 returns it
    >>> bool(found.iterates["mean"][1:].mean() == found.params["mean"])
    True
    >>> found
    Learned(mean=2, num_steps=3)
    """

    params: dict[str, jax.Array]
    iterates: dict[str, jax.Array]
    scores: dict[str, jax.Array]

    def __repr__(self) -> str:
        shown = "".join(f"{n}={number(x)}, " for n, x in [*self.params.items()][:4])
        return f"Learned({shown}num_steps={len(next(iter(self.scores.values()), ()))})"

    def summary(self) -> str:
        from ppl_ext.smoothing.summaries import of_ascent

        return of_ascent(self)

    def to_arviz(self) -> Any:
        """The ArviZ report: ``ascent_trace`` with the iterates and, as ``score_<name>``, the scores (chain,
        step, ...), one chain; ``estimates`` with ``params``. No ``posterior``: a maximum of the likelihood
        has no draws, and the spread of the iterates is that of the learning rate."""
        from ppl_ext.smoothing.arviz_reports import of_ascent

        return of_ascent(self)
