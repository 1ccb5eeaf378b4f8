"""A guide that holds few of many weights: its law, its places, and a linear model with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO

import ppl_ext
from ppl_ext.algorithms import TemperedSMC
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import SparseSubspace, fit
from ppl_ext.infer.svi.subspace_law import OnSubspace
from ppl_ext.objectives import ELBO

SIZE, NOISE, PRIOR = 12, 0.5, 2.0


def data():
    """A design whose columns are at right angles, so that weights are independent given the rest."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(40, SIZE)))[0] * 6.0
    w = np.zeros(SIZE)
    w[[1, 4, 7, 10]] = [2.0, -1.5, 1.0, -0.6]
    return jnp.asarray(x), jnp.asarray(x @ w + NOISE * rng.normal(size=40))


X, Y = data()


def model(x, y):
    """Twelve weights in two sites, and an intercept that every guide holds."""
    a = numpyro.sample("a", dist.Normal(0.0, PRIOR).expand([5]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, PRIOR).expand([7, 1]).to_event(2))
    level = numpyro.sample("level", dist.Normal(0.0, 0.1))
    numpyro.sample("y", dist.Normal(x @ jnp.concatenate([a, b[:, 0]]) + level, NOISE).to_event(1), obs=y)


PRECISION = 36.0 / NOISE**2 + PRIOR**-2
MEAN = np.asarray(X.T @ Y) / NOISE**2 / PRECISION


def places(params):
    return np.asarray(params["subspace"]["active"][0])


@pytest.fixture(scope="module")
def found():
    guide = SparseSubspace(model, ["a", "b"], 3, every=40, num_exchanges=12, share=0.4)
    optim = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    settings = {"num_chains": 3, "progress_bar": False}
    return fit(jax.random.key(0), model, guide, ELBO(num_particles=4), optim, 1500, X, Y, **settings)


def test_it_holds_the_weights_that_count(found):
    """Those of the largest signal to noise of the posterior, with its means and deviations."""
    best = set(np.argsort(-np.abs(MEAN))[:3].tolist())
    for chain in range(3):
        active = np.asarray(found.params["subspace"]["active"][chain])
        assert set(active.tolist()) == best
        np.testing.assert_allclose(found.params["subspace_loc"][chain], MEAN[active], atol=0.04)
        np.testing.assert_allclose(found.params["subspace_scale"][chain], PRECISION**-0.5, rtol=0.15)


def test_draws_are_zero_elsewhere(found):
    draws = found.sample(num_samples=50).values
    together = np.concatenate([draws["a"][0], draws["b"][0, ..., 0]], -1)
    off = np.setdiff1d(np.arange(SIZE), places(found.params))
    assert (together[:, off] == 0.0).all() and (together.std(0)[places(found.params)] > 0.02).all()
    assert draws["level"].std() > 0


def test_numpyros_predictive_takes_its_parameters(found):
    """A fit's are arrays of NumPy, of which the places of weights are an index."""
    params = jax.tree.map(lambda p: p[1], found.params)
    guide = SparseSubspace(model, ["a", "b"], 3, every=40, num_exchanges=12, share=0.4)
    draws = Predictive(guide, params=params, num_samples=4)(jax.random.key(0), X, Y)
    together = np.concatenate([draws["a"], draws["b"][..., 0]], -1)
    assert (np.nonzero(together.any(0))[0] == np.sort(found.params["subspace"]["active"][1])).all()


def test_it_stores_two_numbers_for_a_weight(found):
    stored = {name: np.size(jax.tree.leaves(p)[0][0]) for name, p in found.params.items()}
    assert stored["subspace_loc"] == stored["subspace_scale"] == 3
    assert set(stored) - {"subspace", "subspace_loc", "subspace_scale"} == {
        "level_subspace_others_loc",
        "level_subspace_others_scale",
    }


def test_nobody_weighs_by_its_density(found):
    """A verdict is not good though weights, which know nothing of what is off, are; nor is it a start."""
    before = jax.tree.map(np.array, found.params)
    said = found.verdict(num_samples=300)
    assert said.level != "good" and ("a point at 'a', 'b'" in str(said) or said.level == "bad")
    with pytest.raises(ModelError, match="draws 'a', 'b' at a single point, in whole or in part"):
        found.refined(jax.random.key(0), TemperedSMC(20))
    jax.tree.map(np.testing.assert_array_equal, before, found.params)  # and no tracer is left in them


def test_its_loss_is_that_of_the_subspace():
    """Of known parameters, against the formula: the mean log joint of draws, and the entropy of three."""
    guide = SparseSubspace(lambda x, y: model_of_one(x, y), "w", 2, every=10**6)
    loc, scale, active = jnp.array([0.5, -1.0]), jnp.array([0.1, 0.3]), jnp.array([7, 2])
    params = {
        "subspace_loc": loc,
        "subspace_scale": scale,
        "subspace": {"active": active, "step": jnp.zeros((), int)},
    }
    loss = jax.jit(lambda key: ELBO(num_particles=500).loss(key, params, guide.model, guide, X, Y))
    values = [float(loss(key)) for key in jax.random.split(jax.random.key(0), 20)]
    w = np.zeros(SIZE)
    w[[7, 2]] = loc
    squares = np.sum((np.asarray(Y) - np.asarray(X) @ w) ** 2) + 36.0 * np.sum(np.asarray(scale) ** 2)
    log_lik = -0.5 * squares / NOISE**2 - 40 * np.log(NOISE * np.sqrt(2 * np.pi))
    prior = -0.5 * np.sum(w**2) / PRIOR**2 - 0.5 * np.sum(np.asarray(scale) ** 2) / PRIOR**2
    prior -= SIZE * np.log(PRIOR * np.sqrt(2 * np.pi))
    entropy = np.sum(np.log(np.asarray(scale))) + 2 * 0.5 * np.log(2 * np.pi * np.e)
    error = np.std(values, ddof=1) / 20**0.5
    assert abs(np.mean(values) + log_lik + prior + entropy) < 4.5 * error


def model_of_one(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, PRIOR).expand([SIZE]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, NOISE).to_event(1), obs=y)


MIXED = X + 0.5 * jnp.roll(X, 1, axis=1)  # columns that are not at right angles


def one_exchange(loc, scale, active, step, **options):
    """Where the places are after one step of the guide."""
    guide = SparseSubspace(model_of_one, "w", 3, every=5, num_exchanges=4, **options)
    params = {"subspace_loc": jnp.asarray(loc), "subspace_scale": jnp.asarray(scale)}
    state = {"active": jnp.asarray(active), "step": jnp.asarray(step)}
    with handlers.trace() as record, handlers.seed(rng_seed=0), handlers.substitute(data=params):
        with handlers.substitute(data={"subspace": state}):
            guide(MIXED, Y)
    return np.asarray(record["subspace"]["value"]["active"]), int(record["subspace"]["value"]["step"])


class TestExchange:
    LOC, SCALE, ACTIVE = np.array([2.0, 0.1, 0.3]), np.array([0.1, 0.05, 0.2]), np.array([1, 3, 0])

    def expected(self, loc, num):
        """By the rule, in NumPy: the weakest goes for the steepest, if that promises more, and so on."""
        w, after = np.zeros(SIZE), self.ACTIVE.copy()
        w[self.ACTIVE] = loc
        x = np.asarray(MIXED, float)
        slopes = np.abs(x.T @ (np.asarray(Y) - x @ w) / NOISE**2 - w / PRIOR**2)
        slopes[self.ACTIVE] = 0.0
        held = np.abs(loc) / self.SCALE
        for slot, place in zip(np.argsort(held)[:num], np.argsort(-slopes)[:num], strict=True):
            if slopes[place] * np.median(self.SCALE) > held[slot]:
                after[slot] = place
        return after.tolist()

    @pytest.mark.parametrize("share, num", [(0.01, 1), (0.3, 1), (0.7, 2)])
    def test_the_weakest_go_and_the_steepest_come(self, share, num):
        """Signals to noise are 20, 2 and 1.5, and newcomers promise more."""
        after, step = one_exchange(self.LOC, self.SCALE, self.ACTIVE, 4, share=share)
        assert after.tolist() == self.expected(self.LOC, num) and step == 5
        assert (after != self.ACTIVE).sum() == num

    def test_only_if_more_is_promised(self):
        changed = set()
        for second in (0.1, 1.0, 3.0, 10.0, 1e3):
            loc = np.array([2.0, second, 0.3])
            after, _ = one_exchange(loc, self.SCALE, self.ACTIVE, 4, share=0.7)
            assert after.tolist() == self.expected(loc, 2)
            changed.add(int((after != self.ACTIVE).sum()))
        assert {1, 2} <= changed
        strong = np.array([2e4, 1e4, -1e4])
        assert one_exchange(strong, self.SCALE, self.ACTIVE, 4, share=1.0)[0].tolist() == self.expected(
            strong, 3
        )

    @pytest.mark.parametrize(
        "step, due", [(0, False), (3, False), (4, True), (5, False), (19, True), (24, False)]
    )
    def test_at_its_times(self, step, due):
        after, _ = one_exchange(self.LOC, self.SCALE, self.ACTIVE, step, share=0.3)
        assert (after[2] != 0) == due


def test_all_weights_are_nothing_to_exchange():
    guide = SparseSubspace(model_of_one, "w", SIZE, every=2)
    optim = optax.adam(optax.cosine_decay_schedule(0.05, 800))
    run = fit(jax.random.key(0), model_of_one, guide, ELBO(), optim, 800, X, Y, progress_bar=False)
    assert sorted(places(run.params).tolist()) == list(range(SIZE))
    np.testing.assert_allclose(run.params["subspace_loc"][0], MEAN[places(run.params)], atol=0.05)


def test_by_numpyro():
    guide = SparseSubspace(model_of_one, "w", 2, every=20, num_exchanges=10, share=0.5)
    svi = SVI(model_of_one, guide, optax.adam(0.05), Trace_ELBO())
    run = svi.run(jax.random.key(0), 600, X, Y, progress_bar=False)
    active = run.state.mutable_state["subspace"]["active"]
    assert set(active.tolist()) == {1, 4}
    drawn = Predictive(guide, params=run.params | run.state.mutable_state, num_samples=20)(
        jax.random.key(1), X, Y
    )
    assert ((drawn["w"] != 0).sum(0) > 0).sum() == 2


class TestLaw:
    def test_density_and_moments(self):
        law = OnSubspace(
            jnp.array([1.0, -2.0, 5.0]), jnp.array([0.5, 1.5, 1.0]), jnp.array([4, 0, -1]), (2, 3)
        )
        draws = law.sample(jax.random.key(0), (4000,))
        assert draws.shape == (4000, 2, 3)
        held = np.array([[True, False, False], [False, True, False]])
        assert (np.asarray(draws)[:, ~held] == 0).all()
        np.testing.assert_allclose(law.mean, [[-2.0, 0, 0], [0, 1.0, 0]])
        np.testing.assert_allclose(law.variance, [[2.25, 0, 0], [0, 0.25, 0]])
        np.testing.assert_array_less(
            np.abs(draws.mean(0) - law.mean), 4.5 * law.variance**0.5 / 4000**0.5 + 1e-9
        )
        exact = dist.Normal(-2.0, 1.5).log_prob(draws[:, 0, 0]) + dist.Normal(1.0, 0.5).log_prob(
            draws[:, 1, 1]
        )
        np.testing.assert_allclose(law.log_prob(draws), exact, rtol=1e-5)
        assert law.has_rsample and law.support(draws).all()


def plated(x, y):
    with numpyro.plate("weights", SIZE):
        numpyro.sample("w", dist.Normal(0.0, 1.0))


def positive(x, y):
    numpyro.sample("w", dist.HalfNormal(1.0).expand([SIZE]).to_event(1))


def with_param(x, y):
    scale = numpyro.param("scale", 1.0)
    numpyro.sample("w", dist.Normal(0.0, scale).expand([SIZE]).to_event(1))


@pytest.mark.parametrize(
    "program, sites, num_active, told",
    [
        (model_of_one, "v", 2, "no latent site 'v'. There are: 'w'"),
        (model_of_one, "y", 2, "no latent site 'y'"),
        (model_of_one, ["w"], 13, "13 weights are to be active, and sites 'w' have 12"),
        (plated, "w", 2, "'w' lies in plate 'weights'"),
        (positive, "w", 2, "'w' has support"),
        (with_param, "w", 2, "param site 'scale'"),
    ],
)
def test_what_does_not_do_is_named(program, sites, num_active, told):
    guide = SparseSubspace(program, sites, num_active)
    with handlers.seed(rng_seed=0), pytest.raises(ModelError, match=told):
        guide(X, Y)


@pytest.mark.parametrize(
    "options, error, told",
    [
        ({"num_active": 0}, ArgumentError, "num_active"),
        ({"every": 0}, ArgumentError, "every"),
        ({"num_exchanges": 0}, ArgumentError, "num_exchanges"),
        ({"share": 0.0}, ArgumentError, "share must be above 0 and at most 1, got 0.0"),
        ({"share": 1.5}, ArgumentError, "share must be above 0"),
        ({"share": "all"}, ArgumentTypeError, "share"),
        ({"init_scale": 0.0}, ArgumentError, "init_scale"),
        ({"sites": []}, ArgumentError, "sites must be names"),
        ({"sites": [3]}, ArgumentError, "sites must be names"),
    ],
)
def test_bad_options_are_named(options, error, told):
    with pytest.raises(error, match=told):
        SparseSubspace(**({"model": model_of_one, "sites": "w", "num_active": 2} | options))


def test_log_density_of_its_draws():
    """A guide as any other: what it draws has a density, of the weights that are on."""
    guide = SparseSubspace(model_of_one, "w", 2)
    params = {"subspace_loc": jnp.array([1.0, 2.0]), "subspace_scale": jnp.array([0.1, 0.2])}
    state = {"subspace": {"active": jnp.array([3, 8]), "step": jnp.zeros((), int)}}
    fixed = handlers.substitute(handlers.substitute(guide, data=params), data=state)
    draw = ppl_ext.simulate(fixed, X, Y, rng_key=jax.random.key(0))
    w = draw.values["w"]
    exact = dist.Normal(jnp.array([1.0, 2.0]), jnp.array([0.1, 0.2])).log_prob(w[jnp.array([3, 8])]).sum()
    np.testing.assert_allclose(draw.log_density.total, exact, rtol=1e-5)
