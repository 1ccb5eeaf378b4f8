"""Stochastic gradient MCMC: gradients against all minibatches, stationary moments against exact ones, and
what NumPyro asks of a kernel.
"""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import potential_energy
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import chisquare, kstest

import ppl_ext
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError, ProgramError
from ppl_ext.infer import SGHMC, SGLD, Cyclical, Decay
from ppl_ext.infer.sgmcmc import minibatch, noise
from ppl_ext.infer.sgmcmc import potential as sg_potential
from ppl_ext.infer.sgmcmc.noise import normals

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)


# --- minibatches


@pytest.mark.parametrize(("size", "num"), [(5, 2), (4, 3), (9, 1)])
def test_rows_are_different_and_every_ordered_set_is_as_likely(size, num):
    rows = np.asarray(jax.vmap(lambda key: minibatch.draw_rows(key, size, num))(jax.random.split(KEY, 6000)))
    assert all(len(set(row)) == num for row in rows)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == np.prod([size - i for i in range(num)])
    assert chisquare(counts).pvalue > 1e-4


def test_rows_that_could_repeat_are_seen(monkeypatch):
    # every draw passes for a new one
    monkeypatch.setattr(minibatch, "_by_pairs", lambda found, valid, num: (found[:num], jnp.array(True)))
    rows = np.asarray(jax.vmap(lambda key: minibatch.draw_rows(key, 5, 2))(jax.random.split(KEY, 100)))
    assert not all(len(set(row)) == 2 for row in rows)


@pytest.mark.parametrize("pick", [minibatch._by_pairs, minibatch._by_sorting])
def test_the_first_different_ones_are_kept_in_their_order(pick):
    """Draws that are not valid are passed over, and the row says when there are too few."""
    run, rng = jax.jit(pick, static_argnums=2), np.random.default_rng(0)
    for _ in range(50):
        found, valid = rng.integers(0, 9, 14).astype(np.int32), rng.random(14) < 0.8
        found = np.where(valid, found, 9 + np.arange(14)).astype(np.int32)
        wanted = list(dict.fromkeys(found[valid].tolist()))
        rows, enough = run(found, valid, 6)
        assert bool(enough) == (len(wanted) >= 6)
        assert not enough or rows.tolist() == wanted[:6]


def test_many_rows_are_different_and_as_likely():
    """So many that they are sorted, and so few tries that some draws start again."""
    rows = np.asarray(
        jax.jit(jax.vmap(lambda key: minibatch.draw_rows(key, 400, 150)))(jax.random.split(KEY, 2000))
    )
    assert (np.diff(np.sort(rows, axis=1)) > 0).all() and rows.min() >= 0 and rows.max() < 400
    counts = np.bincount(rows.ravel(), minlength=400)
    # Without replacement a count varies less than a multinomial's, by 1 - 150/400.
    assert chisquare(counts).statistic / (1.0 - 150 / 400) < 399 + 4.5 * np.sqrt(2 * 399)


def test_all_words_together_have_the_moments_of_the_normal_law():
    """Every radius at one angle, then every direction at one radius: with independent bits, that is the whole
    law.
    """
    run = jax.jit(lambda words: noise._from_words(words).reshape(2, -1))
    x, y = np.asarray(run(np.arange(2**20, dtype=np.uint32) << 12 | 300), float)
    square = x**2 + y**2
    np.testing.assert_allclose(square, -2.0 * np.log((np.arange(2**20) + 0.5) / 2**20), rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(
        [square.mean(), (square**2).mean(), (square**3).mean()], [2.0, 8.0, 48.0], rtol=1e-4
    )
    x, y = np.asarray(run(np.arange(2**12, dtype=np.uint32) | 1 << 24), float)
    np.testing.assert_allclose(np.diff(np.sort(np.arctan2(y, x))), 2.0 * np.pi / 2**12, atol=1e-6)
    np.testing.assert_allclose(np.hypot(x, y), np.hypot(x[0], y[0]), rtol=1e-6)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")])
def test_noise_is_normal_and_independent(key):
    x = np.asarray(jax.jit(lambda key: normals(key, 20_001, jnp.dtype("float32")))(key), float)
    assert kstest(x, "norm").pvalue > 1e-3 and np.isfinite(x).all()
    halves = np.stack([x[:10_000], x[10_001:]])
    for power in (1, 2):  # the two numbers of a pair, and neighbours
        assert abs(np.corrcoef(halves**power)[0, 1]) < 4.5 / 100.0
        assert abs(np.corrcoef(x[1:] ** power, x[:-1] ** power)[0, 1]) < 4.5 / 141.0
    other = np.asarray(normals(jax.random.fold_in(key, 1), 20_001, jnp.dtype("float32")))
    assert abs(np.corrcoef(x, other)[0, 1]) < 4.5 / 141.0


X = jnp.linspace(-1.0, 1.0, 5)
Y = jnp.array([0.3, -0.2, 1.1, 0.4, 2.0])
Z = {"slope": jnp.array(0.7), "noise": jnp.array(-0.3)}


def priors():
    return numpyro.sample("slope", dist.Normal(0.0, 1.0)), numpyro.sample("noise", dist.LogNormal(0.0, 1.0))


def whole(x, y):
    slope, noise = priors()
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def no_plate(x, y=None):
    slope, noise = priors()
    numpyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def subsampled(x, y):
    slope, noise = priors()
    with numpyro.plate("rows", x.shape[0], subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(slope * x[rows], noise), obs=numpyro.subsample(y, event_dim=0))


@pytest.mark.parametrize(
    ("model", "batch_size", "kwargs"),
    [(subsampled, None, {}), (whole, 2, {}), (no_plate, 2, {"y": np.asarray(Y)})],
    ids=["subsampled plate", "cut arguments", "cut arguments, no plate"],
)
def test_the_gradient_is_unbiased_over_all_minibatches(model, batch_size, kwargs, broken=False):
    args = (X,) if kwargs else (X, Y)
    target = sg_potential.set_up("test", model, batch_size, KEY, args, kwargs)
    full = jax.grad(lambda z: potential_energy(whole, (X, Y), {}, z))(Z)
    each = []
    for rows in combinations(range(5), 2):
        part = np.array(rows)

        def potential(z, part=part):
            prior = sum(
                jnp.sum(-d.log_prob(v))
                for d, v in ((dist.Normal(0, 1), z["slope"]), (dist.Normal(0, 1), z["noise"]))
            )
            return (
                prior - 2.5 * dist.Normal(z["slope"] * X[part], jnp.exp(z["noise"])).log_prob(Y[part]).sum()
            )

        each.append(jax.grad(potential)(Z))
    each = {name: np.array([g[name] for g in each]) for name in Z}
    drawn = jax.vmap(lambda key: jax.grad(target.estimate)(Z, key, args, kwargs))(jax.random.split(KEY, 3000))
    drawn = np.stack([drawn[name] for name in Z], -1)
    all_of_them = np.stack([each[name] for name in Z], -1)
    np.testing.assert_allclose(all_of_them.mean(0), [full[name] for name in Z], rtol=2e-5)
    which = np.abs(drawn[:, None] - all_of_them).max(-1) < 1e-4
    assert (which.sum(1) == 1).all(), "each estimate is that of one minibatch"
    assert chisquare(which.sum(0)).pvalue > 1e-4


def test_a_minibatch_that_is_not_scaled_up_is_seen(monkeypatch):
    monkeypatch.setattr(sg_potential.Weighed, "process_message", lambda self, msg: None)
    with pytest.raises(AssertionError, match="one minibatch"):
        test_the_gradient_is_unbiased_over_all_minibatches(whole, 2, {})


@pytest.mark.slow
def test_nested_plates_are_unbiased():
    y = jnp.eye(4)  # plates that chose the same rows would see the diagonal too often

    def model(y, size=2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with (
            numpyro.plate("a", 4, subsample_size=size, dim=-1) as a,
            numpyro.plate("b", 4, subsample_size=size, dim=-2) as b,
        ):
            numpyro.sample("y", dist.Normal(jnp.sin(mu), 1.0), obs=y[b][:, a])

    target, z = sg_potential.set_up("test", model, None, KEY, (y,), {}), {"mu": jnp.array(0.4)}
    drawn = jax.vmap(lambda key: jax.grad(target.estimate)(z, key, (y,), {})["mu"])(
        jax.random.split(KEY, 20_000)
    )
    full = jax.grad(lambda z: potential_energy(model, (y, 4), {}, z))(z)["mu"]
    assert abs(float(drawn.mean() - full)) < 4.5 * float(drawn.std()) / np.sqrt(20_000)
    assert drawn.std() > 0.1


# --- stationary moments. The posterior is normal and the gradient linear, so the chain is a linear recursion
# with additive noise, whose stationary covariance is the solution of a Lyapunov equation.

ROWS, BATCH, WIDTH = 40, 4, 1.0
DATA = np.random.default_rng(1).normal(0.5, 0.25, size=(ROWS, 2)).astype(np.float32) * np.array(
    [1.0, 1.3], np.float32
)
H = 1.0 + ROWS / WIDTH**2
GRADIENT_NOISE = ROWS**2 / WIDTH**4 * DATA.astype(float).var(0, ddof=1) / BATCH * (1.0 - BATCH / ROWS)
MEAN = DATA.astype(float).sum(0) / WIDTH**2 / H
CHAINS = 400


def gaussian(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", y.shape[0], subsample_size=BATCH) as rows:
        numpyro.sample("y", dist.Normal(mu, WIDTH).to_event(1), obs=y[rows])


def ran(kernel, num_warmup=400, num_samples=2000, thinning=40, model_args=(DATA,), extra_fields=()):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        thinning=thinning,
        num_chains=CHAINS,
        chain_method="vectorized",
    )
    mcmc.progress_bar = False
    mcmc.run(KEY, *model_args, extra_fields=extra_fields)
    return mcmc


def sghmc_variance(
    step_size, friction, temperature, inverse=1.0, taken_off=0.0, least=0.0, gradient_noise=GRADIENT_NOISE
):
    """Of each coordinate, elementwise in the arguments; from (z, v) of one step to the next."""
    found = []
    for m, s in np.broadcast(inverse, gradient_noise):
        h = step_size**2 * m
        step = np.array([[1.0 - h * H, 1.0 - friction], [-h * H, 1.0 - friction]])
        noise = max(2.0 * h * friction * temperature - taken_off, least) + h**2 * s
        found.append(solve_discrete_lyapunov(step, noise * np.ones((2, 2)))[0, 0])
    return np.array(found).reshape(np.broadcast_shapes(np.shape(inverse), np.shape(gradient_noise)))


def sgld_variance(step_size, temperature):
    return (2.0 * temperature + step_size * GRADIENT_NOISE) / (H * (2.0 - step_size * H))


def assert_variance(draws, wanted, within=None):
    """Draws (chain, draw, 2) of mean known; the spread between chains gives the standard error."""
    ratio = (np.square(np.asarray(draws, float) - MEAN) / wanted).mean(1)  # (chain, 2)
    error = ratio.std(0, ddof=1) / np.sqrt(len(ratio))
    assert (error < 0.015).all(), error
    assert (
        (np.abs(ratio.mean(0) - 1.0) < 4.5 * error).all()
        if within is None
        else (np.abs(ratio.mean(0) - 1.0) < within).all()
    ), ratio.mean(0)


STEP, FRICTION = 0.011, 0.3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sghmc_has_its_exact_variance_and_nearly_the_posteriors(temperature):
    kernel = SGHMC(gaussian, step_size=STEP, friction=FRICTION, adapt=None, temperature=temperature)
    draws = ran(kernel).get_samples(group_by_chain=True)["mu"]
    assert_variance(draws, sghmc_variance(STEP, FRICTION, temperature))
    assert_variance(draws, temperature / H, within=0.03)
    np.testing.assert_allclose(
        np.asarray(draws).mean((0, 1)), MEAN, atol=4.5 * 3.0 * np.sqrt(1.0 / H / draws[..., 0].size)
    )
    with pytest.raises(AssertionError):
        assert_variance(draws, temperature * 1.1 / H)


@pytest.mark.slow
def test_coarse_steps_and_loud_gradients_have_the_variance_of_the_recursion():
    kernel = SGHMC(gaussian, step_size=0.06, friction=0.5, adapt=None, temperature=0.5)
    draws = ran(kernel, 100, 1000, 20).get_samples(group_by_chain=True)["mu"]
    assert_variance(draws, sghmc_variance(0.06, 0.5, 0.5))
    for wrong in (
        sghmc_variance(0.06, 0.5, 0.5, gradient_noise=np.zeros(2)),
        sghmc_variance(0.06, 0.5, 1.0),
        sghmc_variance(0.06, 0.35, 0.5),
    ):
        with pytest.raises(AssertionError):
            assert_variance(draws, wrong)


@pytest.mark.parametrize("temperature", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_adapted_chain_is_frozen_and_has_its_exact_variance(temperature):
    eta, a = 0.03, 0.3
    start = init_to_value(values={"mu": MEAN.astype(np.float32)})
    kernel = SGHMC(gaussian, step_size=eta, friction=a, temperature=temperature, init_strategy=start)
    mcmc = ran(kernel, 800, extra_fields=("adapt_state.square",))
    square = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["adapt_state.square"]["mu"], float)
    assert (square == square[:, :1]).all(), "no adaptation after the warm-up"
    inverse = square[:, 0] ** -0.5
    draws = mcmc.get_samples(group_by_chain=True)["mu"]
    exact = sghmc_variance(eta, a, temperature, inverse, taken_off=eta**4, least=1e-16)
    assert_variance(draws, exact[:, None])
    assert_variance(draws, temperature / H, within=0.03)
    with pytest.raises(AssertionError):
        assert_variance(draws, sghmc_variance(eta, a, temperature, inverse)[:, None] * 1.08)


@pytest.mark.slow
def test_sgld_has_its_exact_variance():
    eta = 0.01
    draws = ran(SGLD(gaussian, step_size=eta, temperature=0.5), 100, 1000, 20).get_samples(
        group_by_chain=True
    )["mu"]
    assert_variance(draws, sgld_variance(eta, 0.5))
    with pytest.raises(AssertionError):
        assert_variance(draws, sgld_variance(eta, 1.0))


def test_the_scale_follows_the_published_recursion():
    """Five steps of the warm-up and two after it, by a loop in float64 with the same gradients and noise."""
    from ppl_ext.infer.sgmcmc.kernel import SGState

    eta, a, temperature, rng = 0.1, 0.05, 0.5, np.random.default_rng(0)
    kernel = SGHMC(gaussian, step_size=eta, friction=a, temperature=temperature)
    kernel._num_warmup = 5
    momentum, scale = kernel.begin({"w": jnp.zeros(3)})
    tau, g, square, v = np.ones(3), np.ones(3), np.ones(3), np.zeros(3)
    for i in range(7):
        gradient, noise = rng.normal(1.0, 5.0, size=(2, 3))
        state = SGState(
            jnp.array(i), {"w": jnp.zeros(3)}, momentum, scale, *(jnp.zeros(()),) * 3, *(None,) * 4
        )
        gradients, noises = ({"w": jnp.asarray(x, jnp.float32)} for x in (gradient, noise))
        move, momentum, scale = kernel.move(
            state, gradients, noises, jnp.float32(eta), jnp.float32(temperature), KEY
        )
        if i < 5:
            rho = 1.0 / (tau + 1.0)
            tau = tau + 1.0 - tau * g**2 / square
            g, square = (1.0 - rho) * g + rho * gradient, (1.0 - rho) * square + rho * gradient**2
        m = square**-0.5
        v = (
            (1 - a) * v
            - eta**2 * m * gradient
            + np.sqrt(np.maximum(2 * eta**2 * a * m * temperature - eta**4, 1e-16)) * noise
        )
        np.testing.assert_allclose(move["w"], v, rtol=1e-4)
        np.testing.assert_allclose(scale.window["w"], tau, rtol=1e-4)
    assert (2 * eta**2 * a * m * temperature < eta**4).any() and (
        2 * eta**2 * a * m * temperature > eta**4
    ).any()


# --- what NumPyro asks of a kernel


def hierarchical(x, y):
    """A positive site, a bounded one whose support depends on it, and a deterministic site in the plate."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    slope = numpyro.sample("slope", dist.Uniform(-scale, scale))
    with numpyro.plate("rows", len(x), subsample_size=2) as rows:
        mean = numpyro.deterministic("mean", slope * x[rows])
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


ARGS = (np.asarray(X), np.asarray(Y))


def mcmc_of(
    kernel, *args, key=KEY, num_warmup=20, num_samples=30, extra_fields=(), init_params=None, **options
):
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False, **options)
    mcmc.run(key, *(args or ARGS), extra_fields=extra_fields, init_params=init_params)
    return mcmc


@pytest.fixture(scope="module")
def vectorized():
    fields = ("potential_energy", "step_size", "adapt_state.square", "momentum.slope")
    kernel = SGHMC(hierarchical, step_size=0.05, friction=0.2, resample_every=7, clip=10.0)
    return mcmc_of(kernel, num_chains=2, chain_method="vectorized", extra_fields=fields)


@pytest.mark.slow
def test_sites_come_out_as_from_nuts(vectorized):
    samples = vectorized.get_samples(group_by_chain=True)
    assert {name: x.shape for name, x in samples.items()} == {
        "scale": (2, 30),
        "slope": (2, 30),
        "mean": (2, 30, 5),
    }
    assert (jnp.abs(samples["slope"]) < samples["scale"]).all()
    np.testing.assert_allclose(samples["mean"], samples["slope"][..., None] * X, rtol=1e-5)
    fields = vectorized.get_extra_fields(group_by_chain=True)
    assert (
        not fields["diverging"].any()
        and fields["potential_energy"].shape == (2, 30)
        and fields["momentum.slope"].shape == (2, 30)
    )
    np.testing.assert_allclose(fields["step_size"], 0.05, rtol=1e-6)


@pytest.mark.slow
def test_chains_in_sequence_and_the_old_kind_of_keys_give_the_same(vectorized):
    kernel = SGHMC(hierarchical, step_size=0.05, friction=0.2, resample_every=7, clip=10.0)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    found = mcmc_of(kernel, key=keys, num_chains=2, chain_method="sequential").get_samples(
        group_by_chain=True
    )
    for name, x in vectorized.get_samples(group_by_chain=True).items():
        np.testing.assert_allclose(found[name], x, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_a_resampled_momentum_has_its_stationary_variance():
    from ppl_ext.infer.sgmcmc.kernel import SGState

    eta, a, temperature, m = 0.1, 0.2, 0.5, 0.25
    kernel = SGHMC(
        gaussian, step_size=eta, friction=a, temperature=temperature, resample_every=3, adapt="scale"
    )
    many, ones = jnp.full(40_000, 7.0), jnp.ones(40_000)
    scale = kernel.begin({"w": many})[1]._replace(square={"w": ones / m**2})
    for i in range(4):
        state = SGState(jnp.array(i), {"w": many}, {"w": many}, scale, *(jnp.zeros(()),) * 3, *(None,) * 4)
        still = {"w": 0.0 * ones}
        v = np.asarray(
            kernel.move(state, still, still, jnp.float32(eta), jnp.float32(temperature), KEY)[0]["w"]
        )
        if i % 3 == 0:
            wanted = (1.0 - a) ** 2 * eta**2 * m * temperature
            assert abs(v.var() / wanted - 1.0) < 4.5 * np.sqrt(2.0 / 40_000) and abs(
                v.mean()
            ) < 4.5 * np.sqrt(wanted / 40_000)
        else:
            np.testing.assert_allclose(v, (1.0 - a) * 7.0, rtol=1e-5)


@pytest.mark.slow
def test_thinning_and_steps_per_draw_keep_some_draws_of_the_same_chain():
    def run(num_steps=1, **options):
        kernel = SGHMC(hierarchical, step_size=Decay(0.05), friction=0.2, num_steps=num_steps)
        return np.asarray(mcmc_of(kernel, **options).get_samples()["slope"])

    all_draws = run(num_warmup=10, num_samples=20)
    np.testing.assert_allclose(run(num_warmup=10, num_samples=20, thinning=5), all_draws[4::5], rtol=1e-5)
    np.testing.assert_allclose(run(num_steps=5, num_warmup=2, num_samples=4), all_draws[4::5], rtol=1e-5)


@pytest.mark.slow
def test_a_run_traces_the_model_a_few_times_whatever_its_length():
    traced = []

    def counted(x, y):
        traced.append(1)
        return subsampled(x, y)

    mcmc_of(SGLD(counted), num_warmup=0, num_samples=5)
    few = len(traced)
    mcmc_of(SGLD(counted), num_warmup=50, num_samples=500)
    assert len(traced) == 2 * few <= 20


@pytest.mark.slow
def test_given_starting_points_are_used():
    init = {"slope": jnp.array([3.0, -3.0]), "noise": jnp.zeros(2)}
    kernel = SGLD(subsampled, step_size=1e-6)
    found = mcmc_of(
        kernel, num_warmup=0, num_samples=1, num_chains=2, chain_method="vectorized", init_params=init
    ).get_samples()["slope"]
    np.testing.assert_allclose(found, [3.0, -3.0], atol=0.02)


@pytest.mark.slow
def test_it_is_a_block_of_numpyros_gibbs():
    kernel = Gibbs([(SGLD(whole, batch_size=2, step_size=0.01), ["slope"]), (NUTS(whole), ["noise"])])
    assert set(mcmc_of(kernel).get_samples()) == {"slope", "noise"}


def test_a_cycle_explores_without_noise():
    def at_rest(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))

    kernel = SGLD(at_rest, step_size=Cyclical(0.1, cycle_length=10, exploration=0.5))
    mcmc = mcmc_of(kernel, 1.0, num_warmup=0, num_samples=40, extra_fields=("sampling", "step_size"))
    mu, fields = np.asarray(mcmc.get_samples()["mu"]), mcmc.get_extra_fields()
    np.testing.assert_array_equal(fields["sampling"], np.arange(40) % 10 >= 5)
    still = np.isclose(mu[1:], mu[:-1] * (1.0 - np.asarray(fields["step_size"])[1:]), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(still, ~np.asarray(fields["sampling"])[1:])


def test_a_step_of_sgld_is_what_langevin_says():
    r"""The step :math:`-\eta g + \sqrt{2 \eta T}\, \xi` (Welling and Teh 2011, eq. 4, with a temperature),
    term by term.
    """
    step, *_ = SGLD(whole).move(None, {"slope": 3.0}, {"slope": 0.0}, 0.02, 0.5, None)
    np.testing.assert_allclose(step["slope"], -0.06, rtol=1e-6)
    step, *_ = SGLD(whole).move(None, {"slope": 0.0}, {"slope": 2.0}, 0.02, 0.5, None)
    np.testing.assert_allclose(step["slope"], 2.0 * np.sqrt(0.02), rtol=1e-6)


@pytest.mark.slow
def test_clipping_bounds_the_gradient_over_the_rows():
    """A single step of SGLD without noise shows the gradient."""

    def moved(clip):
        kernel = SGLD(whole, batch_size=5, step_size=1.0, temperature=0.0, clip=clip)
        init = {"slope": jnp.array(50.0), "noise": jnp.array(0.0)}
        found = mcmc_of(
            kernel, num_warmup=0, num_samples=1, init_params=init, extra_fields=("z.slope", "z.noise")
        ).get_extra_fields()
        return np.array([found["z.slope"][0] - 50.0, found["z.noise"][0]])

    free = moved(None)
    np.testing.assert_allclose(moved(3.0), free * 3.0 * 5 / np.linalg.norm(free), rtol=1e-4)
    np.testing.assert_allclose(moved(1e6), free, rtol=1e-6)


def test_a_summary_and_a_report_of_a_run(vectorized, capsys):
    vectorized.print_summary()
    assert "Number of divergences: 0" in capsys.readouterr().out
    report = ppl_ext.to_arviz(vectorized)
    assert report.posterior["mean"].dims == ("chain", "draw", "rows") and report.attrs["kernel"] == "SGHMC"
    assert not report.sample_stats["diverging"].any()


# --- what goes wrong


def test_a_run_that_breaks_down_is_nan_and_names_the_site():
    def explosive(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        other = numpyro.sample("other", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(other + slope**3, 0.1), obs=y)

    kernel = SGHMC(explosive, batch_size=2, step_size=0.5, adapt=None)
    mcmc = mcmc_of(kernel, extra_fields=("failed_at",), num_warmup=0, num_samples=50)
    slope, fields = np.asarray(mcmc.get_samples()["slope"]), mcmc.get_extra_fields()
    failed_at = int(fields["failed_at"][-1])
    np.testing.assert_array_equal(fields["diverging"], np.arange(50) >= failed_at)
    assert np.isnan(slope[failed_at:]).all() and np.isfinite(slope[:failed_at]).all() and 0 < failed_at < 49
    with pytest.raises(
        NonFiniteError, match=rf"1 of 1 chains.*step {failed_at}.*'(slope|other)'.*smaller step_size"
    ) as error:
        ppl_ext.to_arviz(mcmc)
    assert error.value.result is mcmc.last_state
    assert "not finite since step" in kernel.get_diagnostics_str(mcmc.last_state)


@pytest.mark.slow
def test_nan_in_the_data_is_named():
    y = np.asarray(Y).copy()
    y[4] = np.nan
    with pytest.raises(NonFiniteError, match=r"data of site 'y' hold 1 NaN"):
        mcmc_of(SGLD(whole), np.asarray(X), y)
    kernel = SGLD(subsampled, step_size=1e-3)  # the first rows, which it starts on, are fine
    mcmc = mcmc_of(kernel, np.asarray(X), y)
    with pytest.raises(NonFiniteError, match=r"data of site 'y' hold 1 NaN"):
        ppl_ext.to_arviz(mcmc)


def test_data_outside_of_the_support_are_named():
    def waiting(y):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("wait", dist.Exponential(rate), obs=y)

    with pytest.raises(NonFiniteError, match="log density of site 'wait' is not finite.*and at its data"):
        mcmc_of(SGLD(waiting), jnp.array([1.0, -1.0]))


def test_bounds_that_are_parameters_and_data_of_numpy():
    """Whether the data lie inside was asked of NumPy, which cannot compare with a traced bound."""
    seen = np.array([0.5, 0.7])

    def model(num):
        top = numpyro.sample("top", dist.Gamma(2.0, 2.0))
        with numpyro.plate("rows", num):
            numpyro.sample("y", dist.Uniform(0.0, top + 1.0), obs=seen)

    with numpyro.validation_enabled(False):
        assert np.isfinite(mcmc_of(SGLD(model, step_size=1e-3), 2).get_samples()["top"]).all()


def discrete(x, y):
    numpyro.sample("which", dist.Bernoulli(0.5))
    priors()


def local(x, y):
    with numpyro.plate("rows", 5, subsample_size=2):
        numpyro.sample("level", dist.Normal(0.0, 1.0))


def local_whole(x, y):
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(numpyro.sample("level", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def joint(x, y):
    slope, noise = priors()
    numpyro.sample("y", dist.Normal(slope * x, noise).to_event(1), obs=y)


def fixed(x, y):
    slope, noise = priors()
    with numpyro.plate("rows", 5):
        numpyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def closed(x, y):
    slope, noise = priors()
    numpyro.sample("y", dist.Normal(slope * X[:3], noise), obs=Y[:3])


def too_many(x, y):
    slope, noise = priors()
    with numpyro.plate("rows", 2, subsample_size=9):
        pass


def crooked(x, y):
    numpyro.sample("slope", dist.Normal(jnp.ones(3) @ jnp.ones(4), 1.0))


@pytest.mark.parametrize(
    ("model", "batch_size", "error", "words"),
    [
        (discrete, None, ModelError, "'which' .Bernoulli.* is discrete"),
        (lambda x, y: None, None, ModelError, "no latent site"),
        (local, None, ModelError, "'level' lies in the subsampled plate 'rows'"),
        (local_whole, 2, ModelError, "latent site 'level' has shape .5,. on 5 rows"),
        (
            joint,
            2,
            ArgumentError,
            "no argument .first axes .5.. is as long as an axis of an observed site 'y' ",
        ),
        (fixed, 2, ModelError, "sizes must come from the arguments"),
        (closed, 2, ArgumentError, "Pass the data as arguments"),
        (whole, 6, ArgumentError, "more than the 5 rows"),
        (subsampled, 2, ArgumentError, "subsamples its plate 'rows'.*leave batch_size away"),
        (crooked, None, ProgramError, "'crooked' failed"),
    ],
)
def test_models_that_cannot_be_sampled_are_named(model, batch_size, error, words):
    with pytest.raises(error, match=words):
        mcmc_of(SGHMC(model, batch_size=batch_size))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"step_size": 0.0}, ArgumentError, "step_size"),
        ({"step_size": "fast"}, ArgumentTypeError, "step_size"),
        ({"step_size": lambda k: -1.0}, ArgumentError, "step_size"),
        ({"step_size": lambda: 1.0}, ArgumentTypeError, "step_size"),
        ({"friction": 1.5}, ArgumentError, "friction"),
        ({"friction": None}, ArgumentTypeError, "friction"),
        ({"adapt": "mass"}, ArgumentError, "adapt must be 'scale' or None"),
        ({"temperature": -1.0}, ArgumentError, "temperature"),
        ({"temperature": float("inf")}, ArgumentError, "temperature"),
        ({"batch_size": 2.5}, ArgumentError, "batch_size"),
        ({"num_steps": 0}, ArgumentError, "num_steps"),
        ({"resample_every": 0}, ArgumentError, "resample_every"),
        ({"clip": 0.0}, ArgumentError, "clip"),
        ({"init_strategy": 3}, ArgumentTypeError, "init_strategy"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        SGHMC(whole, **options)


def test_what_is_no_model_or_no_schedule_is_refused():
    for model in (None, SGHMC, X):
        with pytest.raises(ArgumentTypeError, match="SGLD: model"):
            SGLD(model)
    for make in (
        lambda: Cyclical(0.0, 5),
        lambda: Cyclical(0.1, 0),
        lambda: Cyclical(0.1, 5, 1.0),
        lambda: Decay(0.1, power=0.5),
    ):
        with pytest.raises(ArgumentError):
            make()
    with pytest.raises(ArgumentError, match="init_params must hold"):
        mcmc_of(SGLD(whole), init_params={"slope": jnp.zeros(())})
    with pytest.raises(ArgumentError, match="init_params of site 'noise' must have shape .., got .2,."):
        mcmc_of(SGLD(whole), init_params={"slope": jnp.zeros(()), "noise": jnp.zeros(2)})
    with pytest.raises(ArgumentError, match="takes .x, y."):
        mcmc_of(SGLD(whole), X)
    with pytest.raises(ArgumentError, match="init must be called"):
        SGLD(whole).postprocess_fn((), {})({})
