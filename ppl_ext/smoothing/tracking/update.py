r"""What the measurements of one step say of targets that may exist, and of those never seen.

.. math:: \rho_j = \lambda_C(z_j) + p_D \int \ell(z_j \mid x) \lambda(x) \, dx, \qquad
    w_{i0} = 1 - r_i + r_i (1 - p_D), \qquad w_{ij} = r_i p_D \ell_{ij} / \rho_j

A measurement that no known target has is of clutter or of a target seen for the first time, which is a new
Bernoulli. Each known one becomes a mixture over what it may have, and is taken as the normal law with the
mixture's mean and covariance. Source: Williams 2015, "Marginal multi-Bernoulli filters: RFS derivation of
MHT, JIPDA, and association-based MeMBer", the track-oriented filter.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_ext.smoothing.tracking.associations import Associations, association_marginals, log_of
from ppl_ext.smoothing.tracking.linear_step import Linear
from ppl_ext.smoothing.tracking.target_sets import Bernoullis, Intensity, times
from ppl_ext.state_space.small_matrices import cholesky, solve_lower, solve_root


class Scan(NamedTuple):
    """The measurements of one step: ``values`` (M, m), which of them there are, ``seen`` (M,), and the log of
    clutter's intensity at each.
    """

    values: jax.Array
    seen: jax.Array
    log_clutter: jax.Array


class Against(NamedTuple):
    """Laws (N,) beside measurements (M,): log likelihoods (N, M), what the measurements differ by from what
    was expected (N, M, m), the gains (N, d, m), and the covariances after one of them (N, d, d).
    """

    log_likelihood: jax.Array
    surprise: jax.Array
    gain: jax.Array
    covariance: jax.Array


def against(mean: jax.Array, covariance: jax.Array, law: Linear, values: jax.Array) -> Against:
    """Kalman's update of each law by each measurement."""
    expected = mean @ law.slope.T + law.offset
    surprise = values[None] - expected[:, None]

    def one(covariance, surprise):
        cross = times(law.slope, covariance)
        root = cholesky(times(cross, law.slope.T) + law.covariance)
        gain = solve_root(root, cross).T
        rest = jnp.eye(len(covariance), dtype=covariance.dtype) - times(gain, law.slope)
        after = times(times(rest, covariance), rest.T) + times(times(gain, law.covariance), gain.T)
        scaled = solve_lower(root, surprise.T)
        size = jnp.log(jnp.diagonal(root)).sum() + 0.5 * len(root) * math.log(2.0 * math.pi)
        return -0.5 * (scaled**2).sum(0) - size, gain, after

    log_likelihood, gain, after = jax.vmap(one)(covariance, surprise)
    return Against(log_likelihood, surprise, gain, after)


class First(NamedTuple):
    """Measurements as the first of a target: the log of how often, log of that with clutter, and the law
    (M, d), (M, d, d) of such a target.
    """

    log_new: jax.Array
    log_rho: jax.Array
    mean: jax.Array
    covariance: jax.Array


def first_seen(undetected: Intensity, law: Linear, detection: jax.Array, scan: Scan) -> First:
    """Each measurement as the first one of a target that was there and never seen."""
    of = against(undetected.mean, undetected.covariance, law, scan.values)
    terms = log_of(detection * undetected.weight)[:, None] + of.log_likelihood
    most = jax.lax.stop_gradient(terms.max(0))
    most = jnp.where(jnp.isneginf(most), 0.0, most)
    share = jnp.exp(terms - most)
    whole = share.sum(0)
    log_new, share = log_of(whole) + most, share / jnp.where(whole > 0.0, whole, 1.0)
    means = undetected.mean[:, None] + jnp.einsum("cdm,cjm->cjd", of.gain, of.surprise)
    mean = jnp.einsum("cj,cjd->jd", share, means)
    apart = means - mean
    spread = jnp.einsum("cj,cde->jde", share, of.covariance)
    spread = spread + jnp.einsum("cj,cjd,cje->jde", share, apart, apart)
    nothing = (whole <= 0.0)[:, None, None]
    spread = jnp.where(nothing, jnp.eye(spread.shape[-1], dtype=spread.dtype), spread)
    larger = jax.lax.stop_gradient(jnp.maximum(log_new, scan.log_clutter))
    larger = jnp.where(jnp.isneginf(larger), 0.0, larger)
    log_rho = log_of(jnp.exp(log_new - larger) + jnp.exp(scan.log_clutter - larger)) + larger
    return First(log_new, log_rho, mean, spread)


class Updated(NamedTuple):
    """The targets after a scan: known ones (N,), new ones (M,), the log evidence of the scan but for the
    numbers of clutter and of unseen targets, and how far associations had settled.
    """

    known: Bernoullis
    new: Bernoullis
    log_evidence: jax.Array
    residual: jax.Array


def updated(
    known: Bernoullis, undetected: Intensity, law: Linear, detection: jax.Array, scan: Scan, num_rounds: int
) -> Updated:
    """Targets given the measurements of a step; new ones have label −1."""
    first = first_seen(undetected, law, detection, scan)
    of = against(known.mean, known.covariance, law, scan.values)
    # where clutter and unseen targets cannot be, a known one must
    log_rho = jnp.where(scan.seen, jnp.maximum(first.log_rho, -1e4), 0.0)
    log_detected = log_of(known.existence * detection)[:, None] + of.log_likelihood - log_rho
    log_detected = jnp.where(scan.seen, log_detected, -jnp.inf)
    there_unseen = known.existence * (1.0 - detection)
    missed = 1.0 - known.existence + there_unseen
    found = association_marginals(log_of(missed), log_detected, num_rounds)
    share = there_unseen / jnp.where(missed > 0.0, missed, 1.0)
    log_new = jnp.where(scan.seen, first.log_new - log_rho, -jnp.inf)
    new = Bernoullis(
        found.unclaimed * jnp.exp(log_new), first.mean, first.covariance, jnp.full(len(scan.seen), -1)
    )
    return Updated(
        _matched(known, of, share * found.missed, found),
        new,
        found.log_normalizer + log_rho.sum(),
        found.residual,
    )


def _matched(known: Bernoullis, of: Against, unseen: jax.Array, found: Associations) -> Bernoullis:
    """The normal laws with the moments of the mixtures over what a target may have."""
    existence = unseen + found.detected.sum(1)
    some = jnp.where(existence > 0.0, existence, 1.0)
    unseen, detected = unseen / some, found.detected / some[:, None]
    surprise = jnp.einsum("ij,ijm->im", detected, of.surprise)
    mean = known.mean + jnp.einsum("idm,im->id", of.gain, surprise)
    # the mixture's means differ along the gain: zero where nothing was seen
    apart = of.surprise - surprise[:, None]
    spread = jnp.einsum("ij,ijm,ijn->imn", detected, apart, apart)
    spread = spread + unseen[:, None, None] * surprise[:, :, None] * surprise[:, None]
    covariance = detected.sum(1)[:, None, None] * of.covariance + unseen[:, None, None] * known.covariance
    covariance = covariance + jnp.einsum("idm,imn,ien->ide", of.gain, spread, of.gain)
    gone = (existence <= 0.0)[:, None, None]
    covariance = jnp.where(gone, known.covariance, 0.5 * (covariance + jnp.swapaxes(covariance, 1, 2)))
    return Bernoullis(jnp.minimum(existence, 1.0), mean, covariance, known.label)
