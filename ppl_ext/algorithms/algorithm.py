"""What an algorithm is: it estimates the density of a program's given sites, and draws the others."""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax

from ppl_ext.algorithms.target import Retained, Target


class Algorithm(eqx.Module):
    r"""An unbiased estimator of :math:`p(x) = \int p(x, z)\,dz`, as a value: arrays are leaves, sizes are
    static.

    A target (:class:`~ppl_ext.algorithms.target.Target`) holds the given x and draws and scores z. Every
    algorithm has a forward run, and a conditional run through a retained z. With w the evidence estimate that
    either makes:

    - forward: :math:`\mathbb{E}[w] = p(x)`;
    - conditional, with the retained z a draw from p(z | x): :math:`\mathbb{E}[1/w] = 1/p(x)`.

    Importance sampling pairs with conditional importance sampling, a particle filter with the conditional
    particle filter (Andrieu, Doucet, Holenstein 2010); exact algorithms (``exact = True``) have w = p(x) both
    ways. ``marginal`` needs :meth:`evidence` and :meth:`evidence_through`, ``normalize`` needs :meth:`draw`
    and :meth:`score`.

    :raises ModelError: when run, if the program has a ``scan`` and the algorithm none (``scans``), or sites
        that it cannot serve.

    >>> import numpyro, numpyro.distributions as dist
    >>> from ppl_ext import log_density, marginal
    >>> from ppl_ext.algorithms import Enumeration
    >>> class Counted(Enumeration):  # an algorithm that says when it is asked
    ...     def evidence(self, target):
    ...         print("asked for p(y)")
    ...         return super().evidence(target)
    >>> def model():
    ...     heads = numpyro.sample("heads", dist.Bernoulli(0.5))
    ...     numpyro.sample("y", dist.Bernoulli(jax.numpy.where(heads == 1, 0.8, 0.2)))
    >>> round(float(jax.numpy.exp(log_density(marginal(model, ["y"], Counted()), {"y": 1}).total)), 3)
    asked for p(y)
    0.5
    """

    exact: ClassVar[bool] = False
    scans: ClassVar[bool] = False  # whether the program may have a scan

    @abstractmethod
    def evidence(self, target: Target) -> jax.Array:
        """log w of a forward run, a scalar."""

    @abstractmethod
    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        """log w of a conditional run."""

    @abstractmethod
    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        r"""z of a forward run and :math:`\log(p(x, z) / w)`, the estimated log density:
        :math:`\mathbb{E}[w/p(x,z) \mid z] = 1/q(z)` with q the law of the draw."""

    @abstractmethod
    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        r""":math:`\log(p(x, z) / w)` at a given z, by a conditional run through it: its exponential has mean
        q(z).
        """
