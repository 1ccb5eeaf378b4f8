"""What exact smoothing returns, of finite and of Gaussian states."""

from typing import NamedTuple

import jax

from ppl_ext.state_space.kalman import Behind


class Smoothed(NamedTuple):
    """``log_evidence`` is log p(y); ``mean`` and ``covariance`` are of the joint state of all latent sites of
    a step (raveled, in the order of their names), (T, d) and (T, d, d); ``cross`` (T − 1, d, d) is the
    covariance of the state before a step (rows) and after it, and ``first_cross`` (d₀, d) that of the initial
    sites and the first state. Of a reversed scan the state before a step is that of the next input.

    ``log_increments`` (T,) are log p(y_t | y_<t) and ``log_initial`` the density of what is observed before
    the scan: they add up to the evidence. ``filtered_mean`` and ``filtered_covariance`` are of the state
    given the observations up to its own. Where no state allows an observation its increment is minus
    infinity, and what is conditioned on it is NaN.

    Finite models also have ``probs`` (T, K) and ``filtered_probs`` over ``points`` (K, d), the joint states,
    and the probabilities of neighbours, ``first_pairs`` (K₀, K) and ``pairs`` (T − 1, K, K); for Gaussian
    ones these are ``None``. Gaussian models have the law of the initial sites given the first state,
    ``first_behind``, and of each state given the next one and what was observed so far, ``behind``.
    """

    log_evidence: jax.Array
    initial_mean: jax.Array
    initial_covariance: jax.Array
    first_cross: jax.Array
    mean: jax.Array
    covariance: jax.Array
    cross: jax.Array
    log_initial: jax.Array
    log_increments: jax.Array
    filtered_mean: jax.Array
    filtered_covariance: jax.Array
    probs: jax.Array | None = None
    points: jax.Array | None = None
    filtered_probs: jax.Array | None = None
    first_pairs: jax.Array | None = None
    pairs: jax.Array | None = None
    first_behind: Behind | None = None
    behind: Behind | None = None
