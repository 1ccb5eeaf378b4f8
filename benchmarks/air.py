"""Attend, infer, repeat (Eslami et al. 2016): count, find and draw the digits of an image; every estimator of
one table on one problem.

Images are 24 by 24, with zero, one or two of scikit-learn's handwritten 8 by 8 digits. The model goes on
placing digits, up to three, while a coin says so: z_pres discrete, z_where and z_what continuous, a small
network draws what goes where. The guide looks at what the digits so far leave unexplained, decides whether
there is another, where it is, and encodes the crop there. Only the coins need a strategy other than
reparameterisation; the table of Becker et al. 2024 (section 7) varies theirs. ``TraceGraph_ELBO`` of NumPyro
stands in for Pyro, whose AIR uses its namesake. Everybody gets the same parameters to start from, batches,
optimiser and compiled loop over an epoch.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax, random
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import TraceGraph_ELBO

from benchmarks import harness
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO, IWELBO, ReweightedWakeSleep

CANVAS, PATCH, STEPS, WHAT, HIDDEN = 24, 8, 3, 8, 128
NOISE, PRESENT = 0.3, 0.5
BATCH = 64
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "air.png"
OBJECTIVES = {
    "score": ("score", ELBO()),
    "enumerate": ("enumerate", ELBO()),
    "measure-valued": ("measure_valued", ELBO()),
    "importance-weighted, score": ("score", IWELBO(2)),
    "importance-weighted, measure-valued": ("measure_valued", IWELBO(2)),
    "reweighted wake-sleep": (None, ReweightedWakeSleep(5)),
    "NumPyro TraceGraph_ELBO": (None, TraceGraph_ELBO()),
}
PAPER = {  # seconds per epoch of genjax.vi and of Pyro, on the paper's data and hardware
    "score": (1.5, 12.3),
    "enumerate": (6.2, 122.9),
    "measure-valued": (1.7, None),
    "importance-weighted, score": (2.3, None),
    "importance-weighted, measure-valued": (3.7, None),
}


def images(number: int, rng_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Canvases in [0, 1], and how many digits each has: they may touch, and do not overlap by more than two
    pixels.
    """
    from sklearn.datasets import load_digits

    digits, rng = load_digits().images / 16.0, np.random.default_rng(rng_seed)
    canvases, counts = np.zeros((number, CANVAS, CANVAS), np.float32), rng.integers(0, 3, number)
    for canvas, count in zip(canvases, counts, strict=True):
        corners: list[np.ndarray] = []
        while len(corners) < count:
            corner = rng.integers(0, CANVAS - PATCH + 1, 2)
            if all(np.abs(corner - other).max() >= PATCH - 2 for other in corners):
                corners.append(corner)
                i, j = corner
                window = canvas[i : i + PATCH, j : j + PATCH]
                np.maximum(window, digits[rng.integers(len(digits))], out=window)
    return canvases, counts


def network(name: str, sizes: tuple[int, ...], x, bias: tuple[float, ...] | float = 0.0):
    """A perceptron with tanh between its layers; ``bias`` starts its last one."""
    for layer, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        last = layer == len(sizes) - 2

        def weights(key, shape=(inputs, outputs), last=last):
            return (0.3 if last else 1.0) * random.normal(key, shape) / np.sqrt(shape[0])

        start = jnp.broadcast_to(jnp.asarray(bias, jnp.float32), (outputs,)) if last else jnp.zeros(outputs)
        x = x @ numpyro.param(f"{name}_w{layer}", weights) + numpyro.param(f"{name}_b{layer}", start)
        x = x if last else jnp.tanh(x)
    return x


def windows(where):
    """How a patch lies on each axis of the canvas, by linear interpolation: two arrays (images, canvas,
    patch).
    """
    corner = (CANVAS - PATCH) / 2 * (1 + where)
    at = corner[:, :, None, None] + jnp.arange(PATCH) - jnp.arange(CANVAS)[:, None]
    rows = jnp.maximum(0.0, 1 - jnp.abs(at))
    return rows[:, 0], rows[:, 1]


def drawn(where, what):
    rows, columns = windows(where)
    patch = jax.nn.sigmoid(network("decoder", (WHAT, HIDDEN, PATCH * PATCH), what, bias=-2.0)).reshape(
        -1, PATCH, PATCH
    )
    return jnp.einsum("nip,npq,njq->nij", rows, patch, columns)


def coin(step: int, probability):
    return 1.0 * numpyro.sample(f"pres_{step}", dist.Bernoulli(probability))


def normal(name: str, loc, scale, present):
    return numpyro.sample(name, dist.Normal(loc, scale).to_event(1).mask(present > 0))


def model(x):
    with numpyro.plate("images", len(x)):
        canvas, present = jnp.zeros(x.shape), jnp.ones(len(x))
        for step in range(STEPS):
            present = coin(step, PRESENT * present)
            where = normal(f"where_{step}", jnp.zeros((len(x), 2)), 0.6, present)
            what = normal(f"what_{step}", jnp.zeros((len(x), WHAT)), 1.0, present)
            canvas = canvas + present[:, None, None] * drawn(where, what)
        numpyro.sample("x", dist.Normal(canvas, NOISE).to_event(2), obs=x)


def guide(x):
    with numpyro.plate("images", len(x)):
        left, present = x, jnp.ones(len(x))
        for step in range(STEPS):
            seen = network(
                "look",
                (CANVAS * CANVAS, HIDDEN, 5),
                left.reshape(len(x), -1),
                bias=(2.0, 0.0, 0.0, -1.0, -1.0),
            )
            present = coin(step, 0.999 * jax.nn.sigmoid(seen[:, 0]) * present)
            where = normal(
                f"where_{step}", 1.2 * jnp.tanh(seen[:, 1:3]), jax.nn.softplus(seen[:, 3:]) + 1e-2, present
            )
            rows, columns = windows(where)
            crop = jnp.einsum("nip,nij,njq->npq", rows, left, columns).reshape(len(x), -1)
            code = network(
                "encoder", (PATCH * PATCH, HIDDEN, 2 * WHAT), crop, bias=(0.0,) * WHAT + (-1.0,) * WHAT
            )
            what = normal(f"what_{step}", code[:, :WHAT], jax.nn.softplus(code[:, WHAT:]) + 1e-2, present)
            left = left - present[:, None, None] * drawn(where, what)


def initial_params(x):
    sites = {}
    for k, program in enumerate((model, guide)):
        sites |= trace(seed(program, random.key(k))).get_trace(x[:2])
    return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}


def trainer(strategy: str | None, objective, optimizer):
    """One epoch, compiled: ``(key, (params, state), batches) -> ((params, state), mean loss per image)``."""
    guide_ = guide if strategy is None else gradient(guide, {"pres_*": strategy})

    def step(carry, inputs):
        params, state = carry
        key, x = inputs
        loss, grads = jax.value_and_grad(
            lambda params: objective.loss(key, params, model, guide_, x) / len(x)
        )(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    def epoch(key, carry, batches):
        carry, losses = lax.scan(step, carry, (random.split(key, len(batches)), batches))
        return carry, losses.mean()

    return jax.jit(epoch)


@jax.jit
def evaluate(key, params, x):
    """The ELBO per image, its coins included, and the guide's count for each image: the same for
    everybody.
    """
    counts = trace(seed(substitute(guide, params), random.key(0))).get_trace(x)
    present = sum(counts[f"pres_{step}"]["value"] for step in range(STEPS))
    losses = lax.map(
        lambda k: ELBO().loss(k, params, model, gradient(guide, {"pres_*": "score"}), x), random.split(key, 4)
    )
    return -losses.mean() / len(x), present


def main(quick: bool = False) -> None:
    # or the seconds of compilation would be those of reading a file
    jax.config.update("jax_enable_compilation_cache", False)
    train_size, test_size, epochs, every = (256, 128, 3, 1) if quick else (2048, 512, 60, 3)
    x, _ = images(train_size, 0)
    x_test, counts = images(test_size, 1)
    optimizer = optax.chain(optax.clip_by_global_norm(20.0), optax.adam(2e-3))
    start = initial_params(jnp.asarray(x))
    description = (
        f"{train_size} images, 0 to 2 digits on {CANVAS} by {CANVAS}, batches of {BATCH}, {epochs} epochs; "
        f"{test_size} test images"
    )
    report: dict[str, Any] = {
        "benchmark": "air",
        "description": description,
        **harness.environment(),
        "chance": 0.0,
        "estimators": {},
    }
    report["chance"] = round(float(max(np.mean(counts == k) for k in range(3))), 3)
    print(f"air: {description}\n")
    rng, names = np.random.default_rng(0), list(OBJECTIVES)
    epoch_fns, carries, curves = (
        {},
        {},
        {name: {"seconds": [], "epoch": [], "elbo": [], "count_accuracy": []} for name in names},
    )
    seconds: dict[str, list[float]] = {name: [] for name in names}
    batches = _batches(x, rng)
    for name, (strategy, objective) in OBJECTIVES.items():
        began = time.perf_counter()
        carries[name] = (start, optimizer.init(start))
        epoch_fns[name] = (
            trainer(strategy, objective, optimizer).lower(random.key(0), carries[name], batches).compile()
        )
        report["estimators"][name] = {"compile_seconds": round(time.perf_counter() - began, 2)}
    for epoch in range(epochs + 1):
        if epoch % every == 0:
            for name in names:
                elbo, count = evaluate(random.key(7), carries[name][0], jnp.asarray(x_test))
                curve = curves[name]
                curve["epoch"].append(epoch)
                curve["seconds"].append(round(sum(seconds[name]), 4))
                curve["elbo"].append(round(float(elbo), 2))
                curve["count_accuracy"].append(round(float(np.mean(np.asarray(count) == counts)), 4))
            _progress(epoch, curves)
        if epoch == epochs:
            break
        batches = _batches(x, rng)
        for name in rng.permutation(names):  # one epoch each, in random order: a busy machine is busy for all
            began = time.perf_counter()
            carries[name], loss = jax.block_until_ready(
                epoch_fns[name](random.fold_in(random.key(1), epoch), carries[name], batches)
            )
            seconds[name].append(time.perf_counter() - began)
            if not np.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss of epoch {epoch} is {loss}")
    reference = np.asarray(seconds["NumPyro TraceGraph_ELBO"])
    for name in names:
        ratio = harness.paired_ratio(np.asarray(seconds[name]), reference)
        curve, row = curves[name], report["estimators"][name]
        row |= {
            "seconds_per_epoch": float(f"{np.median(seconds[name]):.4g}"),
            "over_tracegraph": round(ratio.median, 3),
            "elbo_start": curve["elbo"][0],
            "elbo_end": curve["elbo"][-1],
            "count_accuracy": curve["count_accuracy"][-1],
            "paper_seconds_per_epoch": dict(
                zip(("genjax.vi", "Pyro"), PAPER.get(name, (None, None)), strict=True)
            ),
            "curve": curve,
        }
        print(
            f"  {name:<36} {row['seconds_per_epoch']:7.3f} s an epoch, {ratio.median:5.2f} of TraceGraph"
            f"   compile {row['compile_seconds']:5.1f} s"
            f"   ELBO {row['elbo_start']:8.1f} to {row['elbo_end']:7.1f}   counts right "
            f"{row['count_accuracy']:.2f}"
        )
    print(f"  counts right by chance: {report['chance']:.2f}\n")
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "air.json").write_text(json.dumps(report) + "\n")
        picture(report, carries["measure-valued"][0], x_test)


def _batches(x: np.ndarray, rng: np.random.Generator) -> jax.Array:
    order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
    return jnp.asarray(x[order].reshape(-1, BATCH, CANVAS, CANVAS))


def _progress(epoch: int, curves) -> None:
    print(
        f"  epoch {epoch:3d}  "
        + "  ".join(f"{c['elbo'][-1]:.0f} ({c['count_accuracy'][-1]:.2f})" for c in curves.values()),
        flush=True,
    )


def picture(report: dict[str, Any], params, x_test: np.ndarray, shown: int = 6) -> None:
    """The curves of all estimators, and what one of them sees in images it was not trained on."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    from PIL import Image

    figure = plt.figure(figsize=(10.5, 5.6), layout="constrained")
    grid = figure.add_gridspec(3, 2 * shown, height_ratios=(3.2, 1, 1))
    by_time, by_epoch = figure.add_subplot(grid[0, :shown]), figure.add_subplot(grid[0, shown:])
    colours = dict(
        zip(
            OBJECTIVES,
            ("#0072b2", "#009e73", "#d55e00", "#56b4e9", "#e69f00", "#cc79a7", "#444444"),
            strict=True,
        )
    )
    for name, row in report["estimators"].items():
        style = {"color": colours[name], "lw": 1.6, "ls": "--" if name.startswith("NumPyro") else "-"}
        by_time.plot(row["curve"]["seconds"][1:], row["curve"]["elbo"][1:], label=name, **style)
        by_epoch.plot(row["curve"]["epoch"], row["curve"]["count_accuracy"], **style)
    by_time.set(xlabel="seconds of training", ylabel="ELBO per test image", xscale="log")
    by_epoch.axhline(report["chance"], color="#999999", lw=0.8)
    by_epoch.set(xlabel="epoch", ylabel="test images counted right", ylim=(0, 1.02))
    by_time.legend(fontsize=7, frameon=False, loc="upper left")
    for axes in (by_time, by_epoch):
        axes.spines[["top", "right"]].set_visible(False)
    x = jnp.asarray(x_test[: 2 * shown])
    sites = trace(seed(substitute(guide, params), random.key(3))).get_trace(x)
    values = {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}
    replayed = trace(substitute(model, {**params, **values})).get_trace(x)
    mean = np.asarray(replayed["x"]["fn"].base_dist.loc)
    for k in range(2 * shown):
        seen, redrawn = figure.add_subplot(grid[1, k]), figure.add_subplot(grid[2, k])
        seen.imshow(x_test[k], cmap="gray_r", vmin=0, vmax=1)
        redrawn.imshow(mean[k], cmap="gray_r", vmin=0, vmax=1)
        for step, colour in zip(range(STEPS), ("#d55e00", "#0072b2", "#009e73"), strict=True):
            if values[f"pres_{step}"][k] > 0:
                i, j = (CANVAS - PATCH) / 2 * (1 + np.asarray(values[f"where_{step}"][k])) - 0.5
                seen.add_patch(Rectangle((j, i), PATCH, PATCH, fill=False, edgecolor=colour, lw=1.3))
        for axes, label in ((seen, "seen"), (redrawn, "redrawn")):
            axes.set(xticks=[], yticks=[], ylabel=label if k == 0 else "")
            axes.spines[:].set_color("#bbbbbb")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    plt.close(figure)
    Image.open(PICTURE).convert("RGB").quantize(64).save(PICTURE, optimize=True)  # a third of the size
