"""``ARD``: a refresh is the conjugate update, the marginal a Student-t, and a fit settles where both say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import mask, scale, scope, seed, substitute, trace
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy import integrate, stats

import ppl_ext
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.priors import ARD, relevance

KEY = jax.random.key(0)
MEANS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)) * [2.0, 1.0, 0.1], jnp.float32)


def state_after(model, **before):
    """The precisions that one run of a model leaves."""
    values = {"z_precisions": before} if before else {}
    found = trace(substitute(seed(model, 0), data=values)).get_trace()
    [state] = [site["value"] for site in found.values() if site["type"] == "mutable"]
    return np.asarray(state["concentration"]), np.asarray(state["rate"])


def rows(weights=None, size=12, **options):
    """Precisions of a model of the rows alone, some of which may be hidden."""

    def model():
        with numpyro.plate("rows", len(MEANS), subsample_size=size), mask(mask=weights is None or weights):
            ARD("z", 3, encoded=MEANS[:size], step=1.0, **options)

    return model


# --- one refresh, against the conjugate update


def test_one_refresh_is_the_conjugate_update():
    a, b = state_after(rows(hyperprior=dist.Gamma(0.5, 0.2)))
    assert a == pytest.approx(0.5 + 12 / 2)
    np.testing.assert_allclose(b, 0.2 + np.square(MEANS).sum(0) / 2, rtol=1e-5)


def test_it_starts_from_the_hyperprior_whatever_was_before_and_moves_a_step_towards_it():
    def model():
        with numpyro.plate("rows", 12):
            ARD("z", 3, hyperprior=dist.Gamma(0.5, 0.2), encoded=MEANS, step=0.25)

    a, b = state_after(model, concentration=jnp.full(3, 4.0), rate=jnp.array([1.0, 2.0, 3.0]))
    assert a == pytest.approx(0.75 * 4.0 + 0.25 * 6.5)
    whole = 0.2 + np.square(MEANS).sum(0) / 2
    np.testing.assert_allclose(b, 0.75 * np.array([1.0, 2.0, 3.0]) + 0.25 * whole, rtol=1e-5)


def test_a_subsampled_plate_counts_its_rows_for_all():
    a, b = state_after(rows(size=4))
    assert a == pytest.approx(1 + 12 / 2)
    np.testing.assert_allclose(b, 1 + 3 * np.square(MEANS[:4]).sum(0) / 2, rtol=1e-5)


def test_a_scale_counts_rows_as_often_as_the_density_does():
    a, b = state_after(scale(rows(), 0.5))
    assert a == pytest.approx(1 + 12 / 4)
    np.testing.assert_allclose(b, 1 + np.square(MEANS).sum(0) / 4, rtol=1e-5)


def test_rows_that_a_mask_hides_do_not_count_whatever_they_hold():
    seen = np.arange(12) < 5

    def model():
        with numpyro.plate("rows", 12), mask(mask=jnp.asarray(seen)):
            ARD("z", 3, encoded=jnp.where(seen[:, None], MEANS, jnp.nan), step=1.0)

    a, b = state_after(model)
    assert a == pytest.approx(1 + 5 / 2)
    np.testing.assert_allclose(b, 1 + np.square(MEANS[:5]).sum(0) / 2, rtol=1e-5)


def test_without_a_plate_one_row_is_seen():
    a, b = state_after(lambda: ARD("z", 3, encoded=MEANS[0], step=1.0))
    assert a == pytest.approx(1.5)
    np.testing.assert_allclose(b, 1 + np.square(MEANS[0]) / 2, rtol=1e-5)


def test_two_plates_and_a_scope():
    def model():
        with numpyro.plate("columns", 4, dim=-1), numpyro.plate("rows", 3, dim=-2):
            ARD("z", 3, encoded=MEANS.reshape(3, 4, 3), step=1.0)

    a, b = state_after(scope(model, prefix="inner"))
    assert a == pytest.approx(1 + 12 / 2)
    np.testing.assert_allclose(b, 1 + np.square(MEANS).sum(0) / 2, rtol=1e-5)


# --- the law


def test_the_law_is_that_of_the_precisions_of_the_step_before():
    """Not of what this step's own values make of them, which would tie the rows to each other."""
    before = {"concentration": jnp.full(3, 3.0), "rate": jnp.array([1.5, 6.0, 0.3])}
    density = ppl_ext.log_density(substitute(rows(), data={"z_precisions": before}), {"z": MEANS}).total
    sd = np.sqrt(np.array([0.5, 2.0, 0.1]))
    assert float(density) == pytest.approx(stats.norm(0, sd).logpdf(MEANS).sum(), rel=1e-5)


def test_the_marginal_is_the_integral_over_precisions():
    before = {"concentration": jnp.full(3, 3.0), "rate": jnp.array([1.5, 6.0, 0.3])}
    model = substitute(rows(marginal=True), data={"z_precisions": before})
    density = ppl_ext.log_density(model, {"z": MEANS}).total

    def integrated(z, b):
        def weighed(alpha):  # Normal(0, alpha^-1/2) at z, Gamma(3, b) at alpha
            gamma = b**3 * alpha**2 / 2 * np.exp(-b * alpha)
            return np.sqrt(alpha / (2 * np.pi)) * np.exp(-alpha * z**2 / 2) * gamma

        return np.log(integrate.quad(weighed, 0, 60 / b, epsabs=1e-13, limit=200)[0])

    exact = sum(
        integrated(z, b) for b, z_l in zip([1.5, 6.0, 0.3], np.asarray(MEANS).T, strict=True) for z in z_l
    )
    assert float(density) == pytest.approx(exact, rel=1e-5)


# --- where a fit settles

Y = np.asarray(np.random.default_rng(1).normal(size=40) * 1.5, np.float32)


def settled(step, use_means, objective=None, size=40):
    """Data that are their latent and noise of variance 0.5; the guide is linear, and holds the posterior."""

    def model(y):
        with numpyro.plate("rows", 40, subsample_size=size):
            y = numpyro.subsample(y, event_dim=0)
            slope = numpyro.param("slope", 0.5)
            encoded = (slope * y)[:, None] if use_means else None
            z = ARD("z", 1, hyperprior=dist.Gamma(2.0, 3.0), encoded=encoded, step=step)
            numpyro.sample("y", dist.Normal(z[:, 0], 0.5**0.5), obs=y)

    def guide(y):
        with numpyro.plate("rows", 40, subsample_size=size):
            y = numpyro.subsample(y, event_dim=0)
            spread = numpyro.param("spread", 0.5, constraint=dist.constraints.positive)
            mean = numpyro.param("slope", 0.5) * y
            numpyro.sample("z", dist.Normal(mean[:, None], spread).to_event(1))

    optim = optax.adam(optax.cosine_decay_schedule(0.03, 3000))
    programs = model, guide, objective or ELBO(analytic_kl=True), optim, 3000
    return fit(KEY, *programs, Y, progress_bar=False)


def fixed_point(use_means):
    """The variance v = b/a that its own posterior of the latents refreshes to itself."""
    v = 1.0
    for _ in range(1000):
        k, rest = v / (v + 0.5), 0.0 if use_means else 40 * v * 0.5 / (v + 0.5)
        v = (3.0 + (k**2 * np.square(Y).sum() + rest) / 2) / (2.0 + 20)
    return v


@pytest.mark.parametrize("use_means", [True, False])
def test_a_fit_settles_at_the_fixed_point(use_means):
    """From draws the state averages some 200 sums of 40 squares: an error of 1 % of the variance, of which
    three are allowed; from means nothing is random but the slope's steps.
    """
    run = settled(0.01, use_means)
    found = run.params["z_precisions"]
    exact = fixed_point(use_means)
    assert abs(fixed_point(True) / fixed_point(False) - 1) > 0.2  # a rule for the other would be seen
    assert float(found["concentration"][0, 0]) == pytest.approx(22.0, rel=1e-4)
    assert float(found["rate"][0, 0] / found["concentration"][0, 0]) == pytest.approx(exact, rel=0.03)
    assert float(run.params["slope"][0]) == pytest.approx(exact / (exact + 0.5), rel=0.03)


def test_batches_settle_at_the_same_point():
    found = settled(0.005, True, size=10).params["z_precisions"]
    assert float(found["concentration"][0, 0]) == pytest.approx(22.0, rel=1e-4)
    assert float(found["rate"][0, 0] / found["concentration"][0, 0]) == pytest.approx(
        fixed_point(True), rel=0.06
    )


# --- with what there is


def linear(y, marginal=False):
    weights = numpyro.param("weights", lambda key: jax.random.normal(key, (2, 3)))
    with numpyro.plate("rows", len(y)):
        z = ARD("z", 2, marginal=marginal)
        numpyro.sample("y", dist.Normal(z @ weights, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize("marginal", [False, True])
def test_a_fit_is_read_in_arviz(marginal):
    model = partial(linear, marginal=marginal)
    guide = AutoNormal(model)
    run = fit(KEY, model, guide, IWELBO(4), optax.adam(0.03), 200, MEANS, num_chains=2, progress_bar=False)
    found = run.params["z_precisions"]
    assert found["concentration"].shape == (2, 2) and found["rate"].shape == (2, 2)
    data = run.to_arviz(num_samples=20)
    assert data.posterior["z"].shape == (2, 20, 12, 2)
    assert data.log_likelihood["y"].shape == (2, 20, 12)
    one = jax.tree.map(lambda x: x[0], run.params)
    prior = Predictive(model, num_samples=500, params=one)(KEY, MEANS)["z"]
    if not marginal:  # 6000 draws of each axis: a standard deviation to 0.9 %
        spread = np.sqrt(one["z_precisions"]["rate"] / one["z_precisions"]["concentration"])
        np.testing.assert_allclose(prior.std((0, 1)), spread, rtol=0.045)


def test_numpyros_own_svi_carries_it():
    svi = SVI(linear, AutoNormal(linear), optax.adam(0.03), Trace_ELBO())
    result = svi.run(KEY, 400, MEANS, progress_bar=False)
    found = result.state.mutable_state["z_precisions"]
    assert np.asarray(found["concentration"]) == pytest.approx(1 + 12 / 2, rel=1e-4)
    assert np.isfinite(found["rate"]).all()


def test_no_gradient_flows_back_through_the_precisions():
    def loss(mean):
        state = {"z_precisions": {"concentration": jnp.full(3, 2.0), "rate": mean**2}}

        def model():
            ARD("z", 3, encoded=mean)

        return ppl_ext.log_density(substitute(model, data=state), {"z": MEANS[0]}).total

    np.testing.assert_array_equal(jax.grad(loss)(MEANS[1]), 0.0)


# --- relevance


def test_relevance_of_a_linear_decoder_and_its_invariance():
    weights, stretch = MEANS[:3].T, jnp.array([10.0, 0.1, 1.0])
    precisions = {"concentration": jnp.full(3, 4.0), "rate": jnp.array([1.0, 2.0, 3.0])}
    found = relevance(lambda z: weights @ z, MEANS, precisions)
    exact = np.array([0.25, 0.5, 0.75]) * np.square(weights).sum(0)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    stretched = {"concentration": jnp.full(3, 4.0), "rate": precisions["rate"] * stretch**2}
    same = relevance(lambda z: (weights / stretch) @ z, MEANS * stretch, stretched)
    np.testing.assert_allclose(same, exact, rtol=1e-5)


def test_relevance_averages_over_points_and_takes_outputs_of_any_shape():
    precisions = {"concentration": jnp.full(3, 1.0), "rate": jnp.ones(3)}
    found = relevance(lambda z: jnp.outer(z**2, jnp.ones(5)), MEANS, precisions)
    np.testing.assert_allclose(found, 20 * np.square(MEANS).mean(0), rtol=1e-5)


# --- what is refused


def in_rows(**options):
    with numpyro.plate("rows", 12):
        ARD("z", **({"dim": 3} | options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "ARD 'z': dim"),
        ({"hyperprior": 1.0}, "ARD 'z': hyperprior must be a numpyro.distributions.Gamma"),
        ({"hyperprior": dist.Gamma(jnp.ones(2), 1.0)}, r"ARD 'z': hyperprior .* \(3,\), one law for each"),
        ({"step": 1.5}, "ARD 'z': step must be above 0 and at most 1"),
        ({"step": 0.0}, "ARD 'z': step must be above 0"),
        ({"step": float("nan")}, "ARD 'z': step"),
        ({"step": "slow"}, "ARD 'z': step"),
        ({"marginal": 1}, "ARD 'z': marginal"),
        ({"encoded": MEANS[:, :2]}, r"ARD 'z': encoded .* \(12, 3\).* within the plate"),
        ({"encoded": MEANS[:4]}, r"ARD 'z': encoded .* \(12, 3\)"),
    ],
)
def test_what_is_wrong_is_told_by_the_site(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        seed(in_rows, 0)(**options)


def test_kept_precisions_of_other_axes_are_refused():
    state = {"concentration": jnp.ones(5), "rate": jnp.ones(5)}
    with pytest.raises(ValueError, match="ARD 'z': dim is 3, and .* of 5 axes. Give the site another name"):
        seed(substitute(in_rows, data={"z_precisions": state}), 0)()


def test_relevance_wants_one_chain_and_points():
    good = {"concentration": jnp.full(3, 1.0), "rate": jnp.ones(3)}
    with pytest.raises(ValueError, match="take one chain"):
        relevance(lambda z: z, MEANS, jax.tree.map(lambda x: x[None], good))
    with pytest.raises(ValueError, match=r"points \(n, 3\)"):
        relevance(lambda z: z, MEANS[0], good)
