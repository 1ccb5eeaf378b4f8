"""Marginals and normalized programs are NumPyro programs, stay inside themselves, and say what is wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.diagnostics
import numpyro.distributions as dist
import numpyro.handlers
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import ppl_ext
from ppl_ext import expectation, log_density, marginal, normalize, replicate, simulate
from ppl_ext.algorithms import Enumeration, ImportanceSampling
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.handlers import detach, gradient
from ppl_ext.objectives import ELBO, IWELBO
from tests.oracles import quick_jit

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
Y = jnp.array([0.3, 1.9, -0.4])


def pair():
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(u, 1.0))


def switching(y=Y):
    """A positive scale, a coin for each point, and data."""
    s = numpyro.sample("s", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("n", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(1.5 * k, s), obs=y)


def log_summed(s, y=Y):
    """log p(s, y) with the coins summed out."""
    either = [jnp.log(p) + dist.Normal(1.5 * k, s).log_prob(y) for k, p in ((0, 0.7), (1, 0.3))]
    return dist.LogNormal(0.0, 0.5).log_prob(s) + jnp.logaddexp(*either).sum()


def mean_under(log_joint):
    grid = jnp.exp(jnp.linspace(-4.0, 4.0, 4001))
    weights = jax.nn.softmax(jax.vmap(log_joint)(grid) + jnp.log(grid))
    return float(weights @ grid)


@pytest.mark.slow
def test_numpyro_sees_the_kept_sites_and_one_factor():
    trace = numpyro.handlers.trace(
        numpyro.handlers.seed(marginal(pair, ["x"], ImportanceSampling(3)), KEY)
    ).get_trace()
    assert list(trace) == ["x", "marginal(x)"]
    assert not trace["x"]["is_observed"] and trace["marginal(x)"]["is_observed"]
    trace = numpyro.handlers.trace(
        numpyro.handlers.seed(normalize(pair, {"x": 1.0}, ImportanceSampling(3)), KEY)
    ).get_trace()
    assert list(trace) == ["u", "normalize(u)"]


def test_it_returns_the_kept_values_and_sits_inside_a_larger_model():
    def larger():
        x = marginal(pair, ["x"], ImportanceSampling(2))()["x"]
        u = normalize(pair, {"x": x}, ImportanceSampling(2))()["u"]
        numpyro.sample("z", dist.Normal(x + u, 1.0))

    draw = simulate(larger, rng_key=KEY)
    assert set(draw.values) == {"x", "u", "z"}
    assert set(draw.log_density.by_site) == {"x", "u", "z", "marginal(x)", "normalize(u)"}
    scored = log_density(larger, draw.values, rng_key=KEY)
    assert jnp.isfinite(scored.total)


@pytest.mark.parametrize("algorithm", [Enumeration(), ImportanceSampling(4)])
@pytest.mark.slow
def test_nuts(algorithm):
    """Exactly, and with the fixed particles of one key, where the target is what that key makes of it."""
    program = marginal(switching, ["s"], algorithm)
    mcmc = MCMC(NUTS(program), num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(1))
    draws = mcmc.get_samples()
    assert list(draws) == ["s"]
    if isinstance(algorithm, Enumeration):
        ess = numpyro.diagnostics.effective_sample_size(np.asarray(draws["s"])[None])
        assert abs(draws["s"].mean() - mean_under(log_summed)) < 4.5 * draws["s"].std() / np.sqrt(ess)
    else:
        assert np.isfinite(draws["s"]).all()


@pytest.mark.slow
def test_svi_with_our_objectives_and_numpyros():
    def guide_program(y=Y):
        u = numpyro.sample("u", dist.Normal(numpyro.param("m", 0.0), 0.3))
        numpyro.sample("s", dist.LogNormal(u, numpyro.param("sd", 0.5, constraint=dist.constraints.positive)))

    def reverse(given, y=Y):
        slope = numpyro.param("slope", 0.1)
        numpyro.sample("u", dist.Normal(slope * jnp.log(given["s"]), 0.5))

    guide = marginal(guide_program, ["s"], ImportanceSampling(3, reverse))
    model = marginal(switching, ["s"], Enumeration())
    evidence = float(
        jax.scipy.special.logsumexp(jax.vmap(lambda t: log_summed(jnp.exp(t)) + t)(jnp.linspace(-4, 4, 4001)))
        + np.log(8 / 4000)
    )
    for loss in (ELBO(4), IWELBO(4), Trace_ELBO(4)):
        svi = SVI(model, guide, optax.adam(0.02), loss=loss)
        result = svi.run(jax.random.key(2), 400, Y, progress_bar=False)
        assert set(result.params) == {"m", "sd", "slope"}
        losses = np.asarray(result.losses[-100:])
        assert losses.mean() < np.asarray(result.losses[:20]).mean()
        assert evidence - 0.5 < -losses.mean() < evidence + 4.5 * losses.std() / 10


@pytest.mark.slow
def test_svi_with_an_autoguide_of_a_marginal():
    model = marginal(switching, ["s"], Enumeration())
    result = SVI(model, AutoNormal(model), optax.adam(0.02), loss=ELBO(2)).run(KEY, 50, progress_bar=False)
    assert np.isfinite(result.losses).all()


def test_predictive_from_the_prior_and_from_draws():
    program = marginal(pair, ["x"], ImportanceSampling(2))
    draws = Predictive(program, num_samples=4000)(KEY)
    assert abs(draws["x"].mean()) < 4.5 * np.sqrt(2 / 4000) and abs(draws["x"].var() - 2) < 0.25
    fixed = Predictive(program, {"x": jnp.arange(3.0)}, return_sites=["x", "marginal(x)"])(KEY)
    np.testing.assert_array_equal(fixed["x"], jnp.arange(3.0))
    drawn = Predictive(normalize(pair, {"x": 2.0}, ImportanceSampling(20)), num_samples=2000)(KEY)
    assert abs(drawn["u"].mean() - 1.0) < 0.15


def test_condition_and_substitute():
    program = marginal(switching, ["s"], Enumeration())
    for handler in (numpyro.handlers.condition, numpyro.handlers.substitute):
        density = simulate(handler(program, {"s": jnp.array(0.8)}), rng_key=KEY).log_density.total
        np.testing.assert_allclose(density, log_summed(0.8), rtol=1e-5)


def test_partly_given_sites_score_without_bias():
    def triple():
        pair()
        numpyro.sample("v", dist.Normal(0.0, 1.0))

    program = numpyro.handlers.condition(marginal(triple, ["x", "v"], ImportanceSampling(2)), {"x": 0.5})
    draw = simulate(program, rng_key=KEY)
    assert list(draw.values) == ["v"]
    assert draw.log_density.labels[-1].estimate.kind == "unbiased"


def test_it_is_a_value():
    """Arrays in the program, the data and the arguments are leaves; equal structure does not compile
    again.
    """

    class Shifted(eqx.Module):
        loc: jax.Array

        def __call__(self, scale):
            u = numpyro.sample("u", dist.Normal(self.loc, 1.0))
            numpyro.sample("x", dist.Normal(u, scale))

    traces = []

    @eqx.filter_jit
    def run(program, scale, key):
        traces.append(1)
        return simulate(program, scale, rng_key=key).log_density.total

    for loc in (0.0, 1.0):
        program = marginal(Shifted(jnp.array(loc)), ["x"], ImportanceSampling(2))
        eager = simulate(program, jnp.array(2.0), rng_key=KEY).log_density.total
        np.testing.assert_allclose(run(program, jnp.array(2.0), KEY), eager, rtol=1e-5)
    assert len(traces) == 1
    keys = jax.random.split(KEY, 3)
    stacked = jax.vmap(lambda key: run(program, jnp.array(2.0), key))(keys)
    np.testing.assert_allclose(stacked, [run(program, jnp.array(2.0), key) for key in keys], rtol=1e-5)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "legacy"])
def test_both_kinds_of_keys(key):
    for program in (
        marginal(pair, ["x"], ImportanceSampling(2)),
        normalize(pair, {"x": 0.1}, ImportanceSampling(2)),
    ):
        assert jnp.isfinite(simulate(program, rng_key=key).log_density.total)


@pytest.mark.slow
def test_double_precision():
    with jax.enable_x64(True):
        for program in (
            marginal(pair, ["x"], ImportanceSampling(2)),
            normalize(pair, {"x": 0.1}, ImportanceSampling(2)),
        ):
            assert simulate(program, rng_key=KEY).log_density.total.dtype == jnp.float64


def test_inside_replicate():
    def two():
        return replicate(lambda: simulate(marginal(pair, ["x"], ImportanceSampling(2))).values["x"], 500)

    spread = expectation(lambda: two().var()).value(KEY)
    assert abs(spread - 2) < 0.7


@pytest.mark.slow
def test_particles_are_independent():
    """In one call, hidden sites get keys of their own: with more particles the estimate has less spread."""

    def spread(num):
        program = marginal(pair, ["x"], ImportanceSampling(num))
        return float(
            jax.vmap(lambda key: log_density(program, {"x": 1.0}, rng_key=key).total)(
                jax.random.split(KEY, 500)
            ).std()
        )

    assert spread(16) < 0.4 * spread(1)


def test_a_detached_marginal_carries_no_gradient():
    def program():
        u = numpyro.sample("u", dist.Normal(numpyro.param("m", 0.0), 1.0))
        numpyro.sample("x", dist.Normal(u, 1.0))

    def total(m, wrap):
        guide = wrap(numpyro.handlers.substitute(marginal(program, ["x"], ImportanceSampling(2)), {"m": m}))
        draw = simulate(guide)
        return draw.log_density.total + draw.values["x"]

    for wrap, moves in ((detach, False), (lambda program: program, True)):
        _, slope = expectation(lambda m, wrap=wrap: total(m, wrap)).value_and_grad(KEY, 0.3)
        assert (slope != 0) == moves


def test_parameters_inside_are_registered_once_and_unbatched():
    def reverse(given):
        loc = numpyro.param("loc", lambda key: jax.random.normal(key, (2,)))
        numpyro.sample("u", dist.Normal(loc[0] + given["x"], 1.0))

    trace = numpyro.handlers.trace(
        numpyro.handlers.seed(marginal(pair, ["x"], ImportanceSampling(3, reverse)), KEY)
    ).get_trace()
    assert trace["loc"]["value"].shape == (2,)


def test_modules_inside():
    nnx = pytest.importorskip("flax.nnx")
    from numpyro.contrib.module import nnx_module

    network = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def program():
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(nnx_module("net", network)(u[None])[0], 1.0))

    guide = marginal(program, ["x"], ImportanceSampling(3))
    result = SVI(
        lambda: numpyro.sample("x", dist.Normal(1.0, 2.0)), guide, optax.adam(0.01), loss=ELBO()
    ).run(KEY, 5, progress_bar=False)
    assert list(result.params) == ["net$params"] and np.isfinite(result.losses).all()


def test_plates_inside_are_one_joint_weight():
    def local():
        with numpyro.plate("n", 3):
            u = numpyro.sample("u", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(2.0 * u, 1.0))

    x = jnp.array([0.1, 1.5, 2.2])
    either = [jnp.log(p) + dist.Normal(2.0 * k, 1.0).log_prob(x) for k, p in ((0, 0.6), (1, 0.4))]
    exact = jnp.logaddexp(*either).sum()
    np.testing.assert_allclose(
        log_density(marginal(local, ["x"], Enumeration()), {"x": x}, rng_key=KEY).total, exact, rtol=1e-5
    )
    program = marginal(local, ["x"], ImportanceSampling(3))
    log_w = quick_jit(jax.vmap(lambda key: log_density(program, {"x": x}, rng_key=key).total))(
        jax.random.split(KEY, 20_000)
    )
    ratio = np.exp(np.asarray(log_w, np.float64) - float(exact))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))


# Nothing possible


@pytest.mark.parametrize("algorithm", [ImportanceSampling(3), ImportanceSampling(1), Enumeration()])
@pytest.mark.slow
def test_impossible_data_give_no_nan(algorithm):
    def impossible():
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Bernoulli(0.5))
        numpyro.factor("never", jnp.where(k >= 0, -jnp.inf, 0.0))

    assert log_density(marginal(impossible, ["x"], algorithm), {"x": 1}, rng_key=KEY).total == -jnp.inf
    guide = normalize(impossible, {"x": 1}, algorithm)
    with pytest.warns(UserWarning, match="nothing that the algorithm drew is possible"):
        assert jnp.isnan(simulate(guide, rng_key=KEY).log_density.total)
    assert (
        quick_jit(lambda key: ELBO().loss(key, {}, numpyro.handlers.condition(impossible, {"x": 1}), guide))(
            KEY
        )
        == jnp.inf
    )


# Errors: the type, the site, the remedy

SAMPLER = ImportanceSampling(2)


def in_scan():
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    scan(lambda c, _: (numpyro.sample("x", dist.Normal(c, 1.0)), None), u, None, length=3)


def subsampled():
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 10, 2):
        numpyro.sample("x", dist.Normal(u, 1.0))


def with_data():
    pair()
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0)


def proposing(*names):
    return ImportanceSampling(
        2, lambda given: [numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]
    )


def in_plate(program):
    def run():
        with numpyro.plate("rows", 3):
            program()

    return run


def test_a_proposal_that_is_a_point_is_named():
    point = ImportanceSampling(2, lambda given: numpyro.sample("u", dist.Delta(0.3)))
    with pytest.raises(ModelError, match="draws 'u' at a single point.*fitted AutoNormal"):
        simulate(marginal(pair, ["x"], point), rng_key=jax.random.key(0))


def test_a_point_of_the_model_is_proposed_as_one():
    """It is no point of the proposal's making: every draw has the weight of the data."""

    def program():
        u = numpyro.sample("u", dist.Delta(jnp.array(0.3)))
        numpyro.sample("x", dist.Normal(u, 1.0))

    proposed = ImportanceSampling(2, lambda given: numpyro.sample("u", dist.Delta(jnp.array(0.3))))
    found = ppl_ext.log_density(marginal(program, ["x"], proposed), {"x": 1.0}, rng_key=jax.random.key(0))
    np.testing.assert_allclose(found.total, dist.Normal(0.3, 1.0).log_prob(1.0), rtol=1e-6)


BAD = {
    "unknown kept site": (
        marginal(pair, ["x", "w"], SAMPLER),
        ModelError,
        r"no latent site 'w' to keep; it has 'u', 'x'",
    ),
    "everything kept": (
        marginal(pair, ["x", "u"], SAMPLER),
        ModelError,
        r"every latent site \('u', 'x'\).*use the program itself",
    ),
    "observed site kept": (marginal(with_data, ["x", "y"], SAMPLER), ModelError, "'y' is observed"),
    "scan": (marginal(in_scan, ["u"], SAMPLER), ModelError, "does not reach into scan"),
    "subsampled plate": (
        marginal(subsampled, ["x"], SAMPLER),
        ModelError,
        "Plate 'rows' is subsampled.*full data",
    ),
    "open plate": (
        in_plate(marginal(pair, ["x"], SAMPLER)),
        ModelError,
        r"marginal\(x\) is called inside plate 'rows'.*Move the plate",
    ),
    "open plate around normalize": (
        in_plate(normalize(pair, {"x": 1.0}, SAMPLER)),
        ModelError,
        "inside plate 'rows'",
    ),
    "proposal misses a site": (marginal(pair, ["x"], proposing()), ModelError, "misses 'u'"),
    "a guide for a proposal": (
        marginal(pair, ["x"], ImportanceSampling(2, lambda: numpyro.sample("u", dist.Normal(0.0, 1.0)))),
        ArgumentError,
        r"proposal of marginal '<lambda>' takes \(\).*dict of what is given, and then",
    ),
    "proposal has an extra site": (
        marginal(pair, ["x"], proposing("u", "h")),
        ModelError,
        r"draws 'h'.*ppl_ext\.marginal\(proposal",
    ),
    "unknown data": (
        normalize(pair, {"w": 1.0}, SAMPLER),
        ModelError,
        "no latent site 'w' to condition on; it has 'u', 'x'",
    ),
    "all is data": (normalize(pair, {"x": 1.0, "u": 0.0}, SAMPLER), ModelError, "nothing is left to draw"),
    "data of a wrong shape": (
        normalize(pair, {"x": jnp.zeros(3)}, SAMPLER),
        ModelError,
        "Shapes disagree at site 'x'",
    ),
    "not finite": (
        marginal(pair, ["x"], Enumeration()),
        ModelError,
        r"cannot sum over site 'u' \(Normal\).*ImportanceSampling",
    ),
    "part of a posterior given": (
        marginal(normalize(with_data, {}, SAMPLER), ["x"], SAMPLER),
        ModelError,
        r"normalize\(u, x\) has no density for 'x' alone.*proposal",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_programs_say_what_is_wrong(case):
    program, error, words = BAD[case]
    with pytest.raises(error, match=words):
        simulate(program, rng_key=KEY)


def test_too_many_assignments():
    with pytest.raises(ModelError, match=r"8 joint values \('k': 8\).*max_assignments=4"):
        log_density(marginal(switching, ["s"], Enumeration(max_assignments=4)), {"s": 1.0}, rng_key=KEY)


def test_a_kept_site_without_a_value():
    with pytest.raises(ModelError, match="No value for latent site 'x'"):
        log_density(marginal(pair, ["x"], SAMPLER), {}, rng_key=KEY)
    with pytest.raises(ModelError, match="no latent site 'u'"):
        log_density(marginal(pair, ["x"], SAMPLER), {"x": 0.0, "u": 0.0}, rng_key=KEY)
    with pytest.raises(ModelError, match="No value for latent site 'u'"):
        log_density(normalize(pair, {"x": 1.0}, SAMPLER), {}, rng_key=KEY)


def test_no_key():
    with pytest.raises(ModelError, match=r"inside marginal\(x\).*rng_key"):
        log_density(marginal(pair, ["x"], SAMPLER), {"x": 0.0})


@pytest.mark.parametrize("num", [0, -1, 2.0, True, None])
def test_number_of_particles(num):
    with pytest.raises(ArgumentError, match="positive integer"):
        ImportanceSampling(num)
    with pytest.raises(ArgumentError, match="positive integer"):
        Enumeration(num)


def test_arguments():
    with pytest.raises(ArgumentError, match="keeps no site"):
        marginal(pair, [], SAMPLER)
    with pytest.raises(ArgumentTypeError, match=r"write \['x'\]"):
        marginal(pair, "x", SAMPLER)
    for wrap in (lambda *a: marginal(a[0], ["x"], a[1]), lambda *a: normalize(a[0], {}, a[1])):
        with pytest.raises(ArgumentTypeError, match="a callable"):
            wrap(3, SAMPLER)
        with pytest.raises(ArgumentTypeError, match="instance such as"):
            wrap(pair, ImportanceSampling)
    with pytest.raises(ArgumentTypeError, match="dict"):
        normalize(pair, [1.0], SAMPLER)
    with pytest.raises(ArgumentTypeError, match="must be a program"):
        ImportanceSampling(2, proposal=3)


def test_a_pattern_that_matches_nothing_inside():
    with pytest.raises(ModelError, match=r"'u' matches no latent site.*'marginal/u', 'x'"):
        simulate(gradient(marginal(pair, ["x"], SAMPLER), {"u": "score"}), rng_key=KEY)


def test_public_names():
    assert ppl_ext.marginal is marginal and ppl_ext.algorithms.normalize is normalize
