"""Evidence lower bound (Jordan, Ghahramani, Jaakkola, Saul 1999; Wingate and Weber 2013)."""

from ppl_ext.densities.log_density import lower_bound
from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.objectives.terms.analytic_kl import evidence, known_sites
from ppl_ext.objectives.terms.many_draws import evidence_of_many


@objective
def ELBO(
    model,
    guide,
    num_particles: int = 1,
    analytic_kl: bool = False,
    stick_the_landing: bool = False,
    sum_sites: bool = True,
    multi_sample_guide: bool = False,
):
    r"""Lower bound on the evidence, an average over draws of the guide.

    .. math:: \log p(y) \ge \mathbb{E}_{z \sim q} [\log p(y, z) - \log q(z)]

    The gap is KL(q ‖ p(z | y)). ``num_particles`` changes the noise, not the bound. Serves every gradient
    strategy; with two particles or more, score-function sites have a leave-one-out baseline. These two
    options change the noise alone, too:

    - ``analytic_kl``:
      :math:`\mathbb{E}_q[\log p(z_s \mid \cdot) - \log q(z_s \mid \cdot)] = -\mathrm{KL}(q_s \| p_s)` site by
      site, where that divergence is known and neither law can depend on z_s itself
      (:func:`ppl_ext.objectives.terms.analytic_kl.known_sites`): Normal, MultivariateNormal, LogNormal,
      Gamma, Exponential, Beta, Dirichlet, Bernoulli, Categorical, Binomial, and what an automatic guide of
      NumPyro makes of such. Every other site keeps its sampled term. NumPyro's ``infer={"kl": "analytic"}``
      asks for it at a site.
    - ``stick_the_landing`` (Roeder, Wu, Duvenaud 2017, eq. 6): the guide's parameters are held fixed in log
      q, whose gradient by them has the mean zero. The gradient then vanishes, noise and all, where the guide
      is the posterior. Observed sites and factors of the guide, estimated densities among them, keep their
      gradient.

    :param num_particles: draws per estimate, at least 1.
    :param sum_sites: False for a dictionary of terms by site, as NumPyro's: log p − log q of a latent site,
        log p of an observed one. Each is an unbiased estimate with an unbiased gradient, so that a loss of
        your own may weigh them. ``SVI`` and ``fit`` want the sum.
    :param multi_sample_guide: the guide proposes several draws at once, stacked along the first axis of each
        of its sites; the model is scored at each of them, and these scores are added, as in NumPyro
        (:func:`ppl_ext.objectives.terms.many_draws.evidence_of_many`).
    :raises ArgumentError: for a number of particles below 1, or ``analytic_kl`` with ``multi_sample_guide``.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.
    :raises DirectionError: if a density is estimated and errs upwards.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
    >>> # without a gap: log p(y), whatever the draw
    >>> round(-float(ELBO().loss(jax.random.key(0), {}, model, guide, 1.0)), 2)
    -1.52

    Source: Jordan, Ghahramani, Jaakkola, Saul 1999; Wingate and Weber 2013.
    """
    if multi_sample_guide:
        if analytic_kl:
            raise ArgumentError(
                "ELBO: analytic_kl=True has no closed form for multi_sample_guide=True. Leave one of them "
                "out."
            )
        return lower_bound(
            replicate(lambda: evidence_of_many(model, guide, stick_the_landing), num_particles).mean()
        )
    known = known_sites(model, guide) if analytic_kl else frozenset()
    log_ratio = replicate(lambda: evidence(model, guide, known, hold=stick_the_landing)[0], num_particles)
    return lower_bound(log_ratio.mean())
