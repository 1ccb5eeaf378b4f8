"""Plates: nested, crossed, subsampled, and with elements that are not independent after all."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from tests.oracles import Oracle, bernoulli, finite, minibatches, normal, product
from tests.problems.problem import Problem


def plated():
    """Local coins in a plate under a global one, each with its observation."""
    y = np.array([0.2, 1.4, -0.5])

    def model(y):
        g = numpyro.sample("g", dist.Bernoulli(0.4))
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(logits=0.8 * g - 0.3))
            numpyro.sample("y", dist.Normal(1.2 * z + 0.5 * g, 1.0), obs=y)

    def guide(y):
        g = numpyro.sample("g", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        psi, w = numpyro.param("psi", jnp.zeros(3)), numpyro.param("w", 0.0)
        with numpyro.plate("n", 3):
            numpyro.sample("z", dist.Bernoulli(logits=psi + w * g))

    def log_q(params, z, batch):
        return (
            bernoulli(z["g"], params["phi"]) + bernoulli(z["z"], params["psi"] + params["w"] * z["g"]).sum()
        )

    def log_p(params, z, batch):
        local = bernoulli(z["z"], 0.8 * z["g"] - 0.3) + normal(y, 1.2 * z["z"] + 0.5 * z["g"])
        return bernoulli(z["g"], np.log(0.4 / 0.6)) + local.sum()

    params = {"phi": 0.3, "psi": np.array([-0.2, 0.5, 0.1]), "w": 0.6}
    oracle = Oracle(**product(g=finite(2), z=finite(2, (3,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("plated", model, guide, params, oracle, ("g", "z"), args=(y,))


def read_through(name, through):
    """Coins in a plate, whose observations read them through a function of all three."""
    y = np.array([0.2, 1.4, -0.5])

    def model(y):
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Normal(through(z), 1.0), obs=y)

    def guide(y):
        psi = numpyro.param("psi", jnp.zeros(3))
        with numpyro.plate("n", 3):
            numpyro.sample("z", dist.Bernoulli(logits=psi))

    def log_pmf(params, z, batch):
        return log_q(params, z, batch).sum()

    def log_q(params, z, batch):
        return bernoulli(z["z"], params["psi"])

    def log_p(params, z, batch):
        return bernoulli(z["z"], np.log(0.4 / 0.6)) + normal(y, through(z["z"]))

    params = {"psi": np.array([-0.2, 0.5, 0.1])}
    oracle = Oracle(**product(z=finite(2, (3,))), log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem(name, model, guide, params, oracle, ("z",), args=(y,))


def plated_local():
    """Everything inside one plate, so that a multi-particle bound is a sum of bounds, one for each
    element.
    """
    return read_through("plated_local", lambda z: 1.2 * z)


def nested_plates():
    """Coins in an outer plate, each over a row of coins in an inner one."""
    y = np.array([[0.3, 1.1], [-0.4, 0.9]])

    def model(y):
        numpyro.factor("pull", 0.2)
        with numpyro.plate("outer", 2, dim=-2):
            a = numpyro.sample("a", dist.Bernoulli(0.4))
            with numpyro.plate("inner", 2, dim=-1):
                b = numpyro.sample("b", dist.Bernoulli(logits=0.9 * a - 0.2))
                numpyro.sample("y", dist.Normal(b - 0.7 * a, 1.0), obs=y)

    def guide(y):
        phi, psi = numpyro.param("phi", jnp.zeros((2, 1))), numpyro.param("psi", jnp.zeros((2, 2)))
        with numpyro.plate("outer", 2, dim=-2):
            a = numpyro.sample("a", dist.Bernoulli(logits=phi))
            with numpyro.plate("inner", 2, dim=-1):
                numpyro.sample("b", dist.Bernoulli(logits=psi * (0.5 + a)))

    def log_q(params, z, batch):
        return (
            bernoulli(z["a"], params["phi"]).sum() + bernoulli(z["b"], params["psi"] * (0.5 + z["a"])).sum()
        )

    def log_p(params, z, batch):
        inner = bernoulli(z["b"], 0.9 * z["a"] - 0.2) + normal(y, z["b"] - 0.7 * z["a"])
        return 0.2 + bernoulli(z["a"], np.log(0.4 / 0.6)).sum() + inner.sum()

    params = {"phi": np.array([[0.3], [-0.2]]), "psi": np.array([[0.4, -0.3], [0.1, 0.6]])}
    space = product(a=finite(2, (2, 1)), b=finite(2, (2, 2)))
    oracle = Oracle(**space, log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("nested_plates", model, guide, params, oracle, ("a", "b"), args=(y,))


def subsampled():
    """A minibatch of local coins under a global one: costs are scaled by N / B, probabilities never."""
    y = np.array([0.2, 1.4, -0.5, 0.8])

    def model(y):
        g = numpyro.sample("g", dist.Bernoulli(0.4))
        with numpyro.plate("n", 4, subsample_size=2) as index:
            z = numpyro.sample("z", dist.Bernoulli(logits=0.8 * g - 0.3))
            numpyro.sample("y", dist.Normal(1.2 * z + 0.5 * g, 1.0), obs=jnp.asarray(y)[index])

    def guide(y):
        g = numpyro.sample("g", dist.Bernoulli(logits=numpyro.param("phi", 0.0)))
        psi, w = numpyro.param("psi", jnp.zeros(4)), numpyro.param("w", 0.0)
        with numpyro.plate("n", 4, subsample_size=2) as index:
            numpyro.sample("z", dist.Bernoulli(logits=psi[index] + w * g))

    def local_q(params, z, batch):
        return bernoulli(z["z"], params["psi"][batch] + params["w"] * z["g"]).sum()

    def log_pmf(params, z, batch):
        return bernoulli(z["g"], params["phi"]) + local_q(params, z, batch)

    def log_q(params, z, batch):
        return bernoulli(z["g"], params["phi"]) + 2.0 * local_q(params, z, batch)

    def log_p(params, z, batch):
        local = bernoulli(z["z"], 0.8 * z["g"] - 0.3) + normal(y[batch], 1.2 * z["z"] + 0.5 * z["g"])
        return bernoulli(z["g"], np.log(0.4 / 0.6)) + 2.0 * local.sum()

    params = {"phi": 0.3, "psi": np.array([-0.2, 0.5, 0.1, 0.3]), "w": 0.6}
    space = product(g=finite(2), z=finite(2, (2,)))
    oracle = Oracle(**space, log_pmf=log_pmf, log_p=log_p, log_q=log_q, batches=minibatches(4, 2))
    return Problem("subsampled", model, guide, params, oracle, ("g", "z"), args=(y,))


def subsampled_local():
    """The whole program in a subsampled plate: N / B multiplies the sum of the elements' bounds."""
    y = np.array([0.2, 1.4, -0.5, 0.8])

    def model(y):
        with numpyro.plate("n", 4, subsample_size=2) as index:
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Normal(1.2 * z, 1.0), obs=jnp.asarray(y)[index])

    def guide(y):
        psi = numpyro.param("psi", jnp.zeros(4))
        with numpyro.plate("n", 4, subsample_size=2) as index:
            numpyro.sample("z", dist.Bernoulli(logits=psi[index]))

    def log_pmf(params, z, batch):
        return log_q(params, z, batch).sum()

    def log_q(params, z, batch):
        return bernoulli(z["z"], params["psi"][batch])

    def log_p(params, z, batch):
        return bernoulli(z["z"], np.log(0.4 / 0.6)) + normal(y[batch], 1.2 * z["z"])

    params = {"psi": np.array([-0.2, 0.5, 0.1, 0.3])}
    oracle = Oracle(
        **product(z=finite(2, (2,))),
        log_pmf=log_pmf,
        log_p=log_p,
        log_q=log_q,
        batches=minibatches(4, 2),
        plate_scale=2.0,
    )
    return Problem("subsampled_local", model, guide, params, oracle, ("z",), args=(y,))


def coupled_plate():
    """Elements of a plate meet in a sum that feeds the same plate: an element's credit reaches its
    neighbours.
    """
    y = np.array([1.9, -0.6])

    def model(y):
        numpyro.factor("pull", 0.2)
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            w = numpyro.sample("w", dist.Bernoulli(logits=0.7 * z - 0.2))
            numpyro.sample("y", dist.Normal(1.2 * z.sum() - w, 1.0), obs=y)

    def guide(y):
        phi, psi = numpyro.param("phi", jnp.zeros(2)), numpyro.param("psi", jnp.zeros(2))
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(logits=phi))
            numpyro.sample("w", dist.Bernoulli(logits=psi * z.sum() - 0.3))

    def log_q(params, z, batch):
        site_w = bernoulli(z["w"], params["psi"] * z["z"].sum() - 0.3)
        return (bernoulli(z["z"], params["phi"]) + site_w).sum()

    def log_p(params, z, batch):
        prior = bernoulli(z["z"], np.log(0.4 / 0.6)) + bernoulli(z["w"], 0.7 * z["z"] - 0.2)
        return 0.2 + (prior + normal(y, 1.2 * z["z"].sum() - z["w"])).sum()

    params = {"phi": np.array([0.3, -0.2]), "psi": np.array([0.6, -0.4])}
    oracle = Oracle(**product(z=finite(2, (2,)), w=finite(2, (2,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("coupled_plate", model, guide, params, oracle, ("z", "w"), args=(y,))


def relayed():
    """Elements hand their values to a neighbour, in the guide and again in the model: credit goes round the
    plate.
    """
    y = np.array([0.2, 1.4, -0.5])

    def model(y):
        numpyro.factor("pull", 0.2)
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            w = numpyro.sample("w", dist.Bernoulli(logits=0.7 * z - 0.2))
            numpyro.sample("y", dist.Normal(1.2 * jnp.roll(w, 1), 1.0), obs=y)

    def guide(y):
        phi, psi = numpyro.param("phi", jnp.zeros(3)), numpyro.param("psi", jnp.zeros(3))
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(logits=phi))
            numpyro.sample("w", dist.Bernoulli(logits=psi * jnp.roll(z, 1) - 0.3))

    def log_q(params, z, batch):
        site_w = bernoulli(z["w"], params["psi"] * jnp.roll(z["z"], 1) - 0.3)
        return (bernoulli(z["z"], params["phi"]) + site_w).sum()

    def log_p(params, z, batch):
        prior = bernoulli(z["z"], np.log(0.4 / 0.6)) + bernoulli(z["w"], 0.7 * z["z"] - 0.2)
        return 0.2 + (prior + normal(y, 1.2 * jnp.roll(z["w"], 1))).sum()

    params = {"phi": np.array([0.3, -0.2, 0.1]), "psi": np.array([1.6, -1.4, 0.9])}
    oracle = Oracle(**product(z=finite(2, (3,)), w=finite(2, (3,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("relayed", model, guide, params, oracle, ("z", "w"), args=(y,))


def crossed_plates():
    """Rows and columns of a table, each with its coins: a cell's cost belongs to one of each."""
    y = np.array([[0.3, 1.1, -0.2], [-0.4, 0.9, 1.6]])

    def model(y):
        rows, columns = numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1)
        with rows:
            a = numpyro.sample("a", dist.Bernoulli(0.4))
        with columns:
            b = numpyro.sample("b", dist.Bernoulli(0.6))
        with rows, columns:
            numpyro.sample("y", dist.Normal(a + b - 1.5 * a * b, 1.0), obs=y)

    def guide(y):
        phi, psi = numpyro.param("phi", jnp.zeros((2, 1))), numpyro.param("psi", jnp.zeros(3))
        with numpyro.plate("rows", 2, dim=-2):
            numpyro.sample("a", dist.Bernoulli(logits=phi))
        with numpyro.plate("columns", 3, dim=-1):
            numpyro.sample("b", dist.Bernoulli(logits=psi))

    def log_q(params, z, batch):
        return bernoulli(z["a"], params["phi"]).sum() + bernoulli(z["b"], params["psi"]).sum()

    def log_p(params, z, batch):
        prior = bernoulli(z["a"], np.log(0.4 / 0.6)).sum() + bernoulli(z["b"], np.log(0.6 / 0.4)).sum()
        return prior + normal(y, z["a"] + z["b"] - 1.5 * z["a"] * z["b"]).sum()

    params = {"phi": np.array([[0.3], [-0.2]]), "psi": np.array([0.4, -0.3, 0.1])}
    space = product(a=finite(2, (2, 1)), b=finite(2, (3,)))
    oracle = Oracle(**space, log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("crossed_plates", model, guide, params, oracle, ("a", "b"), args=(y,))
