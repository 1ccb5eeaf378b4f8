"""Maximum likelihood of unnormalised models by compositional optimisation (Jiang et al. 2023)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from ppl_ext.errors import ArgumentError
from ppl_ext.expectations.objective import Objective, carried, objective
from ppl_ext.objectives.noise.site import Unnormalized, compared
from ppl_ext.runtime.arguments import check_number

STATE = "_normaliser"
STARTED = 0.63
"""The share of a running mean that is known after some 1/β steps: 1 - 1/e."""


@objective
def CompositionalNLL(model, guide, beta: float = 0.1, num_noise: int = 64, least_ess: float = 3.0):
    r"""Log likelihood of :func:`~ppl_ext.objectives.unnormalized` sites, the constant tracked over the steps.

    .. math:: \sum_i \log \tilde p_\theta(x_i) - N \log \mathbb{E}_{x \sim q}\Big[\frac{\tilde
        p_\theta(x)}{q(x)}\Big], \qquad u \leftarrow (1 - \beta) u + \beta \hat g, \qquad \nabla = \sum_i
        \nabla \log \tilde p_\theta(x_i) - N \, \nabla \hat g / u

    with :math:`\hat g` the mean of :math:`\tilde p / q` over draws of the noise. The log of one step's mean
    would be biased by its variance; u averages over some 1/β steps, and is biased by how far the parameters
    move in them. Each site carries state (start it with ``carried_by`` in NumPyro's ``SVI``), which a fit has
    as ``params["<site>_normaliser"]``: ``log_normaliser``, the log of u, and ``ess``, how many of this step's
    draws of the noise count. An ``ess`` of a few says that the noise misses the model. Where its mean over
    the last 1/β steps or so is below ``least_ess`` the constant rests on single draws, and no step is taken:
    the loss is NaN, at which ``fit`` stops with an error that names the site.

    The value is an estimate of the log likelihood and no bound. Parameters are ``numpyro.param`` sites; a
    guide with latent sites is refused.

    :param beta: β, above 0 and at most 1.
    :param num_noise: draws of the noise a step.
    :param least_ess: how many of them must count, in the mean over steps; where there are fewer than twice as
        many, half of them. At 1 nothing is refused.
    :raises ArgumentError: for β out of its range, or a ``least_ess`` below 1.
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
    check_number("CompositionalNLL(least_ess=...)", least_ess, at_least=1.0)
    tracked = partial(_tracked, beta, _bound(least_ess, num_noise))
    return compared("CompositionalNLL", model, guide, num_noise, tracked)


def _bound(least_ess: float, num_noise: int) -> float:
    return min(least_ess, num_noise / 2) if least_ess > 1 else 0.0


def _tracked(beta: float, least: float, name: str, law: Unnormalized, noise):
    log_weights = law.log_prob_fn(noise) - law.noise.log_prob(noise)
    log_g = logsumexp(log_weights) - jnp.log(len(log_weights))
    state = carried(
        f"{name}{STATE}",
        {
            "log_sum": jnp.asarray(-jnp.inf),
            "share": jnp.zeros(()),
            "log_normaliser": jnp.zeros(()),
            "ess": jnp.zeros(()),
            "sum_ess": jnp.zeros(()),
        },
    )
    refused = (state["share"] > STARTED) & (state["sum_ess"] < least * state["share"])
    w = stop_gradient(log_weights)
    state["log_sum"] = jnp.logaddexp(
        jnp.log1p(-beta) + state["log_sum"], jnp.log(beta) + stop_gradient(log_g)
    )
    state["share"] = (1 - beta) * state["share"] + beta  # less than one in the first steps
    state["log_normaliser"] = log_u = state["log_sum"] - jnp.log(state["share"])
    state["ess"] = jnp.exp(2 * logsumexp(w) - logsumexp(2 * w))
    state["sum_ess"] = (1 - beta) * state["sum_ess"] + beta * state["ess"]
    ratio = jnp.exp(log_g - log_u)
    log_u = jnp.where(refused, jnp.nan, log_u)
    return lambda value: law.log_prob_fn(value) - (log_u + ratio - stop_gradient(ratio))


def _refused(self: Objective, params: Mapping[str, Any]) -> str | None:
    num_noise, bound = self.options["num_noise"], _bound(self.options["least_ess"], self.options["num_noise"])
    for key, state in params.items():
        if key.endswith(STATE) and isinstance(state, Mapping) and "sum_ess" in state:
            share, name = float(state["share"]), key.removesuffix(STATE)
            if share > STARTED and (mean := float(state["sum_ess"]) / share) < bound:
                return (
                    f"of {num_noise} draws of the noise of site '{name}' {mean:.2f} count in the mean over "
                    f"steps, fewer than the {bound:g} that least_ess asks for: the noise does not cover the "
                    "model. Give unnormalized a noise that is wider, or nearer to the data, or use NCE(); "
                    "more draws help little."
                )
    return None


CompositionalNLL.refused = _refused
