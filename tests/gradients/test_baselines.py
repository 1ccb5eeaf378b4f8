"""Baselines of score-function sites: none moves the mean of a gradient, each takes noise away, and what they
keep goes from step to step.

Unbiasedness is judged as in ``tests/objectives/test_unbiased.py``: 20,000 replicates against the exact
answer, 4.5 standard errors. About 90 coordinates in the default run: a false alarm rate of 0.06% over fresh
keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import infer_config, scope
from numpyro.infer import SVI

import ppl_ext.expectations.surrogate
from ppl_ext import expectation, marginal
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.errors import ArgumentError, ArgumentTypeError, StrategyError
from ppl_ext.gradients import LearnedBaseline, MovingAverage, ScoreFunction
from ppl_ext.gradients.baseline import fitted
from ppl_ext.handlers import gradient
from ppl_ext.infer import Checkpoint, fit
from ppl_ext.objectives import ELBO, IWELBO
from tests import oracles
from tests.oracles import assert_unbiased, expected_loss, quick_jit, replicates
from tests.problems import PROBLEMS

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

pytestmark = pytest.mark.filterwarnings("ignore:Plate 'n' is subsampled")

AVERAGE = ScoreFunction(baseline=MovingAverage(0.8))
LEARNED = ScoreFunction(baseline=LearnedBaseline())


class Holding(numpyro.infer.elbo.ELBO):
    """An objective with the values of baselines held at some numbers."""

    def __init__(self, objective, held):
        super().__init__(objective.num_particles)
        self.objective, self.held = objective, held

    def loss(self, rng_key, params, *args):
        return self.objective.loss(rng_key, {**params, **self.held}, *args)


def state(*values):
    """A moving average in the middle of a run."""
    return {"average": 0.7 * jnp.array(values).squeeze(), "weight": jnp.array(0.7)}


def drawn_before(draws):
    return numpyro.param("a", 0.0) + sum(
        numpyro.param(f"of_{name}", 0.0) * x.sum() for name, x in draws.items()
    )


def given(problem, baseline):
    return infer_config(
        PROBLEMS[problem].guide, lambda site: {"gradient": "score", "baseline": baseline(site["name"])}
    )


def strategy(problem, **strategies):
    return gradient(PROBLEMS[problem].guide, strategies)


CASES = {
    "average, one coin": (
        "one_bernoulli",
        ELBO(),
        strategy("one_bernoulli", z=AVERAGE),
        {"z_baseline": state(-2.0)},
    ),
    "average, particles": (
        "chain",
        IWELBO(2),
        strategy("chain", a=AVERAGE, c=AVERAGE),
        {"a_baseline": state(3.0), "c_baseline": state(-2.0)},
    ),
    "average, plate": (
        "plated",
        ELBO(2),
        strategy("plated", g=AVERAGE, z=AVERAGE),
        {"z_baseline": state(-1.0, 2.0, -3.0), "g_baseline": state(4.0)},
    ),
    "average, subsampled": (
        "subsampled",
        ELBO(),
        strategy("subsampled", g=AVERAGE, z=AVERAGE),
        {"z_baseline": {"average": jnp.ones(1), "weight": jnp.ones(())}},
    ),
    "average, scan": (
        "scanned",
        ELBO(),
        strategy("scanned", x0=AVERAGE, x=AVERAGE),
        {"x_baseline": state(-4.0, 2.0, 3.0)},
    ),
    "average, cond": (
        "conditional_site",
        ELBO(),
        strategy("conditional_site", a=AVERAGE, b=AVERAGE),
        {"b_baseline": state(-4.0)},
    ),
    "average, beside enumeration": (
        "coin_normal_coin",
        ELBO(),
        strategy("coin_normal_coin", a="enumerate", b=AVERAGE),
        {"b_baseline": state(-5.0)},
    ),
    "average, before enumeration": (
        "chain",
        ELBO(),
        strategy("chain", a=AVERAGE, c="enumerate"),
        {"a_baseline": state(-5.0)},
    ),
    "learned, of the past": (
        "chain",
        ELBO(),
        strategy("chain", **{"*": ScoreFunction(LearnedBaseline(drawn_before))}),
        {"a_baseline/a": -3.0, "c_baseline/a": -2.0, "c_baseline/of_a": 4.0},
    ),
    "learned, beside enumeration": (
        "triple",
        ELBO(2),
        strategy("triple", b="enumerate", **{"*": ScoreFunction(LearnedBaseline(drawn_before))}),
        {"a_baseline/a": -3.0, "c_baseline/of_b": -2.0, "c_baseline/of_a": 4.0},
    ),
    "given, array": (
        "plated",
        ELBO(),
        given("plated", lambda name: -2.0 if name == "g" else jnp.array([1.0, -2.0, 4.0])),
        {},
    ),
    "given, function": (
        "chain",
        IWELBO(2),
        given("chain", lambda name: lambda draws: 3.0 * draws.get("a", 1.0)),
        {},
    ),
}


QUICK = (
    "average, one coin",
    "average, scan",
    "average, subsampled",
    "average, before enumeration",
    "learned, beside enumeration",
)
QUICK += ("average, beside enumeration", "given, function", "given, array")


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_value_and_gradient_are_unbiased(case):
    problem, objective, guide, held = CASES[case]
    formula = oracles.elbo() if isinstance(objective, ELBO) else oracles.iwelbo()
    samples = replicates(Holding(objective, held), PROBLEMS[problem], guide=guide)
    assert_unbiased(
        samples,
        expected_loss(PROBLEMS[problem].oracle, PROBLEMS[problem].params, formula, objective.num_particles),
    )


@pytest.mark.parametrize("case", ["average, one coin", "learned, beside enumeration"])
def test_a_baseline_that_knows_the_draw_is_caught(case, monkeypatch):
    known = ppl_ext.expectations.surrogate.predictions

    def peeking(choices, run):
        return {id: b + 3.0 * run.laws[id].log_prob for id, b in known(choices, run).items()}

    monkeypatch.setattr(ppl_ext.expectations.surrogate, "predictions", peeking)
    with pytest.raises(AssertionError, match="standard errors off"):
        test_value_and_gradient_are_unbiased(case)


# --- noise


def offset_model():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    with numpyro.plate("n", 3):
        w = numpyro.sample("w", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(2.0 * z + w, 1.0), obs=jnp.array([30.0, -20.0, 10.0]))


def offset_guide():
    z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.3)))
    with numpyro.plate("n", 3):
        numpyro.sample("w", dist.Bernoulli(logits=numpyro.param("psi", jnp.zeros(3)) + 0.2 * z))


def spread(guide, **held):
    params = {"phi": jnp.array(0.3), "psi": jnp.zeros(3)}
    run = jax.grad(lambda params, key: Holding(ELBO(), held).loss(key, params, offset_model, guide))
    grads = quick_jit(jax.vmap(run, in_axes=(None, 0)))(params, jax.random.split(jax.random.key(0), 2_000))
    return {name: np.std(x, axis=0) for name, x in grads.items()}


def of_the_coin(draws):
    return (
        numpyro.param("a", jnp.zeros(3)) + numpyro.param("b", jnp.zeros(3)) * draws["z"]
        if draws
        else numpyro.param("a", 0.0)
    )


def trained(strategy):
    """What a baseline has learned after some hundred steps in which the guide stands still."""
    guide = gradient(offset_guide, {"*": strategy})
    guide_stands = optax.masked(
        optax.set_to_zero(), lambda params: {name: "baseline" not in name for name in params}
    )
    svi = SVI(offset_model, guide, optax.chain(optax.adam(2.0), guide_stands), ELBO())
    result = svi.run(jax.random.key(0), 600, progress_bar=False)
    kept = result.params | (result.state.mutable_state or {})
    return guide, {name: value for name, value in kept.items() if "baseline" in name}


@pytest.mark.parametrize(
    "baseline", [MovingAverage(0.95), LearnedBaseline(of_the_coin)], ids=["average", "regression"]
)
@pytest.mark.slow
def test_a_trained_baseline_takes_the_offset_out(baseline):
    """Costs of several hundred nats, of which the draws decide some tens."""
    plain = spread(gradient(offset_guide, {"*": ScoreFunction(baseline=None)}))
    guide, kept = trained(ScoreFunction(baseline))
    less = spread(guide, **kept)
    assert less["phi"] < 0.3 * plain["phi"]
    assert (less["psi"] < 0.6 * plain["psi"]).all()


def test_a_stated_baseline_takes_the_offset_out():
    def stating(site):
        return {
            "gradient": "score",
            "baseline": -700.0 if site["name"] == "z" else lambda draws: jnp.array([-400.0, -230.0, -40.0]),
        }

    plain, less = (
        spread(gradient(offset_guide, {"*": ScoreFunction(baseline=None)})),
        spread(infer_config(offset_guide, stating)),
    )
    assert less["phi"] < 0.35 * plain["phi"]
    assert (less["psi"] < 0.6 * plain["psi"]).all()


def test_a_baseline_that_is_the_cost_leaves_no_noise_beside_enumeration():
    """The lanes of an enumerated coin share the cost of a later site by their weights, and its baseline
    evenly: all of it, together.
    """

    def program(loc):
        coin = numpyro.sample("coin", dist.Bernoulli(0.3), infer={"gradient": "enumerate"})
        z = numpyro.sample("z", dist.Normal(loc, 1.0), infer={"gradient": "score", "baseline": 7.0})
        return 7.0 + 0.0 * coin * z

    values, grads = quick_jit(jax.vmap(lambda key: expectation(program).value_and_grad(key, 0.5)))(
        jax.random.split(jax.random.key(0), 9)
    )
    np.testing.assert_allclose(values, 7.0, rtol=1e-6)
    np.testing.assert_allclose(grads, 0.0, atol=1e-5)


def test_a_baseline_of_a_batch_serves_each_element_of_its_events():
    given = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        fitted("x", given, (3, 2), batch_ndim=1), np.repeat(given[:, None], 2, axis=1)
    )
    np.testing.assert_array_equal(fitted("x", given, (3,), batch_ndim=1), given)
    np.testing.assert_array_equal(fitted("x", 4.0, (3, 2), batch_ndim=1), np.full((3, 2), 4.0))


# --- what is kept, step by step


def coin_model():
    numpyro.factor("cost", 4.0 + numpyro.sample("z", dist.Bernoulli(0.4)) * 3.0)


def coin_guide():
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.3)))


def test_the_average_is_that_of_earlier_costs():
    """By hand from the losses, which are the costs of the one coin."""
    svi = SVI(coin_model, gradient(coin_guide, {"z": AVERAGE}), optax.sgd(0.1), ELBO())
    start = svi.init(jax.random.key(0))
    step, now, average, weight = quick_jit(svi.update), start, 0.0, 0.0
    for _ in range(5):
        now, loss = step(now)
        average, weight = 0.8 * average - 0.2 * loss, 0.8 * weight + 0.2
        np.testing.assert_allclose(now.mutable_state["z_baseline"]["average"], average, rtol=1e-5)
        np.testing.assert_allclose(now.mutable_state["z_baseline"]["weight"], weight, rtol=1e-5)


@pytest.mark.parametrize("baseline", [MovingAverage(0.8), LearnedBaseline()], ids=["average", "learned"])
@pytest.mark.slow
def test_beside_enumeration_costs_are_summed_over_the_lanes(baseline):
    """A scored coin beside an enumerated die: it is charged with the mean over the die, and the noise of its
    offset goes.
    """

    def model():
        d = numpyro.sample("d", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))
        numpyro.factor("cost", 40.0 + (numpyro.sample("z", dist.Bernoulli(0.4)) + 1.0) * (3.0 + d))

    def guide():
        numpyro.sample("d", dist.Categorical(logits=numpyro.param("psi", jnp.array([0.1, -0.3, 0.4]))))
        coin_guide()

    handled = gradient(guide, {"d": "enumerate", "z": ScoreFunction(baseline)})
    kept = (
        {"z_baseline": {"average": jnp.array(0.0), "weight": jnp.array(0.0)}}
        if isinstance(baseline, MovingAverage)
        else {}
    )

    def one(params, key):
        out = ELBO().loss_with_mutable_state(key, params | kept, model, handled)
        return out["loss"], out["mutable_state"]

    params = {"phi": 0.3, "psi": jnp.array([0.1, -0.3, 0.4])} | ({} if kept else {"z_baseline/constant": 0.0})
    (loss, state), grads = jax.value_and_grad(one, has_aux=True)(params, jax.random.key(0))
    # The die has a term of its own, which the coin does not feel: a mean that both sides leave out.
    q, p = jax.nn.softmax(params["psi"]), jnp.array([0.2, 0.3, 0.5])
    cost = -loss - jnp.sum(q * jnp.log(p / q))
    remembered = state["z_baseline"]["average"] / 0.2 if kept else -grads["z_baseline/constant"]
    np.testing.assert_allclose(remembered, cost, rtol=1e-4)

    def spread_of(params):
        run = jax.grad(lambda params, key: ELBO().loss(key, params, model, handled))
        return np.std(
            quick_jit(jax.vmap(run, in_axes=(None, 0)))(params, jax.random.split(jax.random.key(0), 500))[
                "phi"
            ]
        )

    held = {"z_baseline": {"average": 47.0, "weight": 1.0}} if kept else {"z_baseline/constant": 47.0}
    assert spread_of(params | held) < 0.1 * spread_of(params | kept)


def test_a_cost_that_is_not_finite_is_not_remembered():
    old = {"average": jnp.array([1.0, 2.0]), "weight": jnp.array(0.5)}
    new = MovingAverage(0.5).moved(old, jnp.array([-jnp.inf, 4.0]))
    # 1/0.5 as before, and (0.5 · 2 + 0.5 · 4)/0.75
    np.testing.assert_allclose(MovingAverage().value(new), [2.0, 4.0])


@pytest.mark.slow
def test_the_square_trains_the_regression_and_nothing_else():
    def grads(guide, params):
        return jax.value_and_grad(lambda params: ELBO().loss(jax.random.key(3), params, coin_model, guide))(
            params
        )

    stated = infer_config(coin_guide, lambda site: {"gradient": "score", "baseline": 2.5})
    loss, by_hand = grads(stated, {"phi": 0.3})
    learned_loss, learned = grads(
        gradient(coin_guide, {"z": LEARNED}), {"phi": 0.3, "z_baseline/constant": 2.5}
    )
    np.testing.assert_allclose(learned_loss, loss)
    np.testing.assert_allclose(learned["phi"], by_hand["phi"])
    # of (cost − b)²/2, the cost being minus the loss
    np.testing.assert_allclose(learned["z_baseline/constant"], 2.5 + loss, rtol=1e-6)


@pytest.mark.slow
def test_restarts_keep_their_own_and_a_checkpoint_goes_on(tmp_path):
    guide = gradient(coin_guide, {"z": AVERAGE})

    def run(num_steps, **options):
        args = (coin_model, guide, ELBO(), optax.adam(0.1), num_steps)
        return fit(jax.random.key(0), *args, num_chains=3, progress_bar=False, **options).params

    whole = run(40)
    assert len(np.unique(whole["z_baseline"]["average"])) == 3
    file = Checkpoint(tmp_path / "run.npz", every=10)
    run(20, checkpoint=file)
    jax.tree.map(np.testing.assert_array_equal, run(40, checkpoint=file), whole)


def kept_shapes(guide):
    svi = SVI(lambda: None, guide, optax.sgd(0.1), ELBO())
    return jax.tree.map(jnp.shape, jax.eval_shape(svi.init, jax.random.key(0)).mutable_state)


def test_one_average_for_each_element_but_one_for_a_subsampled_plate():
    def guide():
        with numpyro.plate("outer", 4, dim=-2), numpyro.plate("n", 10, subsample_size=5):
            numpyro.sample("a", dist.Bernoulli(0.3))
            numpyro.sample("b", dist.Bernoulli(0.3 * jnp.ones(2)).to_event(1))
        scan(lambda x, _: (numpyro.sample("c", dist.Bernoulli(0.4)), None), 0, None, length=3)

    shapes = {name: shape["average"] for name, shape in kept_shapes(gradient(guide, {"*": AVERAGE})).items()}
    assert shapes == {"a_baseline": (4, 1), "b_baseline": (4, 1, 2), "c_baseline": (3,)}


def test_a_regression_in_a_scan_sees_what_came_before_it():
    """The steps of one site are not all earlier than those of another."""
    seen = []

    def guide():
        def step(x, _):
            new = numpyro.sample("x", dist.Bernoulli(0.4))
            numpyro.sample("w", dist.Bernoulli(0.2 + 0.5 * new))
            return new, None

        scan(step, numpyro.sample("x0", dist.Bernoulli(0.4)), None, length=3)
        numpyro.sample("after", dist.Bernoulli(0.4))

    kept_shapes(
        gradient(
            guide, {"*": ScoreFunction(LearnedBaseline(lambda draws: seen.append(sorted(draws)) or 0.0))}
        )
    )
    assert sorted(seen) == sorted([[], ["x0"], ["x0"], ["w", "x", "x0"]])


def test_the_outer_handler_decides_what_is_kept():
    inner = gradient(coin_guide, {"z": AVERAGE})
    assert kept_shapes(gradient(inner, {"z": "enumerate"})) is None
    assert kept_shapes(gradient(inner, {"z": AVERAGE})) == {"z_baseline": {"average": (), "weight": ()}}
    assert kept_shapes(scope(inner, prefix="s")) == {"s/z_baseline": {"average": (), "weight": ()}}


def annotated(baseline):
    return infer_config(coin_guide, lambda site: {"gradient": ScoreFunction(baseline)})


def test_any_handler_declares_what_annotations_keep():
    def guide():
        annotated(MovingAverage())()
        numpyro.sample("other", dist.Normal(0.0, 1.0))

    assert set(kept_shapes(gradient(guide, {"other": "reparam"}))) == {"z_baseline"}


def test_a_scope_between_handler_and_run():
    """The coins' names differ inside and outside; each finds its own."""

    def model():
        for name in ("s/z", "t/z"):
            numpyro.factor(name + "_cost", 4.0 + numpyro.sample(name, dist.Bernoulli(0.4)) * 3.0)

    def guide():
        scope(gradient(coin_guide, {"z": LEARNED}), prefix="s")()
        scope(gradient(coin_guide, {"z": AVERAGE}), prefix="t")()

    params = {
        "s/phi": 0.3,
        "t/phi": 0.1,
        "s/z_baseline/constant": 1.0,
        "t/z_baseline": {"average": jnp.array(2.0), "weight": jnp.array(1.0)},
    }
    out = ELBO().loss_with_mutable_state(jax.random.key(0), params, model, guide)
    assert set(out["mutable_state"]) == {"t/z_baseline"}
    grads = jax.grad(lambda p: ELBO().loss(jax.random.key(0), p, model, guide))(params)
    assert grads["s/z_baseline/constant"] != 0


def test_a_site_inside_a_marginal():
    def program():
        u = numpyro.sample("u", dist.Bernoulli(logits=numpyro.param("phi", 0.3)))
        numpyro.sample("x", dist.Normal(1.0 * u, 1.0))

    guide = gradient(marginal(program, keep=["x"], algorithm=ImportanceSampling(2)), {"*/u": AVERAGE})
    svi = SVI(lambda: numpyro.sample("x", dist.Normal(30.0, 1.0)), guide, optax.sgd(0.0), ELBO())
    start = svi.init(jax.random.key(0))
    (name,) = start.mutable_state
    assert name.endswith("/u_baseline")
    now, loss = svi.update(start)
    assert np.isfinite(loss) and now.mutable_state[name]["average"] < -10.0


def test_an_expectation_has_no_steps():
    def program(p, strategy):
        return 5.0 + gradient(lambda: 3.0 * numpyro.sample("z", dist.Bernoulli(p)), {"z": strategy})()

    with_average, without = (
        expectation(program).value_and_grad(jax.random.key(0), 0.3, ScoreFunction(baseline))
        for baseline in (MovingAverage(), None)
    )
    np.testing.assert_allclose(with_average, without)


def test_a_scan_may_state_a_baseline_made_in_its_body():
    """As if the same numbers had been stated from outside."""

    def guide(inside):
        phi = numpyro.param("phi", 0.3)

        def step(x, t):
            infer = {"gradient": "score", "baseline": 1.0 + 2.0 * t if inside else 3.0}
            return numpyro.sample("x", dist.Bernoulli(logits=phi + x), infer=infer), t

        scan(step, 0, jnp.ones(3))

    def model():
        scan(lambda x, _: (numpyro.sample("x", dist.Bernoulli(0.4)), None), 0, None, length=3)

    @quick_jit
    def grads(phi):
        guides = (
            lambda: guide(True),
            lambda: guide(False),
            gradient(lambda: guide(True), {"x": ScoreFunction(None)}),
        )
        return [
            jax.grad(lambda phi, g=g: ELBO().loss(jax.random.key(0), {"phi": phi}, model, g))(phi)
            for g in guides
        ]

    inside, outside, without = grads(0.3)
    np.testing.assert_allclose(inside, outside, rtol=1e-5)
    assert abs(inside - without) > 0.1


# --- bad input


def test_bad_options():
    with pytest.raises(ArgumentError, match=r"decay=\.\.\.\) must be below 1"):
        MovingAverage(1.0)
    with pytest.raises(ArgumentError, match="at least 0"):
        MovingAverage(-0.1)
    with pytest.raises(ArgumentTypeError, match="LearnedBaseline: fn must be a function"):
        LearnedBaseline(3.0)
    with pytest.raises(ArgumentTypeError, match=r"MovingAverage\(\).*infer={'baseline': value}"):
        ScoreFunction(baseline=2.0)


@pytest.mark.parametrize("baseline", [MovingAverage(), LearnedBaseline()], ids=["average", "learned"])
def test_nobody_declared_what_is_kept(baseline):
    with pytest.raises(StrategyError, match="of site 'z' keeps numbers between steps.*handlers.gradient"):
        ELBO().loss(jax.random.key(0), {"phi": 0.3}, coin_model, annotated(baseline))


@pytest.mark.parametrize(
    "guide",
    [
        infer_config(coin_guide, lambda site: {"gradient": "score", "baseline": jnp.zeros(2)}),
        gradient(coin_guide, {"z": ScoreFunction(LearnedBaseline(lambda draws: jnp.zeros(2)))}),
    ],
    ids=["given", "learned"],
)
def test_a_baseline_that_does_not_fit(guide):
    with pytest.raises(
        StrategyError,
        match=r"baseline of site 'z' has shape \(2,\), which does not broadcast to the site's \(\)",
    ):
        ELBO().loss(jax.random.key(0), {"phi": 0.3}, coin_model, guide)


def test_batches_of_another_size():
    def guide(n):
        with numpyro.plate("n", n):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.3)))

    def model(n):
        with numpyro.plate("n", n):
            numpyro.sample("z", dist.Bernoulli(0.4))

    svi = SVI(model, gradient(guide, {"z": AVERAGE}), optax.sgd(0.1), ELBO())
    with pytest.raises(StrategyError, match="Site 'z' has elements of shape.*changed between steps"):
        svi.update(svi.init(jax.random.key(0), 3), 4)


def test_a_baseline_stated_in_a_branch():
    def guide():
        def draw(_):
            numpyro.sample("z", dist.Bernoulli(0.3), infer={"gradient": "score", "baseline": 1.0})

        cond(True, draw, draw, None)

    with pytest.raises(StrategyError, match="'z' states a baseline inside cond"):
        ELBO().loss(jax.random.key(0), {}, coin_model, guide)
