"""Markovian score climbing (Naesseth, Lindsten, Blei 2020, algorithms 1 and 2)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import random
from numpyro.primitives import prng_key

from ppl_ext.algorithms.markov_kernel import MarkovKernel, Move
from ppl_ext.densities.log_density import LogDensity
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.expectations.objective import carried, objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach
from ppl_ext.objectives.terms.path_gradient import fixed
from ppl_ext.objectives.terms.self_normalised import normalised, signal
from ppl_ext.program import SiteValues, log_density, simulate
from ppl_ext.runtime.arguments import check_count, described


@dataclass(frozen=True)
class ConditionalImportanceSampling:
    r"""Keep the retained draw, add K − 1 of the guide, choose among all K by weight (algorithm 2; Andrieu,
    Doucet, Holenstein 2010).

    .. math:: z' \sim \sum_k \bar w_k \delta_{z_k}, \qquad z_1 = z, \; z_{2:K} \sim q, \; w_k = \tfrac{p(y,
        z_k)}{q(z_k)}

    It leaves the posterior unchanged for every K from 2 on; K = 2 moves least often.

    :param num_particles: K, at least 2.
    :raises ArgumentError: for fewer than 2 particles.
    :raises ModelError: when run, if a density is only estimated.

    >>> ConditionalImportanceSampling(1)
    Traceback (most recent call last):
    ppl_ext.errors.ArgumentError: ConditionalImportanceSampling needs num_particles of at least 2: ...
    """

    num_particles: int = 8

    def __post_init__(self):
        check_count("ConditionalImportanceSampling(num_particles=...)", self.num_particles)
        if self.num_particles < 2:
            raise ArgumentError(
                "ConditionalImportanceSampling needs num_particles of at least 2: a single one is the "
                "retained draw."
            )

    def __call__(self, model, guide, values) -> Move:
        fresh = replicate(lambda: simulate(detach(guide)).values, self.num_particles - 1)
        particles = jax.tree.map(lambda old, new: jnp.concatenate([old[None], new]), values, fresh)
        log_weights = jax.vmap(lambda z: _exact(log_density(model, z) - log_density(guide, z)).total)(
            particles
        )
        index = random.categorical(prng_key(), log_weights)
        return Move(jax.tree.map(lambda x: x[index], particles), particles, normalised(log_weights))


@objective
def MarkovScoreClimbing(model, guide, kernel: MarkovKernel = ConditionalImportanceSampling(8)):
    r"""Follow the score of the guide at the draws of a Markov chain that has the posterior as its law: KL(p(z
    | y) ‖ q) without the bias.

    .. math:: \nabla_\phi \approx \sum_k \bar w_k \nabla_\phi \log q_\phi(z_k), \qquad
        \nabla_\theta \approx \sum_k \bar w_k \nabla_\theta \log p_\theta(y, z_k)

    Self-normalised weights of fresh draws alone (:class:`~ppl_ext.objectives.ForwardKL`) are biased for every
    finite K. Here one draw is retained from step to step, so that the particles are those of the posterior
    once the chain has reached it, and the gradients are then unbiased at low K too: θ's is that of the log
    evidence (Fisher's identity). The retained draw is state that the objective carries (start it with
    ``carried_by`` in NumPyro's ``SVI``); each chain of ``fit`` has its own. The value is minus the cross
    entropy, :math:`\sum_k \bar w_k \log q(z_k)`; no bound. Draws are held fixed, so sites of every kind
    serve, and strategies have no say.

    :param kernel: a :class:`MarkovKernel`.
    :raises ArgumentTypeError: for what is no kernel, as a number of particles.
    :raises ModelError: if a plate of the guide is subsampled, or a density is only estimated.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(1.0 * numpyro.sample("coin", dist.Bernoulli(0.5)), 1.0), obs=y)
    >>> def guide(y):
    ...     numpyro.sample("coin", dist.Bernoulli(numpyro.param("p", 0.5)))
    >>> key, objective = jax.random.key(0), MarkovScoreClimbing(ConditionalImportanceSampling(4))
    >>> state = objective.initial_state(key, {}, model, guide, 1.0)  # fit does this by itself
    >>> # the cross entropy with a fair coin: log 2
    >>> round(float(objective.loss(key, state, model, guide, 1.0)), 3)
    0.693

    Source: Naesseth, Lindsten, Blei 2020, algorithms 1 and 2.
    """
    if not callable(kernel):
        raise ArgumentTypeError(
            "MarkovScoreClimbing: kernel must be a MarkovKernel, such as ConditionalImportanceSampling(8), "
            f"got {described(kernel)}."
        )
    fresh = _begin(guide)
    state = carried("MarkovScoreClimbing", lambda: {"retained": dict(fresh)})
    retained = SiteValues(state["retained"], fresh.auxiliary)
    values, particles, weights = fixed(kernel(detach(model), detach(guide), retained))
    state["retained"] = dict(values)
    particles = SiteValues(particles, fresh.auxiliary)
    log_q, log_p = (
        jax.vmap(lambda z, program=program: _exact(log_density(program, z)).total)(particles)
        for program in (guide, model)
    )
    return jnp.sum(jnp.where(weights > 0, weights * log_q, 0.0)) + signal(weights, log_p)


def _begin(guide) -> SiteValues:
    """A draw to begin with; where one is retained, only its names count."""
    draw = simulate(detach(guide))
    _exact(draw.log_density)  # before particles are scored in a vmap, where an estimate cannot be made
    plates = {plate.name for label in draw.log_density.labels for plate in label.plates} & set(draw.values)
    if plates:
        raise ModelError(
            f"MarkovScoreClimbing: plate '{min(plates)}' is subsampled, and the retained draw would meet "
            "another minibatch at each step. Use the full data, or ReweightedWakeSleep."
        )
    return fixed(draw.values)


def _exact(density: LogDensity) -> LogDensity:
    for label in density.labels:
        if label.estimate.kind != "exact":
            raise ModelError(
                f"MarkovScoreClimbing needs densities in closed form; that of '{label.site}' is estimated "
                "anew at each call."
            )
    return density
