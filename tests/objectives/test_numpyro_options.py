"""NumPyro's own options of its objectives, with NumPyro's meaning: terms by site, a map function for
particles, guides of many draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import optim
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO, ForwardKL, Renyi

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
Y = jnp.array([0.5, -0.2, 1.0])
PARAMS = {"loc": jnp.array(0.4), "p": jnp.array(0.2)}


def model(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    numpyro.factor("f", -(z**2))


def guide(y):
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 0.7))


def with_a_coin(y):
    b = numpyro.sample("b", dist.Bernoulli(0.3))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z + b, 1.0).expand([3]).to_event(1), obs=y)


def guide_with_a_coin(y):
    numpyro.sample("b", dist.Bernoulli(numpyro.param("p", 0.3)), infer={"gradient": "score"})
    guide(y)


@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("num", [1, 4])
def test_terms_by_site_have_numpyros_names_and_means(num, analytic):
    ours, theirs = (
        ELBO(num, analytic_kl=analytic, sum_sites=False),
        (TraceMeanField_ELBO if analytic else Trace_ELBO)(num, sum_sites=False),
    )
    keys = jax.random.split(KEY, 4000 // num)
    found, expected = (
        jax.vmap(lambda k, o=o: o.loss(k, PARAMS, model, guide, Y))(keys) for o in (ours, theirs)
    )
    assert set(found) == set(expected) == {"z", "y", "f"}
    for name, x in found.items():
        spread = np.hypot(x.std(), expected[name].std()) / np.sqrt(len(keys))
        assert abs(x.mean() - expected[name].mean()) < 4.5 * spread + 1e-5, name  # false alarms 7e-6 a site


@pytest.mark.parametrize("num", [1, 3])
def test_the_terms_add_up_to_the_loss_with_its_gradient(num):
    def total(params):
        return sum(ELBO(num, sum_sites=False).loss(KEY, params, with_a_coin, guide_with_a_coin, Y).values())

    whole = jax.value_and_grad(lambda p: ELBO(num).loss(KEY, p, with_a_coin, guide_with_a_coin, Y))(PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.value_and_grad(total)(PARAMS), whole
    )


def test_the_gradient_of_one_term_is_unbiased():
    """Of E[log p(y | z, b)] by p: the difference between both outcomes of the coin, in closed form."""
    slopes = jax.vmap(
        jax.grad(
            lambda p, k: ELBO(sum_sites=False).loss(k, PARAMS | {"p": p}, with_a_coin, guide_with_a_coin, Y)[
                "y"
            ]
        ),
        (None, 0),
    )(PARAMS["p"], jax.random.split(KEY, 20_000))

    def expected(b):  # E over z ~ N(0.4, 0.7²) of minus the log density, up to constants
        return 0.5 * float(jnp.sum((Y - 0.4 - b) ** 2) + 3 * 0.49)

    assert abs(slopes.mean() - (expected(1) - expected(0))) < 4.5 * slopes.std() / np.sqrt(len(slopes))


def test_a_divergence_asked_for_at_one_site():
    """NumPyro's ``config_kl``: at one particle, the loss of that site has no noise."""
    asked = numpyro.handlers.infer_config(guide, lambda site: {"kl": "analytic"})
    keys, by_site = jax.random.split(KEY, 20), ELBO(sum_sites=False)
    found = {
        name: jax.vmap(lambda key, g=g: by_site.loss(key, PARAMS, model, g, Y)["z"])(keys)
        for name, g in (("sampled", guide), ("asked", asked))
    }
    kl = dist.kl_divergence(dist.Normal(0.4, 0.7), dist.Normal(0.0, 1.0))
    assert found["sampled"].std() > 0.1
    np.testing.assert_allclose(found["asked"], kl, rtol=1e-5)


def by_hand(fn, xs):
    found = [fn(x) for x in xs]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


MAPS = {
    "lax.map": jax.lax.map,
    "vmap": lambda f, xs: jax.vmap(f)(xs),
    "jax.vmap": jax.vmap,
    "a loop": by_hand,
}


@pytest.mark.parametrize("how", MAPS)
@pytest.mark.parametrize("objective", [ELBO, IWELBO, Renyi, ForwardKL])
def test_a_map_function_gives_the_particles_of_vmap(objective, how):
    losses = [
        jax.value_and_grad(lambda p, o=o: o.loss(KEY, p, with_a_coin, guide_with_a_coin, Y))(PARAMS)
        for o in (objective(num_particles=3), objective(num_particles=3, vectorize_particles=MAPS[how]))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *losses)


def test_the_map_function_is_called():
    called = []

    def mapped(fn, xs):
        called.append(len(xs))
        return jax.lax.map(fn, xs)

    IWELBO(3, vectorize_particles=mapped).loss(KEY, PARAMS, model, guide, Y)
    assert called == [3]
    assert ELBO(2, vectorize_particles=mapped) == ELBO(2, vectorize_particles=mapped) != ELBO(2)
    assert "vectorize_particles=mapped" in repr(ELBO(2, vectorize_particles=mapped))
    assert fit(
        KEY, model, guide, ELBO(2, vectorize_particles=jax.lax.map), optax.adam(0.1), 2, Y, progress_bar=False
    ).losses.shape == (1, 2)


def many(y):
    # NumPyro's SVI sets the model up at all of them
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 0.7).expand([3]))


def test_guides_of_many_draws_as_numpyros():
    keys = jax.random.split(KEY, 3000)
    found, expected = (
        jax.vmap(lambda k, o=o: o(multi_sample_guide=True).loss(k, PARAMS, model, many, Y))(keys)
        for o in (ELBO, Trace_ELBO)
    )
    spread = np.hypot(found.std(), expected.std()) / np.sqrt(len(keys))
    assert abs(found.mean() - expected.mean()) < 4.5 * spread  # false alarms 7e-6
    terms = ELBO(multi_sample_guide=True, sum_sites=False).loss(KEY, PARAMS, model, many, Y)
    assert set(terms) == {"z", "y", "f"}
    svi = SVI(model, many, optim.Adam(0.05), ELBO(multi_sample_guide=True)).run(
        KEY, 300, Y, progress_bar=False
    )
    ours = fit(KEY, model, many, ELBO(multi_sample_guide=True), optax.adam(0.05), 300, Y, progress_bar=False)
    for loc in (svi.params["loc"], ours.params["loc"][0]):
        assert abs(loc - float(Y.sum()) / 6) < 0.1  # 1 of the prior, 3 of the data, 2 of the factor


def test_what_such_a_guide_computes_of_its_draws_is_a_value_for_the_model():
    """As of a rejection sampler, whose accepted draws are a function of its noise; the noise counts in the
    guide's density alone.
    """

    def computing(y):
        noise = numpyro.sample(
            "noise", dist.Normal(numpyro.param("loc", 0.0), 0.7).expand([3]), infer={"is_auxiliary": True}
        )
        numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]))
        numpyro.deterministic("z", 0.5 + noise)

    def wide(y):
        model(y)
        numpyro.sample("w", dist.Normal(0.0, 2.0))

    keys = jax.random.split(KEY, 3000)
    found, expected = (
        jax.vmap(lambda k, o=o: o(multi_sample_guide=True).loss(k, PARAMS, wide, computing, Y))(keys)
        for o in (ELBO, Trace_ELBO)
    )
    spread = np.hypot(found.std(), expected.std()) / np.sqrt(len(keys))
    assert abs(found.mean() - expected.mean()) < 4.5 * spread  # false alarms 7e-6


def test_what_has_no_such_option_says_so_by_name():
    with pytest.raises(ArgumentError, match="IWELBO.*sum_sites is an option of ELBO alone"):
        IWELBO(sum_sites=False)
    with pytest.raises(ArgumentError, match="Renyi.*multi_sample_guide is an option of ELBO alone"):
        Renyi(multi_sample_guide=True)
    with pytest.raises(ArgumentTypeError, match=r"ELBO\(sum_sites="):
        ELBO(sum_sites="no")
    with pytest.raises(ArgumentError, match="analytic_kl"):
        ELBO(analytic_kl=True, multi_sample_guide=True).loss(KEY, PARAMS, model, many, Y)
    with pytest.raises(ModelError, match="multi_sample_guide=True.*'z' has no axis"):
        ELBO(multi_sample_guide=True).loss(KEY, PARAMS, model, guide, Y)
    for objective in (ELBO(sum_sites=False), Trace_ELBO(sum_sites=False)):
        with pytest.raises(ArgumentError, match="fit: objective has sum_sites=False"):
            fit(KEY, model, AutoNormal(model), objective, optax.adam(0.1), 2, Y, progress_bar=False)
