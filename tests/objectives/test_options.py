"""Analytic divergences, sticking the landing, and formulas of K log weights: values and gradients are exact in the mean.

As in ``test_unbiased.py``: 20,000 replicates with fixed keys, within 4.5 standard errors of an oracle that sums over all outcomes. About
120 coordinates: over fresh keys a right estimator would fail one with probability 1e-3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp, xlogy
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale, substitute
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import divergence
from ppl_ext.divergence import known_sites
from ppl_ext.errors import ArgumentError, DirectionError, ModelError, StrategyError
from ppl_ext.gradients import EnumerateLocally, MeasureValued, ScoreFunction
from ppl_ext.handlers import detach, gradient
from ppl_ext.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    DoublyReparameterized,
    FDivergence,
    ForwardKL,
    Renyi,
    ReweightedWakeSleep,
    Thermodynamic,
)
from tests import oracles
from tests.oracles import Oracle, assert_unbiased, bernoulli, expected_loss, finite, gaussian, normal, product, quick_jit, replicates
from tests.problems import PROBLEMS, Problem

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

SCORE = ScoreFunction(baseline=None)


def check(loss, problem, formula, num_particles, strategy=None, seed=0):
    problem = PROBLEMS[problem] if isinstance(problem, str) else problem
    guide = problem.guide if strategy is None else gradient(problem.guide, dict.fromkeys(problem.finite_sites, strategy))
    samples = replicates(loss, problem, guide=guide, seed=seed)
    assert_unbiased(samples, expected_loss(problem.oracle, problem.params, formula, num_particles))
    return samples


# Divergences in closed form

KNOWN = {
    "chain": {"a", "c"},
    "plated": {"g", "z"},
    "scaled": {"b"},  # a has other scales in model and guide
    "masked": {"g", "z"},
    "subsampled": {"g", "z"},
    "score_normal": {"x"},
    "coin_normal_coin": {"a", "x", "b"},
    "scanned": {"x0"},  # a step's law depends on the step before: its own site
}


@pytest.mark.parametrize(
    "problem", [name if name in ("plated", "scaled", "subsampled") else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN]
)
@pytest.mark.slow
def test_analytic_divergences_change_no_mean(problem):
    problem = PROBLEMS[problem]
    strategy = SCORE if problem.finite_sites else None
    check(ELBO(analytic_kl=True), problem, oracles.elbo(), 1, strategy)


@pytest.mark.parametrize("problem", KNOWN)
def test_which_divergences_are_known(problem):
    problem = PROBLEMS[problem]
    guide = substitute(problem.guide, jax.tree.map(jnp.asarray, problem.params))
    assert known_sites(lambda: problem.model(*problem.args), lambda: guide(*problem.args)) == KNOWN[problem.name]


def test_analytic_divergences_take_noise_away():
    problem = PROBLEMS["score_normal"]
    spread = [np.std(replicates(ELBO(analytic_kl=kl), problem, 2_000)[1]["s"]) for kl in (True, False)]
    assert spread[0] < 0.8 * spread[1]


def crossed(guide_looks_back):
    """The model draws a, then b by looking at a; the guide draws b first, and then a, which may look at b."""
    phi = np.array([0.4, 0.3, 1.2 if guide_looks_back else 0.0])

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Bernoulli(logits=2.0 * a - 1.0))
        numpyro.sample("y", dist.Normal(a - b, 1.0), obs=0.3)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        b = numpyro.sample("b", dist.Bernoulli(logits=phi[0]))
        numpyro.sample("a", dist.Bernoulli(logits=phi[1] + phi[2] * b if guide_looks_back else phi[1]))

    def log_q(params, z, batch):
        phi = params["phi"]
        return bernoulli(z["b"], phi[0]) + bernoulli(z["a"], phi[1] + phi[2] * z["b"])

    def log_p(params, z, batch):
        return bernoulli(z["a"], np.log(0.4 / 0.6)) + bernoulli(z["b"], 2.0 * z["a"] - 1.0) + normal(0.3, z["a"] - z["b"])

    oracle = Oracle(**product(a=finite(2), b=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("crossed", model, guide, {"phi": phi}, oracle, ("a", "b"))


def test_a_law_that_depends_on_the_site_itself_is_sampled(monkeypatch):
    """p(b | a) where the guide drew a by looking at b: its divergence from q(b) is another number, and whoever takes it is caught."""
    problem = crossed(True)
    assert known_sites(problem.model, problem.guide) == {"a"}
    check(ELBO(analytic_kl=True), problem, oracles.elbo(), 1, SCORE)
    monkeypatch.setattr("ppl_ext.objectives.elbo.known_sites", lambda model, guide: frozenset({"a", "b"}))
    with pytest.raises(AssertionError, match="standard errors off"):
        check(ELBO(analytic_kl=True), problem, oracles.elbo(), 1, SCORE)


def test_another_order_of_independent_sites_is_known():
    problem = crossed(False)
    assert known_sites(problem.model, problem.guide) == {"a", "b"}
    expected = expected_loss(problem.oracle, problem.params, oracles.elbo(), 1)
    samples = replicates(ELBO(analytic_kl=True), problem)
    assert_unbiased(samples[0], expected[0])


LAWS = {
    "Normal": (dist.Normal(0.3, 0.7), dist.Normal(-0.2, 1.3)),
    "Normal, event": (dist.Normal(jnp.array([0.3, 0.1]), 0.7).to_event(1), dist.Normal(-0.2, jnp.array([1.3, 0.8])).to_event(1)),
    "LogNormal": (dist.LogNormal(0.3, 0.7), dist.LogNormal(-0.2, 1.3)),
    "as an automatic guide": (
        dist.TransformedDistribution(dist.Normal(0.3, 0.7), dist.transforms.ExpTransform()),
        dist.LogNormal(0.0, 1.0),
    ),
    "Gamma": (dist.Gamma(2.0, 1.5), dist.Gamma(1.4, 0.9)),
    "Exponential": (dist.Exponential(1.5), dist.Exponential(0.9)),
    "Gamma and Exponential": (dist.Gamma(2.0, 1.5), dist.Exponential(0.9)),
    "Beta": (dist.Beta(2.0, 1.5), dist.Beta(1.4, 0.9)),
    "Dirichlet": (dist.Dirichlet(jnp.array([2.0, 1.5, 3.0])), dist.Dirichlet(jnp.array([1.0, 1.2, 1.4]))),
    "Bernoulli": (dist.Bernoulli(0.3), dist.Bernoulli(logits=0.9)),
    "Categorical": (dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])), dist.Categorical(logits=jnp.array([0.1, -0.4, 0.3]))),
    "Binomial": (dist.Binomial(4, probs=0.3), dist.Binomial(4, logits=0.9)),
    "MultivariateNormal": (
        dist.MultivariateNormal(jnp.array([0.3, -0.1]), jnp.array([[1.0, 0.3], [0.3, 0.7]])),
        dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.2, -0.2], [-0.2, 0.9]])),
    ),
}


QUICK = ("Normal, event", "as an automatic guide", "Gamma and Exponential", "Categorical", "MultivariateNormal")


@pytest.mark.parametrize("law", [law if law in QUICK else pytest.param(law, marks=pytest.mark.slow) for law in LAWS])
def test_closed_forms_agree_with_sampling(law):
    """20,000 draws, eagerly: E_q[log q − log p] within 4.5 standard errors, in an expanded and masked plate."""
    q, p = LAWS[law]
    keep = np.array([True, False, True])

    def program(law):
        def run():
            with numpyro.plate("n", 3), mask(mask=keep), scale(scale=1.5):
                numpyro.sample("z", law)

        return run

    assert known_sites(program(p), program(q)) == {"z"}
    x = q.sample(jax.random.key(0), (20_000,))
    log_ratio = np.asarray(q.log_prob(x) - p.log_prob(x), np.float64)
    guide = substitute(program(q), {})  # any wrapper
    loss = ELBO(analytic_kl=True).loss(jax.random.key(1), {}, program(p), guide)
    assert abs(float(loss) / 3.0 - log_ratio.mean()) < 4.5 * log_ratio.std() / np.sqrt(len(log_ratio))


UNKNOWN = {
    "laws of two kinds": (lambda: dist.Normal(0.0, 1.0), lambda: dist.Cauchy(0.0, 1.0)),
    "trials": (lambda: dist.Binomial(4, probs=0.3), lambda: dist.Binomial(5, probs=0.3)),
    "a mask": (lambda: dist.Normal(0.0, 1.0).mask(False), lambda: dist.Normal(0.0, 1.0)),
    "a mask inside": (
        lambda: dist.Normal(jnp.zeros(2), 1.0).mask(jnp.ones(2, bool)).to_event(1),
        lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    ),
    "events": (lambda: dist.Normal(jnp.zeros(3), 1.0).to_event(1), lambda: dist.Normal(jnp.zeros(3), 1.0)),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_left_to_sampling(case):
    q, p = UNKNOWN[case]
    assert known_sites(lambda: numpyro.sample("z", p()), lambda: numpyro.sample("z", q())) == frozenset()


def test_a_value_that_was_given_has_no_law():
    program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))  # noqa: E731  a program in one line
    assert known_sites(program, substitute(program, {"z": 0.3})) == frozenset()
    assert known_sites(program, program) == {"z"}


def test_a_law_that_is_held_fixed_is_not_averaged_over():
    program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))  # noqa: E731  a program in one line
    assert known_sites(program, detach(program)) == frozenset()


def test_python_that_branches_on_a_draw_has_no_one_data_flow():
    def branching():
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("z", dist.Normal(1.0 if k else 0.0, 1.0))

    assert known_sites(branching, branching) == frozenset()
    assert jnp.abs(ELBO(analytic_kl=True).loss(jax.random.key(0), {}, branching, branching)) < 1e-6


def test_automatic_guides_are_known():
    def model():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        width = numpyro.sample("width", dist.LogNormal(0.0, 1.0))
        numpyro.sample("tail", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(loc, width), obs=0.4)

    guide = AutoNormal(model)
    with numpyro.handlers.seed(rng_seed=0):
        guide()
    assert known_sites(model, guide) == {"loc", "width"}


# Sticking the landing

LANDED = (
    ("reparam_normal", 1, None),
    ("bernoulli_then_normal", 1, SCORE),
    ("factors", 2, None),  # a factor in the guide has a gradient by the parameters that counts
    ("masked", 2, ScoreFunction()),
    ("scaled", 1, SCORE),
)


@pytest.mark.parametrize(("problem", "num_particles", "strategy"), LANDED)
def test_sticking_the_landing_changes_no_mean(problem, num_particles, strategy):
    check(ELBO(num_particles, stick_the_landing=True), problem, oracles.elbo(), num_particles, strategy)


def observing():
    """A guide with an observed site whose parameter is its own."""
    base = PROBLEMS["reparam_normal"]

    def guide():
        base.guide()
        numpyro.sample("seen", dist.Normal(numpyro.param("eta", 0.0), 1.0), obs=1.2, infer={"is_auxiliary": True})

    def log_q(params, z, batch):
        return base.oracle.log_q(params, z, batch) + normal(1.2, params["eta"])

    oracle = Oracle(base.oracle.outcomes, base.oracle.log_weights, base.oracle.log_pmf, base.oracle.log_p, log_q, base.oracle.values)
    return Problem("observing", base.model, guide, {**base.params, "eta": 0.4}, oracle, (), ("x",))


def test_what_a_guide_observes_keeps_its_gradient(monkeypatch):
    """The mutant that holds every term of log q fixed is caught."""
    check(ELBO(stick_the_landing=True, analytic_kl=True), observing(), oracles.elbo(), 1)
    check(ELBO(stick_the_landing=True), observing(), oracles.elbo(), 1)
    held = divergence.simulate_and_hold

    def everything(guide):
        draw, log_q = held(guide)
        return draw, jax.lax.stop_gradient(log_q.split(())[0]) + log_q.split(draw.values)[0] + _stopped(log_q.split(draw.values)[1])

    monkeypatch.setattr(divergence, "simulate_and_hold", everything)
    with pytest.raises(AssertionError, match="standard errors off"):
        check(ELBO(stick_the_landing=True), observing(), oracles.elbo(), 1)


def _stopped(x):
    return jax.tree.map(jax.lax.stop_gradient, x)


@pytest.mark.slow
def test_noise_beside_the_sites_is_the_same_in_both_runs():
    """A guide that asks for a key of its own, as dropout does: log q is scored with the mask that the draw was made with."""

    def dropping():
        kept = jax.random.bernoulli(numpyro.prng_key(), 0.5)
        numpyro.sample("x", dist.Normal(jnp.where(kept, 3.0, 0.0) + numpyro.param("mu", 0.0), 0.5))

    model = PROBLEMS["reparam_normal"].model
    for loss, other in ((ELBO(stick_the_landing=True), ELBO()), (DoublyReparameterized(3), IWELBO(3))):
        for seed in range(4):
            given = [x.loss(jax.random.key(seed), {"mu": 0.3}, model, dropping) for x in (loss, other)]
            np.testing.assert_allclose(given[0], given[1], rtol=1e-5)


def counting():
    """A guide with state of its own, that counts its runs and moves its draws by the count."""
    count = numpyro.primitives.mutable("count", {"runs": jnp.zeros(())})
    count["runs"] += 1.0
    numpyro.sample("x", dist.Normal(count["runs"] + numpyro.param("mu", 0.0), 0.5))


STATEFUL = (ELBO(stick_the_landing=True), DoublyReparameterized(2), ForwardKL(2), ReweightedWakeSleep(2, sleep=0.0), Thermodynamic(2))


@pytest.mark.parametrize("loss", STATEFUL, ids=lambda loss: type(loss).__name__)
def test_state_of_the_guide_moves_once_a_step(loss):
    """Both runs of one draw start from the same state: or it moved twice, and log q was that of another law."""
    params = {"mu": jnp.array(0.3), "count": {"runs": jnp.array(4.0)}}
    out = loss.loss_with_mutable_state(jax.random.key(0), params, PROBLEMS["reparam_normal"].model, counting)
    assert float(out["mutable_state"]["count"]["runs"]) == 5.0
    if type(loss).__name__ in ("ELBO", "DoublyReparameterized"):
        plain = ELBO() if isinstance(loss, ELBO) else IWELBO(2)
        np.testing.assert_allclose(
            out["loss"], plain.loss(jax.random.key(0), params, PROBLEMS["reparam_normal"].model, counting), rtol=1e-5
        )


@pytest.mark.parametrize("loss", [ForwardKL(3), FDivergence(num_particles=3), FDivergence("hellinger", 3)], ids=repr)
def test_all_weights_zero(loss):
    """An impossible observation: infinitely far from any posterior, and no direction to go in."""

    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("impossible", -jnp.inf)

    def guide():
        numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), 1.0))

    value, grads = jax.value_and_grad(lambda p: loss.loss(jax.random.key(0), p, model, guide))({"mu": jnp.array(0.3)})
    assert float(value) == jnp.inf and float(grads["mu"]) == 0.0


def conjugate(loc, spread):
    """z ~ N(0, 1), y = 1 ~ N(z, 1): the posterior is N(1/2, 1/2)."""

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=1.0)

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), numpyro.param("spread", 1.0)))

    return model, guide, {"loc": jnp.asarray(loc), "spread": jnp.asarray(spread)}


@pytest.mark.parametrize("loss", [ELBO(stick_the_landing=True), DoublyReparameterized(4), VRIWAE(0.5, 4, True)], ids=repr)
def test_the_gradient_vanishes_at_the_posterior(loss):
    model, guide, params = conjugate(0.5, np.sqrt(0.5))
    for seed in range(3):
        grads = jax.grad(lambda params, seed=seed: loss.loss(jax.random.key(seed), params, model, guide))(params)
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=2e-6), grads)


# Doubly reparameterised gradients


def local_normals():
    """Two Gaussian elements of a plate that holds everything, each with a bound of its own, and a parameter of the model."""
    y = np.array([0.4, -0.9])

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", dist.Normal(numpyro.param("theta", 0.0), 1.0))
            numpyro.sample("y", dist.Normal(jnp.sin(2 * x), 0.6), obs=y)

    def guide(y):
        with numpyro.plate("n", 2):
            numpyro.sample("x", dist.Normal(numpyro.param("mu", jnp.zeros(2)), jnp.exp(numpyro.param("s", 0.0))))

    def values(params, outcome, batch):
        return {"x": params["mu"] + jnp.exp(params["s"]) * jnp.stack([outcome["e"], outcome["f"]])}

    def log_q(params, z, batch):
        return normal(z["x"], params["mu"], jnp.exp(params["s"]))

    def log_p(params, z, batch):
        return normal(z["x"], params["theta"]) + normal(y, jnp.sin(2 * z["x"]), 0.6)

    params = {"mu": np.array([0.2, -0.4]), "s": -0.5, "theta": 0.3}
    oracle = Oracle(**product(e=gaussian(20), f=gaussian(20)), values=values, log_pmf=lambda *_: 0.0, log_p=log_p, log_q=log_q)
    return Problem("local_normals", model, guide, params, oracle, (), ("x",), args=(y,))


DOUBLY = (
    (DoublyReparameterized(2), oracles.iwelbo(), 2, "reparam_normal"),
    (DoublyReparameterized(3), oracles.iwelbo(), 3, "reparam_normal"),
    (VRIWAE(0.6, 2, doubly_reparameterized=True), oracles.renyi(0.6), 2, "reparam_normal"),
    (DoublyReparameterized(2), oracles.iwelbo(), 2, local_normals()),
)


@pytest.mark.parametrize(("loss", "formula", "num_particles", "problem"), DOUBLY, ids=lambda x: repr(x) if isinstance(x, VRIWAE) else None)
def test_doubly_reparameterised_gradients_change_no_mean(loss, formula, num_particles, problem):
    check(loss, problem, formula, num_particles)


def test_weights_of_the_doubly_reparameterised_gradient_are_squared(monkeypatch):
    module = "ppl_ext.objectives.doubly_reparameterized"
    from ppl_ext.objectives.weights import signal

    monkeypatch.setattr(f"{module}.signal", lambda weights, x: signal(jnp.sqrt(weights), x))
    with pytest.raises(AssertionError, match="standard errors off"):
        check(DoublyReparameterized(2), "reparam_normal", oracles.iwelbo(), 2)


def test_the_signal_does_not_fade_with_the_number_of_particles():
    model, guide, params = conjugate(0.3, 0.8)

    def signal_to_noise(loss):
        run = jax.vmap(jax.grad(lambda params, key: loss.loss(key, params, model, guide)), in_axes=(None, 0))
        grads = quick_jit(run)(params, jax.random.split(jax.random.key(0), 4_000))["loc"]
        return abs(grads.mean()) / grads.std()

    assert signal_to_noise(DoublyReparameterized(64)) > 4 * signal_to_noise(IWELBO(64))


@pytest.mark.slow
def test_what_the_doubly_reparameterised_gradient_refuses():
    model, guide, params = conjugate(0.3, 0.8)
    key = jax.random.key(0)

    def coin():
        guide()
        numpyro.sample("k", dist.Bernoulli(0.5), infer={"is_auxiliary": True})

    with pytest.raises(StrategyError, match=r"DoublyReparameterized differentiates through draws, and .* site 'k' .*Enumerate"):
        DoublyReparameterized().loss(key, params, model, coin)
    with pytest.raises(StrategyError, match="site 'z' .*ScoreFunction"):
        DoublyReparameterized().loss(key, params, model, gradient(guide, {"z": "score"}))

    def stepping():
        guide()
        scan(lambda c, _: (numpyro.sample("step", dist.Bernoulli(0.5), infer={"is_auxiliary": True}), None), 0, None, length=2)

    with pytest.raises(StrategyError, match="site 'step'"):
        DoublyReparameterized().loss(key, params, model, stepping)
    for changed in (mask(guide, jnp.asarray(True)), scale(guide, 0.5)):
        with pytest.raises(ModelError, match="'z' for a draw of a density that is neither masked nor scaled"):
            DoublyReparameterized().loss(key, params, model, changed)
    with pytest.raises(ModelError, match="no observed sites or factors in the guide, and 'seen'"):
        DoublyReparameterized().loss(key, {**params, "mu": 0.1, "s": 0.1, "eta": 0.1}, observing().model, observing().guide)
    subsampled = PROBLEMS["subsampled"]

    def partly(y):
        with numpyro.plate("n", 4, subsample_size=2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("g", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="'n' is subsampled and does not hold every site"):
        DoublyReparameterized().loss(key, {}, partly, partly, subsampled.args[0])
    for make in (DoublyReparameterized, VRIWAE):
        with pytest.raises(ArgumentError, match="less than 1"):
            make(alpha=1.5).loss(key, params, model, guide)


# Formulas of K log weights


def log_mean(x, axis=0):
    return logsumexp(x, axis=axis) - jnp.log(x.shape[axis])


def of_ratios(f):
    """Minus the mean of f at the self-normalised ratios; f is written in r itself."""
    return lambda log_weights: -f(len(log_weights) * jax.nn.softmax(log_weights, axis=0)).mean(0).sum(-1)


DIVERGENCES = {
    "jeffreys": of_ratios(lambda r: (r - 1) * jnp.log(r)),
    "jensen_shannon": of_ratios(lambda r: 0.5 * (xlogy(r, r) - (1 + r) * jnp.log((1 + r) / 2))),
    "hellinger": of_ratios(lambda r: 0.5 * (jnp.sqrt(r) - 1) ** 2),
}


def tvo(betas):
    """Left sum of weighted means of the log weights."""

    def bound(log_weights):
        total = 0.0
        for left, right in zip(betas[:-1], betas[1:], strict=True):
            total = total + (right - left) * (jax.nn.softmax(left * log_weights, axis=0) * log_weights).sum(0)
        return total.sum(-1)

    return bound


BETAS = [0.0, 0.1, 10**-0.5, 1.0]
FORMULAS = (
    (FDivergence("jeffreys", 2), DIVERGENCES["jeffreys"], 2, "chain", SCORE),
    (FDivergence("jensen_shannon", 2), DIVERGENCES["jensen_shannon"], 2, "chain", MeasureValued()),
    (FDivergence("jensen_shannon", 2), DIVERGENCES["jensen_shannon"], 2, "score_normal", None),
    (FDivergence("hellinger", 3), DIVERGENCES["hellinger"], 3, "plated_local", ScoreFunction()),
    (FDivergence("hellinger", 2), DIVERGENCES["hellinger"], 2, "chain", EnumerateLocally()),
    (Thermodynamic(2, 3, covariance=False), tvo(BETAS), 2, "chain", SCORE),
    (Thermodynamic(3, 3, covariance=False), tvo(BETAS), 3, "plated_local", ScoreFunction()),
    (Thermodynamic(2, 1, covariance=False), oracles.elbo(), 2, "chain", MeasureValued()),
)


@pytest.mark.parametrize(("loss", "formula", "num_particles", "problem", "strategy"), FORMULAS)
def test_values_and_gradients_of_formulas_are_unbiased(loss, formula, num_particles, problem, strategy):
    check(loss, problem, formula, num_particles, strategy)


@pytest.mark.slow
def test_the_assertion_tells_divergences_and_partitions_apart():
    for wrong in (DIVERGENCES["jensen_shannon"], DIVERGENCES["hellinger"]):
        with pytest.raises(AssertionError, match="standard errors off"):
            check(FDivergence("jeffreys", 2), "chain", wrong, 2, SCORE)
    with pytest.raises(AssertionError, match="standard errors off"):
        check(Thermodynamic(2, 3, covariance=False), "chain", tvo([0.0, 0.2, 0.6, 1.0]), 2, SCORE)


def test_many_particles_give_the_divergence():
    """Against sums over the outcomes of a chain; the bias at 2,000 particles is far below the noise of 200 replicates."""
    problem = PROBLEMS["chain"]
    params = jax.tree.map(jnp.asarray, problem.params)
    log_q, log_p, _ = oracles.table(problem.oracle, params, None)
    q = jnp.exp(log_q)
    r = jnp.exp(log_p[:, 0] - logsumexp(log_p[:, 0])) / q
    exact = {
        "jeffreys": (q * (r - 1) * jnp.log(r)).sum(),
        "jensen_shannon": 0.5 * (q * (r * jnp.log(2 * r / (1 + r)) + jnp.log(2 / (1 + r)))).sum(),
        "hellinger": 1 - (q * jnp.sqrt(r)).sum(),
    }
    for name, value in exact.items():
        loss = FDivergence(name, 2_000)
        guide = gradient(problem.guide, {"*": SCORE})  # a leave-one-out baseline would take K² runs
        given = quick_jit(jax.vmap(lambda key, loss=loss, guide=guide: loss.loss(key, params, problem.model, guide)))
        samples = given(jax.random.split(jax.random.key(0), 200))
        assert abs(samples.mean() - value) < 4.5 * samples.std() / np.sqrt(200) + 5e-4, name


@pytest.mark.slow
def test_the_thermodynamic_bound_lies_between_the_elbo_and_the_importance_weighted_one():
    for num_particles in (1, 2, 3):
        problem = PROBLEMS["chain"]
        low, mid, high = (
            -expected_loss(problem.oracle, problem.params, f, num_particles)[0] for f in (oracles.elbo(), tvo(BETAS), oracles.iwelbo())
        )
        assert low <= mid + 1e-12 and mid <= high + 1e-12 <= oracles.log_evidence(problem.oracle, problem.params) + 1e-9
        assert num_particles == 1 or low < mid < high


def test_options_that_make_no_sense():
    model, guide, params = conjugate(0.3, 0.8)
    key = jax.random.key(0)
    for loss, message in (
        (FDivergence(num_particles=1), "at least 2"),
        (FDivergence("total_variation"), "unknown divergence 'total_variation'; known: jeffreys"),
        (FDivergence(3), "takes a name or a function"),
        (Thermodynamic(first=1.5), "between 0 and 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            loss.loss(key, params, model, guide)
    own = FDivergence(lambda log_r: jnp.expm1(log_r) ** 2, 3)
    assert jnp.isfinite(own.loss(key, params, model, guide))


@pytest.mark.slow
def test_estimated_densities_are_refused_where_they_would_be_taken_twice():
    from ppl_ext import marginal
    from ppl_ext.algorithms import ImportanceSampling

    def ring():
        numpyro.sample("z", dist.Normal(numpyro.sample("u", dist.Normal(0.0, 1.0)), 1.0))

    model, _, _ = conjugate(0.0, 1.0)
    guide = marginal(ring, ["z"], ImportanceSampling(2))
    losses = [loss.loss(jax.random.key(0), {}, model, guide) for loss in (ELBO(stick_the_landing=True), ELBO())]
    assert losses[0] == losses[1]
    with pytest.raises(ModelError, match="'z' for a draw of a density that is neither masked nor scaled"):
        DoublyReparameterized().loss(jax.random.key(0), {}, model, guide)
    assert known_sites(model, guide) == frozenset()
    assert jnp.isfinite(ELBO(analytic_kl=True).loss(jax.random.key(0), {}, model, guide))
    assert jnp.isfinite(Thermodynamic(3, covariance=False).loss(jax.random.key(0), {}, model, guide))
    with pytest.raises(DirectionError, match=r"marginal\(z\)"):  # the covariance gradient scores given draws
        Thermodynamic(3).loss(jax.random.key(0), {}, model, guide)
    assert jnp.isfinite(Renyi(0.5, 2).loss(jax.random.key(0), {}, model, guide))
