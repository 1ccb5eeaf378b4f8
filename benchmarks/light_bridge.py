"""Four thousand steps of a light Schrödinger bridge in eight dimensions, by ``fit`` and by hand.

By hand: the same loss in plain JAX, optax, and ``lax.fori_loop``, compiled once. Both see 512 rows of each
sample a step. "Call" is a whole second call, set-up and checks included; "steps" the steps alone.
"""

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from benchmarks import harness
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.transport import light_sb

DIM, COMPONENTS, ROWS, BATCH, EPSILON, AIM = 8, 10, 50_000, 512, 1.0, 1.1


def samples():
    """A normal sample, and one of three clusters."""
    rng = np.random.default_rng(0)
    centers = 2.0 * rng.normal(size=(3, DIM))
    ends = centers[rng.integers(3, size=ROWS)] + 0.5 * rng.normal(size=(ROWS, DIM))
    return jnp.asarray(rng.normal(size=(ROWS, DIM))), jnp.asarray(ends)


def no_guide(starts, ends):
    """There is nothing to guide."""


def by_hand(num_steps: int) -> Callable:
    """The loop, from a key to the losses."""
    optim = optax.adam(1e-2)
    to_root = dist.transforms.LowerCholeskyTransform()

    def loss(params, x, y):
        log_weights, centers, raw = params
        roots = to_root(raw)
        # the inverses of ten small matrices, and products with all rows at once
        inverses = jax.scipy.linalg.solve_triangular(
            roots, jnp.broadcast_to(jnp.eye(DIM), roots.shape), lower=True
        )
        scaled = jnp.einsum("kij,kj->ki", inverses, centers)
        of_start = jnp.einsum("kij,ni->nkj", roots, x) + scaled
        squares = (of_start**2).sum(-1) - (scaled**2).sum(-1)
        log_c = jax.nn.logsumexp(log_weights + squares / (2 * EPSILON), axis=-1)
        off = jnp.einsum("kij,nj->nki", inverses, y) - scaled
        log_det = jnp.log(jnp.diagonal(roots, axis1=-2, axis2=-1)).sum(-1)
        each = log_weights - (off**2).sum(-1) / (2 * EPSILON) - log_det
        log_v = jax.nn.logsumexp(each, axis=-1) - DIM / 2 * jnp.log(2 * jnp.pi * EPSILON)
        return log_c.mean() - log_v.mean()

    @jax.jit
    def loop(key, starts, ends):
        of_start, key = jax.random.split(key)
        centers = jax.random.choice(of_start, ends, (COMPONENTS,), replace=False)
        raw = jnp.broadcast_to(to_root.inv(jnp.eye(DIM)), (COMPONENTS, DIM * (DIM + 1) // 2))
        params = (jnp.zeros(COMPONENTS), centers, raw)

        def step(i, carry):
            params, state, losses = carry
            keys = jax.random.split(jax.random.fold_in(key, i))
            batch = [
                x[jax.random.randint(k, (BATCH,), 0, len(x))]
                for k, x in zip(keys, (starts, ends), strict=True)
            ]
            value, slopes = jax.value_and_grad(loss)(params, *batch)
            updates, state = optim.update(slopes, state)
            return optax.apply_updates(params, updates), state, losses.at[i].set(value)

        start = params, optim.init(params), jnp.zeros(num_steps)
        return jax.lax.fori_loop(0, num_steps, step, start)[2]

    return loop


def contenders(num_steps: int) -> dict[str, Callable[[jax.Array], tuple[float, float, float]]]:
    """Each runs once from a key and returns (seconds of the call, of the steps, last tenth's loss)."""
    data, loop = samples(), by_hand(num_steps)
    model = light_sb(epsilon=EPSILON, num_components=COMPONENTS, batch_size=BATCH)
    optim, objective = optax.adam(1e-2), ELBO()

    def ours(key):
        start = time.perf_counter()
        run = fit(key, model, no_guide, objective, optim, num_steps, *data, progress_bar=False)
        seconds = time.perf_counter() - start
        return seconds, run.run_seconds, float(run.losses[:, -num_steps // 10 :].mean())

    def hand(key):
        start = time.perf_counter()
        losses = np.asarray(loop(key, *data))
        seconds = time.perf_counter() - start
        return seconds, seconds, float(losses[-num_steps // 10 :].mean())

    return {"by hand": hand, "ppl_ext": ours}


def main(quick: bool = False) -> None:
    num_steps, rounds = (1000, 3) if quick else (4000, 9)
    description = f"{num_steps} Adam steps, d = {DIM}, {COMPONENTS} components, batches of {BATCH}"
    print(f"light_bridge: {description}\n")
    runs = contenders(num_steps)
    first = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run(jax.random.key(0))
        first[name] = time.perf_counter() - start
    call, loop, loss = harness.by_turns(runs, rounds)
    apart = abs(loss["ppl_ext"].mean() - loss["by hand"].mean())
    if apart > 0.1 + 5 * (loss["by hand"].std(ddof=1) + loss["ppl_ext"].std(ddof=1)):
        raise AssertionError(f"the contenders do not do the same work: losses {loss}")
    ratios = {
        "steps: ppl_ext / by hand": harness.paired_ratio(loop["ppl_ext"], loop["by hand"]),
        "call: ppl_ext / by hand": harness.paired_ratio(call["ppl_ext"], call["by hand"]),
    }
    for name in runs:
        print(f"  {name:<8} call {np.median(call[name]):7.3f} s   first call {first[name]:7.3f} s")
    for name, ratio in ratios.items():
        low, high = ratio.quartiles
        told = f"(quartiles {low:.3f} to {high:.3f})   aim {AIM:g}  {ratio.verdict(AIM)}"
        print(f"  {name:<24} {ratio.median:6.3f}  {told}", flush=True)
    if quick:
        return
    report = {
        "benchmark": "light_bridge",
        "description": description,
        "rounds": rounds,
        **harness.environment(),
        "first_call_seconds": {name: round(s, 3) for name, s in first.items()},
        "median_seconds": {name: round(float(np.median(call[name])), 4) for name in runs},
        "ratios": {
            name: {"median": round(r.median, 4), "quartiles": [round(q, 4) for q in r.quartiles]}
            for name, r in ratios.items()
        },
    }
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "light_bridge.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
