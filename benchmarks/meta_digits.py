"""Few-shot classification of digits: a Normal-Inverse-Wishart head and a prototypical network on the same
features, and MAML.

Scikit-learn's 1,797 digits of 8 by 8 pixels. A class is a digit turned by 0, 90, 180 or 270 degrees, as
few-shot papers make more classes of few; 6 digits train (24 classes), the 4 others test (16 classes, none
seen in training). 6 and 9, each the other turned round, are both in training. A task is 5 classes of these,
of which a new one shows 1 or 5 images each and asks for 15 more. All networks are 64-64-16 (tanh), and all
see the same tasks, as many steps of as many. The prototypical network (Snell, Swersky, Zemel 2017) is a
softmax of minus squared distances to class means, trained on tasks with as many shots as it is tested on. The
head takes the very features that this has trained, and only then learns: an episode is a class, its local
site the class's centre, and the hierarchy over the 24 classes learns how centres lie and how images scatter
around them; a new class is adapted to, and images go to classes by Bayes' rule. (With scatter and spread of
centres isotropic, and the latter infinite, that is the prototypical network.) The regression head learns
features of its own: its hierarchy sees whole tasks without any split, their classes as one-hot targets. MAML
(Finn, Abbeel, Levine 2017) makes 5 steps of gradient descent of 0.1 inside. Few steps, a small rate and noise
on the pixels in training, for all alike: 24 classes are few.
"""

import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.special import logsumexp
from sklearn.datasets import load_digits
from tqdm import tqdm

from benchmarks import harness
from ppl_ext.meta import NIW, EpisodeStream, ExactLinearGaussian, SimulatedStream, head, lift
from ppl_ext.meta.adapt import adapted, scale_nodes
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.scores import expected_calibration_error

TRAIN, TEST = (0, 1, 2, 6, 8, 9), (3, 4, 5, 7)
WAYS, QUERIES, HIDDEN, WIDTH = 5, 15, 64, 16
TASKS_A_STEP, MAML_STEPS, MAML_RATE = 8, 5, 0.1
RATE, SPECKLE, DRAWS, STEPS_OF_CLASSES = 1e-3, 0.2, 200, 300


def images(digits) -> np.ndarray:
    """(class, image, 64): as many images of each class as the rarest digit has."""
    data = load_digits()
    pixels = (data.images / 16.0 - 0.3).astype(np.float32)
    count = min(int((data.target == d).sum()) for d in digits)
    turned = [np.rot90(pixels[data.target == d][:count], k, (1, 2)) for d in digits for k in range(4)]
    return np.stack(turned).reshape(4 * len(digits), count, 64)


def task(pool: jax.Array, key, per_class: int, speckle: float = 0.0):
    """Images (way, per_class, 64) of different classes, with so much noise on the pixels."""
    of_class, of_image, of_noise = jax.random.split(key, 3)
    chosen = jax.random.choice(of_class, pool.shape[0], (WAYS,), replace=False)
    pick = jax.vmap(lambda k: jax.random.choice(k, pool.shape[1], (per_class,), replace=False))(
        jax.random.split(of_image, WAYS)
    )
    images = pool[chosen[:, None], pick]
    return images + speckle * jax.random.normal(of_noise, images.shape)


def flat(x):
    """Rows and labels of a task's images."""
    return x.reshape(-1, 64), jnp.repeat(jnp.arange(WAYS), x.shape[1])


def initial(key):
    a, b = jax.random.split(key)
    w1, w2 = jax.random.normal(a, (64, HIDDEN)) / 4, jax.random.normal(b, (HIDDEN, WIDTH)) / np.sqrt(HIDDEN)
    return {"w1": w1, "b1": jnp.zeros(HIDDEN), "w2": w2, "b2": jnp.zeros(WIDTH)}


def features(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])


def cross_entropy(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def trained(p, loss, pool, shots, steps, seed):
    """Adam over tasks; ``loss(p, support, query)`` takes images by class."""
    optim = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def step(p, state, key):
        tasks = jax.vmap(lambda k: task(pool, k, shots + QUERIES, SPECKLE))(
            jax.random.split(key, TASKS_A_STEP)
        )
        value, grads = jax.value_and_grad(
            lambda p: jax.vmap(lambda t: loss(p, t[:, :shots], t[:, shots:]))(tasks).mean()
        )(p)
        updates, state = optim.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    state = optim.init(p)
    for i in range(steps):
        p, state, _ = step(p, state, jax.random.fold_in(jax.random.key(seed), i))
    return p


# --- contenders: each returns a function from (support, query) images by class to probabilities of the
# queries' rows


def centres(pool, shots, steps, seed):
    """A class is an episode: its images' features are Gaussian around a centre of its own, with a covariance
    that all classes share.
    """
    p = prototypical_features(pool, shots, steps, seed)
    # (class, image, WIDTH)
    found = np.asarray(features(p, pool + SPECKLE * jax.random.normal(jax.random.key(seed), pool.shape)))
    around = found - found.mean(1, keepdims=True)
    scatter = np.einsum("cni,cnj->ij", around, around) / (found.shape[0] * (found.shape[1] - 1))

    def one_class(f):
        centre = numpyro.sample("centre", dist.Normal(jnp.zeros(WIDTH), 1.0).to_event(1))
        scale = numpyro.param(
            "scale", jnp.asarray(np.linalg.cholesky(scatter)), constraint=dist.constraints.lower_cholesky
        )
        with numpyro.plate("images", f.shape[0]):
            numpyro.sample("f", dist.MultivariateNormal(centre, scale_tril=scale), obs=f)

    fit = lift(one_class, local=["centre"]).fit(
        jax.random.key(seed),
        EpisodeStream.from_arrays(found),
        local_solver=ExactLinearGaussian(),
        optim=optax.adam(3e-3),
        num_steps=STEPS_OF_CLASSES,
        progress_bar=False,
    )
    nodes = scale_nodes(fit.niw, 16, jax.random.key(0))
    within = fit.shared["scale"] @ fit.shared["scale"].T

    def log_density(seen, asked):
        """Of each row asked, given a class's rows: a mixture of Gaussians, as is the posterior of its
        centre.
        """
        loss = EpisodeLoss(fit.hierarchy.form, fit.state.shared, (seen,), {})
        law = adapted(loss, fit.niw, fit.solver, jax.random.key(0), nodes)
        roots = jnp.linalg.cholesky(law.covariances + within)
        log_p = dist.MultivariateNormal(law.means[:, None], scale_tril=roots[:, None]).log_prob(asked)
        return logsumexp(log_p + jnp.log(law.weights)[:, None], axis=0)

    def predict(support, query):
        asked = features(p, flat(query)[0])
        return jax.nn.softmax(jax.vmap(log_density, in_axes=(0, None))(features(p, support), asked).T)

    return predict


def regression_head(pool, shots, steps, seed):
    """One-hot targets as real numbers, so that a task is linear and Gaussian and its posterior exact.

    The probability of a class is that of its target among those of all classes:
    :math:`p(e_c) / \\sum_k p(e_k)`, p averaged over draws.
    """
    start = initial(jax.random.key(seed))
    targets = jnp.eye(WAYS) - 1 / WAYS

    def episode(x, target=None):
        net = {name: numpyro.param(name, value) for name, value in start.items()}
        noise = numpyro.param("noise", 0.3, constraint=dist.constraints.positive)
        f = head("weights", features(net, x), num_outputs=WAYS)
        with numpyro.plate("images", x.shape[0]):
            numpyro.sample("target", dist.Normal(f, noise).to_event(1), obs=target)

    def whole(key):
        x, y = flat(task(pool, key, shots + QUERIES, SPECKLE))
        return x, targets[y]

    d = WAYS * (WIDTH + 1)
    fit = lift(
        episode,
        local=["weights"],
        num_episodes=10_000,
        prior=NIW(jnp.zeros(d), 0.01, (d + 2) * jnp.eye(d), d + 2.0),
    ).fit(
        jax.random.key(seed),
        SimulatedStream(whole),
        local_solver=ExactLinearGaussian(),
        optim=optax.adam(optax.cosine_decay_schedule(RATE, steps)),
        num_steps=steps,
        batch_size=TASKS_A_STEP,
        num_draws=4,
        rate=lambda step: jnp.maximum(0.05 * (1 - step / steps), 2e-3),
        progress_bar=False,
    )
    nodes = scale_nodes(fit.niw, 16, jax.random.key(0))

    def predict(support, query):
        x, y = flat(support)
        loss = EpisodeLoss(fit.hierarchy.form, fit.state.shared, (x, targets[y]), {})
        theta = adapted(loss, fit.niw, fit.solver, jax.random.key(0), nodes).draw(jax.random.key(1), DRAWS)
        weights = theta.reshape(DRAWS, WIDTH + 1, WAYS)
        f = features(fit.shared, flat(query)[0]) @ weights[:, :-1] + weights[:, -1:]
        log_p = -0.5 * ((f[:, :, None] - targets) ** 2).sum(-1) / fit.shared["noise"] ** 2
        return jax.nn.softmax(logsumexp(log_p, axis=0))

    return predict


def distances(p, support, query):
    """Minus squared distances to class means: (row of the query, class)."""
    return -((features(p, flat(query)[0])[:, None] - features(p, support).mean(1)) ** 2).sum(-1)


def prototypical_features(pool, shots, steps, seed):
    def loss(p, support, query):
        return cross_entropy(distances(p, support, query), flat(query)[1])

    return trained(initial(jax.random.key(seed)), loss, pool, shots, steps, seed)


def prototypical(pool, shots, steps, seed):
    p = prototypical_features(pool, shots, steps, seed)
    return lambda support, query: jax.nn.softmax(distances(p, support, query))


def maml(pool, shots, steps, seed, second_order):
    def outputs(p, x):
        return features(p, x) @ p["out"] + p["out_b"]

    def inner(p, support):
        x, y = flat(support)

        def descend(p, _):
            slope = jax.grad(lambda p: cross_entropy(outputs(p, x), y))(p)
            slope = slope if second_order else jax.lax.stop_gradient(slope)
            return jax.tree.map(lambda w, g: w - MAML_RATE * g, p, slope), None

        return jax.lax.scan(descend, p, None, length=MAML_STEPS)[0]

    def loss(p, support, query):
        x, y = flat(query)
        return cross_entropy(outputs(inner(p, support), x), y)

    start = initial(jax.random.key(seed)) | {"out": jnp.zeros((WIDTH, WAYS)), "out_b": jnp.zeros(WAYS)}
    p = trained(start, loss, pool, shots, steps, seed)
    return lambda support, query: jax.nn.softmax(outputs(inner(p, support), flat(query)[0]))


CONTENDERS = {
    "head": centres,
    "prototypical": prototypical,
    "regression head": regression_head,
    "MAML": partial(maml, second_order=True),
    "first-order MAML": partial(maml, second_order=False),
}


def judged(predict, pool, shots, num_tasks) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy, calibration error over all queries together, mean negative log likelihood; and each task's
    accuracy.
    """

    def one(key):
        images = task(pool, key, shots + QUERIES)
        probs, y = predict(images[:, :shots], images[:, shots:]), flat(images[:, shots:])[1]
        return (
            probs.max(-1),
            probs.argmax(-1) == y,
            -jnp.log(jnp.take_along_axis(probs, y[:, None], 1)).mean(),
        )

    confidence, correct, nll = map(
        np.asarray, jax.lax.map(jax.jit(one), jax.random.split(jax.random.key(99), num_tasks))
    )
    ece = expected_calibration_error(confidence.ravel(), correct.ravel())
    return {"accuracy": float(correct.mean()), "ece": ece, "nll": float(nll.mean())}, correct.mean(1)


def figures(x) -> dict[str, float | None]:
    """A mean and its standard error, of one figure a seed or a task."""
    x = np.asarray(x)
    return {
        "mean": round(float(x.mean()), 4),
        "se": round(float(x.std(ddof=1) / len(x) ** 0.5), 4) if len(x) > 1 else None,
    }


def main(quick: bool = False) -> None:
    steps, seeds, tasks = (30, 1, 50) if quick else (300, 3, 2_000)
    description = (
        f"digits and their rotations, {WAYS} ways, {steps} steps of {TASKS_A_STEP} tasks, {tasks} new "
        f"tasks, {seeds} seeds"
    )
    print(f"meta_digits: {description}\n")
    seen, unseen = jnp.asarray(images(TRAIN)), jnp.asarray(images(TEST))
    report = {
        "benchmark": "meta_digits",
        "description": description,
        **harness.environment(),
        "shots": {},
        "head_over_prototypical": {},
    }
    aims = {}
    for shots in (1, 5):
        print(f"{shots}-shot")
        table, by_task = {}, {}
        for name, make in tqdm(CONTENDERS.items(), desc=f"{shots}-shot", disable=quick):
            runs, of_tasks = [], []
            for seed in range(seeds):
                begun = time.perf_counter()
                row, accuracies = judged(make(seen, shots, steps, seed), unseen, shots, tasks)
                runs.append(row | {"seconds": time.perf_counter() - begun})
                of_tasks.append(accuracies)
            table[name], by_task[name] = (
                {column: figures([r[column] for r in runs]) for column in runs[0]},
                np.array(of_tasks),
            )
            line = (
                f"{c} {v['mean']:.3f}" + (f" ± {v['se']:.3f}" if v["se"] is not None else "")
                for c, v in table[name].items()
            )
            print(f"  {name:<18} " + "   ".join(line), flush=True)
        # The same tasks for both, so their difference is much surer than either.
        gain = figures((by_task["head"] - by_task["prototypical"]).mean(0))
        print(
            f"  head over prototypical: accuracy {gain['mean']:+.4f} ± {gain['se']:.4f} (over {tasks} "
            "tasks, paired)"
        )
        report["shots"][str(shots)], report["head_over_prototypical"][str(shots)] = table, gain
        aims[f"{shots}-shot accuracy at least the prototypical network's"] = gain["mean"] >= 0
        least = min(table[name]["ece"]["mean"] for name in ("MAML", "first-order MAML"))
        aims[f"{shots}-shot calibration error below MAML's, of either order"] = (
            table["head"]["ece"]["mean"] < least
        )
    report["aims"] = harness.verdicts(aims)
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "meta_digits.json").write_text(json.dumps(report, indent=1) + "\n")
