"""States of a scan under a mask: finite ones count one for each value, as in ``log_density``; others are
drawn from their law.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate
from numpyro.handlers import mask

from ppl_ext import log_density
from ppl_ext.smoothing import smooth
from ppl_ext.smoothing.density_peaks import log_peak
from ppl_ext.state_space import site_runs

KEY = jax.random.key(0)
MOVE = np.array([[0.8, 0.2], [0.3, 0.7]])
Y = jnp.array([0.4, -0.2, 1.3, 0.9])
SEEN = {"a series that ends": [True, True, False, False], "a gap": [True, False, False, True]}


def chain(y, seen):
    def step(z, now):
        y_t, seen_t = now
        with mask(mask=seen_t):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(1.5 * z, 1.0), obs=y_t)
        return z, None

    scan(step, numpyro.sample("z0", dist.Categorical(jnp.array([0.5, 0.5]))), (y, seen))


def by_hand(seen):
    """The evidence and the smoothed mean of the states, over all paths."""
    weights, paths = [], np.array(list(itertools.product(range(2), repeat=5)))
    for path in paths:
        total = np.log(0.5)
        for t in range(4):
            if seen[t]:
                total += np.log(MOVE[path[t], path[t + 1]]) + float(
                    dist.Normal(1.5 * path[t + 1], 1.0).log_prob(Y[t])
                )
        weights.append(total)
    evidence = np.logaddexp.reduce(weights)
    return evidence, np.exp(np.array(weights) - evidence) @ paths[:, 1:]


@pytest.mark.parametrize("kind", SEEN)
def test_the_evidence_and_the_states_of_a_masked_chain(kind):
    seen = SEEN[kind]
    evidence, states = by_hand(seen)
    args = (Y, jnp.array(seen))
    np.testing.assert_allclose(log_density(config_enumerate(chain), {}, *args).total, evidence, rtol=1e-5)
    statistics = {f"z{t}": lambda s, z_prev, z, t=t: jnp.where(s == t, z, 0.0) for t in range(4)}
    exact = smooth(chain, statistics, backward="exact").run(KEY, *args)
    np.testing.assert_allclose(exact.log_evidence, evidence, rtol=1e-5)
    np.testing.assert_allclose([exact.expectations[n] for n in statistics], states, atol=1e-5)
    for backward in ("mcmc", "hybrid", "dense", "path"):
        found = smooth(chain, statistics, num_particles=4000, backward=backward).run(KEY, *args)
        np.testing.assert_allclose(found.log_evidence, evidence, atol=0.12)
        np.testing.assert_allclose([found.expectations[n] for n in statistics], states, atol=0.05)


def test_the_filter_is_unbiased_at_few_particles_and_needs_the_weight(monkeypatch):
    """At five particles, over 4,000 keys: within 4.5 standard errors (false alarms: one in 150,000); without
    the weight it is far off.
    """
    seen = SEEN["a gap"]
    evidence, _ = by_hand(seen)
    smoother = smooth(chain, num_particles=5, backward="path")

    def ratio():
        run = jax.jit(jax.vmap(lambda key: smoother.run(key, Y, jnp.array(seen)).log_evidence))
        return np.exp(np.asarray(run(jax.random.split(KEY, 4000)), float) - evidence)

    found = ratio()
    assert abs(found.mean() - 1.0) < 4.5 * found.std() / np.sqrt(len(found))
    monkeypatch.setattr(site_runs, "element_mask", lambda fn: None)
    smoother = smooth(chain, num_particles=5, backward="path")
    broken = ratio()
    assert abs(broken.mean() - 1.0) > 9 * broken.std() / np.sqrt(len(broken))


def test_the_bound_of_a_masked_law_covers_its_ones():
    assert float(log_peak(dist.Bernoulli(0.4).mask(False))) == 0.0


def test_a_real_state_under_a_mask_is_not_there():
    def walk(y, seen=None):
        def step(x, now):
            y_t, seen_t = now
            with mask(mask=seen_t):
                x = numpyro.sample("x", dist.Normal(0.8 * x, 1.0))
                numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(
            step,
            numpyro.sample("x0", dist.Normal(0.0, 1.0)),
            (y, jnp.ones(len(y), bool) if seen is None else seen),
        )

    short = smooth(walk, backward="exact").run(KEY, Y[:2]).log_evidence
    padded = smooth(walk, backward="exact").run(KEY, Y, jnp.array(SEEN["a series that ends"])).log_evidence
    np.testing.assert_allclose(padded, short, rtol=1e-6)
