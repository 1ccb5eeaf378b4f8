"""Stochastic variational inference with restarts as chains, one compilation, and a stop that names the site when a number breaks down."""

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jax.example_libraries.optimizers import Optimizer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.elbo import ELBO as NumPyroELBO
from numpyro.optim import _NumPyroOptim
from numpyro.primitives import _PYRO_STACK
from tqdm.auto import tqdm

from ppl_ext.arguments import check_call, check_count, check_data, check_flag, check_function, check_key, check_program, check_values, told
from ppl_ext.checkpoint import Checkpoint
from ppl_ext.errors import ArgumentError, ArgumentTypeError, HandlerError, NonFiniteError
from ppl_ext.expectation import Objective
from ppl_ext.explain import discrete_site, explained, past_inner_jits
from ppl_ext.infer.checks import check_first_step, check_set_up, densities_by_site, non_finite_site
from ppl_ext.result import Fit

CHUNK = 1000  # steps between two looks at the losses, at most


class Progress(NamedTuple):
    """What a callback sees: ``losses`` (chain, step) so far, and ``params()``, the parameters now, with a leading chain axis."""

    losses: np.ndarray
    params: Callable[[], dict[str, Any]]


def fit(
    rng_key: jax.Array,
    model: Callable,
    guide: Callable,
    objective: NumPyroELBO,
    optim: Any,
    num_steps: int,
    *args,
    num_chains: int = 1,
    progress_bar: bool = True,
    init_params: dict[str, Any] | None = None,
    early_stopping: Callable[[np.ndarray], str | None] | None = None,
    callback: Callable[[Progress], Any] | None = None,
    checkpoint: Checkpoint | None = None,
    mesh: Mesh | None = None,
    **kwargs,
) -> Fit:
    r"""Maximise an objective over the parameters of a guide (and a model) by stochastic gradients.

    .. math:: \theta_{t+1} = \theta_t + \text{optim}\big(\nabla_\theta \hat L(\theta_t)\big)

    It is NumPyro's ``SVI`` with what people expect around it: independent restarts as chains, run together by ``vmap``; a progress bar; no
    compilation when it is called again with the same functions and shapes; checks before the first step; a stop when a number breaks down.

    :param rng_key: a JAX key; chain c uses its own split of it.
    :param model: a NumPyro model.
    :param guide: a NumPyro guide, hand-written or from ``numpyro.infer.autoguide``.
    :param objective: any ``numpyro.infer.elbo.ELBO``: those of :mod:`ppl_ext.objectives`, NumPyro's, or your own.
    :param optim: an optax or NumPyro optimiser.
    :param num_steps: number of gradient steps.
    :param args: arguments of model and guide, as are all other keywords. Arrays may change between calls without compiling again; other
        values (plate sizes, flags) are constants of the compilation.
    :param num_chains: number of restarts, each from its own initial parameters where these are random.
    :param early_stopping: :class:`~ppl_ext.infer.Plateau`, or a function from the losses (chain, step) so far to a reason to stop or None.
    :param callback: called with a :class:`Progress` about fifty times a run; if it returns something true, the run stops.
    :param checkpoint: :class:`~ppl_ext.infer.Checkpoint`: save the run as it goes; go on from there, to the last bit, if the file exists.
    :param mesh: devices over whose first axis the chains are spread, ``jax.make_mesh((8,), ("chains",), axis_types=(AxisType.Auto,))``;
        ``num_chains`` is then a multiple of that axis. Results do not depend on it but for rounding.
    :param init_params: initial values of some or all ``param`` sites, the same for each chain.
    :return: :class:`~ppl_ext.result.Fit`; its ``params`` and ``losses`` have a leading chain axis.
    :raises ModelError: if model and guide do not fit together, naming the site.
    :raises NonFiniteError: if a density, loss or gradient is not finite. If that happens during the run, ``error.result`` is the Fit with
        the last good parameters.

    >>> import jax, numpyro, optax, numpyro.distributions as dist
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> from ppl_ext.objectives import ELBO
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> result = fit(jax.random.key(0), model, AutoNormal(model), ELBO(), optax.adam(0.02), 1000, 2.0, progress_bar=False)
    >>> bool(abs(result.params["mu_auto_loc"][0] - 1.0) < 0.3)
    True
    """
    _check_arguments(rng_key, model, guide, objective, optim, num_steps, num_chains)
    _check_options(progress_bar, init_params, early_stopping, callback, checkpoint)
    spread = _spread(mesh, num_chains)
    for name, program in (("model", model), ("guide", guide)):
        check_call(f"fit: {name}", program, args, kwargs)
    check_data("fit: model", args, kwargs)
    started = time.perf_counter()
    runner = _runner(model, guide, objective, optim)
    data, constants = _split_arguments(args, kwargs)
    states = runner.init(rng_key, num_chains, init_params, args, kwargs)
    first = jax.tree.map(lambda x: x[0], runner.params(states))
    check_first_step(partial(runner.by_site, data, constants), model, guide, first, random.fold_in(rng_key, 1), args, kwargs)
    states = spread(runner.carrying(states, data, constants))
    states, _, _ = jax.block_until_ready(runner.steps(states, data, constants, 0))  # compiles
    compiled = time.perf_counter()

    about: dict[str, Any] = {
        "objective": repr(objective),
        "num_chains": num_chains,
        "rng_key": _key_numbers(rng_key),
        "data": _digest(data),
    }
    losses = np.zeros((num_chains, 0), np.float32)
    if checkpoint is not None and (found := checkpoint.load(states, about)) is not None:
        states, losses = spread(found[0]), found[1]
    saved, alive = losses.shape[1], np.ones(num_chains, bool)
    stop_reason: str | None = None
    chunk = min(CHUNK, max(1, -(-num_steps // 50)))
    with tqdm(total=num_steps, initial=saved, disable=not progress_bar, desc=repr(objective), unit="step") as bar:
        while losses.shape[1] < num_steps and stop_reason is None:
            # Chunks end at multiples of their length, wherever the run was resumed, so what looks at the losses sees the same ones.
            num = min(chunk - losses.shape[1] % chunk, num_steps - losses.shape[1])
            states, new, alive = runner.steps(states, data, constants, num)
            losses, alive = np.concatenate([losses, np.asarray(new)[:, :num]], axis=1), np.asarray(alive)
            bar.update(num)
            bar.set_postfix_str(_postfix(losses, chunk), refresh=False)
            if not alive.all():
                break
            stop_reason = early_stopping(losses) if early_stopping is not None else None
            if stop_reason is None and callback is not None and callback(Progress(losses, partial(runner.params, states))):
                stop_reason = "stopped by the callback"
            if checkpoint is not None and losses.shape[1] - saved >= checkpoint.every:
                checkpoint.save(states, losses, about)
                saved = losses.shape[1]
    if checkpoint is not None and saved < losses.shape[1]:
        checkpoint.save(states, losses, about)
    result = Fit(
        params=jax.tree.map(np.asarray, runner.params(states)),
        losses=losses,
        model=model,
        guide=runner.guide,
        objective=objective,
        args=args,
        kwargs=kwargs,
        rng_key=rng_key,
        num_steps=losses.shape[1],
        compile_seconds=compiled - started,
        run_seconds=time.perf_counter() - compiled,
        stop_reason=stop_reason or "completed",
    )
    if not alive.all():
        raise _broken(result, partial(runner.by_site, data, constants), states, alive)
    return result


def _check_arguments(rng_key, model, guide, objective, optim, num_steps, num_chains) -> None:
    # A key out of place is the likeliest slip: NumPyro's `run` takes it first, too, but its model and guide elsewhere.
    for name, value in (("model", model), ("guide", guide)):
        check_program(f"fit: {name}", value)
    check_key("fit: rng_key, the first argument,", rng_key)
    if isinstance(objective, type) or not isinstance(objective, NumPyroELBO):
        raise ArgumentTypeError(f"fit: objective must be an instance such as ppl_ext.objectives.ELBO(), got {told(objective)}.")
    if not isinstance(optim, _NumPyroOptim | Optimizer | optax.GradientTransformation):
        raise ArgumentTypeError(f"fit: optim must be an optimiser of optax or NumPyro, such as optax.adam(0.01), got {told(optim)}.")
    check_count("fit: num_steps", num_steps)
    check_count("fit: num_chains", num_chains)
    if _PYRO_STACK:
        names = ", ".join(type(h).__name__ for h in _PYRO_STACK)
        raise HandlerError(f"fit is compiled, and would ignore the open handlers ({names}). Wrap the model or guide with them instead.")


def _check_options(progress_bar, init_params, early_stopping, callback, checkpoint) -> None:
    check_flag("fit: progress_bar", progress_bar)
    if init_params is not None:
        check_values("fit: init_params", init_params)
    for name, value in (("early_stopping", early_stopping), ("callback", callback)):
        if value is not None:
            check_function(f"fit: {name}", value)
    if isinstance(early_stopping, type):
        raise ArgumentTypeError(f"fit: early_stopping must be an instance such as {early_stopping.__name__}(), got {told(early_stopping)}.")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise ArgumentTypeError(f"fit: checkpoint must be a ppl_ext.infer.Checkpoint, got {told(checkpoint)}.")


def _spread(mesh: Mesh | None, num_chains: int) -> Callable[[Any], Any]:
    """Put what has a leading chain axis on the devices of a mesh."""
    if mesh is None:
        return lambda states: states
    if not isinstance(mesh, Mesh):
        raise ArgumentTypeError(f"fit: mesh must be a jax.sharding.Mesh, such as jax.make_mesh gives, got {told(mesh)}.")
    axis = mesh.axis_names[0]
    if num_chains % mesh.shape[axis]:
        raise ArgumentError(
            f"fit: num_chains={num_chains} does not divide over the {mesh.shape[axis]} devices of the mesh's axis '{axis}'."
        )
    return lambda states: jax.device_put(states, NamedSharding(mesh, PartitionSpec(axis)))


def _postfix(losses: np.ndarray, chunk: int) -> str:
    """The loss, averaged over chains and the last chunk of steps, and its change from the chunk before."""
    now = losses[:, -chunk:].mean()
    before = losses[:, -2 * chunk : -chunk]
    return f"loss {now:.4g}" + (f" ({now - before.mean():+.2g})" if before.size else "")


def _digest(data: list) -> str:
    digest = hashlib.sha256()
    for x in data:
        if x is not None:
            digest.update(np.ascontiguousarray(np.asarray(x)).tobytes())
    return digest.hexdigest()[:16]


def _key_numbers(rng_key) -> list[int]:
    return np.asarray(random.key_data(rng_key)).ravel().tolist()


class _Runner:
    """SVI for one (model, guide, objective, optimiser), compiled once per shape of the data."""

    def __init__(self, model, guide, objective, optim):
        self.svi = SVI(model, guide, optim, loss=objective)
        self.guide = guide
        self.unset = _unset(guide)
        self.carries = isinstance(objective, Objective)  # until the first state turns out empty
        self.freely, self.carefully = (jax.jit(partial(self._steps, checked), static_argnums=2) for checked in (False, True))
        self.by_site = jax.jit(self._by_site, static_argnums=1)

    def init(self, rng_key, num_chains: int, init_params, args, kwargs):
        """One initial state per chain, stacked."""
        keys = random.split(rng_key, num_chains)
        # A guide that an earlier fit set up would start its first chain where that one did.
        again = isinstance(self.guide, AutoGuide) and self.guide.prototype_trace is not None
        try:
            first = past_inner_jits(lambda: self.svi.init(keys[0], *args, init_params=init_params, **kwargs), checked=False)
        except Exception as error:
            if init_params:
                self._check_init_shapes(keys[0], init_params, args, kwargs)
            if discrete_site(error) is None:
                check_set_up(self.svi.model, self.guide, keys[0], args, kwargs)
            with explained(self.guide, lambda: "to be set up"):
                raise
        self._check_init_params(init_params)
        if again:
            first = self._restart(keys[0], init_params, args, kwargs)
        others = [self._restart(key, init_params, args, kwargs) for key in keys[1:]]
        return jax.tree.map(lambda *x: jnp.stack(x), first, *others)

    def carrying(self, states, data, constants):
        """The states, with what the objective itself carries from step to step."""
        if not self.carries:
            return states

        def start(state, data):
            args, kwargs = _join_arguments(data, constants)
            params = self.svi.get_params(state) | (state.mutable_state or {})
            key = random.fold_in(state.rng_key, 0)
            started = self.svi.loss.initial_state(key, params, self.svi.model, self.guide, *args, **kwargs)
            return jax.tree.map(jnp.asarray, started)

        # Most objectives carry nothing: then this is traced, and nothing runs.
        started = jax.jit(jax.vmap(start, in_axes=(0, None)))(states, data)
        self.carries = bool(started)
        return states._replace(mutable_state={**started, **(states.mutable_state or {})} or None)

    def _restart(self, key, init_params, args, kwargs):
        return past_inner_jits(lambda: self._fresh_svi().init(key, *args, init_params=init_params, **kwargs), checked=False)

    def _fresh_svi(self) -> SVI:
        """An autoguide draws its initial location when it is set up, once; each restart sets up a copy."""
        return SVI(self.svi.model, _unset(self.unset), self.svi.optim, loss=self.svi.loss)

    def _check_init_params(self, init_params) -> None:
        known = self.svi.constrain_fn.args[0]
        unknown = sorted(set(init_params or {}) - set(known))
        if unknown:
            raise ArgumentError(f"init_params names {unknown}, which are no param sites. There are: {sorted(known)}.")

    def _check_init_shapes(self, rng_key, init_params, args, kwargs) -> None:
        """If the run can be set up without them, initial values of the wrong shape are the cause."""
        try:
            default = self.svi.get_params(self.svi.init(rng_key, *args, **kwargs))
        except Exception:
            return
        for name, value in init_params.items():
            if name in default and jax.tree.map(jnp.shape, value) != (expected := jax.tree.map(jnp.shape, default[name])):
                raise ArgumentError(f"fit: init_params gives '{name}' shape {jnp.shape(value)}, but the param has {expected}.") from None

    def params(self, states) -> dict[str, Any]:
        """Constrained values by ``param`` site, and those of ``numpyro.mutable`` sites: neither model nor guide runs without them."""
        return jax.vmap(self.svi.get_params)(states) | (states.mutable_state or {})

    def _by_site(self, data, constants, keys, params):
        args, kwargs = _join_arguments(data, constants)
        return jax.vmap(partial(densities_by_site, self.svi.model, self.guide, args, kwargs), in_axes=(0, None))(keys, params)

    def steps(self, states, data, constants, num: int):
        """``num`` steps of every chain: (states, losses, which chains are still alive).

        A check of each step would cost as much as a small model's step itself. So a chunk runs without any, and if numbers broke down in
        it, it runs again from its start with one, to end where the last good state was.
        """
        new, losses, finite = self.freely(states, data, constants, num)
        return (new, losses, finite) if np.all(finite) else self.carefully(states, data, constants, num)

    def _steps(self, checked: bool, states, data, constants, num: jax.Array):
        args, kwargs = _join_arguments(data, constants)

        def free(i, carry):
            state, losses = carry
            state, loss = self.svi.update(state, *args, **kwargs)
            return state, losses.at[i].set(loss)

        def careful(i, carry):
            state, losses, alive = carry
            new, loss = self.svi.update(state, *args, **kwargs)
            finite = alive & jnp.isfinite(loss) & self._finite(new)
            # The last good state is kept, its key included, so that what broke can be looked at again.
            state = jax.tree.map(partial(_select, finite), new, state)
            return state, losses.at[i].set(jnp.where(finite, loss, jnp.nan)), finite

        def chain(state):
            start = (state, jnp.zeros(CHUNK))
            if checked:
                return lax.fori_loop(0, num, careful, (*start, jnp.array(True)))
            state, losses = lax.fori_loop(0, num, free, start)
            return state, losses, jnp.isfinite(losses).all() & self._finite(state)

        if jax.tree.leaves(states)[0].shape[0] > 1:
            return jax.vmap(chain)(states)
        return jax.tree.map(lambda x: x[None], chain(jax.tree.map(lambda x: x[0], states)))  # an axis of one would slow products down

    def _finite(self, state) -> jax.Array:
        leaves = jax.tree.leaves(self.svi.optim.get_params(state.optim_state))
        return reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in leaves], jnp.array(True))


def _unset(guide):
    """A copy of an autoguide as it was before it was set up; any other guide itself.

    Kept from before the first run: a guide that was set up holds arrays, and to copy these compiles.
    """
    if not isinstance(guide, AutoGuide):
        return guide
    guide = copy.copy(guide)
    guide.prototype_trace = None
    return copy.deepcopy(guide)


def _split_arguments(args: tuple, kwargs: dict) -> tuple[list, tuple]:
    """Arrays and floats are data; the rest (sizes, flags, functions) are constants of the compilation."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    is_data = [isinstance(x, jax.Array | np.ndarray | np.floating | float) for x in leaves]
    data = [x if d else None for x, d in zip(leaves, is_data, strict=True)]
    return data, (structure, tuple(None if d else x for x, d in zip(leaves, is_data, strict=True)))


def _join_arguments(data: list, constants: tuple) -> tuple[tuple, dict]:
    structure, rest = constants
    return jax.tree.unflatten(structure, [r if d is None else d for d, r in zip(data, rest, strict=True)])


def _select(keep, new, old):
    return jnp.where(keep, new, old)


@lru_cache(maxsize=16)
def _cached_runner(model, guide, objective, optim) -> _Runner:
    return _Runner(model, guide, objective, optim)


def _runner(model, guide, objective, optim) -> _Runner:
    try:
        return _cached_runner(model, guide, objective, optim)
    except TypeError:  # one of them cannot be hashed: it works, without the cache
        return _Runner(model, guide, objective, optim)


def _broken(result: Fit, by_site, states, alive: np.ndarray) -> NonFiniteError:
    chain = int(np.argmin(alive))
    step = int(np.argmin(np.isfinite(result.losses[chain])))
    params = jax.tree.map(lambda x: x[chain], result.params)
    key = states.rng_key[chain]
    reason = non_finite_site(by_site, result.model, result.guide, params, key, result.args, result.kwargs, num_draws=64, gradients=True)
    reason = reason or "no single site is to blame at the last good parameters; a smaller step size or clipped gradients may help."
    error = NonFiniteError(
        f"The loss or a parameter stopped being finite at step {step} of chain {chain}: {reason} "
        "The last good state is in this error's `.result`."
    )
    error.result = dataclasses.replace(result, stop_reason=f"not finite at step {step} of chain {chain}")
    return error
