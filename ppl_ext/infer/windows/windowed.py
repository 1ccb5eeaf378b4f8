"""Variational inference on a stream: free parameters of the last steps, and what left the window as draws."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from numpyro.infer.elbo import ELBO as NumPyroELBO

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.infer.windows.checks import alike, check_pair, check_state, strong
from ppl_ext.infer.windows.programs import FREE, Pair, Window
from ppl_ext.infer.windows.state import WindowResult, WindowState
from ppl_ext.objectives.elbo import ELBO
from ppl_ext.runtime.arguments import check_count, check_function, check_key, described
from ppl_ext.runtime.outside import Outside, reading, still_there


@dataclass(frozen=True, eq=False)
class windowed:
    r"""Fit a guide with free parameters of its own for each step to a stream, in a window that slides along.

    .. math:: \max_{a_{t-W+1:t}} \; \mathbb{E}_{q} \sum_{s = t-W+1}^t \log
        \frac{p(y_s, z_s \mid c_{s-1})}{q(z_s \mid a_s, c_{s-1})}, \qquad c_s = \text{the carry after step } s

    At each time a step enters with the parameters that you give, the others go on from where they were, and
    so do the optimiser's moments; then come some gradient steps. The oldest step leaves with its parameters
    as they are: the carry before the window is drawn from them, ``num_particles`` times, and the objective is
    an average over these draws. A window that is as long as the stream makes this the objective of the whole
    series. Inference can go back on the steps within the window, which a filter cannot.

    One compilation serves the whole stream. The objective is any of :mod:`ppl_ext.objectives`; one of your
    own weighs the divergence, the meta-prior of the source:
    ``(log_density(model, draw.values) - draw.log_density).weigh({"y": 1.0, "*": w})``.

    :param body: ``body(carry, x) -> (carry, output)``, the sample sites of a step, as ``scan`` takes it.
    :param guide: ``guide(free, carry, x)``, which draws its latent sites.
    :param free: first values of one step's parameters: an array or a tree of them.
    :param window: W.
    :param optim: an optimiser of optax.
    :param num_steps: gradient steps at each time.
    :param num_particles: P, draws of what is before the window.
    :raises ArgumentError: for numbers below 1.
    :raises ArgumentTypeError: for an optimiser that is none of optax, or an objective that is a class.
    :raises ModelError: from :meth:`init`, if body and guide have other latent sites, or other shapes of them.

    >>> import numpyro, numpyro.distributions as dist
    >>> def step(x, y):
    ...     x = numpyro.sample("x", dist.Normal(0.9 * x, 0.5))
    ...     numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    ...     return x, None
    >>> def guide(free, x, y):
    ...     numpyro.sample("x", dist.Normal(free["at"] + free["slope"] * x, jnp.exp(free["log_scale"])))
    >>> free = {"at": jnp.zeros(()), "slope": jnp.array(0.9), "log_scale": jnp.array(-1.0)}
    >>> run = windowed(step, guide, free, window=3, optim=optax.adam(0.05), num_steps=50)
    >>> state = run.init(jax.random.key(0), jnp.zeros(()), 0.0)
    >>> for y in (0.5, 1.0, 0.8, 1.2):
    ...     state = run.step(state, y)
    >>> run.result(state).draws["x"].shape
    (10, 3)

    Source: error regression of Ahmadi, Tani 2019, "A novel predictive-coding-inspired variational RNN model
    for online prediction and recognition", Neural Computation 31.
    """

    body: Callable
    guide: Callable
    free: Any
    window: int
    optim: optax.GradientTransformation
    num_steps: int
    objective: NumPyroELBO = ELBO()
    num_particles: int = 10

    def __post_init__(self):
        for name in ("body", "guide"):
            check_function(f"windowed: {name}", getattr(self, name))
        for name in ("window", "num_steps", "num_particles"):
            check_count(f"windowed: {name}", getattr(self, name))
        if not isinstance(self.optim, optax.GradientTransformation):
            raise ArgumentTypeError(
                "windowed: optim must be an optimiser of optax, such as optax.adam(0.01), got "
                f"{described(self.optim)}."
            )
        if isinstance(self.objective, type) or not isinstance(self.objective, NumPyroELBO):
            raise ArgumentTypeError(
                "windowed: objective must be an instance such as ppl_ext.objectives.ELBO(), got "
                f"{described(self.objective)}."
            )

    def init(self, rng_key: jax.Array, carry: Any, x: Any) -> WindowState:
        """The state before the first step.

        :param carry: what the first step starts from.
        :param x: the data of one step, for their shapes.
        """
        check_key("windowed.init: rng_key", rng_key)
        carry, x, free = jax.tree.map(strong, (carry, x, self.free))
        check_pair(self._pair, carry, x, free)
        with reading(*self._pair) as seen:
            state = WindowState(
                jnp.array(rng_key),
                _repeated(carry, self.num_particles),
                _repeated(jax.tree.map(jnp.zeros_like, x), self.window),
                jnp.zeros(self.window, bool),
                free := _repeated(free, self.window),
                jax.tree.map(strong, self.optim.init(free)),
                jnp.zeros((), jnp.int32),
                strong(jnp.full(self.num_steps, jnp.nan)),
                seen,
            )
            jax.eval_shape(self._moved, seen, state, x)  # while what is read is what the state says
        return state

    def step(self, state: WindowState, x: Any) -> WindowState:
        """The state with one step more. ``state`` is donated: it cannot be used again.

        :raises ModelError: if what body and guide read from outside has changed since the stream began, and
            steps on data of this shape were not compiled before.
        """
        check_state("step", state)
        return self._step(state.seen, state, alike(x, state.xs))

    def result(self, state: WindowState) -> WindowResult:
        """Draws of the guide as it is.

        :raises ArgumentError: before the first step.
        :raises NonFiniteError: if no gradient step of the last time had a finite loss.
        """
        check_state("result", state)
        if not (time := int(state.time)):
            raise ArgumentError("windowed.result: nothing was observed yet; call step first.")
        if not np.isfinite(losses := np.asarray(state.losses)).any():
            raise NonFiniteError(
                f"windowed.result: no loss is finite at step {time} of the stream, and the parameters were "
                "left as they are. Look for NaN or values outside of a support among the data in the window, "
                "or take smaller gradient steps."
            )
        carry, draws = self._drawn(state.seen, state)
        inside = min(time, self.window)
        last = jax.tree.map(lambda a: np.asarray(a[-inside:]), state.free)
        draws = {name: np.asarray(x[:, -inside:]) for name, x in draws.items()}
        return WindowResult(draws, jax.tree.map(np.asarray, carry), last, losses, time)

    @cached_property
    def _step(self) -> Callable:
        return jax.jit(self._moved, static_argnums=0, donate_argnums=1)

    @cached_property
    def _drawn(self) -> Callable:
        def drawn(seen: Outside, state: WindowState):
            still_there("windowed.result", seen, *self._pair)
            window = Window(state.before, state.xs, state.inside)
            return self._pair.draws(random.fold_in(state.key, 1), state.free, window)

        return jax.jit(drawn, static_argnums=0)

    @property
    def _pair(self) -> Pair:
        return Pair(self.body, self.guide)

    def _moved(self, seen: Outside, state: WindowState, x: Any) -> WindowState:
        still_there("windowed.step", seen, *self._pair)
        key, for_past, for_steps = random.split(state.key, 3)
        window = self._slid(for_past, state, x)
        entering = jax.tree.map(strong, self.free)
        free = jax.tree.map(_one_on, state.free, entering)
        moments = optax.tree.map_params(self.optim, lambda a: _one_on(a, jnp.zeros_like(a[0])), state.moments)

        def loss(free, key):
            model, guide = partial(self._pair.model, window), partial(self._pair.guide_of, window, free)
            return self.objective.loss(key, {FREE: free}, model, guide)

        def descend(now, key):
            value, slope = jax.value_and_grad(loss)(now[0], key)
            change, after = self.optim.update(slope, now[1], now[0])
            new = optax.apply_updates(now[0], change), after
            fine = jnp.isfinite(value) & _finite(new)
            return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, now), value

        keys = random.split(for_steps, self.num_steps)
        (free, moments), losses = jax.lax.scan(descend, (free, moments), keys)
        return WindowState(key, *window, free, moments, state.time + 1, losses, seen)

    def _slid(self, key: jax.Array, state: WindowState, x: Any) -> Window:
        """The window one step on; what was its first step is drawn."""
        first = jax.tree.map(lambda a: a[0], (state.free, state.xs, state.inside))

        def past(key, carry):
            return self._pair.drawn(key, first[0], carry, *first[1:])[0]

        before = jax.vmap(past)(random.split(key, self.num_particles), state.before)
        return Window(before, *jax.tree.map(_one_on, (state.xs, state.inside), (x, jnp.array(True))))


def _repeated(tree: Any, num: int) -> Any:
    return jax.tree.map(lambda a: jnp.repeat(a[None], num, 0), tree)


def _one_on(series: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.concatenate([series[1:], last[None].astype(series.dtype)])


def _finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(tree)]).all()
