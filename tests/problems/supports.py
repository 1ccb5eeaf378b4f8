"""Values that a program does not read linearly, or that are many, infinitely many or impossible."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln, xlogy

from tests.oracles import Oracle, bernoulli, categorical, finite, normal, product
from tests.problems.problem import Problem


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
    """A die with a face that neither model nor guide allows: 0 times minus infinity must not appear
    anywhere.
    """
    y = 0.7
    allowed = np.array([0.0, 0.4, -np.inf])

    def model():
        c = numpyro.sample("c", dist.Categorical(logits=jnp.asarray(allowed)))
        numpyro.sample("y", dist.Normal(1.2 * c, 1.0), obs=y)

    def guide():
        numpyro.sample(
            "c", dist.Categorical(logits=numpyro.param("psi", jnp.zeros(2))[jnp.array([0, 1, 1])] + allowed)
        )

    def log_q(params, z, batch):
        return categorical(z["c"], params["psi"] + allowed[:2])

    def log_p(params, z, batch):
        return categorical(z["c"], jnp.asarray(allowed[:2])) + normal(y, 1.2 * z["c"])

    params = {"psi": np.array([0.3, -0.2])}
    oracle = Oracle(**product(c=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("truncated", model, guide, params, oracle, ("c",))


def counts():
    """A binomial count that decides a Poisson one, whose infinite support leaves it only the score
    function.
    """
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
