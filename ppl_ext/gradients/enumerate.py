"""Sum a finite site out exactly."""

from dataclasses import dataclass

from numpyro.distributions import Distribution

from ppl_ext.gradients.strategy import Strategy
from ppl_ext.runtime.arguments import check_count


@dataclass(frozen=True)
class Enumerate(Strategy):
    r"""Replace the expectation over the site by a sum over its support, jointly with all other enumerated
    sites.

    .. math:: \mathbb{E}_{z \sim q_\theta} f(z) = \sum_z q_\theta(z) f(z)

    Exact in value and in derivatives of any order: no randomness of the site is left. The program runs once
    for each joint assignment, in one ``vmap``. Elements of a plate (or particles) whose costs do not meet are
    enumerated side by side, so N independent K-valued elements take K lanes; where costs do meet they take
    K^N, and beyond ``max_lanes`` that is refused.

    :param max_lanes: the largest number of joint assignments to accept.
    :raises StrategyError: for a site without a finite support, or more joint assignments than ``max_lanes``;
        the message names the site.

    >>> import numpyro.distributions as dist
    >>> Enumerate.serves(dist.Bernoulli(0.5)), Enumerate.serves(dist.Poisson(1.0))
    (True, False)
    """

    max_lanes: int = 4096

    def __post_init__(self):
        check_count("Enumerate(max_lanes=...)", self.max_lanes)

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return fn.has_enumerate_support
