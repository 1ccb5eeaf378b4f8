"""Pointwise log likelihoods, against sums written out by hand."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.special import logsumexp
from scipy.stats import norm

from ppl_ext.diagnostics import log_likelihood
from ppl_ext.diagnostics.chunks import map_draws, over_draws
from ppl_ext.diagnostics.likelihood import pointwise
from ppl_ext.errors import ArgumentError, HandlerError, ModelError
from ppl_ext.objectives import ELBO
from ppl_ext.result import Fit

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(0)
Y = RNG.normal(0.5, 1.5, 5).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# --- models without finite sites


def normal_model(y, mask=None, subsample_size=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.deterministic("twice", 2.0 * mu)
    with numpyro.plate("n", len(Y), subsample_size=subsample_size) as n, numpyro.handlers.scale(scale=7.0):
        fn = dist.Normal(mu, 2.0)
        numpyro.sample("y", fn if mask is None else fn.mask(mask), obs=y[n])


MU = RNG.normal(size=(2, 3)).astype(np.float32)


def test_a_plain_model_has_one_term_per_observation_without_scale():
    terms = log_likelihood(normal_model, {"mu": MU, "twice": np.zeros((2, 3))}, jnp.asarray(Y))
    assert list(terms) == ["y"] and terms["y"].shape == (2, 3, 5)
    close(terms["y"], norm.logpdf(Y, MU[..., None], 2.0))


@pytest.mark.parametrize("batch_ndims", [0, 1, 2])
def test_batch_axes(batch_ndims):
    mu = MU[(0,) * (2 - batch_ndims)]
    terms = log_likelihood(normal_model, {"mu": mu}, jnp.asarray(Y), batch_ndims=batch_ndims)
    assert terms["y"].shape == (*mu.shape, 5)
    close(terms["y"], norm.logpdf(Y, mu[..., None], 2.0))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_chunks_do_not_matter(chunk_size):
    mu = RNG.normal(size=(2, 5)).astype(np.float32)
    terms = log_likelihood(normal_model, {"mu": mu}, jnp.asarray(Y), chunk_size=chunk_size)
    close(terms["y"], norm.logpdf(Y, mu[..., None], 2.0))


def test_chunks_bound_what_is_evaluated_at_once():
    widths = []

    def fn(shared, draw):
        # One trace per width; a second would mean a second compilation.
        widths.append(draw.shape)
        return draw + shared

    out = map_draws(over_draws(fn), np.arange(14.0).reshape(2, 7), np.array([10.0, 20.0]), 2, 7, 3)
    close(out, np.arange(14.0).reshape(2, 7) + np.array([[10.0], [20.0]]))
    assert widths == [()]


def test_a_subsampled_plate_is_evaluated_whole_and_in_order():
    terms = log_likelihood(normal_model, {"mu": MU}, jnp.asarray(Y), subsample_size=2)
    close(terms["y"], norm.logpdf(Y, MU[..., None], 2.0))


def test_masked_observations_are_nan():
    mask = jnp.array([True, False, True, True, False])
    # A NaN under the mask must not reach the others.
    y = jnp.where(mask, Y, jnp.nan)
    terms = log_likelihood(normal_model, {"mu": MU}, y, mask=mask)
    expected = norm.logpdf(Y, MU[..., None], 2.0)
    expected[..., ~np.asarray(mask)] = np.nan
    close(terms["y"], expected)


def test_masks_of_every_kind_are_seen():
    mask = jnp.array([True, False, True])
    half = jnp.array([[True, False], [False, False], [True, True]])

    def model():
        with numpyro.plate("n", 3):
            with numpyro.handlers.mask(mask=mask):
                numpyro.sample("handler", dist.Normal(0.0, 1.0), obs=jnp.zeros(3))
            numpyro.sample(
                "event", dist.Normal(jnp.zeros(2), 1.0).mask(half).to_event(1), obs=jnp.zeros((3, 2))
            )
            numpyro.sample("off", dist.Normal(0.0, 1.0).mask(False), obs=jnp.zeros(3))
            numpyro.sample("part", dist.Normal(0.0, 1.0), obs=jnp.zeros(3), obs_mask=mask)

    samples = {"part_unobserved": np.zeros((1, 1, 3))}
    terms = {n: x[0, 0] for n, x in log_likelihood(model, samples).items()}
    one = norm.logpdf(0.0)
    close(terms["handler"], [one, np.nan, one])
    # An event counts as seen if any part of it is.
    close(terms["event"], [one, np.nan, 2 * one])
    close(terms["off"], [np.nan] * 3)
    close(terms["part_observed"], [one, np.nan, one])


def test_factors_are_not_observations():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("penalty", -(mu**2))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    terms = log_likelihood(model, {"mu": MU}, 0.3)
    assert list(terms) == ["y"]
    close(terms["y"], norm.logpdf(0.3, MU, 1.0))


def test_a_scan_without_finite_sites_has_a_term_per_step():
    def model(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0))
            with numpyro.plate("series", 2):
                numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, 0.0, y)

    y = RNG.normal(size=(4, 2)).astype(np.float32)
    x = RNG.normal(size=(1, 3, 4)).astype(np.float32)
    terms = log_likelihood(model, {"x": x}, jnp.asarray(y))
    close(terms["y"], norm.logpdf(y, x[..., None], 1.0))


# --- finite sites are summed out


WEIGHTS = np.array([0.2, 0.5, 0.3], np.float32)
LOCS = RNG.normal(0.0, 2.0, (2, 3, 3)).astype(np.float32)


def mixture(y, subsample_size=None):
    with numpyro.plate("k", 3):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(y), subsample_size=subsample_size) as n:
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y[n])


def mixture_by_hand(y, loc):
    return logsumexp(norm.logpdf(y[:, None], loc[..., None, :], 1.0), b=WEIGHTS, axis=-1)


@pytest.mark.parametrize("units", ["observation", "independent"])
def test_a_mixture_is_summed_over_its_components(units):
    terms = log_likelihood(mixture, {"loc": LOCS}, jnp.asarray(Y), units=units)
    assert terms["y"].shape == (2, 3, 5)
    close(terms["y"], mixture_by_hand(Y, LOCS))


def test_drawn_assignments_are_summed_out_too():
    samples = {"loc": LOCS, "z": np.zeros((2, 3, 5), int)}
    terms = log_likelihood(mixture, samples, jnp.asarray(Y))["y"]
    close(terms, mixture_by_hand(Y, LOCS))
    # What conditioning on the draws would give is far from it: the check above can fail.
    assert np.abs(terms - norm.logpdf(Y, LOCS[..., :1], 1.0)).max() > 0.5


def test_a_subsampled_mixture_is_whole():
    terms = log_likelihood(mixture, {"loc": LOCS}, jnp.asarray(Y), subsample_size=2)
    close(terms["y"], mixture_by_hand(Y, LOCS))


def test_zero_probabilities_and_far_observations_stay_finite():
    def model(y):
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([1.0, 0.0])))
            numpyro.sample("y", dist.Normal(100.0 * z, 1.0), obs=y)

    y = np.array([0.0, 100.0, -300.0], np.float32)
    close(log_likelihood(model, {}, jnp.asarray(y))["y"][0, 0], norm.logpdf(y, 0.0, 1.0))


def test_supports_that_do_not_start_at_zero():
    def model(y):
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.DiscreteUniform(3, 5))
            numpyro.sample("y", dist.Normal(z.astype(float), 1.0), obs=y)

    expected = logsumexp(norm.logpdf(Y[:, None], np.array([3.0, 4.0, 5.0]), 1.0), axis=-1) - np.log(3.0)
    close(log_likelihood(model, {}, jnp.asarray(Y))["y"][0, 0], expected)


def test_each_outcome_of_a_masked_finite_site_counts_one():
    """As scale * mask * log p says, whatever the mask lies on."""
    mask = np.array([True, True, False, True, True])

    def model(y):
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3).mask(jnp.asarray(mask)))
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    each = norm.logpdf(Y[:, None], np.array([0.0, 2.0]), 1.0)
    expected = np.where(mask, logsumexp(each, b=[0.7, 0.3], axis=-1), logsumexp(each, axis=-1))
    close(log_likelihood(model, {}, jnp.asarray(Y))["y"][0, 0], expected)


def test_dependent_finite_sites_and_a_global_one_beside_them():
    first, second = np.array([0.4, 0.6]), np.array([[0.1, 0.9], [0.7, 0.3]])

    def model(y, other):
        with numpyro.plate("n", len(y)):
            a = numpyro.sample("a", dist.Categorical(jnp.asarray(first)))
            b = numpyro.sample("b", dist.Categorical(jnp.asarray(second)[a]))
            numpyro.sample("y", dist.Normal(a - 2.0 * b, 1.0), obs=y)
        c = numpyro.sample("c", dist.Bernoulli(0.2))
        numpyro.sample("other", dist.Normal(5.0 * c, 1.0), obs=other)

    joint = first[:, None] * second
    means = np.arange(2.0)[:, None] - 2.0 * np.arange(2.0)
    terms = log_likelihood(model, {}, jnp.asarray(Y), 1.5)
    close(terms["y"][0, 0], logsumexp(norm.logpdf(Y[:, None, None], means, 1.0), b=joint, axis=(1, 2)))
    close(terms["other"][0, 0], logsumexp(norm.logpdf(1.5, np.array([0.0, 5.0]), 1.0), b=[0.8, 0.2]))


def grouped(y):
    with numpyro.plate("group", 2):
        c = numpyro.sample("c", dist.Bernoulli(0.3))
        with numpyro.plate("member", 3):
            numpyro.sample("y", dist.Normal(2.0 * c, 1.0), obs=y)


def test_observations_that_share_a_finite_site():
    y = RNG.normal(1.0, 1.0, (3, 2)).astype(np.float32)
    each = np.stack([norm.logpdf(y, 0.0, 1.0), norm.logpdf(y, 2.0, 1.0)])
    b = np.array([0.7, 0.3])
    single = log_likelihood(grouped, {}, jnp.asarray(y))["y"]
    close(single[0, 0], logsumexp(each, b=b[:, None, None], axis=0))
    joined = log_likelihood(grouped, {}, jnp.asarray(y), units="independent")["y"]
    assert joined.shape == (1, 1, 2)
    close(joined[0, 0], logsumexp(each.sum(1), b=b[:, None], axis=0))
    # Only the joined ones add up to the log likelihood.
    assert abs(single.sum() - joined.sum()) > 0.1


def test_two_observed_sites_that_share_a_finite_site():
    def model(y, v):
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)
            numpyro.sample("v", dist.Normal(-z, 1.0), obs=v)

    v = -Y
    log_y = norm.logpdf(Y[:, None], np.array([0.0, 2.0]), 1.0)
    log_v = norm.logpdf(v[:, None], np.array([0.0, -1.0]), 1.0)
    b = np.array([0.7, 0.3])
    terms = log_likelihood(model, {}, jnp.asarray(Y), jnp.asarray(v))
    close(terms["y"][0, 0], logsumexp(log_y, b=b, axis=-1))
    close(terms["v"][0, 0], logsumexp(log_v, b=b, axis=-1))
    joined = log_likelihood(model, {}, jnp.asarray(Y), jnp.asarray(v), units="independent")
    assert list(joined) == ["y+v"]
    close(joined["y+v"][0, 0], logsumexp(log_y + log_v, b=b, axis=-1))


X = RNG.normal(size=(1, 2, 5)).astype(np.float32)


@pytest.mark.parametrize("units", ["observation", "independent"])
def test_given_sites_below_a_finite_one_tell_of_it(units):
    def model(y):
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            x = numpyro.sample("x", dist.Normal(3.0 * z, 1.0))
            numpyro.factor("nudge", -0.5 * z)
            numpyro.sample("y", dist.Normal(x + z, 1.0), obs=y)

    z = np.arange(2.0)
    prior = np.log([0.7, 0.3]) + norm.logpdf(X[..., None], 3.0 * z, 1.0) - 0.5 * z
    joint = prior + norm.logpdf(Y[:, None], X[..., None] + z, 1.0)
    terms = log_likelihood(model, {"x": X}, jnp.asarray(Y), units=units)
    close(terms["y"], logsumexp(joint, axis=-1) - logsumexp(prior, axis=-1))


def test_given_sites_that_share_a_finite_one_all_tell_of_it():
    def model(y):
        c = numpyro.sample("c", dist.Bernoulli(0.4))
        with numpyro.plate("n", len(y)):
            x = numpyro.sample("x", dist.Normal(c, 1.0))
            numpyro.sample("y", dist.Normal(x - c, 1.0), obs=y)

    c = np.arange(2.0)
    prior = np.log([0.6, 0.4]) + norm.logpdf(X[..., None], c, 1.0).sum(-2)
    each = norm.logpdf(Y[:, None], X[..., None] - c, 1.0)
    single = log_likelihood(model, {"x": X}, jnp.asarray(Y))["y"]
    close(single, logsumexp(prior[..., None, :] + each, axis=-1) - logsumexp(prior, axis=-1)[..., None])
    terms = log_likelihood(model, {"x": X}, jnp.asarray(Y), units="independent")
    assert terms["y"].shape == (1, 2)
    close(terms["y"], logsumexp(prior + each.sum(-2), axis=-1) - logsumexp(prior, axis=-1))


def test_single_terms_that_cannot_be_exact_are_refused():
    """Each x tells of a site that its row shares and of one of its own."""

    def model(y):
        with numpyro.plate("rows", 2, dim=-2):
            a = numpyro.sample("a", dist.Bernoulli(0.4))
            with numpyro.plate("n", 3):
                b = numpyro.sample("b", dist.Bernoulli(0.2))
                x = numpyro.sample("x", dist.Normal(a + b, 1.0))
                numpyro.sample("y", dist.Normal(x - a + b, 1.0), obs=y)

    with pytest.raises(ModelError, match="'y'.*'x'.*units='independent'"):
        log_likelihood(model, {"x": np.zeros((1, 2, 2, 3), np.float32)}, jnp.zeros((2, 3)))


def test_batch_axes_that_are_no_plates():
    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.3).expand((5,)))
        numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    expected = logsumexp(norm.logpdf(Y[:, None], np.array([0.0, 2.0]), 1.0), b=[0.7, 0.3], axis=-1)
    close(log_likelihood(model, {}, jnp.asarray(Y))["y"][0, 0], expected)


@pytest.mark.parametrize("in_scan", [False, True])
def test_a_plate_after_an_axis_that_no_plate_declares(in_scan):
    def model(y):
        if in_scan:
            scan(
                lambda carry, x: (carry, numpyro.sample("w", dist.Normal(0.0, 1.0), obs=x)), 0.0, jnp.zeros(3)
            )
        else:
            numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0), obs=jnp.zeros(3))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    terms = log_likelihood(model, {}, jnp.asarray(Y))
    close(
        terms["y"][0, 0], logsumexp(norm.logpdf(Y[:, None], np.array([0.0, 2.0]), 1.0), b=[0.7, 0.3], axis=-1)
    )
    close(terms["w"][0, 0], norm.logpdf(np.zeros(3)))


def test_terms_depend_on_the_params_of_their_chain():
    def model(y):
        loc = numpyro.param("loc", 0.0)
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(loc + 2.0 * z, 1.0), obs=y)

    locs = np.array([0.0, 1.0], np.float32)
    terms = pointwise(model, {}, (jnp.asarray(Y),), {}, params={"loc": locs}, num_draws=1)["y"]
    means = locs[:, None, None, None] + np.array([0.0, 2.0])
    close(terms.values, logsumexp(norm.logpdf(Y[:, None], means, 1.0), b=[0.7, 0.3], axis=-1))


# --- finite sites and scan


def test_a_chain_has_no_single_terms():
    def model(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.eye(2)[z] * 0.8 + 0.1))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    with pytest.raises(ModelError, match="'z' is in a scan.*do not exist for a chain"):
        log_likelihood(model, {}, jnp.asarray(Y))


def test_a_finite_site_beside_a_scan():
    def model(y, v, coupling):
        with numpyro.plate("n", len(v)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("v", dist.Normal(2.0 * z, 1.0), obs=v)
        c = numpyro.sample("c", dist.Bernoulli(0.5))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x + (c if coupling else 0.0), 1.0), obs=y)
            return x, None

        scan(step, 0.0, y)

    y = RNG.normal(size=4).astype(np.float32)
    x = RNG.normal(size=(1, 2, 4)).astype(np.float32)
    terms = log_likelihood(model, {"x": x}, jnp.asarray(y), jnp.asarray(Y), False)
    close(terms["y"], norm.logpdf(y, x, 1.0))
    mix = logsumexp(norm.logpdf(Y[:, None], np.array([0.0, 2.0]), 1.0), b=[0.7, 0.3], axis=-1)
    close(terms["v"], np.broadcast_to(mix, (1, 2, 5)))
    coupled = log_likelihood(model, {"x": x}, jnp.asarray(y), jnp.asarray(Y), True)["y"]
    close(
        coupled,
        logsumexp(norm.logpdf(y[:, None], x[..., None] + np.array([0.0, 1.0]), 1.0), b=[0.5, 0.5], axis=-1),
    )


# --- mistakes


def test_mistakes_are_named():
    y = jnp.asarray(Y)
    with pytest.raises(ModelError, match="latent site 'mu'"):
        log_likelihood(normal_model, {}, y)
    with pytest.raises(ArgumentError, match="'b' \\(2, 4\\)"):
        log_likelihood(normal_model, {"mu": MU, "b": np.zeros((2, 4))}, y)
    with pytest.raises(ArgumentError, match="units"):
        log_likelihood(normal_model, {"mu": MU}, y, units="each")
    with pytest.raises(ArgumentError, match="chunk_size"):
        log_likelihood(normal_model, {"mu": MU}, y, chunk_size=0)


@pytest.mark.parametrize("size", [5, 1])
def test_minibatches_instead_of_the_data_are_explained(size):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 100, subsample_size=len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match="'y'.*'n'.*pass the whole data"):
        log_likelihood(model, {"mu": MU}, jnp.asarray(Y[:size]))


def test_local_draws_of_a_minibatch_are_explained():
    def model(y):
        with numpyro.plate("n", len(y), subsample_size=2) as n:
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y[n])

    with pytest.raises(ModelError, match="'x' has shape \\(5,\\) in the model, but its value \\(2,\\)"):
        log_likelihood(model, {"x": np.zeros((1, 3, 2))}, jnp.asarray(Y))


def test_open_handlers_are_refused():
    with numpyro.handlers.scale(scale=2.0), pytest.raises(HandlerError, match="scale"):
        log_likelihood(normal_model, {"mu": MU}, jnp.asarray(Y))


def test_numpyro_is_left_as_it_was_found():
    log_likelihood(mixture, {"loc": LOCS}, jnp.asarray(Y))
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
        with numpyro.plate("n", 2):
            numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)), infer={"enumerate": "parallel"})
    assert trace["z"]["value"].shape == (2,)


# --- models that cannot take all values of a site side by side


SWITCHES = np.array(list(np.ndindex(2, 2, 2)), float)
SWITCH_LOGITS = np.log(np.where(SWITCHES, 0.3, 0.7)).sum(1)
MEANS_OF_SWITCHES = {
    "sum": (lambda on: on.sum(), SWITCHES.sum(1)),
    "max": (lambda on: on.max(), SWITCHES.max(1)),
    "matrix product": (lambda on: jnp.array([0.5, 1.0, 2.0]) @ on, SWITCHES @ [0.5, 1.0, 2.0]),
    "product": (lambda on: (1.0 + on).prod(), (1.0 + SWITCHES).prod(1)),
    "flip": (lambda on: (on - on[::-1])[0], SWITCHES[:, 0] - SWITCHES[:, 2]),
}


def switched(kind, y):
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    with numpyro.plate("d", 3):
        on = numpyro.sample("on", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    mean = MEANS_OF_SWITCHES[kind][0](1.0 * on) + shift
    with numpyro.plate("rows", 2):
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.mark.parametrize("kind", MEANS_OF_SWITCHES)
def test_a_model_may_contract_a_finite_site_over_its_plate(kind):
    y, shift = np.array([1.5, 0.2]), np.array([0.0, 0.4], np.float32)
    each = norm.logpdf(y[:, None], MEANS_OF_SWITCHES[kind][1] + shift[:, None, None], 0.5)
    exact = {
        "observation": logsumexp(each + SWITCH_LOGITS, axis=-1),
        "independent": logsumexp(each.sum(1) + SWITCH_LOGITS, axis=-1),
    }
    for units, expected in exact.items():
        close(
            log_likelihood(
                switched, {"shift": shift}, kind, jnp.asarray(y, jnp.float32), batch_ndims=1, units=units
            )["y"],
            expected,
        )

    def guide(kind, y):
        numpyro.sample("shift", dist.Normal(0.1, 0.2))

    draws = Fit({}, np.zeros((1, 1)), switched, guide, ELBO(), (kind, jnp.asarray(y, jnp.float32))).sample(
        num_samples=3
    )
    drawn = draws.values["shift"][0].astype(float)
    each = norm.logpdf(y[:, None], MEANS_OF_SWITCHES[kind][1] + drawn[:, None, None], 0.5).sum(1)
    close(draws.log_p[0], logsumexp(each + SWITCH_LOGITS, axis=-1) + norm.logpdf(drawn), 1e-4)


def test_a_one_hot_site_may_weigh_a_table():
    def model(y):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        numpyro.sample("y", dist.Normal((jnp.eye(3)[z] * jnp.array([0.0, 1.0, 3.0])).sum(), 0.5), obs=y)

    expected = logsumexp(norm.logpdf(2.5, np.array([0.0, 1.0, 3.0]), 0.5), b=[0.2, 0.5, 0.3])
    close(log_likelihood(model, {}, 2.5)["y"][0, 0], expected)


def test_rows_of_a_law_that_mixes_axes_inside_are_kept_apart_by_their_plate():
    """The data flow loses rows in a Cholesky factor taken of a table row by row, say; the plate and a look at
    numbers tell.
    """

    def model(y):
        with numpyro.plate("n", 14):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            turned = jnp.fft.irfft(jnp.fft.rfft(jnp.stack([1.0 * z, 2.0 * z])[:, ::-1], axis=0), n=2, axis=0)[
                :, ::-1
            ]
            numpyro.sample("y", dist.Normal(turned[0], 1.0), obs=y)

    y = np.linspace(-1.0, 2.0, 14)
    expected = logsumexp(norm.logpdf(y[:, None], np.array([0.0, 1.0]), 1.0), b=[0.7, 0.3], axis=-1)
    close(log_likelihood(model, {}, jnp.asarray(y))["y"][0, 0], expected)


def test_rows_that_do_meet_are_refused_whatever_their_plate_says():
    def model(y):
        with numpyro.plate("n", 14):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(z[::-1].cumsum(), 1.0), obs=y)

    with pytest.raises(ModelError, match="Elements of site 'z' meet"):
        log_likelihood(model, {}, jnp.zeros(14))
