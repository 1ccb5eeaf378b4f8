"""NumPyro's handlers around a model with a scan, or in its steps: filters, smoothers and samplers take what
they do to the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density as numpyro_log_density

from ppl_ext import log_density, marginal, simulate
from ppl_ext.algorithms import ExactFilter, ParticleFilter
from ppl_ext.errors import ModelError
from ppl_ext.infer import PMMH, ParticleGibbs
from ppl_ext.smoothing import OnlineSmoother, smooth
from ppl_ext.tracing.scoped_scans import Reaching, as_written

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
Y = np.array([0.4, -0.2, 1.0], np.float32)


def model(y, scale=None, x0=None, centred=None, key=None):
    s = numpyro.sample("s", dist.HalfNormal(1.0)) if scale is None else scale

    def step(x_prev, y_t):
        with handlers.reparam(config={} if centred is None else {"x": LocScaleReparam(centred)}):
            x = numpyro.sample("x", dist.Normal(0.9 * x_prev, s), rng_key=key)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)) if x0 is None else x0, y)


def of(**options):
    return lambda y: model(y, **options)


HALF = {"s": 0.5}
SAME = {  # a program, the parameters it wants, the plain program that it is
    "scope": (handlers.scope(model, prefix="a"), {"a/s": 0.5}, of(scale=0.5)),
    "scopes": (
        handlers.scope(handlers.scope(model, prefix="a"), prefix="b", divider="."),
        {"b.a/s": 0.5},
        of(scale=0.5),
    ),
    "reparam in the step": (of(centred=0.0), HALF, of(scale=0.5)),
    "learned reparam in the step": (of(centred=0.3), HALF, of(scale=0.5)),
    "reparam before the scan": (
        handlers.reparam(model, config={"x0": LocScaleReparam(0.0)}),
        HALF,
        of(scale=0.5),
    ),
    "do": (handlers.do(model, {"s": jnp.array(0.5)}), {}, of(scale=0.5)),
    "do of the first state": (handlers.do(model, {"x0": jnp.array(0.3)}), HALF, of(scale=0.5, x0=0.3)),
    "substitute": (handlers.substitute(model, {"s": jnp.array(0.5)}), {}, of(scale=0.5)),
    "substitute in a scope": (
        handlers.scope(handlers.substitute(model, {"s": 0.5}), prefix="a"),
        {},
        of(scale=0.5),
    ),
    "substitute around a scope": (
        handlers.substitute(handlers.scope(model, prefix="a"), {"a/s": 0.5}),
        {},
        of(scale=0.5),
    ),
    "seed": (handlers.seed(model, 3), HALF, of(scale=0.5)),
    "a key of the site's own": (of(key=jax.random.key(3)), HALF, of(scale=0.5)),
    "mask(True)": (handlers.mask(model, mask=True), HALF, of(scale=0.5)),
}


@pytest.mark.parametrize("backward", ["exact", "mcmc"])
@pytest.mark.parametrize("case", SAME)
def test_it_is_the_plain_model(case, backward):
    program, params, plain = SAME[case]

    def run(program, params):
        result = smooth(
            program, {"x": lambda t, x_prev, x: x_prev * x}, num_particles=400, backward=backward
        ).run(KEY, Y, params=params)
        (x,) = (v for n, v in result.sample(jax.random.key(1), 2).items() if n.endswith("x"))
        assert x.shape == (2, 3)
        return result.log_evidence, result.expectations["x"]

    off = 1e-4 if backward == "exact" else 0.2  # particles of another key
    for found, expected in zip(run(program, params), run(plain, {}), strict=True):
        np.testing.assert_allclose(found, expected, atol=off)


# a marginal keeps something
@pytest.mark.parametrize("case", [case for case, (_, params, _) in SAME.items() if params])
def test_a_particle_filter_estimates_the_same_evidence(case):
    program, params, plain = SAME[case]
    exact = smooth(plain, backward="exact").run(KEY, Y).log_evidence
    at = log_density(marginal(program, list(params), ExactFilter()), params, Y).total
    np.testing.assert_allclose(at - dist.HalfNormal(1.0).log_prob(0.5), exact, rtol=1e-4)
    filtered = marginal(program, list(params), ParticleFilter(4))
    log_w = (
        jax.jit(jax.vmap(lambda key: log_density(filtered, params, Y, rng_key=key).total))(
            jax.random.split(KEY, 4000)
        )
        - at
    )
    ratio = np.exp(np.asarray(log_w, np.float64))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(4000) < 0.1


def moments(program, y, **options):
    mcmc = MCMC(ParticleGibbs(program, 10, **options), num_warmup=200, num_samples=4000, progress_bar=False)
    mcmc.run(KEY, y)
    return {n.split("/")[-1]: np.asarray(v) for n, v in mcmc.get_samples().items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["scope", "scopes", "reparam in the step"])
def test_particle_gibbs_samples_the_same_posterior(case):
    """The data are such that states drawn anew, by a kernel that does not reach them, would show."""
    y = np.array([2.0, -2.0, 2.0, -2.0, 2.0], np.float32)
    found, expected = moments(SAME[case][0], y), moments(model, y)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        np.testing.assert_allclose(x.mean(0), expected[name].mean(0), atol=0.15)


@pytest.mark.filterwarnings("ignore:init_to_:UserWarning")
@pytest.mark.parametrize(
    "case", ["scope", "reparam in the step", "do", "do of the first state", "substitute", "seed"]
)
def test_particle_gibbs_runs(case):
    mcmc = MCMC(ParticleGibbs(SAME[case][0], 5), num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(KEY, Y)
    prefix = "a/" if case == "scope" else ""
    assert {n: x.shape for n, x in mcmc.get_samples().items()} == {
        f"{prefix}s": (3,),
        f"{prefix}x": (3, 3),
        f"{prefix}x0": (3,),
    }


def test_pmmh_and_streams_take_a_scope():
    scoped = SAME["scope"][0]
    mcmc = MCMC(PMMH(scoped, num_particles=10), num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(KEY, Y)
    assert list(mcmc.get_samples()) == ["a/s"]
    found = []
    for program, params in ((scoped, {"a/s": 0.5}), (model, HALF)):
        online = OnlineSmoother(program, {"x": lambda t, x_prev, x: x}, num_particles=20)
        state = online.init(KEY, params=params)
        for y_t in Y:
            state = online.step(state, y_t)
        found.append(online.result(state).expectations["x"])
    assert found[0] == found[1]


def test_values_by_long_and_by_bare_names_reach_the_steps():
    path = jnp.array([0.1, 0.2, 0.3])
    expected = (
        smooth(handlers.substitute(model, {"x": path}), num_particles=20, backward="path")
        .run(KEY, Y, params=HALF)
        .log_evidence
    )
    inside = handlers.scope(handlers.substitute(model, {"x": path}), prefix="a")
    outside = handlers.substitute(handlers.scope(model, prefix="a"), {"a/x": path})
    for program in (inside, outside):
        found = (
            smooth(program, num_particles=20, backward="path").run(KEY, Y, params={"a/s": 0.5}).log_evidence
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_values_reach_the_steps_under_kernels_of_numpyros():
    """By NumPyro's own ``log_density``, which without :class:`Reaching` draws the sites of the steps of a
    scoped model anew.
    """
    path, values = jnp.array([0.1, 0.2, 0.3]), {"s": jnp.array(0.5), "x0": jnp.array(0.2)}
    expected = numpyro_log_density(model, (Y,), {}, {**values, "x": path})[0]
    long = {f"a/{n}": v for n, v in values.items()}
    by_long = Reaching(handlers.scope(model, prefix="a"))
    by_bare = Reaching(handlers.scope(handlers.substitute(model, {"x": path}), prefix="a"))
    for program, given in ((by_long, {**long, "a/x": path}), (by_bare, long)):
        np.testing.assert_allclose(
            numpyro_log_density(handlers.seed(program, 0), (Y,), {}, given)[0], expected, rtol=1e-5
        )
        assert (
            {"a/x", "a/y"}
            <= set(handlers.trace(handlers.seed(program, 0)).get_trace(Y))
            <= {"a/s", "a/x0", "a/x", "a/y"}
        )


def test_condition_observes_and_substitute_does_not():
    exact = smooth(model, backward="exact").run(KEY, Y, params=HALF).log_evidence
    observed = (
        smooth(handlers.condition(model, {"s": jnp.array(0.5)}), backward="exact").run(KEY, Y).log_evidence
    )
    np.testing.assert_allclose(observed - exact, dist.HalfNormal(1.0).log_prob(0.5), rtol=1e-4)


def test_the_density_of_what_a_handler_gives_counts_once_in_a_marginal():
    program = handlers.substitute(model, {"s": jnp.array(0.5)})
    kept = log_density(marginal(program, ["x0"], ExactFilter()), {"x0": 0.3}, Y).total
    whole = log_density(marginal(model, ["s", "x0"], ExactFilter()), {"s": 0.5, "x0": 0.3}, Y).total
    np.testing.assert_allclose(kept, whole, rtol=1e-5)


@pytest.mark.parametrize("mask", [[True, False, True], [False, False, False]])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_mask_of_times_around_the_scan(mask, reverse):
    """Of the observed site alone; a latent one is drawn from its law where it is masked, as with a mask
    inside.
    """

    def masked(y, outside):
        def step(x_prev, inputs):
            y_t, m = inputs
            x = numpyro.sample("x", dist.Normal(0.9 * x_prev, 0.5))
            numpyro.sample("y", dist.Normal(x, 1.0).mask(True if outside else m), obs=y_t)
            return x, None

        with handlers.mask(mask=jnp.array(mask) if outside else True):
            scan(step, 0.0, (y, jnp.array(mask)), reverse=reverse)

    found = [smooth(masked, backward="exact").run(KEY, Y, outside).log_evidence for outside in (True, False)]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("observed", [0.0, 1.0])
@pytest.mark.parametrize("backward", ["exact", "mcmc"])
def test_a_mask_around_a_chain_of_finite_states(backward, observed):
    """Each outcome of a masked state counts one, and of each step both, as in ``log_density``."""

    def chain(y, mask):
        def step(z_prev, y_t):
            z = numpyro.sample(
                "z", dist.Bernoulli(jnp.where(z_prev == 1, 0.8, 0.3)), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y_t)
            return z, None

        with handlers.mask(mask=mask):
            scan(step, jnp.array(1), y)

    y = observed * jnp.ones(3)
    expected = float(log_density(chain, {}, y, False).total)
    found = smooth(chain, num_particles=2000, backward=backward).run(KEY, y, False).log_evidence
    np.testing.assert_allclose(found, expected, rtol=1e-5 if backward == "exact" else 0.02)
    np.testing.assert_allclose(expected, 3 * np.log(2.0), rtol=1e-5)


@pytest.mark.parametrize("counted", [handlers.mask(mask=False), handlers.scale(scale=0.5)])
def test_a_site_whose_law_does_not_sum_to_one_needs_a_value_though_nothing_depends_on_it(counted):
    def program(y):
        with counted:
            numpyro.sample("kind", dist.Bernoulli(0.3))
        model(y, scale=0.5)

    with pytest.raises(ModelError, match="Parameter 'kind' has no value"):
        smooth(program, num_particles=5).run(KEY, Y)


def test_reparam_is_back_whatever_ends_first():
    own, both = handlers.reparam.process_message, [as_written(), as_written()]
    for each in both:
        each.__enter__()
    for each in both:  # not the last that was opened
        assert handlers.reparam.process_message is not own
        each.__exit__(None, None, None)
    assert handlers.reparam.process_message is own


def test_what_is_refused_says_why():
    cases = {
        "handlers.do around the scan does not reach site 'x'": (
            handlers.do(model, {"x": jnp.zeros(3)}),
            HALF,
        ),
        "Parameter 's' has a value from a handler inside the model already": (
            handlers.substitute(model, {"s": jnp.array(0.5)}),
            HALF,
        ),
        "Parameter 's' has no value: give one, {'s': ...}, among the parameters": (model, {}),
    }
    for words, (program, params) in cases.items():
        with pytest.raises(ModelError) as error:
            smooth(program, num_particles=5).run(KEY, Y, params=params)
        assert words in str(error.value)


def test_a_draw_of_the_scoped_model_has_its_density():
    scoped = SAME["scope"][0]
    draw = simulate(scoped, Y, rng_key=KEY)
    bare = {n.removeprefix("a/"): v for n, v in draw.values.items()}
    for total in (log_density(scoped, draw.values, Y).total, log_density(model, bare, Y).total):
        np.testing.assert_allclose(total, draw.log_density.total, rtol=1e-5)
