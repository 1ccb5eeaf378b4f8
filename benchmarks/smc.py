"""Tempered SMC on a logistic regression of 10 coefficients and on a hierarchical model: ours, blackjax's, and
``particles``' (NumPy).

All have the same particles, the same temperatures, and as many random-walk steps at each. Beside blackjax the
walk has a fixed covariance, as it has there; ours takes a NumPyro model, blackjax two densities written by
hand. Beside ``particles``, which fits it, ours fits the covariance to the particles too. Each says what
evidence it found. ``particles`` needs an environment of its own, since particles 0.4 wants NumPy before 2:
``--particles-python``.
"""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from blackjax.mcmc import random_walk
from blackjax.smc import resampling, tempered

from benchmarks import harness
from ppl_ext.algorithms import RandomWalk
from ppl_ext.infer import SMC

PARTICLES, STEPS, STAGES = 1000, 5, 15
TEMPERATURES = np.linspace(0.0, 1.0, STAGES + 1)[1:] ** 3
ROWS, INPUTS, GROUPS = 200, 10, 20
PEER = Path(__file__).parent / "peers" / "particles_tempering.py"


# --- the two problems, as NumPyro models and as densities by hand


def logistic(x, y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([INPUTS]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def hierarchical(x, y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("groups", GROUPS):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean + scale * effect, x), obs=y)


def data(name: str) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    if name == "logistic":
        x = rng.standard_normal((ROWS, INPUTS))
        y = rng.uniform(size=ROWS) < 1 / (1 + np.exp(-x @ np.linspace(-1.0, 1.0, INPUTS)))
    else:
        x = np.full(GROUPS, 0.5)
        y = 1.0 + 0.8 * rng.standard_normal(GROUPS) + x * rng.standard_normal(GROUPS)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def logistic_prior(u):
    return dist.Normal(0.0, 1.0).log_prob(u).sum()


def logistic_likelihood(x, y, u):
    logits = x @ u
    return jnp.sum(y * logits - jax.nn.softplus(logits))


def hierarchical_prior(u):
    return dist.Normal(0.0, 2.0).log_prob(u[0]) + dist.Normal(0.0, 1.0).log_prob(u[1:]).sum()


def hierarchical_likelihood(x, y, u):
    return dist.Normal(u[0] + jnp.exp(u[1]) * u[2:], x).log_prob(y).sum()


def first_positions(name: str, key):
    size = INPUTS if name == "logistic" else GROUPS + 2
    scale = jnp.ones(size) if name == "logistic" else jnp.ones(size).at[0].set(2.0)
    return scale * jax.random.normal(key, (PARTICLES, size))


PROBLEMS = {
    "logistic": (logistic, logistic_prior, logistic_likelihood, INPUTS, 0.2),
    "hierarchical": (hierarchical, hierarchical_prior, hierarchical_likelihood, GROUPS + 2, 0.15),
}


# --- the contenders: (key, x, y) -> log evidence


def ours(name: str, fitted: bool):
    model, _, _, size, deviation = PROBLEMS[name]
    moves = RandomWalk(STEPS, scale=deviation, covariance=np.ones(size))
    if fitted:
        moves = RandomWalk(STEPS, scale=2.38 / size**0.5)
    front = SMC(model, PARTICLES, temperatures=TEMPERATURES, moves=moves, progress_bar=False)
    return lambda key, x, y: front.whole(key, x, y).log_evidence.value


def blackjaxs(name: str):
    _, prior, likelihood, size, deviation = PROBLEMS[name]

    def run(key, x, y):
        step = partial(
            random_walk.build_additive_step(), random_step=random_walk.normal(deviation * jnp.ones(size))
        )
        kernel = tempered.build_kernel(
            prior, partial(likelihood, x, y), step, random_walk.init, resampling.systematic
        )
        first, key = jax.random.split(key)

        def stage(state, key_and_temperature):
            key, temperature = key_and_temperature
            state, info = kernel(key, state, STEPS, temperature, {})
            return state, info.log_likelihood_increment

        begun = tempered.init(first_positions(name, first))
        begun = begun._replace(tempering_param=jnp.zeros(()))
        keys = jax.random.split(key, STAGES)
        return jax.lax.scan(stage, begun, (keys, jnp.asarray(TEMPERATURES, jnp.float32)))[1].sum()

    return run


def particles_peer(python: str, name: str, repeats: int) -> dict[str, Any]:
    x, y = data(name)
    problem = {
        "name": name,
        "x": np.asarray(x, float).tolist(),
        "y": np.asarray(y, float).tolist(),
        "num_particles": PARTICLES,
        "num_steps": STEPS,
        "temperatures": TEMPERATURES.tolist(),
        "repeats": repeats,
    }
    done = subprocess.run(
        [python, str(PEER)], input=json.dumps(problem), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def evidence(contender, name: str, num: int) -> tuple[float, float]:
    """The mean of log evidences, and its standard error."""
    run = jax.jit(contender)
    found = np.array([float(run(key, *data(name))) for key in jax.random.split(jax.random.key(7), num)])
    return float(found.mean()), float(found.std(ddof=1) / num**0.5)


def main(quick: bool = False, particles_python: str | None = None) -> None:
    print(f"  blackjax {blackjax.__version__}")
    cases, found, num = [], {}, 10 if quick else 40
    for name in PROBLEMS:
        contenders = {
            "ppl_ext": ours(name, fitted=False),
            "blackjax": blackjaxs(name),
            "ppl_ext fitted": ours(name, fitted=True),
        }
        cases.append(harness.Case(name, contenders, data(name)))
        found[name] = {who: evidence(contender, name, num) for who, contender in contenders.items()}
        for who, (mean, error) in found[name].items():
            print(f"  {name}: log evidence by {who} {mean:.3f} ± {error:.3f}", flush=True)
    report = harness.run(
        "smc",
        cases,
        [harness.Target("ppl_ext", "blackjax", "run", 0.9)],
        description=f"tempered SMC, {PARTICLES} particles, {STAGES} temperatures, {STEPS} steps at each",
        calls=100,
        warm_up=2 if quick else 5,
        compilations=1 if quick else 3,
        save=False,
    )
    report["log_evidence"] = found
    if particles_python is None:
        print("  particles: left out, no --particles-python")
    else:
        report["particles"] = {
            name: _beside_particles(particles_python, name, report["cases"][name], found[name], num)
            for name in PROBLEMS
        }
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "smc.json").write_text(json.dumps(report, indent=1) + "\n")


def _beside_particles(python: str, name: str, case, found, num: int) -> dict[str, Any]:
    theirs = particles_peer(python, name, max(5, num // 4))
    seconds, values = np.median(theirs["seconds"]), np.asarray(theirs["log_evidence"])
    mean, error = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    ratio = float(case["median_seconds"]["run"]["ppl_ext fitted"] / seconds)
    ours_mean, ours_error = found["ppl_ext fitted"]
    apart = abs(mean - ours_mean) / float(np.hypot(error, ours_error))
    print(f"  {name}: particles {seconds * 1e3:.1f} ms, log evidence {mean:.3f} ± {error:.3f}")
    aims = harness.verdicts(
        {
            f"{name}: ppl_ext fitted at most .1 of particles' time ({ratio:.3f})": ratio <= 0.1,
            f"{name}: evidence within 4.5 standard errors of particles' ({apart:.1f})": apart <= 4.5,
        }
    )
    return {"seconds": float(seconds), "ratio": ratio, "log_evidence": (mean, error), "aims": aims}
