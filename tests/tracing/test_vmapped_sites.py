"""Sites inside a ``jax.vmap`` of the program's own: one site with the lanes in front, a draw for each lane.

Most tests compare with the same program written with plates, from the same key: a site under ``vmap`` is
drawn, scored, credited and differentiated as one in a plate on the far left, to the last bit but rounding.
One compares with enumeration by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import condition, seed, substitute, trace
from numpyro.infer import MCMC, NUTS, SVI
from numpyro.infer.initialization import init_to_value

from ppl_ext import expectation, log_density, marginal, replicate, simulate
from ppl_ext.algorithms import Enumeration, ParticleFilter
from ppl_ext.errors import ModelError, ProgramError
from ppl_ext.gradients import LeaveOneOut, MovingAverage, ScoreFunction
from ppl_ext.handlers import gradient, vmapped
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.tracing.vmapped_sites import Lanes, in_lanes
from tests import oracles
from tests.oracles import (
    Oracle,
    assert_unbiased,
    bernoulli,
    expected_loss,
    finite,
    normal,
    product,
    replicates,
)
from tests.problems import Problem

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY = random.key(0)
X = jnp.array([-0.5, 0.2, 0.9])
Y = jnp.array([0.3, 2.2, -0.4])

# --- laws


def laws():
    """A law of each build as a function of one lane's number."""
    matrix = jnp.array([[1.0, 0.3], [0.3, 2.0]])
    return {
        "normal": lambda a: dist.Normal(a, 1.5),
        "expanded": lambda a: dist.Normal(a, 1.5).expand((4,)),
        "of the lanes' number": lambda a: dist.Normal(a + jnp.arange(3.0), 1.5).expand((2, 3)),
        "event": lambda a: dist.Normal(a + jnp.arange(3.0), 1.5).to_event(1),
        "expanded event": lambda a: dist.Normal(a, 1.0).expand((2, 3)).to_event(1),
        "half": lambda a: dist.HalfNormal(jnp.exp(a)).expand((2,)),
        "student": lambda a: dist.StudentT(3.0, a, 2.0),
        "gamma": lambda a: dist.Gamma(2.0, jnp.exp(a)).mask(a > 0),
        "transformed": lambda a: dist.LogNormal(a, jnp.ones(2)),
        "affine": lambda a: dist.TransformedDistribution(
            dist.Normal(jnp.zeros(3), 1.0), dist.transforms.AffineTransform(a, 2.0)
        ),
        "truncated": lambda a: dist.TruncatedNormal(a, 1.0, low=a - 1.0),
        "multivariate": lambda a: dist.MultivariateNormal(a * jnp.ones(2), matrix).expand((3,)),
        "dirichlet": lambda a: dist.Dirichlet(jnp.exp(a) * jnp.ones(3)),
        "categorical": lambda a: dist.Categorical(logits=a * jnp.arange(3.0)),
        "binomial": lambda a: dist.Binomial(4, logits=a).expand((2,)),
        "beta-binomial": lambda a: dist.BetaBinomial(jnp.exp(a), 2.0, total_count=3),
        "mixture": lambda a: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.ones(2) / 2), dist.Normal(jnp.stack([a, -a]), 1.0)
        ),
        "delta": lambda a: dist.Delta(a * jnp.ones(2), event_dim=1),
        "unit": lambda a: dist.Unit(a * jnp.ones(2)),
        "constant": lambda a: dist.Normal(jnp.zeros(2), 1.0),
    }


def lifted(law, lanes):
    """The law of all lanes at once, as a message under ``vmap`` makes it."""
    one = law(X[0])
    every = jax.tree.leaves(jax.vmap(lambda a: jax.tree.map(jnp.asarray, law(a)))(X))
    other = jax.tree.leaves(law(X[2] + 0.25))
    own, structure = jax.tree.flatten(one)
    differs = [bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in zip(own, other, strict=True)]
    return in_lanes(
        structure.unflatten(
            [Lanes(e, lanes) if d else x for x, e, d in zip(own, every, differs, strict=True)]
        ),
        lanes,
        "z",
    )


QUICK = ("expanded", "of the lanes' number", "affine", "categorical")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "build", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in laws()]
)
def test_a_law_with_lanes_in_front_is_the_law_of_each_lane(build):
    law, lanes = laws()[build], (3,)
    with jax.numpy_rank_promotion("allow"):
        whole = lifted(law, lanes)
        assert whole.batch_shape == lanes + law(X[0]).batch_shape
        assert whole.event_shape == law(X[0]).event_shape
        values = whole.sample(KEY)
        assert values.shape == whole.shape()
        by_lane = [law(x).log_prob(v) for x, v in zip(X, values, strict=True)]
        np.testing.assert_allclose(whole.log_prob(values), jnp.stack(by_lane), rtol=1e-5, atol=1e-6)


def test_draws_of_expanded_laws_keep_to_their_lane():
    whole = lifted(lambda a: dist.Normal(100.0 * a + 10.0 * jnp.arange(3.0), 0.1).expand((2, 3)), (3,))
    want = jnp.broadcast_to((100.0 * X[:, None] + 10.0 * jnp.arange(3.0))[:, None], (3, 2, 3))
    np.testing.assert_allclose(whole.sample(KEY), want, atol=1.0)


def test_transforms_that_differ_between_lanes():
    """Those that act element by element keep to their lane; of the others the lanes must have no batch of
    their own.
    """
    values = np.asarray(lifted(laws()["affine"], (3,)).log_prob(jnp.ones((3, 3))))
    z = (1 - np.asarray(X)) / 2
    np.testing.assert_allclose(
        values, np.repeat((-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(2))[:, None], 3, 1), rtol=1e-5
    )

    def correlated(batch):
        matrix = jnp.array([[1.0, 0.0], [0.5, 2.0]])
        return lambda a: dist.TransformedDistribution(
            dist.Normal(jnp.zeros((*batch, 2)), 1.0).to_event(1),
            dist.transforms.LowerCholeskyAffine(jnp.stack([a, -a]), matrix),
        )

    assert lifted(correlated(()), (3,)).batch_shape == (3,)
    with pytest.raises(ModelError, match="LowerCholeskyAffine of its law differs between lanes"):
        lifted(correlated((4,)), (3,))


def test_a_traced_parameter_that_lanes_share_gets_every_axis():
    def scale(shared):
        leaves, structure = jax.tree.flatten(dist.Normal(jnp.zeros(2), shared))
        leaves = [x if x is shared else Lanes(jnp.zeros((3, 2)), (3,)) for x in leaves]
        return in_lanes(structure.unflatten(leaves), (3,), "z").scale

    assert jax.eval_shape(scale, jnp.ones(2)).shape == (1, 2)


# --- programs with vmap and the same with plates


def in_vmaps(phi, y=None):
    """Coins in two nested vmaps, around a plate; data inside; a draw that no lane's number enters."""

    def row(logit, y):
        def element(a, y):
            z = numpyro.sample("z", dist.Bernoulli(logits=a))
            with numpyro.plate("inner", 2):
                w = numpyro.sample("w", dist.Normal(0.5 * z, 1.0))
                if y is not None:
                    numpyro.sample("y", dist.Normal(w + z, 1.0), obs=y)
            return z, w.sum()

        z, w = jax.vmap(element, in_axes=(0, None if y is None else 0), out_axes=(0, 0))(logit, y)
        free = numpyro.sample("free", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=0.5):
            numpyro.factor("pull", 0.3 * w.sum() * free)
        return z.sum() + w.prod()

    return jax.vmap(row, in_axes=(1, 0))(phi, y)


def in_plates(phi, y=None):
    with numpyro.plate("rows", 3, dim=-3), numpyro.plate("elements", 2, dim=-2):
        z = numpyro.sample("z", dist.Bernoulli(logits=phi.T[..., None]))
        with numpyro.plate("inner", 2, dim=-1):
            w = numpyro.sample("w", dist.Normal(0.5 * z, 1.0))
            if y is not None:
                numpyro.sample("y", dist.Normal(w + z, 1.0), obs=y)
    z, w = z[..., 0], w.sum(-1)
    with numpyro.plate("rows_alone", 3, dim=-1):
        free = numpyro.sample("free", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=0.5):
            numpyro.factor("pull", 0.3 * w.sum(-1) * free)
    return z.sum(-1) + w.prod(-1)


PHI = jnp.array([[0.3, -0.2, 0.8], [0.1, 0.7, -1.0]])
YY = jnp.arange(12.0).reshape(3, 2, 2) / 6


def loss_and_gradient(program, objective, strategy):
    guide = gradient(lambda: program(numpyro.param("phi", PHI)), {"z": strategy})
    model = lambda: program(jnp.zeros((2, 3)), YY)  # noqa: E731  a formula in one line
    run = jax.jit(jax.value_and_grad(lambda phi: objective.loss(KEY, {"phi": phi}, model, guide)))
    return run(PHI)


@pytest.mark.parametrize(
    ("objective", "strategy"),
    [
        (ELBO(), "score"),
        pytest.param(ELBO(), "enumerate", marks=SLOW),
        pytest.param(ELBO(2), "measure_valued", marks=SLOW),
        pytest.param(IWELBO(2), ScoreFunction(baseline=LeaveOneOut()), marks=SLOW),
    ],
    ids=lambda x: repr(x),
)
@pytest.mark.slow
def test_gradients_are_those_of_plates(objective, strategy):
    """The same draws, the same credit: that of a lane is its own, as in a plate."""
    value, slope = loss_and_gradient(in_vmaps, objective, strategy)
    # The plates' axis of size one, which the coin has for the inner plate's sake, is the only difference.
    want, want_slope = loss_and_gradient(in_plates, objective, strategy)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-4, atol=1e-5)


def test_simulate_and_log_density_are_those_of_plates():
    draw = simulate(in_vmaps, PHI, rng_key=KEY)
    assert {n: v.shape for n, v in draw.values.items()} == {"z": (3, 2), "w": (3, 2, 2), "free": (3,)}
    assert len(np.unique(draw.values["free"])) == 3  # NumPyro gives all lanes the same noise
    values = dict(draw.values)
    by_site = log_density(in_vmaps, values, PHI, YY).by_site
    want = log_density(in_plates, values | {"z": values["z"][..., None]}, PHI, YY).by_site
    for site, term in want.items():
        np.testing.assert_allclose(by_site[site], term, rtol=1e-5)
    np.testing.assert_allclose(draw.output, values["z"].sum(1) + values["w"].sum(2).prod(1), rtol=1e-5)


def coins_problem():
    """Coins in a vmap, of which later ones in another depend; the model couples the lanes."""
    y = np.array([0.9, -0.4])

    def model():
        a = jax.vmap(lambda x: numpyro.sample("a", dist.Bernoulli(logits=x)))(jnp.array([0.4, -0.3]))
        b = jax.vmap(lambda a: numpyro.sample("b", dist.Bernoulli(logits=0.8 * a - 0.2)), out_axes=0)(a[::-1])
        jax.vmap(lambda b, y: numpyro.sample("y", dist.Normal(1.3 * b, 1.0), obs=y))(b, jnp.asarray(y))
        numpyro.factor("pull", 0.7 * a.sum() * b.prod())

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        a = jax.vmap(lambda x: numpyro.sample("a", dist.Bernoulli(logits=x)))(phi[:2])
        jax.vmap(
            lambda a: jax.jit(lambda a: numpyro.sample("b", dist.Bernoulli(logits=phi[2] + 0.5 * a)))(a)
        )(a)

    def log_q(params, z, batch):
        phi = params["phi"]
        return bernoulli(z["a"], phi[:2]).sum() + bernoulli(z["b"], phi[2] + 0.5 * z["a"]).sum()

    def log_p(params, z, batch):
        prior = bernoulli(z["a"], jnp.array([0.4, -0.3])) + bernoulli(z["b"], 0.8 * z["a"][::-1] - 0.2)
        return (prior + normal(y, 1.3 * z["b"])).sum() + 0.7 * z["a"].sum() * z["b"].prod()

    space = product(a=finite(2, (2,)), b=finite(2, (2,)))
    oracle = Oracle(**space, log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("coins in vmaps", model, guide, {"phi": np.array([0.3, -0.2, 0.6])}, oracle, ("a", "b"))


@pytest.mark.parametrize(
    ("strategies", "objective"),
    [
        ({"a": "score", "b": "enumerate"}, ELBO()),
        pytest.param({"*": "enumerate"}, IWELBO(2), marks=SLOW),
        pytest.param({"a": "measure_valued", "*": "score"}, IWELBO(2), marks=SLOW),
    ],
    ids=["score, enumerate", "enumerate", "measure-valued, score"],
)
def test_gradients_are_unbiased(strategies, objective):
    problem = coins_problem()
    formula = oracles.iwelbo() if isinstance(objective, IWELBO) else oracles.elbo()
    exact = expected_loss(problem.oracle, problem.params, formula, objective.num_particles)
    guide = gradient(problem.guide, strategies)
    if strategies == {"*": "enumerate"}:
        found = jax.value_and_grad(lambda p: objective.loss(KEY, p, problem.model, guide))(
            jax.tree.map(jnp.asarray, problem.params)
        )
        np.testing.assert_allclose(found[0], exact[0], rtol=1e-5)
        np.testing.assert_allclose(found[1]["phi"], exact[1]["phi"], rtol=1e-4, atol=1e-5)
    else:
        assert_unbiased(replicates(objective, problem, guide=guide), exact)


# --- with everything else


def chain(lanes):
    def program(phi=0.3):
        def step(c, y):
            z = lanes("z", lambda c: dist.Bernoulli(logits=phi + c), c)
            lanes("y", lambda z: dist.Normal(1.0 * z, 1.0), z, y)
            return 0.5 * z, None

        return scan(step, jnp.zeros(2), jnp.array([[0.1, 1.2], [0.8, -0.3], [0.4, 0.9]]))[0].sum()

    return program


def by_vmap(name, law, at, obs=None):
    return jax.vmap(
        lambda x, obs: numpyro.sample(name, law(x), obs=obs), in_axes=(0, None if obs is None else 0)
    )(at, obs)


def by_plate(name, law, at, obs=None):
    with numpyro.plate("lanes", len(at)):
        return numpyro.sample(name, law(at), obs=obs)


@pytest.mark.parametrize("strategy", [pytest.param("score", marks=SLOW), "enumerate_locally"])
def test_inside_the_body_of_a_scan(strategy):
    def run(lanes):
        return expectation(lambda phi: gradient(chain(lanes), {"z": strategy})(phi) ** 2).value_and_grad(
            KEY, jnp.array(0.3)
        )

    np.testing.assert_allclose(run(by_vmap), run(by_plate), rtol=1e-5)


@SLOW
def test_a_scan_is_simulated_scored_and_filtered():
    draw, want = (simulate(chain(lanes), rng_key=KEY) for lanes in (by_vmap, by_plate))
    np.testing.assert_array_equal(draw.values["z"], want.values["z"])
    np.testing.assert_allclose(
        log_density(chain(by_vmap), draw.values).total, want.log_density.total, rtol=1e-5
    )

    def filtered(lanes):
        def model():
            chain(lanes)(numpyro.sample("phi", dist.Normal(0.0, 1.0)))

        return log_density(marginal(model, ["phi"], ParticleFilter(20)), {"phi": 0.1}, rng_key=KEY).total

    np.testing.assert_allclose(filtered(by_vmap), filtered(by_plate), rtol=1e-5)


@SLOW
def test_inside_a_branch_of_cond():
    def program(lanes):
        def other(p):
            return lanes("z", lambda x: dist.Bernoulli(logits=-p * x), X).sum()

        def run(p):
            return cond(
                p < 1.0, lambda p: lanes("z", lambda x: dist.Bernoulli(logits=p * x), X).sum(), other, p
            )

        return expectation(lambda p: 1.0 * gradient(run, {"z": "score"})(p)).value_and_grad(
            KEY, jnp.array(0.3)
        )

    np.testing.assert_allclose(program(by_vmap), program(by_plate), rtol=1e-5)


@pytest.mark.slow
def test_sites_are_summed_out():
    def model(lanes):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        w = lanes("w", lambda x: dist.Bernoulli(logits=a * x), X, None)
        lanes("y", lambda w: dist.Normal(1.0 * w, 1.0), w, Y)

    def marked(lanes):
        return numpyro.handlers.infer_config(
            lambda: model(lanes), lambda s: {"enumerate": "parallel"} if s["name"] == "w" else {}
        )

    q = jax.nn.sigmoid(0.3 * X)
    exact = jnp.log((1 - q) * jnp.exp(normal(Y, 0.0)) + q * jnp.exp(normal(Y, 1.0))).sum() + normal(0.3, 0.0)
    np.testing.assert_allclose(log_density(marked(by_vmap), {"a": 0.3}).total, exact, rtol=1e-5)
    summed = marginal(lambda: model(by_vmap), ["a"], Enumeration())
    np.testing.assert_allclose(log_density(summed, {"a": 0.3}, rng_key=KEY).total, exact, rtol=1e-5)


def test_programs_inside_a_vmap_of_an_expectation():
    """The vmap is the objective's here: the program is simulated in each lane."""
    estimator = expectation(
        lambda p: jax.vmap(lambda x: (2.0 * x - simulate(lambda: by_lane(p * x)).output) ** 2)(X).sum()
    )

    def by_lane(x):
        return numpyro.sample("z", dist.Bernoulli(logits=x), infer={"gradient": "enumerate"})

    def exact(p):
        q = jax.nn.sigmoid(p * X)
        return (q * (2 * X - 1) ** 2 + (1 - q) * 4 * X**2).sum()

    np.testing.assert_allclose(
        estimator.value_and_grad(KEY, jnp.array(0.4)), jax.value_and_grad(exact)(0.4), rtol=1e-4
    )


def coins_model():
    z = jax.vmap(lambda x: numpyro.sample("z", dist.Bernoulli(logits=x)))(jnp.zeros(3))
    jax.vmap(lambda z, y: numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y))(z, Y)


def coins_guide():
    jax.vmap(lambda x: numpyro.sample("z", dist.Bernoulli(logits=x)))(numpyro.param("phi", jnp.zeros(3)))


@pytest.mark.slow
def test_fit_and_svi():
    """The coins' posterior log odds, 2 (y - 1), by each road into training."""
    guide, averaged = vmapped(coins_guide), {"z": ScoreFunction(baseline=MovingAverage())}
    result = fit(KEY, vmapped(coins_model), guide, ELBO(), optax.adam(0.1), 400, progress_bar=False)
    np.testing.assert_allclose(result.params["phi"][0], 2.0 * (Y - 1.0), atol=1e-3)
    svi = SVI(vmapped(coins_model), guide, optax.adam(0.1), ELBO())
    np.testing.assert_allclose(
        svi.run(KEY, 400, progress_bar=False).params["phi"], 2.0 * (Y - 1.0), atol=1e-3
    )
    state = SVI(coins_model, gradient(coins_guide, averaged), optax.adam(0.1), ELBO()).init(KEY)
    assert state.mutable_state["z_baseline"]["average"].shape == (3,)  # one for each lane


@SLOW
def test_handlers_and_nuts_of_numpyro_take_a_vmapped_program():
    def model():
        z = jax.vmap(lambda x: numpyro.sample("z", dist.Normal(x, 1.0)))(X)
        jax.vmap(lambda z, y: numpyro.sample("y", dist.Normal(z, 1.0), obs=y))(z, Y)

    sites = trace(seed(condition(vmapped(model), {"z": X}), 0)).get_trace()
    np.testing.assert_allclose(sites["y"]["fn"].log_prob(sites["y"]["value"]), normal(Y, X), rtol=1e-5)
    kernel = NUTS(vmapped(model), init_strategy=init_to_value(values={"z": X}))
    mcmc = MCMC(kernel, num_warmup=100, num_samples=400, progress_bar=False)
    mcmc.run(KEY)
    # sd of a mean 0.035 at full efficiency
    np.testing.assert_allclose(mcmc.get_samples()["z"].mean(0), (X + Y) / 2, atol=0.2)


# --- values, keys and refusals


def lane_normal():
    return jax.vmap(lambda x: numpyro.sample("z", dist.Normal(x, 1.0)))(X)


def test_values_from_handlers_outside():
    given = substitute(lane_normal, {"z": Y})
    np.testing.assert_allclose(simulate(given, rng_key=KEY).log_density.total, normal(Y, X).sum(), rtol=1e-5)
    given = condition(vmapped(lane_normal), {"z": Y})
    np.testing.assert_allclose(log_density(given, {}).total, normal(Y, X).sum(), rtol=1e-5)
    with pytest.raises(
        ModelError,
        match=r"Site 'z' is observed inside jax.vmap with the shape \(3,\) of all its "
        r"lanes.*handlers.vmapped",
    ):
        log_density(condition(lane_normal, {"z": Y}), {})
    with pytest.raises(ModelError, match="Shapes disagree at site 'z'"):
        log_density(lane_normal, {"z": jnp.zeros(4)})
    with pytest.raises(ModelError, match=r"one lane has shape \(2,\), the value given \(3,\)"):
        program = substitute(
            lambda: jax.vmap(lambda x: numpyro.sample("z", dist.Normal(x, jnp.ones(2))))(X[:2]), {"z": Y}
        )
        simulate(program, rng_key=KEY)


@SLOW
def test_keys_that_lanes_bring_and_ask_for():
    def seeded(key, x):
        return seed(lambda: numpyro.sample("z", dist.Normal(x, 1.0)), key)()

    values = simulate(lambda: jax.vmap(seeded)(random.split(KEY, 3), 0.0 * X)).values["z"]
    assert len(np.unique(values)) == 3

    def asks():
        return jax.vmap(lambda x: x + random.normal(numpyro.prng_key()))(X)

    inside_grad = expectation(lambda: jax.grad(lambda x: x * random.normal(numpyro.prng_key()))(1.0))
    assert np.isfinite(inside_grad.value(KEY))
    # independent: the mean of the product is the product of the means
    estimator = expectation(lambda: asks().prod())
    values = jax.vmap(estimator.value)(random.split(KEY, 4000))
    assert abs(values.mean() - X.prod()) < 4.5 * values.std() / 4000**0.5


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            lambda: jax.vmap(
                lambda x: scan(
                    lambda c, _: (numpyro.sample("z", dist.Normal(x, 1.0)), None), x, None, length=2
                )
            )(X),
            "Put the vmap",
        ),
        (
            lambda: jax.grad(lambda x: numpyro.sample("z", dist.Normal(x, 1.0)))(1.0),
            "Site 'z' is sampled inside jax.jit, jax.grad",
        ),
        (
            lambda: jax.vmap(jax.grad(lambda x: numpyro.sample("z", dist.Normal(x, 1.0))))(X),
            "Site 'z' is sampled inside jax.jit, jax.grad",
        ),
    ],
    ids=["scan", "grad", "grad in vmap"],
)
def test_refusals(program, message):
    with pytest.raises(ModelError, match=message):
        simulate(program, rng_key=KEY)


def test_particles_inside_a_vmap_are_refused():
    with pytest.raises(ModelError, match="replicate is called inside jax.vmap"):
        expectation(
            lambda: jax.vmap(lambda x: replicate(lambda: numpyro.sample("z", dist.Normal(x, 1.0)), 2).sum())(
                X
            ).sum()
        ).value(KEY)


@pytest.mark.slow
def test_an_svi_without_the_wrapper_says_what_to_do():
    with pytest.raises(ProgramError, match="ppl_ext.handlers.vmapped"):
        fit(KEY, coins_model, coins_guide, ELBO(), optax.adam(0.1), 2, progress_bar=False)
