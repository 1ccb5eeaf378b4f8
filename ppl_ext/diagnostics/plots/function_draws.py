"""Sets of function draws side by side: those of a prior before and after it was tuned, say, and of what it
was tuned to.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppl_ext.diagnostics.plots.axes import colour, several_axes
from ppl_ext.diagnostics.plots.functions import plot_functions
from ppl_ext.errors import ArgumentError


def plot_function_draws(x: Any, draws: Mapping[str, Any], axes: Any = None, **options: Any) -> np.ndarray:
    """Draw several sets of functions of one variable, each on axes of its own, to one scale.

    :param x: (point,), the inputs.
    :param draws: by name, (draw, point), or (draw, point, output), of which the first output is shown.
    :param axes: one Matplotlib axes for each set; those of a new figure by default.
    :param options: of :func:`~ppl_ext.diagnostics.plot_functions`: ``levels``, ``num_lines``, ``observed``.
    :return: the axes, in the order of ``draws``.
    :raises ArgumentError: if there is nothing to draw, or not one axes for each set.

    >>> import numpy as np
    >>> x = np.linspace(0.0, 1.0, 20)
    >>> slopes = np.random.default_rng(0).normal(size=(100, 1))
    >>> axes = plot_function_draws(x, {"before": slopes * x, "after": 2.0 * slopes * x}, num_lines=5)
    >>> [ax.get_title() for ax in axes]
    ['before', 'after']
    """
    if not isinstance(draws, Mapping) or not draws:
        raise ArgumentError("draws must be a dict from names to arrays of function draws, with one at least.")
    sets = {name: np.asarray(d, np.float64) for name, d in draws.items()}
    sets = {name: d[..., 0] if d.ndim == 3 else d for name, d in sets.items()}
    flat = several_axes(axes, len(sets), (4.2 * len(sets), 3.6), "set of draws", sharey=True)
    for i, (ax, (name, values)) in enumerate(zip(flat, sets.items(), strict=True)):
        if not (ax.get_title() or ax.get_title(loc="left")):
            ax.set_title(name)
        plot_functions(x, values, ax, **{"color": colour(i), **options})
    return flat
