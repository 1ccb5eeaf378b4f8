"""Evidence lower bound (Jordan, Ghahramani, Jaakkola, Saul 1999; Wingate and Weber 2013)."""

from ppl_ext.density import lower_bound
from ppl_ext.expectation import objective, replicate
from ppl_ext.program import log_density, simulate


@objective
def ELBO(model, guide, num_particles: int = 1):
    r"""Lower bound on the evidence, an average over draws of the guide.

    .. math:: \log p(y) \ge \mathbb{E}_{z \sim q} [\log p(y, z) - \log q(z)]

    The gap is KL(q ‖ p(z | y)). ``num_particles`` changes the noise, not the bound. Serves every gradient strategy; with two particles or
    more, score-function sites have a leave-one-out baseline.

    :param num_particles: draws per estimate, at least 1.
    """

    def evidence():
        draw = simulate(guide)
        return log_density(model, draw.values) - draw.log_density

    return lower_bound(replicate(evidence, num_particles).mean())
