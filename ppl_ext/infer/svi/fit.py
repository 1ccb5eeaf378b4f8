"""Stochastic variational inference with restarts as chains, one compilation, and a stop that names the site
when a number breaks down.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import random
from jax.example_libraries.optimizers import Optimizer
from jax.sharding import Mesh
from numpyro.infer.elbo import ELBO as NumPyroELBO
from numpyro.optim import _NumPyroOptim

from ppl_ext.densities.numbers_at_hand import Numbers
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.infer.svi.checks import Where, check_first_step, densities_by_site, non_finite_site, sites_blamed
from ppl_ext.infer.svi.loop import Progress, take_steps
from ppl_ext.infer.svi.runner import runner_for
from ppl_ext.result import Fit
from ppl_ext.runtime.arguments import (
    check_call,
    check_count,
    check_flag,
    check_function,
    check_key,
    check_program,
    check_values,
    described,
)
from ppl_ext.runtime.checkpoint import Checkpoint, digest
from ppl_ext.runtime.constants import odd_data_blamed, split, taken
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.sharding import check_mesh, everywhere, placed
from ppl_ext.runtime.training import Saver, check_checkpoint, progress


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
    stable_update: bool = False,
    **kwargs,
) -> Fit:
    r"""Maximise an objective over the parameters of a guide (and a model) by stochastic gradients.

    .. math:: \theta_{t+1} = \theta_t + \text{optim}\big(\nabla_\theta \hat L(\theta_t)\big)

    It is NumPyro's ``SVI`` with what people expect around it: independent restarts as chains, run together by
    ``vmap``; a progress bar; no compilation when it is called again with the same functions and shapes;
    checks before the first step; a stop when a number breaks down.

    :param rng_key: a JAX key; chain c uses its own split of it.
    :param model: a NumPyro model.
    :param guide: a NumPyro guide, hand-written or from ``numpyro.infer.autoguide``.
    :param objective: any ``numpyro.infer.elbo.ELBO``: those of :mod:`ppl_ext.objectives`, NumPyro's, or your
        own.
    :param optim: an optax or NumPyro optimiser; of optax those too that search along a line (``lbfgs``).
    :param num_steps: number of gradient steps.
    :param args: arguments of model and guide, as are all other keywords. Arrays may change between calls
        without compiling again; other values (plate sizes, flags) are constants of the compilation, and so is
        what model and guide read from outside (attributes of their object, globals, closures): if that
        changes, the next fit compiles anew.
    :param num_chains: number of restarts, each from its own initial parameters where these are random.
    :param early_stopping: :class:`~ppl_ext.infer.Plateau`, or a function from the losses (chain, step) so far
        to a reason to stop or None.
    :param callback: called with a :class:`Progress` about fifty times a run; if it returns something true,
        the run stops.
    :param checkpoint: :class:`~ppl_ext.infer.Checkpoint`: save the run as it goes; go on from there, to the
        last bit, if the file exists. The file of a run with other data or options, or whose model or guide
        read other numbers from outside, is refused; the optimiser and ``num_steps`` may change.
    :param mesh: devices over which the chains are spread,
        ``jax.make_mesh((8,), ("chains",), axis_types=(AxisType.Auto,))``; ``num_chains`` is then a multiple
        of their number. Results do not depend on it but for rounding.
    :param stable_update: as in NumPyro's ``SVI.run``: a step whose loss or gradient is not finite is left
        out, and the run goes on. Its loss is NaN; :attr:`Fit.skipped` and the summary say how many there
        were. It is for the rare bad draw: a wrong density it hides.
    :param init_params: initial values of some or all ``param`` sites, the same for each chain.
    :return: :class:`~ppl_ext.result.Fit`; its ``params`` and ``losses`` have a leading chain axis.
    :raises ModelError: if model and guide do not fit together, naming the site.
    :raises NonFiniteError: if a density, loss or gradient is not finite, or the objective refuses a step. If
        that happens during the run, ``error.result`` is the Fit with the last good parameters.

    >>> import jax, numpyro, optax, numpyro.distributions as dist
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> from ppl_ext.objectives import ELBO
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> guide, adam = AutoNormal(model), optax.adam(0.02)
    >>> result = fit(jax.random.key(0), model, guide, ELBO(), adam, 1000, 2.0, progress_bar=False)
    >>> bool(abs(result.params["mu_auto_loc"][0] - 1.0) < 0.3)
    True
    """
    _check_arguments(rng_key, model, guide, objective, optim, num_steps, num_chains)
    _check_options(progress_bar, init_params, early_stopping, callback, checkpoint)
    check_flag("fit: stable_update", stable_update)
    check_mesh("fit", mesh, num_chains, "num_chains")
    for name, program in (("model", model), ("guide", guide)):
        check_call(f"fit: {name}", program, args, kwargs)
    started = time.perf_counter()
    given = Numbers(lambda: densities_by_site(model, runner.guide, args, kwargs, rng_key, first))
    with reading(model, guide, objective, optim) as outside, odd_data_blamed("fit: model", args, kwargs):
        runner = runner_for(outside, model, guide, objective, optim)
        states = runner.init(rng_key, num_chains, init_params, args, kwargs, stable_update)
        first = jax.tree.map(lambda x: x[0], runner.params(states))
        where = Where(model, guide, first, random.fold_in(rng_key, 1), args, kwargs)

        def compiled_for(data, constants):
            by_site = partial(runner.by_site, data, constants)
            if stable_update and not runner.many:
                check_first_step(by_site, where, stable=True)
            there, steps = (
                placed(mesh, data, leading=False),
                runner.stably if stable_update else runner.freely,
            )

            def compiled(states):
                return jax.block_until_ready(steps(placed(mesh, states), there, constants, 0))[0]

            if runner.many or stable_update:  # of many, a draw of the guide is none of the model
                return runner.begun(states, compiled, data, constants), there, constants
            with sites_blamed(by_site, where, at_once=not hasattr(objective, "initial_state")):
                return runner.begun(states, compiled, data, constants), there, constants

        look = partial(runner.traced, states)
        with given:
            states, data, constants = taken(outside, compiled_for, args, kwargs, look)
    compiled = time.perf_counter()

    losses, about = np.zeros((num_chains, 0), np.float32), {}
    if checkpoint is not None:
        about = {
            "objective": repr(objective),
            "num_chains": num_chains,
            "rng_key": _key_numbers(rng_key),
            "data": digest(split(args, kwargs)[0]),
        }
        with given:
            about |= runner.described(states, data, constants)
    saver = Saver(checkpoint, about)
    if (found := saver.load(states)) is not None:
        states, losses = placed(mesh, found[0]), found[1]
    with given, progress(repr(objective), num_steps, losses.shape[1], progress_bar) as bar:
        states, losses, alive, stop_reason = take_steps(
            runner,
            states,
            data,
            constants,
            losses,
            num_steps,
            bar,
            early_stopping,
            callback,
            saver,
            stable_update,
        )
    states = everywhere(states)
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
        outside=outside,
    )
    if not alive.all():
        by_site = partial(runner.by_site, data, constants)
        with given:
            if not runner.many and not np.isfinite(losses[:, 0]).all():
                check_first_step(by_site, where)
            raise _broken(result, outside, by_site, states, alive, runner.many)
    return result


def _check_arguments(rng_key, model, guide, objective, optim, num_steps, num_chains) -> None:
    # A key out of place is the likeliest slip: NumPyro's `run` takes it first, too, but its model and guide
    # elsewhere.
    for name, value in (("model", model), ("guide", guide)):
        check_program(f"fit: {name}", value)
    check_key("fit: rng_key, the first argument,", rng_key)
    if isinstance(objective, type) or not isinstance(objective, NumPyroELBO):
        raise ArgumentTypeError(
            "fit: objective must be an instance such as ppl_ext.objectives.ELBO(), got "
            f"{described(objective)}."
        )
    if getattr(objective, "options", vars(objective)).get("sum_sites", True) is False:
        raise ArgumentError(
            "fit: objective has sum_sites=False, and a dictionary by site cannot be descended. Leave it out."
        )
    if not isinstance(optim, _NumPyroOptim | Optimizer | optax.GradientTransformation):
        raise ArgumentTypeError(
            "fit: optim must be an optimiser of optax or NumPyro, such as optax.adam(0.01), got "
            f"{described(optim)}."
        )
    check_count("fit: num_steps", num_steps)
    check_count("fit: num_chains", num_chains)
    refuse_open_handlers("fit")


def _check_options(progress_bar, init_params, early_stopping, callback, checkpoint) -> None:
    check_flag("fit: progress_bar", progress_bar)
    if init_params is not None:
        check_values("fit: init_params", init_params)
    for name, value in (("early_stopping", early_stopping), ("callback", callback)):
        if value is not None:
            check_function(f"fit: {name}", value)
    if isinstance(early_stopping, type):
        raise ArgumentTypeError(
            f"fit: early_stopping must be an instance such as {early_stopping.__name__}(), got "
            f"{described(early_stopping)}."
        )
    check_checkpoint("fit", checkpoint)


def _key_numbers(rng_key) -> list[int]:
    return np.asarray(random.key_data(rng_key)).ravel().tolist()


def _broken(result: Fit, outside: Outside, by_site, states, alive: np.ndarray, many: bool) -> NonFiniteError:
    chain = int(np.argmin(alive))
    step = int(np.argmin(np.isfinite(result.losses[chain])))
    params = jax.tree.map(lambda x: x[chain], result.params)
    key = states.rng_key[chain]
    where = Where(result.model, result.guide, params, key, result.args, result.kwargs)
    try:
        outside.check(
            "There",
            result.model,
            result.guide,
            remedy=" the run began, so that it cannot be said which site it was.",
        )
        reason = getattr(result.objective, "refused", lambda params: None)(params) or (
            None if many else non_finite_site(by_site, where, num_draws=64, gradients=True)
        )
    except ModelError as changed:  # by a callback
        reason = str(changed)
    reason = (
        reason
        or "no single site is to blame at the last good parameters; a smaller step size or clipped "
        "gradients may help."
    )
    error = NonFiniteError(
        f"The loss or a parameter stopped being finite at step {step} of chain {chain}: {reason} "
        "The last good state is in this error's `.result`."
    )
    error.result = dataclasses.replace(result, stop_reason=f"not finite at step {step} of chain {chain}")
    return error
