"""Treat the draws of a site as given data."""

from dataclasses import dataclass

from numpyro.distributions import Distribution

from ppl_ext.gradients.strategy import Strategy


@dataclass(frozen=True)
class Constant(Strategy):
    """No gradient through the draw, nor through the law it is drawn from.

    The estimator is then unbiased for the gradient with the site's distribution held fixed, which is what
    objectives that only *score* a program at its own draws want (see :class:`ppl_ext.handlers.detach`). It is
    not a gradient of the full expectation.

    >>> import numpyro.distributions as dist
    >>> Constant.serves(dist.Poisson(1.0))
    True
    """

    @staticmethod
    def serves(fn: Distribution) -> bool:
        return True
