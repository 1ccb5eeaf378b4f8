"""What programs read from outside of their arguments is part of what is compiled for them: a second run sees
that it has changed.

Every way of reading (an attribute, a closure, a global, ...) against what a fresh program says, through the
cheapest keeper; and every keeper of compiled programs, through three ways. A change that nobody reads, and
none at all, compile nothing.
"""

import copy
import functools
import pickle
import types
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from numpyro.infer.autoguide import AutoNormal

from ppl_ext import expectation, log_density, marginal
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.errors import ModelError
from ppl_ext.infer import PMMH, SGLD, ParticleGibbs, fit
from ppl_ext.meta import ExactLinearGaussian, evaluate, lift
from ppl_ext.objectives import ELBO
from ppl_ext.priors import Gaussian, lift_prior, match
from ppl_ext.priors.targets.target import Target
from ppl_ext.runtime.outside import reading
from ppl_ext.smoothing import (
    OnlineSmoother,
    ParisParticleGibbs,
    RecursiveMaximumLikelihood,
    ScoreAscent,
    smooth,
)

KEY = jax.random.key(0)
assert_close = np.testing.assert_allclose
THEN, NOW = jnp.full(20, 3.0), jnp.full(7, 8.0)
DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py
DATA = THEN
TABLE = {"y": THEN}


# --- ways of reading: what reads, and how it is changed


class Holder:
    shared = THEN

    def __init__(self, y):
        self.y = y
        self.fits = []

    def read(self):
        return self.y

    def of_class(self):
        return self.shared

    @property
    def doubled(self):
        return 2.0 * self.y

    def of_property(self):
        return self.doubled

    def by_name(self):
        return getattr(self, "".join(["y"]))


class Linear(eqx.Module):
    y: jax.Array

    def __call__(self):
        return self.y


@dataclass
class Plain:
    inner: Holder
    scale: float = 1.0

    def __call__(self):
        return self.inner.y * self.scale


def attribute():
    holder = Holder(THEN)
    return holder.read, lambda y: setattr(holder, "y", y)


def closure():
    kept = THEN

    def read():
        return kept

    def put(y):
        nonlocal kept
        kept = y

    return read, put


def put_global(y):
    global DATA
    DATA = y


def read_global():
    return DATA


def read_through():
    return [read_global() for _ in range(1)][0]


def global_name():
    put_global(THEN)
    return read_global, put_global


def helper():
    put_global(THEN)
    return lambda: read_through() + 0.0, put_global


def item_of_a_global():
    TABLE["y"] = THEN
    return lambda: TABLE["y"], lambda y: TABLE.update(y=y)


def partial():
    found = functools.partial(lambda y: y, y=THEN)
    return found, lambda y: found.keywords.update(y=y)


def default():
    def read(kept={"y": THEN}):  # noqa: B006
        return kept["y"]

    return read, lambda y: read.__defaults__[0].update(y=y)


def keyword_default():
    def read(*, y=THEN):
        return y

    return read, lambda y: read.__kwdefaults__.update(y=y)


def in_place():
    kept = np.array(THEN)

    def put(y):
        kept[:] = y[0]

    return lambda: jnp.asarray(kept), put


def in_a_list():
    kept = [THEN]
    return lambda: kept[0], lambda y: kept.__setitem__(0, y)


def a_number():
    kept = [[3.0]]
    return lambda: jnp.full(3, kept[0][0]), lambda y: kept[0].__setitem__(0, float(y[0]))


def object_in_a_dict():
    models = {"now": Holder(THEN)}
    return lambda: models["now"].read(), lambda y: models.update(now=Holder(y))


def object_in_an_object():
    model = Plain(Holder(THEN))
    return model, lambda y: setattr(model.inner, "y", y)


def class_attribute():
    holder = Holder(THEN)
    Holder.shared = THEN
    return holder.of_class, lambda y: setattr(Holder, "shared", y)


def a_property():
    holder = Holder(THEN)
    return holder.of_property, lambda y: setattr(holder, "y", y)


def by_getattr():
    holder = Holder(THEN)
    return holder.by_name, lambda y: setattr(holder, "y", y)


def module_replaced():
    net = {"net": Linear(THEN)}
    return lambda: net["net"](), lambda y: net.update(net=eqx.tree_at(lambda n: n.y, net["net"], y))


def namespace():
    config = types.SimpleNamespace(y=THEN)
    return lambda: config.y, lambda y: setattr(config, "y", y)


def module():
    found = types.ModuleType("settings_of_a_test")
    found.y = THEN
    return lambda: found.y, lambda y: setattr(found, "y", y)


def handler():
    given = {"y": THEN}

    def read():
        return numpyro.deterministic("read", jnp.zeros(()))

    substituted = numpyro.handlers.substitute(lambda: numpyro.param("y", jnp.zeros(1)), data=given)
    return lambda: substituted(), lambda y: given.update(y=y)


WAYS = (
    attribute, closure, global_name, helper, item_of_a_global, partial, default, keyword_default, in_place,
    in_a_list, a_number, object_in_a_dict, object_in_an_object, class_attribute, a_property, by_getattr,
    module_replaced, namespace, module, handler,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_is_seen(way):
    """The value is the sum of what is read, which is known; put back, the first programs serve again."""
    read, put = way()
    runs = []

    def program(weight):
        runs.append(1)
        return weight * read().sum() + 0.0 * numpyro.sample("z", dist.Normal(0.0, 1.0))

    estimator, twice = expectation(program), 2.0 if way is a_property else 1.0
    first = float(read().sum())
    assert_close(estimator.value(KEY, 1.0), first, rtol=1e-6)
    put(NOW)
    second = float(read().sum())
    assert second in (twice * 56.0, 160.0, 24.0) and second != first
    value, slope = estimator.value_and_grad(KEY, 1.0)
    assert_close([estimator.value(KEY, 1.0), value, slope], [second] * 3, rtol=1e-6)
    put(THEN)
    assert_close(estimator.value(KEY, 1.0), first, rtol=1e-6)
    before = len(runs)
    assert_close(estimator.value(KEY, 2.0), 2 * first, rtol=1e-6)
    assert len(runs) == before


def states(*changes, program):
    found = []
    for change in (lambda: None, *changes):
        change()
        with reading(program) as outside:
            found.append(outside.number)
    return found


def test_what_nobody_reads_is_no_part_of_it():
    holder = Holder(THEN)
    changes = (
        lambda: holder.fits.append(object()),
        lambda: setattr(holder, "note", "so far"),
        lambda: TABLE.update(other=1),
    )
    assert len(set(states(*changes, program=holder.read))) == 1


def test_what_a_program_changes_itself_is_no_part_of_it():
    """A counter, a cache and a list, changed at each run; the data beside them still count."""

    class Counting(Holder):
        count, cache = 0, None

        def read(self):
            self.count += 1
            self.cache = 2.0 * self.y
            LOG.append(self.count)
            return self.y

    global LOG
    LOG = []
    counting, found = Counting(THEN), []
    for y in (THEN, THEN, THEN, NOW, NOW, THEN):
        counting.y = y
        with reading(counting.read) as outside:
            counting.read()
        found.append(outside.number)
    assert found[0] == found[1] == found[2] == found[5] and found[3] == found[4] != found[0]


def test_an_identity_that_was_passed_on_is_not_taken_for_the_old_one():
    holder, found = Holder(None), []
    for i in range(50):
        holder.y = jnp.full(3, float(i))  # the last one's memory is free by now
        with reading(holder.read) as outside:
            found.append(outside.number)
    assert len(set(found)) == 50


def test_objects_that_refer_to_each_other_and_objects_that_cannot_be_looked_at():
    one, other = Holder(THEN), Holder(THEN)
    one.y, other.y = other, one
    assert len(set(states(program=one.read))) == 1
    one.y = {"self": one, "list": [[[]]]}
    one.y["list"].append(one.y)
    assert len(set(states(lambda: None, program=one.read))) == 1

    class Hostile:
        @property
        def __dict__(self):
            raise RuntimeError("not to be looked at")

    one.y = Hostile()
    assert len(set(states(lambda: None, program=one.read))) == 2  # safe: never the same


def test_a_state_means_nothing_in_another_process():
    holder = Holder(THEN)
    with reading(holder.read) as outside:
        pass
    for other in (pickle.loads(pickle.dumps(outside)), copy.deepcopy(outside)):
        other.check("here", holder.read)
    holder.y = NOW
    with pytest.raises(
        ModelError, match="here: attribute 'y' of Holder, which the program reads, has changed since"
    ):
        outside.check("here", holder.read)
    pickle.loads(pickle.dumps(outside)).check("here", holder.read)


# --- keepers of compiled programs: each a function of what is read, run before the change, after it, and
# afresh

SERIES = jnp.array([0.3, -0.1, 0.5, 1.2])


def quick(*args, **kwargs):
    return fit(*args, progress_bar=False, **kwargs)


def mean_model(read):
    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        with numpyro.plate("rows", len(read())):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=read())

    return model


def mean_guide():
    numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 0.2))


def walk_model(read):
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))

        def step(x_prev, y_t):
            x = numpyro.sample("x", dist.Normal(0.5 * x_prev + mean, 0.5))
            numpyro.sample("y", dist.Normal(x + read().mean(), 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

    return model


def fits(read):
    model, optim = mean_model(read), optax.sgd(0.001)
    return lambda: quick(KEY, model, mean_guide, ELBO(), optim, 3).params["loc"]


def fits_of_an_autoguide(read):
    model, optim = mean_model(read), optax.sgd(0.001)
    guide = AutoNormal(model)
    return lambda: quick(KEY, model, guide, ELBO(), optim, 3).params["mu_auto_loc"]


def marginal_in_fit(read):
    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        level = numpyro.sample("level", dist.Normal(mu, 1.0))
        with numpyro.plate("rows", len(read())):
            numpyro.sample("y", dist.Normal(level, 1.0), obs=read())

    kept, optim = marginal(model, keep=["mu"], algorithm=ImportanceSampling(5)), optax.sgd(0.001)
    return lambda: quick(KEY, kept, mean_guide, ELBO(), optim, 2).losses


def smooths_exactly(read):
    smoother = smooth(walk_model(read), {"x": lambda t, x_prev, x: x}, backward="exact")
    return lambda: smoother.run(KEY, SERIES, params={"mean": 0.0}).log_evidence


def smooths(read):
    smoother = smooth(walk_model(read), {"x": lambda t, x_prev, x: x}, num_particles=20)
    return lambda: (lambda r: jnp.append(r.filtered()["x"].ravel(), r.sample(num_samples=2)["x"]))(
        smoother.run(KEY, SERIES, params={"mean": 0.0})
    )


def smooths_online(read):
    smoother = OnlineSmoother(walk_model(read), {"x": lambda t, x_prev, x: x}, num_particles=20)

    def run():
        state = smoother.init(KEY, params={"mean": 0.0})
        for y in SERIES:
            state = smoother.step(state, y)
        return smoother.result(state).log_evidence

    return run


def smooths_by_gibbs(read):
    smoother = ParisParticleGibbs(
        walk_model(read), {"x": lambda t, x_prev, x: x}, num_particles=5, num_sweeps=4, burn_in=1
    )
    return lambda: smoother.run(KEY, SERIES, params={"mean": 0.0}).expectations["x"]


def ascends(read):
    ascent = ScoreAscent(walk_model(read), optax.sgd(0.01), num_particles=10)
    return lambda: ascent.run(KEY, 2, SERIES, params={"mean": 0.0}).params["mean"]


def learns_online(read):
    learner = RecursiveMaximumLikelihood(walk_model(read), lambda t: 0.01 * t**-0.6, num_particles=10)

    def run():
        state = learner.init(KEY, 0.0, params={"mean": 0.0})
        for y in SERIES:
            state = learner.step(state, y)
        return state.smoother.params["mean"]

    return run


class Levels(eqx.Module):
    """A target of levels, for it must be an equinox module to be kept for."""

    def sample(self, rng_key, inputs, num_draws):
        return jax.random.normal(rng_key, (num_draws, 1)) * jnp.ones(len(inputs))


def matches(read):
    def model(x):
        return numpyro.sample("w", dist.Normal(0.0, 1.0)) * jnp.ones(len(x)) * read().mean()

    lifted, target = lift_prior(model, {"w": Gaussian()}), Levels()
    assert isinstance(target, Target)
    settings = {
        "inputs": jnp.arange(3.0),
        "target": target,
        "num_steps": 2,
        "num_draws": 8,
        "progress_bar": False,
    }
    return lambda: match(KEY, lifted, **settings).losses


EPISODES = [(np.full(2, level, np.float32),) for level in (1.0, 2.0, 3.0)]


def episode_model(read):
    def episode(y):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(level + read().mean(), 1.0), obs=y)

    return episode


def lifts(read):
    lifted = lift(episode_model(read), ["level"])

    def run():
        found = lifted.fit(KEY, EPISODES, local_solver=ExactLinearGaussian(), num_steps=3, progress_bar=False)
        new = found.adapt(KEY, EPISODES[0][0], num_samples=5)
        return jnp.array([found.niw.loc[0], new.mean[0], found.posteriors(EPISODES).mean[0, 0]])

    return run


def lifts_and_evaluates(read):
    lifted = lift(episode_model(read), ["level"])
    return lambda: (
        evaluate(
            lifted.untrained(EPISODES, ExactLinearGaussian()), KEY, EPISODES, EPISODES, num_samples=5
        ).nll
    )


KEEPERS = (
    fits, fits_of_an_autoguide, marginal_in_fit, smooths_exactly, smooths, smooths_online, smooths_by_gibbs,
    ascends, learns_online, matches, lifts, lifts_and_evaluates,
)  # fmt: skip


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("way", [attribute, in_place, global_name])
def test_every_keeper_sees_the_change(keeper, way):
    read, put = way()
    run = keeper(read)
    first = np.asarray(run())
    put(NOW)
    second, fresh = np.asarray(run()), np.asarray(keeper(read)())
    assert_close(second, fresh, rtol=1e-5)
    assert not np.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize("keeper", KEEPERS)
def test_no_change_compiles_nothing(keeper, caplog):
    read, put = attribute()
    run = keeper(read)
    run()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        run()
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert [m for m in compiled if any(name in m for name in NAMES)] == []


NAMES = (
    "_steps", "_exactly", "_forward", "_backward", "_filtered", "_first", "_next", "_chain", "_ascend",
    "adapted", "_posteriors", "_scored",
)  # fmt: skip


@pytest.mark.parametrize("kernel", [PMMH, ParticleGibbs, SGLD])
def test_a_kernel_that_ran_on_other_data_is_refused(kernel):
    """NumPyro's ``MCMC`` keeps what it compiled for the kernel; a new kernel is right."""
    read, put = attribute()
    if kernel is SGLD:
        model, args = mean_model(read), ()

        def make():
            return SGLD(model, step_size=0.01)

    else:
        model, args = walk_model(read), (SERIES,)

        def make():
            return kernel(model, num_particles=5)

    def run(kernel):
        mcmc = MCMC(kernel, num_warmup=2, num_samples=60, progress_bar=False)
        mcmc.run(KEY, *args)
        return mcmc

    first = make()
    mcmc = run(first)
    mcmc.run(KEY, *args)
    put(NOW)
    with pytest.raises(
        ModelError, match="attribute 'y' of Holder, which the program reads, has changed since"
    ):
        mcmc.run(KEY, *args)
    name = "mu" if kernel is SGLD else "mean"
    again = run(make()).get_samples()[name]
    assert not np.allclose(again, mcmc.get_samples()[name])


# --- what was found before


def test_results_do_not_speak_of_other_data():
    """A fit, a smoothed series, a match and a hierarchy, each asked after the change; put back, they answer
    as before.
    """
    read, put = attribute()
    result = quick(KEY, mean_model(read), mean_guide, ELBO(), optax.sgd(0.001), 2)
    first = result.sample(KEY, 5).log_p
    smoothed = smooth(walk_model(read), num_particles=10).run(KEY, SERIES, params={"mean": 0.0})
    fitted = lift(episode_model(read), ["level"]).untrained(EPISODES, ExactLinearGaussian())
    put(NOW)
    for ask in (
        lambda: result.sample(KEY, 5),
        lambda: result.to_arviz(num_samples=5),
        lambda: smoothed.sample(num_samples=2),
        lambda: smoothed.filtered(),
        lambda: smoothed.to_arviz(num_samples=2),
        lambda: fitted.adapt(KEY, *EPISODES[0]),
        lambda: fitted.posteriors(EPISODES),
        lambda: fitted.to_arviz(EPISODES),
        lambda: evaluate(fitted, KEY, EPISODES, EPISODES),
    ):
        with pytest.raises(
            ModelError, match="attribute 'y' of Holder, which the program reads, has changed since"
        ):
            ask()
    put(THEN)
    np.testing.assert_array_equal(result.sample(KEY, 5).log_p, first)


def test_the_data_of_an_object_may_change_between_fits():
    """The posterior mean of a Normal with a wide prior is the mean of the data, whatever was fitted
    before.
    """

    class Mean(Holder):
        def model(self):
            mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
            with numpyro.plate("n", len(self.y)):
                numpyro.sample("y", dist.Normal(mu, 1.0), obs=self.y)

        def guide(self):
            numpyro.sample("mu", dist.Normal(numpyro.param("loc", 0.0), 0.2))

    mean, optim = Mean(None), optax.adam(0.1)
    for value, rows in ((3.0, 20), (-3.0, 20), (8.0, 7)):
        mean.y = jnp.full(rows, value)
        found = quick(KEY, mean.model, mean.guide, ELBO(), optim, 300)
        assert_close(found.params["loc"][0], rows * value / (rows + 0.01), atol=0.3)
        assert found.to_arviz(num_samples=2).observed_data["y"].values.tolist() == [value] * rows


def test_densities_are_never_kept():
    read, put = attribute()
    model = mean_model(read)
    first = log_density(model, {"mu": 0.0}).total
    put(NOW)
    assert_close(
        log_density(model, {"mu": 0.0}).total - first, -0.5 * (7 * 64 - 20 * 9) + 13 * 0.9189385, rtol=1e-4
    )
