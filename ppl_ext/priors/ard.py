"""Latent axes whose prior variances are learned, to find how many of them the data need (Saha, Joshi,
Whitaker 2025).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.lax import stop_gradient
from numpyro.primitives import Messenger, mutable

from ppl_ext.densities.distributions import mask_of
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, check_flag, check_number, described


def ARD(
    name: str,
    dim: int,
    *,
    hyperprior: dist.Gamma | None = None,
    encoded: Any = None,
    step: float = 0.1,
    marginal: bool = False,
    infer: dict | None = None,
) -> Any:
    r"""A latent site of ``dim`` axes, each with a precision of its own that is refreshed at every step of a
    fit.

    .. math:: z_{il} \sim \mathcal{N}(0, 1 / \alpha_l), \quad \alpha_l \sim \mathrm{Gamma}(a_0, b_0): \qquad
        a = a_0 + \tfrac{n}{2}, \quad b_l = b_0 + \tfrac12 \sum_i \mu_{il}^2

    Call it within a model, in the plate of the rows; the guide says what it likes of ``name``. Its law at one
    step is :math:`\mathcal{N}(0, b_l / a)` of the step before, or that with the precisions integrated out,

    .. math:: p(z_l \mid \mu) = \int \mathcal{N}(z_l; 0, 1 / \alpha) \, \mathrm{Gamma}(\alpha; a, b_l) \,
        d\alpha = t_{2a}(z_l; 0, b_l / a)

    A step sees a batch: its sums are scaled up as its terms of the density are, by a subsampled plate, by
    ``scale``, by masks, and a share ``step`` of what they say replaces a share of what was known (Hoffman,
    Blei, Wang, Paisley 2013). ``step=1`` takes the formula of each batch as it is.

    The numbers are mutable state, ``"<name>_precisions"``, which SVI carries and a fit has in its ``params``:
    a dict of ``concentration`` a and ``rate`` b, both (dim,), which :func:`relevance` reads. The loss is that
    of a model with these variances, and no bound on the evidence of one with unknown precisions. Nothing
    refreshes them outside of SVI: for MCMC write the precisions as a Gamma site.

    :param dim: how many axes.
    :param hyperprior: Gamma(:math:`a_0, b_0`), of batch shape () or (dim,); by default ``Gamma(1.0, 1.0)``.
        The first variances are :math:`b_0 / a_0`.
    :param encoded: :math:`\mu`, (rows, dim), the encoder's means; no gradient flows back through it. By
        default the values of the site, whose squares are larger by the encoder's variance: then a and b are
        those of variational Bayes, and variances of silent axes stay where they are. An objective that draws
        from the model (``Sleep``) wants the means.
    :param step: above 0 and at most 1.
    :param marginal: whether the law is the Student-t.
    :return: the site's value, (rows, dim).
    :raises ArgumentError: for numbers out of their range, or means of another shape than the site's value;
        the message names the site.

    >>> import jax, optax, ppl_ext
    >>> from ppl_ext.objectives import ELBO
    >>> means = jnp.array([[3.0, 0.0], [-3.0, 0.0], [3.0, 0.0], [-3.0, 0.0]])
    >>> def model():
    ...     with numpyro.plate("rows", 4):
    ...         ARD("z", 2, encoded=means, step=1.0)
    >>> def guide():
    ...     with numpyro.plate("rows", 4):
    ...         numpyro.sample("z", dist.Normal(means, 0.5).to_event(1))
    >>> key, optim = jax.random.key(0), optax.sgd(0.1)
    >>> run = ppl_ext.infer.fit(key, model, guide, ELBO(), optim, 1, progress_bar=False)
    >>> found = run.params["z_precisions"]
    >>> found["concentration"][0].tolist(), found["rate"][0].tolist()  # 1 + 4/2, and 1 + 36/2 and 1 + 0
    ([3.0, 3.0], [19.0, 1.0])

    Source: Saha, Joshi, Whitaker 2025, "ARD-VAE: A statistical formulation to find the relevant latent
    dimensions of variational autoencoders"; Hoffman, Blei, Wang, Paisley 2013, "Stochastic variational
    inference", for batches.
    """
    where = f"ARD '{name}'"
    check_count(f"{where}: dim", dim)
    check_number(f"{where}: step", step)
    if not 0.0 < step <= 1.0:
        raise ArgumentError(f"{where}: step must be above 0 and at most 1, got {step}.")
    check_flag(f"{where}: marginal", marginal)
    start = _precisions(where, dist.Gamma(1.0, 1.0) if hyperprior is None else hyperprior, dim)
    state = mutable(f"{name}_precisions", dict(start))
    a, b = (stop_gradient(state[part]) for part in ("concentration", "rate"))
    if b.shape != (dim,):
        raise ArgumentError(
            f"{where}: dim is {dim}, and the precisions that were kept under '{name}_precisions' are of "
            f"{b.shape[-1]} axes. Give the site another name, or the dim that it was fitted with."
        )
    spread = jnp.sqrt(b / a)
    law = dist.StudentT(2 * a, 0.0, spread) if marginal else dist.Normal(0.0, spread)
    with (site := _Weighed()):
        z = numpyro.sample(name, law.to_event(1), infer=infer)
    known = _means(where, z if encoded is None else encoded, jnp.shape(z))
    weights = jnp.broadcast_to(site.weights, known.shape[:-1])
    seen = jnp.where(weights[..., None] > 0, known, 0.0)  # what a mask hides may be NaN
    squares = jnp.sum(weights[..., None] * seen**2, tuple(range(seen.ndim - 1)))
    count = weights.sum()
    state["concentration"] = (1 - step) * a + step * (start["concentration"] + count / 2)
    state["rate"] = (1 - step) * b + step * (start["rate"] + squares / 2)
    return z


class _Weighed(Messenger):
    """How often each row of a site counts, by its plates, scales and masks."""

    def __init__(self):
        super().__init__()
        self.weights = jnp.ones(())

    def postprocess_message(self, msg):
        if msg["type"] == "sample":
            scale = jnp.ones(()) if msg["scale"] is None else jnp.asarray(msg["scale"])
            mask = mask_of(msg["fn"])
            self.weights = scale if mask is None else jnp.where(mask, scale, 0.0)


def _precisions(where: str, hyperprior: Any, dim: int) -> dict[str, jax.Array]:
    if not isinstance(hyperprior, dist.Gamma):
        raise ArgumentTypeError(
            f"{where}: hyperprior must be a numpyro.distributions.Gamma, got {described(hyperprior)}."
        )
    if hyperprior.batch_shape not in ((), (dim,)):
        raise ArgumentError(
            f"{where}: hyperprior must have batch shape () or ({dim},), one law for each axis, and has "
            f"{hyperprior.batch_shape}."
        )
    parts = {"concentration": hyperprior.concentration, "rate": hyperprior.rate}
    return {part: jnp.broadcast_to(jnp.asarray(x, float), (dim,)) for part, x in parts.items()}


def _means(where: str, encoded: Any, shape: tuple[int, ...]) -> jax.Array:
    if jnp.shape(encoded) != shape:
        raise ArgumentError(
            f"{where}: encoded must have the shape of the site's value, {shape}, got {described(encoded)}. "
            "Call ARD within the plate of the rows, and give the means of these rows."
        )
    return jnp.asarray(encoded)
