"""Reweighted wake-sleep (Bornschein and Bengio 2015, algorithm 1; Le, Kosiorek, Siddharth, Teh, Wood 2019,
section 3).
"""

from ppl_ext.densities.log_density import log_mean_exp, lower_bound, per_element
from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach
from ppl_ext.objectives.sleep import Sleep
from ppl_ext.objectives.terms.path_gradient import SameRun, fixed
from ppl_ext.objectives.terms.self_normalised import normalised, signal
from ppl_ext.program import log_density, simulate


@objective
def ReweightedWakeSleep(
    model, guide, num_particles: int = 8, sleep: float = 0.0, data: dict[str, str] | None = None
):
    r"""The importance-weighted bound for the model, KL from the posterior for the guide; no gradient goes
    through a draw.

    .. math:: \nabla_\theta = \mathbb{E} \sum_k \bar w_k \nabla_\theta \log p_\theta(y, z_k), \qquad
        \nabla_\phi = (1 - s)\, \mathbb{E} \sum_k \bar w_k \nabla_\phi \log q_\phi(z_k)
        + s\, \mathbb{E}_{(z, y') \sim p_\theta} \nabla_\phi \log q_\phi(z \mid y'), \qquad \bar w_k =
        \tfrac{w_k}{\sum_j w_j}

    The value is :class:`~ppl_ext.objectives.IWELBO`, whose gradient :math:`\nabla_\theta` is. With s = 0 the
    guide learns awake only, with s = 1 asleep only. Discrete sites are taken as they are, and more particles
    help the guide too. The wake gradient of the guide is biased by O(1/K), because the weights are
    self-normalised; the other two are unbiased. A parameter that model and guide share gets the sum. Weights
    are normalised element by element over a plate that holds every site.

    :param num_particles: K, at least 1; one has no wake signal of the posterior. As many dreams are drawn.
    :param sleep: the share s of :class:`~ppl_ext.objectives.Sleep` in the guide's gradient.
    :param data: as in :class:`~ppl_ext.objectives.Sleep`.
    :raises ArgumentError: for a share out of its range, or a number of particles below 1; asleep, as
        :class:`~ppl_ext.objectives.Sleep`.
    :raises ModelError: if model and guide do not have the same latent sites, with their names.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):
    ...     numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * y, 0.5**0.5))
    >>> # at the posterior log p(y)
    >>> round(-float(ReweightedWakeSleep(sleep=0.5).loss(jax.random.key(0), {}, model, guide, 1.0)), 2)
    -1.52

    Source: Bornschein and Bengio 2015, algorithm 1; Le, Kosiorek, Siddharth, Teh, Wood 2019, section 3.
    """
    if not 0 <= sleep <= 1:
        raise ArgumentError(f"ReweightedWakeSleep(sleep=...) is a share between 0 and 1, got {sleep}.")

    def particle():
        with (same := SameRun()):
            draw = simulate(detach(guide))
        values = fixed(draw.values)
        with same:
            log_q = log_density(guide, values)
        return log_density(model, values) - draw.log_density, log_q

    def wake(log_w, log_q):
        return log_mean_exp(log_w) + signal((1 - sleep) * normalised(log_w), log_q)

    bound = lower_bound(per_element(wake, *replicate(particle, num_particles)))
    if sleep:
        bound = bound + signal(sleep, Sleep(num_particles, data)(model, guide).total[None])
    return bound
