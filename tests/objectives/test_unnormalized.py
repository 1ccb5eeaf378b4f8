"""Unnormalised sites: gradients against closed forms and quadrature, within 4.5 standard errors of 4,000
replicates with fixed keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI

from ppl_ext import log_density
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, NCE, CompositionalNLL, constrain, unnormalized
from tests.oracles import assert_unbiased, quick_jit

KEY = jax.random.key(0)
X = jnp.array([-1.2, 0.3, 0.8, 1.5, -0.4, 0.9])
NOISE = dist.Normal(0.0, 2.0)


def model(x, subsample=None, scale=1.0):
    """exp(−a x²/2), whose constant is √(2π/a)."""
    a = numpyro.param("a", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("rows", 6, subsample_size=subsample) as rows, numpyro.handlers.scale(scale=scale):
        unnormalized("x", lambda x: -a * x**2 / 2, NOISE, obs=x[rows])


def guide(x, **how):
    with numpyro.plate("rows", 6, subsample_size=how.get("subsample")):
        pass


A = 0.7
LOG_Z = float(0.5 * np.log(2 * np.pi / A))
STATE = {
    "log_sum": jnp.asarray(LOG_Z + 0.2),
    "share": jnp.ones(()),
    "log_normaliser": 0.0,
    "ess": 0.0,
    "sum_ess": 16.0,
}


def of_composition(beta, **how):
    """Loss and slope of a step that begins with a constant that is wrong by 0.2 nats."""

    def one(key, params):
        given = params | {"x_normaliser": jax.tree.map(jnp.asarray, STATE)}
        return CompositionalNLL(beta=beta, num_noise=16).loss(key, given, model, guide, X, **how)

    run = jax.vmap(jax.value_and_grad(one, argnums=1), in_axes=(0, None))
    return quick_jit(run)(jax.random.split(KEY, 4_000), {"a": jnp.asarray(A)})


def exact_composition(a, log_u, scale=1.0):
    """With β next to 0, u stays: minus log p̃, plus N log u, and N Z'/u for the slope."""
    squares = float((X**2).sum())
    value = scale * (a * squares / 2 + 6 * log_u)
    slope = scale * (squares / 2 - 6 * np.exp(0.5 * np.log(2 * np.pi / a) - log_u) / (2 * a))
    return jnp.asarray(value), {"a": jnp.asarray(slope)}


@pytest.mark.parametrize("how", [{}, {"subsample": 3}, {"scale": 2.0}], ids=str)
def test_the_composition_is_unbiased_at_the_constant_as_it_stands(how):
    samples, scale = of_composition(1e-6, **how), how.get("scale", 1.0)
    if not how.get("subsample"):  # the value has no noise of its own
        np.testing.assert_allclose(samples[0], exact_composition(A, LOG_Z + 0.2, scale)[0], rtol=1e-4)
    slopes = samples[1]
    assert_unbiased(slopes, exact_composition(A, LOG_Z + 0.2, scale)[1])
    for wrong in (exact_composition(A, LOG_Z, scale), exact_composition(A, LOG_Z + 0.4, scale)):
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_unbiased(slopes, wrong[1])


def test_the_constant_moves_by_beta_and_the_noise_tells_how_much_of_it_counts():
    """One step by hand: (1 − β) u + β ĝ, with the draws' mean recovered from a step with β = 1."""
    given = {"a": jnp.asarray(A), "x_normaliser": jax.tree.map(jnp.asarray, STATE)}

    def after(beta):
        of = CompositionalNLL(beta=beta, num_noise=16)
        return of.loss_with_mutable_state(KEY, given, model, guide, X)["mutable_state"]["x_normaliser"]

    mean = np.exp(float(after(1.0)["log_normaliser"]))
    for beta in (0.1, 0.5):
        moved = np.log((1 - beta) * np.exp(LOG_Z + 0.2) + beta * mean)
        np.testing.assert_allclose(after(beta)["log_normaliser"], moved, rtol=1e-5)
    assert 1.0 < float(after(0.1)["ess"]) < 16.0
    fresh = CompositionalNLL(beta=0.1, num_noise=16)
    started = {"a": jnp.asarray(A)} | fresh.initial_state(KEY, {"a": jnp.asarray(A)}, model, guide, X)
    first = fresh.loss_with_mutable_state(KEY, started, model, guide, X)["mutable_state"]["x_normaliser"]
    np.testing.assert_allclose(np.exp(first["log_normaliser"]), mean, rtol=1e-5)  # and no zero mixed in


def exact_contrast(a, c, ratio):
    """By quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    noise, weights = jnp.asarray(2.0 * nodes), jnp.asarray(weights / weights.sum())

    def odds(x):
        return -a * x**2 / 2 - c - NOISE.log_prob(x) - jnp.log(ratio)

    of_noise = 6 * ratio * (weights * jax.nn.log_sigmoid(-odds(noise))).sum()
    return -jax.nn.log_sigmoid(odds(X)).sum() - of_noise


@pytest.mark.parametrize(
    ("ratio", "how"), [(1.0, {}), (3.0, {}), (1.0, {"subsample": 3}), (1.0, {"scale": 2.0})], ids=str
)
def test_contrast_with_noise_is_unbiased(ratio, how):
    def one(key, params):
        return NCE(ratio=ratio, num_noise=16).loss(key, params, own_constant, guide, X, **how)

    at = {"a": jnp.asarray(A), "c": jnp.asarray(0.5)}
    run = jax.vmap(jax.value_and_grad(one, argnums=1), in_axes=(0, None))
    samples = quick_jit(run)(jax.random.split(KEY, 4_000), at)
    weight = how.get("scale", 1.0)
    exact = jax.value_and_grad(lambda p, ratio: weight * exact_contrast(p["a"], p["c"], ratio))
    assert_unbiased(samples, exact(at, ratio))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(samples, exact(at, 1.3 * ratio))


def own_constant(x, subsample=None, scale=1.0):
    a, c = numpyro.param("a", 1.0), numpyro.param("c", 0.0)
    with numpyro.plate("rows", 6, subsample_size=subsample) as rows, numpyro.handlers.scale(scale=scale):
        unnormalized("x", lambda x: -a * x**2 / 2 - c, NOISE, obs=x[rows])


@pytest.mark.parametrize("subsample", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_a_fit_by_contrast_finds_parameter_and_constant(subsample):
    """Where the noise's part is known, its maximum; the last steps' noise moves both by some percent."""

    def slope(p):
        return jax.grad(lambda p: exact_contrast(p[0], p[1], 1.0))(p)

    best = jnp.array([1.0, 0.9])
    for _ in range(20):
        best = best - jnp.linalg.solve(jax.jacobian(slope)(best), slope(best))
    optim = optax.adam(optax.cosine_decay_schedule(0.03, 1500))
    run = fit(
        KEY, own_constant, guide, NCE(num_noise=128), optim, 1500, X, subsample=subsample, progress_bar=False
    )
    np.testing.assert_allclose([run.params["a"][0], run.params["c"][0]], best, atol=0.06)


def test_a_report_takes_the_constant_that_was_found():
    """Beside a latent of each row, whose law is given: the pointwise likelihoods are those of the density."""

    def known(x, log_normaliser, subsample=None):
        with numpyro.plate("rows", 6, subsample_size=subsample) as rows:
            numpyro.sample("z", dist.Normal(0.0, 1.0))
            law = lambda x: -A * x**2 / 2  # noqa: E731
            unnormalized("x", law, NOISE, obs=x[rows], log_normaliser=log_normaliser)

    def of_known(x, log_normaliser, subsample=None):
        with numpyro.plate("rows", 6, subsample_size=subsample):
            numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    for subsample in (None, 3):
        args = KEY, known, of_known, ELBO(), optax.sgd(0.0), 1, X, LOG_Z
        report = fit(*args, subsample=subsample, progress_bar=False).to_arviz(num_samples=5)
        exact = dist.Normal(0.0, A**-0.5).log_prob(X)
        found = report.log_likelihood["x"].values
        np.testing.assert_allclose(found, np.broadcast_to(exact, (1, 5, 6)), rtol=1e-5)


# --- noise that does not cover the model


def far_model(x, mean=10.0):
    a = numpyro.param("a", 1.0)
    with numpyro.plate("rows", 6):
        unnormalized("x", lambda x: -a * (x - mean) ** 2 / 2, dist.Normal(0.0, 1.0), obs=x)


def far(objective, num_steps=40, **options):
    return fit(KEY, far_model, guide, objective, optax.sgd(0.0), num_steps, X, progress_bar=False, **options)


@pytest.mark.parametrize("inside", [lambda of: of, lambda of: constrain(of, _zero, at_most=1.0)])
def test_noise_that_does_not_cover_the_model_is_refused_by_its_site(inside):
    """exp(10 x) under draws of N(0, 1): one of them is the sum. Refused once some 1/β steps are known."""
    objective = inside(CompositionalNLL(beta=0.1, num_noise=32))
    with pytest.raises(NonFiniteError, match="draws of the noise of site 'x' .* wider, or nearer") as error:
        far(objective)
    assert "fewer than the 3 that least_ess asks for" in str(error.value)
    state = error.value.result.params["x_normaliser"]
    assert 1.0 <= state["sum_ess"][0] / state["share"][0] < 3.0
    assert int(np.isfinite(error.value.result.losses[0]).sum()) == 10  # 1 - 0.9^10 is above 1 - 1/e


def _zero(model, guide):
    return 0.0


@pytest.mark.parametrize(("least", "num_noise"), [(1.0, 32), (3.0, 2)])
def test_what_is_asked_of_the_noise_may_be_less(least, num_noise):
    run = far(CompositionalNLL(beta=0.1, num_noise=num_noise, least_ess=least))
    state = run.params["x_normaliser"]
    assert np.isfinite(run.losses).all() and state["sum_ess"][0] / state["share"][0] < 3.0


def test_how_many_draws_count_is_averaged_over_steps():
    of, params = CompositionalNLL(beta=0.25, num_noise=16), {"a": jnp.asarray(A)}
    params |= of.initial_state(KEY, params, model, guide, X)
    mean = share = 0.0
    for step in range(4):
        params |= of.loss_with_mutable_state(jax.random.key(step), params, model, guide, X)["mutable_state"]
        mean = 0.75 * mean + 0.25 * float(params["x_normaliser"]["ess"])
        share = 0.75 * share + 0.25
        np.testing.assert_allclose(params["x_normaliser"]["sum_ess"], mean, rtol=1e-5)
        np.testing.assert_allclose(params["x_normaliser"]["share"], share, rtol=1e-5)


def test_a_mask_hides_data_and_their_share_of_the_constant():
    def masked(x, seen):
        with numpyro.handlers.mask(mask=seen):
            model(x)

    params = {"a": jnp.asarray(A), "x_normaliser": jax.tree.map(jnp.asarray, STATE)}
    of = CompositionalNLL(beta=1e-6)
    seen = jnp.array([True, True, False, False, False, False])
    loss = of.loss(KEY, params, masked, lambda x, seen: None, X, seen)
    by_hand = A * float((X[:2] ** 2).sum()) / 2 + 2 * (LOG_Z + 0.2)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-4)


@pytest.mark.parametrize("subsample", [None, 3])
def test_a_fit_finds_the_likelihoods_maximum(subsample):
    """1 / mean x². The last steps' noise moves a by some percent."""
    loss, optim = (
        CompositionalNLL(beta=0.05, num_noise=128),
        optax.adam(optax.cosine_decay_schedule(0.03, 1500)),
    )
    run = fit(KEY, model, guide, loss, optim, 1500, X, subsample=subsample, num_chains=2, progress_bar=False)
    np.testing.assert_allclose(run.params["a"], 1 / float((X**2).mean()), rtol=0.06)
    log_z = 0.5 * np.log(2 * np.pi / np.asarray(run.params["a"]))
    np.testing.assert_allclose(run.params["x_normaliser"]["log_normaliser"], log_z, atol=0.06)
    state = SVI(model, loss.carried_by(guide, model), optim, loss).run(KEY, 3, X, progress_bar=False)
    assert np.isfinite(state.losses).all()


def test_with_its_constant_the_site_has_a_density():
    def known(x, b):
        with numpyro.plate("rows", 6):
            unnormalized("x", lambda x: -A * x**2 / 2, NOISE, obs=x, log_normaliser=LOG_Z)
        numpyro.sample("b", dist.Normal(0.0, 1.0), obs=b)

    exact = dist.Normal(0.0, A**-0.5).log_prob(X).sum() + dist.Normal(0.0, 1.0).log_prob(0.3)
    np.testing.assert_allclose(log_density(known, {}, X, 0.3).total, exact, rtol=1e-6)
    np.testing.assert_allclose(-ELBO().loss(KEY, {}, known, lambda x, b: None, X, 0.3), exact, rtol=1e-6)


def test_what_is_refused():
    for call, kind, message in (
        (
            lambda: unnormalized("x", 3.0, NOISE, obs=X),
            ArgumentTypeError,
            "'x': log_prob_fn must be a function",
        ),
        (
            lambda: unnormalized("x", jnp.sin, 3.0, obs=X),
            ArgumentTypeError,
            "'x': noise must be a distribution",
        ),
        (lambda: unnormalized("x", jnp.sin, NOISE.expand([6]), obs=X), ArgumentError, "law of one value"),
    ):
        with pytest.raises(kind, match=message):
            call()
    for loss in (CompositionalNLL(beta=0.0), CompositionalNLL(beta=1.5), NCE(ratio=0.0)):
        with pytest.raises(ArgumentError, match="must be"):
            loss.loss(KEY, {}, model, guide, X)
    with pytest.raises(ArgumentError, match="least_ess=.*at least 1"):
        CompositionalNLL(least_ess=0.5).loss(KEY, {}, model, guide, X)
    with pytest.raises(ModelError, match="needs its constant. Fit it with CompositionalNLL"):
        ELBO().loss(KEY, {}, model, guide, X)
    with pytest.raises(ModelError, match="NCE: the guide draws 'a', and one constant"):
        NCE().loss(KEY, {}, model, lambda x: numpyro.sample("a", dist.LogNormal(0.0, 1.0)), X)
    with pytest.raises(ModelError, match="the model has no unnormalized site"):
        NCE().loss(KEY, {}, lambda x: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=0.0), guide, X)
    with pytest.raises(ModelError, match="cannot be drawn"):
        numpyro.handlers.seed(lambda: unnormalized("x", jnp.sin, NOISE, obs=None), KEY)()
