"""A few sites, one after another: each kind of gradient up and down stream of the others."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from tests.oracles import Oracle, bernoulli, categorical, finite, gaussian, normal, product
from tests.problems.problem import Problem


def one_bernoulli():
    """The smallest: one coin, one observation, and a parameter in the model too."""
    y = 0.9

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(2.0 * z - numpyro.param("theta", 0.0), 1.0), obs=y)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))

    def log_q(params, z, batch):
        return bernoulli(z["z"], params["phi"])

    def log_p(params, z, batch):
        return bernoulli(z["z"], np.log(0.3 / 0.7)) + normal(y, 2.0 * z["z"] - params["theta"])

    oracle = Oracle(**product(z=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("one_bernoulli", model, guide, {"phi": 0.4, "theta": 0.3}, oracle, ("z",))


def chain():
    """Two dependent sites of different support: a coin, then a three-sided die it loads."""
    y = 0.4
    prior = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    effect = np.array([-1.0, 0.5, 2.0])

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        c = numpyro.sample("c", dist.Categorical(probs=jnp.asarray(prior)[a]))
        numpyro.sample("y", dist.Normal(jnp.asarray(effect)[c] + 0.5 * a, 1.0), obs=y)

    def guide():
        a = numpyro.sample("a", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        numpyro.sample("c", dist.Categorical(logits=numpyro.param("psi", jnp.zeros((2, 3)))[a]))

    def index(x):
        return x.astype(int)

    def log_q(params, z, batch):
        return bernoulli(z["a"], params["phi"]) + categorical(z["c"], params["psi"][index(z["a"])])

    def log_p(params, z, batch):
        site_a = bernoulli(z["a"], np.log(0.4 / 0.6))
        site_c = categorical(z["c"], jnp.log(prior)[index(z["a"])])
        return site_a + site_c + normal(y, jnp.asarray(effect)[index(z["c"])] + 0.5 * z["a"])

    params = {"phi": -0.3, "psi": np.array([[0.2, -0.1, 0.3], [-0.4, 0.5, 0.0]])}
    oracle = Oracle(**product(a=finite(2), c=finite(3)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("chain", model, guide, params, oracle, ("a", "c"))


def triple():
    """Three dependent coins, for every triple of strategies."""
    y = 0.8

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Bernoulli(logits=0.8 * a - 0.5))
        c = numpyro.sample("c", dist.Bernoulli(logits=0.3 - a + 0.7 * b))
        numpyro.sample("y", dist.Normal(a - 1.5 * b * c + 0.5 * c, 1.0), obs=y)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(4))
        a = numpyro.sample("a", dist.Bernoulli(logits=phi[0]))
        b = numpyro.sample("b", dist.Bernoulli(logits=phi[1] + phi[3] * a))
        numpyro.sample("c", dist.Bernoulli(logits=phi[2] * (a + b)))

    def log_q(params, z, batch):
        phi, a, b, c = params["phi"], z["a"], z["b"], z["c"]
        return bernoulli(a, phi[0]) + bernoulli(b, phi[1] + phi[3] * a) + bernoulli(c, phi[2] * (a + b))

    def log_p(params, z, batch):
        a, b, c = z["a"], z["b"], z["c"]
        prior = (
            bernoulli(a, np.log(0.4 / 0.6)) + bernoulli(b, 0.8 * a - 0.5) + bernoulli(c, 0.3 - a + 0.7 * b)
        )
        return prior + normal(y, a - 1.5 * b * c + 0.5 * c)

    params = {"phi": np.array([0.2, -0.3, 0.4, 0.6])}
    oracle = Oracle(**product(a=finite(2), b=finite(2), c=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("triple", model, guide, params, oracle, ("a", "b", "c"))


def normal_then_bernoulli():
    """A reparameterised site decides a coin: the pathwise term must flow through the coin's probability
    too.
    """
    y = 0.7

    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Bernoulli(logits=x))
        numpyro.sample("y", dist.Normal(x + 1.5 * z, 1.0), obs=y)

    def guide():
        x = numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), jnp.exp(numpyro.param("s", 0.0))))
        weights = numpyro.param("w", jnp.zeros(2))
        numpyro.sample("z", dist.Bernoulli(logits=weights[0] + weights[1] * x))

    def values(params, outcome, batch):
        return {"x": params["mu"] + jnp.exp(params["s"]) * outcome["x"], "z": outcome["z"]}

    def log_pmf(params, z, batch):
        return bernoulli(z["z"], params["w"][0] + params["w"][1] * z["x"])

    def log_q(params, z, batch):
        return normal(z["x"], params["mu"], jnp.exp(params["s"])) + log_pmf(params, z, batch)

    def log_p(params, z, batch):
        return normal(z["x"], 0.0) + bernoulli(z["z"], z["x"]) + normal(y, z["x"] + 1.5 * z["z"])

    params = {"mu": 0.2, "s": -0.4, "w": np.array([0.3, -0.6])}
    space = product(x=gaussian(), z=finite(2))
    oracle = Oracle(**space, values=values, log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("normal_then_bernoulli", model, guide, params, oracle, ("z",), ("x",))


def bernoulli_then_normal():
    """A coin decides where a reparameterised site lies."""
    y = -0.3

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        x = numpyro.sample("x", dist.Normal(1.0 * z, 1.0))
        numpyro.sample("y", dist.Normal(x - 0.8 * z, 0.7), obs=y)

    def guide():
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        mean = numpyro.param("m", jnp.zeros(2))
        numpyro.sample("x", dist.Normal(mean[0] + mean[1] * z, jnp.exp(numpyro.param("s", 0.0))))

    def values(params, outcome, batch):
        z, mean = outcome["z"], params["m"]
        return {"z": z, "x": mean[0] + mean[1] * z + jnp.exp(params["s"]) * outcome["x"]}

    def log_pmf(params, z, batch):
        return bernoulli(z["z"], params["phi"])

    def log_q(params, z, batch):
        site_x = normal(z["x"], params["m"][0] + params["m"][1] * z["z"], jnp.exp(params["s"]))
        return log_pmf(params, z, batch) + site_x

    def log_p(params, z, batch):
        prior = bernoulli(z["z"], np.log(0.4 / 0.6)) + normal(z["x"], z["z"])
        return prior + normal(y, z["x"] - 0.8 * z["z"], 0.7)

    params = {"phi": 0.2, "m": np.array([0.1, 0.5]), "s": -0.5}
    space = product(z=finite(2), x=gaussian())
    oracle = Oracle(**space, values=values, log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("bernoulli_then_normal", model, guide, params, oracle, ("z",), ("x",))


def coin_normal_coin():
    """A reparameterised site between two coins: each kind of term has the other kind up and down stream."""
    y = 0.5

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        x = numpyro.sample("x", dist.Normal(1.0 * a, 1.0))
        b = numpyro.sample("b", dist.Bernoulli(logits=x - 0.5 * a))
        numpyro.sample("y", dist.Normal(x + b - a * b, 1.0), obs=y)

    def guide():
        w = numpyro.param("w", jnp.zeros(5))
        a = numpyro.sample("a", dist.Bernoulli(logits=w[0]))
        x = numpyro.sample("x", dist.Normal(w[1] + w[2] * a, 0.8))
        numpyro.sample("b", dist.Bernoulli(logits=w[3] + w[4] * x * a))

    def values(params, outcome, batch):
        w = params["w"]
        return {**outcome, "x": w[1] + w[2] * outcome["a"] + 0.8 * outcome["x"]}

    def log_pmf(params, z, batch):
        w = params["w"]
        return bernoulli(z["a"], w[0]) + bernoulli(z["b"], w[3] + w[4] * z["x"] * z["a"])

    def log_q(params, z, batch):
        w = params["w"]
        return log_pmf(params, z, batch) + normal(z["x"], w[1] + w[2] * z["a"], 0.8)

    def log_p(params, z, batch):
        a, x, b = z["a"], z["x"], z["b"]
        prior = bernoulli(a, np.log(0.4 / 0.6)) + normal(x, a) + bernoulli(b, x - 0.5 * a)
        return prior + normal(y, x + b - a * b)

    params = {"w": np.array([0.2, -0.1, 0.6, 0.3, 0.7])}
    space = product(a=finite(2), x=gaussian(16), b=finite(2))
    oracle = Oracle(**space, values=values, log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("coin_normal_coin", model, guide, params, oracle, ("a", "b"), ("x",))


def score_normal():
    """A Gaussian site that is scored by annotation, although it could be reparameterised."""
    y = 0.6

    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.sin(x) + 0.3 * x**2, 1.0), obs=y)

    def guide():
        loc, spread = numpyro.param("mu", 0.0), jnp.exp(numpyro.param("s", 0.0))
        numpyro.sample("x", dist.Normal(loc, spread), infer={"gradient": "score"})

    def values(params, outcome, batch):
        return {"x": params["mu"] + jnp.exp(params["s"]) * outcome["x"]}

    def log_pmf(params, z, batch):
        return 0.0

    def log_q(params, z, batch):
        return normal(z["x"], params["mu"], jnp.exp(params["s"]))

    def log_p(params, z, batch):
        return normal(z["x"], 0.0) + normal(y, jnp.sin(z["x"]) + 0.3 * z["x"] ** 2)

    oracle = Oracle(**product(x=gaussian(48)), values=values, log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("score_normal", model, guide, {"mu": 0.3, "s": -0.3}, oracle, (), ("x",))


def reparam_normal():
    """The same program left to its default: what NumPyro gets right too, so that it can check these
    oracles.
    """
    scored = score_normal()

    def guide():
        numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), jnp.exp(numpyro.param("s", 0.0))))

    return Problem("reparam_normal", scored.model, guide, scored.params, scored.oracle, (), ("x",))
