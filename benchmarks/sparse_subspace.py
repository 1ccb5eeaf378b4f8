"""Steps of a mean-field guide of a network that holds a twentieth of its weights, beside one that holds all.

``SparseSubspace`` and NumPyro's ``AutoNormal``, both in ``fit`` with the same optimiser: 64-100-10 on
minibatches of 128. Exchanges of weights, one in fifty steps, are in the time.
"""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer.autoguide import AutoNormal

from benchmarks import harness
from ppl_ext.infer import SparseSubspace, fit
from ppl_ext.objectives import ELBO

INPUTS, HIDDEN, CLASSES, ROWS, BATCH, DENSITY, AIM = 64, 100, 10, 1200, 128, 0.05, 1.3
WEIGHTS = INPUTS * HIDDEN + HIDDEN * CLASSES


def network(x, y):
    w1 = numpyro.sample("w1", dist.Normal(0.0, 0.3).expand([INPUTS, HIDDEN]).to_event(2))
    w2 = numpyro.sample("w2", dist.Normal(0.0, 0.3).expand([HIDDEN, CLASSES]).to_event(2))
    with numpyro.plate("rows", ROWS, subsample_size=BATCH):
        x, y = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Categorical(logits=jax.nn.relu(x @ w1) @ w2), obs=y)


def main(quick: bool = False) -> None:
    num_steps, rounds = (500, 3) if quick else (2000, 15)
    description = f"{num_steps} Adam steps of the ELBO of a network of {WEIGHTS:,} weights"
    print(f"sparse_subspace: {description}\n")
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(ROWS, INPUTS))), jnp.asarray(rng.integers(CLASSES, size=ROWS))
    num_active = int(DENSITY * WEIGHTS)
    sparse = SparseSubspace(network, ["w1", "w2"], num_active, every=50, num_exchanges=num_steps // 50)
    guides = {"dense": AutoNormal(network), "sparse": sparse}
    objective, optim = ELBO(), optax.adam(1e-3)
    times: dict[str, list[float]] = {name: [] for name in guides}
    held = {}
    for r in range(-1, rounds):
        for name in random.Random(r).sample(list(guides), 2):
            args = network, guides[name], objective, optim, num_steps, *data
            run = fit(jax.random.key(r + 1), *args, progress_bar=False)
            if r < 0:  # which compiles
                held[name] = sum(np.size(p) for p in run.params.values() if not isinstance(p, dict))
            else:
                times[name].append(run.run_seconds)
    ratio = harness.paired_ratio(np.array(times["sparse"]), np.array(times["dense"]))
    numbers = held["sparse"] / num_active
    for name in guides:
        micro = np.median(times[name]) / num_steps * 1e6
        print(f"  {name:<7} {micro:8.1f} microseconds a step, {held[name]:6d} numbers held")
    aims = {
        "step: sparse / dense": {"ratio": round(ratio.median, 3), "aim": AIM, "verdict": ratio.verdict(AIM)},
        "numbers held for an active weight": {
            "ratio": numbers,
            "aim": 2.2,
            "verdict": "met" if numbers <= 2.2 else "missed",
        },
    }
    for name, found in aims.items():
        print(f"  {name}: {found['ratio']:.3f}, aim {found['aim']:g}: {found['verdict']}", flush=True)
    if quick:
        return
    report = {
        "benchmark": "sparse_subspace",
        "description": description,
        "rounds": rounds,
        **harness.environment(),
        "microseconds": {name: round(float(np.median(t)) / num_steps * 1e6, 1) for name, t in times.items()},
        "held": held,
        "aims": aims,
        "quartiles": [round(q, 3) for q in ratio.quartiles],
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "sparse_subspace.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
