"""What changes a term of the density and not the draw: scales, masks, factors."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import mask, scale

from tests.oracles import Oracle, bernoulli, categorical, finite, normal, product
from tests.problems.problem import Problem


def scaled():
    """Scales around single sites of guide and model: they weigh costs and leave the sampling law alone."""
    y = 0.9

    def model():
        with scale(scale=2.0):
            a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Bernoulli(logits=0.8 * a - 0.3))
        with scale(scale=1.5):
            numpyro.sample("y", dist.Normal(1.2 * b - a, 1.0), obs=y)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        with scale(scale=3.0):
            a = numpyro.sample("a", dist.Bernoulli(logits=phi[0]))
        numpyro.sample("b", dist.Bernoulli(logits=phi[1] + phi[2] * a))

    def log_q(params, z, batch, weight=3.0):
        phi = params["phi"]
        return weight * bernoulli(z["a"], phi[0]) + bernoulli(z["b"], phi[1] + phi[2] * z["a"])

    def log_pmf(params, z, batch):
        return log_q(params, z, batch, weight=1.0)

    def log_p(params, z, batch):
        prior = 2.0 * bernoulli(z["a"], np.log(0.4 / 0.6)) + bernoulli(z["b"], 0.8 * z["a"] - 0.3)
        return prior + 1.5 * normal(y, 1.2 * z["b"] - z["a"])

    params = {"phi": np.array([0.3, -0.2, 0.6])}
    oracle = Oracle(**product(a=finite(2), b=finite(2)), log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("scaled", model, guide, params, oracle, ("a", "b"))


def masked():
    """A masked coin costs nothing, yet is drawn, and an unmasked observation reads it."""
    y = np.array([0.2, 1.4, -0.5])
    keep = np.array([True, False, True])

    def model(y):
        g = numpyro.sample("g", dist.Bernoulli(0.4))
        with numpyro.plate("n", 3):
            with mask(mask=keep):
                z = numpyro.sample("z", dist.Bernoulli(logits=0.8 * g - 0.3))
            numpyro.sample("y", dist.Normal(1.2 * z + 0.5 * g, 1.0), obs=y)

    def guide(y):
        g = numpyro.sample("g", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        psi = numpyro.param("psi", jnp.zeros(3))
        with numpyro.plate("n", 3):
            numpyro.sample("z", dist.Bernoulli(logits=psi + 0.6 * g).mask(keep))

    def local_q(params, z):
        return bernoulli(z["z"], params["psi"] + 0.6 * z["g"])

    def log_pmf(params, z, batch):
        return bernoulli(z["g"], params["phi"]) + local_q(params, z).sum()

    def log_q(params, z, batch):
        return bernoulli(z["g"], params["phi"]) + (keep * local_q(params, z)).sum()

    def log_p(params, z, batch):
        local = keep * bernoulli(z["z"], 0.8 * z["g"] - 0.3) + normal(y, 1.2 * z["z"] + 0.5 * z["g"])
        return bernoulli(z["g"], np.log(0.4 / 0.6)) + local.sum()

    params = {"phi": 0.3, "psi": np.array([-0.2, 0.5, 0.1])}
    oracle = Oracle(**product(g=finite(2), z=finite(2, (3,))), log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("masked", model, guide, params, oracle, ("g", "z"), args=(y,))


def masked_data():
    """Masked observations: a ragged plate, as missing data usually come."""
    y = np.array([0.2, 1.4, -0.5])
    keep = np.array([True, False, True])

    def model(y):
        g = numpyro.sample("g", dist.Bernoulli(0.4))
        with numpyro.plate("n", 3), mask(mask=keep):
            z = numpyro.sample("z", dist.Bernoulli(logits=0.8 * g - 0.3))
            numpyro.sample("y", dist.Normal(1.2 * z + 0.5 * g, 1.0), obs=y)

    def guide(y):
        numpyro.sample("g", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        psi = numpyro.param("psi", jnp.zeros(3))
        with numpyro.plate("n", 3), mask(mask=keep):
            numpyro.sample("z", dist.Bernoulli(logits=psi))

    def log_pmf(params, z, batch):
        return bernoulli(z["g"], params["phi"]) + bernoulli(z["z"], params["psi"]).sum()

    def log_q(params, z, batch):
        return bernoulli(z["g"], params["phi"]) + (keep * bernoulli(z["z"], params["psi"])).sum()

    def log_p(params, z, batch):
        local = bernoulli(z["z"], 0.8 * z["g"] - 0.3) + normal(y, 1.2 * z["z"] + 0.5 * z["g"])
        return bernoulli(z["g"], np.log(0.4 / 0.6)) + (keep * local).sum()

    params = {"phi": 0.3, "psi": np.array([-0.2, 0.5, 0.1])}
    oracle = Oracle(**product(g=finite(2), z=finite(2, (3,))), log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("masked_data", model, guide, params, oracle, ("g", "z"), args=(y,))


def factors():
    """Arbitrary factors in the model and in the guide, where one counts as part of log q."""

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        c = numpyro.sample("c", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))
        numpyro.factor("pull", 0.9 * z * c - numpyro.param("theta", 0.0) * c**2)

    def guide():
        z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        c = numpyro.sample("c", dist.Categorical(logits=numpyro.param("psi", jnp.zeros(3)) * (1.0 + z)))
        numpyro.factor("push", -0.4 * z + 0.2 * c)

    def log_pmf(params, z, batch):
        return bernoulli(z["z"], params["phi"]) + categorical(z["c"], params["psi"] * (1.0 + z["z"]))

    def log_q(params, z, batch):
        return log_pmf(params, z, batch) - 0.4 * z["z"] + 0.2 * z["c"]

    def log_p(params, z, batch):
        prior = bernoulli(z["z"], np.log(0.3 / 0.7)) + categorical(z["c"], jnp.log(np.array([0.2, 0.3, 0.5])))
        return prior + 0.9 * z["z"] * z["c"] - params["theta"] * z["c"] ** 2

    params = {"phi": 0.4, "psi": np.array([0.3, -0.2, 0.1]), "theta": 0.2}
    oracle = Oracle(**product(z=finite(2), c=finite(3)), log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("factors", model, guide, params, oracle, ("z", "c"))
