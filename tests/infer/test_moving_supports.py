"""Supports that depend on other latents: named before the first step, mended by a line, right by the
reference; steps left out.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

import ppl_ext
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.handlers import fixed_support
from ppl_ext.infer import Plateau, fit
from ppl_ext.infer.svi.loop import filled
from ppl_ext.objectives import ELBO
from tests.problems.garch import REFERENCE, garch
from tests.problems.garch import Y as SERIES

KEY = jax.random.key(1)


def triangle(y):
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    b = numpyro.sample("b", dist.Uniform(0.0, 1.0 - a))
    numpyro.sample("y", dist.Normal(a + b, 0.5), obs=y)


def run(model, guide=AutoNormal, num_steps=5, data=0.7, **options):
    return fit(
        KEY, model, guide(model), ELBO(), optax.adam(0.02), num_steps, data, progress_bar=False, **options
    )


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_the_site_is_named_before_the_first_step(guide):
    with pytest.raises(
        ModelError,
        match=r"before the first step, the support of site 'b' \(Uniform\).*depends on 'a'.*fixed_support",
    ):
        run(triangle, guide)
    assert np.isfinite(run(fixed_support(triangle, "b"), guide).losses).all()


def truncated(y):
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 2):
        numpyro.sample("x", dist.TruncatedNormal(0.0, 1.0, low=low))


def in_a_vector(y):
    a = numpyro.sample("a", dist.Uniform(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("b", dist.Uniform(a, 2.0).to_event(1))


def fixed(y):
    """Bounds from data, and from sites by nothing but their shape."""
    a = numpyro.sample("a", dist.Uniform(0.0, y).expand([2]).to_event(1))
    numpyro.sample("b", dist.Uniform(jnp.zeros_like(a), 1.0).to_event(1))


def improper(y):
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    numpyro.sample("b", dist.ImproperUniform(constraints.interval(0.0, 1.0 - a), (), ()))


@pytest.mark.parametrize(("model", "site"), [(truncated, "x"), (in_a_vector, "b"), (improper, "b")])
def test_neighbours(model, site):
    with pytest.raises(ModelError, match=f"support of site '{site}'"):
        run(model)
    assert np.isfinite(run(fixed_support(model, [site])).losses).all()


def test_supports_that_stay_are_no_business_of_it():
    assert np.isfinite(run(fixed).losses).all()


def test_the_density_is_that_of_the_site_times_the_jacobian():
    with numpyro.validation_enabled():
        draw = ppl_ext.simulate(fixed_support(triangle, "b"), 0.7, rng_key=KEY)
    a, u = draw.values["a"], draw.values["b_base"]
    share = jax.nn.sigmoid(u)
    # of b = (1 - a) share, the density 1 / (1 - a) and the slope (1 - a) share (1 - share)
    expected = jnp.log(share * (1 - share))
    np.testing.assert_allclose(draw.log_density.by_site["b_base"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        draw.log_density.by_site["y"], dist.Normal(a + (1 - a) * share, 0.5).log_prob(0.7), rtol=1e-5
    )


def test_inside_a_scan_and_under_a_mask():
    def model():
        def step(x, _):
            x = numpyro.sample("x", dist.Uniform(x, 1.0))
            return x, None

        scan(step, numpyro.sample("x0", dist.Uniform(0.0, 1.0)), None, length=3)
        numpyro.sample("m", dist.Uniform(0.0, 2.0).mask(False))

    draw = ppl_ext.simulate(fixed_support(model, ["x", "m"]), rng_key=KEY)
    assert draw.values["x_base"].shape == (3,)
    assert float(draw.log_density.by_site["m_base"]) == 0.0


def test_names():
    with pytest.raises(ArgumentTypeError, match="fixed_support: sites"):
        fixed_support(triangle, 3)
    with pytest.raises(ArgumentError, match="must name a site"):
        fixed_support(triangle, [])


def means(values):
    return {n: (float(np.mean(values[n])), float(np.std(values[n]))) for n in REFERENCE}


def test_names_that_fit_nothing_and_sites_that_have_no_real_line_are_refused():
    def program():
        numpyro.sample("kind", dist.Bernoulli(0.5))
        scan(lambda carry, _: (numpyro.sample("x", dist.Uniform(0.0, carry)), None), 1.0, None, length=2)

    key = jax.random.key(0)
    with pytest.raises(ModelError, match="fixed_support: 'y' fits no sample site. There are: 'kind', 'x'"):
        ppl_ext.simulate(fixed_support(program, ["x", "y"]), rng_key=key)
    with pytest.raises(ModelError, match=r"fixed_support: site 'kind' \(BernoulliProbs\) is discrete"):
        ppl_ext.simulate(fixed_support(program, "kind"), rng_key=key)
    assert sorted(ppl_ext.simulate(fixed_support(program, "*"), rng_key=key).values) == ["kind", "x_base"]


def test_garch_against_the_reference():
    model = fixed_support(garch, "beta1")
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 2000))
    result = fit(
        KEY,
        model,
        AutoMultivariateNormal(model, init_scale=0.1),
        ELBO(8),
        adam,
        2000,
        SERIES,
        progress_bar=False,
    )
    found = means(result.sample(KEY, 4000).values)
    for name, (mean, spread) in REFERENCE.items():
        # a Gaussian on the real line for a skewed posterior
        assert abs(found[name][0] - mean) < 0.35 * spread, name
        assert 0.7 < found[name][1] / spread < 1.3, name


@pytest.mark.slow
def test_garch_by_nuts_under_the_handler():
    mcmc = MCMC(NUTS(fixed_support(garch, "beta1")), num_warmup=500, num_samples=2000, progress_bar=False)
    mcmc.run(KEY, SERIES)
    found = means(mcmc.get_samples())
    for name, (mean, spread) in REFERENCE.items():
        assert abs(found[name][0] - mean) < 0.15 * spread, name


def with_a_cliff(y):
    """Half of the first guide's draws have density zero."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("cliff", jnp.where(z > 0, 0.0, -jnp.inf))
    numpyro.sample("y", dist.Normal(z, 0.3), obs=y)


def near_the_cliff(y):
    numpyro.sample(
        "z",
        dist.Normal(numpyro.param("loc", 0.1), numpyro.param("scale", 0.3, constraint=constraints.positive)),
    )


def test_steps_that_are_not_finite_are_left_out_and_counted(capsys):
    def fitted(**options):
        return fit(
            KEY,
            with_a_cliff,
            near_the_cliff,
            ELBO(),
            optax.adam(0.02),
            400,
            2.0,
            progress_bar=False,
            num_chains=2,
            **options,
        )

    with pytest.raises(NonFiniteError):
        fitted()
    result = fitted(stable_update=True)
    assert result.stop_reason == "completed" and result.losses.shape == (2, 400)
    assert (result.skipped > 0).all() and (result.skipped == np.isnan(result.losses).sum(1)).all()
    assert np.isfinite(result.params["loc"]).all() and (result.params["loc"] > 1.0).all()
    result.print_summary(num_samples=50)
    assert (
        f"left out: chain 0: {result.skipped[0]}, chain 1: {result.skipped[1]} of 400 steps"
        in capsys.readouterr().out
    )
    stopped = fitted(stable_update=True, early_stopping=Plateau(window=20, patience=1, tolerance=1e6))
    assert stopped.stop_reason.startswith("plateau")
    assert np.isfinite(filled(result.losses)).all()


def test_where_all_steps_are_good_stable_updates_change_nothing():
    both = [run(fixed_support(triangle, "b"), num_steps=20, stable_update=stable) for stable in (False, True)]
    np.testing.assert_allclose(both[0].losses, both[1].losses, rtol=1e-6)
    assert not both[1].skipped.any()


def test_stable_updates_take_a_moving_support_with_a_warning():
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        run(triangle, stable_update=True)
    assert any("support of site 'b'" in str(w.message) for w in met)
