"""What a problem is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracles import Oracle


@dataclass(frozen=True)
class Problem:
    """A model, a guide, where to stand, and the exact answer there.

    :param finite_sites: the guide's finite latent sites: the ones to score or to enumerate.
    :param gaussian_sites: its Gaussian ones, reparameterised unless a test says otherwise.
    :param open_sites: its sites over infinitely many values, of which the oracle sums those that matter.
    """

    name: str
    model: Callable
    guide: Callable
    params: dict[str, Any]
    oracle: Oracle
    finite_sites: tuple[str, ...]
    gaussian_sites: tuple[str, ...] = ()
    open_sites: tuple[str, ...] = ()
    args: tuple = ()

    @property
    def num_assignments(self):
        """Joint values of the finite sites."""
        values = (self.oracle.outcomes[site] for site in self.finite_sites)
        return int(np.prod([len(np.unique(value, axis=0)) for value in values]))

    @property
    def all_finite(self):
        """Whether exact enumeration leaves nothing random."""
        return not self.gaussian_sites + self.open_sites and len(self.oracle.batches) == 1
