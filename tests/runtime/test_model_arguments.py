"""Whatever SVI and NUTS take as arguments of a model, every verb takes: objects, settings, and sizes that are
read off data.

Each verb's result is that of the same model with the settings closed over, and other data of the same shapes
compile nothing anew.
"""

import dataclasses

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

import ppl_ext
from ppl_ext.diagnostics import calibrate, leave_future_out
from ppl_ext.errors import ArgumentTypeError, ProgramError
from ppl_ext.infer import PMMH, SGHMC, ParticleGibbs, fit
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.runtime.constants import content, split
from ppl_ext.smoothing import (
    OnlineEM,
    OnlineSmoother,
    ParisParticleGibbs,
    RecursiveMaximumLikelihood,
    ScoreAscent,
    smooth,
)

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)


@dataclasses.dataclass
class Config:
    """It has no hash, as dataclasses are."""

    width: int
    rate: float = 0.2


def checked(config, settings, kind, extra):
    """What Python asks of settings."""
    if settings["rate"] == 0.0 or extra is not None or not settings["flag"]:
        raise RuntimeError("another branch")
    return {"normal": 1.0}[kind] + 0.0 * config.width


LABELS, Y = np.array([0, 1, 2, 1, 0]), np.array([0.1, 1.0, 2.2, 0.8, -0.1], np.float32)


def rows(y, labels, config, settings, kind="normal", extra=None):
    scale = checked(config, settings, kind, extra)
    with numpyro.plate("groups", int(np.max(labels)) + 1):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean[np.unique(labels, return_inverse=True)[1]], scale), obs=y)


def walk(y, groups, config, settings, kind="normal", extra=None):
    scale, dim = checked(config, settings, kind, extra), max(int(np.max(groups)) + 1, config.width)
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x_prev, 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(x[0] if settings["flag"] else x[1], scale), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(jnp.zeros(dim), 1.0).to_event(1)), y)


def settings():
    """New objects at each call, equal in content."""
    return (LABELS.copy(), Config(2), {"rate": 0.2, "flag": True})


def bound(model):
    labels, config, more = settings()
    return lambda y: model(y, labels, config, more)


def fitted(model, *args, objective=None, **options):
    objective = ELBO() if objective is None else objective
    return fit(
        KEY, model, AutoNormal(model), objective, optax.adam(0.1), 3, *args, progress_bar=False, **options
    )


def weighed(p, model, *args):
    return p * ppl_ext.simulate(model, *args).log_density.total


def sampled(kernel, *args):
    mcmc = MCMC(kernel, num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(KEY, *args)
    return mcmc


def calibrated(model, y, labels=LABELS, config=None, settings=None):
    """Data are keywords there."""
    more = {} if config is None else {"labels": labels, "config": config, "settings": settings}
    algorithm = lambda key, data: {"mean": jax.random.normal(key, (9, 3))}  # noqa: E731
    found = calibrate(
        KEY, model, algorithm, data="y", num_simulations=6, num_draws=9, progress_bar=False, y=y, **more
    )
    return {name: np.asarray(x, float) for name, x in found.ranks.items()}


def left_out(model, *args):
    def refit(key, t):
        return {"phi": np.asarray(jax.random.uniform(key, (1, 20)), np.float32)}

    return leave_future_out(KEY, refit, model, *args, min_steps=2).elpd


def autoregression(y, groups, config, settings, kind="normal", extra=None):
    scale = checked(config, settings, kind, extra) * (int(np.max(groups)) + 1)
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))

    def step(before, y_t):
        y_t = numpyro.sample("y", dist.Normal(phi * before, scale), obs=y_t)
        return y_t, None

    scan(step, 0.0, y)


PHI = {"phi": 0.5}
OF_ROWS = {
    "fit": lambda m, *a: fitted(m, *a).losses,
    "fit, chains": lambda m, *a: fitted(m, *a, num_chains=2, objective=IWELBO(2)).losses,
    "sample": lambda m, *a: fitted(m, *a).sample(KEY, 5).log_weights,
    "to_arviz": lambda m, *a: fitted(m, *a).to_arviz(KEY, 5).log_likelihood["y"].values,
    "expectation": lambda m, *a: ppl_ext.expectation(lambda p, *a: weighed(p, m, *a)).value_and_grad(
        KEY, 1.0, *a
    ),
    "value": lambda m, *a: ppl_ext.expectation(lambda *a: weighed(1.0, m, *a)).value(KEY, *a),
    "log_likelihood": lambda m, *a: ppl_ext.diagnostics.log_likelihood(
        m, {"mean": np.ones((1, 4, 3), np.float32)}, *a
    ),
    "calibrate": calibrated,
    "SGHMC": lambda m, *a: sampled(SGHMC(m, step_size=0.01), *a).get_samples(),
}
OF_SERIES = {
    "smooth": lambda m, *a: smooth(m, num_particles=10).run(KEY, *a, params=PHI).log_evidence,
    "exact": lambda m, *a: smooth(m, backward="exact").run(KEY, *a, params=PHI).log_evidence,
    "trajectories": lambda m, *a: (
        smooth(m, num_particles=10).run(KEY, *a, params=PHI).sample(KEY, num_samples=2)
    ),
    "filtered": lambda m, *a: smooth(m, num_particles=10).run(KEY, *a, params=PHI).filtered(jnp.array([0.5])),
    "ppg": lambda m, *a: (
        ParisParticleGibbs(m, num_particles=5, num_sweeps=3, burn_in=1).run(KEY, *a, params=PHI).trajectories
    ),
    "ascent": lambda m, *a: (
        ScoreAscent(m, optax.adam(0.1), num_particles=5).run(KEY, 2, *a, params=PHI).params
    ),
    "ParticleGibbs": lambda m, *a: sampled(ParticleGibbs(m, num_particles=5), *a).get_samples(),
    "ParticleGibbs, report": lambda m, *a: (
        ppl_ext.to_arviz(sampled(ParticleGibbs(m, num_particles=5), *a)).posterior["phi"].values
    ),
    "PMMH": lambda m, *a: sampled(PMMH(m, num_particles=5), *a).get_samples(),
}


def alike(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize("verb", OF_ROWS)
def test_rows_as_with_the_settings_closed_over(verb):
    alike(OF_ROWS[verb](rows, Y, *settings()), OF_ROWS[verb](bound(rows), Y))


@pytest.mark.parametrize("verb", OF_SERIES)
def test_series_as_with_the_settings_closed_over(verb):
    alike(OF_SERIES[verb](walk, Y, *settings()), OF_SERIES[verb](bound(walk), Y))


def test_future_left_out_as_with_the_settings_closed_over():
    alike(left_out(autoregression, Y, *settings()), left_out(bound(autoregression), Y))


@pytest.mark.parametrize("learner", ["OnlineSmoother", "RecursiveMaximumLikelihood", "OnlineEM"])
def test_settings_of_a_stream_are_told_from_what_it_observes(learner):
    """A number may be either: what Python asks for is a setting."""

    def model(y, dim, config, flag=False, kind="a"):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
        scale = {"a": 1.0, "b": 2.0}[kind]

        def step(x_prev, y_t):
            x = numpyro.sample("x", dist.Normal(phi * x_prev, 1.0).to_event(1))
            numpyro.sample("y", dist.Poisson(jnp.exp(scale * (x[0] if flag else x[1]))), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(jnp.zeros(max(dim, config.width)), 1.0).to_event(1)), y)

    def run(model, *args, **kwargs):
        if learner == "OnlineSmoother":
            online = OnlineSmoother(model, num_particles=10)
        elif learner == "OnlineEM":
            online = OnlineEM(
                model,
                lambda x_prev, x, y_t: x[0],
                lambda s: {"phi": 0.5 + 0.01 * jnp.tanh(s)},
                lambda t: 1 / t,
                10,
                wait=1,
            )
        else:
            online = RecursiveMaximumLikelihood(model, lambda t: t**-0.6, num_particles=10)
        state = online.init(KEY, 0, *args, params=PHI, **kwargs)
        for y in (1, 3, 0):
            state = online.step(state, y, *args, **kwargs)
        return jax.tree.leaves(getattr(state, "smoother", state).filter.log_evidence)

    alike(run(model, 3, Config(2), flag=True, kind="b"), run(lambda y: model(y, 3, Config(2), True, "b")))


def test_other_data_of_the_same_shapes_trace_nothing_and_other_settings_do():
    runs = []

    def model(*args):
        runs.append(1)
        rows(*args)

    guide, objective, adam = AutoNormal(rows), ELBO(), optax.adam(0.1)

    def traced(*args):
        before = len(runs)
        result = fit(KEY, model, guide, objective, adam, 2, *args, progress_bar=False)
        return len(runs) - before, result.losses

    traced(Y, *settings())
    again, losses = traced(Y + 1.0, *settings())  # the labels are held, the data are not
    other, _ = traced(Y, LABELS, Config(3), {"rate": 0.2, "flag": True})
    assert again < other
    alike(
        losses,
        fit(KEY, bound(rows), AutoNormal(bound(rows)), ELBO(), adam, 2, Y + 1.0, progress_bar=False).losses,
    )


def test_as_little_as_will_do_is_held():
    held = []

    def look(y, labels, rate):
        held.append([isinstance(x, jax.core.Tracer) for x in (y, labels, rate)])
        return jnp.sum(y) * int(np.max(labels)) * rate

    ppl_ext.expectation(look).value(KEY, np.ones(9, np.float32), np.array([1, 2]), 0.5)
    assert held[-1] == [True, False, True]


def test_an_object_that_changes_is_another_constant():
    config = Config(2)

    def model(c):
        numpyro.sample("x", dist.Normal(float(c.width), 1.0), obs=0.0)
        return c.width

    program = ppl_ext.expectation(lambda c: jnp.float32(model(c)))
    assert float(program.value(KEY, config)) == 2.0
    config.width = 5
    assert float(program.value(KEY, config)) == 5.0


class Plain:
    def __init__(self, x):
        self.x, self.me = x, self


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Config(n),
        lambda n: {"a": [n, (n, None)]},
        lambda n: Plain({"inner": np.arange(n)}),
        lambda n: np.array(["a"] * n),
        lambda n: np.array([None, n], object),
        lambda n: {n, "b"},
        lambda n: float(n),
        lambda n: jnp.arange(n),
        lambda n: jax.random.key(n),
    ],
)
def test_constants_are_told_apart_by_content(make):
    assert content(make(2)) == content(make(2)) != content(make(3))
    assert hash(content(make(2))) == hash(content(make(2)))


def test_functions_count_by_identity_and_what_is_traced_has_no_part():
    one, other = (lambda x: x), (lambda x: x)
    assert split((Y, one), {})[1] == split((Y + 1, one), {})[1] != split((Y, other), {})[1]


def test_names_of_groups_as_strings():
    """SVI.run takes an array of strings, of which np.unique makes numbers."""

    def model(y, names):
        levels, index = np.unique(names, return_inverse=True)
        with numpyro.plate("groups", len(levels)):
            mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean[index], 1.0), obs=y)

    assert fitted(model, Y, np.array(["a", "b", "c", "b", "a"])).params["mean_auto_loc"].shape == (1, 3)


def test_what_no_constant_mends_keeps_its_error():
    """Python asks for a draw: the error of before, with its remedy; and data that no program can use are
    named.
    """

    def branching(y):
        if numpyro.sample("z", dist.Normal(0.0, 1.0)) > 0:
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ProgramError, match=r"after site 'z'.*jnp.where"):
        ppl_ext.expectation(lambda y: ppl_ext.simulate(branching, y).log_density).value(KEY, Y)
    plain = lambda y: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)  # noqa: E731
    with pytest.raises(ArgumentTypeError, match="argument 0 is an object array"):
        ppl_ext.expectation(lambda y: ppl_ext.simulate(plain, y).log_density).value(
            KEY, np.array([None, 1], object)
        )
    with pytest.raises(ProgramError, match="argument 0 is an object, which is no array"):
        ppl_ext.expectation(lambda y: ppl_ext.simulate(plain, y).log_density).value(KEY, object())
