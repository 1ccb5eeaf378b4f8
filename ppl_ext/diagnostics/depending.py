"""What of a model depends on some of its sites, by the data flow; nothing is computed, whatever values the
others may have.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import seed, trace

from ppl_ext.diagnostics.sites import FullPlates, given, messages_at
from ppl_ext.tracing.credit import mark, trace_credit

Read = Callable[[Mapping[str, dict]], Mapping[str, Any]]
"""From the messages of a run to what is asked about, by name: pytrees of arrays."""


def depending(
    model: Callable,
    on: Collection[str],
    read: Read,
    shapes: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
) -> set[str]:
    """Which of the things that ``read`` finds in a run on the full plates depend on a sample site among
    ``on``.

    :param shapes: of the values of the other latent sites, as in ``jax.eval_shape``.
    """
    found: set[str] = set()

    def run(values, params, key):
        def outputs():
            drawn = {n: mark(sites[n]["value"], n, 0) for n in on}
            with FullPlates(), trace() as record:
                seed(given(model, {**values, **drawn}, params), key)(*args, **kwargs)
            leaves = [(n, jnp.asarray(x)) for n, part in read(record).items() for x in jax.tree.leaves(part)]
            places.extend(n for n, _ in leaves)
            return [x for _, x in leaves]

        places: list[str] = []
        sites = messages_at(model, values, args, kwargs, params)
        credit, met = trace_credit(outputs)
        found.update(n for n, deps in zip(places, credit, strict=True) if deps or not met.issuperset(on))
        return 0

    jax.eval_shape(run, dict(shapes), dict(params), jax.random.key(0))
    return found
