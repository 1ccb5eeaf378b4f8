"""Exact expected losses and gradients, by summing over every outcome a guide can have.

An ``Oracle`` is a test problem written out by hand, in plain JAX, without NumPyro and without this library:
the list of joint outcomes of the guide, the values they stand for, and the two log densities. A finite site
contributes each of its values as outcomes; a Gaussian site contributes Gauss-Hermite nodes of its
standardised noise, so that its value depends on the parameters and everything stays differentiable. The
expected loss with K particles is then a sum over all K-tuples of outcomes, averaged over every minibatch a
subsampled plate can draw, and its gradient is ``jax.grad`` of that sum. All in double precision.

What the expectation is taken over, ``log_pmf``, is kept apart from what is averaged, ``log_p`` and ``log_q``:
scales and masks change the second and never the first.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

EVERYTHING = (None,)  # the minibatches of a problem that draws none

# These programs run for milliseconds and compile for seconds: a quarter of that without XLA's optimisations.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


@dataclass(frozen=True)
class Oracle:
    """A problem on paper.

    :param outcomes: a dictionary of arrays whose leading axis runs over the M joint outcomes of the guide.
    :param log_weights: (M,) the constant part of each outcome's log probability (quadrature weights; zero if
        finite).
    :param log_pmf: ``(params, z, batch)`` to the log probability of the guide's finite sites, not scaled, not
        masked.
    :param log_p: ``(params, z, batch)`` to the model's log density as it enters the bound: a scalar, or one
        entry for each element of a plate around the whole program, without that plate's subsampling scale.
    :param log_q: the same for the guide.
    :param values: ``(params, outcome, batch)`` to z; the identity unless a site is Gaussian.
    :param batches: every minibatch, equally likely, drawn once for all particles.
    :param plate_scale: N / B of a subsampled plate around the whole program.
    """

    outcomes: dict[str, np.ndarray]
    log_weights: np.ndarray
    log_pmf: Callable
    log_p: Callable
    log_q: Callable
    values: Callable = lambda params, outcome, batch: outcome
    batches: tuple[Any, ...] = EVERYTHING
    plate_scale: float = 1.0


# Outcomes


def finite(cardinality, shape=()):
    """Every array of this shape over 0..cardinality-1, with log weights of zero."""
    points = itertools.product(range(cardinality), repeat=int(np.prod(shape)))
    points = np.array(list(points), dtype=np.float64).reshape((-1, *shape))
    return points, np.zeros(len(points))


def gaussian(num_nodes=32):
    """Gauss-Hermite nodes and log weights of one standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, np.log(weights) - np.log(weights.sum())


def product(**spaces):
    """The joint outcomes of independent spaces: arguments ``outcomes`` and ``log_weights`` of an
    ``Oracle``.
    """
    indices = np.indices([len(weights) for _, weights in spaces.values()]).reshape(len(spaces), -1)
    outcomes = {name: points[i] for (name, (points, _)), i in zip(spaces.items(), indices, strict=True)}
    log_weights = sum(weights[i] for (_, weights), i in zip(spaces.values(), indices, strict=True))
    return {"outcomes": outcomes, "log_weights": log_weights}


def minibatches(size, subsample_size):
    """Every set of indices a subsampled plate can draw. The order within a set does not matter to any
    bound.
    """
    return tuple(np.array(batch) for batch in itertools.combinations(range(size), subsample_size))


# Log densities, from their definitions


def bernoulli(x, logits):
    """Log probability of x in {0, 1} under success log odds ``logits``."""
    return x * logits - jnp.logaddexp(0.0, logits)


def categorical(x, logits):
    """Log probability of x in {0, 1, ...} under unnormalised log probabilities on the last axis."""
    logits = logits - logsumexp(logits, axis=-1, keepdims=True)
    return jnp.sum(logits * (jnp.asarray(x)[..., None] == jnp.arange(logits.shape[-1])), axis=-1)


def normal(x, loc, scale=1.0):
    """Log density of a Gaussian."""
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2.0 * jnp.pi)


# Objectives, as functions of log weights (K, ..., E) with E elements of an enclosing plate


def elbo():
    """Mean over particles of the log weight."""
    return lambda log_weights: log_weights.mean(0).sum(-1)


def iwelbo():
    """Log mean weight."""
    return lambda log_weights: (logsumexp(log_weights, axis=0) - jnp.log(len(log_weights))).sum(-1)


def renyi(alpha):
    """Log mean power of the weight, rescaled."""

    def bound(log_weights):
        power = (1.0 - alpha) * log_weights
        return ((logsumexp(power, axis=0) - jnp.log(len(power))) / (1.0 - alpha)).sum(-1)

    return bound


# Expectations


def expected_loss(oracle, params, objective, num_particles, derive=jax.value_and_grad):
    """The exact expectation of minus a bound, and its gradient (or what else ``derive`` makes of it)."""

    def loss(params):
        total = 0.0
        for batch in oracle.batches:
            log_probs, log_p, log_q = table(oracle, params, batch)
            tuples = _tuples(len(log_probs), num_particles)
            probs = jnp.exp(log_probs[tuples].sum(0))
            total = total - oracle.plate_scale * jnp.sum(probs * objective((log_p - log_q)[tuples]))
        return total / len(oracle.batches)

    return _in_double_precision(derive(loss), params)


def expected_forward_kl(oracle, params, num_particles):
    r"""The exact expectation of the self-normalised forward KL loss, and of its gradient.

    The loss is :math:`\sum_k \bar w_k (\log p_k - \log q_k) - \log \tfrac1K \sum_k w_k`; its gradient is
    :math:`-\sum_k \bar w_k \nabla \log q_\phi(z_k)` with the draws and the weights held fixed. It is not the
    gradient of the expected loss, hence two sums. Weights are those of whole draws, plates or not.
    """

    def both(params):
        def surrogate(moving):
            value, slope = 0.0, 0.0
            for batch in oracle.batches:
                log_probs, log_p, log_q = jax.tree.map(stop_gradient, table(oracle, params, batch))
                _, _, moving_log_q = table(oracle, moving, batch, frozen=params)
                tuples = _tuples(len(log_probs), num_particles)
                probs = jnp.exp(log_probs[tuples].sum(0))
                log_weights = oracle.plate_scale * (log_p - log_q).sum(-1)[tuples]
                normalised = jax.nn.softmax(log_weights, axis=0)
                kl = (
                    (normalised * log_weights).sum(0)
                    - logsumexp(log_weights, axis=0)
                    + jnp.log(num_particles)
                )
                value = value + jnp.sum(probs * kl)
                credit = (normalised * oracle.plate_scale * moving_log_q.sum(-1)[tuples]).sum(0)
                slope = slope - jnp.sum(probs * credit)
            return slope / len(oracle.batches), value / len(oracle.batches)

        grads, value = jax.grad(surrogate, has_aux=True)(params)
        return value, grads

    return _in_double_precision(both, params)


def log_evidence(oracle, params):
    """The exact log evidence, for problems whose log q is the guide's own density."""

    def evidence(params):
        total = 0.0
        for batch in oracle.batches:
            log_probs, log_p, log_q = table(oracle, params, batch)
            total = total + oracle.plate_scale * logsumexp(log_probs[:, None] + log_p - log_q, axis=0).sum()
        return total / len(oracle.batches)

    return _in_double_precision(evidence, params)


def table(oracle, params, batch, frozen=None):
    """Log probability (M,), log p (M, E) and log q (M, E) of every outcome; draws come from ``frozen`` if
    given.
    """

    def row(outcome, log_weight):
        z = oracle.values(params if frozen is None else frozen, outcome, batch)
        z = z if frozen is None else jax.tree.map(stop_gradient, z)
        terms = oracle.log_p(params, z, batch), oracle.log_q(params, z, batch)
        log_p, log_q = (jnp.atleast_1d(jnp.asarray(term)) for term in terms)
        return log_weight + oracle.log_pmf(params, z, batch), log_p, log_q

    return jax.vmap(row)(jax.tree.map(jnp.asarray, oracle.outcomes), jnp.asarray(oracle.log_weights))


def _tuples(num_outcomes, num_particles):
    return np.indices((num_outcomes,) * num_particles).reshape(num_particles, -1)


def _in_double_precision(fn, params):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        return jax.tree.map(np.asarray, quick_jit(fn)(params))


# Comparison with an estimator


def replicates(loss, problem, num_replicates=20_000, seed=0, guide=None, derive=jax.value_and_grad):
    """Independent (value, gradient) pairs of ``loss.loss``, stacked: one compilation, in one vmap over
    keys.
    """
    params = jax.tree.map(jnp.asarray, problem.params)
    guide = problem.guide if guide is None else guide

    def one(rng_key):
        return derive(lambda params: loss.loss(rng_key, params, problem.model, guide, *problem.args))(params)

    return quick_jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num_replicates))


def quick_jit(fn):
    """``jax.jit`` for a function called once or twice."""
    return jax.jit(fn, compiler_options=QUICK_COMPILATION)


def z_scores(samples, exact, floor=1e-5):
    """How many standard errors the mean of the replicates lies from the exact answer, by coordinate.

    An error below ``floor`` (relative, or absolute near zero) counts as none: single precision cannot tell it
    from zero, and an estimator with no variance has no standard error to measure it by.
    """

    def score(sample, exact):
        sample, exact = np.asarray(sample, np.float64), np.asarray(exact)
        standard_error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
        excess = np.maximum(np.abs(sample.mean(axis=0) - exact) - floor * (1.0 + np.abs(exact)), 0.0)
        return np.divide(
            excess, standard_error, out=np.where(excess > 0, np.inf, 0.0), where=standard_error > 0
        )

    return jax.tree.map(score, samples, exact)


def assert_unbiased(samples, exact, num_standard_errors=4.5):
    """Every coordinate (of value and gradient) lies within this many standard errors of the exact answer."""
    scores = z_scores(samples, exact)
    worst = max(np.max(leaf) for leaf in jax.tree.leaves(scores))
    means = jax.tree.map(lambda x: np.asarray(x, np.float64).mean(0), samples)
    assert worst <= num_standard_errors, (
        f"{worst:.1f} standard errors off\nexact: {exact}\nmean: {means}\nstandard errors off: {scores}"
    )
