"""A Gaussian process over time: log evidence and its gradient in the length scale, beside tinygp's.

The same kernels at the same irregular times: ours is a NumPyro model, whose ``scan`` the exact filter sums
out; tinygp's ``QuasisepSolver`` is made for these kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from tinygp import GaussianProcess
from tinygp.kernels import quasisep

from benchmarks import harness
from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ExactFilter
from ppl_ext.priors import markov

KERNELS = {"Matérn 1/2": quasisep.Exp, "Matérn 3/2": quasisep.Matern32, "Matérn 5/2": quasisep.Matern52}
NOISE = 0.5


def observed(f, y):
    numpyro.sample("y", dist.Normal(f, NOISE), obs=y)


def contenders(kernel, num: int) -> dict:
    def model(times, y):
        markov("f", kernel(scale=numpyro.sample("scale", dist.LogNormal(0.0, 1.0))), times, observed, y)

    of_scale = marginal(model, ["scale"], ExactFilter())

    def ours(scale, times, y):
        return log_density(of_scale, {"scale": scale}, times, y).total

    def quasiseparable(scale, times, y):
        process = GaussianProcess(kernel(scale=scale), times, diag=jnp.full(num, NOISE**2))
        return process.log_probability(y) + dist.LogNormal(0.0, 1.0).log_prob(scale)

    def both(fn):
        return lambda key, *args: jax.value_and_grad(fn)(*args)  # nothing here needs a key

    return {"ppl_ext": both(ours), "tinygp": both(quasiseparable)}


def case(name: str, num: int) -> harness.Case:
    rng = np.random.default_rng(0)
    times = jnp.asarray(np.sort(rng.uniform(0.0, num / 10.0, num)), jnp.float32)
    args = jnp.float32(1.3), times, jnp.asarray(rng.normal(size=num), jnp.float32)
    found = contenders(KERNELS[name], num)
    values = {who: jax.jit(fn)(None, *args) for who, fn in found.items()}
    for who, (value, slope) in values.items():  # the same work, or no time is worth comparing
        np.testing.assert_allclose(value, values["ppl_ext"][0], rtol=1e-4, err_msg=who)
        np.testing.assert_allclose(slope, values["ppl_ext"][1], rtol=1e-2, err_msg=who)
    return harness.Case(f"{name}, {num:,} times", found, args)


def main(quick: bool = False) -> None:
    sizes = [(name, 1_000) for name in KERNELS]
    if not quick:
        sizes += [(name, 10_000) for name in KERNELS]
    harness.run(
        "markov",
        [case(name, num) for name, num in sizes],
        targets=[
            harness.Target("ppl_ext", "tinygp", "run", 1.0),
            harness.Target("ppl_ext", "tinygp", "compile", 1.0),
        ],
        description="log evidence and gradient in the length scale, irregular times, Gaussian noise",
        calls=100,
        compilations=1 if quick else 3,
        save=not quick,
    )


if __name__ == "__main__":
    main()
