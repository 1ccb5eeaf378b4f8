"""Gradients along the paths of draws, whose law is held fixed: sticking the landing, and doubly
reparameterised.

As in ``test_unbiased.py``: 20,000 replicates with fixed keys, within 4.5 standard errors of an oracle that
sums over all outcomes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale

from ppl_ext.errors import ArgumentError, DirectionError, ModelError, StrategyError
from ppl_ext.gradients import ScoreFunction
from ppl_ext.handlers import gradient
from ppl_ext.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    DoublyReparameterized,
    ForwardKL,
    Renyi,
    ReweightedWakeSleep,
    Thermodynamic,
)
from ppl_ext.objectives.terms import analytic_kl
from ppl_ext.objectives.terms.analytic_kl import known_sites
from tests import oracles
from tests.objectives.exact import SCORE, check, conjugate
from tests.oracles import Oracle, gaussian, normal, product, quick_jit
from tests.problems import PROBLEMS, Problem

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


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
        numpyro.sample(
            "seen", dist.Normal(numpyro.param("eta", 0.0), 1.0), obs=1.2, infer={"is_auxiliary": True}
        )

    def log_q(params, z, batch):
        return base.oracle.log_q(params, z, batch) + normal(1.2, params["eta"])

    oracle = Oracle(
        base.oracle.outcomes,
        base.oracle.log_weights,
        base.oracle.log_pmf,
        base.oracle.log_p,
        log_q,
        base.oracle.values,
    )
    return Problem("observing", base.model, guide, {**base.params, "eta": 0.4}, oracle, (), ("x",))


def test_what_a_guide_observes_keeps_its_gradient(monkeypatch):
    """The mutant that holds every term of log q fixed is caught."""
    check(ELBO(stick_the_landing=True, analytic_kl=True), observing(), oracles.elbo(), 1)
    check(ELBO(stick_the_landing=True), observing(), oracles.elbo(), 1)
    held = analytic_kl.simulate_and_hold

    def everything(guide):
        draw, log_q = held(guide)
        return draw, jax.lax.stop_gradient(log_q.split(())[0]) + log_q.split(draw.values)[0] + _stopped(
            log_q.split(draw.values)[1]
        )

    monkeypatch.setattr(analytic_kl, "simulate_and_hold", everything)
    with pytest.raises(AssertionError, match="standard errors off"):
        check(ELBO(stick_the_landing=True), observing(), oracles.elbo(), 1)


def _stopped(x):
    return jax.tree.map(jax.lax.stop_gradient, x)


@pytest.mark.slow
def test_noise_beside_the_sites_is_the_same_in_both_runs():
    """A guide that asks for a key of its own, as dropout does: log q is scored with the mask that the draw
    was made with.
    """

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


STATEFUL = (
    ELBO(stick_the_landing=True),
    DoublyReparameterized(2),
    ForwardKL(2),
    ReweightedWakeSleep(2, sleep=0.0),
    Thermodynamic(2),
)


@pytest.mark.parametrize("loss", STATEFUL, ids=lambda loss: type(loss).__name__)
def test_state_of_the_guide_moves_once_a_step(loss):
    """Both runs of one draw start from the same state: or it moved twice, and log q was that of another
    law.
    """
    params = {"mu": jnp.array(0.3), "count": {"runs": jnp.array(4.0)}}
    out = loss.loss_with_mutable_state(jax.random.key(0), params, PROBLEMS["reparam_normal"].model, counting)
    assert float(out["mutable_state"]["count"]["runs"]) == 5.0
    if type(loss).__name__ in ("ELBO", "DoublyReparameterized"):
        plain = ELBO() if isinstance(loss, ELBO) else IWELBO(2)
        np.testing.assert_allclose(
            out["loss"],
            plain.loss(jax.random.key(0), params, PROBLEMS["reparam_normal"].model, counting),
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    "loss", [ELBO(stick_the_landing=True), DoublyReparameterized(4), VRIWAE(0.5, 4, True)], ids=repr
)
def test_the_gradient_vanishes_at_the_posterior(loss):
    model, guide, params = conjugate(0.5, np.sqrt(0.5))
    for seed in range(3):
        grads = jax.grad(lambda params, seed=seed: loss.loss(jax.random.key(seed), params, model, guide))(
            params
        )
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=2e-6), grads)


# Doubly reparameterised gradients


def local_normals():
    """Two Gaussian elements of a plate that holds everything, each with a bound of its own, and a parameter
    of the model.
    """
    y = np.array([0.4, -0.9])

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", dist.Normal(numpyro.param("theta", 0.0), 1.0))
            numpyro.sample("y", dist.Normal(jnp.sin(2 * x), 0.6), obs=y)

    def guide(y):
        with numpyro.plate("n", 2):
            numpyro.sample(
                "x", dist.Normal(numpyro.param("mu", jnp.zeros(2)), jnp.exp(numpyro.param("s", 0.0)))
            )

    def values(params, outcome, batch):
        return {"x": params["mu"] + jnp.exp(params["s"]) * jnp.stack([outcome["e"], outcome["f"]])}

    def log_q(params, z, batch):
        return normal(z["x"], params["mu"], jnp.exp(params["s"]))

    def log_p(params, z, batch):
        return normal(z["x"], params["theta"]) + normal(y, jnp.sin(2 * z["x"]), 0.6)

    params = {"mu": np.array([0.2, -0.4]), "s": -0.5, "theta": 0.3}
    oracle = Oracle(
        **product(e=gaussian(20), f=gaussian(20)),
        values=values,
        log_pmf=lambda *_: 0.0,
        log_p=log_p,
        log_q=log_q,
    )
    return Problem("local_normals", model, guide, params, oracle, (), ("x",), args=(y,))


DOUBLY = (
    (DoublyReparameterized(2), oracles.iwelbo(), 2, "reparam_normal"),
    (DoublyReparameterized(3), oracles.iwelbo(), 3, "reparam_normal"),
    (VRIWAE(0.6, 2, doubly_reparameterized=True), oracles.renyi(0.6), 2, "reparam_normal"),
    (DoublyReparameterized(2), oracles.iwelbo(), 2, local_normals()),
)


@pytest.mark.parametrize(
    ("loss", "formula", "num_particles", "problem"),
    DOUBLY,
    ids=lambda x: repr(x) if isinstance(x, VRIWAE) else None,
)
def test_doubly_reparameterised_gradients_change_no_mean(loss, formula, num_particles, problem):
    check(loss, problem, formula, num_particles)


def test_weights_of_the_doubly_reparameterised_gradient_are_squared(monkeypatch):
    module = "ppl_ext.objectives.doubly_reparameterized"
    from ppl_ext.objectives.terms.self_normalised import signal

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

    with pytest.raises(
        StrategyError,
        match=r"DoublyReparameterized differentiates through draws, and .* site 'k' .*Enumerate",
    ):
        DoublyReparameterized().loss(key, params, model, coin)
    with pytest.raises(StrategyError, match="site 'z' .*ScoreFunction"):
        DoublyReparameterized().loss(key, params, model, gradient(guide, {"z": "score"}))

    def stepping():
        guide()
        scan(
            lambda c, _: (numpyro.sample("step", dist.Bernoulli(0.5), infer={"is_auxiliary": True}), None),
            0,
            None,
            length=2,
        )

    with pytest.raises(StrategyError, match="site 'step'"):
        DoublyReparameterized().loss(key, params, model, stepping)
    for changed in (mask(guide, jnp.asarray(True)), scale(guide, 0.5)):
        with pytest.raises(ModelError, match="'z' for a draw of a density that is neither masked nor scaled"):
            DoublyReparameterized().loss(key, params, model, changed)
    with pytest.raises(ModelError, match="no observed sites or factors in the guide, and 'seen'"):
        DoublyReparameterized().loss(
            key, {**params, "mu": 0.1, "s": 0.1, "eta": 0.1}, observing().model, observing().guide
        )
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


@pytest.mark.slow
def test_estimated_densities_are_refused_where_they_would_be_taken_twice():
    from ppl_ext import marginal
    from ppl_ext.algorithms import ImportanceSampling

    def ring():
        numpyro.sample("z", dist.Normal(numpyro.sample("u", dist.Normal(0.0, 1.0)), 1.0))

    model, _, _ = conjugate(0.0, 1.0)
    guide = marginal(ring, ["z"], ImportanceSampling(2))
    losses = [
        loss.loss(jax.random.key(0), {}, model, guide) for loss in (ELBO(stick_the_landing=True), ELBO())
    ]
    assert losses[0] == losses[1]
    with pytest.raises(ModelError, match="'z' for a draw of a density that is neither masked nor scaled"):
        DoublyReparameterized().loss(jax.random.key(0), {}, model, guide)
    assert known_sites(model, guide) == frozenset()
    assert jnp.isfinite(ELBO(analytic_kl=True).loss(jax.random.key(0), {}, model, guide))
    assert jnp.isfinite(Thermodynamic(3, covariance=False).loss(jax.random.key(0), {}, model, guide))
    with pytest.raises(DirectionError, match=r"marginal\(z\)"):  # the covariance gradient scores given draws
        Thermodynamic(3).loss(jax.random.key(0), {}, model, guide)
    assert jnp.isfinite(Renyi(0.5, 2).loss(jax.random.key(0), {}, model, guide))
