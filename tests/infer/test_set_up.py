"""The set-up of ``fit`` in one program, beside NumPyro's number by number."""

import gc
from types import FunctionType, ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Trace_ELBO, init_to_median, init_to_value
from numpyro.infer import autoguide as guides

from ppl_ext.errors import NonFiniteError
from ppl_ext.infer import fit
from ppl_ext.infer.svi import set_up
from ppl_ext.infer.svi.runner import Runner
from ppl_ext.infer.svi.set_up import replaced
from ppl_ext.objectives import ELBO

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def young(monkeypatch):
    """As in a process that has just begun."""
    monkeypatch.setattr(set_up, "_compiled", [0])


X = jnp.arange(12.0).reshape(6, 2) / 10
Y = X.sum(1)


def regression(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(x @ b, noise), obs=y)


def local(x, y):
    top = numpyro.sample("top", dist.Uniform(0.0, 3.0))
    numpyro.sample("share", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("rows", 6, subsample_size=2) as rows:
        z = numpyro.sample("z", dist.Normal(top, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def path(x, y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(before, y_t):
        z = numpyro.sample("z", dist.Normal(before, scale))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y_t)
        return z, None

    scan(step, 0.0, y)


def by_hand(x, y):
    spread = numpyro.param("spread", jax.random.uniform, constraint=dist.constraints.interval(0.0, 2.0))
    numpyro.sample("b", dist.Normal(numpyro.param("loc", jnp.zeros(2)), spread).to_event(1))
    numpyro.sample("noise", dist.LogNormal(0.0, spread))


def in_parts(model):
    guide = guides.AutoGuideList(model)
    guide.append(guides.AutoNormal(numpyro.handlers.block(model, hide=["noise"])))
    guide.append(guides.AutoDelta(numpyro.handlers.block(model, expose=["noise"])))
    return guide


SET_UPS = {
    "normal": (regression, guides.AutoNormal),
    "from the median": (regression, lambda model: guides.AutoNormal(model, init_loc_fn=init_to_median)),
    "from values": (
        regression,
        lambda m: guides.AutoNormal(m, init_loc_fn=init_to_value(values={"noise": 2.0})),
    ),
    "full rank": (regression, guides.AutoMultivariateNormal),
    "a flow": (regression, guides.AutoIAFNormal),
    "in parts": (regression, in_parts),
    "by hand": (regression, lambda model: by_hand),
    "rows of a plate": (local, guides.AutoNormal),
    "rows of a plate, points": (local, guides.AutoDelta),
    "a scan": (path, guides.AutoDiagonalNormal),
}


def left_traced(root):
    """What a garbage collector finds traced from here on."""
    seen, todo, found = {}, [root], []
    while todo:
        x = todo.pop()
        if id(x) in seen or isinstance(x, type | ModuleType):
            continue
        seen[id(x)] = x
        if isinstance(x, jax.core.Tracer):
            found.append(x)
        elif isinstance(x, FunctionType):
            todo += [x.__closure__, x.__defaults__, x.__kwdefaults__]
        else:
            todo += gc.get_referents(x)
    return found


def state_of_numpyro(model, guide, key=None):
    svi = SVI(model, guide, optax.adam(0.1), Trace_ELBO())
    return svi.get_params(svi.init(jax.random.split(KEY, 1)[0] if key is None else key, X, Y))


@pytest.mark.parametrize(("model", "guide"), SET_UPS.values(), ids=SET_UPS)
def test_it_starts_where_numpyro_does_and_keeps_numbers(model, guide):
    known, ours = state_of_numpyro(model, guide(model)), guide(model)
    runner = Runner(model, ours, ELBO(), optax.adam(0.1))
    states = runner.init(KEY, 1, None, (X, Y), {})
    assert runner.at_once
    found = runner.params(states)
    assert list(found) == list(known)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), found, known)
    assert not left_traced([runner.svi.constrain_fn, vars(ours) if model and hasattr(ours, "prefix") else {}])
    again = runner.params(runner.init(KEY, 1, None, (X, Y), {}))  # the guide is set up now
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_restarts_are_those_of_numpyro_and_run_the_model_no_more_often():
    runs = []

    def model(x, y):
        runs.append(1)
        regression(x, y)

    runner = Runner(model, guides.AutoNormal(model), ELBO(), optax.adam(0.1))
    runner.init(KEY, 1, None, (X, Y), {})
    one = len(runs)
    runner = Runner(model, guides.AutoNormal(model), ELBO(), optax.adam(0.1))
    found = runner.params(runner.init(KEY, 3, None, (X, Y), {}))
    assert len(runs) == 2 * one
    for chain, key in enumerate(jax.random.split(KEY, 3)):
        known = state_of_numpyro(regression, guides.AutoNormal(regression), key)
        jax.tree.map(lambda a, b, c=chain: np.testing.assert_allclose(a[c], b, atol=1e-6), found, known)


def test_a_vector_of_sites_has_them_in_the_models_order():
    """A traced loop would hand them on by name: "a" before "z"."""

    def model(x, y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("a", dist.Normal(z, 1.0).expand([2]).to_event(1))

    for guide in (guides.AutoMultivariateNormal, guides.AutoNormal):
        known, ours = state_of_numpyro(model, guide(model)), guide(model)
        runner = Runner(model, ours, ELBO(), optax.adam(0.1))
        found = runner.params(runner.init(KEY, 1, None, (X, Y), {}))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), found, known)
        median = ours.median({name: x[0] for name, x in found.items()})
        assert jnp.shape(median["z"]) == () and median["a"].shape == (2,)
        assert runner.at_once is (guide is guides.AutoNormal)


@pytest.mark.parametrize(
    "law",
    [
        lambda x: dist.Normal(x, -1.0),
        lambda x: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.array([0.5, 0.7])), dist.Normal(x * jnp.ones(2), 1)
        ),
        lambda x: dist.Normal(x, -jnp.ones(2)).to_event(1).mask(False),
    ],
)
def test_parameters_that_numpyro_refuses_are_refused(law):
    """Inside of a ``jit`` NumPyro does not look at them."""

    def model(y):
        numpyro.sample("y", law(numpyro.sample("x", dist.Normal(0.0, 1.0))), obs=y)

    def guide(y):
        numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    for of in (guide, guides.AutoNormal(model)):
        with pytest.raises(ValueError, match="invalid (scale|probs) parameter"):
            fit(KEY, model, of, ELBO(), optax.adam(0.1), 2, 1.0, progress_bar=False)


def test_data_without_a_density_are_named_as_before():
    def model(y):
        numpyro.sample("y", dist.Exponential(jnp.exp(numpyro.sample("x", dist.Normal(0.0, 1.0)))), obs=y)

    told = "Before the first step.*'y'.*outside the support of Exponential"
    with pytest.warns(UserWarning, match="Out-of-support"), pytest.raises(NonFiniteError, match=told):
        fit(KEY, model, guides.AutoNormal(model), ELBO(), optax.adam(0.1), 2, -1.0, progress_bar=False)


def test_a_model_that_needs_numbers_is_set_up_on_numbers():
    def model(y):
        rate = 2.0 if float(y[0]) > 0.5 else 1.0  # Python wants the number
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0.0, rate)), 1.0), obs=y[1])

    guide = guides.AutoNormal(model)
    found = fit(KEY, model, guide, ELBO(), optax.adam(0.1), 3, np.ones(2), progress_bar=False)
    assert np.isfinite(found.losses).all() and not left_traced(vars(guide))


def test_values_are_put_where_tracers_are():
    class Thing:
        def __init__(self, x):
            self.x, self.twin = x, (x, [x])

    def traced(x):
        kept["thing"], kept["function"] = Thing(x), lambda y, z=x: (x, y, z)
        kept["partial"] = jax.tree_util.Partial(max, x, key=[x])
        kept["same"] = kept["thing"].twin
        return x

    kept = {"user's": (model := Thing(1.0))}
    jax.make_jaxpr(traced)(1.0)
    assert len(left_traced(kept)) == 1
    replaced(kept, lambda tracer: 5.0, {id(model): model})
    assert not left_traced(kept) and kept["thing"].twin == (5.0, [5.0]) and kept["same"] is kept["thing"].twin
    assert kept["function"](2) == (5.0, 2, 5.0) and kept["partial"].args == (5.0,)
    assert kept["partial"].keywords == {"key": [5.0]} and kept["user's"] is model


class Lazy:
    """A model that computes something once, and keeps it."""

    def __init__(self):
        self.basis, self.runs = None, []

    def __call__(self, x, y):
        if self.basis is None:
            self.basis = jnp.linalg.qr(x)[0]
            self.runs.append(self.basis.sum())
        b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(self.basis @ b, 1.0).to_event(1), obs=y)


def lazy_in_cells():
    basis = None

    def model(x, y):
        nonlocal basis
        if basis is None:
            basis = jnp.linalg.qr(x)[0]
        b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(basis @ b, 1.0).to_event(1), obs=y)

    return model


BASIS = None


def lazy_in_a_global(x, y):
    global BASIS
    if BASIS is None:
        BASIS = jnp.linalg.qr(x)[0]
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(BASIS @ b, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model", [Lazy(), lazy_in_cells(), lazy_in_a_global], ids=["object", "cell", "global"]
)
def test_what_a_model_computes_once_and_keeps_is_a_number(model):
    guide = guides.AutoNormal(model)
    found = fit(KEY, model, guide, ELBO(), optax.adam(0.1), 3, X, Y, progress_bar=False)
    assert np.isfinite(found.losses).all() and not left_traced([vars(guide), BASIS])
    if isinstance(model, Lazy):
        assert len(model.runs) == 1 and not left_traced(vars(model))
        np.testing.assert_allclose(model.basis, jnp.linalg.qr(X)[0], atol=1e-6)


def test_an_automatic_guide_inside_of_another_is_set_up_on_numbers():
    """As the error for a discrete site advises."""

    def model(x, y):
        numpyro.sample("k", dist.Bernoulli(0.5))
        regression(x, y)

    auto = guides.AutoNormal(regression)

    def guide(x, y):
        numpyro.sample("k", dist.Bernoulli(numpyro.param("p", 0.5)))
        auto(x, y)

    found = fit(KEY, model, guide, ELBO(), optax.adam(0.1), 3, X, Y, progress_bar=False)
    assert np.isfinite(found.losses).all() and not left_traced(vars(auto))
    assert auto.median(jax.tree.map(lambda p: p[0], found.params))["b"].shape == (2,)
    wrapped = numpyro.handlers.scale(guides.AutoNormal(regression), scale=2.0)
    found = fit(KEY, regression, wrapped, ELBO(), optax.adam(0.1), 3, X, Y, progress_bar=False)
    assert np.isfinite(found.losses).all() and not left_traced(vars(wrapped.fn))


def test_a_process_that_has_compiled_much_is_set_up_number_by_number(monkeypatch):
    monkeypatch.setattr(set_up, "_compiled", [0])
    assert Runner(regression, by_hand, ELBO(), optax.adam(0.1)).at_once
    jax.jit(lambda x: x + 3.25)(jnp.ones(7))
    assert set_up._compiled[0] >= 1
    monkeypatch.setattr(set_up, "_compiled", [set_up.YOUNG])
    runner = Runner(regression, guides.AutoNormal(regression), ELBO(), optax.adam(0.1))
    assert not runner.at_once
    found = runner.params(runner.init(KEY, 2, None, (X, Y), {}))
    known = state_of_numpyro(regression, guides.AutoNormal(regression))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), found, known)
