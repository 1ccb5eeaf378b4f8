"""Which elements of a program's inputs move which of its outputs: as the walk through its equations says, and
as a numerical probe finds.

The probe moves every element of every input, by several steps, at several points, and sees which outputs
change. It may miss a dependence that no step showed; one that it finds and the walk denies is an error, of
the kind that makes gradients biased in silence.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.tracing.credit import mark, trace_credit

PINNED, EVERY_ROW = jax.__version__.startswith("0.10."), 1000
"""Whether this is the JAX that all else is developed with: a newer one is asked every question by default."""

SHAPE = (3, 4)
STEPS = (0.7, -2.5, 30.0)


def relations_of(fn, inputs, links=False, met=None):
    """For each output of ``fn(inputs)``, the relation of each input; ``met`` are the marks that were seen,
    all by default.
    """
    deps, seen = trace_credit(
        lambda: list(fn({name: mark(x, name, jnp.ndim(x)) for name, x in inputs.items()})), links
    )
    assert seen == (set(inputs) if met is None else met)
    return deps


def relation_of(fn, links=False):
    """The relation of one input of shape (3, 4) to the one output of ``fn``."""
    (deps,) = relations_of(lambda inputs: [fn(inputs["z"])], {"z": jnp.ones(SHAPE)}, links)
    return deps.get("z", "absent")


def admitted(relation, shape, out_shape):
    """Which positions of an output an element of an input may move, by its relation: an array of both
    shapes.
    """
    mask = np.full(shape + out_shape, relation != "absent")
    for axis, r in enumerate(() if relation == "absent" else relation):
        if r is None:
            continue
        kind, a = r
        i = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(mask.ndim)])
        j = np.arange(out_shape[a]).reshape([-1 if k == len(shape) + a else 1 for k in range(mask.ndim)])
        mask &= {"at": j == i, "before": j == i + 1, "step": (j == i) | (j == i + 1), "upto": j >= i}[kind]
    return mask


def moves(fn, inputs, num_points=2):
    """For each output and input, which positions an element moved: arrays of both shapes, for each output by
    the input's name.
    """
    keys = jax.random.split(jax.random.key(0), len(inputs))
    points = {
        name: 2 * jax.random.normal(key, (num_points, *jnp.shape(x)))
        for key, (name, x) in zip(keys, inputs.items(), strict=True)
    }

    @jax.jit
    def changes(at):
        base = fn(at)
        found = [{} for _ in base]
        for name, x in at.items():
            shifts = jnp.concatenate([step * jnp.eye(x.size).reshape(x.size, *x.shape) for step in STEPS])
            moved = jax.vmap(lambda shift, name=name, x=x: fn({**at, name: x + shift}))(shifts)
            for out, before, after in zip(found, base, moved, strict=True):
                differs = jnp.abs(after - before) > 1e-4 * (1 + jnp.abs(before))
                differs |= jnp.isfinite(after) != jnp.isfinite(before)
                out[name] = differs.reshape(len(STEPS), *x.shape, *before.shape).any(0)
        return found

    return jax.tree.map(lambda x: np.asarray(x.any(0)), jax.vmap(changes)(points))


def touched(fn):
    """Which output positions change when element (i, j) of one input of shape (3, 4) does."""
    return moves(lambda inputs: [fn(inputs["z"])], {"z": jnp.ones(SHAPE)})[0]["z"]


def assert_sound(fn, inputs):
    """No element moves anything that its relation denies, links told apart or not; returns how many movements
    there were.
    """
    number, found = 0, moves(fn, inputs)
    for links in (False, True):
        for deps, reached_by in zip(relations_of(fn, inputs, links), found, strict=True):
            for name, reached in reached_by.items():
                relation, shape = deps.get(name, "absent"), jnp.shape(inputs[name])
                denied = reached & ~admitted(relation, shape, reached.shape[len(shape) :])
                assert not denied.any(), (name, relation, np.argwhere(denied)[:5].tolist())
                number += int(reached.sum())
    return number
