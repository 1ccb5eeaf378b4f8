"""Axes to draw on, and the few colours that all pictures share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_ext.errors import ArgumentError, MissingExtraError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
"""Okabe and Ito's, which differ for the colour-blind too."""

GREY = "0.55"


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def one_axes(ax: Any, figsize: tuple[float, float] = (7.0, 4.2)) -> Any:
    """``ax``, or those of a new figure."""
    return new_axes(1, figsize)[0] if ax is None else ax


def new_axes(columns: int, figsize: tuple[float, float], **options: Any) -> np.ndarray:
    """A new figure's axes in a row.

    :raises MissingExtraError: if Matplotlib is not installed.
    """
    return _subplots(1, columns, figsize, **options)[0]


def new_column(rows: int, figsize: tuple[float, float]) -> np.ndarray:
    """A new figure's axes one below the other, of one horizontal axis.

    :raises MissingExtraError: if Matplotlib is not installed.
    """
    return _subplots(rows, 1, figsize, sharex=True)[:, 0]


def _subplots(rows: int, columns: int, figsize: tuple[float, float], **options: Any) -> np.ndarray:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            "Pictures need Matplotlib, which is not installed: pip install 'ppl_ext[plots]'."
        ) from error
    return plt.subplots(rows, columns, figsize=figsize, layout="constrained", squeeze=False, **options)[1]


def several_axes(
    axes: Any, count: int, figsize: tuple[float, float], what: str, **options: Any
) -> np.ndarray:
    """``axes`` as a flat array of ``count``, or those of a new figure."""
    if axes is None:
        return new_axes(count, figsize, **options)
    flat = np.ravel(np.asarray(axes, dtype=object))
    if len(flat) != count:
        raise ArgumentError(f"axes must be {count}, one for each {what}; got {len(flat)}.")
    return flat


def tidy(ax: Any, title: str | None = None, **labels: str) -> None:
    """Two spines are enough. What the caller has written on the axes stays."""
    ax.spines[["top", "right"]].set_visible(False)
    if title is not None and not (ax.get_title() or ax.get_title(loc="left")):
        ax.set_title(title)
    for name, text in labels.items():
        if not getattr(ax, f"get_{name}")():
            getattr(ax, f"set_{name}")(text)


def name_all(names: Sequence[str] | None, count: int, word: str) -> list[str]:
    """``names``, or the word with a number each."""
    if names is not None and len(names) != count:
        raise ArgumentError(f"{count} names are needed, one for each {word}, got {len(names)}.")
    return [f"{word} {i}" for i in range(count)] if names is None else list(names)
