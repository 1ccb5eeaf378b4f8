"""Windowed inference: against Kalman's smoother, sums over states, and optima worked out by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import ppl_ext
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.infer import windowed
from ppl_ext.objectives import ELBO

PHI, Q, R = 0.8, 0.5, 0.7  # standard deviations
Y = np.array([0.5, 1.4, -0.3, 0.9], np.float32)
FREE = {"at": jnp.zeros(()), "slope": jnp.array(0.5), "log_scale": jnp.array(-0.5)}
LANDING = ELBO(4, stick_the_landing=True)
ZERO = jnp.zeros(())


def body(x, y):
    x = numpyro.sample("x", dist.Normal(PHI * x, Q))
    numpyro.sample("y", dist.Normal(x, R), obs=y)
    return x, None


def guide(free, x, y):
    numpyro.sample("x", dist.Normal(free["at"] + free["slope"] * x, jnp.exp(free["log_scale"])))


def falling(num, first=0.05, to=0.02):
    """A rate that falls as the stream goes on, so that the end is exact."""
    return optax.adam(optax.exponential_decay(first, num, to))


def run_through(run, data, carry=ZERO):
    state = run.init(jax.random.key(0), carry, data[0])
    for x in data:
        state = run.step(state, x)
    return state


def kalman():
    """The smoothed means and the evidence, of the dense law of all of it."""
    lags = np.subtract.outer(np.arange(4), np.arange(4))
    roots = np.where(lags >= 0, PHI ** np.maximum(lags, 0), 0.0) * Q
    states = roots @ roots.T
    spread = states + R**2 * np.eye(4)
    evidence = -0.5 * (Y @ np.linalg.solve(spread, Y) + np.linalg.slogdet(2 * np.pi * spread)[1])
    return states @ np.linalg.solve(spread, Y), evidence


@pytest.fixture(scope="module")
def whole():
    """A window longer than the stream."""
    run = windowed(body, guide, FREE, 6, falling(1600), 400, LANDING)
    return run, run_through(run, Y)


def test_a_window_over_everything_is_the_smoother_and_its_bound_the_evidence(whole):
    run, state = whole
    means, evidence = kalman()
    found = run.result(state)
    assert found.draws["x"].shape == (10, 4) and found.num_steps == 4
    at, slope = found.free["at"], found.free["slope"]
    m, ours = 0.0, []
    for a, b in zip(at, slope, strict=True):
        ours.append(m := a + b * m)
    np.testing.assert_allclose(ours, means, atol=2e-3)
    # the guide is the posterior, so every draw has the same weight
    np.testing.assert_allclose(-found.losses[-20:], evidence, atol=2e-3)


def test_the_draws_are_those_of_the_guide(whole):
    run, state = whole
    found = run.result(state)
    np.testing.assert_array_equal(found.carry, found.draws["x"][:, -1])
    noise = (
        found.draws["x"] - found.free["at"] - found.free["slope"] * np.roll(found.draws["x"], 1, 1)
    ) / np.exp(found.free["log_scale"])
    noise = noise[:, 1:]
    assert abs(noise.mean()) < 4.5 / noise.size**0.5 and 0.4 < noise.std() < 1.8


def test_what_has_left_is_drawn_and_no_longer_changed():
    run = windowed(body, guide, FREE, 1, falling(2400), 800, LANDING, num_particles=5)
    first = run.step(run.init(jax.random.key(1), ZERO, Y[0]), Y[0])
    left = jax.tree.map(lambda a: float(a[0]), first.free)
    precision = Q**-2 + R**-2
    np.testing.assert_allclose(left["at"], Y[0] * R**-2 / precision, atol=5e-3)
    np.testing.assert_allclose(np.exp(left["log_scale"]), precision**-0.5, atol=5e-3)
    np.testing.assert_array_equal(first.before, np.zeros(5))
    second = run.step(first, Y[1])
    past = np.asarray(second.before)
    assert len(set(past.tolist())) == 5 and np.abs(past - left["at"]).max() < 4 * np.exp(left["log_scale"])
    third = run.step(second, Y[2])
    # one step's posterior, given the state before, whatever it is
    np.testing.assert_allclose(third.free["slope"][0], PHI * Q**-2 / precision, atol=1e-2)
    np.testing.assert_allclose(third.free["at"][0], Y[2] * R**-2 / precision, atol=1e-2)
    given = np.asarray(third.before)
    bound = dist.Normal(PHI * given, (Q**2 + R**2) ** 0.5).log_prob(Y[2])
    losses = np.asarray(third.losses)[-400:]
    assert losses.std() > 0.0
    error = losses.std() / 400**0.5
    assert abs(-losses.mean() - bound.mean()) < 4.5 * error + 1e-3


@ppl_ext.objective
def Weighted(model, guide, weight: float):
    draw = ppl_ext.simulate(guide)
    return (ppl_ext.log_density(model, draw.values) - draw.log_density).weigh({"y": 1.0, "*": weight})


@pytest.mark.parametrize("weight", [0.2, 3.0])
def test_a_meta_prior_weighs_the_divergence(weight):
    """The optimum of log p(y | x) − w KL, worked out: precision 1/(w R²) + 1/Q²."""
    run = windowed(body, guide, FREE, 2, falling(3000, 0.05, 0.002), 3000, Weighted(weight))
    free = jax.tree.map(lambda a: float(a[-1]), run_through(run, Y[:1]).free)
    precision = R**-2 + weight * Q**-2
    np.testing.assert_allclose(free["at"], Y[0] * R**-2 / precision, atol=0.02)
    np.testing.assert_allclose(np.exp(free["log_scale"]), (weight / precision) ** 0.5, rtol=0.03)


STAY, MEANS = 0.9, jnp.array([-1.0, 1.0])


def switching(s, y):
    s = numpyro.sample("s", dist.Bernoulli(jnp.where(s == 1, STAY, 1 - STAY)))
    numpyro.sample("y", dist.Normal(MEANS[s], 0.8), obs=y)
    return s, None


def of_states(free, s, y):
    numpyro.sample("s", dist.Bernoulli(logits=free[s]))


def test_finite_states():
    weights = np.ones(2) * [0.0, 1.0]
    move = np.array([[STAY, 1 - STAY], [1 - STAY, STAY]])
    for y in Y:
        weights = weights @ move * np.exp(dist.Normal(MEANS, 0.8).log_prob(y))
    run = windowed(switching, of_states, jnp.zeros(2), 5, falling(2400, 0.1, 0.1), 600, ELBO(16))
    losses = np.asarray(run_through(run, Y, jnp.array(1)).losses)
    np.testing.assert_allclose(-losses[-100:].mean(), np.log(weights.sum()), atol=0.02)


def test_the_result_says_what_it_is(whole):
    run, state = whole
    found = run.result(state)
    assert "steps 1 to 4 of 4, 10 draws" in found.summary() and found.verdict().level == "unknown"
    report = ppl_ext.to_arviz(found)
    assert report.posterior["x"].dims == ("chain", "draw", "time")
    slow = replace(found, losses=np.linspace(9.0, 7.0, 100))
    assert slow.verdict().level == "doubtful" and "raise num_steps" in str(slow.verdict())
    odd = replace(found, losses=np.where(np.arange(400) == 3, np.nan, found.losses))
    assert "1 gradient steps" in str(odd.verdict())


def test_one_compilation_for_the_stream():
    runs = []

    def counted(x, y):
        runs.append(1)
        return body(x, y)

    run = windowed(counted, guide, FREE, 2, optax.adam(0.01), 2)
    state = run.step(run.init(jax.random.PRNGKey(0), ZERO, 0.0), 0.1)
    before = len(runs)
    for y in (0.2, np.float32(0.3), jnp.array(0.4)):
        state = run.step(state, y)
    assert len(runs) == before and int(state.time) == 4


def test_trees_of_data_and_carries():
    def two(carry, x):
        z = numpyro.sample("z", dist.Normal(carry["z"], 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(z, x["noise"]).to_event(1), obs=x["y"])
        return {"z": z, "n": carry["n"] + 1}, None

    def of_two(free, carry, x):
        numpyro.sample("z", dist.Normal(free[0], jnp.exp(free[1])).to_event(1))

    run = windowed(two, of_two, (jnp.zeros(2), jnp.zeros(2)), 3, optax.adam(0.01), 4, num_particles=2)
    x = {"y": jnp.ones(2), "noise": 0.5}
    state = run.init(jax.random.key(0), {"z": jnp.zeros(2), "n": 0}, x)
    for _ in range(4):
        state = run.step(state, x)
    assert state.before["n"].tolist() == [1, 1] and run.result(state).carry["n"].tolist() == [4, 4]
    frozen = windowed(two, of_two, (jnp.zeros(2), jnp.zeros(2)), 3, optax.set_to_zero(), 4)
    same = run_through(frozen, [x] * 2, {"z": jnp.zeros(2), "n": 0})
    np.testing.assert_array_equal(same.free[0], np.zeros((3, 2)))


def test_moments_of_the_optimiser_stay_with_their_steps():
    """How often each step's parameters were updated, counted by an optimiser that does nothing else."""
    counting = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda slopes, counts, _: (
            jax.tree.map(jnp.zeros_like, slopes),
            jax.tree.map(lambda c: c + 1, counts),
        ),
    )
    state = run_through(windowed(body, guide, FREE, 3, counting, 2), Y)
    np.testing.assert_array_equal(state.moments["at"], [6.0, 4.0, 2.0])


def test_a_step_that_is_not_finite_is_left_out():
    run = windowed(body, guide, FREE, 1, optax.adam(0.05), 20)
    state = run.step(run.init(jax.random.key(0), ZERO, 0.0), jnp.nan)
    with pytest.raises(NonFiniteError, match=r"at step 1 .*NaN"):
        run.result(state)
    state = run.step(state, 0.5)
    assert np.isfinite(run.result(state).draws["x"]).all()


BAD = {
    "window": ({"window": 0}, ArgumentError, "windowed: window must be a positive"),
    "num_steps": ({"num_steps": 1.5}, ArgumentError, "num_steps"),
    "optim": ({"optim": 0.1}, ArgumentTypeError, "optimiser of optax"),
    "objective": ({"objective": ELBO}, ArgumentTypeError, "must be an instance"),
    "guide": ({"guide": 3}, ArgumentTypeError, "windowed: guide must be a function"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    more, error, words = BAD[name]
    given = {
        "body": body,
        "guide": guide,
        "free": FREE,
        "window": 2,
        "optim": optax.adam(0.1),
        "num_steps": 2,
    }
    with pytest.raises(error, match=words):
        windowed(**(given | more))


@pytest.mark.parametrize("which", ["free", "carry"])
def test_a_start_that_is_not_finite(which):
    free = FREE | {"at": jnp.array(jnp.nan)} if which == "free" else FREE
    run = windowed(body, guide, free, 2, optax.adam(0.1), 2)
    with pytest.raises(ArgumentError, match=f"windowed: {which} holds numbers that are not finite"):
        run.init(jax.random.key(0), ZERO + (jnp.inf if which == "carry" else 0.0), 0.0)


def other(free, x, y):
    numpyro.sample("z", dist.Normal(free["at"], 1.0))


def wide(free, x, y):
    numpyro.sample("x", dist.Normal(free["at"] * jnp.ones(2), 1.0))


def grown(x, y):
    return body(x, y)[0] * jnp.ones(2), None


def bare(x, y):
    return body(x, y)[0]


def taken(x, y):
    return numpyro.sample("past", dist.Normal(x, 1.0)), None


def of_taken(free, x, y):
    numpyro.sample("past", dist.Normal(free["at"], 1.0))


def learning(free, x, y):
    numpyro.sample("x", dist.Normal(numpyro.param("at", 0.0), 1.0))


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ((body, other), r"latent sites \{'x': \(\)\}.* guide \{'z'"),
        ((body, wide), "must be the same"),
        ((grown, guide), "turns the carry"),
        ((bare, guide), r"return \(carry, output\)"),
        ((taken, of_taken), "rename site 'past'"),
        ((body, learning), "'at' is a param site"),
    ],
)
def test_programs_that_do_not_fit(programs, words):
    run = windowed(*programs, FREE, 2, optax.adam(0.1), 2)
    with pytest.raises(ModelError, match=words):
        run.init(jax.random.key(0), ZERO, 0.0)


def test_bad_states_and_data():
    run = windowed(body, guide, FREE, 2, optax.adam(0.1), 2)
    with pytest.raises(ArgumentTypeError, match="rng_key"):
        run.init(0, ZERO, 0.0)
    state = run.init(jax.random.key(0), ZERO, 0.0)
    with pytest.raises(ArgumentError, match="nothing was observed"):
        run.result(state)
    with pytest.raises(ArgumentTypeError, match="state must be what init"):
        run.step(None, 0.0)
    with pytest.raises(ArgumentError, match=r"float32\[\].*now has float32\[2\]"):
        run.step(state, jnp.zeros(2))
    of_counts = run.init(jax.random.key(0), ZERO, 0)
    with pytest.raises(ArgumentError, match="began with data of type"):  # and would be cut off
        run.step(of_counts, 0.5)
    with pytest.raises(ArgumentError, match="began with data of type"):
        run.step(state, (0.5, 0.5))


LEVEL = np.zeros(1)


def reading_level(x, y):
    x = numpyro.sample("x", dist.Normal(PHI * x + LEVEL[0], Q))
    numpyro.sample("y", dist.Normal(x, R), obs=y)
    return x, None


def test_what_is_read_from_outside_is_that_of_the_stream():
    run = windowed(reading_level, guide, FREE, 1, optax.adam(0.1), 50)
    try:
        low = run.step(run.init(jax.random.key(0), ZERO, 0.0), 0.0)
        LEVEL[0] = 5.0
        high = run.step(run.init(jax.random.key(0), ZERO, 0.0), 0.0)
        assert float(high.free["at"][0]) > float(low.free["at"][0]) + 0.5
        with pytest.raises(ModelError, match="LEVEL.*has changed since the stream began"):
            run.result(low)
    finally:
        LEVEL[0] = 0.0
