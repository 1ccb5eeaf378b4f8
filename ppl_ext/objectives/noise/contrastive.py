"""Noise-contrastive estimation (Gutmann and Hyvärinen 2012)."""

from functools import partial

import jax.numpy as jnp
from jax.nn import log_sigmoid

from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import objective
from ppl_ext.objectives.noise.site import Unnormalized, compared


@objective
def NCE(model, guide, ratio: float = 1.0, num_noise: int = 64):
    r"""Tell the data of :func:`~ppl_ext.objectives.unnormalized` sites from noise, by the model's own odds.

    .. math:: \sum_i \log \sigma(h(x_i)) + N \nu \, \mathbb{E}_{x \sim q} \log \sigma(-h(x)), \qquad h(x) =
        \log \tilde p_\theta(x) - \log q(x) - \log \nu

    It is maximal where :math:`\tilde p` is the law of the data, constant included: give the model one, a
    ``numpyro.param`` that ``log_prob_fn`` takes off, or the constant's own. No bound on the likelihood; value
    and gradient are unbiased for the objective. It needs no state, and wants noise that is like the data.

    :param ratio: ν, how many times as likely noise is as data.
    :param num_noise: draws of the noise a step.
    :raises ArgumentError: for a ratio that is not positive.
    :raises ModelError: if there is no unnormalized site, or the guide draws latent sites.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.objectives import unnormalized
    >>> def model(x):
    ...     with numpyro.plate("rows", len(x)):
    ...         unnormalized("x", dist.Normal(0.0, 1.0).log_prob, dist.Normal(0.0, 1.0), obs=x)
    >>> key, x = jax.random.key(0), jnp.zeros(3)
    >>> # noise that is the model's own law cannot be told from it: 3 · 2 log 2
    >>> round(float(NCE().loss(key, {}, model, lambda x: None, x)), 4)
    4.1589

    Source: Gutmann and Hyvärinen 2012.
    """
    if not ratio > 0.0:
        raise ArgumentError(f"NCE(ratio=...) must be positive, got {ratio}.")
    return compared("NCE", model, guide, num_noise, partial(_told_apart, ratio))


def _told_apart(ratio: float, name: str, law: Unnormalized, noise):
    def odds(x):
        return law.log_prob_fn(x) - law.noise.log_prob(x) - jnp.log(ratio)

    of_noise = ratio * jnp.mean(log_sigmoid(-odds(noise)))
    return lambda value: log_sigmoid(odds(value)) + of_noise
