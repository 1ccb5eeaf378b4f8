"""Lifting: which sites a pattern chooses, what they get, fan-in by library, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import random_eqx_module, random_flax_module, random_nnx_module
from numpyro.handlers import seed, trace

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, ProgramError
from ppl_ext.priors import Flow, Gaussian, ScaleMixture, lift_prior
from ppl_ext.priors.families.flow import planar
from ppl_ext.program import log_density
from tests.priors.models import X, network

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py


def sites_of(model, *args, key=0):
    return trace(seed(model, key)).get_trace(*args)


def scale_of(site):
    return np.unique(
        np.asarray(
            site["fn"].base_dist.base_dist.scale
            if hasattr(site["fn"].base_dist, "base_dist")
            else site["fn"].scale
        )
    )


class Linen(linen.Module):
    """The last layer is constructed first, and so is called Dense_0."""

    @linen.compact
    def __call__(self, x):
        last = linen.Dense(1)
        hidden = linen.Dense(6)(x)
        last(jnp.zeros((1, 6)))
        image = linen.Conv(4, (3,))(hidden[..., None])
        return last(jnp.tanh(hidden)) + 0.0 * image.sum()


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 1, rngs=rngs)])
        self.conv = nnx.Conv(1, 4, (3,), rngs=rngs)

    def __call__(self, x):
        hidden = jnp.tanh(self.layers[0](x))
        return self.layers[1](hidden) + 0.0 * self.conv(hidden[..., None]).sum()


class Equinox(eqx.Module):
    layers: list
    conv: eqx.nn.Conv1d

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.layers = [eqx.nn.Linear(3, 6, key=keys[0]), eqx.nn.Linear(6, 1, key=keys[1])]
        self.conv = eqx.nn.Conv1d(1, 4, 3, key=keys[2])

    def __call__(self, x):
        hidden = jnp.tanh(self.layers[0](x))
        return self.layers[1](hidden) + 0.0 * self.conv(hidden[None]).sum()


def with_linen(x):
    return random_flax_module("net", Linen(), dist.Normal(), input_shape=(1, 3))(x)


def with_nnx(x):
    return random_nnx_module("net", NNX(nnx.Rngs(0)), dist.Normal())(x)


def with_equinox(x):
    return jax.vmap(random_eqx_module("net", Equinox(), dist.Normal()))(x)


@pytest.mark.parametrize(
    ("model", "weight", "fan_in"),
    [
        (
            with_linen,
            "net/*kernel",
            {"net/Dense_0.kernel": 6, "net/Dense_1.kernel": 3, "net/Conv_0.kernel": 3},
        ),
        (with_nnx, "net/*kernel", {"net/layers.0.kernel": 3, "net/layers.1.kernel": 6, "net/conv.kernel": 3}),
        (
            with_equinox,
            "net/*weight",
            {"net/layers[0].weight": 3, "net/layers[1].weight": 6, "net/conv.weight": 3},
        ),
    ],
    ids=["linen", "nnx", "equinox"],
)
@pytest.mark.slow
def test_fan_in_is_that_of_the_library(model, weight, fan_in):
    """One scale for kernel and bias of a layer, the kernel's divided by the root of what it sums over; names
    stay.
    """
    x = jnp.ones((5, 3))
    lifted = lift_prior(
        model, {weight: Gaussian(fan_in="auto", scale=2.0), "net/*bias": Gaussian(fan_in="auto", scale=3.0)}
    )
    sites, plain = sites_of(lifted, x), sites_of(model, x)
    assert list(sites) == list(plain)
    assert {k: v["value"].shape for k, v in sites.items() if v["type"] == "sample"} == {
        k: v["value"].shape for k, v in plain.items() if v["type"] == "sample"
    }
    for name, n in fan_in.items():
        np.testing.assert_allclose(scale_of(sites[name]), [2.0 * n**-0.5], rtol=1e-6)
        np.testing.assert_allclose(scale_of(sites[name.rsplit(".", 1)[0] + ".bias"]), [3.0])
    assert not any("log_scale" in name or name.startswith("net/net") for name in sites)


def test_brackets_in_names_are_no_wildcards():
    layout = lift_prior(
        with_equinox, {"net/layers[0].*": Gaussian(), "net/layers[1].weight": Gaussian()}
    ).layout(jnp.ones((5, 3)))
    assert set(layout.sites()) == {"net/layers[0].bias", "net/layers[0].weight", "net/layers[1].weight"}


@pytest.mark.parametrize(
    ("per", "names", "shape"),
    [
        ("layer", {"net/Dense_0", "net/Dense_1", "net/Conv_0"}, ()),
        ("group", {"net/*"}, ()),
        ("element", None, None),
    ],
)
def test_what_shares_a_scale(per, names, shape):
    lifted = lift_prior(with_linen, {"net/*": Gaussian(per=per, learn_mean=True)})
    raw = lifted.layout(jnp.ones((5, 3))).init()["net/*"]
    if per == "element":
        assert raw["net/Dense_1.kernel"]["log_scale"].shape == (3, 6) and len(raw) == 6
    else:
        assert set(raw) == names and all(v["log_scale"].shape == shape for v in raw.values())
    assert all(v["mean"].shape == v["log_scale"].shape for v in raw.values())


def test_values_of_the_parameters_reach_the_sites_within_plates():
    lifted = lift_prior(
        network, {"w1": Gaussian(per="site", fan_in=4, learn_mean=True), "b1": Gaussian(per="element")}
    )
    layout = lifted.layout(X)
    raw = layout.init()
    raw["w1"]["w1"] = {"log_scale": jnp.log(0.5), "mean": jnp.array(7.0)}
    raw["b1"]["b1"]["log_scale"] = jnp.log(jnp.arange(1.0, 9.0))
    sites = sites_of(lifted.at(layout, raw), X)
    assert sites["w1"]["fn"].shape() == (8, 1) and sites["w1"]["fn"].event_dim == 1
    np.testing.assert_allclose(sites["w1"]["fn"].mean, 7.0 * np.ones((8, 1)))
    np.testing.assert_allclose(sites["w1"]["fn"].variance, 0.25 / 4 * np.ones((8, 1)), rtol=1e-6)
    np.testing.assert_allclose(sites["b1"]["fn"].variance, np.arange(1.0, 9.0) ** 2, rtol=1e-5)
    np.testing.assert_allclose(sites["w2"]["fn"].variance, np.ones((8, 1)))  # no rule: its own prior


@pytest.mark.parametrize("centered", [True, False])
def test_one_variance_a_function(centered):
    """Within a draw all weights of a layer share a variance; over draws it is inverse-gamma. With a fresh one
    for each weight the sizes of the weights of one draw would not be correlated."""
    lifted = lift_prior(
        network,
        {
            "w*": ScaleMixture(per="group", fan_in=4, shape=3.0, scale=2.0, centered=centered),
            "b1": Gaussian(),
        },
    )
    layout = lifted.layout(X)
    model = lifted.at(layout, layout.init())

    @jax.jit
    @jax.vmap
    def draw(key):
        sites = sites_of(model, X, key=key)
        return sites["w1_variance"]["value"], sites["w1"]["value"].ravel(), sites["w2"]["value"].ravel()

    variance, w1, w2 = draw(jax.random.split(jax.random.key(0), 4000))
    assert variance.shape == (4000,)
    z = np.concatenate([w1, w2], axis=1) / np.sqrt(variance / 4)[:, None]
    assert abs((z**2).mean() - 1.0) < 4.5 * np.sqrt(2.0 / z.size)
    precision = 1.0 / np.asarray(variance)  # Gamma(3, rate 2)
    assert abs(precision.mean() - 1.5) < 4.5 * np.sqrt(0.75 / 4000)
    together = np.corrcoef(np.log(w1**2).mean(1), np.log(w2**2).mean(1))[0, 1]
    assert together > 0.3
    assert abs(
        np.corrcoef(np.log(z[:, :8] ** 2).mean(1), np.log(z[:, 8:] ** 2).mean(1))[0, 1]
    ) < 4.5 / np.sqrt(4000)


@pytest.mark.slow
def test_a_mixtures_density_is_that_of_its_two_parts():
    lifted = lift_prior(network, {"w1": ScaleMixture(shape=3.0, scale=2.0, fan_in=4)})
    layout = lifted.layout(X)
    sites = sites_of(lifted.at(layout, layout.init()), X)
    values = {n: s["value"] for n, s in sites.items() if s["type"] == "sample"}
    by_site = log_density(lifted.at(layout, layout.init()), values, X).by_site
    v, w = values["w1_variance"], values["w1"]
    np.testing.assert_allclose(by_site["w1"], dist.Normal(0.0, jnp.sqrt(v / 4)).log_prob(w).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_site["w1_variance"], dist.InverseGamma(3.0, 2.0).log_prob(v), rtol=1e-5)


def random_maps(dim, num_flows=4, spread=1.5):
    rng = np.random.default_rng(0)
    return {
        "u": spread * rng.normal(size=(num_flows, dim)),
        "w": rng.normal(size=(num_flows, dim)),
        "b": rng.normal(size=num_flows),
    }


def test_a_flows_determinant_is_that_of_its_jacobian_and_positive():
    raw = jax.tree.map(jnp.asarray, random_maps(5))
    z = jax.random.normal(jax.random.key(0), (5,))
    sign, exact = jnp.linalg.slogdet(jax.jacobian(lambda z: planar(z, raw)[0])(z))
    assert sign == 1.0
    np.testing.assert_allclose(planar(z, raw)[1], exact, rtol=1e-4)
    identity, log_det = planar(z, raw | {"u": jnp.zeros((4, 5))})
    np.testing.assert_allclose(identity, z, atol=1e-6)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-6)


def test_a_flows_density_agrees_with_its_samples():
    """One weight: the density by change of variables, binned, against a histogram of 20000 draws of the
    model.
    """

    def one(x):
        return numpyro.sample("w", dist.Normal(0.0, 1.0)) * x

    lifted = lift_prior(one, {"w": Flow(num_flows=4, scale=0.5)})
    layout = lifted.layout(X)
    raw = layout.init()
    maps = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_maps(1))
    raw["w"]["w"] |= maps
    model = lifted.at(layout, raw)
    draws = np.asarray(
        jax.jit(jax.vmap(lambda k: sites_of(model, X, key=k)["w"]["value"]))(
            jax.random.split(jax.random.key(1), 20000)
        )
    )
    z = jnp.linspace(-6.0, 6.0, 4001)[:, None]
    at, log_det = jax.vmap(lambda z: planar(z, maps))(z)
    w, density = (
        0.5 * np.asarray(at)[:, 0],
        np.exp(-0.5 * np.asarray(z)[:, 0] ** 2 - np.asarray(log_det)) / np.sqrt(2 * np.pi) / 0.5,
    )
    edges = np.quantile(draws, np.linspace(0, 1, 11))[1:-1]
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(w))])
    assert (np.diff(w) > 0).all() and abs(cumulative[-1] - 1.0) < 1e-3
    exact = np.interp(edges, w, cumulative)
    assert (np.abs(exact - np.linspace(0.1, 0.9, 9)) < 4.5 * 0.5 / np.sqrt(20000) + 1e-3).all()


def test_a_flow_is_over_all_of_a_layer_and_its_program_has_the_bases_density():
    lifted = lift_prior(with_linen, {"net/Dense_1.*": Flow(num_flows=2)})
    layout = lifted.layout(jnp.ones((5, 3)))
    model = lifted.at(layout, layout.init())
    sites = sites_of(model, jnp.ones((5, 3)))
    assert sites["net/Dense_1_base"]["value"].shape == (24,)
    assert sites["net/Dense_1.kernel"]["type"] == sites["net/Dense_1.bias"]["type"] == "deterministic"
    assert sites["net/Dense_1.kernel"]["value"].shape == (3, 6)


def hierarchical(x):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    return numpyro.sample("w", dist.Normal(0.0, 1.0)) * x + numpyro.sample("v", dist.Normal(0.0, tau))


def discrete(x):
    return numpyro.sample("k", dist.Bernoulli(0.5)) * x * numpyro.sample("w", dist.Normal(0.0, 1.0))


def observed(x):
    numpyro.sample("y", dist.Normal(numpyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def scanned(x):
    def step(carry, _):
        z = numpyro.sample("z", dist.Normal(carry, 1.0))
        return z, z

    return scan(step, numpyro.sample("w", dist.Normal(0.0, 1.0)), None, 3)[1]


class Noisy(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(linen.Dense(2)(x))


def stateful(x):
    return random_flax_module("net", Noisy(), dist.Normal(), input_shape=(2, 3), mutable=["batch_stats"])(x)


@pytest.mark.parametrize(
    ("model", "pattern", "words"),
    [
        (network, "net/*", r"'net/\*' matches no site.*'w1', 'b1', 'w2'\."),
        (hierarchical, "*", "site 'tau'.*support"),
        (hierarchical, "v", "hierarchical already.*'tau'"),
        (discrete, "k", "site 'k', which is discrete"),
        (observed, "y", "site 'y', which is observed"),
        (scanned, "z", "site 'z', which lies inside scan"),
        (stateful, "net/*", "mutable state in 'net\\$state'"),
    ],
)
def test_sites_that_cannot_be_lifted_are_named(model, pattern, words):
    with pytest.raises(ModelError, match=words):
        lift_prior(model, {pattern: Gaussian()}).layout(jnp.ones((4, 3)) if model is stateful else X)


def test_other_sites_of_such_models_can_be():
    for model in (hierarchical, discrete, observed, scanned):
        assert lift_prior(model, {"w": Gaussian()}).layout(X).sites() == ["w"]


def test_mistakes_in_the_rules():
    with pytest.raises(ModelError, match="'w1' is matched by 'w\\*' and by '\\?1'"):
        lift_prior(network, {"w*": Gaussian(), "?1": Gaussian()}).layout(X)
    with pytest.raises(ArgumentError, match="empty"):
        lift_prior(network, {})
    with pytest.raises(ArgumentTypeError, match="rule for 'w1' must be a family"):
        lift_prior(network, {"w1": dist.Normal()})
    with pytest.raises(ArgumentTypeError, match="rules must be a dict"):
        lift_prior(network, [("w1", Gaussian())])
    with pytest.raises(ArgumentTypeError, match="model must be"):
        lift_prior(3, {"w1": Gaussian()})
    with pytest.raises(ArgumentError, match="lifted already"):
        lift_prior(lift_prior(network, {"w1": Gaussian()}), {"w2": Gaussian()})
    with pytest.raises(ProgramError, match="after site 'w2'"):
        lift_prior(network, {"w1": Gaussian()}).layout(jnp.ones((3, 2)))


def test_arguments_of_another_width_are_refused():
    def wide(x):
        return x @ numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))

    lifted = lift_prior(wide, {"w": Gaussian(per="element")})
    layout = lifted.layout(jnp.ones((4, 3)))
    with pytest.raises(ModelError, match=r"Site 'w' has shape \(2,\).*tuned for \(3,\)"):
        seed(lifted.at(layout, layout.init()), 0)(jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Gaussian(per="net"), "per must be one of 'layer'"),
        (lambda: Gaussian(fan_in="out"), "fan_in must be 'auto'"),
        (lambda: Gaussian(fan_in=0), "fan_in must be positive"),
        (lambda: Gaussian(scale=-1.0), "scale must be positive"),
        (lambda: ScaleMixture(per="element"), "per must be"),
        (lambda: ScaleMixture(shape=float("nan")), "shape"),
        (lambda: Flow(num_flows=0), "num_flows"),
        *((lambda seed=seed: Flow(seed=seed), "seed") for seed in (-1, 1.5, True)),
        (lambda: Gaussian(scale="1"), "scale must be a real number"),
        (lambda: Gaussian(learn_mean=1), "learn_mean"),
    ],
)
def test_bad_options_of_families_are_named(build, words):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
        build()
