"""Data whose density is known up to a constant: a site, and what stands in for its density."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpyro
from numpyro.distributions import Distribution
from numpyro.primitives import _PYRO_STACK, Messenger, prng_key

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.expectations.run import Run
from ppl_ext.gradients.strategy import unwrapped
from ppl_ext.program import log_density, simulate
from ppl_ext.runtime.arguments import check_function, described


class Unnormalized(Distribution):
    """The law of an :func:`unnormalized` site. ``instead`` is what an objective puts for its log density."""

    pytree_data_fields = ("noise", "log_normaliser")
    pytree_aux_fields = ("log_prob_fn", "instead")

    def __init__(self, log_prob_fn: Callable, noise: Distribution, log_normaliser: Any = None):
        self.log_prob_fn, self.noise, self.log_normaliser = log_prob_fn, noise, log_normaliser
        self.instead: Callable | None = None
        super().__init__((), noise.event_shape, validate_args=False)

    @property
    def support(self):
        return self.noise.support

    def sample(self, key, sample_shape=()):
        raise ModelError(
            "An unnormalized site cannot be drawn: its density is known up to a constant only. Give it "
            "obs=..."
        )

    def log_prob(self, value):
        if self.instead is not None:
            return self.instead(value)
        if self.log_normaliser is not None:
            return self.log_prob_fn(value) - self.log_normaliser
        if any(isinstance(handler, Run) for handler in _PYRO_STACK):
            raise ModelError(
                "An unnormalized site is scored by an objective that needs its constant. Fit it with "
                "CompositionalNLL() or NCE(), or give the site log_normaliser=..."
            )
        return self.log_prob_fn(value)


def unnormalized(
    name: str, log_prob_fn: Callable, noise: Distribution, *, obs: Any, log_normaliser: Any = None
) -> Any:
    r"""An observed site whose density is known up to a constant, with a noise law to compare it with.

    .. math:: p_\theta(x) = \tilde p_\theta(x) / Z(\theta), \qquad Z(\theta) = \int \tilde p_\theta(x) dx =
        \mathbb{E}_{x \sim q} [\tilde p_\theta(x) / q(x)]

    It stands in plates, minibatches, masks and scales as any other site, and
    :class:`~ppl_ext.objectives.CompositionalNLL` or :class:`~ppl_ext.objectives.NCE` learn its parameters,
    which are ``numpyro.param`` sites.

    :param log_prob_fn: :math:`\log \tilde p`, from values ``(..., *event)`` to (...); the same for all
        elements of a plate.
    :param noise: q, a law of one value: without batch axes, positive wherever the model is.
    :param obs: the data.
    :param log_normaliser: log Z, once it is known: the site then has an ordinary density, for reports.
        Without it the density outside of our objectives is :math:`\tilde p`, which MCMC and NumPyro's own
        objectives would take for a density.
    :raises ArgumentTypeError: if the function or the law is none.
    :raises ArgumentError: if the noise has batch axes.
    :raises ModelError: when it is drawn, or scored by another objective without a constant.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, ppl_ext
    >>> def model(x):
    ...     with numpyro.plate("rows", len(x)):
    ...         unnormalized("x", lambda x: -(x**2) / 2, dist.Normal(0.0, 2.0), obs=x, log_normaliser=0.919)
    >>> round(float(ppl_ext.log_density(model, {}, jnp.zeros(2))), 3)
    -1.838
    """
    check_function(f"unnormalized '{name}': log_prob_fn", log_prob_fn)
    if not isinstance(noise, Distribution):
        raise ArgumentTypeError(
            f"unnormalized '{name}': noise must be a distribution, got {described(noise)}."
        )
    if noise.batch_shape:
        raise ArgumentError(
            f"unnormalized '{name}': noise must be the law of one value, and has batch shape "
            f"{noise.batch_shape}. Use .to_event(...) where these are axes of a value."
        )
    return numpyro.sample(name, Unnormalized(log_prob_fn, noise, log_normaliser), obs=obs)


class _Compared(Messenger):
    """Score unnormalized sites by what an estimate makes of them."""

    def __init__(self, key: jax.Array, num_noise: int, estimate: Callable):
        super().__init__()
        self.key, self.num_noise, self.estimate, self.met = key, num_noise, estimate, False

    def process_message(self, msg):
        if msg["type"] != "sample" or not isinstance(law := unwrapped(msg["fn"]), Unnormalized):
            return
        key = jax.random.fold_in(self.key, zlib.crc32(msg["name"].encode()))
        law.instead = self.estimate(msg["name"], law, law.noise.sample(key, (self.num_noise,)))
        self.met = True


def compared(objective: str, model: Callable, guide: Callable, num_noise: int, estimate: Callable):
    """log p − log q of two programs, unnormalized sites scored by ``estimate(name, law, noise)``, which
    returns a function of the data.

    :raises ModelError: if the guide draws latent sites, or no site is unnormalized.
    """
    draw = simulate(guide)
    if latent := [n for n in draw.values if n not in draw.values.auxiliary]:
        raise ModelError(
            f"{objective}: the guide draws '{latent[0]}', and one constant cannot serve all its draws. Make "
            "it a numpyro.param of the model."
        )
    with (found := _Compared(prng_key(), num_noise, estimate)):
        log_p = log_density(model, draw.values)
    if not found.met:
        raise ModelError(
            f"{objective}: the model has no unnormalized site. Use ELBO() for what is normalised."
        )
    return log_p - draw.log_density
