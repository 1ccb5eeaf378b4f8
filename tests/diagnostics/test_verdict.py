"""The verdict: right on posteriors that are known, and never good from silence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoDelta, AutoNormal

from ppl_ext.algorithms import RandomWalk
from ppl_ext.diagnostics import Reason, judged, verdict
from ppl_ext.diagnostics.draws import Draws
from ppl_ext.diagnostics.verdicts.chains import (
    bulk_ess,
    r_hat,
    reason_of_divergences,
    reason_of_renewal,
    reasons_of_chains,
    spread_error,
)
from ppl_ext.diagnostics.verdicts.particles import reasons_of_particles
from ppl_ext.diagnostics.verdicts.stays import Ends, drift, reason_of_ends, reasons_of_ends
from ppl_ext.diagnostics.verdicts.weights import (
    moved,
    reason_of_shape,
    reason_of_weights,
    reasons_of_draws,
    reasons_of_fit,
)
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer import SMC, ParticleGibbs, fit
from ppl_ext.infer.smc.missed import reasons_of_moves
from ppl_ext.objectives import ELBO, ForwardKL
from ppl_ext.smoothing import smooth

KEY = jax.random.key(0)
STEADY = optax.adam(optax.cosine_decay_schedule(0.05, 600))
RNG = np.random.default_rng(0)


def level_of(reasons):
    return judged(reasons).level


# --- the rule


def test_silence_is_no_praise_and_the_worst_reason_counts():
    good, unknown, doubtful, bad = (Reason(level, level) for level in ("good", "unknown", "doubtful", "bad"))
    assert judged([]).level == "unknown" and judged([good]).level == "good"
    assert judged([good, unknown]).level == "unknown"
    assert judged([doubtful, unknown, good]).level == "doubtful"
    assert judged([good, bad, doubtful]).reasons == (bad, doubtful, good)
    assert str(judged([good, bad])) == "Verdict: bad.\n  bad: bad\n  good: good"
    assert "<pre>" in judged([good])._repr_html_()


def test_what_is_no_result_is_refused():
    with pytest.raises(ArgumentTypeError, match="verdict takes what this library returns.*got 3"):
        verdict(3)
    with pytest.raises(ArgumentError, match="no draws yet"):
        verdict(MCMC(NUTS(lambda: None), num_warmup=1, num_samples=1))


def test_an_option_that_it_does_not_take_is_refused_by_name():
    exact = smooth(walk, backward="exact").run(KEY, jnp.zeros(2))
    with pytest.raises(
        ArgumentError, match="that of a SmoothingResult has no option 'num_samples'; it takes none"
    ):
        verdict(exact, num_samples=10)
    with pytest.raises(ArgumentError, match="that of an MCMC has no option 'rng_key'"):
        verdict(MCMC(NUTS(wide), num_warmup=1, num_samples=1), rng_key=KEY)
    with pytest.raises(ArgumentTypeError, match="verdict takes what this library returns"):
        verdict(type(exact))


def test_an_object_of_ones_own():
    class Mine:
        def verdict(self):
            return judged([Reason("good", "by proof")])

    assert verdict(Mine()).level == "good"


# --- guides, against posteriors that are known


def weighed(mean, sd, num=4000, dim=1):
    """The reason for draws of Normal(mean, sd) in each coordinate where the posterior is Normal(0, 1)."""
    x = np.random.default_rng(1).normal(mean, sd, (num, dim))
    log_weights = (-(x**2) / 2 + ((x - mean) / sd) ** 2 / 2 + np.log(sd)).sum(1)
    return reason_of_weights(log_weights, {"x": x})


@pytest.mark.parametrize(
    ("mean", "sd", "level"),
    [
        (0.0, 1.0, "good"),
        (0.1, 1.05, "good"),
        (0.6, 1.0, "bad"),  # off by more than .3 standard deviations
        (0.0, 0.78, "good"),  # by less than 30 %
        (0.0, 1.6, "bad"),  # the spread is off by more than 30 %, though k is low: the guide is wider
        (0.0, 0.5, "bad"),
        (0.0, 0.2, "bad"),
        (6.0, 1.0, "bad"),
    ],
)
def test_a_guide_against_a_posterior_that_is_known(mean, sd, level):
    assert weighed(mean, sd).level == level, weighed(mean, sd)


def test_weights_move_means_and_spreads_by_what_they_are_off():
    x = np.random.default_rng(2).normal(0.5, 1.5, (20_000, 1))
    log_weights = (-(x**2) / 2 + ((x - 0.5) / 1.5) ** 2 / 2)[:, 0]
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    move = moved({"x": x, "still": np.zeros(20_000)}, np.log(weights), 1.0 / (weights**2).sum())
    assert move.site == "x" and move.sure
    np.testing.assert_allclose([move.shift, move.ratio], [0.5, 1.5], rtol=0.05)


def test_weights_that_say_nothing():
    assert weighed(0.0, 1.0, num=10).level in ("unknown", "doubtful")
    assert reason_of_weights(np.array([0.0, np.nan, 0.0]), {}).level == "bad"
    reason = reason_of_weights(np.array([0.0] * 99 + [-np.inf]), {})
    assert reason.level == "bad" and "1 of 100 draws have density zero" in reason.words


@pytest.mark.parametrize(
    ("k", "ess", "num_draws", "level", "words"),
    [
        (0.3, 900.0, 1000, "good", "move little"),
        (0.3, 100.0, 1000, "good", "few count"),
        (0.3, 40.0, 1000, "doubtful", "too few draws count"),
        (-np.inf, 1000.0, 1000, "good", "move little"),
        (0.6, 50.0, 100, "doubtful", "spreads may not be"),
        (0.69, 5000.0, 10_000, "good", ""),
        (0.9, 900.0, 1000, "doubtful", "try a richer guide"),
        (0.71, 988.0, 1000, "good", "nearly all draws count alike"),
        (1.1, 988.0, 1000, "bad", "misses much"),
        (np.inf, 1.0, 1000, "bad", "misses much"),
        (np.inf, 5.0, 10, "unknown", "draw more"),
    ],
)
def test_tails(k, ess, num_draws, level, words):
    reason = reason_of_shape(k, ess, num_draws)
    assert reason.level == level and words in reason.words


def test_points_are_named():
    x = RNG.normal(size=(1, 200))
    flat = Draws({"a": np.ones((1, 200))}, np.zeros((1, 200)), np.zeros((1, 200)), np.zeros((1, 200)), ("a",))
    assert reasons_of_draws(flat)[0].level == "unknown"
    found = reasons_of_draws(Draws({"a": x, "b": x}, x, x, 0.01 * x, ("a",)))[0]
    assert found.level == "good" and found.words.endswith("(given the point values of 'a')")


def test_a_point_is_no_good_fit():
    """Whatever weights say of all else, nothing is known around it."""
    x = RNG.normal(size=(2, 200))
    draws = Draws({"a": x, "b": x}, x, x, 0.01 * x, ("a",))
    found = reasons_of_fit(draws, np.zeros((2, 3)))
    assert judged(found).level == "unknown"
    assert any("the guide is a point at 'a', in whole or in part" in r.words for r in found)
    moved = reasons_of_fit(draws, np.zeros((2, 3)), lambda: [Reason("good", "chains stay")])
    assert judged(moved).level == "unknown"
    assert judged(reasons_of_fit(draws._replace(points=()), np.zeros((2, 3)))).level == "good"


def pair(y):
    """Coordinates whose correlation is .95: each is three times as wide as it is given the other."""
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.95], [0.95, 1.0]])))
    numpyro.sample("y", dist.Normal(x.sum(), 100.0), obs=y)


def wide(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fitted(model, guide, **options):
    return fit(KEY, model, guide(model), ELBO(), STEADY, 600, 1.0, progress_bar=False, **options)


def test_fits(capsys):
    good = fitted(wide, AutoNormal, num_chains=2)
    assert verdict(good).level == "good" and "restarts agree" in str(verdict(good))
    good.print_summary()
    assert capsys.readouterr().out.rstrip().endswith(str(good.verdict(num_samples=1000)))
    # Mean-field gives each coordinate the width that it has given the other: a third.
    found = verdict(fitted(pair, AutoNormal), num_samples=4000)
    assert found.level == "bad" and "'x'" in str(found)
    assert verdict(fitted(wide, AutoDelta)).level == "unknown"
    alone = verdict(fitted(wide, AutoNormal))
    assert alone.level == "unknown" and "one restart" in str(alone)


# --- short chains from draws


def ends(draws_mean, draws_sd, rho, num=1000, dim=1):
    """Draws of Normal(mean, sd), and chains from some of them, to Normal(0, 1) with a memory of rho."""
    rng = np.random.default_rng(3)
    drawn = rng.normal(draws_mean, draws_sd, (4, num, dim))
    begun, steps = drawn[:, : num // 4], []
    x = begun
    for _ in range(10):
        x = rho * begun + np.sqrt(1.0 - rho**2) * rng.normal(size=begun.shape)
        steps.append(x)
    return {"x": drawn}, Ends({"x": begun}, {"x": np.stack(steps, 2)})


@pytest.mark.parametrize(
    ("mean", "sd", "rho", "level"),
    [
        (0.0, 1.0, 0.0, "good"),
        (0.2, 0.8, 0.0, "good"),
        (0.2, 0.8, 0.5, "good"),
        (0.5, 1.0, 0.0, "bad"),
        (0.0, 0.6, 0.0, "bad"),
        (0.0, 1.45, 0.0, "bad"),
        (0.5, 1.0, 0.6, "bad"),  # which move by .2 alone, 40 % of their way
        (0.0, 0.5, 0.6, "bad"),
        (0.31, 1.0, 0.0, "doubtful"),
        (0.0, 1.0, 0.9, None),  # chains that stay near where they began have nothing to say
    ],
)
def test_chains_stay_where_the_posterior_is(mean, sd, rho, level):
    reason = reason_of_ends(*ends(mean, sd, rho))
    assert (reason and reason.level) == level, reason
    assert reason is None or "1000 short chains from the draws find the mean of 'x' off" in reason.words


def test_how_far_draws_are_off_is_told_before_chains_have_gone_all_the_way():
    values, found = ends(0.5, 0.6, 0.6, num=40_000)
    flat = values["x"].reshape(-1, 1)
    here = drift(flat, found.begun["x"].reshape(-1, 1), found.ended["x"].reshape(-1, 10, 1))
    np.testing.assert_allclose([here.shift[0], here.spread[0], here.left[0]], [0.5, 0.4, 0.6], atol=0.02)
    # the errors are those of independent repetitions
    shifts = np.random.default_rng(4).normal(size=(2, 300, 500, 1))
    found = [drift(b, b, e[:, None]) for b, e in zip(*shifts, strict=True)]
    np.testing.assert_allclose(found[0].shift_error, 500**-0.5, rtol=0.1)
    np.testing.assert_allclose(found[0].spread_error, 1000**-0.5, rtol=0.2)


def test_few_chains_leave_heavy_tails_open():
    x = np.random.default_rng(5).normal(size=(4, 60, 1))
    assert reason_of_ends({"x": x}, Ends({"x": x}, {"x": np.roll(x, 1, 1)[:, :, None]})).level == "good"
    x[0, 0] = 20.0  # most of the spread is of this one
    assert reason_of_ends({"x": x}, Ends({"x": x}, {"x": np.roll(x, 1, 1)[:, :, None]})) is None


def test_weights_that_count_are_believed_beside_the_chains():
    values, found = ends(0.0, 1.5, 0.0)
    stuck = Ends(found.begun, {"x": 1.5 * found.ended["x"]})  # chains that see nothing
    x = values["x"][..., 0]
    right = Draws(values, -(x**2) / 2, -(x**2) / 4.5, -(x**2) / 2 + x**2 / 4.5)
    assert [r.level for r in reasons_of_ends(right, stuck)] == ["good", "bad"]
    noise = 5.0 * np.random.default_rng(6).normal(size=x.shape)
    lost = right._replace(log_weights=right.log_weights + noise)  # few count
    assert [r.level for r in reasons_of_ends(lost, stuck)] == ["good"]
    assert reasons_of_ends(right, ends(0.0, 1.5, 0.95)[1]) == []


def chain_of(num):
    """Neighbours with a correlation of .3: independent draws of each are right within 10 %."""

    def model(y):
        at = jnp.arange(num)
        covariance = 0.3 ** jnp.abs(at[:, None] - at)
        x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(num), covariance))
        numpyro.deterministic("twice", 2.0 * x)
        numpyro.sample("y", dist.Normal(x[0], 10.0), obs=y)

    return model


def test_many_unknowns_that_are_right_are_no_false_alarm():
    result = fitted(chain_of(60), AutoNormal, num_chains=2)
    draws = result.sample(num_samples=1000)
    assert level_of(reasons_of_draws(draws)) == "doubtful"  # weights alone
    found = result.verdict()
    assert found.level == "good" and "short chains" in str(found)


def test_fits_whose_chains_cannot_move(monkeypatch):
    """A discrete site without a list of values: weights decide."""

    def counts(y):
        n = numpyro.sample("n", dist.Poisson(3.0))
        numpyro.sample("y", dist.Normal(n, 1.0), obs=y)

    def guide(y):
        numpyro.sample("n", dist.Poisson(numpyro.param("rate", 9.0, constraint=dist.constraints.positive)))

    result = fit(KEY, counts, guide, ForwardKL(8), optax.adam(1e-6), 3, 1.0, num_chains=2, progress_bar=False)
    assert reasons_of_moves(result, result.sample(num_samples=100)) == []
    assert verdict(result).level in ("doubtful", "bad") and "Pareto k" in str(verdict(result))


def test_restarts_that_found_different_modes_are_no_good():
    def two(y):
        x = numpyro.sample("x", dist.Normal(0.0, 5.0))
        numpyro.sample("y", dist.Normal(jnp.abs(x), 0.5), obs=4.0 * y)

    result = fit(
        jax.random.key(3),
        two,
        AutoNormal(two),
        ELBO(),
        optax.adam(0.05),
        600,
        1.0,
        num_chains=4,
        progress_bar=False,
    )
    found = verdict(result)
    assert found.level == "bad" and "disagree" in str(found)


# --- chains


def test_r_hat_and_ess_of_chains_that_are_known():
    same = RNG.normal(size=(4, 400, 2))
    assert (r_hat(same) < 1.01).all() and (bulk_ess(same) > 1000).all()
    scale = same * np.array([1, 1, 1, 4])[:, None, None]  # which plain R-hat does not see
    assert (r_hat(scale) > 1.1).all()
    heavy = RNG.standard_cauchy((4, 400))  # no variance: ranks do not mind
    assert r_hat(heavy) < 1.02
    slow = np.cumsum(RNG.normal(size=(4, 400)), axis=1)
    assert r_hat(slow) > 1.2 and bulk_ess(slow) < 25
    assert np.isnan(r_hat(np.ones((2, 40)))) and np.isnan(bulk_ess(np.ones((2, 40))))


def test_what_never_varies_by_its_nature_is_not_stuck():
    """The upper half of a Cholesky factor, beside numbers that move."""
    factor = np.tril(RNG.normal(size=(4, 200, 2, 2)))
    assert level_of(reasons_of_chains({"factor": factor})) == "good"
    factor[:, :, 0, 0] = np.arange(4.0)[:, None]
    found = judged(reasons_of_chains({"factor": factor}))
    assert found.level == "bad" and "'factor' never moved within any" in str(found)


@pytest.mark.parametrize(
    ("x", "level"),
    [
        (RNG.normal(size=(4, 200)), "good"),
        (RNG.normal(size=(1, 800)), "unknown"),
        (RNG.normal(size=(4, 200)) + np.array([0.0, 0.0, 0.0, 3.0])[:, None], "bad"),
        (RNG.normal(size=(4, 200)) + np.array([0.0, 0.0, 0.0, 0.9])[:, None], "doubtful"),
        (np.full((4, 200), np.nan), "bad"),
        (np.zeros((4, 200)), "bad"),
        (np.broadcast_to(np.arange(4.0)[:, None], (4, 200)), "bad"),
        (RNG.normal(size=(4, 4)), "unknown"),
    ],
)
def test_chains(x, level):
    assert level_of(reasons_of_chains({"x": x})) == level


def test_the_error_of_a_spread_is_what_it_is_over_many_runs():
    rng = np.random.default_rng(3)
    independent = rng.exponential(size=(2, 200, 400))  # 400 runs of 2 chains, side by side
    steps = rng.normal(size=(2, 400, 400))
    slow = np.zeros_like(steps)  # an autoregression, whose squares are worth fewer draws
    for t in range(1, 400):
        slow[:, t] = 0.8 * slow[:, t - 1] + steps[:, t]
    for x, tolerance in ((independent, 0.15), (slow[:, 50:], 0.25)):
        right = x.std((0, 1)).std() / x.std()
        np.testing.assert_allclose(np.median(spread_error(x)), right, rtol=tolerance)
    assert np.isnan(spread_error(np.ones((2, 20, 1)))).all()


def test_a_spread_that_a_few_draws_make_is_doubtful():
    """As in GARCH(1,1): R-hat and ESS are good, and most of the spread is in one draw of a hundred."""
    x = np.random.default_rng(4).normal(size=(4, 500))
    x[:, ::125] *= 40.0
    found = judged(reasons_of_chains({"alpha0": x, "beta": x**0 * 2.0}))
    assert found.level == "doubtful" and "long tail make the spread of 'alpha0'" in found.reasons[0].words
    assert all(r.level == "good" for r in found.reasons[1:])


def test_divergences():
    assert (
        reason_of_divergences(3, 2000).level == "good" and "3 of 2000" in reason_of_divergences(3, 2000).words
    )
    assert reason_of_divergences(30, 2000).level == "doubtful"


def test_mcmc():
    mcmc = MCMC(
        NUTS(wide),
        num_warmup=200,
        num_samples=200,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY, 1.0, extra_fields=("diverging", "energy"))
    assert verdict(mcmc).level == "good"

    def steep(y):
        scale = numpyro.sample("scale", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(scale)).expand([5]).to_event(1))

    funnel = MCMC(
        NUTS(steep),
        num_warmup=100,
        num_samples=200,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    funnel.run(KEY, 1.0, extra_fields=("diverging",))
    assert "transitions diverged" in str(verdict(funnel)) and verdict(funnel).level in ("doubtful", "bad")


# --- particles


@pytest.mark.parametrize(("num_steps", "level"), [(1, "bad"), (200, "good")])
def test_particles_of_a_random_walk_that_is_too_short(num_steps, level):
    """Each coordinate's posterior is Normal(1, .7); weights and acceptance look the same."""

    def many(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    moves = RandomWalk(num_steps, scale=2.38 / 30**0.5)
    result = SMC(many, 400, moves=moves, progress_bar=False).run(KEY, 2.0 * jnp.ones(30))
    off = np.abs(result.values["x"].mean(0) - 1.0).max() / 0.5**0.5
    assert (off > 0.3) == (level == "bad") and result.acceptance[-1] > 0.1
    found = verdict(result)
    assert found.level == level and "400 short chains" in str(found)


def test_effective_sample_sizes():
    assert level_of(reasons_of_particles(np.full(50, 90.0), 100)) == "good"
    assert level_of(reasons_of_particles(np.array([90.0, 5.0, 90.0]), 100)) == "doubtful"
    assert level_of(reasons_of_particles(np.array([90.0, 1.2, 90.0]), 100)) == "bad"
    assert level_of(reasons_of_particles(np.array([90.0, 0.0, np.nan]), 100)) == "bad"
    # each step is fine, and their product is not
    assert level_of(reasons_of_particles(np.full(4000, 30.0), 100)) == "bad"
    assert reasons_of_particles(np.zeros(0), 10) == []


def test_the_spread_of_the_log_evidence_is_about_right():
    """Importance weights of variance v over N particles at each of T independent steps."""
    num, steps, v = 200, 20, 0.8
    x = RNG.normal(size=(2000, steps, num)) * np.sqrt(v)
    log_evidence = np.log(np.exp(x - v / 2).mean(-1)).sum(-1)
    w = np.exp(x[0])
    ess = w.sum(-1) ** 2 / (w**2).sum(-1)
    words = reasons_of_particles(ess, num)[1].words
    np.testing.assert_allclose(float(words.rsplit(" ", 1)[1]), log_evidence.std(), rtol=0.25)


def walk(y):
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(0.9 * x_prev, 0.5))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def test_smoothers():
    y = jnp.asarray(RNG.normal(size=12), jnp.float32)
    functional = {"x": lambda t, x_prev, x: x}
    assert verdict(smooth(walk, functional, num_particles=200).run(KEY, y)).level == "good"
    assert verdict(smooth(walk, functional, backward="exact").run(KEY, y)).level == "good"
    short = smooth(walk, functional, num_particles=8, backward="path").run(KEY, y)
    assert verdict(short).level in ("doubtful", "bad") and "own paths meet" in str(verdict(short))
    lost = smooth(walk, functional, num_particles=20).run(KEY, y.at[5].set(1e4))
    assert verdict(lost).level == "bad"


def test_renewal():
    assert reason_of_renewal(np.array([0.5, 0.9])).level == "good"
    assert reason_of_renewal(np.array([0.05, 0.9])).level == "doubtful"
    stuck = reason_of_renewal(np.array([0.9, 0.0]))
    assert stuck.level == "bad" and "step 0" in stuck.words
    y = jnp.asarray(np.random.default_rng(1).normal(size=4), jnp.float32)
    mcmc = MCMC(ParticleGibbs(walk, num_particles=10), num_warmup=10, num_samples=300, progress_bar=False)
    mcmc.run(KEY, y, extra_fields=("renewed",))
    found = verdict(mcmc)
    assert found.level in ("unknown", "doubtful") and "the path was renewed" in str(found)
