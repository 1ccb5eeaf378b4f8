"""Models, one for each thing a NumPyro model may hold, for the tests of ``simulate`` and ``log_density``."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import mask, scale
from scipy.stats import norm

from ppl_ext import simulate
from tests.oracles import quick_jit

Y3 = np.array([0.3, -1.2, 0.8], np.float32)
Y23 = np.array([[0.3, -1.2, 0.8], [1.1, 0.2, -0.4]], np.float32)


def close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=2e-5, atol=2e-5)


def drawn(program, *args, **kwargs):
    """A compiled ``simulate``, from one key."""
    return quick_jit(lambda key: simulate(program, *args, rng_key=key, **kwargs))(jax.random.key(0))


def flat():
    z = numpyro.sample("z", dist.Normal(0.3, 1.5))
    numpyro.sample("y", dist.Normal(z, 0.5), obs=0.7)
    numpyro.deterministic("twice", 2 * z)
    return 2 * z


def plated():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=Y3)


def nested():
    with numpyro.plate("outer", 2, dim=-2):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("inner", 3, dim=-1):
            b = numpyro.sample("b", dist.Gamma(2.0, jnp.exp(a)))
            numpyro.sample("y", dist.Normal(b, 0.5), obs=Y23)


def events():
    with numpyro.plate("n", 3):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
        v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("k", dist.Categorical(probs=p), obs=jnp.array([0, 3, 1]))
    return v


def masked():
    keep = np.array([True, False, True])
    with numpyro.plate("n", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with mask(mask=keep):
            numpyro.sample("y", dist.Normal(z, 0.5), obs=Y3)
        numpyro.sample("w", dist.Normal(z, 2.0).mask(~keep))


def scaled():
    with scale(scale=3.0):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with scale(scale=0.5):
            numpyro.sample("y", dist.Normal(z, 0.5), obs=0.2)


def factored():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3):
        numpyro.factor("pull", -jnp.abs(z) * jnp.arange(3.0))
    with scale(scale=2.0):
        numpyro.factor("push", z)


def parametrised():
    s = numpyro.param("s", 1.7, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(0.0, s))


def discrete():
    k = numpyro.sample("k", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
    n = numpyro.sample("n", dist.Poisson(2.0 + k))
    numpyro.sample("y", dist.Normal(n - k, 1.0), obs=0.4)


def scanned():
    def step(carry, y):
        x = numpyro.sample("x", dist.Normal(0.9 * carry["x"], 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return {"x": x, "t": carry["t"] + 1}, x

    last, xs = scan(step, {"x": numpyro.sample("x0", dist.Normal(0.0, 1.0)), "t": 0}, Y3)
    return last["t"]


def scanned_with_plates():
    def step(x, y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, x

    scan(step, jnp.zeros(2), Y23.T)


def scanned_scaled():
    with scale(scale=2.5):
        scanned()


def branching():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = cond(
        a > 0,
        lambda _: numpyro.sample("b", dist.Normal(2.0, 0.5)),
        lambda _: numpyro.sample("b", dist.Normal(-2.0, 1.5)),
        None,
    )
    numpyro.sample("y", dist.Normal(b, 1.0), obs=0.1)


def transformed():
    flow = dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1), dist.transforms.AffineTransform(1.0, 2.0)
    )
    z = numpyro.sample("z", flow)
    numpyro.sample("s", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=0.4)


MODELS = {
    m.__name__: m
    for m in (
        flat,
        plated,
        nested,
        events,
        masked,
        scaled,
        factored,
        parametrised,
        discrete,
        scanned,
        scanned_with_plates,
        scanned_scaled,
        branching,
        transformed,
    )
}
DATA = np.array([0.2, 1.4, -0.5, 0.8], np.float32)


def minibatch():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 4, subsample_size=2) as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.asarray(DATA)[index])


XS = np.array([0.5, -0.2, 0.9], np.float32)


def random_walk(obs=None, reverse=False):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    if obs is None:
        scan(step, 0.0, None, length=3, reverse=reverse)
    else:
        scan(step, 0.0, obs, reverse=reverse)


def walk_density(x, y, reverse=False):
    before = np.append(x[1:], 0.0) if reverse else np.insert(x[:-1], 0, 0.0)
    return norm.logpdf(x, 0.9 * before, 0.3).sum() + norm.logpdf(y, x, 0.5).sum()
