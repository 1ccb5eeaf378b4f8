"""Checks of what ``to_arviz`` is asked for, before anything is drawn or compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import (
    check_count,
    check_flag,
    check_key,
    check_mapping,
    check_program,
    check_values,
    described,
)


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
    predictions: Any,
    predictions_constant_data: Any,
    coords: Any,
    dims: Any,
    pred_dims: Any,
) -> None:
    """The options of :func:`ppl_ext.to_arviz`, each named if it is wrong.

    >>> from ppl_ext.errors import ArgumentError
    >>> names = "model guide model_args model_kwargs rng_key log_likelihood prior constant_data coords dims"
    >>> fine = dict.fromkeys(names.split())
    >>> fine |= dict.fromkeys("predictions predictions_constant_data pred_dims".split())
    >>> try:
    ...     check_report_options(**fine, num_samples=0, posterior_predictive=False)
    ... except ArgumentError as error:
    ...     print(error)
    to_arviz: num_samples must be a positive integer, got 0.
    """
    check_run_options(
        "to_arviz",
        model=model,
        guide=guide,
        model_args=model_args,
        model_kwargs=model_kwargs,
        num_samples=num_samples,
    )
    if rng_key is not None:
        check_key("to_arviz: rng_key", rng_key)
    if log_likelihood is not None:
        check_flag("to_arviz: log_likelihood", log_likelihood)
    if isinstance(posterior_predictive, Mapping):
        _check_draws("posterior_predictive", posterior_predictive)
    else:
        check_flag("to_arviz: posterior_predictive, if it is no dict of draws,", posterior_predictive)
    for group, draws in (("prior", prior), ("predictions", predictions)):
        if draws is not None:
            _check_draws(group, draws)
    for group, data in (
        ("constant_data", constant_data),
        ("predictions_constant_data", predictions_constant_data),
    ):
        if data is not None:
            check_values(f"to_arviz: {group}", data)
    if coords is not None:
        check_mapping("to_arviz: coords", coords, "from axis names to labels")
        for name, labels in coords.items():
            if isinstance(labels, str) or np.ndim(labels) != 1:
                raise ArgumentError(
                    f"to_arviz: coords must give the axis '{name}' one label per entry, got "
                    f"{described(labels)}."
                )
    for option, names in (("dims", dims), ("pred_dims", pred_dims)):
        if names is not None:
            _check_dims(option, names)


def check_run_options(
    what: str, *, model: Any, guide: Any, model_args: Any, model_kwargs: Any, num_samples: Any
) -> None:
    """The options that say what a run was of, each named if it is wrong."""
    for name, program in (("model", model), ("guide", guide)):
        if program is not None:
            check_program(f"{what}: {name}", program)
    if model_args is not None and not isinstance(model_args, tuple | list):
        raise ArgumentTypeError(
            f"{what}: model_args must be a tuple of arguments, got {described(model_args)}; of one: (data,)."
        )
    if model_kwargs is not None:
        check_mapping(f"{what}: model_kwargs", model_kwargs, "from argument names to values")
    check_count(f"{what}: num_samples", num_samples)


def _check_dims(option: str, dims: Any) -> None:
    check_mapping(f"to_arviz: {option}", dims, "from site names to names of axes")
    for name, axes in dims.items():
        if (
            isinstance(axes, str)
            or not isinstance(axes, Sequence)
            or not all(isinstance(a, str) for a in axes)
        ):
            raise ArgumentTypeError(
                f"to_arviz: {option} must give site '{name}' a list of names of axes, got {described(axes)}."
            )


def _check_draws(group: str, draws: Any) -> None:
    check_values(f"to_arviz: {group}", draws)
    for name, x in draws.items():
        if np.ndim(x) < 2:
            raise ArgumentError(
                f"to_arviz: {group} must hold draws (chain, draw, ...); '{name}' has shape {np.shape(x)}."
            )
