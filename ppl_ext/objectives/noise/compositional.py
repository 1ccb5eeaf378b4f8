"""Maximum likelihood of unnormalised models by compositional optimisation (Jiang et al. 2023)."""

from functools import partial

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import carried, objective
from ppl_ext.objectives.noise.site import Unnormalized, compared


@objective
def CompositionalNLL(model, guide, beta: float = 0.1, num_noise: int = 64):
    r"""Log likelihood of :func:`~ppl_ext.objectives.unnormalized` sites, the constant tracked over the steps.

    .. math:: \sum_i \log \tilde p_\theta(x_i) - N \log \mathbb{E}_{x \sim q}\Big[\frac{\tilde
        p_\theta(x)}{q(x)}\Big], \qquad u \leftarrow (1 - \beta) u + \beta \hat g, \qquad \nabla = \sum_i
        \nabla \log \tilde p_\theta(x_i) - N \, \nabla \hat g / u

    with :math:`\hat g` the mean of :math:`\tilde p / q` over draws of the noise. The log of one step's mean
    would be biased by its variance; u averages over some 1/β steps, and is biased by how far the parameters
    move in them. Each site carries state (start it with ``carried_by`` in NumPyro's ``SVI``), which a fit has
    as ``params["<site>_normaliser"]``: ``log_normaliser``, the log of u, and ``ess``, how many of this step's
    draws of the noise count. An ``ess`` of a few says that the noise misses the model.

    The value is an estimate of the log likelihood and no bound. Parameters are ``numpyro.param`` sites; a
    guide with latent sites is refused.

    :param beta: β, above 0 and at most 1.
    :param num_noise: draws of the noise a step.
    :raises ArgumentError: for β out of its range.
    :raises ModelError: if there is no unnormalized site, or the guide draws latent sites.

    >>> import jax, numpyro, numpyro.distributions as dist, optax, ppl_ext
    >>> from ppl_ext.objectives import unnormalized
    >>> def model(x):
    ...     precision = numpyro.param("precision", 1.0, constraint=dist.constraints.positive)
    ...     with numpyro.plate("rows", len(x)):
    ...         unnormalized("x", lambda x: -precision * x**2 / 2, dist.Normal(0.0, 2.0), obs=x)
    >>> x = jnp.array([-1.0, -0.5, 0.5, 1.0])  # the likelihood is largest at a precision of 1 / 0.625
    >>> run = ppl_ext.infer.fit(jax.random.key(0), model, lambda x: None, CompositionalNLL(0.05),
    ...     optax.adam(0.01), 2000, x, progress_bar=False)
    >>> bool(abs(run.params["precision"][0] - 1.6) < 0.15)
    True

    Source: Jiang, Qin, Wu, Chen, Yang, Zhang 2023.
    """
    if not 0.0 < beta <= 1.0:
        raise ArgumentError(f"CompositionalNLL(beta=...) must be above 0 and at most 1, got {beta}.")
    return compared("CompositionalNLL", model, guide, num_noise, partial(_tracked, beta))


def _tracked(beta: float, name: str, law: Unnormalized, noise):
    log_weights = law.log_prob_fn(noise) - law.noise.log_prob(noise)
    log_g = logsumexp(log_weights) - jnp.log(len(log_weights))
    state = carried(
        f"{name}_normaliser",
        {
            "log_sum": jnp.asarray(-jnp.inf),
            "share": jnp.zeros(()),
            "log_normaliser": jnp.zeros(()),
            "ess": jnp.zeros(()),
        },
    )
    w = stop_gradient(log_weights)
    state["log_sum"] = jnp.logaddexp(
        jnp.log1p(-beta) + state["log_sum"], jnp.log(beta) + stop_gradient(log_g)
    )
    state["share"] = (1 - beta) * state["share"] + beta  # less than one in the first steps
    state["log_normaliser"] = log_u = state["log_sum"] - jnp.log(state["share"])
    state["ess"] = jnp.exp(2 * logsumexp(w) - logsumexp(2 * w))
    ratio = jnp.exp(log_g - log_u)
    return lambda value: law.log_prob_fn(value) - (log_u + ratio - stop_gradient(ratio))
