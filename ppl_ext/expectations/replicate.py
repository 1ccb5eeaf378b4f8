"""Independent particles inside an expectation: :func:`replicate`, each a
:class:`~ppl_ext.expectations.run.Run` within the run around it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax, random

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.expectations.choices import Choice
from ppl_ext.expectations.run import Run, current_run
from ppl_ext.runtime.arguments import check_count, check_flag, check_function
from ppl_ext.tracing.inner_jits import InsideError, rolled, trace_state


def replicate(fn: Callable, num_particles: int, *, vectorize: bool | Callable | None = None):
    r"""Run ``fn`` independently ``num_particles`` times and stack what it returns along a new first axis.

    :param fn: a function without arguments, with :func:`~ppl_ext.simulate`, :func:`~ppl_ext.log_density` or
        NumPyro sites inside.
    :param num_particles: at least 1.
    :param vectorize: by ``vmap``, or one after another to save memory, or a function such as ``jax.lax.map``
        that maps a function over the first axes of a tree; by default as the objective's
        ``vectorize_particles`` says: by ``vmap``.
    :return: ``fn``'s output with a leading axis; a :class:`~ppl_ext.densities.log_density.LogDensity` over
        particles if it returns one.
    :raises HandlerError: outside an expectation.

    >>> import jax, ppl_ext, numpyro, numpyro.distributions as dist
    >>> one = lambda: numpyro.sample("z", dist.Normal(3.0, 0.1))
    >>> mean = ppl_ext.expectation(lambda: replicate(one, 500).mean())
    >>> bool(abs(mean.value(jax.random.key(0)) - 3.0) < 0.1)
    True
    """
    check_function("replicate: fn", fn)
    check_count("replicate: num_particles", num_particles)
    if vectorize is not None and not callable(vectorize):
        check_flag("replicate: vectorize", vectorize)
    return replicated(current_run(), fn, num_particles, vectorize)


def replicated(run: Run, fn: Callable, num: int, vectorize: bool | Callable | None = None):
    """:func:`replicate` within ``run``, which need not be the one that handles sites now."""
    if trace_state() != run.state:
        raise InsideError(
            "replicate is called inside jax.vmap, jax.jit or another transformation within the program; put "
            "that inside."
        )
    node = run.unique("replicate")
    key = run.next_key() if num > 1 else run.key
    if node in run.outputs:
        return run.outputs[node]
    forced = {i: v for i, v in run.forced.items() if i.startswith(node + "/")}
    kept: list[Choice] = []
    drawn = dict(run.drawn)

    def body(key, forced):
        inner = run.inside(node, key, forced, num)
        with inner:
            out = fn()
        kept[:] = inner.choices
        if num == 1:
            run.num_keys = inner.num_keys
        run.can_fork |= inner.can_fork
        return out, inner.laws, inner.mutable, inner.weight

    if num == 1 and not run.tracing:
        single = body(key, jax.tree.map(lambda x: x[0], forced))
        out, laws, mutable, weight = jax.tree.map(lambda x: jnp.asarray(x)[None], single)
    elif not run.tracing and callable(own := run.vectorize if vectorize is None else vectorize):
        out, laws, mutable, weight = _mapped(own, body, random.split(key, num), forced)
    elif run.tracing or not (run.vectorize if vectorize is None else vectorize):
        # While tracing for credit, too: a scan without a carry shows the data flow that particles are
        # independent.
        keys = key[None] if num == 1 else random.split(key, num)
        out, laws, mutable, weight = rolled(lax.map, lambda args: body(*args), (keys, forced))
    else:
        out, laws, mutable, weight = jax.vmap(body)(random.split(key, num), forced)
    run.choices += kept
    run.laws |= laws
    run.drawn = drawn
    run.weight = run.weight * weight.prod()  # of one particle: among several nothing forks
    merged = jax.tree.map(lambda x: x.mean(0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[0], mutable)
    run.mutable = {**merged, **run.carries}
    out = _with_particle_axis(out)
    run.replicates[node] = out
    return out


def _mapped(own: Callable, body: Callable, keys, forced):
    """By a map of the user's: ``own(fn, keys)``, or ``own(fn)(keys)`` if it is one of JAX's transformations,
    as ``jax.pmap``.
    """
    fn, over = (lambda key: body(key, {}), keys) if not forced else (lambda x: body(*x), (keys, forced))
    return own(fn)(over) if own in (jax.pmap, jax.vmap) else own(fn, over)


def _with_particle_axis(out):
    def add_axis(x):
        return LogDensity(x.terms, x.labels, x.batch_ndim + 1) if isinstance(x, LogDensity) else x

    return jax.tree.map(add_axis, out, is_leaf=lambda x: isinstance(x, LogDensity))
