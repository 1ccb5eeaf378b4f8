"""NumPyro's ``scan`` and ``cond``."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import cond, scan

from tests.oracles import Oracle, bernoulli, finite, normal, product
from tests.problems.problem import Problem


def observed_coin(x, y_t):
    """A step of a chain of coins, whose odds depend on the coin before, with an observation."""
    x = numpyro.sample("x", dist.Bernoulli(logits=1.1 * x - 0.4))
    numpyro.sample("y", dist.Normal(1.3 * x, 1.0), obs=y_t)
    return x, None


def scanned():
    """A chain of coins in ``scan``, whose odds depend on the carry, with an observation at every step."""
    y = np.array([0.9, -0.4, 1.2])

    def model(y):
        scan(observed_coin, numpyro.sample("x0", dist.Bernoulli(0.4)), y)

    def guide(y):
        phi, psi, w = numpyro.param("phi", 0.0), numpyro.param("psi", jnp.zeros(3)), numpyro.param("w", 0.0)

        def step(x, psi_t):
            return numpyro.sample("x", dist.Bernoulli(logits=psi_t + w * x)), None

        scan(step, numpyro.sample("x0", dist.Bernoulli(logits=phi)), psi)

    def before(z):
        return jnp.concatenate([z["x0"][None], z["x"][:-1]])

    def log_q(params, z, batch):
        steps = bernoulli(z["x"], params["psi"] + params["w"] * before(z))
        return bernoulli(z["x0"], params["phi"]) + steps.sum()

    def log_p(params, z, batch):
        steps = bernoulli(z["x"], 1.1 * before(z) - 0.4) + normal(y, 1.3 * z["x"])
        return bernoulli(z["x0"], np.log(0.4 / 0.6)) + steps.sum()

    params = {"phi": 0.3, "psi": np.array([0.2, -0.3, 0.4]), "w": 0.7}
    oracle = Oracle(**product(x0=finite(2), x=finite(2, (3,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("scanned", model, guide, params, oracle, ("x0", "x"), args=(y,))


def scanned_backwards():
    """The guide runs forwards in time and the model backwards: a step's costs to come are not those of later
    steps.
    """
    y = np.array([0.9, -0.4, 1.2])

    def model(y):
        scan(observed_coin, jnp.asarray(0), y, reverse=True)

    def guide(y):
        psi, w = numpyro.param("psi", jnp.zeros(3)), numpyro.param("w", 0.0)

        def step(x, psi_t):
            return numpyro.sample("x", dist.Bernoulli(logits=psi_t + w * x)), None

        scan(step, jnp.asarray(0), psi)

    def log_q(params, z, batch):
        before = jnp.concatenate([jnp.zeros(1), z["x"][:-1]])
        return bernoulli(z["x"], params["psi"] + params["w"] * before).sum()

    def log_p(params, z, batch):
        after = jnp.concatenate([z["x"][1:], jnp.zeros(1)])
        return (bernoulli(z["x"], 1.1 * after - 0.4) + normal(y, 1.3 * z["x"])).sum()

    params = {"psi": np.array([0.2, -0.3, 0.4]), "w": 0.7}
    oracle = Oracle(**product(x=finite(2, (3,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("scanned_backwards", model, guide, params, oracle, ("x",), args=(y,))


def scan_output():
    """Steps reach an observation outside the ``scan`` through its last carry and its outputs, and a coin
    after it.
    """
    y = 1.4

    def model():
        def step(x, t):
            x = numpyro.sample("x", dist.Bernoulli(logits=0.8 * x - 0.1 * t))
            return x, x * t

        last, outputs = scan(step, jnp.asarray(1), jnp.arange(1.0, 3.0))
        after = numpyro.sample("after", dist.Bernoulli(logits=0.6 * last - 0.5))
        numpyro.sample("y", dist.Normal(outputs.sum() - after * last, 1.0), obs=y)

    def guide():
        psi = numpyro.param("psi", jnp.zeros(3))

        def step(total, psi_t):
            x = numpyro.sample("x", dist.Bernoulli(logits=psi_t - 0.5 * total))
            return total + x, x

        total, outputs = scan(step, jnp.asarray(0), psi[:2])
        numpyro.sample("after", dist.Bernoulli(logits=psi[2] * total + outputs[0]))

    def log_q(params, z, batch):
        psi, x = params["psi"], z["x"]
        steps = bernoulli(x[0], psi[0]) + bernoulli(x[1], psi[1] - 0.5 * x[0])
        return steps + bernoulli(z["after"], psi[2] * x.sum() + x[0])

    def log_p(params, z, batch):
        x, after = z["x"], z["after"]
        prior = (
            bernoulli(x[0], 0.8 - 0.1)
            + bernoulli(x[1], 0.8 * x[0] - 0.2)
            + bernoulli(after, 0.6 * x[1] - 0.5)
        )
        return prior + normal(y, x[0] + 2.0 * x[1] - after * x[1])

    params = {"psi": np.array([0.2, -0.3, 0.6])}
    oracle = Oracle(**product(x=finite(2, (2,)), after=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("scan_output", model, guide, params, oracle, ("x", "after"))


def scanned_plate():
    """A plate inside a ``scan``: two chains side by side, which meet in the guide's odds."""
    y = np.array([[0.9, -0.4], [0.3, 1.2]])

    def model(y):
        def step(x, y_t):
            with numpyro.plate("chains", 2):
                x = numpyro.sample("x", dist.Bernoulli(logits=1.1 * x - 0.4))
                numpyro.sample("y", dist.Normal(1.3 * x, 1.0), obs=y_t)
            return x, None

        scan(step, jnp.zeros(2, int), y)

    def guide(y):
        psi, w = numpyro.param("psi", jnp.zeros((2, 2))), numpyro.param("w", 0.0)

        def step(x, psi_t):
            with numpyro.plate("chains", 2):
                return numpyro.sample("x", dist.Bernoulli(logits=psi_t + w * x.sum())), None

        scan(step, jnp.zeros(2, int), psi)

    def log_q(params, z, batch):
        psi, x = params["psi"], z["x"]
        return (bernoulli(x[0], psi[0]) + bernoulli(x[1], psi[1] + params["w"] * x[0].sum())).sum()

    def log_p(params, z, batch):
        before = jnp.stack([jnp.zeros(2), z["x"][0]])
        return (bernoulli(z["x"], 1.1 * before - 0.4) + normal(y, 1.3 * z["x"])).sum()

    params = {"psi": np.array([[0.2, -0.3], [0.4, -0.1]]), "w": 0.7}
    oracle = Oracle(**product(x=finite(2, (2, 2))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("scanned_plate", model, guide, params, oracle, ("x",), args=(y,))


def conditional_site():
    """A site in the branches of NumPyro's ``cond``, read by a nonlinear continuation."""
    y = 0.8

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(jnp.exp(0.5 * b) - a * b, 1.0), obs=y)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        a = numpyro.sample("a", dist.Bernoulli(logits=phi[0]))

        def draw(logits):
            numpyro.sample("b", dist.Bernoulli(logits=logits))

        cond(a > 0, lambda phi: draw(phi[1]), lambda phi: draw(phi[2] + 0.2), phi)

    def log_q(params, z, batch):
        phi, a, b = params["phi"], z["a"], z["b"]
        return bernoulli(a, phi[0]) + bernoulli(b, jnp.where(a > 0, phi[1], phi[2] + 0.2))

    def log_p(params, z, batch):
        a, b = z["a"], z["b"]
        prior = bernoulli(a, np.log(0.4 / 0.6)) + bernoulli(b, np.log(0.3 / 0.7))
        return prior + normal(y, jnp.exp(0.5 * b) - a * b)

    params = {"phi": np.array([0.3, -0.2, 0.6])}
    oracle = Oracle(**product(a=finite(2), b=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("conditional_site", model, guide, params, oracle, ("a", "b"))
