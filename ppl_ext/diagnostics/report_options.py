"""Checks of what ``to_arviz`` is asked for, before anything is drawn or compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppl_ext.arguments import check_count, check_flag, check_key, check_mapping, check_program, check_values, told
from ppl_ext.errors import ArgumentError, ArgumentTypeError


def check_report_options(
    *,
    model: Any,
    guide: Any,
    model_args: Any,
    model_kwargs: Any,
    rng_key: Any,
    num_samples: Any,
    log_likelihood: Any,
    posterior_predictive: Any,
    prior: Any,
    constant_data: Any,
    coords: Any,
    dims: Any,
) -> None:
    """The options of :func:`ppl_ext.to_arviz`, each named if it is wrong.

    >>> from ppl_ext.errors import ArgumentError
    >>> fine = dict.fromkeys("model guide model_args model_kwargs rng_key log_likelihood prior constant_data coords".split())
    >>> try:
    ...     check_report_options(**fine, num_samples=0, posterior_predictive=False, dims=None)
    ... except ArgumentError as error:
    ...     print(error)
    to_arviz: num_samples must be a positive integer, got 0.
    """
    for name, program in (("model", model), ("guide", guide)):
        if program is not None:
            check_program(f"to_arviz: {name}", program)
    if model_args is not None and not isinstance(model_args, tuple | list):
        raise ArgumentTypeError(f"to_arviz: model_args must be a tuple of arguments, got {told(model_args)}; of one: (data,).")
    if model_kwargs is not None:
        check_mapping("to_arviz: model_kwargs", model_kwargs, "from argument names to values")
    if rng_key is not None:
        check_key("to_arviz: rng_key", rng_key)
    check_count("to_arviz: num_samples", num_samples)
    if log_likelihood is not None:
        check_flag("to_arviz: log_likelihood", log_likelihood)
    if isinstance(posterior_predictive, Mapping):
        _check_draws("posterior_predictive", posterior_predictive)
    else:
        check_flag("to_arviz: posterior_predictive, if it is no dict of draws,", posterior_predictive)
    if prior is not None:
        _check_draws("prior", prior)
    if constant_data is not None:
        check_values("to_arviz: constant_data", constant_data)
    if coords is not None:
        check_mapping("to_arviz: coords", coords, "from axis names to labels")
        for name, labels in coords.items():
            if isinstance(labels, str) or np.ndim(labels) != 1:
                raise ArgumentError(f"to_arviz: coords must give the axis '{name}' one label per entry, got {told(labels)}.")
    if dims is not None:
        check_mapping("to_arviz: dims", dims, "from site names to names of axes")
        for name, axes in dims.items():
            if isinstance(axes, str) or not isinstance(axes, Sequence) or not all(isinstance(a, str) for a in axes):
                raise ArgumentTypeError(f"to_arviz: dims must give site '{name}' a list of names of axes, got {told(axes)}.")


def _check_draws(group: str, draws: Any) -> None:
    check_values(f"to_arviz: {group}", draws)
    for name, x in draws.items():
        if np.ndim(x) < 2:
            raise ArgumentError(f"to_arviz: {group} must hold draws (chain, draw, ...); '{name}' has shape {np.shape(x)}.")
