"""Particle Gibbs where states or parameters are finite, marked for enumeration or not, against all their
values.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, scope
from numpyro.infer import HMC, MCMC, NUTS
from numpyro.infer.util import log_density

from ppl_ext import to_arviz
from ppl_ext.errors import ModelError
from ppl_ext.infer import PMMH, ParticleGibbs

Y = jnp.array([0.2, 1.4, 0.9])
MARKED = {"enumerate": "parallel"}


def model(y, infer=None, kinds=2):
    """A finite parameter shifts what finite states show."""
    shift = numpyro.sample("shift", dist.Categorical(jnp.ones(kinds) / kinds), infer=infer)

    def step(z, y_t):
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.6 * z), infer=infer)
        numpyro.sample("y", dist.Normal(z + 0.7 * shift, 0.8), obs=y_t)
        return z, None

    scan(step, 0, y)


def with_level(y, infer=None):
    level = numpyro.sample("level", dist.Normal(0.0, 0.5))
    model(y - level, infer)


def both(infer):
    return lambda y: model(y, infer)


def reference():
    """Posterior probability of each joint value (shift, z_1, z_2, z_3)."""
    law = {}
    for shift, *z in itertools.product(range(2), repeat=4):
        given = condition(model, {"shift": jnp.array(shift), "z": jnp.array(z)})
        law[(shift, *z)] = np.exp(float(log_density(given, (Y,), {}, {})[0]))
    return {values: p / sum(law.values()) for values, p in law.items()}


def run(kernel, num_samples, *args):
    mcmc = MCMC(kernel, num_warmup=10, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    return mcmc


@pytest.mark.parametrize("infer", [None, MARKED], ids=["plain", "marked"])
def test_every_joint_value_has_its_frequency(infer):
    """3 particles, 20,000 sweeps."""
    found = run(ParticleGibbs(both(infer), num_particles=3), 20_000, Y).get_samples()
    joint = np.concatenate([np.asarray(found["shift"])[:, None], np.asarray(found["z"])], 1).astype(int)
    for values, p in reference().items():
        hits = (joint == values).all(1)
        # of batch means: sweeps are not independent
        error = np.sqrt(hits.reshape(100, -1).mean(1).var() / 100) + 1e-4
        assert abs(hits.mean() - p) < 5 * error, (values, hits.mean(), p)


def test_beside_a_continuous_parameter_and_in_a_report():
    """The mean of the level, against the mixture over all joint values of normal laws that y gives it."""
    mcmc = run(ParticleGibbs(lambda y: with_level(y, MARKED), num_particles=4), 6000, Y)
    weights, means = [], []
    for shift, *z in itertools.product(range(2), repeat=4):
        before = np.array([0, *z[:-1]])
        prior = 0.5 * np.prod(np.where(z, 0.2 + 0.6 * before, 0.8 - 0.6 * before))
        rest = np.asarray(Y, float) - np.array(z) - 0.7 * shift
        cov = 0.64 * np.eye(3) + 0.25
        weights.append(prior * np.exp(-0.5 * rest @ np.linalg.solve(cov, rest)))
        means.append(0.25 * np.ones(3) @ np.linalg.solve(cov, rest))
    level = np.asarray(mcmc.get_samples()["level"], float)
    error = np.sqrt(level.reshape(50, -1).mean(1).var() / 50)
    assert abs(level.mean() - np.average(means, weights=weights)) < 4 * error < 0.1
    report = to_arviz(mcmc)
    assert {"level", "shift", "z"} <= set(report.posterior.data_vars) and report.posterior["z"].dims == (
        "chain",
        "draw",
        "time",
    )


@pytest.mark.parametrize("inner", [NUTS, HMC])
def test_an_inner_kernel_of_ones_own(inner):
    program = both(MARKED)
    assert set(run(ParticleGibbs(program, 3, inner=inner(program)), 3, Y).get_samples()) == {"shift", "z"}


def test_in_a_scope():
    names = set(run(ParticleGibbs(scope(both(MARKED), prefix="a"), 3), 3, Y).get_samples())
    assert names == {"a/shift", "a/z"}


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(ParticleGibbs, r"the parameter 'k' \(Poisson\).*inner="), (PMMH, "'k' is discrete")],
)
def test_a_parameter_without_a_list_of_values_is_refused(kernel, words):
    def counted(y):
        model(y - numpyro.sample("k", dist.Poisson(1.0)))

    with pytest.raises(ModelError, match=words):
        run(kernel(counted, num_particles=3), 1, Y)
