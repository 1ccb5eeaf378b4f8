"""The chain of flips in genjax 0.10.3: run by ``benchmarks.chains`` in an environment of its own, one length
and strategy a process.

Reads the problem as JSON from the standard input and writes its measurements as one line of JSON to the
standard output. As released, 0.10.3 cannot run ``flip_mvd`` at all (it calls its continuation with three
arguments where two are taken) and its continuation without derivatives skips later random choices, so
``MendedFlipMVD`` below is what "measure_valued" uses: the rule with both of these mended.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from genjax.adev import ADEVPrimitive, Dual, expectation, flip_enum, flip_mvd, flip_reinforce
from genjax.core import Pytree


@Pytree.dataclass
class MendedFlipMVD(ADEVPrimitive):
    """The draw's own derivative, and the change of the law times what the other outcome would have been
    worth.
    """

    def sample(self, key, p):
        return jax.random.bernoulli(key, p)

    def jvp_estimate(self, key, dual_tree, konts):
        (p,), (p_tangent,) = Dual.tree_primal(dual_tree), Dual.tree_tangent(dual_tree)
        key, sub_key = jax.random.split(key)
        drawn = jax.random.bernoulli(sub_key, p)
        (own,), (own_tangent,) = Dual.tree_unzip(konts[1](key, _held(drawn)))
        (other,), _ = Dual.tree_unzip(konts[1](key, _held(~drawn)))
        return Dual(own, own_tangent + jnp.where(drawn, own - other, other - own) * p_tangent)


def _held(value):
    return Dual(value, jnp.zeros_like(value))


FLIPS = {
    "score": flip_reinforce,
    "enumerate": flip_enum,
    "measure_valued": MendedFlipMVD(),
    "flip_mvd as released": flip_mvd,
}


def log_coin(x, logit):
    # Written out: this release has no rule for functions with custom derivatives, as jax.nn.softplus is.
    return x * logit - jnp.maximum(logit, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(logit)))


def elbo(problem, flip):
    """The negative ELBO of ``benchmarks.chains``, its draws by ``flip``."""

    @expectation
    def cost(logits):
        x, total = 0.0, 0.0
        for step, y in enumerate(problem["y"]):
            guide = logits[step] + problem["coupling"] * x
            prior = problem["prior_logit"] + problem["prior_coupling"] * x
            x = jnp.where(flip(jax.nn.sigmoid(guide)), 1.0, 0.0)
            total += (
                log_coin(x, guide)
                - log_coin(x, prior)
                + 0.5 * (y - problem["shift"] * x) ** 2
                + 0.5 * jnp.log(2 * jnp.pi)
            )
        return total

    return lambda key, logits: cost.grad_estimate(key, (logits,))[0]


def main() -> None:
    problem = json.load(sys.stdin)
    logits = jnp.asarray(problem["logits"])
    jax.block_until_ready(jax.jit(lambda x: x + 1.0)(logits))  # the backend starts here, not in what is timed
    seconds = []
    for _ in range(problem["compilations"]):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = (
            jax.jit(elbo(problem, FLIPS[problem["strategy"]])).lower(jax.random.key(0), logits).compile()
        )
        seconds.append(time.perf_counter() - start)
        if seconds[0] > problem["long"]:
            break
    keys = list(jax.random.split(jax.random.key(1), problem["calls"]))
    jax.block_until_ready(keys)
    gradients, times = [], []
    for key in keys:
        start = time.perf_counter()
        gradient = jax.block_until_ready(compiled(key, logits))
        times.append(time.perf_counter() - start)
        gradients.append(np.asarray(gradient, np.float64))
    gradients = np.stack(gradients)
    found = {
        "compile": float(np.median(seconds)),
        "run": float(np.quantile(times[len(times) // 10 :], 0.25)),
        "variance": gradients.var(0, ddof=1).tolist(),
        "mean": gradients.mean(0).tolist(),
        "jax": jax.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
