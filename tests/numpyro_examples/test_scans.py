"""Examples with a ``scan``: the evidence of their states is that of NumPyro's densities, and particle Gibbs
runs on them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC

import ppl_ext
from ppl_ext.infer import ParticleGibbs
from ppl_ext.smoothing import smooth
from tests.numpyro_examples.example import KEY, numpyro_log_density
from tests.numpyro_examples.registry import EXAMPLES
from tests.oracles import quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py
STATES = [e for e in EXAMPLES if e.states]
EVIDENCE = [e for e in STATES if e.exact or not e.by_parts]  # of masked finite states the exact one alone
SECOND_ORDER = "HMM, second order"  # what a step carries is more than its sites: only paths serve


def evidence(example, model, params, num_draws=4000):
    """By NumPyro: finite states summed out, the mean over the prior of the others."""

    def log_likelihood(key):
        at = substitute(model, data=params)
        sites = trace(seed(at, key)).get_trace(*example.args, **example.kwargs)
        latent = {
            n: s
            for n, s in sites.items()
            if s["type"] == "sample" and not s["is_observed"] and n not in example.summed
        }
        prior = sum(jnp.sum(s["fn"].log_prob(s["value"])) for s in latent.values())
        return numpyro_log_density(example, model, {n: s["value"] for n, s in latent.items()}) - prior

    if set(example.states) <= set(example.summed):
        return quick_jit(log_likelihood)(KEY)
    logs = quick_jit(jax.vmap(log_likelihood))(jax.random.split(KEY, num_draws))
    return jax.scipy.special.logsumexp(logs) - jnp.log(num_draws)


@pytest.mark.parametrize("example", EVIDENCE, ids=lambda e: e.name)
def test_evidence(example):
    model, values = example.drawn()
    params = {name: x for name, x in values.items() if name not in example.states}
    wanted = evidence(example, model, params)
    if example.exact:
        found = smooth(model, backward="exact").run(KEY, *example.args, params=params, **example.kwargs)
        np.testing.assert_allclose(found.log_evidence, wanted, rtol=1e-4, atol=1e-4)
    if example.by_parts:
        return
    run = smooth(model, num_particles=4000).run(KEY, *example.args, params=params, **example.kwargs)
    np.testing.assert_allclose(run.log_evidence, wanted, atol=0.4)


@pytest.mark.parametrize("example", STATES, ids=lambda e: e.name)
def test_particle_gibbs(example):
    model = example.drawn()[0]
    backward = "path" if example.name == SECOND_ORDER else "mcmc"
    mcmc = MCMC(
        ParticleGibbs(model, num_particles=4, backward=backward),
        num_warmup=3,
        num_samples=4,
        progress_bar=False,
    )
    mcmc.run(KEY, *example.args, **example.kwargs)
    samples = mcmc.get_samples()
    assert set(example.states) - {"logit_decentered"} <= samples.keys()
    assert all(np.isfinite(x).all() for x in samples.values())
    assert set(samples) <= set(ppl_ext.to_arviz(mcmc).posterior.data_vars)
