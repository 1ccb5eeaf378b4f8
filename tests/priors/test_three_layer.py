"""Switches that are summed out: against enumeration of all patterns, in double precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.priors import Support, SupportedPrecision, ThreeLayer, lift_prior
from ppl_ext.program import log_density, simulate

D = 10
ODDS = 2.0 * np.random.default_rng(0).normal(size=D)
SUPPORTS = {
    "independent": Support(D, 0.3),
    "chain": Support(D, 0.2, stay=0.7),
    "apart": Support(D, 0.4, stay=0.1),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def patterns(support):
    """All patterns, and the probability of each."""
    s = np.array(list(itertools.product([0, 1], repeat=support.size)))
    stay = support.activity if support.stay is None else support.stay
    rise = support.activity * (1 - stay) / (1 - support.activity)
    p = np.where(s[:, 0] == 1, support.activity, 1 - support.activity)
    for before, now in zip(s.T[:-1], s.T[1:], strict=True):
        up = np.where(before == 1, stay, rise)
        p = p * np.where(now == 1, up, 1 - up)
    return s, p


@pytest.mark.parametrize("name", SUPPORTS)
def test_marginals_and_the_normaliser_are_those_of_all_patterns(name):
    support = SUPPORTS[name]
    s, p = patterns(support)
    weights = p * np.exp(s @ ODDS)
    np.testing.assert_allclose(support.log_normaliser(jnp.asarray(ODDS)), np.log(weights.sum()), rtol=1e-10)
    np.testing.assert_allclose(support.marginals(ODDS), weights @ s / weights.sum(), rtol=1e-8)
    # stationary, whatever the place
    np.testing.assert_allclose(support.marginals(jnp.zeros(D)), support.activity, rtol=1e-8)
    both = support.marginals(np.stack([ODDS, -ODDS]))
    np.testing.assert_allclose(both[1], support.marginals(-ODDS))


@pytest.mark.parametrize("name", SUPPORTS)
def test_patterns_are_drawn_from_the_law(name):
    support = SUPPORTS[name]
    draws = np.asarray(support.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, D)
    s, p = patterns(support)
    for seen, known in ((draws, p @ s), (draws[:, 1:] * draws[:, :-1], p @ (s[:, 1:] * s[:, :-1]))):
        assert (np.abs(seen.mean(0) - known) < 4.5 * np.sqrt(known * (1 - known) / 20_000)).all()


def gammas(rho, width, a=2.0, on=3.0, off=0.1):
    """log densities if on and if off, a switch."""
    logs = [dist.Gamma(a, rate).log_prob(rho).reshape(-1, width).sum(1) for rate in (on, off)]
    return np.asarray(logs[0]), np.asarray(logs[1])


@pytest.mark.parametrize("width", [1, 3])
def test_the_density_of_precisions_sums_over_all_patterns(width):
    support = Support(5, 0.2, stay=0.7)
    law = SupportedPrecision(support, 3.0, 0.1, shape=2.0, width=width)
    rho = np.random.default_rng(1).gamma(2.0, size=5 * width) * 3.0
    s, p = patterns(support)
    on, off = gammas(rho, width)
    terms = p * np.exp(s @ on + (1 - s) @ off)
    np.testing.assert_allclose(law.log_prob(rho), np.log(terms.sum()), rtol=1e-10)
    np.testing.assert_allclose(law.support_given(rho), terms @ s / terms.sum(), rtol=1e-8)
    assert law.event_shape == (5 * width,) and law.log_prob(np.stack([rho, rho])).shape == (2,)


@pytest.mark.parametrize("width", [1, 2])
def test_what_weights_say_is_an_integral_over_precisions(width):
    support = Support(4, 0.3, stay=0.6)
    law = SupportedPrecision(support, 3.0, 0.1, shape=2.0, width=width)
    squares = np.random.default_rng(2).uniform(0.01, 2.0, 4 * width)

    def moments(rate, square):
        def density(rho, power):
            return rho ** (power + 0.5) * np.exp(
                float(dist.Gamma(2.0, rate).log_prob(rho)) - square * rho / 2
            )

        top = 400.0 / (2 * rate + square)
        return [quad(density, 0.0, top, args=(k,), limit=200)[0] for k in (0, 1)]

    on = np.array([moments(3.0, q) for q in squares])
    off = np.array([moments(0.1, q) for q in squares])
    s, p = patterns(support)
    by_switch = [np.log(x[:, 0]).reshape(4, width).sum(1) for x in (on, off)]
    weights = p * np.exp(s @ by_switch[0] + (1 - s) @ by_switch[1])
    share = weights @ s / weights.sum()
    found, mean = law.given_weights(squares)
    np.testing.assert_allclose(found, share, rtol=1e-6)
    wide = np.repeat(share, width)
    known = wide * on[:, 1] / on[:, 0] + (1 - wide) * off[:, 1] / off[:, 0]
    np.testing.assert_allclose(mean, known, rtol=1e-6)


def test_precisions_are_drawn_from_the_law():
    law = SupportedPrecision(Support(3, 0.4, stay=0.8), 3.0, 0.5, shape=4.0, width=2)
    draws = np.asarray(law.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, 6)
    mean = 0.4 * 4 / 3.0 + 0.6 * 4 / 0.5
    second = 0.4 * 20 / 9.0 + 0.6 * 20 / 0.25
    assert (np.abs(draws.mean(0) - mean) < 4.5 * np.sqrt((second - mean**2) / 20_000)).all()
    support = np.asarray(jax.vmap(law.support_given)(draws))
    assert (np.abs(support.mean(0) - 0.4) < 4.5 * (0.24 / 20_000) ** 0.5).all()
    # two of one switch are both large or both small: the covariance is that of their means
    shared = np.cov(draws[:, 0], draws[:, 1])[0, 1]
    assert abs(shared - 0.24 * (4 / 0.5 - 4 / 3.0) ** 2) < 1.0


def model(x):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    return numpyro.deterministic("f", x @ w + b)


@pytest.mark.parametrize(("grouped", "stay"), [(False, None), (False, 0.9), (True, 0.9)])
def test_a_lifted_model_has_this_density(grouped, stay):
    family = ThreeLayer(activity=0.3, stay=stay, grouped=grouped, silent_scale=0.1, fan_in=2.0)
    lifted = lift_prior(model, {"w": family})
    x = jnp.ones((3, 4))
    draw = simulate(lifted, x, rng_key=jax.random.key(0)).values
    assert set(draw) == {"w_precision", "w", "b"} and draw["w_precision"].shape == (8,)
    size, width = (4, 2) if grouped else (8, 1)
    support = Support(size, 0.3, stay)
    s, p = patterns(support)
    on, off = gammas(draw["w_precision"], width, 3.0, 3.0, 0.03)
    known = np.log((p * np.exp(s @ on + (1 - s) @ off)).sum())
    known += dist.Normal(0.0, (2.0 * draw["w_precision"]) ** -0.5).log_prob(draw["w"].ravel()).sum()
    known += dist.Normal(0.0, 1.0).log_prob(draw["b"])
    np.testing.assert_allclose(log_density(lifted, draw, x).total, known, rtol=1e-8)


def test_scales_are_what_is_tuned():
    lifted = lift_prior(model, {"w": ThreeLayer(activity=0.5, silent_scale=0.1)})
    x = jnp.ones((3, 4))
    layout = lifted.layout(x)
    raw = layout.init()
    key = jax.random.key(3)

    def weights(raw):
        return simulate(lifted.at(layout, raw), x, rng_key=key).values["w"]

    w, slopes = weights(raw), jax.jacobian(weights)(raw)["w"]["w"]
    total = slopes["log_scale"] + slopes["log_silent_scale"]
    np.testing.assert_allclose(total, w, rtol=1e-6)  # a draw grows with its scale
    on = np.abs(slopes["log_scale"]) > 1e-12
    assert 0 < on.sum() < 8 and (np.abs(slopes["log_silent_scale"][on]) < 1e-12).all()
    values = layout.values(raw)["w"]["w"]
    np.testing.assert_allclose([values["scale"], values["silent_scale"]], [1.0, 0.1])


def test_prefixes_that_are_taken():
    def with_precision(x):
        numpyro.sample("w_precision", dist.Normal(0.0, 1.0))
        return model(x)

    lifted = lift_prior(with_precision, {"w": ThreeLayer()})
    sites = numpyro.handlers.trace(numpyro.handlers.seed(lifted, 0)).get_trace(jnp.ones((3, 4)))
    assert {"w_precision", "w_2_precision", "w_2_support", "w"} <= sites.keys()


MISTAKES = {
    "a chain of one": (lambda: Support(1, 0.5, stay=0.5), ArgumentError, "one switch has no neighbours"),
    "a site of one": (
        lambda: lift_prior(model, {"b": ThreeLayer(stay=0.9)}).layout(jnp.ones((3, 4))),
        ModelError,
        r"site 'b' of shape \(\) has one switch",
    ),
    "activity": (lambda: Support(3, 1.0), ArgumentError, "activity must lie between 0 and 1"),
    "stay": (lambda: ThreeLayer(stay=0.0), ArgumentError, "stay must lie between 0 and 1"),
    "never off": (
        lambda: Support(3, 0.9, stay=0.5),
        ArgumentError,
        "must stay on with a probability above 0.889",
    ),
    "scales": (lambda: ThreeLayer(scale=0.01), ArgumentError, "silent_scale must be below scale"),
    "shape": (lambda: ThreeLayer(shape=0.0), ArgumentError, "ThreeLayer: shape must be positive"),
    "size": (lambda: Support(0, 0.5), ArgumentError, "Support: size"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    attempt, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words):
        attempt()
