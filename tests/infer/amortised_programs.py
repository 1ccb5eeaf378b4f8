"""Models, networks and trained guides for the tests of amortised inference."""

import functools

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext.infer import SetTransformer, amortise, fit
from ppl_ext.objectives import Sleep


class Says:
    """A network that says what it is told to, whatever it reads."""

    def __init__(self, numbers):
        self.numbers = jnp.asarray(numbers, float)

    def init(self, rng_key, size, rows, seen, rest):
        return {"numbers": self.numbers}

    def apply(self, params, rows, seen, rest):
        return params["numbers"]


class Linear:
    """A linear map of the numbers read, and constants."""

    def init(self, rng_key, size, rows, seen, rest):
        return jnp.zeros((rows.size + rest.size + 1, size))

    def apply(self, params, rows, seen, rest):
        return jnp.concatenate([jnp.ravel(rows), rest, jnp.ones(1)]) @ params


def of_mean(width, y):
    width = numpyro.sample("width", dist.Uniform(0.5, 2.0), obs=width)
    mu = numpyro.sample("mu", dist.Normal(0.0, width))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def of_some(num, x, y):
    """A line with as many points as there are."""
    num = numpyro.sample("num", dist.DiscreteUniform(1, 6), obs=num)
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.handlers.mask(mask=jnp.arange(6) < num), numpyro.plate("rows", 6):
        x = numpyro.sample("x", dist.Uniform(-1.0, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(slope * x, 0.1 + noise), obs=y)


MEAN = jnp.array(1.0), jnp.zeros(4)


SOME = jnp.array(6), jnp.zeros(6), jnp.zeros(6)


SMALL = SetTransformer(8, num_layers=1, num_heads=2)


@functools.cache
def trained():
    """Half-way only: what is tested holds of any network."""
    guide = amortise(of_some, SMALL, *SOME, rows=["x", "y"], count="num", num_components=2)
    settings = Sleep(16), optax.adam(0.01), 100, *SOME
    return guide, fit(jax.random.key(0), of_some, guide, *settings, progress_bar=False)


def params_of(guide, *args):
    """First params, as a guide draws them."""
    with numpyro.handlers.trace() as record, numpyro.handlers.seed(rng_seed=0):
        guide(*args)
    return {n: s["value"] for n, s in record.items() if s["type"] == "param"}


def of_unit(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@functools.cache
def linear():
    guide = amortise(of_unit, Linear(), jnp.zeros(4), rows=["y"])
    rate = optax.exponential_decay(0.05, 100, 0.7)
    settings = Sleep(64), optax.adam(rate), 1500, jnp.zeros(4)
    return guide, fit(jax.random.key(0), of_unit, guide, *settings, progress_bar=False)


NEW = jnp.array([0.5, 1.0, -0.3, 1.2])


X, Y = jnp.array([0.1, -0.5, 0.9]), jnp.array([0.0, -0.4, 0.8])


def told(laws):
    return [laws["slope"].log_prob(0.3), laws["noise"].log_prob(0.2)]
