"""A Gaussian process over time: log evidence and its gradient in the length scale, beside tinygp's.

The same kernels at the same irregular times: ours is a NumPyro model, whose ``scan`` the exact filter sums
out; tinygp's ``QuasisepSolver`` is made for these kernels, its ``DirectSolver`` for any. What is held in
memory beside arguments and results is what XLA says of the compiled program.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from tinygp import GaussianProcess
from tinygp.kernels import quasisep
from tinygp.solvers import DirectSolver

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


def arguments(num: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    times = jnp.asarray(np.sort(rng.uniform(0.0, num / 10.0, num)), jnp.float32)
    return jnp.float32(1.3), times, jnp.asarray(rng.normal(size=num), jnp.float32)


def case(name: str, num: int) -> harness.Case:
    args = arguments(num)
    found = contenders(KERNELS[name], num)
    values = {who: jax.jit(fn)(None, *args) for who, fn in found.items()}
    for who, (value, slope) in values.items():  # the same work, or no time is worth comparing
        np.testing.assert_allclose(value, values["ppl_ext"][0], rtol=1e-4, err_msg=who)
        np.testing.assert_allclose(slope, values["ppl_ext"][1], rtol=1e-2, err_msg=who)
    return harness.Case(f"{name}, {num:,} times", found, args)


def beside_dense(name: str, num: int, calls: int) -> dict[str, float | int | str]:
    """Medians of interleaved calls, ours and those of the process with a dense covariance."""
    args = arguments(num)

    def dense(scale, times, y):
        diag = jnp.full(num, NOISE**2)
        process = GaussianProcess(KERNELS[name](scale=scale), times, diag=diag, solver=DirectSolver)
        return process.log_probability(y) + dist.LogNormal(0.0, 1.0).log_prob(scale)

    ours = contenders(KERNELS[name], num)["ppl_ext"]
    both = {"ppl_ext": lambda *x: ours(None, *x), "dense": jax.value_and_grad(dense)}
    jitted = {who: jax.jit(fn) for who, fn in both.items()}
    seconds: dict[str, list[float]] = {who: [] for who in both}
    for _ in range(calls):
        for who, fn in jitted.items():
            # what the other leaves behind, gigabytes to be given back, is not this one's time
            jax.block_until_ready(fn(*args))
            start = time.perf_counter()
            jax.block_until_ready(fn(*args))
            seconds[who].append(time.perf_counter() - start)
    medians = {who: float(np.median(s)) for who, s in seconds.items()}
    ratio = medians["ppl_ext"] / medians["dense"]
    verdict = "met" if ratio <= 0.01 else "missed"
    found = {"case": f"{name}, {num:,} times", "calls": calls, **medians, "ratio": ratio, "aim": 0.01}
    print(f"{found['case']}: {ratio:.5f} of a dense process's time (at most .01: {verdict})")
    return {**found, "verdict": verdict}


def memory(name: str, sizes: list[int]) -> dict[str, float]:
    """Bytes a time, by number of times."""
    found = {}
    for num in sizes:
        compiled = jax.jit(contenders(KERNELS[name], num)["ppl_ext"]).lower(None, *arguments(num)).compile()
        found[f"{num:,}"] = compiled.memory_analysis().temp_size_in_bytes / num
    print(f"{name}: bytes held a time, {found}\n")
    return found


def main(quick: bool = False) -> None:
    sizes = [(name, num) for num in ([1_000] if quick else [10_000, 100_000]) for name in KERNELS]
    extra = {
        "dense": beside_dense("Matérn 5/2", 500 if quick else 5_000, 3),
        "bytes_a_time": memory("Matérn 5/2", [1_000, 10_000] if quick else [10_000, 100_000]),
    }
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
        extra=extra,
    )


if __name__ == "__main__":
    main()
