"""Sites whose prior is a score: their density and draws, what takes them, and what is refused."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import mask, scale
from numpyro.infer import MCMC, NUTS, SVI

from ppl_ext import log_density, simulate
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.scores import GaussianScore, MixtureScore, ScoreKL, ScoreLaw, VariancePreserving, score_prior
from ppl_ext.scores.density import noisy_log_density

PRIOR = GaussianScore(jnp.array([0.3, -0.2]), jnp.array([[0.6, 0.2], [0.2, 0.4]]))
MIXTURE = MixtureScore(
    jnp.array([0.3, 0.7]),
    jnp.array([[-0.8, 0.5], [0.6, -0.3]]),
    jnp.stack([jnp.diag(jnp.array([0.2, 0.1])), 0.3 * jnp.eye(2)]),
)
SCHEDULE = VariancePreserving()
Y = jnp.array([[0.5, 0.1], [-1.0, 0.4], [0.2, -0.7], [1.1, 0.9]])


def alone(score):
    """A score of which nothing else is known."""
    return lambda x, sigma: score(x, sigma)


# --- the schedule


def test_a_schedule_is_consistent():
    t = jnp.array([1e-4, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(SCHEDULE.alpha(t) ** 2 + SCHEDULE.sigma(t) ** 2, 1.0, rtol=1e-5)
    np.testing.assert_allclose(SCHEDULE.sigma(t) / SCHEDULE.alpha(t), SCHEDULE.ratio(t), rtol=1e-4)
    np.testing.assert_allclose(SCHEDULE.time(SCHEDULE.ratio(t)), t, rtol=1e-4)
    # dα/dt = −β α / 2
    slopes = jax.vmap(jax.grad(SCHEDULE.alpha))(t)
    np.testing.assert_allclose(slopes, -0.5 * SCHEDULE.beta(t) * SCHEDULE.alpha(t), rtol=1e-5)


def test_a_network_of_time_becomes_a_score():
    """The exact score of x_t = αx + σε, as a network would have it."""

    def network(x, t):
        a, s = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return jnp.linalg.solve(a**2 * PRIOR.covariance + s**2 * jnp.eye(2), a * PRIOR.loc - x)

    x = jnp.array([0.7, -1.3])
    for sigma in (0.1, 1.0, 9.0):
        np.testing.assert_allclose(SCHEDULE.score_of(network)(x, sigma), PRIOR(x, sigma), rtol=2e-3)


# --- the density


@pytest.mark.parametrize("score", [PRIOR, MIXTURE], ids=["Gaussian", "mixture"])
def test_the_flow_has_the_density_and_its_gradient_is_the_score(score):
    x = score.sample(jax.random.key(0), (5,))
    law = ScoreLaw(alone(score), 2)
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(law.log_prob)))(x)
    np.testing.assert_allclose(found, score.log_prob(x), atol=5e-3)
    np.testing.assert_allclose(slope, score(x, 0.0), atol=2e-2)
    np.testing.assert_allclose(law.log_prob(x[:1]), found[:1], rtol=1e-4)


def test_the_flow_draws_from_the_law():
    x = np.asarray(ScoreLaw(alone(MIXTURE), 2).sample(jax.random.key(0), (3000,)))
    plain = np.asarray(MIXTURE.sample(jax.random.key(1), (3000,)))
    for statistic in (np.cos, np.tanh, np.square):
        a, b = statistic(x), statistic(plain)
        assert (abs(a.mean(0) - b.mean(0)) < 4.5 * np.sqrt((a.var(0) + b.var(0)) / 3000)).all()


@pytest.mark.parametrize("num_levels", [1, 8])
def test_the_noisy_density_is_unbiased(num_levels):
    x, keys = jnp.array([0.4, 0.1]), jax.random.split(jax.random.key(0), 20_000)
    each = jax.vmap(
        jax.value_and_grad(lambda x, key: noisy_log_density(alone(MIXTURE), SCHEDULE, x, key, num_levels)),
        (None, 0),
    )
    values, gradients = map(np.asarray, jax.jit(each)(x, keys))
    assert abs(values.mean() - MIXTURE.log_prob(x)) < 4.5 * values.std() / len(keys) ** 0.5
    assert values.std() / len(keys) ** 0.5 < 0.05
    np.testing.assert_allclose(gradients[0], MIXTURE(x, 0.0), atol=1e-3)  # the score, without noise


# --- under objectives


def rows(score, subsample=None):
    def model(y):
        with numpyro.plate("rows", len(y), subsample_size=subsample) as index:
            x = score_prior("x", score, dim=2)
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y[index])

    def guide(y):
        loc, spread = numpyro.param("loc", LOC), numpyro.param("spread", SPREAD)
        with numpyro.plate("rows", len(y), subsample_size=subsample) as index:
            numpyro.sample("x", dist.Normal(loc[index], spread[index]).to_event(1))

    return model, guide


LOC = 0.5 * Y
SPREAD = jnp.full((4, 2), 0.4)
PARAMS = {"loc": LOC, "spread": SPREAD}


def exact_loss(loc=LOC, spread=SPREAD, weight=1.0):
    """Minus the evidence lower bound of :func:`rows`, with a Gaussian prior."""
    precision = jnp.linalg.inv(PRIOR.covariance)
    off = loc - PRIOR.loc[None]
    prior = -0.5 * (
        jnp.einsum("ni,ij,nj->", off, precision, off)
        + (spread**2 * jnp.diag(precision)[None]).sum()
        + 4 * jnp.linalg.slogdet(2 * jnp.pi * PRIOR.covariance)[1]
    )
    likelihood = -0.5 * (((Y - loc) ** 2 + spread**2) / 0.25 + jnp.log(2 * jnp.pi * 0.25)).sum()
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e * spread**2).sum()
    return -weight * (prior + likelihood + entropy)


def unbiased(loss, exact, num=1500, largest_error=1.0):
    """Value and gradient of a loss at PARAMS against an exact one."""
    keys = jax.random.split(jax.random.key(1), num)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss, 1), (0, None)))(keys, PARAMS)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: exact(**p)))(PARAMS)
    jax.tree.map(
        lambda g, e: np.testing.assert_array_less(
            abs(np.mean(g, 0) - e), 4.5 * np.std(g, 0) / num**0.5 + 1e-3
        ),
        {"value": values, **gradients},
        {"value": value, **gradient},
    )
    assert np.std(values) / num**0.5 < largest_error


@pytest.mark.parametrize("subsample", [None, 2])
def test_the_exact_objective_is_the_elbo_in_plates(subsample):
    model, guide = rows(alone(PRIOR), subsample)
    unbiased(lambda key, p: ScoreKL().loss(key, p, model, guide, Y), exact_loss)


def test_the_exact_objective_under_scale_and_mask():
    model, guide = rows(alone(PRIOR))
    unbiased(
        lambda key, p: ScoreKL(num_particles=2).loss(key, p, scale(model, 3.0), scale(guide, 3.0), Y),
        lambda **p: exact_loss(**p, weight=3.0),
    )
    masked, masked_guide = mask(model, mask=jnp.array(False)), mask(guide, mask=jnp.array(False))
    nothing = jax.jit(lambda p: ScoreKL().loss(jax.random.key(0), p, masked, masked_guide, Y))
    assert nothing(PARAMS) == 0.0


def test_other_objectives_take_the_density():
    model, guide = rows(alone(PRIOR))
    unbiased(lambda key, p: ELBO().loss(key, p, model, guide, Y), exact_loss, num=100)
    losses = jax.jit(lambda key: IWELBO(8).loss(key, PARAMS, model, guide, Y))
    tight = np.mean([losses(key) for key in jax.random.split(jax.random.key(0), 30)])
    marginal = dist.MultivariateNormal(PRIOR.loc, PRIOR.covariance + 0.25 * jnp.eye(2))
    evidence = marginal.log_prob(Y).sum()
    assert exact_loss() > tight > -evidence - 0.3


def test_the_score_has_its_own_parameters():
    """A prior whose mean is learned: the gradient by it is that of the expected log density."""

    def model(y):
        shift = numpyro.param("shift", jnp.zeros(2))
        score_prior("x", lambda x, sigma: PRIOR(x - shift, sigma), dim=2)

    def guide(y):
        numpyro.sample("x", dist.Normal(jnp.array([1.0, 1.0]), 0.3).to_event(1))

    keys = jax.random.split(jax.random.key(0), 3000)
    slopes = jax.jit(jax.vmap(jax.grad(lambda p, key: ScoreKL().loss(key, p, model, guide, Y)), (None, 0)))(
        {"shift": jnp.zeros(2)}, keys
    )["shift"]
    exact = -jnp.linalg.solve(PRIOR.covariance, jnp.ones(2) - PRIOR.loc)
    assert (abs(slopes.mean(0) - exact) < 4.5 * slopes.std(0) / 3000**0.5).all()
    assert (slopes.std(0) / 3000**0.5 < 0.3 * abs(exact)).all()


def test_a_fit_finds_the_posterior_and_reports_it():
    model, guide = rows(alone(PRIOR))
    optim = optax.adam(optax.cosine_decay_schedule(0.03, 600))
    objective = ScoreKL(num_particles=32)
    found = fit(jax.random.key(0), model, guide, objective, optim, 600, Y, progress_bar=False)
    precision = jnp.linalg.inv(PRIOR.covariance) + 4.0 * jnp.eye(2)
    mean = jnp.linalg.solve(precision, (jnp.linalg.solve(PRIOR.covariance, PRIOR.loc)[None] + 4.0 * Y).T).T
    np.testing.assert_allclose(found.params["loc"][0], mean, atol=0.1)
    np.testing.assert_allclose(
        abs(found.params["spread"][0]), jnp.broadcast_to(jnp.diag(precision) ** -0.5, (4, 2)), rtol=0.12
    )
    report = found.to_arviz(jax.random.key(1), num_samples=50)
    assert report.posterior["x"].shape[-2:] == (4, 2)
    assert az.summary(report).shape[0] == 8


def test_beside_another_site_under_numpyro_svi():
    def model(y):
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 0.3))
        x = score_prior("x", alone(MIXTURE), dim=2)
        numpyro.sample("y", dist.StudentT(5.0, x[0] * x[1], noise), obs=y)

    guide = numpyro.infer.autoguide.AutoNormal(model)
    for objective in (ScoreKL(), ScoreKL(weight="snr", num_steps=50, strength=0.2)):
        svi = SVI(model, objective.carried_by(guide, model), optax.adam(0.01), objective)
        run = svi.run(jax.random.key(0), 60, 0.4, progress_bar=False)
        assert np.isfinite(run.losses).all()


@pytest.mark.parametrize("score", [PRIOR, alone(PRIOR)], ids=["density", "score alone"])
def test_nuts_takes_it(score):
    def model(y):
        x = score_prior("x", score, dim=2, num_levels=20)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    sampler = MCMC(NUTS(model), num_warmup=150, num_samples=400, progress_bar=False)
    sampler.run(jax.random.key(0), Y[0])
    precision = jnp.linalg.inv(PRIOR.covariance) + 4.0 * jnp.eye(2)
    mean = jnp.linalg.solve(precision, jnp.linalg.solve(PRIOR.covariance, PRIOR.loc) + 4.0 * Y[0])
    draws = sampler.get_samples()["x"]
    error = jnp.sqrt(jnp.diag(jnp.linalg.inv(precision)) / 150)  # a third of the draws are effective
    assert (abs(draws.mean(0) - mean) < 4.5 * error).all()


# --- surrogates


def one_step(weight, x, step=None, **options):
    """The mean gradient of the loss by a point guide's location, and 4.5 standard errors."""

    def model():
        score_prior("x", alone(PRIOR), dim=2)

    def guide():
        numpyro.sample("x", dist.Normal(numpyro.param("loc", x), 1e-4).to_event(1))

    objective = ScoreKL(weight=weight, strength=0.7, **options)
    state = {"ScoreKL": {"step": jnp.array(options.get("num_steps", 0) // 4 if step is None else step)}}
    keys = jax.random.split(jax.random.key(0), 4000)
    slope = jax.grad(lambda loc, key: objective.loss(key, {"loc": loc} | state, model, guide))
    gradients = np.asarray(jax.jit(jax.vmap(slope, (None, 0)))(x, keys))
    return gradients.mean(0), 4.5 * gradients.std(0) / 4000**0.5


@pytest.mark.parametrize(("weight", "fn"), [("snr", lambda u: u), (jnp.sqrt, jnp.sqrt)])
def test_a_descending_surrogate_has_the_weight_of_its_level(weight, fn):
    """With a Gaussian prior the mean of the denoised point is that of the score at the point itself."""
    x = jnp.array([1.0, 0.4])
    found, error = one_step(weight, x, num_steps=101)
    u = SCHEDULE.ratio(SCHEDULE.start + (1 - SCHEDULE.start) * 0.75)
    np.testing.assert_array_less(abs(found + 0.7 * fn(u) * u * PRIOR(x, u)), error + 1e-4)


def test_a_random_surrogate_averages_over_time():
    x = jnp.array([1.0, 0.4])
    found, error = one_step("snr", x, order="random")
    u = SCHEDULE.ratio(SCHEDULE.start + (1 - SCHEDULE.start) * (jnp.arange(2000) + 0.5) / 2000)
    exact = -0.7 * jax.vmap(lambda u: u**2 * PRIOR(x, u))(u).mean(0)
    np.testing.assert_array_less(abs(found - exact), error + 1e-3)


def test_a_descent_counts_its_steps_and_stays_at_its_end():
    model, guide = rows(alone(PRIOR))
    objective = ScoreKL(weight="snr", num_steps=3)
    params = PARAMS | objective.initial_state(jax.random.key(0), PARAMS, model, guide, Y)
    for step in range(5):
        assert params["ScoreKL"]["step"] == step
        out = objective.loss_with_mutable_state(jax.random.key(step), params, model, guide, Y)
        params = params | out["mutable_state"]
    # at the least noise the prior has no weight
    found, _ = one_step("snr", LOC[0], num_steps=3, step=7)
    assert (abs(found) < 1e-3).all()


def test_variational_smoothing_takes_the_score_at_the_guides_spread():
    _, guide = rows(PRIOR)

    def model(y):
        with numpyro.plate("rows", len(y)):
            score_prior("x", lambda x, sigma: -x / (1 + sigma**2), dim=2)

    objective = ScoreKL(weight="variational", strength=0.7)
    keys = jax.random.split(jax.random.key(0), 3000)
    gradients = jax.jit(
        jax.vmap(jax.grad(lambda p, key: objective.loss(key, p, model, guide, Y)), (None, 0))
    )(PARAMS, keys)["loc"]
    error = 4.5 * np.std(gradients, 0) / 3000**0.5
    np.testing.assert_array_less(abs(gradients.mean(0) - 0.7 * LOC / (1 + 0.4**2)), error)


@pytest.mark.parametrize("how", [{"subsample": 2}, {"scale": 3.0}], ids=str)
@pytest.mark.parametrize("weight", ["snr", "variational"])
def test_surrogates_count_rows_as_plates_and_scales_say(weight, how):
    """The mean gradient by the locations: of a linear score that at the location, beside the likelihood's."""
    standard = lambda x, sigma: -x / (1 + sigma**2)  # noqa: E731
    model, guide = (scale(p, how.get("scale", 1.0)) for p in rows(standard, how.get("subsample")))
    descent = weight == "snr"
    objective = ScoreKL(weight=weight, strength=0.7, **({"num_steps": 101} if descent else {}))
    state = {"ScoreKL": {"step": jnp.array(25)}} if descent else {}
    keys = jax.random.split(jax.random.key(0), 3000)
    slope = jax.grad(lambda p, key: objective.loss(key, p | state, model, guide, Y))
    found = np.asarray(jax.jit(jax.vmap(slope, (None, 0)))(PARAMS, keys)["loc"])
    u = SCHEDULE.ratio(SCHEDULE.start + (1 - SCHEDULE.start) * 0.75) if descent else 0.4
    exact = 0.7 * (u**2 if descent else 1.0) * LOC / (1 + u**2) + (LOC - Y) / 0.25
    error = 4.5 * found.std(0) / 3000**0.5 + 1e-4
    np.testing.assert_array_less(abs(found.mean(0) - how.get("scale", 1.0) * exact), error)
    assert (error < 0.3 * how.get("scale", 1.0) * abs(exact).max()).all()


@pytest.mark.parametrize(
    "objective",
    [pytest.param(ELBO(), marks=pytest.mark.slow), IWELBO(4), ScoreKL(weight="snr", num_steps=3)],
    ids=repr,
)
def test_a_fit_in_a_subsampled_plate_is_reported(objective):
    model, guide = (scale(program, 2.0) for program in rows(PRIOR, 2))
    found = fit(jax.random.key(0), model, guide, objective, optax.sgd(1e-4), 3, Y, progress_bar=False)
    report = found.to_arviz(num_samples=5)
    assert report.posterior["x"].shape == (1, 5, 4, 2) and report.log_likelihood["y"].shape == (1, 5, 4)


def test_rows_have_noise_of_their_own():
    """Four equal rows: with one noise for all, the sum would vary sixteen times as one row does."""

    def model(num):
        with numpyro.plate("rows", num):
            score_prior("x", alone(MIXTURE), dim=2)

    def guide(num):
        with numpyro.plate("rows", num):
            numpyro.sample("x", dist.Delta(jnp.full((num, 2), 0.3), event_dim=1))

    keys = jax.random.split(jax.random.key(0), 2000)
    one, four = (
        np.var(jax.jit(jax.vmap(lambda key, n=n: ScoreKL().loss(key, {}, model, guide, n)))(keys))
        for n in (1, 4)
    )
    assert 3 < four / one < 5


# --- what is refused


def flat(y):
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": "signal"}, "'exact', 'snr', 'variational' or a function"),
        ({"order": "up"}, "'descending' or 'random'"),
        ({"order": "descending"}, "all levels at every step"),
        ({"weight": "variational", "order": "descending"}, "the guide's"),
        ({"strength": -1.0}, "strength"),
    ],
)
def test_options_without_a_meaning_are_refused(options, words):
    model, guide = rows(PRIOR)
    with pytest.raises(ArgumentError) as error:
        ScoreKL(**options).loss(jax.random.key(0), {}, model, guide, Y)
    assert words in str(error.value)


def test_models_that_it_does_not_serve_are_refused():
    model, guide = rows(PRIOR)
    with pytest.raises(ModelError, match="no score_prior site"):
        ScoreKL().loss(jax.random.key(0), {}, flat, flat, Y)

    with pytest.raises(ModelError, match="a level of noise for each coordinate"):
        ScoreKL(weight="variational").loss(jax.random.key(0), {}, model, guide, Y)

    def walk(y):
        def step(carry, y):
            return score_prior("x", PRIOR), None

        numpyro.contrib.control_flow.scan(step, jnp.zeros(2), y)

    def walk_guide(y):
        numpyro.sample("x", dist.Normal(jnp.zeros((4, 2)), 1.0).to_event(2))

    with pytest.raises(ModelError, match="'x' is inside a scan"):
        ScoreKL().loss(jax.random.key(0), {}, walk, walk_guide, Y)
    assert np.isfinite(ELBO().loss(jax.random.key(0), {}, walk, walk_guide, Y))

    def delta(y):
        with numpyro.plate("rows", 4):
            numpyro.sample(
                "x",
                dist.TransformedDistribution(
                    dist.Normal(jnp.zeros((4, 2)), 1.0).to_event(1), dist.transforms.ExpTransform()
                ),
            )

    with pytest.raises(ModelError, match="'x' tells no variance"):
        ScoreKL(weight="variational").loss(jax.random.key(0), {}, model, delta, Y)


class Turning(VariancePreserving):
    """Noise that grows, and shrinks from one half on."""

    def ratio(self, t):
        return 1.0 - abs(jnp.asarray(t) - 0.5)


class Steeper(VariancePreserving):
    """Noise of another shape that grows."""

    def ratio(self, t):
        return 100.0 * jnp.asarray(t) ** 2


def test_a_schedule_of_another_shape_is_taken_if_its_noise_grows():
    law = ScoreLaw(PRIOR, 2, Steeper())
    np.testing.assert_allclose(law.log_prob(Y), PRIOR.log_prob(Y), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: score_prior("x", alone(PRIOR)), ArgumentError, "score_prior 'x': dim=... must be given"),
        (lambda: score_prior("x", 3.0, dim=2), ArgumentTypeError, "score_prior 'x': score"),
        (lambda: score_prior("x", PRIOR, dim=3), ArgumentError, "'x': dim=3 was given for a score of 2"),
        (lambda: score_prior("x", PRIOR, dim=0), ArgumentError, "score_prior 'x': dim"),
        (
            lambda: score_prior("x", lambda x, sigma: x[:1], dim=2),
            ArgumentError,
            "'x': the score of a point of shape (2,) must have that shape, and has (1,)",
        ),
        (
            lambda: score_prior("x", alone(PRIOR), dim=3),
            ArgumentError,
            "score_prior 'x': the score cannot be asked at a point of shape (3,)",
        ),
        (
            lambda: score_prior("x", PRIOR, "vp"),
            ArgumentTypeError,
            "score_prior 'x': schedule must be a VariancePreserving()",
        ),
        (
            lambda: jax.make_jaxpr(lambda: score_prior("x", PRIOR, Turning()))(),
            ArgumentError,
            "score_prior 'x': the noise of schedule must grow with time, and ratio(t) does not from t = 0.5",
        ),
        (lambda: ScoreLaw(PRIOR, 2, Turning()), ArgumentError, "Make its rate beta(t) positive"),
        (lambda: ScoreLaw(PRIOR, 0), ArgumentError, "dim"),
        (lambda: ScoreLaw(PRIOR, 2, "vp"), ArgumentTypeError, "VariancePreserving()"),
        (lambda: VariancePreserving(beta_max=0.01), ArgumentError, "beta_max"),
        (lambda: VariancePreserving(start=2.0), ArgumentError, "start must be below 1"),
    ],
)
def test_bad_arguments_are_refused(make, error, words):
    with pytest.raises(error) as raised:
        make()
    assert words in str(raised.value)


def test_a_prior_draws():
    model, _ = rows(PRIOR)
    assert simulate(model, Y, rng_key=jax.random.key(0)).values["x"].shape == (4, 2)
    total = log_density(model, {"x": Y}, Y).by_site["x"]
    np.testing.assert_allclose(total, PRIOR.log_prob(Y).sum(), rtol=1e-5)
