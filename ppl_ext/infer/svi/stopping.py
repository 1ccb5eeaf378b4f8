"""When to stop early: the loss has stopped falling by more than its own noise."""

import math
from dataclasses import dataclass

import numpy as np

from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, check_number, described


@dataclass(frozen=True)
class Plateau:
    r"""Stop once no chain improves by more than the noise of its loss, from one window of steps to the next,
    ``patience`` times running.

    With window means :math:`\bar L_{t-1}, \bar L_t` over ``window`` steps, whose standard errors :math:`s`
    come from batch means (losses of neighbouring steps are correlated), a chain improves if

    .. math:: \bar L_{t-1} - \bar L_t > z \sqrt{s_{t-1}^2 + s_t^2} + \text{tolerance} .

    :param window: steps in a window; at least 20. Choose a small part of the run: an optimum approached very
        slowly looks like a plateau.
    :param patience: windows in a row without improvement.
    :param tolerance: nats that do not count as an improvement either.
    :param z: standard errors to exceed. Pure noise passes for an improvement in about 3 % of windows at the
        default 2.
    :raises ArgumentError: for a window below 20 steps, or a number below 0.

    >>> import numpy as np
    >>> noise = np.random.default_rng(1).normal(size=(1, 2000))
    >>> Plateau(window=200)(noise - 0.05 * np.arange(2000)) is None  # still falling
    True
    >>> print(Plateau(window=200)(noise))
    plateau: over the last 3 windows of 200 steps the loss changed by +0.12 ± 0.12 nats
    """

    window: int = 500
    patience: int = 2
    tolerance: float = 0.0
    z: float = 2.0

    def __post_init__(self):
        check_count("Plateau: window", self.window)
        check_count("Plateau: patience", self.patience)
        check_number("Plateau: tolerance", self.tolerance, at_least=0.0)
        check_number("Plateau: z", self.z, at_least=0.0)
        if self.window < 20:
            raise ArgumentError(
                f"Plateau: window must be at least 20 steps, got {self.window}: fewer have no standard "
                "error to go by."
            )

    def __call__(self, losses: np.ndarray) -> str | None:
        """The reason to stop after ``losses`` (chain, step), or ``None``. It looks at whole windows only."""
        if getattr(losses, "ndim", None) != 2:
            raise ArgumentTypeError(
                f"Plateau: losses must be an array (chain, step), got {described(losses)}."
            )
        num_windows = losses.shape[1] // self.window
        if num_windows <= self.patience:
            return None
        windows = losses[:, : num_windows * self.window].reshape(len(losses), num_windows, self.window)[
            :, -self.patience - 1 :
        ]
        mean, error = windows.mean(-1), _standard_error(windows)
        gain = mean[:, :-1] - mean[:, 1:]
        noise = np.hypot(error[:, :-1], error[:, 1:])
        if (gain > self.z * noise + self.tolerance).any():
            return None
        change, se = mean[:, -1] - mean[:, 0], np.hypot(error[:, -1], error[:, 0])
        worst = int(np.argmin(change))
        return (
            f"plateau: over the last {self.patience + 1} windows of {self.window} steps the loss changed by "
            f"{change[worst]:+.2f} ± {se[worst]:.2f} nats"
        )


def _standard_error(windows: np.ndarray, num_batches: int = 10) -> np.ndarray:
    size = windows.shape[-1] // num_batches
    batches = windows[..., : size * num_batches].reshape(*windows.shape[:-1], num_batches, size).mean(-1)
    return batches.std(-1, ddof=1) / math.sqrt(num_batches)
