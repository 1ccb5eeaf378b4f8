"""Several candidates at once, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.designs.acquisitions.functions import as_functions, as_rows
from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_count, check_function


def next_measurements(acquisition: Callable, functions: Any, num: int = 1, *, pending: Any = ()) -> jax.Array:
    r"""Which ``num`` candidates to measure next: the best, then the best given that one, and so on.

    .. math:: x_{k} = \arg\max_x a(x \mid x_1, \dots, x_{k-1})

    where a is the worth of all of them together. The worth of a set is monotone and, for improvements and for
    entropies of a normal law, submodular, so that the set has at least :math:`1 - 1/e` of the best set's.

    :param acquisition: such as :class:`ExpectedImprovement`, or any function of ``(functions, pending)`` that
        gives (n,).
    :param functions: draws (draws, n), what a ``Predictive`` gave for the one site that is measured, or one
        ``MultivariateNormal`` over the n candidates.
    :param num: how many.
    :param pending: numbers of candidates that are being measured already.
    :return: (num,) numbers of candidates, all different, and none of those pending.
    :raises ArgumentError: for fewer candidates than asked for, or an acquisition that is NaN, where known.

    >>> from ppl_ext.designs import ExpectedImprovement
    >>> draws = jnp.array([[2.0, 1.9, 0.0], [0.0, 0.0, 1.0]])  # the first two say the same
    >>> next_measurements(ExpectedImprovement(best=0.0), draws, 2).tolist()
    [0, 2]
    """
    where = "next_measurements"
    check_function(f"{where}: acquisition", acquisition)
    check_count(f"{where}: num", num)
    size = as_functions(where, functions, arrays=True).num_candidates
    chosen = as_rows(f"{where}: pending", pending, size)
    if num > size - len(chosen):
        raise ArgumentError(
            f"{where}: {num} candidates were asked for, and of {size} only {size - len(chosen)} are not "
            "pending. Give more candidates, or ask for fewer."
        )
    for _ in range(num):
        worth = acquisition(functions, chosen)
        if jnp.shape(worth) != (size,):
            raise ArgumentError(
                f"{where}: acquisition must give one number for each of {size} candidates, got shape "
                f"{jnp.shape(worth)}."
            )
        if not isinstance(worth, jax.core.Tracer) and (nan := np.isnan(np.asarray(worth))).any():
            raise ArgumentError(
                f"{where}: the acquisition is NaN at candidate {nan.argmax()}, so that there is no best one. "
                "Look at its draws, or give -inf where a candidate is not to be taken."
            )
        taken = jnp.zeros(size, bool).at[chosen].set(True)
        best = jnp.lexsort((-worth, taken))[0]  # of those left, also where all of them are worth -inf
        chosen = jnp.append(chosen, best.astype(chosen.dtype))
    return chosen[-num:]
