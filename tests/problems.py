"""The small programs every objective is judged on, each beside its own densities written by hand.

A ``Problem`` is a NumPyro model and guide with a point in parameter space, and the ``Oracle`` that knows the exact
answer there. Each stands for one way an estimator can go wrong: a scale that leaks into a score, a plate whose elements
are not independent after all, a time step that forgets its future. Probabilities stay well inside (0, 1), so that
20,000 replicates see every outcome often enough for a standard error to be meaningful.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln, xlogy
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import mask, scale

from tests.oracles import Oracle, bernoulli, categorical, finite, gaussian, minibatches, normal, product


@dataclass(frozen=True)
class Problem:
    """A model, a guide, where to stand, and the exact answer there.

    :param finite_sites: the guide's finite latent sites: the ones to score or to enumerate.
    :param gaussian_sites: its Gaussian ones, reparameterised unless a test says otherwise.
    :param open_sites: its sites over infinitely many values, of which the oracle sums those that matter.
    """

    name: str
    model: Callable
    guide: Callable
    params: dict[str, Any]
    oracle: Oracle
    finite_sites: tuple[str, ...]
    gaussian_sites: tuple[str, ...] = ()
    open_sites: tuple[str, ...] = ()
    args: tuple = ()

    @property
    def num_assignments(self):
        """Joint values of the finite sites."""
        values = (self.oracle.outcomes[site] for site in self.finite_sites)
        return int(np.prod([len(np.unique(value, axis=0)) for value in values]))

    @property
    def all_finite(self):
        """Whether exact enumeration leaves nothing random."""
        return not self.gaussian_sites + self.open_sites and len(self.oracle.batches) == 1


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
        prior = bernoulli(a, np.log(0.4 / 0.6)) + bernoulli(b, 0.8 * a - 0.5) + bernoulli(c, 0.3 - a + 0.7 * b)
        return prior + normal(y, a - 1.5 * b * c + 0.5 * c)

    params = {"phi": np.array([0.2, -0.3, 0.4, 0.6])}
    oracle = Oracle(**product(a=finite(2), b=finite(2), c=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("triple", model, guide, params, oracle, ("a", "b", "c"))


def normal_then_bernoulli():
    """A reparameterised site decides a coin: the pathwise term must flow through the coin's probability too."""
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
    """The same program left to its default: what NumPyro gets right too, so that it can check these oracles."""
    scored = score_normal()

    def guide():
        numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), jnp.exp(numpyro.param("s", 0.0))))

    return Problem("reparam_normal", scored.model, guide, scored.params, scored.oracle, (), ("x",))


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
        return bernoulli(z["g"], params["phi"]) + bernoulli(z["z"], params["psi"] + params["w"] * z["g"]).sum()

    def log_p(params, z, batch):
        local = bernoulli(z["z"], 0.8 * z["g"] - 0.3) + normal(y, 1.2 * z["z"] + 0.5 * z["g"])
        return bernoulli(z["g"], np.log(0.4 / 0.6)) + local.sum()

    params = {"phi": 0.3, "psi": np.array([-0.2, 0.5, 0.1]), "w": 0.6}
    oracle = Oracle(**product(g=finite(2), z=finite(2, (3,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("plated", model, guide, params, oracle, ("g", "z"), args=(y,))


def plated_local():
    """Everything inside one plate, so that a multi-particle bound is a sum of bounds, one for each element."""
    y = np.array([0.2, 1.4, -0.5])

    def model(y):
        with numpyro.plate("n", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Normal(1.2 * z, 1.0), obs=y)

    def guide(y):
        psi = numpyro.param("psi", jnp.zeros(3))
        with numpyro.plate("n", 3):
            numpyro.sample("z", dist.Bernoulli(logits=psi))

    def log_pmf(params, z, batch):
        return log_q(params, z, batch).sum()

    def log_q(params, z, batch):
        return bernoulli(z["z"], params["psi"])

    def log_p(params, z, batch):
        return bernoulli(z["z"], np.log(0.4 / 0.6)) + normal(y, 1.2 * z["z"])

    params = {"psi": np.array([-0.2, 0.5, 0.1])}
    oracle = Oracle(**product(z=finite(2, (3,))), log_pmf=log_pmf, log_p=log_p, log_q=log_q)
    return Problem("plated_local", model, guide, params, oracle, ("z",), args=(y,))


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
        return bernoulli(z["a"], params["phi"]).sum() + bernoulli(z["b"], params["psi"] * (0.5 + z["a"])).sum()

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


def scanned():
    """A chain of coins in ``scan``, whose odds depend on the carry, with an observation at every step."""
    y = np.array([0.9, -0.4, 1.2])

    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Bernoulli(logits=1.1 * x - 0.4))
            numpyro.sample("y", dist.Normal(1.3 * x, 1.0), obs=y_t)
            return x, None

        scan(step, numpyro.sample("x0", dist.Bernoulli(0.4)), y)

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


def coupled_plate():
    """Elements of a plate meet in a sum that feeds the same plate: an element's credit reaches its neighbours."""
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
    """Elements hand their values to a neighbour, in the guide and again in the model: credit goes round the plate."""
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


def scanned_backwards():
    """The guide runs forwards in time and the model backwards: a step's costs to come are not those of later steps."""
    y = np.array([0.9, -0.4, 1.2])

    def model(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Bernoulli(logits=1.1 * x - 0.4))
            numpyro.sample("y", dist.Normal(1.3 * x, 1.0), obs=y_t)
            return x, None

        scan(step, jnp.asarray(0), y, reverse=True)

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
    """Steps reach an observation outside the ``scan`` through its last carry and its outputs, and a coin after it."""
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
        prior = bernoulli(x[0], 0.8 - 0.1) + bernoulli(x[1], 0.8 * x[0] - 0.2) + bernoulli(after, 0.6 * x[1] - 0.5)
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


def nonlinear():
    """A die read through relu, where and xlogy: the rest of the program is not linear in a relaxed value."""
    y = 1.1

    def model():
        c = numpyro.sample("c", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))
        theta = numpyro.param("theta", 0.0)
        bent = jax.nn.relu(c - 0.7) + jnp.where(c > 1, theta, -0.5)
        numpyro.sample("y", dist.Normal(bent + xlogy(1.0 * c, 0.6 + theta**2), 1.0), obs=y)

    def guide():
        numpyro.sample("c", dist.Categorical(logits=numpyro.param("psi", jnp.zeros(3))))

    def log_q(params, z, batch):
        return categorical(z["c"], params["psi"])

    def log_p(params, z, batch):
        c, theta = z["c"], params["theta"]
        bent = jnp.maximum(c - 0.7, 0.0) + jnp.where(c > 1, theta, -0.5) + c * jnp.log(0.6 + theta**2)
        return categorical(c, jnp.log(np.array([0.2, 0.3, 0.5]))) + normal(y, bent)

    params = {"psi": np.array([0.3, -0.2, 0.1]), "theta": 0.8}
    oracle = Oracle(**product(c=finite(3)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("nonlinear", model, guide, params, oracle, ("c",))


def truncated():
    """A die with a face that neither model nor guide allows: 0 times minus infinity must not appear anywhere."""
    y = 0.7
    allowed = np.array([0.0, 0.4, -np.inf])

    def model():
        c = numpyro.sample("c", dist.Categorical(logits=jnp.asarray(allowed)))
        numpyro.sample("y", dist.Normal(1.2 * c, 1.0), obs=y)

    def guide():
        numpyro.sample("c", dist.Categorical(logits=numpyro.param("psi", jnp.zeros(2))[jnp.array([0, 1, 1])] + allowed))

    def log_q(params, z, batch):
        return categorical(z["c"], params["psi"] + allowed[:2])

    def log_p(params, z, batch):
        return categorical(z["c"], jnp.asarray(allowed[:2])) + normal(y, 1.2 * z["c"])

    params = {"psi": np.array([0.3, -0.2])}
    oracle = Oracle(**product(c=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("truncated", model, guide, params, oracle, ("c",))


def counts():
    """A binomial count that decides a Poisson one, whose infinite support leaves it only the score function."""
    y = 1.8

    def log_binomial(n, k):
        return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)

    def model():
        a = numpyro.sample("a", dist.Binomial(2, 0.6))
        b = numpyro.sample("b", dist.Poisson(0.8 + 0.3 * a))
        numpyro.sample("y", dist.Normal(jnp.sqrt(1.0 + b) + 0.3 * a, 1.0), obs=y)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        a = numpyro.sample("a", dist.Binomial(2, logits=phi[0]))
        numpyro.sample("b", dist.Poisson(jnp.exp(phi[1] + phi[2] * a)))

    def binomial(k, logits):
        return log_binomial(2.0, k) + k * logits - 2.0 * jnp.logaddexp(0.0, logits)

    def poisson(k, log_rate):
        return k * log_rate - jnp.exp(log_rate) - gammaln(k + 1.0)

    def log_q(params, z, batch):
        phi = params["phi"]
        return binomial(z["a"], phi[0]) + poisson(z["b"], phi[1] + phi[2] * z["a"])

    def log_p(params, z, batch):
        prior = binomial(z["a"], np.log(0.6 / 0.4)) + poisson(z["b"], jnp.log(0.8 + 0.3 * z["a"]))
        return prior + normal(y, jnp.sqrt(1.0 + z["b"]) + 0.3 * z["a"])

    params = {"phi": np.array([0.2, -0.1, 0.3])}
    oracle = Oracle(**product(a=finite(3), b=finite(16)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("counts", model, guide, params, oracle, ("a",), open_sites=("b",))


def many_coins():
    """Seven coins, 128 joint assignments: too many for the default to enumerate, so it must score."""
    weights = np.linspace(-1.0, 1.4, 7)
    y = 0.7

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.4 * jnp.ones(7)).to_event(1))
        numpyro.sample("y", dist.Normal(z @ weights, 1.0), obs=y)

    def guide():
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("phi", jnp.zeros(7))).to_event(1))

    def log_q(params, z, batch):
        return bernoulli(z["z"], params["phi"]).sum()

    def log_p(params, z, batch):
        return bernoulli(z["z"], np.log(0.4 / 0.6)).sum() + normal(y, z["z"] @ weights)

    params = {"phi": np.linspace(-0.4, 0.5, 7)}
    oracle = Oracle(**product(z=finite(2, (7,))), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("many_coins", model, guide, params, oracle, ("z",))


# How the elements of a plate may meet on the way from a guide's site to the cost in the same plate. Each takes z (3,)
# to three locations; only the first leaves the elements apart.

MIXING = np.array([[0.5, -1.0, 0.0], [0.0, 1.0, 0.7], [1.2, 0.0, 0.3]])


def _while(z):
    return jax.lax.while_loop(lambda state: state[0] < 2, lambda state: (state[0] + 1, jnp.roll(state[1], 1) + z), (0, z))[1]


ROUTES = {
    "elementwise": lambda z: 1.2 * z,
    "reversed": lambda z: 1.2 * z[::-1],
    "rolled": lambda z: jnp.roll(z, 1) - z,
    "gathered": lambda z: z[jnp.array([2, 0, 0])],
    "gathered at itself": lambda z: jnp.take(jnp.array([0.4, -1.0, 1.3]), (z[0] + z).astype(int)),
    "scattered": lambda z: jnp.zeros(3).at[jnp.array([1, 1, 0])].add(z),
    "summed": lambda z: jnp.ones(3) * z.sum(),
    "mean of a rank": lambda z: z[None, :].mean(axis=1, keepdims=True)[0] * jnp.arange(3.0),
    "cumulated": lambda z: jnp.cumsum(z),
    "reverse cumulated": lambda z: jax.lax.cumsum(z * 1.0, reverse=True),
    "cumulated twice": lambda z: jnp.cumsum(jnp.cumsum(z)) - z,
    "cumulated before": lambda z: jnp.concatenate([jnp.zeros(1), jnp.cumsum(1.0 * z)[:-1]]),
    "cumulated and turned": lambda z: jnp.cumsum(z)[::-1],
    "multiplied": lambda z: MIXING @ z,
    "solved": lambda z: jnp.linalg.solve(jnp.asarray(MIXING) + 2.0 * jnp.eye(3), z),
    "sorted": lambda z: jnp.sort(z + 0.1 * jnp.arange(3.0)),
    "largest": lambda z: z - jnp.max(z * jnp.arange(1.0, 4.0)),
    "argmax": lambda z: 1.0 * (jnp.arange(3) == jnp.argmax(z)),
    "branched": lambda z: jnp.where(z.any(), z, 0.8),
    "cond": lambda z: jax.lax.cond(z[1] > 0, lambda z: z + 0.5, lambda z: -1.0 * z[::-1], z),
    "switch": lambda z: jax.lax.switch(z[2].astype(int), [lambda z: 1.0 * z, lambda z: 0.3 - z], z),
    "reshaped": lambda z: (z[:, None] * z[None, :]).reshape(9)[::3] + z[::-1].reshape(3, 1).T[0],
    "indexed by another": lambda z: jnp.array([[0.3, 1.0], [-0.4, 0.7]])[z.astype(int), jnp.roll(z, 1).astype(int)],
    "added where it says": lambda z: jnp.zeros(3).at[z.astype(int)].add(1.0),
    "padded": lambda z: jnp.concatenate([z[1:], jnp.zeros(1)]),
    "convolved": lambda z: jnp.convolve(1.0 * z, jnp.array([0.5, 0.0, -1.0]), mode="same"),
    "sliced": lambda z: jax.lax.dynamic_slice(jnp.concatenate([z, z]), (1,), (3,)) * 1.1,
    "inner jit": lambda z: jax.jit(lambda z: z - 0.5 * z.sum())(z),
    "inner vmap": lambda z: jax.vmap(lambda one: (one * z).sum())(z),
    "inner scan": lambda z: jax.lax.scan(lambda carry, one: (carry + one, carry * one), 0.3, 1.0 * z)[1],
    "inner scan backwards": lambda z: jax.lax.scan(lambda carry, one: (carry + one, carry), 0.3, 1.0 * z, reverse=True)[1],
    "inner scan of a vector": lambda z: jax.lax.scan(lambda x, _: (jnp.roll(x, 1), x[0]), 1.0 * z, length=3)[1],
    "inner while": _while,
    "inner gradient": lambda z: jax.grad(lambda x: jnp.sum(x**2 * x[::-1]))(1.0 * z),
    "checkpointed": lambda z: jax.checkpoint(lambda z: jnp.sin(z.sum()) * z)(1.0 * z),
    "custom rule": lambda z: jax.nn.relu(z - 0.5) - jax.nn.softplus(z).sum(),
}


def routed(route):
    """Coins in a plate whose observations read them along a route: whose credit is whose, the plate does not say."""
    y = np.array([0.2, 1.4, -0.5])
    through = ROUTES[route]

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
    return Problem(f"routed: {route}", model, guide, params, oracle, ("z",), args=(y,))


BUILDERS = (
    one_bernoulli,
    chain,
    triple,
    normal_then_bernoulli,
    bernoulli_then_normal,
    coin_normal_coin,
    score_normal,
    reparam_normal,
    plated,
    plated_local,
    nested_plates,
    subsampled,
    subsampled_local,
    scaled,
    masked,
    masked_data,
    scanned,
    factors,
    coupled_plate,
    relayed,
    crossed_plates,
    scanned_backwards,
    scan_output,
    scanned_plate,
    conditional_site,
    nonlinear,
    truncated,
    counts,
    many_coins,
)

PROBLEMS = {problem.name: problem for problem in (build() for build in BUILDERS)}
ROUTED = {problem.name: problem for problem in (routed(route) for route in ROUTES)}
