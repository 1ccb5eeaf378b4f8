"""Variational inference with priors that are known by their score (Mardani, Song, Kautz, Vahdat 2024)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import random
from numpyro.primitives import prng_key

from ppl_ext.densities.log_density import lower_bound
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.expectations.objective import carried, objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.program import log_density, simulate
from ppl_ext.runtime.arguments import check_number, described
from ppl_ext.scores.density import noisy_log_density
from ppl_ext.scores.surrogates import ScoreSites, Spreads

_stop = jax.lax.stop_gradient
LEVELS = 16
"""At how many levels of noise one draw is scored for an exact estimate."""


@objective
def ScoreKL(
    model,
    guide,
    weight: str | Callable = "exact",
    order: str | None = None,
    num_particles: int = 1,
    num_steps: int = 1000,
    strength: float = 1.0,
):
    r"""Evidence lower bound, or a smoothed one, of a model with :func:`score_prior` sites, from scores alone.

    .. math:: \mathrm{KL}\big(q \,\|\, p(x \mid y)\big) = -\mathbb{E}_q \log p(y \mid x) +
        \int \tfrac{\beta_t}{2} \, \mathbb{E} \|\nabla \log q_t - \nabla \log p_t\|^2 dt +
        \mathrm{KL}(q_T \| p_T) + \log p(y)

    - ``weight="exact"``: that, an unbiased estimate of the :class:`~ppl_ext.objectives.ELBO`. The entropy of
      q is the guide's own, and :math:`\log p(x)` is estimated from the score at sixteen random levels of
      noise, with the score at the least level for its gradient by x. Parameters of the score get theirs
      too. It serves every guide whose density is known.
    - ``weight="snr"``, or a function w of the level u = σ/α: a descent direction and no bound. The site's
      term is held fixed, and its gradient by the draw x is, with one level of noise a step,

      .. math:: -\lambda \, w(u) \, \big(-u \, s(x + u \varepsilon, u) - \varepsilon\big)

      with w(u) = u for ``"snr"``, by which it is λ times the way from x to the denoised one. Its value is
      zero. The entropy of q is kept; where the guide's spread is fixed, as in the paper, it says nothing.
    - ``weight="variational"``: the draws of q are themselves the noisy ones. The gradient is λ times the
      score at x with the guide's standard deviations, (d,), as levels; it wants a guide whose law has a
      variance at the site (Cheng, Liu, Tan 2023, for denoisers that know the noise pixel by pixel).

    :param order: ``"descending"``, from the most noise to the least in ``num_steps`` steps, and then at the
        least; or ``"random"``. By default, descending for ``"snr"`` and functions. Step numbers are state
        that the objective carries: with NumPyro's ``SVI``, start it by ``carried_by``.
    :param num_steps: the length of a descent, as many as the steps of ``fit``.
    :param strength: λ, of weights that are not exact.
    :raises ArgumentError: for another weight or order, or a combination without a meaning.
    :raises ModelError: if the model has no :func:`score_prior` site, or one in a ``scan``; for
        ``"variational"``, if the guide's law tells no variance or the score takes one level for all
        coordinates.

    >>> import numpyro, numpyro.distributions as dist
    >>> from ppl_ext.scores import GaussianScore, score_prior
    >>> def model(y):
    ...     x = score_prior("x", GaussianScore(jnp.zeros(2), jnp.eye(2)))
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> def guide(y):  # the posterior
    ...     numpyro.sample("x", dist.Normal(y / 2, 0.5**0.5).to_event(1))
    >>> y = jnp.array([1.0, -1.0])
    >>> losses = ScoreKL(num_particles=4000).loss(jax.random.key(0), {}, model, guide, y)
    >>> abs(float(losses) - 3.03) < 0.2  # minus log p(y)
    True

    Source: Mardani, Song, Kautz, Vahdat 2024, proposition 1 for the identity, section 4 for the weights and
    the order; Cheng, Liu, Tan 2023 for ``weight="variational"``.
    """
    order = _checked(weight, order, strength)
    step = None
    if order == "descending":
        state = carried("ScoreKL", {"step": jnp.zeros((), int)})
        step = jnp.minimum(state["step"], num_steps - 1)
        state["step"] = state["step"] + 1

    def term(law, x, rng_key, spread):
        schedule, score = law.schedule, law.score
        if spread is not None:
            held = _stop(score(x, spread))
            if held.shape != x.shape:
                raise ModelError(
                    "ScoreKL(weight='variational') asks for score(x, sigma) with a level of noise for each "
                    f"coordinate, (d,), and got {held.shape} for {x.shape}. Write the score for such levels, "
                    "as (D(x) - x) / sigma**2 with a denoiser D that takes them."
                )
            return strength * (held @ (x - _stop(x)))
        if weight == "exact":
            return noisy_log_density(score, schedule, x, rng_key, LEVELS)
        when, noise = random.split(rng_key)
        share = random.uniform(when) if step is None else 1 - step / max(num_steps - 1, 1)
        level = schedule.ratio(schedule.start + (1 - schedule.start) * share)
        noise = random.normal(noise, x.shape, x.dtype)
        residual = -level * score(x + level * noise, level) - noise
        factor = weight(level) if callable(weight) else level
        return -strength * (_stop(factor * residual) @ (x - _stop(x)))

    def one():
        with (spreads := Spreads()):
            draw = simulate(guide)
        extra = spreads.found if weight == "variational" else None
        with (sites := ScoreSites(term, prng_key(), extra)):
            log_p = log_density(model, draw.values)
        if not sites.met:
            raise ModelError(
                "ScoreKL: the model has no score_prior site, and so no score to ask for. Use ELBO, or make "
                "one by ppl_ext.scores.score_prior."
            )
        return log_p - draw.log_density

    mean = replicate(one, num_particles).mean()
    return lower_bound(mean) if weight == "exact" else mean


def _checked(weight, order, strength) -> str:
    check_number("ScoreKL(strength=...)", strength, at_least=0.0)
    known = ("exact", "snr", "variational")
    if weight not in known and not callable(weight):
        raise ArgumentError(
            "ScoreKL: weight must be 'exact', 'snr', 'variational' or a function of the level, got "
            f"{described(weight)}."
        )
    if order not in (None, "descending", "random"):
        raise ArgumentError(f"ScoreKL: order must be 'descending' or 'random', got {described(order)}.")
    descends = callable(weight) or weight == "snr"
    if order == "descending" and not descends:
        raise ArgumentError(
            "ScoreKL: order='descending' is for weight='snr' or a function: an exact estimate takes all "
            "levels at every step, and a variational one the guide's."
        )
    return order or ("descending" if descends else "random")
