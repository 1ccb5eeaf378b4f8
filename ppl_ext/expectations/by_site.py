"""An objective's estimate as a dictionary of terms by site, each unbiased with its gradient: NumPyro's
``sum_sites=False``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.errors import ArgumentError


def estimate_by_site(estimate: Callable, fn: Callable) -> tuple[dict[str, jax.Array], dict]:
    r"""The terms of a site s are the derivative, by a weight at one, of the estimate whose terms of s count
    with that weight.

    .. math:: \hat E_s = \partial_{w_s} \hat E\Big[\sum_s w_s \ell_s\Big]_{w = 1}, \qquad \sum_s \hat E_s =
        \hat E

    :param estimate: of a function without arguments: its value, with an unbiased gradient, and the state it
        leaves.
    :param fn: returns a :class:`~ppl_ext.densities.log_density.LogDensity`.
    :return: the terms by site, and the state.
    :raises ArgumentError: if ``fn`` returns something else, which has no sites.

    >>> from ppl_ext.densities.log_density import Label
    >>> both = lambda: LogDensity((jnp.array(-1.0), jnp.array(-2.0)), (Label("z", ()), Label("y", ())))
    >>> {name: float(x) for name, x in estimate_by_site(lambda fn: (fn().total, {}), both)[0].items()}
    {'y': -2.0, 'z': -1.0}
    """
    names: dict[str, None] = {}

    def weighed(weights: dict[str, jax.Array] | None) -> LogDensity:
        out = fn()
        if not isinstance(out, LogDensity):
            raise ArgumentError(
                "sum_sites=False: this objective is no sum over sites, so there are no terms by site. Leave "
                "it out."
            )
        names.update(dict.fromkeys(label.site for label in out.labels))
        if weights is None:
            return out
        terms = (x * weights[label.site] for x, label in zip(out.terms, out.labels, strict=True))
        return LogDensity(tuple(terms), out.labels, out.batch_ndim)

    total, state = estimate(lambda: weighed(None))
    found = jax.grad(lambda weights: estimate(lambda: weighed(weights))[0])(
        {name: jnp.ones(()) for name in names}
    )
    if found:
        # Baselines have the value zero and no part in the derivative by a weight: the gradient that they mend
        # is that of the sum.
        rest = total - sum(found.values())
        first = next(iter(found))
        found[first] = found[first] + jnp.where(jnp.isfinite(rest), rest - jax.lax.stop_gradient(rest), 0.0)
    return found, state
