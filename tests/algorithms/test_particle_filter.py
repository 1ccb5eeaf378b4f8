"""The particle filter as an algorithm of the core: marginals, objectives and posteriors of models with a
scan, at two and three particles.

Statistical comparisons are within 4.5 standard errors over 20,000 fixed keys; over fresh keys one of the 20
or so fails with probability 2e-4.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import expectation, log_density, marginal, normalize, simulate
from ppl_ext.algorithms import ImportanceSampling, ParticleFilter, filter_sites
from ppl_ext.errors import ArgumentError, ModelError, StrategyError
from ppl_ext.gradients import Constant
from ppl_ext.handlers import gradient
from ppl_ext.objectives import IWELBO
from ppl_ext.state_space import filtering
from ppl_ext.state_space.filtering import Rules, run_filter
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import SCHEMES, multinomial
from tests.algorithms import state_spaces
from tests.algorithms.state_spaces import (
    FINITE,
    LINEAR,
    MEANS,
    PROBLEMS,
    Y,
    finite,
    finite_paths,
    linear,
    linear_joint,
    log_evidence,
)
from tests.oracles import assert_unbiased, quick_jit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEYS = random.split(random.key(2), 20_000)
SHORT = Y[:2]


def replicates(fn, keys=KEYS):
    return quick_jit(jax.vmap(fn))(keys)


# Value and gradient inside an expectation


def exact_finite(stay, loud, num=2, y=SHORT):
    """E[log Ẑ] of the bootstrap filter with multinomial resampling, over every outcome of states and
    ancestors.
    """
    states, lanes = (
        list(itertools.product(range(3), repeat=num)),
        list(itertools.product(range(num), repeat=num)),
    )

    def law(k):
        return jnp.where(jnp.arange(3) == k, stay, (1 - stay) / 2)

    def emission(k, y_t):
        return jnp.exp(-0.5 * ((y_t - MEANS[k]) / loud) ** 2) / loud / jnp.sqrt(2 * jnp.pi)

    # Outcome by outcome of (x0, x1, a2, x2); ancestors of x1 are drawn with equal weights and matter only as
    # far as states repeat.
    total = 0.0
    first = jnp.array([0.5, 0.3, 0.2])
    transition = jnp.stack([law(k) for k in range(3)])
    rows = np.array(
        list(
            itertools.product(
                range(len(states)),
                range(len(lanes)),
                range(len(states)),
                range(len(lanes)),
                range(len(states)),
            )
        )
    )
    x0, x1, x2 = (np.array(states)[rows[:, i]] for i in (0, 2, 4))
    a1, a2 = (np.array(lanes)[rows[:, i]] for i in (1, 3))
    g1, g2 = (emission(x, float(y_t)) for x, y_t in ((x1, y[0]), (x2, y[1])))
    take = np.take_along_axis
    prob = first[x0].prod(1) * (1 / num) ** num * transition[take(x0, a1, 1), x1].prod(1)
    weights = g1 / g1.sum(1, keepdims=True)
    prob = prob * jnp.take_along_axis(weights, a2, 1).prod(1) * transition[take(x1, a2, 1), x2].prod(1)
    total = jnp.sum(prob * (jnp.log(g1.mean(1)) + jnp.log(g2.mean(1))))
    return total


@pytest.mark.slow
def test_gradients_of_the_bound_are_exact_on_average():
    """E log Ẑ and its derivatives: scores of the states and of the ancestors, on a finite model."""
    program = marginal(finite, list(FINITE), ParticleFilter(2))
    prior = dist.Beta(2.0, 2.0), dist.HalfNormal(1.0)

    def exact(parameters):
        return (
            exact_finite(**parameters)
            + prior[0].log_prob(parameters["stay"])
            + prior[1].log_prob(parameters["loud"])
        )

    with jax.enable_x64(True):
        truth = jax.tree.map(
            np.asarray, jax.value_and_grad(exact)({n: jnp.asarray(v, jnp.float64) for n, v in FINITE.items()})
        )

    def one(key):
        def bound(parameters):
            return expectation(lambda: log_density(program, parameters, SHORT).total).value(key)

        return jax.value_and_grad(bound)(FINITE)

    assert_unbiased(replicates(one), truth)


@pytest.mark.parametrize("annotated", ["path", pytest.param("scored", marks=pytest.mark.slow)])
@pytest.mark.parametrize("proposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_of_the_evidence(proposed, annotated):
    """E Ẑ = Z, so the derivatives of its mean are those of Z; a proposal's are zero."""

    def proposal(parameters, x, y_t):
        pull = numpyro.param("pull", 0.4)
        numpyro.sample("x", dist.Normal((1 - pull) * x + pull * y_t, 0.9))

    program = marginal(linear, list(LINEAR), ParticleFilter(3, proposal=proposal if proposed else None))
    if annotated == "scored":
        program = gradient(program, {"marginal/x*": "score"})
    with jax.enable_x64(True):
        truth = jax.grad(
            lambda p: jnp.exp(linear_joint(**p, y=SHORT)[0] - log_evidence(linear, LINEAR, SHORT))
        )({n: jnp.asarray(v, jnp.float64) for n, v in LINEAR.items()})
    truth = {"pull": 0.0, **jax.tree.map(float, truth)}
    # The prior is a constant factor here: its own slope is taken off.
    scale = log_evidence(linear, LINEAR, SHORT)

    def one(key):
        def evidence(parameters):
            def weight():
                given = {n: parameters[n] for n in LINEAR}
                log_w = log_density(
                    numpyro.handlers.substitute(program, {"pull": parameters["pull"]}), given, SHORT
                ).total
                log_prior = dist.Uniform(-1, 1).log_prob(given["phi"]) + dist.HalfNormal(1.0).log_prob(
                    given["sigma"]
                )
                return jnp.exp(log_w - log_prior - scale)

            return expectation(weight).value(key)

        return jax.value_and_grad(evidence)({**LINEAR, "pull": 0.4})

    value, slopes = replicates(one)
    if not proposed:
        truth["pull"] = 0.0
    assert_unbiased((value, slopes), (1.0, truth))


@pytest.mark.slow
def test_without_scores_of_the_ancestors_the_gradient_is_another():
    program = gradient(
        marginal(finite, list(FINITE), ParticleFilter(2)),
        {"marginal/index": Constant(), "marginal/k*": "score"},
    )

    def one(key):
        def bound(loud):
            return expectation(lambda: log_density(program, {**FINITE, "loud": loud}, SHORT).total).value(key)

        return jax.grad(bound)(FINITE["loud"])

    with jax.enable_x64(True):
        truth = float(
            jax.grad(lambda loud: exact_finite(FINITE["stay"], loud) + dist.HalfNormal(1.0).log_prob(loud))(
                FINITE["loud"]
            )
        )
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(replicates(one), truth)


@pytest.mark.slow
def test_fisher_is_the_default_elsewhere_and_can_be_chosen():
    """A filter that only resamples the particles' weights scores 0 here; the exact slope of a two-state model
    is found.
    """
    key = random.key(0)
    options = {"resampling": "systematic", "threshold": 0.5}

    def outside(stay):
        program = marginal(finite, list(FINITE), ParticleFilter(4000, **options))
        return log_density(program, {**FINITE, "stay": stay}, Y, rng_key=key).total

    def inside(stay):
        program = marginal(finite, list(FINITE), ParticleFilter(4000, gradient="fisher", **options))
        return expectation(lambda: log_density(program, {**FINITE, "stay": stay}, Y).total).value(key)

    truth = state_spaces.slopes(finite, FINITE)["stay"] + jax.grad(dist.Beta(2.0, 2.0).log_prob)(
        FINITE["stay"]
    )
    for log_z in (outside, inside):
        np.testing.assert_allclose(jax.jit(jax.grad(log_z))(FINITE["stay"]), truth, atol=0.35)


@pytest.mark.slow
def test_the_filtering_objective_learns():
    """IWELBO with a filter inside, by SVI and NumPyro's own guide: the posterior of a static mean is
    found.
    """

    def model(y):
        m = numpyro.sample("m", dist.Normal(0.0, 2.0))

        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(m, 0.5))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
            return x, None

        scan(step, jnp.zeros(()), y)

    y = jnp.array([1.0, 1.6, 0.9, 1.3, 1.2])
    program = marginal(model, ["m"], ParticleFilter(20))
    guide = AutoNormal(program)
    svi = SVI(program, guide, optax.adam(0.05), IWELBO(2))
    result = svi.run(random.key(0), 300, y, progress_bar=False)
    precision = 1 / 4 + 5 / 0.5
    assert abs(float(result.params["m_auto_loc"]) - float(y.sum()) / 0.5 / precision) < 0.15


# Conditional runs, from exact draws


def exact_draws(problem, num, rng):
    model, parameters, name = PROBLEMS[problem]
    with jax.enable_x64(True):
        if model is linear:
            _, mean, covariance = linear_joint(**parameters)
            path = rng.multivariate_normal(np.asarray(mean), np.asarray(covariance), size=num).astype(
                np.float32
            )
        else:
            every, log_p = finite_paths(**parameters)
            path = every[
                rng.choice(len(every), size=num, p=np.asarray(jnp.exp(log_p - logsumexp(log_p))))
            ].astype(np.int32)
    return {name + "0": path[:, 0], name: path[:, 1:]}


def towards(parameters, x, y_t):
    numpyro.sample("x", dist.Normal(0.5 * x + 0.5 * y_t, 0.9))


CONDITIONAL = {
    "linear": ("linear", {"threshold": 1.0}),
    "adaptive": ("linear", {"threshold": 0.8}),
    "guided": ("linear", {"threshold": 1.0, "proposal": towards}),
    "auxiliary": (
        "linear",
        {"threshold": 1.0, "look_ahead": lambda parameters, x, y_t: -0.3 * (x - y_t) ** 2},
    ),
    "finite": ("finite", {"threshold": 1.0}),
}
QUICK = {("linear", 2), ("auxiliary", 3), ("finite", 1), ("finite", 3)}


def excesses(name, num_particles):
    """Samples of mean zero: with r = Ẑ / Z, min(1 / r, 1) of a conditional run less min(1, r) of a plain one.

    (1 / r itself has mean one, and for few particles no variance.)
    """
    problem, options = CONDITIONAL[name]
    model, parameters, _ = PROBLEMS[problem]
    exact = log_evidence(model, parameters)
    path = exact_draws(problem, len(KEYS), np.random.default_rng(0))

    def one(key, through):
        ss, rules = lower(model, (Y,), {}, parameters), Rules(num_particles, multinomial, **options)
        ours, theirs = random.split(key)
        log_r = run_filter(ss, rules, ours, through=through).state.log_evidence.value - exact
        plain = run_filter(ss, rules, theirs).state.log_evidence.value - exact
        return jnp.exp(jnp.minimum(-log_r, 0.0)) - jnp.exp(jnp.minimum(plain, 0.0))

    return quick_jit(jax.vmap(one))(KEYS, path)


TABLE = [
    pytest.param(f, n, marks=() if (f, n) in QUICK else pytest.mark.slow)
    for f in CONDITIONAL
    for n in (1, 2, 3, 8)
]
# one Gaussian particle: 1 / w has no variance
TABLE = [p for p in TABLE if p.values[1] > 1 or p.values[0] == "finite"]


@pytest.mark.parametrize(("name", "num_particles"), TABLE)
@pytest.mark.slow
def test_a_conditional_run_from_an_exact_draw_has_the_law_that_favours_large_estimates(name, num_particles):
    assert_unbiased(excesses(name, num_particles), 0.0)


def unfreeze_the_ancestor(monkeypatch):
    resample = filtering.resample
    monkeypatch.setattr(filtering, "resample", lambda *args: resample(*args[:-1], False))


def unfreeze_the_state(monkeypatch):
    propose = filtering.propose
    monkeypatch.setattr(filtering, "propose", lambda *args: propose(*args[:-1], None))


@pytest.mark.parametrize(
    ("fault", "name"), [(unfreeze_the_ancestor, "guided"), (unfreeze_the_state, "finite")]
)
def test_a_fault_in_the_conditional_run_is_seen(fault, name, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="standard errors off"):
        test_a_conditional_run_from_an_exact_draw_has_the_law_that_favours_large_estimates(name, 3)


# Posteriors


@pytest.mark.slow
def test_draws_of_a_posterior_follow_the_law_that_is_scored():
    """normalize on the finite model, two particles: the share of every path among draws, and the mean of its
    estimated density.
    """
    program = normalize(finite, dict(FINITE), ParticleFilter(2))
    every = np.array(list(itertools.product(range(3), repeat=3)))

    def one(key):
        draw = simulate(program, SHORT, rng_key=key)
        code = 9 * draw.values["k0"] + 3 * draw.values["k"][0] + draw.values["k"][1]
        return code, draw.log_density.total

    codes, log_w = replicates(one)

    def score(key):
        def at(path):
            return jnp.exp(log_density(program, {"k0": path[0], "k": path[1:]}, SHORT, rng_key=key).total)

        return jax.vmap(at)(jnp.asarray(every))

    scored = np.asarray(replicates(score, KEYS[:4000]), np.float64)
    share = np.bincount(codes, minlength=27) / len(codes)
    spread = np.sqrt(share * (1 - share) / len(codes) + scored.var(0) / len(scored))
    assert (np.abs(share - scored.mean(0)) < 4.5 * spread + 1e-9).all()
    hits = (np.asarray(codes)[:, None] == np.arange(27)) * np.exp(-np.asarray(log_w, np.float64))[:, None]
    error = hits.std(0) / np.sqrt(len(hits))
    assert (np.abs(hits.mean(0) - 1) < 4.5 * error)[share > 0.01].all()


@pytest.mark.slow
def test_a_posterior_inside_an_expectation():
    """log p(x, y) - log q̂(x) is log Ẑ of the run that drew x: the ELBO is its mean."""

    def bound(num_particles):
        def elbo():
            draw = simulate(normalize(linear, dict(LINEAR), ParticleFilter(num_particles)), Y)
            return (log_density(linear, {**LINEAR, **draw.values}, Y) - draw.log_density).total

        return np.asarray(replicates(lambda key: expectation(elbo).value(key), KEYS[:2000]), np.float64)

    exact = log_evidence(linear, LINEAR) + float(
        dist.Uniform(-1, 1).log_prob(0.8) + dist.HalfNormal(1.0).log_prob(0.7)
    )
    few, many = (bound(n) - exact for n in (3, 30))
    assert few.mean() < many.mean() < 0.0
    for ratio in (np.exp(few), np.exp(many)):
        assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))


# Refusals


def test_a_sampler_of_numpyro_is_refused():
    program = marginal(linear, list(LINEAR), ParticleFilter(10))
    with pytest.raises(ModelError, match="particle Gibbs"):
        MCMC(NUTS(program), num_warmup=2, num_samples=2, progress_bar=False).run(random.key(0), Y)


def test_bad_arguments():
    for options, words in (
        ({"num_particles": 0}, "num_particles must be a positive integer"),
        ({"num_particles": 2, "resampling": "best"}, "resampling must be one of"),
        ({"num_particles": 2, "threshold": -1.0}, "threshold must be a real number of at least 0"),
        ({"num_particles": 2, "gradient": "score"}, "gradient must be 'fisher' or None"),
    ):
        with pytest.raises(ArgumentError, match=words):
            ParticleFilter(**options)


@pytest.mark.parametrize("options", [{"resampling": "systematic"}, {"threshold": 0.5}])
@pytest.mark.slow
def test_what_has_no_unbiased_gradient_is_refused_inside_an_expectation(options):
    program = marginal(linear, list(LINEAR), ParticleFilter(4, **options))
    with pytest.raises(StrategyError, match="gradient='fisher'"):
        expectation(lambda: log_density(program, LINEAR, Y).total).value(random.key(0))
    assert np.isfinite(log_density(program, LINEAR, Y, rng_key=random.key(0)).total)


def test_other_algorithms_and_kept_states_are_refused():
    with pytest.raises(ModelError, match="Use ParticleFilter"):
        log_density(marginal(linear, list(LINEAR), ImportanceSampling(4)), LINEAR, Y, rng_key=random.key(0))
    with pytest.raises(ModelError, match="'x' stands inside a scan"):
        simulate(marginal(linear, ["phi", "x"], ParticleFilter(4)), Y, rng_key=random.key(0))
    with pytest.raises(ModelError, match="'sigma' has a value of its own for each particle"):
        log_density(marginal(linear, ["phi"], ParticleFilter(4)), {"phi": 0.5}, Y, rng_key=random.key(0))
    with pytest.raises(StrategyError, match="inside a particle filter"):
        program = gradient(marginal(finite, list(FINITE), ParticleFilter(2)), {"marginal/k": "enumerate"})
        expectation(lambda: log_density(program, FINITE, Y).total).value(random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_by_name(scheme):
    program = marginal(linear, list(LINEAR), ParticleFilter(500, resampling=scheme))
    exact = log_evidence(linear, LINEAR) + float(
        dist.Uniform(-1, 1).log_prob(0.8) + dist.HalfNormal(1.0).log_prob(0.7)
    )
    assert abs(float(log_density(program, LINEAR, Y, rng_key=random.key(0)).total) - exact) < 0.4


@pytest.mark.slow
def test_ancestors_follow_their_weights():
    law = filter_sites.Ancestors(jnp.log(jnp.array([0.2, 0.0, 0.5, 0.3])), 3)
    draws = np.asarray(jax.vmap(law.sample)(KEYS[:5000]))
    share = (draws[..., None] == np.arange(4)).mean((0, 1))
    np.testing.assert_allclose(share, [0.2, 0.0, 0.5, 0.3], atol=0.02)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4.5 / np.sqrt(5000)  # independent, lane by lane
    np.testing.assert_allclose(np.exp(law.log_prob(jnp.array([0, 2, 3]))), [0.2, 0.5, 0.3], rtol=1e-5)
