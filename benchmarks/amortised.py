"""A network that is fitted to a prior, beside NUTS: predictions for many new data sets of 20 points.

The prior is the Gaussian process of ``tutorials/papers/prior_fitted.py``, whose predictive is known, so that
the accuracy of both is a number: the divergence from the exact predictive. NUTS draws the 24 weights of the
process; its predictive is the mean over draws of the normal given the weights, which needs few draws. It gets
the cheapest of several lengths that is as accurate as is asked of the network. It runs for all data sets at
once, under ``vmap``, and, as people mostly do, for one after the other: a few of them, the rest by
proportion. Compilation is apart.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from benchmarks import harness
from tools.papers import PROGRAMS, loaded

ACCURACY, FASTER = 0.02, 500.0
LENGTHS = ((20, 10), (30, 15), (50, 25), (50, 50), (100, 100), (200, 200), (500, 500))
"""Of NUTS, from cheap to dear: warm-up and draws."""

program = loaded(PROGRAMS / "prior_fitted.py")


def model(x, y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([24]).to_event(1))
    numpyro.sample("y", dist.Normal(program.basis(x) @ weights, program.NOISE).to_event(1), obs=y)


def by_nuts(num_warmup: int, num_samples: int):
    """(key, x, y) to draws of the weights, for ``jit`` and ``vmap``."""

    def run(key, x, y):
        mcmc = MCMC(NUTS(model), num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.run(key, x, y)
        return mcmc.get_samples()["weights"]

    return run


def timed(fn, *args, repeats: int = 1) -> tuple[float, float, object]:
    """Seconds of the first call over those of a later one, of the median later call, and what it returned."""
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    first, later = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        found = jax.block_until_ready(fn(*args))
        later.append(time.perf_counter() - start)
    median = float(np.median(later))
    return max(first - median, 0.0), median, found


def divergence_of_draws(weights, x_new, mean, sd) -> np.ndarray:
    """From the exact predictive, of the mean over draws of the normal given the weights: by quadrature."""
    nodes, share = np.polynomial.hermite_e.hermegauss(40)
    at = mean[:, None] + sd[:, None] * nodes
    f = np.einsum("nsj,nj->ns", np.asarray(weights, float), np.asarray(program.basis(x_new), float))
    log_prob = np.asarray(dist.Normal(f[:, :, None], program.NOISE).log_prob(at[:, None]), float)
    said = np.logaddexp.reduce(log_prob, axis=1) - np.log(f.shape[1])
    return -np.log(sd * np.sqrt(2.0 * np.pi * np.e)) - said @ share / share.sum()


def beside(x, y, x_new, mean, sd, singles: int) -> dict:
    """The cheapest NUTS that is accurate enough, and its seconds for all data sets."""
    keys = jax.random.split(jax.random.key(0), len(x))
    for num_warmup, num_samples in LENGTHS:
        run = by_nuts(num_warmup, num_samples)
        compile_seconds, seconds, weights = timed(jax.jit(jax.vmap(run)), keys, x, y)
        gaps = divergence_of_draws(weights, x_new, mean, sd)
        found = {"warmup": num_warmup, "draws": num_samples, **summary(gaps)}
        print(
            f"NUTS, {num_warmup} + {num_samples}: KL {found['kl']:.4f}, {seconds:.2f} s at once", flush=True
        )
        if found["kl"] <= ACCURACY:
            break
    one = jax.jit(run)
    jax.block_until_ready(one(keys[0], x[0], y[0]))
    start = time.perf_counter()
    for k in range(singles):
        jax.block_until_ready(one(keys[k], x[k], y[k]))
    each = (time.perf_counter() - start) / singles
    found |= {"compile_seconds": compile_seconds, "seconds_at_once": seconds}
    return found | {"seconds_in_turn": each * len(x), "measured_in_turn": singles}


def summary(gaps: np.ndarray) -> dict[str, float]:
    return {"kl": float(gaps.mean()), "kl_standard_error": float(gaps.std(ddof=1) / len(gaps) ** 0.5)}


def main(quick: bool = False) -> None:
    num, num_steps, seeds = (50, 600, (0,)) if quick else (1000, 4000, (0, 1, 2))
    data = program.data_sets(np.random.default_rng(5), num, program.ROWS)
    x, y, x_new = (jnp.asarray(a, jnp.float32) for a in data[:3])
    networks = []
    for seed in seeds:
        start = time.perf_counter()
        guide, run = program.fitted(num_steps, seed=seed)
        training = time.perf_counter() - start

        def law(x, y, x_new, guide=guide, run=run):
            said = guide.laws(run, x=x, y=y, x_new=x_new)["y_new"]
            return said.mixing_distribution.probs, said.component_distribution.loc, said.variance

        compile_seconds, seconds, _ = timed(jax.jit(jax.vmap(law)), x, y, x_new, repeats=20)
        found = summary(program.divergences(guide, run, num, program.ROWS, seed=5))
        networks.append(
            found | {"training": training, "compile_seconds": compile_seconds, "seconds": seconds}
        )
        print(f"network, seed {seed}: {networks[-1]}", flush=True)
    nuts = beside(x, y, *data[2:], singles=5 if quick else 20)
    kl = np.array([found["kl"] for found in networks])
    ours = float(np.median([found["seconds"] for found in networks]))
    error = float(kl.std(ddof=1) / len(kl) ** 0.5) if len(kl) > 1 else networks[0]["kl_standard_error"]
    aims = {
        "KL of the network, nats a point": (float(kl.mean()), ACCURACY),
        "NUTS one after the other, times as long": (nuts["seconds_in_turn"] / ours, -FASTER),
        "NUTS all at once, times as long": (nuts["seconds_at_once"] / ours, -FASTER),
    }
    report = {
        "benchmark": "amortised",
        "description": f"predictions for {num:,} new data sets of {program.ROWS} points",
        **harness.environment(),
        "networks": networks,
        "kl_standard_error_over_seeds": error,
        "nuts": nuts,
        "aims": {
            name: {
                "ratio": value,
                "aim": aim,
                "verdict": "met" if (value <= aim if aim > 0.0 else value >= -aim) else "missed",
            }
            for name, (value, aim) in aims.items()
        },
    }
    for name, row in report["aims"].items():
        print(f"  {name}: {row['ratio']:.4g} (aim {row['aim']:g}): {row['verdict']}")
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "amortised.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
