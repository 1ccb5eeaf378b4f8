"""A step of scale-adapted SG-HMC on a 13-100-1 tanh network, batch 32: ours, a loop written by hand, and
blackjax's SG-HMC.

Every contender does the same number of gradients of 32 of 455 rows. The loop by hand is what someone would
write for this one network: the formulas of the scale-adapted sampler in a jitted scan, rows drawn with
replacement. blackjax's SG-HMC has no scale adaptation; it draws a momentum and one minibatch for every ten
steps, as by default. Its Langevin step is timed beside ours too. What each of the two SG-HMC integrators does
to a normal posterior of variance 1 is printed, from the linear equation that its stationary covariance
solves.

``boston_posterior`` is the posterior part of the Boston benchmark: ten splits of our own, one model for all.
"""

import time
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC
from scipy.linalg import solve_discrete_lyapunov

from benchmarks import harness
from ppl_ext.infer import SGHMC, SGLD
from ppl_ext.priors.functions.posterior_functions import posterior_functions

ROWS, INPUTS, HIDDEN, BATCH = 455, 13, 100, 32
NOISE = 0.1  # variance, of targets of variance 1
ETA, FRICTION = 0.01, 0.01
AIM = 1.2


def network(x, y=None, scale: float = 1.0):
    """Inputs-100-1, tanh; weights N(0, scale^2 / fan-in), biases N(0, scale^2)."""
    inputs = x.shape[1]
    w1 = numpyro.sample("w1", dist.Normal(0.0, scale).expand([inputs, HIDDEN]).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(0.0, scale).expand([HIDDEN]).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(0.0, scale).expand([HIDDEN]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, scale))
    f = jnp.tanh(x @ w1 / inputs**0.5 + b1) @ w2 / HIDDEN**0.5 + b2
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, NOISE**0.5), obs=y)


def data() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (ROWS, INPUTS))
    return x, jnp.sin(x[:, 0]) + 0.3 * x[:, 1] * x[:, 2] + 0.3 * jax.random.normal(keys[1], (ROWS,))


# --- by hand


def forward(p, x):
    return jnp.tanh(x @ p["w1"] / INPUTS**0.5 + p["b1"]) @ p["w2"] / HIDDEN**0.5 + p["b2"]


def log_prior(p):
    return -0.5 * sum(jnp.sum(jnp.square(v)) for v in jax.tree.leaves(p))


def first_values(key):
    shapes = {"w1": (INPUTS, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN,), "b2": ()}
    return {
        n: jax.random.uniform(k, s, minval=-2.0, maxval=2.0)
        for k, (n, s) in zip(jax.random.split(key, 4), shapes.items(), strict=True)
    }


def by_hand(steps: int, warm_up: int) -> Callable:
    def potential(p, x, y):
        return -log_prior(p) + ROWS / x.shape[0] * 0.5 / NOISE * jnp.sum(jnp.square(y - forward(p, x)))

    def run(key, x, y):
        key, start = jax.random.split(key)
        p, unravel = ravel_pytree(first_values(start))
        ones = jnp.ones_like(p)

        def step(carry, i):
            p, v, tau, g, square, key = carry
            key, rows_key, noise_key = jax.random.split(key, 3)
            rows = jax.random.randint(rows_key, (BATCH,), 0, ROWS)
            gradient = ravel_pytree(jax.grad(potential)(unravel(p), x[rows], y[rows]))[0]
            rho = 1.0 / (tau + 1.0)
            new = (
                tau + 1.0 - tau * g**2 / square,
                (1 - rho) * g + rho * gradient,
                (1 - rho) * square + rho * gradient**2,
            )
            tau, g, square = (
                jnp.where(i < warm_up, a, b) for a, b in zip(new, (tau, g, square), strict=True)
            )
            m = jax.lax.rsqrt(square)
            noise = jnp.sqrt(jnp.maximum(2 * ETA**2 * FRICTION * m - ETA**4, 1e-16)) * jax.random.normal(
                noise_key, p.shape
            )
            v = (1 - FRICTION) * v - ETA**2 * m * gradient + noise
            return (p + v, v, tau, g, square, key), None

        return jax.lax.scan(step, (p, jnp.zeros_like(p), ones, ones, ones, key), jnp.arange(steps))[0][0]

    return run


# --- ours, and blackjax's


def ours(kernel, steps: int, warm_up: int) -> Callable:
    def run(key, x, y):
        first, key = jax.random.split(key)
        state = kernel.init(key, warm_up, first_values(first), (x, y), {})
        return jax.lax.fori_loop(0, steps, lambda _, s: kernel.sample(s, (x, y), {}), state).z

    return run


def blackjaxs(sampler: str, steps: int) -> Callable:
    def log_likelihood(p, row):
        return -0.5 / NOISE * jnp.square(row[1] - forward(p, row[0]))

    gradient = blackjax.sgmcmc.gradients.grad_estimator(log_prior, log_likelihood, ROWS)
    inner = 10 if sampler == "sghmc" else 1
    algorithm = (
        blackjax.sghmc(gradient, inner, alpha=FRICTION / 1e-3) if inner > 1 else blackjax.sgld(gradient)
    )
    size = 1e-3 if inner > 1 else 1e-6

    def run(key, x, y):
        key, start = jax.random.split(key)

        def step(carry, key):
            rows_key, move_key = jax.random.split(key)
            rows = jax.random.randint(rows_key, (BATCH,), 0, ROWS)
            return algorithm.step(move_key, carry, (x[rows], y[rows]), size), None

        return jax.lax.scan(step, first_values(start), jax.random.split(key, steps // inner))[0]

    return run


def stationary_variances(curvature: float = 0.1, a: float = 0.1) -> dict[str, float]:
    """Of a normal posterior of variance 1, exact gradients, with ``curvature`` the squared step size: ours,
    and blackjax's integrator.
    """
    h = curvature
    noise = 2.0 * a * h
    v_first = np.array([[1.0 - h, 1.0 - a], [-h, 1.0 - a]])  # v from z, then z from the new v
    z_first = np.array([[1.0, 1.0], [-h, 1.0 - a]])  # both from the old
    return {
        "ppl_ext": float(solve_discrete_lyapunov(v_first, noise * np.ones((2, 2)))[0, 0]),
        "blackjax": float(solve_discrete_lyapunov(z_first, noise * np.diag([0.0, 1.0]))[0, 0]),
    }


def main(quick: bool = False) -> None:
    steps = 100 if quick else 1000
    sghmc = SGHMC(network, batch_size=BATCH, step_size=ETA, friction=FRICTION)
    sgld = SGLD(network, batch_size=BATCH, step_size=1e-6)
    contenders = {
        "by hand": by_hand(steps, steps // 2),
        "ppl_ext": ours(sghmc, steps, steps // 2),
        "blackjax": blackjaxs("sghmc", steps),
        "ppl_ext SGLD": ours(sgld, steps, 0),
        "blackjax SGLD": blackjaxs("sgld", steps),
    }
    targets = [
        harness.Target("ppl_ext", "by hand", "run", AIM),
        harness.Target("ppl_ext", "blackjax", "run", 1.0),
        harness.Target("ppl_ext SGLD", "blackjax SGLD", "run", 1.0),
    ]
    variances = {h: stationary_variances(h) for h in (0.003, 0.01, 0.03, 0.09)}
    for h, by_name in variances.items():
        print(
            f"  squared step {h:g} of a variance of 1, friction .1: "
            + ", ".join(f"{n} {v:.4f}" for n, v in by_name.items())
        )
    harness.run(
        "sgmcmc",
        [harness.Case(f"{steps} steps, {INPUTS}-{HIDDEN}-1, batch {BATCH}", contenders, data())],
        targets,
        description=f"{steps} steps of stochastic gradient MCMC on a {INPUTS}-{HIDDEN}-1 network",
        calls=100,
        warm_up=2 if quick else 5,
        compilations=1 if quick else 5,
        save=not quick,
        extra={"stationary_variance_of_1": {str(h): v for h, v in variances.items()}},
    )
    if quick:
        print(
            boston_posterior(
                lambda x, y: network, splits=1, chains=2, num_warmup=100, num_samples=10, num_steps=20
            )
        )


# --- Boston housing


def boston() -> tuple[np.ndarray, np.ndarray]:
    """506 towns, 13 columns, median values of homes. A column of this set encodes race as if it were a
    nuisance; it stays the usual yardstick for this comparison and should be used for nothing else."""
    from mlxtend.data import boston_housing_data

    return boston_housing_data()


def split(x: np.ndarray, y: np.ndarray, number: int, test_share: float = 0.1):
    """Our own split of this number: standardised training inputs and targets, test inputs; test targets as
    they are; mean and sd of y.
    """
    order = np.random.default_rng(number).permutation(len(y))
    test, train = np.split(order, [round(test_share * len(y))])
    mean, sd = x[train].mean(0), x[train].std(0)
    sd = np.where(sd > 0.0, sd, 1.0)
    y_mean, y_sd = y[train].mean(), y[train].std()
    standardised = ((x[train] - mean) / sd, (y[train] - y_mean) / y_sd, (x[test] - mean) / sd)
    return *(v.astype(np.float32) for v in standardised), y[test], y_mean, y_sd


def boston_posterior(
    model_of: Callable[[np.ndarray, np.ndarray], Callable],
    splits: int = 10,
    chains: int = 4,
    num_warmup: int = 2,
    num_samples: int = 40,
    num_steps: int = 2000,
    dataset: Callable[[], tuple[np.ndarray, np.ndarray]] = boston,
) -> dict[str, Any]:
    """Scale-adapted SG-HMC on every split: RMSE and NLL in the units of the target, the largest R-hat on
    predictions, and seconds.

    The published settings: η = a = .01, batch 32, a warm-up of 4000 steps here, a draw every 2000, 40 draws a
    chain.

    :param model_of: from standardised training data (x, y) to a NumPyro model ``model(x, y=None)``, such as a
        tuned one.
    :return: by name, one number a split; ``mean`` and ``standard_error`` of each.
    """
    x, y = dataset()
    found: dict[str, list[float]] = {"rmse": [], "nll": [], "r_hat": [], "seconds": []}
    for number in range(splits):
        x_train, y_train, x_test, y_test, y_mean, y_sd = split(x, y, number)
        model = model_of(x_train, y_train)
        kernel = SGHMC(
            model, batch_size=BATCH, step_size=0.01, friction=0.01, clip=100.0, num_steps=num_steps
        )
        mcmc = MCMC(
            kernel,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        start = time.perf_counter()
        mcmc.run(jax.random.key(number), x_train, y_train)
        jax.block_until_ready(mcmc.get_samples())
        found["seconds"].append(time.perf_counter() - start)
        read = posterior_functions(model, mcmc, x_test, y=((y_test - y_mean) / y_sd).astype(np.float32))
        found["rmse"].append(read.rmse * y_sd)
        found["nll"].append(read.nll + float(np.log(y_sd)))
        found["r_hat"].append(float(np.nanmax(read.r_hat)))
    averages = {
        n: (float(np.mean(v)), float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else float("nan"))
        for n, v in found.items()
    }
    return {
        **found,
        "mean": {n: m for n, (m, _) in averages.items()},
        "standard_error": {n: s for n, (_, s) in averages.items()},
    }
