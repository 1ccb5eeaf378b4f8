"""Tune a lifted prior until the functions it draws are those of a target."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from numpyro.optim import _NumPyroOptim

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.priors.distances.distance import Distance
from ppl_ext.priors.distances.sliced import SlicedWasserstein
from ppl_ext.priors.functions.outputs import Output, check_output
from ppl_ext.priors.lifting import Lifted
from ppl_ext.priors.matching.compiled_steps import Steps, programs_for
from ppl_ext.priors.matching.inputs import Fixed, check_inputs
from ppl_ext.priors.matching.matched import Matched
from ppl_ext.priors.matching.problem import Matching
from ppl_ext.priors.matching.report import write_report
from ppl_ext.priors.targets.target import Target
from ppl_ext.runtime.arguments import check_call, check_count, check_flag, check_key, check_mapping, described
from ppl_ext.runtime.checkpoint import Checkpoint, digest
from ppl_ext.runtime.checkpoint import program as program_of
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import reading
from ppl_ext.runtime.training import Saver, check_checkpoint, progress, train


def match(
    rng_key: jax.Array,
    lifted: Lifted,
    *,
    output: Output = None,
    inputs: Any,
    target: Target,
    distance: Distance | None = None,
    num_steps: int = 500,
    optim: Any = None,
    num_draws: int = 128,
    progress_bar: bool = True,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Matched:
    r"""Tune the hyperparameters of a lifted prior so that its functions match a target's.

    .. math:: \min_\psi\; E_X\, D\big(p_\psi(f(X)),\, p_{\text{target}}(f(X))\big)

    Each step draws a measurement set X, ``num_draws`` functions of the model and of the target there, and
    moves ψ along the gradient of the distance, taken through the draws. All steps are compiled together, and
    kept: another match of the same ``lifted``, ``target`` and settings, on inputs of the same shape, compiles
    nothing.

    :param rng_key: a JAX key.
    :param lifted: from :func:`~ppl_ext.priors.lift_prior`.
    :param output: where the model's function is: the name of a deterministic site, or of a likelihood site,
        whose location is taken; a function from a dict of all sites' values to an array; by default what the
        model returns. It is (M,), or (M, P) for P outputs.
    :param inputs: an array (M, d) or (M,), the same at every step, or a function from a key to one, such as
        :func:`~ppl_ext.priors.measurement_inputs` or :func:`~ppl_ext.priors.designed_inputs`. It is the
        model's first argument; ``args`` and ``kwargs`` follow it.
    :param target: anything with ``sample(key, inputs, num_draws)``: see
        :class:`~ppl_ext.priors.targets.target.Target`.
    :param distance: by default :class:`~ppl_ext.priors.SlicedWasserstein`.
    :param optim: an optax or NumPyro optimiser; by default Adam from a rate of 0.05 down to 0 along a cosine,
        on logarithms of scales.
    :param num_draws: functions of the model and of the target in each step.
    :param checkpoint: a :class:`~ppl_ext.runtime.checkpoint.Checkpoint`: save the run as it goes; go on from
        there, to the last bit, if the file exists. ``num_steps`` then counts the steps made before, too; with
        the default optimiser, whose rate falls to 0 at the last step, it has to stay.
    :raises ArgumentError: if the checkpoint is damaged, or of another match: it says what differs.
    :return: :class:`~ppl_ext.priors.matching.matched.Matched`: ``.model`` is a NumPyro model with the tuned
        values as constants.
    :raises ModelError: if the lifted patterns, the output or the target do not fit the model, naming the
        site.
    :raises NonFiniteError: if a number breaks down, naming the site it came from; ``error.result`` has the
        last good hyperparameters.

    >>> import numpyro, numpyro.distributions as dist, tinygp
    >>> from ppl_ext.priors import Gaussian, GaussianProcess, lift_prior
    >>> def line(x):
    ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     return slope * x
    >>> target = GaussianProcess(lambda a, b: 4.0 * a @ b.T)  # slopes with standard deviation 2
    >>> lifted, inputs = lift_prior(line, {"slope": Gaussian()}), jnp.linspace(-1, 1, 8)
    >>> options = {"num_steps": 150, "progress_bar": False}
    >>> fit = match(jax.random.key(0), lifted, inputs=inputs, target=target, **options)
    >>> bool(abs(fit.hyperparameters["slope"]["slope"]["scale"] - 2.0) < 0.2)
    True
    """
    distance = SlicedWasserstein() if distance is None else distance
    kwargs = {} if kwargs is None else kwargs
    _check_arguments(
        rng_key, lifted, output, target, distance, num_steps, optim, num_draws, progress_bar, args, kwargs
    )
    check_checkpoint("match", checkpoint)
    refuse_open_handlers("match")
    sampler = _sampler(inputs)
    started = time.perf_counter()
    keys = dict(zip(("inputs", "start", "steps", "report"), random.split(rng_key, 4), strict=True))
    first = sampler(keys["inputs"])
    check_call("match: the lifted model", lifted.program, (first, *args), kwargs)
    layout = lifted.layout(first, *args, **kwargs)
    matching = Matching(lifted, layout, output, sampler, target, distance, num_draws, args, dict(kwargs))
    matching.check(keys["inputs"])
    with reading(*matching.read(), eqx.partition(sampler, eqx.is_array)[1], optim) as matching.outside:
        programs = programs_for(matching, optim, num_steps)
        optimiser = programs.optimiser
        raw = jax.tree.map(np.asarray, layout.init())  # on the host: the steps donate their buffers
        state = distance.start(keys["start"], matching.num_values)
        carry = (optimiser.init(jax.tree.map(jnp.array, raw)), state, jnp.array(True))
        steps = Steps(programs, sampler, carry, keys["steps"], num_steps)
    losses, about = np.zeros(0, np.float32), {}
    compiled = time.perf_counter()
    if checkpoint is not None:
        about = {
            "distance": repr(distance),
            "num_draws": num_draws,
            "inputs": digest([first]),
            "rng_key": np.asarray(random.key_data(rng_key)).ravel().tolist(),
            **({"num_steps": num_steps} if optim is None else {}),
            **program_of(matching.one_step, raw, keys["start"], steps.state[1], first),
        }
    saver = Saver(checkpoint, about)
    if (found := saver.load(steps.state)) is not None:
        (steps.state, losses), steps.done = found, len(found[1])
    with progress(type(distance).__name__, num_steps, len(losses), progress_bar) as bar:
        losses, _ = train(steps, losses, saver, bar, lambda new: f"distance {new.mean():.4g}")
    ended = time.perf_counter()
    tuned = jax.tree.map(np.asarray, optimiser.get_params(steps.state[0]))
    result = Matched(
        model=lifted.at(layout, tuned),
        hyperparameters=jax.tree.map(np.asarray, layout.values(tuned)),
        losses=losses,
        matching=matching,
        layout=layout,
        raw=tuned,
        initial=raw,
        rng_key=keys["report"],
        compile_seconds=compiled - started,
        run_seconds=ended - compiled,
    )
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses)))
        result.losses = losses[:step]
        error = NonFiniteError(
            f"match: at step {step}, "
            f"{matching.what_broke(tuned, random.fold_in(keys['steps'], step), steps.state[1])}"
        )
        error.result = result
        raise error
    result.report = write_report(matching, programs.measured, raw, tuned, keys["report"])
    return result


def _sampler(inputs: Any) -> Callable[[jax.Array], jax.Array]:
    if callable(inputs):
        check_call("match: inputs", inputs, (random.key(0),), {})
        drawn = inputs(random.key(0))
        check_inputs("match: what inputs(key) returns", drawn)
        return inputs
    fixed = check_inputs("match: inputs", inputs)
    return Fixed(fixed)


def _check_arguments(
    rng_key, lifted, output, target, distance, num_steps, optim, num_draws, progress_bar, args, kwargs
) -> None:
    check_key("match: rng_key, the first argument,", rng_key)
    if not isinstance(lifted, Lifted):
        raise ArgumentTypeError(
            f"match: lifted must come from lift_prior(model, {{pattern: family}}), got {described(lifted)}."
        )
    check_output("match: output", output)
    if isinstance(target, type) or not isinstance(target, Target):
        raise ArgumentTypeError(
            "match: target must have a method sample(rng_key, inputs, num_draws), as "
            f"GaussianProcess(kernel) has, got {described(target)}."
        )
    if isinstance(distance, type) or not isinstance(distance, Distance):
        raise ArgumentTypeError(
            f"match: distance must be an instance such as SlicedWasserstein(), got {described(distance)}."
        )
    check_count("match: num_steps", num_steps)
    check_count("match: num_draws", num_draws)
    if num_draws < 4:
        raise ArgumentError(f"match: num_draws must be at least 4, got {num_draws}.")
    if optim is not None and not isinstance(optim, _NumPyroOptim | optax.GradientTransformation):
        raise ArgumentTypeError(
            "match: optim must be an optimiser of optax or NumPyro, such as optax.adam(0.05), got "
            f"{described(optim)}."
        )
    check_flag("match: progress_bar", progress_bar)
    if not isinstance(args, tuple):
        raise ArgumentTypeError(
            f"match: args must be a tuple of further arguments of the model, got {described(args)}."
        )
    check_mapping("match: kwargs", kwargs, "of further arguments of the model")
