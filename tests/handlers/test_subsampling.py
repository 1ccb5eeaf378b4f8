"""Uneven rows: the estimate of a log likelihood is exact in the mean, over every draw there is, and whoever
takes rows takes them so.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.contrib.ecs_proxies import perturbed_method, taylor_proxy
from numpyro.handlers import mask, scale, scope, seed, substitute, trace
from numpyro.infer import HMCECS, MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.util import log_density as numpyro_log_density

import ppl_ext
from ppl_ext.diagnostics.likelihood import log_likelihood
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.handlers import subsample
from ppl_ext.infer import SGLD, fit
from ppl_ext.infer.sgmcmc.potential import set_up
from ppl_ext.objectives import ELBO

SCORES = np.array([0.0, 1.0, 2.0, 10.0])
Y = np.array([0.3, -1.0, 2.0, 6.0])
Z = {"z": 0.7}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def model(y, taken=2):
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(y), subsample_size=taken):
        numpyro.sample("y", dist.StudentT(3.0, z), obs=numpyro.subsample(y, event_dim=0))


def by_index(y, taken=2):
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(y), subsample_size=taken) as rows:
        numpyro.sample("y", dist.StudentT(3.0, z), obs=jnp.asarray(y)[rows])


def in_a_corner(y, taken=2):
    """Rows along the second axis, an event, a mask, a scale and a factor."""
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    rows = numpyro.plate("rows", len(y), subsample_size=taken, dim=-2)
    with numpyro.plate("columns", 3, dim=-1), rows, scale(scale=0.5):
        here = numpyro.subsample(jnp.asarray(y)[:, None], event_dim=0)
        law = dist.Normal(z * jnp.arange(3.0)[:, None], jnp.array([1.0, 2.0])).to_event(1)
        with mask(mask=here < 4.0):
            numpyro.sample("y", law, obs=here[..., None] * jnp.ones((1, 3, 2)))
    with rows:
        numpyro.factor("more", jnp.cos(z * here))
        numpyro.factor("same", jnp.sin(z))  # as often as there are rows


PROGRAMS = [model, by_index, in_a_corner]


def at(program, cells, y=Y):
    return ppl_ext.log_density(program, {**Z, "rows_cells": jnp.asarray(cells)}, y).total


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_mean_over_every_draw_is_the_log_density(program):
    uneven = subsample(program, "rows", SCORES)
    cells = jnp.array([*itertools.product(range(len(uneven.rows)), repeat=2)])
    found = jax.vmap(lambda c: at(uneven, c))(cells)
    exact = ppl_ext.log_density(lambda y: program(y, None), Z, Y).total
    np.testing.assert_allclose(found.mean(), exact, rtol=1e-12)
    # and so it is without replacement
    apart = cells[:, 0] != cells[:, 1]
    np.testing.assert_allclose(found[apart].mean(), exact, rtol=1e-12)
    theirs = numpyro_log_density(substitute(uneven, data={"rows_cells": cells[7]}), (Y,), {}, Z)[0]
    np.testing.assert_allclose(theirs, found[7], rtol=1e-12)


def test_the_variance_over_every_draw_is_that_of_weights():
    uneven = subsample(model, "rows", SCORES)
    cells = jnp.array([*itertools.product(range(len(uneven.rows)), repeat=2)])
    found = jax.vmap(lambda c: at(uneven, c))(cells)
    terms, p = np.asarray(dist.StudentT(3.0, Z["z"]).log_prob(Y)), np.asarray(uneven.probabilities)
    np.testing.assert_allclose(found.var(), ((terms**2 / p).sum() - terms.sum() ** 2) / 2, rtol=1e-12)


@pytest.mark.parametrize("mix", [0.01, 0.1, 0.9])
def test_probabilities_are_those_asked_for_but_for_a_fifth(mix):
    scores = np.random.default_rng(0).exponential(size=50) ** 4
    found = np.asarray(subsample(model, "rows", scores, mix).probabilities)
    wanted = mix / 50 + (1 - mix) * scores / scores.sum()
    np.testing.assert_allclose(found.sum(), 1.0)
    assert (found >= 0.8 * wanted).all() and (found <= 1.25 * wanted + 1 / 200).all()
    assert found.min() >= 0.8 * mix / 50


def test_equal_scores_change_nothing():
    even = subsample(model, "rows", np.full(4, 7.0))
    np.testing.assert_array_equal(even.rows, np.arange(4))
    plain = ppl_ext.log_density(model, {**Z, "rows": jnp.array([3, 1])}, Y).total
    np.testing.assert_allclose(at(even, [3, 1]), plain, rtol=1e-15)
    np.testing.assert_array_equal(subsample(model, "rows", SCORES, mix=1.0).rows, np.arange(4))


def test_the_difference_estimator_of_hmcecs_is_exact_in_the_mean():
    uneven = subsample(model, "rows", SCORES)
    sizes = {"rows_cells": (len(uneven.rows), 2)}
    record = trace(seed(uneven, jax.random.key(0))).get_trace(Y)
    assert record["rows_cells"]["args"] == sizes["rows_cells"]
    proxy, start, _ = taylor_proxy({"z": 0.2}, 2)(record, sizes, uneven, (Y,), {}, 1)

    def exact(z):
        return dist.StudentT(3.0, z).log_prob(Y).sum()

    first, second = jax.grad(exact)(0.2), jax.grad(jax.grad(exact))(0.2)
    series = exact(0.2) + first * 0.5 + 0.5 * second * 0.25
    cells = jnp.array([*itertools.product(range(len(uneven.rows)), repeat=2)])

    def estimate(cells):
        state = start(jax.random.key(0), {"rows_cells": cells})
        whole, some = proxy({"z": jnp.array(0.7)}, ["rows_cells"], state)
        site = trace(substitute(seed(uneven, jax.random.key(0)), data={**Z, "rows_cells": cells}))
        site = site.get_trace(Y)["y"]
        [frame] = site["cond_indep_stack"]
        likelihoods = {"y": (site["fn"], site["value"], frame.name, frame.dim)}
        theirs = perturbed_method(sizes, proxy)(likelihoods, {"z": jnp.array(0.7)}, state)
        difference = site["fn"].log_prob(site["value"]) - some["rows_cells"]
        return whole["rows_cells"], theirs + 0.25 * len(uneven.rows) ** 2 * jnp.var(difference)

    whole, found = jax.vmap(estimate)(cells)
    np.testing.assert_allclose(whole, series, rtol=1e-10)
    np.testing.assert_allclose(found.mean(), exact(0.7), rtol=1e-10)
    assert found.std() > 0.1 * abs(exact(0.7) - series)


def test_hmcecs_draws_the_posterior():
    y = np.random.default_rng(1).normal(size=200) * np.where(np.arange(200) < 4, 20.0, 1.0)

    def normal(y):
        z = numpyro.sample("z", dist.Normal(0.0, 2.0))
        with numpyro.plate("rows", 200, subsample_size=40):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=numpyro.subsample(y, event_dim=0))

    uneven = subsample(normal, "rows", np.abs(y) + 1.0)
    # a normal law is its series of second order, so that nothing is left to estimate
    kernel = HMCECS(NUTS(uneven), num_blocks=4, proxy=HMCECS.taylor_proxy({"z": 0.1}))
    mcmc = MCMC(kernel, num_warmup=200, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0), y, extra_fields=("accept_prob",))
    draws = mcmc.get_samples()["z"]
    variance = 1 / (200 + 0.25)
    assert abs(draws.mean() - variance * y.sum()) < 4.5 * np.sqrt(variance / 500)
    assert abs(draws.std() / np.sqrt(variance) - 1) < 0.1
    assert mcmc.get_extra_fields()["accept_prob"].mean() > 0.999


def mean_of(losses, exact):
    error = losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - exact) < 4.5 * error and error < 0.1 * abs(exact)


def guide(y):
    numpyro.sample("z", dist.Delta(numpyro.param("at", 0.7)))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(num_particles=2)])
def test_numpyros_bounds_are_right_in_the_mean(elbo):
    uneven = subsample(model, "rows", SCORES)
    svi = SVI(uneven, guide, optax.sgd(0.0), elbo)
    state = svi.init(jax.random.key(0), Y)
    losses = jax.vmap(lambda key: svi.evaluate(state._replace(rng_key=key), Y))(
        jax.random.split(jax.random.key(1), 2000)
    )
    exact = ppl_ext.log_density(lambda y: model(y, None), Z, Y).total
    mean_of(-losses, exact)


def test_the_losses_of_a_fit_are_right_in_the_mean():
    uneven = subsample(model, "rows", SCORES)
    exact = ppl_ext.log_density(lambda y: model(y, None), Z, Y).total
    run = fit(
        jax.random.key(0), uneven, guide, ELBO(num_particles=3), optax.sgd(0.0), 2000, Y, progress_bar=False
    )
    mean_of(-np.ravel(run.losses), exact)


def test_a_stochastic_gradient_chain_takes_uneven_rows():
    uneven = subsample(model, "rows", SCORES)
    target = set_up("SGLD", uneven, None, jax.random.key(0), (Y,), {})
    assert target.plates == {"rows_cells": (len(uneven.rows), 2)}
    keys = jax.random.split(jax.random.key(1), 2000)
    found = jax.vmap(lambda key: target.estimate({"z": jnp.array(0.7)}, key, (Y,), {}))(keys)
    mean_of(-found, ppl_ext.log_density(lambda y: model(y, None), Z, Y).total)
    mcmc = MCMC(SGLD(uneven, step_size=1e-3), num_warmup=0, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(2), Y)
    assert np.isfinite(mcmc.get_samples()["z"]).all()


def test_who_asks_for_all_of_it_gets_each_row_once():
    found = log_likelihood(subsample(model, "rows", SCORES), {"z": jnp.full((1, 1), 0.7)}, Y)["y"]
    np.testing.assert_allclose(found[0, 0], dist.StudentT(3.0, 0.7).log_prob(Y), rtol=1e-12)


def test_the_handler_is_a_value_and_nests():
    uneven = subsample(model, "rows", SCORES)
    cells = jnp.array([9, 3])
    inside = eqx.filter_jit(at)(uneven, cells)
    np.testing.assert_allclose(inside, at(uneven, cells), rtol=1e-12)
    values = {"a/z": 0.7, "a/rows_cells": cells}
    scoped = ppl_ext.log_density(scope(uneven, prefix="a"), values, Y).total
    np.testing.assert_allclose(scoped, inside, rtol=1e-12)
    draw = ppl_ext.simulate(uneven, Y, rng_key=jax.random.key(0))
    assert draw.values["rows_cells"].shape == (2,) and draw.values["rows_cells"].max() < len(uneven.rows)


def test_it_keys_what_is_compiled():
    """A verdict moves draws by a kernel that is compiled for the model."""
    uneven = subsample(model, "rows", SCORES)
    static = jax.jit(at, static_argnums=0)
    cells = jnp.array([9, 3])
    np.testing.assert_allclose(static(uneven, cells), at(uneven, cells), rtol=1e-12)
    assert len({uneven, uneven, subsample(model, "rows", SCORES[::-1])}) == 2
    run = fit(jax.random.key(0), uneven, guide, ELBO(), optax.sgd(0.0), 2, Y, progress_bar=False)
    assert run.verdict(num_samples=100).reasons


@pytest.mark.filterwarnings("ignore:Found plate statements")
def test_a_guide_with_a_plate_of_its_own_does_not_choose_the_cells():
    def with_plate(y):
        with numpyro.plate("rows", 4, subsample_size=2):
            pass
        guide(y)

    uneven = subsample(model, "rows", SCORES)
    svi = SVI(uneven, with_plate, optax.sgd(0.0), Trace_ELBO())
    state = svi.init(jax.random.key(0), Y)
    losses = jax.vmap(lambda key: svi.evaluate(state._replace(rng_key=key), Y))(
        jax.random.split(jax.random.key(1), 2000)
    )
    mean_of(-losses, ppl_ext.log_density(lambda y: model(y, None), Z, Y).total)


def test_nuts_alone_refuses():
    with pytest.raises(ValueError, match="HMC/NUTS do not support subsampling"):
        MCMC(NUTS(subsample(model, "rows", SCORES)), num_warmup=1, num_samples=1, progress_bar=False).run(
            jax.random.key(0), Y
        )


@pytest.mark.parametrize(
    ("scores", "mix", "error", "words"),
    [
        (SCORES, 0.0, ArgumentError, "1 of 4 rows, the first 0, have a score of 0 .* mix above 0"),
        (SCORES, -0.1, ArgumentError, "mix"),
        (SCORES, 1.5, ArgumentError, r"mix must be in \[0, 1\], got 1.5"),
        (SCORES, "all", ArgumentTypeError, "mix"),
        (np.zeros(4), 0.1, ArgumentError, "all scores are 0"),
        ([1.0, -1.0, 1.0, 1.0], 0.1, ArgumentError, "that of row 1 is -1.0"),
        ([1.0, 1.0, np.nan, 1.0], 0.1, ArgumentError, "that of row 2 is nan"),
        ([1.0, 1.0, np.inf, 1.0], 0.1, ArgumentError, "that of row 2 is inf"),
        (np.ones((4, 1)), 0.1, ArgumentError, r"shape \(rows,\)"),
        ("leverage", 0.1, ArgumentTypeError, "ppl_ext.designs.leverage"),
        (None, 0.1, ArgumentTypeError, "scores"),
    ],
)
def test_bad_scores_are_named(scores, mix, error, words):
    with pytest.raises(error, match=words) as found:
        subsample(model, "rows", scores, mix)
    assert "subsample 'rows'" in str(found.value)


def test_traced_scores_are_named():
    with pytest.raises(ArgumentTypeError, match="outside of jit"):
        jax.jit(lambda s: subsample(model, "rows", s).rows)(jnp.ones(4))


def local(y):
    with numpyro.plate("rows", 4, subsample_size=2):
        numpyro.sample("w", dist.Normal())


def nested(y):
    with numpyro.plate("others", 6, subsample_size=3, dim=-2), numpyro.plate("rows", 4, subsample_size=2):
        numpyro.sample("y", dist.Normal(), obs=jnp.zeros((3, 2)))


def twice(y):
    for name in ("a", "b"):
        with numpyro.plate("rows", 4, subsample_size=2):
            numpyro.sample(name, dist.Normal(), obs=jnp.zeros(2))


def scanned(y):
    def step(carry, x):
        with numpyro.plate("rows", 4, subsample_size=2):
            numpyro.sample("y", dist.Normal(carry), obs=jnp.zeros(2))
        return carry, None

    scan(step, 0.0, jnp.zeros(3))


@pytest.mark.parametrize(
    ("program", "plate", "scores", "words"),
    [
        (model, "lines", SCORES, "no plate 'lines'. There are: 'rows'"),
        (lambda y: model(y, None), "rows", SCORES, "'rows' of 4 rows is not subsampled. .* below 4"),
        (lambda y: model(y, 4), "rows", SCORES, "not subsampled"),
        (model, "rows", np.ones(3), "'rows' has 4 rows, and there are 3 scores"),
        (local, "rows", SCORES, "'w' in plate 'rows' has no data"),
        (nested, "rows", SCORES, "'y' lies in plate 'rows' and in plate 'others'"),
        (nested, "others", np.ones(6), "'y' lies in plate 'others' and in plate 'rows'"),
        (twice, "rows", SCORES, "'rows' is made twice"),
        (scanned, "rows", SCORES, "'rows' is in a scan"),
    ],
)
def test_a_plate_that_does_not_do_is_named(program, plate, scores, words):
    with pytest.raises(ModelError, match=words):
        seed(subsample(program, plate, scores), jax.random.key(0))(Y)


def test_the_name_of_a_plate_is_a_name():
    with pytest.raises(ArgumentTypeError, match="name of a plate"):
        subsample(model, 3, SCORES)
