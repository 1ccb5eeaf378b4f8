"""Backward kernels: whom a particle came from, redrawn among everyone it could have come from.

========== =================================== ========================= =================================
name       cost a step                         law of a draw             needs
========== =================================== ========================= =================================
``mcmc``   a few gathers a draw                leaves B invariant        nothing
``dense``  N²                                  B; averages without draws N of about 500 or less
``hybrid`` a few gathers a draw, and leftovers B                         a bound on the transition density
``path``   none                                the ancestor              nothing
========== =================================== ========================= =================================
"""

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import described
from ppl_ext.smoothing.backward.dense import Dense
from ppl_ext.smoothing.backward.hybrid import Hybrid
from ppl_ext.smoothing.backward.kernel import BackwardKernel, Pairs, Tally
from ppl_ext.smoothing.backward.mcmc import Metropolis
from ppl_ext.smoothing.backward.path import Path

KERNELS: dict[str, type[BackwardKernel]] = {
    "mcmc": Metropolis,
    "dense": Dense,
    "hybrid": Hybrid,
    "path": Path,
}


def backward_kernel(where: str, kernel: str | BackwardKernel, others: tuple[str, ...] = ()) -> BackwardKernel:
    """A kernel by its name, or as it is.

    :param others: names that the caller takes besides, for the error.
    :raises ArgumentError: if it is neither; ``where`` begins the message.

    >>> backward_kernel("smooth: backward", "mcmc"), backward_kernel("smooth: backward", Metropolis(3))
    (Metropolis(num_steps=1), Metropolis(num_steps=3))
    """
    if isinstance(kernel, BackwardKernel):
        return kernel
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ArgumentError(
            f"{where} must be one of {', '.join(map(repr, (*KERNELS, *others)))} or a BackwardKernel, got "
            f"{described(kernel)}."
        )
    return KERNELS[kernel]()


__all__ = [
    "KERNELS",
    "BackwardKernel",
    "Dense",
    "Hybrid",
    "Metropolis",
    "Pairs",
    "Path",
    "Tally",
    "backward_kernel",
]
