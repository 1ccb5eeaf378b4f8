"""A lowered model, walked step by step, has the density that NumPyro gives the whole model; what has no
state-space form is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, mask, scale, seed, substitute, trace

from ppl_ext import log_density
from ppl_ext.errors import ArgumentError, ModelError, ProgramError
from ppl_ext.state_space.lowering import RunUpToScan
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.streams import check_streams, time_slice

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py

Y = np.array([0.3, -1.2, 0.8, 2.0], np.float32)


def plain(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x, sigma))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, x

    scan(step, numpyro.sample("x0", dist.Normal(0.0, sigma)), y)


def rich(y, times):
    """Two latent sites, one of them discrete and one in a plate, a factor, a covariate, an observed start,
    irregular times.
    """
    rate = numpyro.deterministic("rate", jnp.exp(numpyro.sample("log_rate", dist.Normal(0.0, 1.0))))
    with numpyro.plate("series", 3):
        x0 = numpyro.sample("x0", dist.Normal(0.0, 2.0))
        numpyro.sample("y0", dist.Normal(x0, 1.0), obs=jnp.ones(3))

    def step(carry, inputs):
        x, k = carry["x"], carry["k"]
        y_t, dt = inputs
        k = numpyro.sample("k", dist.Categorical(logits=jnp.array([[0.5, 0.0], [-0.2, 0.3]])[k]))
        with numpyro.plate("series", 3):
            x = numpyro.sample("x", dist.Normal(x * jnp.exp(-rate * dt), 1.0 + k))
            numpyro.sample("y", dist.StudentT(4.0, x, 0.5), obs=y_t)
        numpyro.factor("pull", -0.1 * jnp.sum(x**2))
        return {"x": x, "k": k}, None

    scan(step, {"x": x0, "k": jnp.asarray(0)}, (y, times))


RICH_DATA = (
    np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    np.array([0.1, 2.0, 0.5, 0.7], np.float32),
)
RICH_SERIES = {"k": np.array([1, 0, 0, 1]), "x": np.linspace(1, -1, 12, dtype=np.float32).reshape(4, 3)}
RICH = ({"log_rate": 0.2}, {"x0": np.array([0.3, -0.4, 1.0], np.float32)}, RICH_SERIES)


def second_order(y):
    def step(carry, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * carry[0] - 0.2 * carry[1], 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return (x, carry[0]), None

    with numpyro.plate("lags", 2):
        x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))
    scan(step, (x0[0], x0[1]), y)


def difference(y):
    """The emission looks at the state before, too."""

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x - x_prev, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def unobserved():
    def step(x, _):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0))
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), None, length=4)


X = np.array([0.1, -0.5, 0.2, 1.5], np.float32)
START = {"x0": np.float32(0.4)}
MODELS = {
    "plain": (plain, (Y,), {"phi": 0.7, "sigma": 0.8}, START, {"x": X}),
    "rich": (rich, RICH_DATA, *RICH),
    "second order": (second_order, (Y,), {}, {"x0": np.array([0.3, 0.2], np.float32)}, {"x": X}),
    "emission looks back": (difference, (Y,), {}, START, {"x": X}),
    "conditioned": (condition(unobserved, {"y": jnp.asarray(Y)}), (), {}, START, {"x": X}),
    "conditioned parameter": (condition(plain, {"phi": 0.7}), (Y,), {"sigma": 0.8}, START, {"x": X}),
    "substituted state": (substitute(unobserved, {"x": jnp.asarray(X)}), (), {}, START, {"y": Y}),
    "scaled": (scale(plain, 0.3), (Y,), {"phi": 0.7, "sigma": 0.8}, START, {"x": X}),
}


def walk(ss, start, series):
    """log p of the path, step by step."""
    begin = ss.initial(start)
    total, particle = ss.log_prior + begin.log_initial + begin.log_emission, begin.particle
    for t in range(ss.num_steps):
        step = ss.step(particle, {n: v[t] for n, v in series.items()}, ss.inputs(t))
        total, particle = total + step.log_transition + step.log_emission, step.particle
    return total


@pytest.mark.parametrize("name", MODELS)
def test_a_path_has_the_density_of_the_model(name):
    model, args, parameters, start, series = MODELS[name]
    ss = lower(model, args, {}, parameters)
    given = {} if name != "substituted state" else {"x"}
    expected = log_density(model, {**parameters, **start, **series}, *args).total if not given else None
    if given:  # NumPyro takes no value for a site that a handler inside gives one
        expected = log_density(unobserved, {**start, **series, "x": X}).total
    np.testing.assert_allclose(
        jax.jit(lambda: walk(lower(model, args, {}, parameters), start, series))(), expected, rtol=1e-5
    )
    assert set(ss.initial_sites) == set(start) and set(ss.step_sites) == set(series)


def test_names_shapes_and_plates():
    model, args, parameters, start, series = MODELS["rich"]
    ss = lower(model, args, {}, parameters)
    assert (
        list(ss.parameters) == ["log_rate"]
        and list(ss.initial_observed) == ["y0"]
        and set(ss.step_observed) == {"y", "pull"}
    )
    assert (
        ss.step_sites["x"].shape == (3,)
        and ss.step_sites["k"].shape == ()
        and ss.step_sites["k"].dtype == jnp.int32
    )
    assert [p.name for p in ss.step_sites["x"].plates] == ["series"]
    assert ss.num_steps == 4


def test_a_draw_is_weighed_by_its_emission():
    model, args, parameters, _, _ = MODELS["rich"]
    ss = lower(model, args, {}, parameters)
    particle, values, log_weight = ss.start(random.key(0))
    start = ss.initial(values)
    np.testing.assert_allclose(log_weight, start.log_emission, rtol=1e-5)
    new, log_weight = ss.propagate(random.key(1), particle, ss.inputs(0))
    step = ss.step(particle, new.sites, ss.inputs(0))
    np.testing.assert_allclose(log_weight, step.log_emission, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new, step.particle)


def test_a_rescaled_law_is_made_up_for_in_the_weight():
    model, args, parameters, _, _ = MODELS["scaled"]
    ss = lower(model, args, {}, parameters)
    particle, values, log_weight = ss.start(random.key(0))
    law = dist.Normal(0.0, 0.8)
    np.testing.assert_allclose(log_weight, -0.7 * law.log_prob(values["x0"]), rtol=1e-4)
    new, log_weight = ss.propagate(random.key(1), particle, ss.inputs(0))
    law, emission = dist.Normal(0.7 * particle.carry, 0.8), dist.Normal(new.carry, 1.0).log_prob(Y[0])
    np.testing.assert_allclose(log_weight, -0.7 * law.log_prob(new.carry) + 0.3 * emission, rtol=1e-4)


def test_the_laws_of_draws():
    ss = lower(plain, (Y,), {}, {"phi": 0.7, "sigma": 0.8})
    particles, _, _ = jax.vmap(ss.start)(random.split(random.key(0), 4000))
    new, _ = jax.vmap(lambda key, p: ss.propagate(key, p, ss.inputs(0)))(
        random.split(random.key(1), 4000), particles
    )
    rest = (new.carry - 0.7 * particles.carry) / 0.8
    for draws in (particles.carry / 0.8, rest):
        assert abs(draws.mean()) < 4.5 / np.sqrt(4000) and abs((draws**2).mean() - 1) < 4.5 * np.sqrt(
            2 / 4000
        )
    assert abs((rest * particles.carry).mean()) < 4.5 * 0.8 / np.sqrt(4000)


def test_markov_or_not():
    assert lower(plain, (Y,), {}, {"phi": 0.7, "sigma": 0.8}).not_markov is None
    assert "'x'" in lower(second_order, (Y,)).not_markov
    assert lower(difference, (Y,)).not_markov is None
    assert lower(difference, (Y,)).emission_uses_carry
    assert not lower(second_order, (Y,)).emission_uses_carry
    # The factor of the rich model looks at the new state only.
    assert not lower(rich, RICH_DATA, {}, RICH[0]).emission_uses_carry


def test_gradients_in_parameters_are_those_of_the_model():
    def by_steps(phi):
        return walk(lower(plain, (Y,), {}, {"phi": phi, "sigma": 0.8}), START, {"x": X})

    def whole(phi):
        return log_density(plain, {"phi": phi, "sigma": 0.8, **START, "x": X}, Y).total

    np.testing.assert_allclose(jax.jit(jax.grad(by_steps))(0.7), jax.grad(whole)(0.7), rtol=1e-5)


def test_parameters_of_the_run_go_out_once():
    """``numpyro.param`` sites are the outer world's: SVI substitutes them."""

    def model(y):
        noise = numpyro.param("noise", 2.0)

        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, noise))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, noise)), y)

    def outer():
        return lower(model, (Y,)).initial({"x0": 1.0}).log_initial

    with trace() as sites:
        value = substitute(outer, {"noise": 3.0})()
    np.testing.assert_allclose(value, dist.Normal(0.0, 3.0).log_prob(1.0), rtol=1e-6)
    assert list(sites) == ["noise"]


def test_given_initial_sites_become_parameters_and_named_ones_initial():
    ss = lower(plain, (Y,), {}, {"phi": 0.7, "sigma": 0.8, "x0": 0.4})
    assert not ss.initial_sites
    np.testing.assert_allclose(
        walk(ss, {}, {"x": X}),
        walk(lower(*MODELS["plain"][:2], {}, {"phi": 0.7, "sigma": 0.8}), START, {"x": X}),
    )

    def hierarchy(y):  # m does not reach the first carry but through the law of x0
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        scan(
            lambda x, y_t: (numpyro.sample("x", dist.Normal(x, 1.0)), None),
            numpyro.sample("x0", dist.Normal(m, 1.0)),
            y,
        )

    assert list(lower(hierarchy, (Y,), initial=("m", "x0")).initial_sites) == ["m", "x0"]
    with pytest.raises(ModelError, match="Parameter 'm' has no value"):
        lower(hierarchy, (Y,))


# Missing data


def test_nan_is_not_seen():
    parameters = {"phi": 0.7, "sigma": 0.8}
    y = np.array([0.3, np.nan, 0.8, np.nan], np.float32)
    ss = lower(plain, (y,), {}, parameters)
    seen = [dist.Normal(X[t], 1.0).log_prob(Y[t]) for t in (0, 2)]
    latent = walk(ss, START, {"x": X}) - sum(seen)
    nothing = lower(plain, (np.full(4, np.nan, np.float32),), {}, parameters)
    np.testing.assert_allclose(latent, walk(nothing, START, {"x": X}), rtol=1e-5)
    _, log_weight = ss.propagate(random.key(0), ss.initial(START).particle, ss.inputs(1))
    assert float(log_weight) == 0.0
    slope = jax.grad(lambda phi: walk(lower(plain, (y,), {}, {**parameters, "phi": phi}), START, {"x": X}))(
        0.7
    )
    assert np.isfinite(slope)


COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.1], [-0.3, 0.1, 0.7]], np.float32)
LOC = np.array([0.2, -0.4, 1.0], np.float32)
OBSERVED = {
    "normal vector": (
        lambda: dist.MultivariateNormal(LOC, COVARIANCE),
        lambda s: (LOC[s], COVARIANCE[np.ix_(s, s)]),
    ),
    "independent": (
        lambda: dist.Normal(LOC, 0.7).to_event(1),
        lambda s: (LOC[s], 0.49 * np.eye(3)[np.ix_(s, s)]),
    ),
    "batch": (lambda: dist.Normal(LOC, 0.7), lambda s: (LOC[s], 0.49 * np.eye(3)[np.ix_(s, s)])),
    "expanded": (
        lambda: dist.Normal(0.3, 0.7).expand([3]).to_event(1),
        lambda s: (0.3 + 0 * LOC[s], 0.49 * np.eye(3)[np.ix_(s, s)]),
    ),
}


@pytest.mark.parametrize("law", OBSERVED)
@pytest.mark.parametrize("seen", [(), (1,), (0, 2), (0, 1, 2)])
def test_part_of_an_observation(law, seen):
    fn, marginal = OBSERVED[law]
    y = np.full(3, np.nan, np.float32)
    y[list(seen)] = [0.5, -1.0, 0.9][: len(seen)]

    def model(y):
        scan(lambda x, y_t: (x, numpyro.sample("y", fn(), obs=y_t)), 0.0, y)

    ss = lower(model, (y[None],))
    value = float(ss.step(ss.initial({}).particle, {}, ss.inputs(0)).log_emission)
    loc, covariance = marginal(list(seen))
    expected = dist.MultivariateNormal(loc, covariance).log_prob(y[list(seen)]) if seen else 0.0
    assert value == pytest.approx(float(expected), rel=1e-5)


def test_masks_hide_observations_and_are_lifted_from_latent_sites():
    def model(y, seen):
        def step(x, inputs):
            y_t, seen_t = inputs
            with mask(mask=seen_t):
                x = numpyro.sample("x", dist.Normal(x, 1.0))
                numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), (y, seen))

    ss = lower(model, (Y, np.array([True, False, True, False])))
    particle = ss.initial(START).particle
    step = ss.step(particle, {"x": 0.7}, ss.inputs(1))
    assert float(step.log_emission) == 0.0
    np.testing.assert_allclose(step.log_transition, dist.Normal(0.4, 1.0).log_prob(0.7), rtol=1e-6)
    assert float(ss.propagate(random.key(0), particle, ss.inputs(1))[1]) == 0.0
    assert float(ss.step(particle, {"x": 0.7}, ss.inputs(0)).log_emission) != 0.0


def test_a_law_without_a_known_value_cannot_hold_nan():
    class Odd(dist.Normal):
        support = dist.constraints.dependent(is_discrete=False, event_dim=0)

    def model(y):
        scan(lambda x, y_t: (x, numpyro.sample("y", Odd(0.0, 1.0), obs=y_t)), 0.0, y)

    with pytest.raises(ModelError, match="'y'.*NaN"):
        lower(model, (Y,))


# Refusals


def sampled(name="x", loc=0.0):
    return numpyro.sample(name, dist.Normal(loc, 1.0))


def walks(x, _):
    return sampled("x", x), None


def no_scan():
    sampled()


def two_scans():
    scan(walks, 0.0, None, length=2)
    scan(walks, 0.0, None, length=2)


def nested():
    scan(lambda x, _: scan(walks, x, None, length=2), 0.0, None, length=2)


def subsampled():
    def step(x, _):
        with numpyro.plate("batch", 10, subsample_size=2):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=jnp.zeros(2))
        return sampled("x", x), None

    scan(step, 0.0, None, length=2)


def after():
    last, _ = scan(walks, 0.0, None, length=2)
    numpyro.sample("end", dist.Normal(last, 1.0), obs=0.0)


def parameter_inside():
    scan(lambda x, _: (sampled("x", x) * numpyro.param("w", 1.0), None), 0.0, None, length=2)


def another_carry():
    scan(lambda x, _: ((sampled("x", x), 0.0), None), 0.0, None, length=2)


def another_dtype():
    scan(lambda x, _: (sampled("x", x), None), 0, None, length=2)


def leaking():
    m = sampled("m")
    scan(lambda x, _: (sampled("x", x + m), None), m, None, length=2)


def forgotten():
    m = sampled("m")
    scan(lambda x, _: (sampled("x", x + m), None), 0.0, None, length=2)


def masked_around():
    with mask(mask=jnp.array([True, False])):
        scan(walks, 0.0, None, length=2)


def twice():
    def step(x, _):
        sampled("x", x)
        return sampled("x", x), None

    scan(step, 0.0, None, length=2)


def conditioned_in_part():
    condition(lambda: scan(walks, 0.0, None, length=4), {"x": jnp.zeros(3)})()


def by_function():
    condition(lambda: scan(walks, 0.0, None, length=4), condition_fn=lambda msg: None)()


REFUSED = {
    no_scan: "no numpyro.contrib.control_flow.scan",
    two_scans: "two scans",
    nested: "scan or cond of NumPyro inside",
    subsampled: "Plate 'batch' is subsampled",
    after: "'end' stands after the scan",
    parameter_inside: r"'w' \(param\) stands inside the step",
    another_carry: "another structure",
    another_dtype: r"from int32\[\] into float32\[\]",
    leaking: "Site 'm' has a value of its own for each particle",
    forgotten: "Parameter 'm' has no value",
    masked_around: "masks or changes site 'x'",
    twice: "Site 'x' appears twice",
    conditioned_in_part: "neither one step's nor that of all",
    by_function: "handler with a function",
}


@pytest.mark.parametrize("model", REFUSED, ids=lambda f: f.__name__)
def test_refused(model):
    with pytest.raises(ModelError, match=REFUSED[model]):
        lower(model)


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match="lower: model 'plain' takes"):
        lower(plain)
    with pytest.raises(ModelError, match="No latent site 'psi' to give a value"):
        lower(plain, (Y,), {}, {"phi": 0.7, "sigma": 0.8, "psi": 1.0})
    with pytest.raises(ModelError, match="initial names 'phi'"):
        lower(plain, (Y,), {}, {"phi": 0.7, "sigma": 0.8}, initial=("phi",))
    with pytest.raises(ModelError, match="Shapes disagree at site 'phi'"):
        lower(plain, (Y,), {}, {"phi": np.zeros(2), "sigma": 0.8})
    with pytest.raises(ProgramError, match="plain"):
        lower(plain, ("data",), {}, {"phi": 0.7, "sigma": 0.8})


def test_a_leak_is_cured_by_naming_the_parameter():
    assert list(lower(leaking, parameters={"m": 1.0}).parameters) == ["m"]


# Streaming


def test_one_slice_after_another_walks_the_same_way():
    parameters = {"phi": 0.7, "sigma": 0.8}
    whole = lower(plain, (Y,), {}, parameters)
    a = b = whole.initial(START).particle
    for t in range(4):
        one = lower(plain, (time_slice(Y[t]),), {}, parameters)
        a, b = (
            whole.propagate(random.key(t), a, whole.inputs(t)),
            one.propagate(random.key(t), b, one.inputs(0)),
        )
        jax.tree.map(np.testing.assert_array_equal, a, b)
        a, b = a[0], b[0]


def test_a_clock_of_the_models_own_is_found():
    def clocked(y):
        def step(x, inputs):
            y_t, t = inputs
            x = numpyro.sample("x", dist.Normal(x, 1.0 + t))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), (y, jnp.arange(len(y))))

    lower(clocked, (Y,))
    with pytest.raises(ModelError, match=r"input \[1\] changes with time"):
        check_streams(clocked, (time_slice(Y[0]),))
    with pytest.raises(ModelError, match="4 steps"):
        check_streams(clocked, (Y,))
    check_streams(plain, (time_slice(Y[0]),), {}, {"phi": 0.7, "sigma": 0.8})


@pytest.mark.parametrize("then", [1.0, np.nan])
def test_an_input_that_is_missing_at_every_time_is_no_clock(then):
    def known_first(y):
        def step(x, inputs):
            y_t, extra = inputs
            x = numpyro.sample("x", dist.Normal(0.5 * x + jnp.where(jnp.isnan(extra), 0.0, extra), 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(
            step,
            numpyro.sample("x0", dist.Normal(0.0, 1.0)),
            (y, jnp.where(jnp.arange(len(y)) > 0, then, np.nan)),
        )

    if np.isnan(then):
        check_streams(known_first, (time_slice(Y[0]),))
    else:
        with pytest.raises(ModelError, match=r"input \[1\] changes with time"):
            check_streams(known_first, (time_slice(Y[0]),))


def test_nothing_leaks_into_the_handlers_outside():
    def outer():
        ss = lower(plain, (Y,), {}, {"phi": 0.7, "sigma": 0.8})
        return ss.propagate(random.key(1), ss.initial(START).particle, ss.inputs(0))

    with trace() as sites:
        inside = seed(outer, 0)()
    assert not sites
    jax.tree.map(np.testing.assert_array_equal, inside, outer())


def test_a_lifted_mask_is_needed(monkeypatch):
    """The twin: with the mask left on, a hidden draw would be weighed by the inverse of its law."""
    terms = RunUpToScan.terms
    monkeypatch.setattr(
        "ppl_ext.state_space.site_runs.SiteRun.terms",
        lambda self, latent, scales, bare=True: terms(self, latent, scales, False),
    )
    with pytest.raises(AssertionError):
        test_masks_hide_observations_and_are_lifted_from_latent_sites()
