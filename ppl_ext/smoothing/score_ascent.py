"""Parameters of a state-space model by ascent of its score on a series."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.runtime.arguments import check_call, check_count, check_flag, check_key, check_number, described
from ppl_ext.runtime.checkpoint import Checkpoint, digest
from ppl_ext.runtime.checkpoint import program as program_of
from ppl_ext.runtime.constants import compiled, odd_data_blamed, split
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.renamed import old_arguments
from ppl_ext.runtime.results import Summarised, number
from ppl_ext.runtime.training import Saver, check_checkpoint, chunk_of, progress, train
from ppl_ext.runtime.verdict import Verdict
from ppl_ext.smoothing.additive import score
from ppl_ext.smoothing.backward import BackwardKernel
from ppl_ext.smoothing.conditional_paris import conditional_paris
from ppl_ext.smoothing.fisher_score import constrained, unconstrained
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.settings import Options, settings
from ppl_ext.smoothing.trajectories import trajectories
from ppl_ext.state_space.gaps import refuse_raw, without_gaps
from ppl_ext.state_space.model import lower


class ScoreAscent:
    """Maximum likelihood by stochastic ascent: each step one conditional PaRIS sweep on the path that the
    last one drew.

    The path is kept warm, so that a few particles give a score with little bias from the second step on
    (Cardoso et al. 2023, section 4).

    :param optim: an optax transformation; it is given minus the score.
    :param num_particles: N, at least 2.
    :param average_from: the share of the steps after which iterates are averaged (Polyak and Ruppert); 1 for
        the last iterate alone.
    :param prior: whether the log prior, in constrained space, is ascended too.
    :param progress_bar: whether :meth:`run` shows a bar, with the norm of the score.
    :param checkpoint: a :class:`~ppl_ext.runtime.checkpoint.Checkpoint`: :meth:`run` saves as it goes, and
        goes on from there, to the last bit, if the file exists.
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

    @old_arguments(optimizer="optim")
    def __init__(
        self,
        model: Callable,
        optim: optax.GradientTransformation,
        num_particles: int = 100,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
        average_from: float = 0.5,
        prior: bool = False,
        progress_bar: bool = True,
        checkpoint: Checkpoint | None = None,
    ):
        options = Options(num_particles, backward, num_backward)
        self._how = settings("ScoreAscent", model, {"score": score()}, options, frozen=True)
        if not hasattr(optim, "init") or not hasattr(optim, "update"):
            raise ArgumentTypeError(
                f"ScoreAscent: optim must be an optax transformation, got {described(optim)}."
            )
        check_number("ScoreAscent: average_from", average_from, at_least=0.0)
        if average_from > 1.0:
            raise ArgumentError(
                f"ScoreAscent: average_from must be a share of the steps, from 0 to 1, got {average_from}."
            )
        check_flag("ScoreAscent: prior", prior)
        self._optimizer, self._average_from, self._prior = optim, float(average_from), bool(prior)
        check_flag("ScoreAscent: progress_bar", progress_bar)
        check_checkpoint("ScoreAscent", checkpoint)
        self._progress_bar, self._checkpoint = progress_bar, checkpoint
        self._run = compiled(self._ascend, 3, (6,))
        self._started, self._finished = compiled(self._start, 3, (5,)), compiled(self._finish, 3, (5,))

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
            start, misplaced = self._started(seen, rng_key, params, args, kwargs, whole)
            step_keys = jax.random.split(jax.random.split(rng_key, 3)[2], int(num_steps))
            steps = _Steps(self, seen, step_keys, params, (args, kwargs), whole, start)
            about = {}
            if self._checkpoint is not None:
                about = {
                    "num_steps": int(num_steps),  # each step's key depends on it
                    "rng_key": np.asarray(jax.random.key_data(rng_key)).ravel().tolist(),
                    "data": digest(split(args, kwargs)[0]),
                    "settings": repr(self._how.described()),
                    "prior": self._prior,
                    **steps.program(),
                }
            saver = Saver(self._checkpoint, about)
            found = np.zeros((2 * steps.size, 0), np.float32)
            if (saved := saver.load(start)) is not None:
                (steps.state, found), steps.done = saved, saved[1].shape[-1]
            with progress("ScoreAscent", int(num_steps), steps.done, self._progress_bar) as bar:
                found, _ = train(steps, found, saver, bar, steps.shown)
            thetas, scores = (steps.by_name(x) for x in np.split(found, 2))
            if finite := bool(np.isfinite(found).all()):
                iterates, final = self._finished(seen, thetas, params, args, kwargs, whole)
        check_inside("ScoreAscent", misplaced, params)
        if not finite:
            if not whole:
                refuse_raw("ScoreAscent", lambda: lower(self._how.model, args, kwargs, params))
            raise _broken(thetas, scores)
        return Learned(final, iterates, jax.tree.map(jnp.asarray, scores))

    def _start(self, seen: Outside, rng_key, params, args, kwargs, whole: bool):
        """Unconstrained parameters, the optimiser's state, and a path to begin from."""
        how = self._how._replace(whole=whole)
        at_start = lower(how.model, args, kwargs, params)
        path_key, filter_key, _ = jax.random.split(rng_key, 3)
        space = how.begin(params, args, kwargs)
        values = jax.tree.map(lambda x: x[0], trajectories(path_key, filter_key, space, 1)[0])
        theta = unconstrained(at_start)
        return (theta, self._optimizer.init(theta), values), outside(at_start)

    def _ascend(self, seen: Outside, keys, params, args, kwargs, at, whole: bool):
        """Some steps (``at``: state, number, how many): parameters and scores, in buffers of one look."""
        state, start, num = at
        how, model = self._how._replace(whole=whole), self._how.model
        at_start = lower(model, args, kwargs, params)
        size = chunk_of(len(keys))

        def body(i, carry):
            (theta, optimizer, values), thetas, slopes = carry
            params = constrained(at_start, theta)
            sweep = conditional_paris(keys[start + i], how.begin(params, args, kwargs), values)
            slope = sweep.estimates["score"]
            if self._prior:
                prior = jax.grad(
                    lambda theta: lower(model, args, kwargs, constrained(at_start, theta)).log_prior
                )(theta)
                slope = jax.tree.map(jnp.add, slope, prior)
            updates, optimizer = self._optimizer.update(jax.tree.map(jnp.negative, slope), optimizer, theta)
            theta = optax.apply_updates(theta, updates)
            put = partial(jax.tree.map, lambda buffer, x: buffer.at[i].set(x))
            return (theta, optimizer, sweep.path), put(thetas, theta), put(slopes, slope)

        def buffers():
            return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), state[0])

        return jax.lax.fori_loop(0, num, body, (state, buffers(), buffers()))

    def _finish(self, seen: Outside, thetas, params, args, kwargs, whole: bool):
        """Constrained iterates, and the mean of those that count."""
        at_start = lower(self._how.model, args, kwargs, params)
        num_steps = len(jax.tree.leaves(thetas)[0])
        begun = min(int(self._average_from * num_steps), num_steps - 1)
        final = constrained(at_start, jax.tree.map(lambda x: x[begun:].mean(0), thetas))
        return jax.vmap(lambda theta: constrained(at_start, theta))(thetas), final


def _broken(thetas: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> NonFiniteError:
    """The error of the first step at which a number broke down: a score, or what the optimiser made of it."""

    def first(x: np.ndarray) -> int:
        bad = ~np.isfinite(x).reshape(len(x), -1).all(1)
        return int(np.argmax(bad)) if bad.any() else len(x)

    what, by_name = min(
        (("score", scores), ("parameter", thetas)), key=lambda kind: min(map(first, kind[1].values()))
    )
    name = min(by_name, key=lambda name: first(by_name[name]))
    told = f"The score of '{name}' is" if what == "score" else f"The optimiser made '{name}'"
    return NonFiniteError(
        f"{told} not finite at step {first(by_name[name])}. Begin nearer, or use a smaller learning rate. "
        "(Where no particle survives the data, ppl_ext.smoothing.smooth at the parameters of that step says "
        "which of them.)"
    )


class _Steps:
    """The steps of one ascent (:class:`ppl_ext.runtime.training.Steps`)."""

    def __init__(self, ascent: ScoreAscent, seen: Outside, keys, params, data, whole: bool, start):
        self.ascent, self.seen, self.params, self.data, self.whole = ascent, seen, params, data, whole
        self.keys, self.state, self.done, self.like = keys, start, 0, start[0]

    @property
    def size(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self.like))

    def some(self) -> np.ndarray | None:
        """Parameters after each step, and scores before it, flat: (2 size, steps)."""
        num = min(chunk_of(len(self.keys)), len(self.keys) - self.done)
        if num <= 0:
            return None
        self.state, *found = self.ascent._run(
            self.seen, self.keys, self.params, *self.data, (self.state, self.done, num), self.whole
        )
        self.done += num
        flat = [np.asarray(x)[:num].reshape(num, -1).T for part in found for x in jax.tree.leaves(part)]
        return np.concatenate(flat)

    def program(self) -> dict[str, str]:
        """What a step computes, for a checkpoint."""
        args, kwargs = self.ascent._run.arguments(self.seen, *self.data)

        def one(keys, params, state):
            return self.ascent._ascend(self.seen, keys, params, args, kwargs, (state, 0, 1), self.whole)

        return program_of(one, self.keys, self.params, self.state)

    def by_name(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        leaves, tree = jax.tree.flatten(self.like)
        parts = np.split(flat, np.cumsum([x.size for x in leaves])[:-1])
        shaped = [p.T.reshape(-1, *x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(tree, shaped)

    def shown(self, found: np.ndarray) -> str:
        return f"score {np.linalg.norm(np.split(found, 2)[1], axis=0).mean():.4g}"


@dataclass(frozen=True, eq=False, repr=False)
class Learned(Summarised):
    """What :meth:`ScoreAscent.run` found.

    :param params: the estimate, constrained.
    :param iterates: by step, (num_steps, ...).
    :param scores: in unconstrained parameters.

    >>> iterates, scores = jnp.array([0.0, 1.5, 2.5]), jnp.array([3.0, 0.5, -0.5])
    >>> found = Learned({"mean": jnp.array(2.0)}, {"mean": iterates}, {"mean": scores})
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

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.smoothing.verdicts import of_ascent

        return of_ascent(self)

    def summary(self) -> str:
        from ppl_ext.smoothing.summaries import of_ascent

        return of_ascent(self)

    def to_arviz(self) -> Any:
        """The ArviZ report: ``ascent_trace`` with the iterates and, as ``score_<name>``, the scores (chain,
        step, ...), one chain; ``estimates`` with ``params``. No ``posterior``: a maximum of the likelihood
        has no draws, and the spread of the iterates is that of the learning rate."""
        from ppl_ext.smoothing.arviz_reports import of_ascent

        return of_ascent(self)
