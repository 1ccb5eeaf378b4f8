"""``collapse``: against closed forms of linear encoders whose laws are written down, none of them fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext.diagnostics import collapse
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.handlers import gradient
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

KEY = jax.random.key(0)
ROWS = 60


def white(columns, seed=0):
    """Columns with mean zero and the identity as covariance, exactly."""
    raw = np.random.default_rng(seed).normal(size=(ROWS, columns))
    return np.linalg.qr(raw - raw.mean(0))[0] * ROWS**0.5


Y = jnp.asarray(white(3) * np.array([2.0, 1.0, 0.5]), jnp.float32)
SLOPES, SPREADS = jnp.array([0.4, 0.05, 0.0]), jnp.array([0.5, 1.0, 1.0])


def model(y, noise=0.8, subsample=None):
    with numpyro.plate("rows", ROWS, subsample_size=subsample, dim=-1) as rows:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(z, noise).to_event(1), obs=y[rows])


def guide(y, noise=0.8, subsample=None):
    spread = numpyro.param("spread", SPREADS)
    with numpyro.plate("rows", ROWS, subsample_size=subsample, dim=-1) as rows:
        numpyro.sample("z", dist.Normal(y[rows] * SLOPES, spread).to_event(1))


def fitted(model, guide, *args, **kwargs):
    """A fit that moves nothing."""
    return fit(KEY, model, guide, ELBO(), optax.sgd(0.0), 1, *args, progress_bar=False, **kwargs)


SPREAD_OF_MEAN = np.array([0.4 * 2.0, 0.05 * 1.0, 0.0]) ** 2
NATS = 0.5 * (SPREAD_OF_MEAN + np.asarray(SPREADS) ** 2 - 1) - np.log(SPREADS)


@pytest.mark.parametrize("subsample", [None, 7])
def test_divergence_and_variance_of_the_mean_are_those_of_the_closed_form(subsample):
    """A minibatch is opened to the whole plate. 400 draws of 60 rows: standard errors below 0.006 nats."""
    found = collapse(fitted(model, guide, Y, subsample=subsample), num_samples=400)
    units = found.sites["z"]
    np.testing.assert_allclose(units.variance_of_mean, SPREAD_OF_MEAN, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(units.kl, NATS, atol=0.025)
    assert units.active.tolist() == [True, False, False] and found.observed == 1
    np.testing.assert_allclose(found.eigenvalues, [4.0, 1.0, 0.25], rtol=1e-5)
    assert found.predicted == 2 and found.level == pytest.approx(0.64)
    assert found.causes[0].startswith("z, optimisation: 2 units would pay, 1 are active")


def test_the_weight_and_the_noise_decide_what_pays():
    run = fitted(model, guide, Y)
    assert [collapse(run, num_samples=2, weights=b).predicted for b in (0.1, 1.0, 2.0, 10.0)] == [3, 2, 1, 0]
    quiet = fitted(model, guide, Y, 0.4)
    assert collapse(quiet, num_samples=2).predicted == 3
    assert collapse(run, num_samples=2, weights={"z": 2.0}).causes == (
        "z, noise: 1 of 3 directions of 'y' have more variance than 1.28, the noise times the weight.",
    )


def test_what_inputs_explain_leaves_no_work():
    x = np.asarray(Y[:, :1])
    found = collapse(fitted(model, guide, Y), num_samples=2, inputs=x)
    np.testing.assert_allclose(found.eigenvalues, [1.0, 0.25, 0.0], atol=1e-6)
    assert found.predicted == 1
    assert found.causes == (
        "z, inputs: 2 of 3 directions of 'y' have more variance than 0.64, the noise times the weight; of "
        "what the inputs leave, 1 have.",
    )


@pytest.mark.parametrize("around", [numpyro.handlers.scale, numpyro.handlers.mask])
def test_handlers_around_change_nothing(around):
    how = {"scale": 5.0} if around is numpyro.handlers.scale else {"mask": True}
    run = fitted(around(model, **how), around(gradient(guide, {"z": "reparam"}), **how), Y)
    np.testing.assert_allclose(collapse(run, num_samples=400).sites["z"].kl, NATS, atol=0.025)


def test_a_plate_of_units_is_none_of_data():
    """A plate that the data are not in counts units; one of theirs counts rows, of two as well."""

    def grid(y):
        with numpyro.plate("a", 4, dim=-2), numpyro.plate("b", 15, dim=-1):
            with numpyro.plate("units", 3, dim=-3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(jnp.moveaxis(z, 0, -1), 0.8).to_event(1), obs=y)

    def of_grid(y):
        with numpyro.plate("a", 4, dim=-2), numpyro.plate("b", 15, dim=-1):
            with numpyro.plate("units", 3, dim=-3):
                mean = jnp.moveaxis(y * SLOPES, -1, 0)
                numpyro.sample("z", dist.Normal(mean, SPREADS[:, None, None]))

    found = collapse(fitted(grid, of_grid, Y.reshape(4, 15, 3)), num_samples=400)
    np.testing.assert_allclose(found.sites["z"].variance_of_mean, SPREAD_OF_MEAN, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.sites["z"].kl, NATS, atol=0.025)
    assert found.predicted == 2


def test_a_law_that_does_not_factorise_has_one_divergence():
    def joint(y):
        with numpyro.plate("rows", ROWS):
            z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
            numpyro.sample("y", dist.Poisson(jnp.exp(z)).to_event(1), obs=y)

    def of_joint(y):
        with numpyro.plate("rows", ROWS):
            numpyro.sample("z", dist.MultivariateNormal(Y * SLOPES, jnp.diag(SPREADS**2)))

    found = collapse(fitted(joint, of_joint, jnp.ones((ROWS, 3))), num_samples=400)
    np.testing.assert_allclose(found.sites["z"].kl, [NATS.sum()], atol=0.025)
    np.testing.assert_allclose(found.sites["z"].variance_of_mean, SPREAD_OF_MEAN, rtol=1e-4, atol=1e-9)
    assert found.predicted is None and found.level is None and "unknown predicted" in str(found)


def test_noise_of_a_mean_that_is_drawn_does_not_make_a_unit_active():
    """The second level's mean follows the draw of the first: over 20 draws its variance is noise of 0.05."""

    def upper(y):
        with numpyro.plate("rows", ROWS):
            z_2 = numpyro.sample("z2", dist.Normal(0.0, 1.0))
            z_1 = numpyro.sample("z1", dist.Normal(z_2, 1.0))
            numpyro.sample("y", dist.Normal(z_1, 1.0), obs=y)

    def of_upper(y, learned=True):
        spread = numpyro.param("spread", 1.0) if learned else 1.0
        with numpyro.plate("rows", ROWS):
            z_1 = numpyro.sample("z1", dist.Normal(0.0 * y, spread))
            numpyro.sample("z2", dist.Normal(z_1, 0.5))

    run = fitted(upper, of_upper, Y[:, 0])
    found = collapse(run, num_samples=20)
    assert not found.sites["z2"].active[0] and found.sites["z2"].variance_of_mean[0] < 0.01
    assert [c.split(":")[0] for c in found.causes] == ["z1, optimisation", "z2, levels"]
    words = [c.split(":")[0] for c in collapse(run, num_samples=20, weights={"z1": 2.0}).causes]
    assert words == ["z1, optimisation", "z2, unbounded"]
    assert "z2, levels" in collapse(run, num_samples=20, weights={"z2": 2.0}).causes[-1]
    held = fitted(upper, lambda y: of_upper(y, learned=False), Y[:, 0])
    assert [c.split(":")[0] for c in collapse(held, num_samples=20).causes] == ["z1, optimisation"]


def test_what_collapse_refuses():
    run = fitted(model, guide, Y)
    with pytest.raises(ArgumentTypeError, match="must be the result of ppl_ext.infer.fit, got 3"):
        collapse(3)
    for options, message in (
        ({"weights": {"w": 1.0}}, "weights names 'w', and the latent sites are 'z'"),
        ({"weights": -1.0}, "the weight of 'z' must be a real number of at least 0"),
        ({"inputs": np.zeros((3, 1))}, "one row for each of the 60 data, got shape"),
        ({"threshold": -1.0}, "threshold must be"),
        ({"num_samples": 0}, "num_samples must be a positive integer"),
    ):
        with pytest.raises(ArgumentError, match=message):
            collapse(run, **options)

    def global_model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", ROWS):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match="no latent site of the guide shares a plate .* 'y'"):
        collapse(fitted(global_model, lambda y: numpyro.sample("mu", dist.Normal(0.0, 1.0)), Y[:, 0]))

    def two(y):
        model(y)
        with numpyro.plate("rows", ROWS):
            numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=y)

    with pytest.raises(ModelError, match="must observe one site, and it observes 'y', 'x'"):
        collapse(fitted(two, guide, Y))
