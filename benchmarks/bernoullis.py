"""A thousand local Bernoullis under one global latent: what a gradient costs and how noisy it is, by
strategy.

A global z ~ N(0, 1) sets the odds of N coins b_i, and each coin shifts its own observation y_i ~ N(2 b_i, 1).
The guide has one Normal for z and one logit per coin. A *global* score term charges every coin with the whole
cost, N elements of it, so its noise grows with N. The strategies of this library charge a coin with its own
slice of the plate, and flip all coins at once to compare each with its alternative. The reference is the
global term as someone would write it in plain JAX: one run, no second evaluation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import TraceGraph_ELBO
from numpyro.infer.elbo import ELBO as NumPyroELBO

from benchmarks import harness
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO

SIZE = 1000
SHIFT = 2.0
STRATEGIES = ("score", "measure_valued", "enumerate_locally", "enumerate")
# per-coordinate sd, time over the global score term
AIMS = {"score": (1.5, 1.4), "measure_valued": (0.6, 1.2)}


def model(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("coins", y.shape[0]):
        b = numpyro.sample("b", dist.Bernoulli(logits=z))
        numpyro.sample("y", dist.Normal(SHIFT * b, 1.0), obs=y)


def guide(y):
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), jnp.exp(numpyro.param("log_scale", 0.0))))
    with numpyro.plate("coins", y.shape[0]):
        numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("logits", jnp.zeros(y.shape))))


def data(size: int = SIZE):
    coins, noise = random.split(random.key(0))
    return SHIFT * random.bernoulli(coins, 0.6, (size,)) + random.normal(noise, (size,))


def initial_params(size: int = SIZE):
    """Where training starts: the prior's z, nearly even odds for every coin. (At exactly even odds NumPyro's
    derivatives are one-sided.)
    """
    return {
        "loc": jnp.zeros(()),
        "log_scale": jnp.zeros(()),
        "logits": 0.1 * random.normal(random.key(1), (size,)),
    }


def programmed(objective: NumPyroELBO, strategy=None):
    """A gradient step through a NumPyro objective, ours or theirs."""
    guide_ = guide if strategy is None else gradient(guide, {"b": strategy})
    return jax.value_and_grad(lambda params, key, y: objective.loss(key, params, model, guide_, y))


def global_score_loss(params, key, y):
    """Every coin charged with the whole cost."""
    key_z, key_b = random.split(key)
    scale = jnp.exp(params["log_scale"])
    z = params["loc"] + scale * random.normal(key_z)
    logits = params["logits"]
    b = random.bernoulli(key_b, jax.nn.sigmoid(logits)).astype(logits.dtype)
    log_q_b = jnp.sum(_log_coin(b, logits))
    cost = (
        _log_normal(z, params["loc"], scale)
        + log_q_b
        - _log_normal(z, 0.0, 1.0)
        - jnp.sum(_log_coin(b, jnp.broadcast_to(z, b.shape)))
        - jnp.sum(_log_normal(y, SHIFT * b, 1.0))
    )
    return cost + (log_q_b - lax.stop_gradient(log_q_b)) * lax.stop_gradient(cost)


def _log_normal(x, loc, scale):
    return -0.5 * jnp.square((x - loc) / scale) - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def _log_coin(b, logits):
    return b * logits - jnp.maximum(logits, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


def contenders():
    steps = {"global score": jax.value_and_grad(global_score_loss)}
    steps |= {strategy: programmed(ELBO(), strategy) for strategy in STRATEGIES}
    steps["numpyro TraceGraph"] = programmed(TraceGraph_ELBO())
    return {name: lambda key, params, y, step=step: step(params, key, y) for name, step in steps.items()}


def moments(contender, args, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the gradient by each coin's logit."""

    def step(sums, key):
        gradient = contender(key, *args)[1]["logits"]
        return (sums[0] + gradient, sums[1] + jnp.square(gradient)), None

    zeros = jnp.zeros(args[0]["logits"].shape)
    sums, _ = jax.jit(lambda keys: lax.scan(step, (zeros, zeros), keys))(random.split(random.key(2), draws))
    first, second = (np.asarray(x, np.float64) / draws for x in sums)
    return first, np.sqrt((second - first**2) * draws / (draws - 1))


def check(found: dict[str, tuple[np.ndarray, np.ndarray]], draws: int) -> None:
    """Stop when contenders do not estimate the same gradient: no noise would be worth comparing."""
    reference, reference_sd = found["enumerate"]
    for name, (mean, sd) in found.items():
        off = np.abs(mean - reference) / np.sqrt((sd**2 + reference_sd**2) / draws)
        if off.max() > 5.5:  # the largest of a thousand normals exceeds this once in 25,000 times
            raise AssertionError(f"{name} is {off.max():.1f} standard errors off the mean of enumerate")


def main(quick: bool = False) -> None:
    steps, args, draws = contenders(), (initial_params(), data()), 500 if quick else 5000
    found = {name: moments(step, args, draws) for name, step in steps.items()}
    check(found, draws)
    spread = {}
    print(
        f"standard deviation of the gradient by one coin's logit, over {draws} draws: root mean square of "
        f"{SIZE} coins, and the largest"
    )
    for name, (_, sd) in found.items():
        rms, aim = float(np.sqrt(np.mean(sd**2))), AIMS.get(name, (None,))[0]
        spread[name] = {"rms": float(f"{rms:.4g}"), "max": float(f"{sd.max():.4g}")}
        verdict = ""
        if aim is not None:
            spread[name] |= {"aim": aim, "verdict": "met" if rms <= aim else "missed"}
            verdict = f"   aim {aim:g}  {spread[name]['verdict']}"
        print(f"  {name:<18} {rms:9.3f} {sd.max():9.3f}{verdict}")
    print()
    harness.run(
        "bernoullis",
        [harness.Case(f"{SIZE} coins", steps, args)],
        targets=[harness.Target(name, "global score", "run", at_most) for name, (_, at_most) in AIMS.items()],
        description=f"value and gradient of the negative ELBO of {SIZE} local Bernoullis under one global "
        "Normal",
        calls=300 if quick else 2000,
        compilations=2 if quick else 5,
        save=not quick,
        extra={"gradient_sd": spread},
    )
