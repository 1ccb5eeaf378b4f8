"""Doubly reparameterised gradients (Tucker, Lawson, Gu, Maddison 2019, eq. 8; Daudel, Benton, Shi, Doucet
2023, theorem 1).
"""

from ppl_ext.densities.log_density import log_mean_exp, lower_bound, per_element, uneven_plates
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach, reparameterized
from ppl_ext.objectives.terms.path_gradient import SameRun, fixed, simulate_and_hold
from ppl_ext.objectives.terms.self_normalised import normalised, signal
from ppl_ext.program import log_density


@objective
def DoublyReparameterized(model, guide, num_particles: int = 8, alpha: float = 0.0):
    r"""The value of :class:`~ppl_ext.objectives.IWELBO`, with a gradient for the guide whose signal does not
    fade as K grows.

    .. math:: \nabla_\phi = \mathbb{E} \sum_k \bar w_k^2 \, \frac{\partial \log w_k}{\partial z_k} \frac{d
        z_k}{d \phi}, \qquad
        \nabla_\theta = \mathbb{E} \sum_k \bar w_k \, \nabla_\theta \log p_\theta(y, z_k), \qquad \bar w_k =
        \tfrac{w_k}{\sum_j w_j}

    The gradient of log q by the guide's own parameters, which is noise in IWELBO, is turned into a pathwise
    one. Unbiased for IWELBO's gradient. Every latent site of the guide must be reparameterised, and model and
    guide have densities in closed form. With α it is that of :class:`~ppl_ext.objectives.VRIWAE`, with
    weights :math:`w^{1 - \alpha}` and :math:`\alpha \bar w + (1 - \alpha) \bar w^2` in the place of
    :math:`\bar w^2`.

    :param num_particles: K, at least 1; with 1 it is sticking the landing.
    :param alpha: at least 0 and less than 1.
    :raises StrategyError: if a site of the guide is not reparameterised; the message names it.
    :raises ModelError: if a site of the guide is observed, masked or scaled, or a subsampled plate does not
        hold every site.
    :raises ArgumentError: for α out of its range, or a number of particles below 1.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):
    ...     numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 0.5**0.5))
    >>> def loss(loc):
    ...     return DoublyReparameterized(4).loss(jax.random.key(0), {"loc": loc}, model, guide, 1.0)
    >>> abs(round(float(jax.grad(loss)(0.5)), 4))  # at the posterior no noise is left
    0.0

    Source: Tucker, Lawson, Gu, Maddison 2019, eq. 8; with α Daudel, Benton, Shi, Doucet 2023, theorem 1.
    """
    if not 0 <= alpha < 1:
        raise ArgumentError(
            f"DoublyReparameterized(alpha=...) must be at least 0 and less than 1, got {alpha}."
        )

    def log_weights():
        draw, log_q = simulate_and_hold(reparameterized(guide, "DoublyReparameterized"))
        with (same := SameRun()):
            by_model = log_density(model, fixed(draw.values)) - fixed(log_q)
        with same:
            by_draw = log_density(detach(model), draw.values) - log_q
        return by_model, by_draw

    def bound(by_model, by_draw):
        w = normalised((1 - alpha) * by_model)
        return log_mean_exp((1 - alpha) * by_model) / (1 - alpha) + signal(
            alpha * w + (1 - alpha) * w**2, by_draw
        )

    by_model, by_draw = replicate(log_weights, num_particles)
    for plate in uneven_plates((by_model + by_draw).labels):
        raise ModelError(
            f"DoublyReparameterized: plate '{plate.name}' is subsampled and does not hold every site. Use "
            "IWELBO."
        )
    for label in by_model.labels:
        if label.estimate.kind != "exact":
            raise ModelError(
                f"DoublyReparameterized needs densities in closed form, and that of '{label.site}' is "
                "estimated. Use IWELBO."
            )
    return lower_bound(per_element(bound, by_model, by_draw))
