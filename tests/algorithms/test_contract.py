"""E[w] = p(x) and E[1/w | x] = 1/p(x), for every algorithm, transformation and nesting of them, with few
particles.

On finite programs every random site, those inside included, is enumerated: the two expectations come out
exactly, whatever the key, and nothing is left to chance. On a linear-Gaussian program they are averages over
20,000 fixed keys, within 4.5 standard errors of the closed form; over fresh keys a right estimator would fail
one of the 18 comparisons with probability 1e-4.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import expectation, log_density, marginal, normalize, simulate
from ppl_ext.algorithms import Enumeration, ImportanceSampling
from ppl_ext.gradients import Enumerate
from ppl_ext.handlers import gradient
from tests.oracles import quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

A = 0.3
B = np.array([0.2, 0.7])  # P(b = 1 | a)
C = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])  # P(c | b)


def chain():
    """Two coins and a die: a, then b, then c."""
    a = numpyro.sample("a", dist.Bernoulli(A))
    b = numpyro.sample("b", dist.Bernoulli(jnp.asarray(B)[a]))
    numpyro.sample("c", dist.Categorical(probs=jnp.asarray(C)[b]))


JOINT = np.array(
    [
        [[np.array([1 - A, A])[a] * [1 - B[a], B[a]][b] * C[b, c] for c in range(3)] for b in range(2)]
        for a in range(2)
    ]
)


def proposed_logit(seen, shift):
    """Far enough from the posterior for a fault in the weights to show."""
    return 0.2 - 0.6 * seen - 0.3 * shift


def coin(logit):
    return np.array([1 - 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-logit))])


def propose(*names):
    """A proposal for these sites that looks at what is given, and is not the prior."""

    def proposal(given):
        seen = sum(value for value in given.values())
        for shift, name in enumerate(names):
            logit = proposed_logit(seen, shift)
            if name == "c":
                numpyro.sample(name, dist.Categorical(logits=logit * jnp.arange(3)))
            else:
                numpyro.sample(name, dist.Bernoulli(logits=logit))

    return proposal


def propose_with_auxiliary(given):
    h = numpyro.sample("h", dist.Bernoulli(0.4))
    numpyro.sample("a", dist.Bernoulli(logits=0.5 * given["b"] - 0.7 * h))


def sampled(num, *names):
    return ImportanceSampling(num, propose(*names))


def posterior_then_die():
    """A program whose first site is drawn by an algorithm of its own."""
    a = normalize(coin_with_evidence, {"b": 1}, sampled(2, "a"))()["a"]
    numpyro.sample("c", dist.Categorical(probs=jnp.asarray(C)[a]))


def coin_with_evidence():
    a = numpyro.sample("a", dist.Bernoulli(A))
    numpyro.sample("b", dist.Bernoulli(jnp.asarray(B)[a]))


def observed(c):
    """The chain with its die observed: no draw of the coins is one of the posterior."""

    def program():
        a = numpyro.sample("a", dist.Bernoulli(A))
        b = numpyro.sample("b", dist.Bernoulli(jnp.asarray(B)[a]))
        numpyro.sample("c", dist.Categorical(probs=jnp.asarray(C)[b]), obs=c)

    return program


def resampled(num, proposal, density):
    """The law of sampling importance resampling, by summing over all particles."""
    law = np.zeros(len(proposal))
    for draws in itertools.product(range(len(proposal)), repeat=num):
        weights = np.array([density[z] / proposal[z] for z in draws])
        for z, w in zip(draws, weights, strict=True):
            law[z] += np.prod(proposal[list(draws)]) * w / weights.sum()
    return law


PRIOR = np.array([1 - A, A])
PROPOSED = coin(proposed_logit(1, 0))
RESAMPLED = resampled(2, PROPOSED, PRIOR * B)
# Coin b given c = 2, where coin a behind it is a particle of one's own: both are proposed, and only b is
# looked at.
PROPOSED_PAIRS = np.array(
    [[coin(proposed_logit(2, 0))[b] * coin(proposed_logit(b + 2, 0))[a] for b in range(2)] for a in range(2)]
)
RESAMPLED_PAIRS = resampled(2, PROPOSED_PAIRS.ravel(), JOINT[:, :, 2].ravel()).reshape(2, 2).sum(0)

# Name: program, the sites it has, their exact joint law.
PROGRAMS = {
    **{
        f"forward, {k}": (marginal(chain, ["c"], ImportanceSampling(k)), ["c"], JOINT.sum((0, 1)))
        for k in (1, 2)
    },
    **{
        f"proposed, {k}": (marginal(chain, ["b", "c"], sampled(k, "a")), ["b", "c"], JOINT.sum(0))
        for k in (1, 2, 5)
    },
    "an early site kept": (marginal(chain, ["a"], sampled(2, "b", "c")), ["a"], PRIOR),
    "both ends kept": (marginal(chain, ["a", "c"], ImportanceSampling(2)), ["a", "c"], JOINT.sum(1)),
    "enumerated": (marginal(chain, ["c"], Enumeration()), ["c"], JOINT.sum((0, 1))),
    "marginal of marginal, forward": (
        marginal(marginal(chain, ["b", "c"], ImportanceSampling(2)), ["c"], ImportanceSampling(2)),
        ["c"],
        JOINT.sum((0, 1)),
    ),
    "marginal of marginal, proposed": (
        marginal(marginal(chain, ["b", "c"], sampled(2, "a")), ["c"], sampled(2, "b")),
        ["c"],
        JOINT.sum((0, 1)),
    ),
    "marginal of marginal, one particle": (
        marginal(marginal(chain, ["b", "c"], sampled(1, "a")), ["c"], sampled(1, "b")),
        ["c"],
        JOINT.sum((0, 1)),
    ),
    "enumerated over an estimate": (
        marginal(marginal(chain, ["b", "c"], sampled(1, "a")), ["c"], Enumeration()),
        ["c"],
        JOINT.sum((0, 1)),
    ),
    "a proposal that is a marginal": (
        marginal(
            chain,
            ["b", "c"],
            ImportanceSampling(2, marginal(propose_with_auxiliary, ["a"], ImportanceSampling(2))),
        ),
        ["b", "c"],
        JOINT.sum(0),
    ),
    **{
        f"normalize, {k}": (
            normalize(coin_with_evidence, {"b": 1}, sampled(k, "a")),
            ["a"],
            resampled(k, PROPOSED, PRIOR * B),
        )
        for k in (1, 2, 4)
    },
    "normalize, forward": (
        normalize(coin_with_evidence, {"b": 1}, ImportanceSampling(2)),
        ["a"],
        resampled(2, PRIOR, PRIOR * B),
    ),
    "normalize, enumerated": (
        normalize(coin_with_evidence, {"b": 1}, Enumeration()),
        ["a"],
        PRIOR * B / (PRIOR @ B),
    ),
    "normalize in marginal": (
        marginal(posterior_then_die, ["c"], ImportanceSampling(2)),
        ["c"],
        RESAMPLED @ C,
    ),
    "normalize in marginal, kept": (
        marginal(
            posterior_then_die,
            ["a"],
            ImportanceSampling(1, lambda given: numpyro.sample("c", dist.Categorical(logits=jnp.zeros(3)))),
        ),
        ["a"],
        RESAMPLED,
    ),
    # With one particle, resampling returns what was proposed: this law does not know the data.
    "marginal of normalize": (
        marginal(
            normalize(chain, {"c": 2}, ImportanceSampling(1, propose("a", "b"))), ["b"], sampled(2, "a")
        ),
        ["b"],
        coin(proposed_logit(2, 1)),
    ),
    "normalize of marginal": (
        normalize(marginal(chain, ["b", "c"], sampled(1, "a")), {"c": 2}, sampled(2, "b")),
        ["b"],
        RESAMPLED_PAIRS,
    ),
    "normalize of marginal, forward": (
        normalize(marginal(chain, ["b", "c"], sampled(1, "a")), {"c": 2}, ImportanceSampling(2)),
        ["b"],
        resampled(2, JOINT.sum((0, 2)), JOINT.sum(0)[:, 2]),
    ),
    "normalize of marginal, enumerated": (
        normalize(marginal(chain, ["b", "c"], Enumeration()), {"c": 2}, Enumeration()),
        ["b"],
        JOINT.sum(0)[:, 2] / JOINT[:, :, 2].sum(),
    ),
}


def enumerated(program):
    return gradient(program, {"*": Enumerate(max_lanes=100_000)})


def points(law):
    return list(itertools.product(*map(range, law.shape)))


def means_of_scores(program, sites, law):
    """E[w] at every point, exactly."""

    def weight(point):
        values = {site: jnp.asarray(x) for site, x in zip(sites, point, strict=True)}
        return jnp.exp(log_density(enumerated(program), values).total)

    return np.array(
        [expectation(lambda p=p: weight(p)).value(jax.random.key(3)) for p in points(law)]
    ).reshape(law.shape)


def reciprocal_means(program, sites, law):
    """The mean of 1{x = a} / w, which is P(a) E[1/w | a], at every a of the support, exactly."""

    def reciprocal(point):
        draw = simulate(enumerated(program))
        assert sorted(draw.values) == sorted(sites)
        here = jnp.stack([draw.values[site] == x for site, x in zip(sites, point, strict=True)]).all()
        return jnp.where(here, jnp.exp(-draw.log_density.total), 0.0)

    return np.array(
        [expectation(lambda p=p: reciprocal(p)).value(jax.random.key(3)) for p in points(law)]
    ).reshape(law.shape)


@pytest.mark.parametrize("name", PROGRAMS)
def test_scoring_has_mean_p(name):
    program, sites, law = PROGRAMS[name]
    np.testing.assert_allclose(means_of_scores(program, sites, law), law, rtol=2e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_simulating_has_a_reciprocal_mean(name):
    program, sites, law = PROGRAMS[name]
    np.testing.assert_allclose(reciprocal_means(program, sites, law), 1.0, rtol=2e-5)


# The same comparisons fail for algorithms with one fault each


class DropsTheRetained(ImportanceSampling):
    def evidence_through(self, target, retained):
        return self.evidence(target)


class ForgetsTheCount(ImportanceSampling):
    def evidence(self, target):
        return super().evidence(target) + jnp.log(self.num_particles)

    def evidence_through(self, target, retained):
        return super().evidence_through(target, retained) + jnp.log(self.num_particles)


class ForgetsTheProposal(ImportanceSampling):
    def _particle(self, target):
        particle = super()._particle(target)
        return particle._replace(log_weight=particle.log_density)


class TurnsTheProposalOver(ImportanceSampling):
    def _particle(self, target):
        particle = super()._particle(target)
        return particle._replace(log_weight=2 * particle.log_density - particle.log_weight)


class ForgetsTheRetainedsProposal(ImportanceSampling):
    def evidence_through(self, target, retained):
        values = target.log_proposal(self.proposal, retained.values).total
        return super().evidence_through(target, retained._replace(log_density=retained.log_density + values))


class KeepsTheBest(ImportanceSampling):
    def draw(self, target):
        particles = target.replicate(lambda: self._particle(target), self.num_particles)
        best = jnp.argmax(particles.log_weight)
        values, log_density = jax.tree.map(lambda x: x[best], (particles.values, particles.log_density))
        return values, log_density - self.evidence(target)


FAULTS = {
    DropsTheRetained: ("marginal simulates", "normalize scores"),
    ForgetsTheCount: ("marginal scores", "marginal simulates", "normalize scores"),
    ForgetsTheProposal: ("marginal scores", "marginal simulates", "normalize scores"),
    TurnsTheProposalOver: ("marginal scores", "marginal simulates", "normalize scores"),
    ForgetsTheRetainedsProposal: ("marginal simulates", "normalize scores"),
    KeepsTheBest: ("normalize simulates",),
}


@pytest.mark.parametrize(
    ("fault", "seen"), [(fault, seen) for fault, all_seen in FAULTS.items() for seen in all_seen]
)
@pytest.mark.slow
def test_a_fault_is_seen(fault, seen):
    algorithm = fault(2, propose("a"))
    if seen.startswith("marginal"):
        program, sites, law = marginal(chain, ["b", "c"], algorithm), ["b", "c"], JOINT.sum(0)
    else:
        program, sites, law = normalize(coin_with_evidence, {"b": 1}, algorithm), ["a"], RESAMPLED
    if seen.endswith("scores"):
        assert np.abs(means_of_scores(program, sites, law) / law - 1).max() > 0.01
    else:
        assert np.abs(reciprocal_means(program, sites, law) - 1).max() > 0.01


@pytest.mark.parametrize("num_particles", [1, 2, 5])
def test_a_program_with_data_is_scored_without_bias_even_when_simulated(num_particles):
    """The coin a is drawn from its prior, so w must be a fresh estimate of p(a, c): the mean of 1{a} w is
    P(a) p(a, c).
    """
    program = marginal(observed(2), ["a"], sampled(num_particles, "b"))
    for a in range(2):

        def weight(a=a):
            draw = simulate(enumerated(program))
            return jnp.where(draw.values["a"] == a, jnp.exp(draw.log_density.total), 0.0)

        assert float(expectation(weight).value(jax.random.key(0))) == pytest.approx(
            PRIOR[a] * JOINT[a, :, 2].sum(), rel=2e-5
        )


# A linear-Gaussian program: u ~ N(0.3, 1), x | u ~ N(0.8 u, 1.3), proposal N(0.25 x + 0.2, 1)

EXACT = dist.Normal(0.24, np.sqrt(0.64 + 1.69))
KEYS = jax.random.split(jax.random.key(0), 20_000)


def gaussian():
    u = numpyro.sample("u", dist.Normal(0.3, 1.0))
    numpyro.sample("x", dist.Normal(0.8 * u, 1.3))


def reverse(given):
    numpyro.sample("u", dist.Normal(0.25 * given["x"] + 0.2, 1.0))


def mean_and_error(samples):
    samples = np.asarray(samples, np.float64)
    return samples.mean(), samples.std(ddof=1) / np.sqrt(len(samples))


@pytest.mark.parametrize("proposal", [None, reverse])
@pytest.mark.parametrize("num_particles", [1, 2, 5])
def test_linear_gaussian(num_particles, proposal):
    program = marginal(gaussian, ["x"], ImportanceSampling(num_particles, proposal))

    def one(rng_key):
        draw = simulate(program, rng_key=rng_key)
        return (
            log_density(program, {"x": 0.9}, rng_key=rng_key).total,
            draw.values["x"],
            draw.log_density.total,
        )

    scored, x, log_w = quick_jit(jax.vmap(one))(KEYS)
    mean, error = mean_and_error(np.exp(scored - EXACT.log_prob(0.9)))
    assert abs(mean - 1) < 4.5 * error
    ratio = np.exp(EXACT.log_prob(x) - log_w)
    for side in (x > 0.5, x <= 0.5):
        mean, error = mean_and_error(np.where(side, ratio - 1.0, 0.0))
        assert abs(mean) < 4.5 * error


@pytest.mark.parametrize("algorithm", [ImportanceSampling(3), ImportanceSampling(3, reverse)])
def test_more_particles_bring_both_sides_closer(algorithm):
    """The two sides bracket log p(x), and the gap closes."""

    def gaps(num_particles):
        program = marginal(gaussian, ["x"], ImportanceSampling(num_particles, algorithm.proposal))

        def one(rng_key):
            draw = simulate(program, rng_key=rng_key)
            truth = EXACT.log_prob(draw.values["x"])
            return log_density(
                program, draw.values, rng_key=rng_key
            ).total - truth, draw.log_density.total - truth

        return [np.mean(g) for g in quick_jit(jax.vmap(one))(KEYS)]

    (below, above), (closer_below, closer_above) = gaps(1), gaps(8)
    assert below < closer_below < 0 < closer_above < above
