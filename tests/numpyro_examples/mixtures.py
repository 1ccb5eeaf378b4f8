"""Mixtures, shells and other laws of one's own."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import L1BallTransform
from numpyro.handlers import reparam
from numpyro.infer.reparam import CircularReparam
from numpyro.ops.indexing import Vindex

from tests.numpyro_examples.example import Example

rng = np.random.default_rng(3)
ANGLES = rng.uniform(-3.0, 3.0, (5, 2)).astype(np.float32)
POINTS = np.float32([[-1.0, 0.2], [1.3, 0.9], [0.8, 1.1], [-0.7, -0.4]])


class Shell(dist.Distribution):
    support = constraints.real_vector

    def __init__(self, loc, radius, width):
        self.loc, self.radius, self.width = loc, radius, width
        super().__init__(batch_shape=loc.shape[:-1], event_shape=loc.shape[-1:])

    def sample(self, key, sample_shape=()):
        return jnp.zeros(sample_shape + self.shape())

    def log_prob(self, value):
        distance = (jnp.linalg.norm(value - self.loc, axis=-1) - self.radius) / self.width
        return -0.5 * jnp.log(2.0 * jnp.pi) - jnp.log(self.width) - 0.5 * distance**2


def shells(first, second, radius, width):
    z = numpyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    x = numpyro.sample("x", dist.Uniform(-6.0, 6.0).expand([2]).to_event(1))
    numpyro.sample("shell", Shell(jnp.stack([first, second])[z], radius, width), obs=x)


class TwoMoons(dist.Distribution):
    support = constraints.real_vector

    def __init__(self):
        super().__init__(event_shape=(2,))

    def sample(self, key, sample_shape=()):
        return jnp.zeros(sample_shape + self.event_shape)

    def log_prob(self, x):
        ring = 0.5 * ((jnp.linalg.norm(x, axis=-1) - 2) / 0.4) ** 2
        sides = -0.5 * ((x[..., :1] + jnp.array([-2.0, 2.0])) / 0.6) ** 2
        return jnp.logaddexp(sides[..., 0], sides[..., 1]) - ring


def two_moons():
    numpyro.sample("x", TwoMoons())


@reparam(config={"phi_loc": CircularReparam(), "psi_loc": CircularReparam()})
def skewed_angles(angles, components=2):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(components)))
    mean, strength = (
        numpyro.sample("mean", dist.Uniform(0.0, 1.0)),
        numpyro.sample("strength", dist.Gamma(1.0, 1.0 / components)),
    )
    with numpyro.plate("components", components):
        phi = numpyro.sample("phi_loc", dist.VonMises(jnp.pi, 2.0))
        psi = numpyro.sample("psi_loc", dist.VonMises(0.0, 0.1))
        phi_conc = numpyro.sample("phi_conc", dist.Beta(1.0 + mean * strength, 1.0 + strength * (1.0 - mean)))
        psi_conc = numpyro.sample("psi_conc", dist.Beta(2.0, 3.0))
        corr = numpyro.sample("corr", dist.Beta(2.0, 10.0))
        skew = L1BallTransform()(numpyro.sample("skew", dist.Normal(0, 0.5).expand((2,)).to_event(1)))
    with numpyro.plate("rows", len(angles), dim=-1):
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        sine = dist.SineBivariateVonMises(
            phi_loc=phi[z],
            psi_loc=psi[z],
            phi_concentration=5 * phi_conc[z],
            psi_concentration=5 * psi_conc[z],
            weighted_correlation=corr[z],
        )
        return numpyro.sample("angles", dist.SineSkewed(sine, skew[z]), obs=angles)


def chain_of_coins(seen):
    first = numpyro.sample("first", dist.Beta(1, 1))
    second, third = (
        numpyro.sample(name, dist.Beta(jnp.ones(2), jnp.ones(2)).to_event(1)) for name in ("second", "third")
    )
    with numpyro.plate("rows", len(seen["a"])):
        a = numpyro.sample("a", dist.Bernoulli(first), obs=seen["a"])
        b = numpyro.sample("b", dist.Bernoulli(Vindex(second)[a]), infer={"enumerate": "parallel"})
        numpyro.sample("c", dist.Bernoulli(Vindex(third)[b]), obs=seen["c"])


def coins_guide(model, example):
    def guide(seen):
        for name, shape in {"first": (), "second": (2,), "third": (2,)}.items():
            a, b = (
                numpyro.param(f"{name}_{side}", jnp.full(shape, 2.0), constraint=constraints.positive)
                for side in "ab"
            )
            numpyro.sample(name, dist.Beta(a, b).to_event(len(shape)))

    return guide


def gaussian_mixture(points, components=2):
    weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(components)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", components):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(points)):
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(locs[z], scale), obs=points)


def mixture_of_vectors(points, components=2):
    width = points.shape[1]
    scales = numpyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([width]).to_event(1))
    factor = scales[..., None] * numpyro.sample("correlation", dist.LKJCholesky(width, 1.0))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(components)))
    with numpyro.plate("components", components):
        locs = numpyro.sample("locs", dist.Normal(0.0, 2.0).expand([width]).to_event(1))
    parts = dist.MultivariateNormal(locs, scale_tril=factor)
    with numpyro.plate("data", len(points)):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=points)


CENTRES = np.float32([-3.0, 0.0]), np.float32([3.0, 0.0])
COINS = {"a": np.array([0, 1, 1, 0]), "c": np.array([1, 1, 0, 0])}
TURNED = {f"{name}_loc_unwrapped": jnp.array([0.5, -1.0]) for name in ("phi", "psi")}
NOTHING = "no log_likelihood"

EXAMPLES = [
    Example("Gaussian shells", shells, CENTRES, {"radius": 2.0, "width": 0.5}, summed=("z",)),
    Example("two moons", two_moons, no_loo=NOTHING),
    Example("skewed angles", skewed_angles, (ANGLES,), summed=("z",), given=TURNED),
    Example("chain of coins", chain_of_coins, (COINS,), guide=coins_guide, summed=("b",), no_loo="var_name"),
    Example("Gaussian mixture", gaussian_mixture, (POINTS[:, 0],), summed=("z",)),
    Example("mixture of vectors", mixture_of_vectors, (POINTS,)),
]
