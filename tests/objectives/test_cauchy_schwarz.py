"""The Cauchy-Schwarz divergence: against quadrature, closed forms and sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import mask, scale

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import CauchySchwarz, cs_divergence, cs_mutual_information

KEY = jax.random.key(0)


def mixture(weights, means, scales):
    return dist.MixtureSameFamily(
        dist.Categorical(jnp.array(weights)), dist.Normal(jnp.array(means), jnp.array(scales))
    )


P, Q = (
    mixture([0.3, 0.7], [-1.0, 1.5], [0.5, 0.8]),
    mixture([0.5, 0.2, 0.3], [-0.5, 0.4, 2.0], [1.0, 0.3, 0.6]),
)


def by_quadrature(p, q, grid, cell):
    a, b = (np.exp(np.asarray(law.log_prob(grid), np.float64)) for law in (p, q))
    return -2 * np.log((a * b).sum() * cell) + np.log((a**2).sum() * cell) + np.log((b**2).sum() * cell)


LINE = np.linspace(-12.0, 12.0, 20_001)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (P, Q),
        (dist.Normal(0.3, 0.7), Q),
        (dist.Normal(0.3, 0.7), dist.Normal(-1.0, 1.4)),
        (P, dist.Normal(0.0, 2.0).mask(True)),
    ],
)
def test_it_is_that_of_quadrature(p, q):
    expected = by_quadrature(p, q, LINE, LINE[1] - LINE[0])
    np.testing.assert_allclose(cs_divergence(p, q), expected, rtol=2e-5)
    np.testing.assert_allclose(cs_divergence(q, p), expected, rtol=2e-5)
    assert cs_divergence(p, p) < 1e-6


def test_it_is_that_of_quadrature_in_the_plane():
    """Correlated against independent coordinates, and mixtures of both kinds."""
    covariance = jnp.array([[1.0, 0.6], [0.6, 0.5]])
    p = dist.MultivariateNormal(jnp.array([0.2, -0.3]), covariance)
    q = dist.Normal(jnp.array([0.0, 0.5]), jnp.array([0.7, 1.1])).to_event(1)
    many = dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.4, 0.6])),
        dist.MultivariateNormal(jnp.array([[0.0, 1.0], [1.0, 0.0]]), covariance),
    )
    axis = np.linspace(-8.0, 8.0, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    for other in (q, many):
        expected = by_quadrature(p, other, grid, (axis[1] - axis[0]) ** 2)
        np.testing.assert_allclose(cs_divergence(p, other), expected, rtol=2e-5)


def test_batches_are_laws_of_their_own():
    p = dist.Normal(jnp.array([0.0, 1.0, 2.0])[:, None], jnp.array([1.0, 2.0]))
    q = dist.Normal(0.5, 0.7).expand([3, 2])
    one_by_one = [
        [cs_divergence(dist.Normal(p.loc[i, 0], p.scale[0, j]), dist.Normal(0.5, 0.7)) for j in range(2)]
        for i in range(3)
    ]
    np.testing.assert_allclose(cs_divergence(p, q), one_by_one, rtol=1e-5)
    wide = P.expand([4])
    np.testing.assert_allclose(cs_divergence(wide, Q), jnp.full(4, cs_divergence(P, Q)), rtol=1e-5)


def test_draws_are_mixtures_of_kernels():
    x, y = jax.random.normal(KEY, (5, 2)), 1.0 + jax.random.normal(jax.random.key(1), (7, 2))

    def kernels(z):
        return dist.MixtureSameFamily(
            dist.Categorical(jnp.full(len(z), 1 / len(z))), dist.Normal(z, 0.4).to_event(1)
        )

    np.testing.assert_allclose(
        cs_divergence(x, y, bandwidth=0.4), cs_divergence(kernels(x), kernels(y)), rtol=1e-4
    )


def test_information_is_the_divergence_from_the_product():
    """By hand, the product of the marginals as a mixture of all pairs of kernels."""
    x, y = jax.random.normal(KEY, (6,)), jax.random.normal(jax.random.key(1), (6, 2))
    pairs = jnp.concatenate([jnp.repeat(x, 6)[:, None], jnp.tile(y, (6, 1))], 1)
    joint = jnp.concatenate([x[:, None], y], 1)
    by_hand = cs_divergence(joint, pairs, bandwidth=0.5)
    np.testing.assert_allclose(cs_mutual_information(x, y, 0.5), by_hand, rtol=1e-3)
    stretched = cs_mutual_information(x, 3.0 * y, 0.5, bandwidth_y=1.5)
    np.testing.assert_allclose(stretched, cs_mutual_information(x, y, 0.5), rtol=1e-4)


# --- the objective

Y = jnp.array([0.5, -1.0, 2.0, 0.1])


def model(y, subsample=None):
    with numpyro.plate("rows", 4, subsample_size=subsample) as rows:
        z = numpyro.sample("z", P)
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def guide(y, subsample=None):
    loc, spread = (
        numpyro.param("loc", jnp.zeros(())),
        numpyro.param("spread", 0.5, constraint=dist.constraints.positive),
    )
    with numpyro.plate("rows", 4, subsample_size=subsample) as rows:
        numpyro.sample("z", dist.Normal(loc + 0.5 * y[rows], spread))


def exact(params, y, weight):
    mean = params["loc"] + 0.5 * y
    fit_of = dist.Normal(mean, 1.0).log_prob(y) - params["spread"] ** 2 / 2
    return weight * cs_divergence(dist.Normal(mean, params["spread"]), P) - fit_of


PARAMS = {"loc": jnp.asarray(0.2), "spread": jnp.asarray(0.6)}


def mean_loss(model, guide, *args, weight=2.0, **kwargs):
    loss = CauchySchwarz(weight=weight, num_particles=20)
    run = jax.vmap(
        lambda key: jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, *args, **kwargs))(PARAMS)
    )
    samples = jax.jit(run)(jax.random.split(KEY, 500))
    return samples


def assert_mean(samples, expected):
    """Within 4.5 standard errors, value and slopes."""
    for x, e in zip(jax.tree.leaves(samples), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x.mean(), e, atol=4.5 * float(x.std()) / len(x) ** 0.5 + 1e-4)


@pytest.mark.parametrize("subsample", [None, 2])
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_objective_is_exact(subsample, weight):
    found = mean_loss(model, guide, Y, weight=weight, subsample=subsample)
    expected = jax.value_and_grad(lambda p: exact(p, Y, weight).sum())(PARAMS)
    assert_mean(found, expected)
    with pytest.raises(AssertionError):
        assert_mean(found, jax.value_and_grad(lambda p: exact(p, Y, weight + 0.5).sum())(PARAMS))


def test_scales_and_masks_of_the_model_count():
    found = mean_loss(scale(model, scale=3.0), scale(guide, scale=3.0), Y)
    assert_mean(found, jax.value_and_grad(lambda p: 3 * exact(p, Y, 2.0).sum())(PARAMS))
    seen = jnp.array([True, False, True, True])
    found = mean_loss(mask(model, mask=seen), mask(guide, mask=seen), Y)
    assert_mean(found, jax.value_and_grad(lambda p: exact(p, Y, 2.0)[seen].sum())(PARAMS))


def test_a_fit_comes_down_to_the_minimum_and_reports():
    loss, optim = CauchySchwarz(num_particles=20), optax.adam(optax.cosine_decay_schedule(0.05, 800))
    run = fit(KEY, model, guide, loss, optim, 800, Y, num_chains=2, progress_bar=False)
    slopes = jax.grad(lambda p: exact(p, Y, 1.0).sum())({n: jnp.asarray(v[0]) for n, v in run.params.items()})
    assert all(abs(float(s)) < 0.2 for s in slopes.values())
    assert run.to_arviz(num_samples=20).posterior["z"].shape == (2, 20, 4)


def test_what_is_refused():
    with pytest.raises(ArgumentTypeError, match="p must be a Normal, .* got a Gamma"):
        cs_divergence(dist.Gamma(1.0, 1.0), P)
    with pytest.raises(ArgumentError, match="q holds draws: give the bandwidth"):
        cs_divergence(P, Y)
    with pytest.raises(ArgumentError, match="p has 1 coordinates and q 2"):
        cs_divergence(P, dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    with pytest.raises(ArgumentError, match="x has 4 draws and y 3; they must be pairs"):
        cs_mutual_information(Y, Y[:3], 0.3)
    with pytest.raises(ArgumentError, match="bandwidth must be positive"):
        cs_mutual_information(Y, Y, 0.0)

    def positive(y):
        numpyro.sample("z", dist.Gamma(1.0, 1.0))

    with pytest.raises(ModelError, match=r"site 'z' has no divergence in closed form .* Use ELBO"):
        CauchySchwarz().loss(KEY, {}, positive, positive, Y)
