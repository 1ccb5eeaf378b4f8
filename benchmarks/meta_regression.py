"""Few-shot regression of half sines and half lines: a Normal-Inverse-Wishart head, MAML of first and second
order, a neural process.

The task of Kim and Hospedales 2024: A sin(x + φ) with A in [0.1, 5] and φ in [0, π], or a line with slope and
intercept in [-3, 3]; noise 0.3, 50 points on [-5, 5], of which a new episode shows 5. All contenders have the
network 1-40-40-1, see the same stream of episodes, and are judged on the other 45 points of the same 1,000
new ones: mean squared error, negative log likelihood, coverage of the 90 % interval. The head has one law
over its weights, so it can be no better than the Gaussian process with the true mean and covariance of such
episodes, which stands beside it; with ``kinds`` it has two laws, told apart from 500 episodes of which nobody
says what they are. MAML (Finn, Abbeel, Levine 2017) gets the wall time that the head took, the kinds
included, 5 steps of gradient descent of 0.01 inside, Adam outside, and the root mean square error of its
training queries as its predictive sd. The neural process (``benchmarks/peers``) gets the same wall time, too.
Memory is what XLA plans for the temporaries of one meta-gradient.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.special import logsumexp
from tqdm import tqdm

from benchmarks import harness
from benchmarks.peers import neural_process as peer
from ppl_ext.meta import EpisodeStream, ExactLinearGaussian, SimulatedStream, kinds, lift
from ppl_ext.meta.adapt import adapted, scale_nodes
from ppl_ext.meta.distributions.mixtures import Mixture
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.fitted import MetaFit

HIDDEN, POINTS, SUPPORT, NOISE = 40, 50, 5, 0.3
EPISODES_A_STEP, MAML_STEPS, MAML_RATE = 20, 5, 0.01
Score = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]
OURS = "head, two kinds"
AIMS: dict[str, Any] = {"mse": 0.6, "nll": 0.9, "coverage": (0.87, 0.93)}


def episode_data(key):
    of_x, of_size, of_phase, of_line, of_kind, of_noise = jax.random.split(key, 6)
    x = jax.random.uniform(of_x, (POINTS,), minval=-5.0, maxval=5.0)
    sine = jax.random.uniform(of_size, minval=0.1, maxval=5.0) * jnp.sin(
        x + jax.random.uniform(of_phase, maxval=jnp.pi)
    )
    slope, intercept = jax.random.uniform(of_line, (2,), minval=-3.0, maxval=3.0)
    y = jnp.where(jax.random.bernoulli(of_kind), sine, slope * x + intercept)
    return x, y + NOISE * jax.random.normal(of_noise, (POINTS,))


def initial(key):
    of_in, of_offset, of_hidden = jax.random.split(key, 3)
    return {
        "w1": jax.random.normal(of_in, (1, HIDDEN)),
        "b1": jax.random.uniform(of_offset, (HIDDEN,), minval=-3.0, maxval=3.0),
        "w2": jax.random.normal(of_hidden, (HIDDEN, HIDDEN)) / jnp.sqrt(HIDDEN),
        "b2": jnp.zeros(HIDDEN),
    }


def features(p, x):
    hidden = jnp.tanh(jnp.tanh(x[:, None] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
    return jnp.concatenate([hidden, jnp.ones((x.shape[0], 1))], axis=1)


def scores(mean, sd, log_weights, y):
    """Error, negative log likelihood and coverage of a mixture of Gaussians, components first."""
    weights = jnp.exp(log_weights)[:, None]
    centre = (weights * mean).sum(0)
    log_p = logsumexp(dist.Normal(mean, sd).log_prob(y) + log_weights[:, None], axis=0)
    below = (weights * dist.Normal(mean, sd).cdf(y)).sum(0)
    return {
        "mse": jnp.mean((centre - y) ** 2),
        "nll": -log_p.mean(),
        "coverage": jnp.mean((below > 0.05) & (below < 0.95)),
    }


# --- ours


def head(seed: int, steps: int):
    """Train, and return the fit and the seconds it took."""
    start = initial(jax.random.key(seed))

    def episode(x, y=None):
        net = {name: numpyro.param(name, value) for name, value in start.items()}
        noise = numpyro.param("noise", 0.5, constraint=dist.constraints.positive)
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(HIDDEN + 1), 1.0).to_event(1))
        with numpyro.plate("points", x.shape[0]):
            numpyro.sample("y", dist.Normal(features(net, x) @ weights, noise), obs=y)

    begun = time.perf_counter()
    fit = lift(episode, local=["weights"], num_episodes=20_000).fit(
        jax.random.key(seed),
        SimulatedStream(episode_data),
        local_solver=ExactLinearGaussian(),
        optim=optax.adam(optax.cosine_decay_schedule(3e-3, steps)),
        num_steps=steps,
        batch_size=EPISODES_A_STEP,
        rate=lambda step: jnp.maximum(0.02 * (1 - step / steps), 1e-3),
    )
    return fit, time.perf_counter() - begun


def of_head(fit: MetaFit, law: Callable[[EpisodeLoss], Mixture]) -> Score:
    """Scores of one episode, whose weights have the law that is found for its support."""

    def score(x, y):
        mixture = law(EpisodeLoss(fit.hierarchy.form, fit.state.shared, (x[:SUPPORT], y[:SUPPORT]), {}))
        phi = features(fit.shared, x[SUPPORT:])
        variance = jnp.einsum("ni,kij,nj->kn", phi, mixture.covariances, phi) + fit.shared["noise"] ** 2
        return scores(mixture.means @ phi.T, jnp.sqrt(variance), jnp.log(mixture.weights), y[SUPPORT:])

    return score


def one_law(fit: MetaFit) -> Score:
    nodes = scale_nodes(fit.niw, 64, jax.random.key(0))
    return of_head(fit, lambda loss: adapted(loss, fit.niw, fit.solver, jax.random.key(0), nodes))


def two_laws(fit: MetaFit, seed: int, episodes: int) -> tuple[Score, float]:
    begun = time.perf_counter()
    stream = EpisodeStream.from_arrays(
        *jax.vmap(episode_data)(jax.random.split(jax.random.key(1000 + seed), episodes))
    )
    two = kinds(fit, jax.random.key(seed), stream, num_starts=6, num_rounds=40)
    seconds, nodes = time.perf_counter() - begun, two.nodes(16, jax.random.key(0))
    return of_head(fit, lambda loss: two.law(loss, jax.random.key(0), nodes)), seconds


def best_gaussian_law(x, y):
    """The Gaussian process with the mean and covariance of these episodes: of their weights on sin x, cos x,
    x, and 1.
    """
    sizes = (5.0**3 - 0.1**3) / (3 * (5.0 - 0.1))  # E A²; E A is 2.55, E sin φ is 2/π and E cos φ is 0
    mean = jnp.array([0.0, 2.55 / jnp.pi, 0.0, 0.0])
    prior = jnp.linalg.inv(jnp.diag(jnp.array([sizes / 4, sizes / 4, 1.5, 1.5])) - jnp.outer(mean, mean))
    phi = jnp.stack([jnp.sin(x), jnp.cos(x), x, jnp.ones_like(x)], 1)
    shown, asked = phi[:SUPPORT], phi[SUPPORT:]
    covariance = jnp.linalg.inv(shown.T @ shown / NOISE**2 + prior)
    weights = covariance @ (shown.T @ y[:SUPPORT] / NOISE**2 + prior @ mean)
    sd = jnp.sqrt(jnp.einsum("ni,ij,nj->n", asked, covariance, asked) + NOISE**2)
    return scores((asked @ weights)[None], sd[None], jnp.zeros(1), y[SUPPORT:])


# --- MAML


def predict(p, x):
    return features({k: v for k, v in p.items() if k != "out"}, x) @ p["out"]


def inner(p, x, y, second_order: bool):
    """Gradient descent on an episode's support."""

    def descend(p, _):
        slope = jax.grad(lambda p: jnp.mean((predict(p, x) - y) ** 2))(p)
        slope = slope if second_order else jax.lax.stop_gradient(slope)
        return jax.tree.map(lambda w, g: w - MAML_RATE * g, p, slope), None

    return jax.lax.scan(descend, p, None, length=MAML_STEPS)[0]


def query_error(p, x, y, second_order: bool):
    return jnp.mean(
        (predict(inner(p, x[:SUPPORT], y[:SUPPORT], second_order), x[SUPPORT:]) - y[SUPPORT:]) ** 2
    )


def maml(seed: int, seconds: float, second_order: bool):
    """Train for so many seconds, and return the steps made and a function that scores one episode."""
    p = initial(jax.random.key(seed)) | {
        "out": 0.1 * jax.random.normal(jax.random.key(seed + 1), (HIDDEN + 1,))
    }
    optim = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))
    loss = jax.vmap(partial(query_error, second_order=second_order), in_axes=(None, 0, 0))

    @jax.jit
    def chunk(p, state, key):
        def step(carry, key):
            p, state = carry
            x, y = jax.vmap(episode_data)(jax.random.split(key, EPISODES_A_STEP))
            value, grads = jax.value_and_grad(lambda p: loss(p, x, y).mean())(p)
            updates, state = optim.update(grads, state, p)
            return (optax.apply_updates(p, updates), state), value

        return jax.lax.scan(step, (p, state), jax.random.split(key, 100))

    state, steps, begun = optim.init(p), 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        (p, state), values = jax.block_until_ready(
            chunk(p, state, jax.random.fold_in(jax.random.key(seed), steps))
        )
        steps += 100
    sd = jnp.sqrt(jnp.mean(values))

    def score(x, y):
        mean = predict(inner(p, x[:SUPPORT], y[:SUPPORT], second_order), x[SUPPORT:])
        return scores(mean[None], jnp.full_like(mean, sd)[None], jnp.zeros(1), y[SUPPORT:])

    return steps, score


# --- a neural process


def neural_process(seed: int, seconds: float):
    """As :func:`maml`."""
    p, state, chunk = peer.trainer(episode_data, SUPPORT, EPISODES_A_STEP, seed)
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        (p, state), _ = jax.block_until_ready(
            chunk(p, state, jax.random.fold_in(jax.random.key(seed), steps))
        )
        steps += 100

    def score(x, y):
        mean, sd = peer.predict(p, jax.random.key(0), x[:SUPPORT], y[:SUPPORT], x[SUPPORT:])
        return scores(mean, sd, jnp.full(mean.shape[0], -jnp.log(mean.shape[0])), y[SUPPORT:])

    return steps, score


# --- memory


def memory(steps: int) -> dict[str, float]:
    """Mebibytes of temporaries of one meta-gradient with so many inner steps, as XLA plans them."""
    from ppl_ext.meta.solvers.laplace import LaplaceGGN

    start = initial(jax.random.key(0))

    def episode(x, y):
        net = {name: numpyro.param(name, value) for name, value in start.items()}
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(HIDDEN + 1), 1.0).to_event(1))
        with numpyro.plate("points", x.shape[0]):
            numpyro.sample("y", dist.Normal(features(net, x) @ weights, NOISE), obs=y)

    stream = SimulatedStream(episode_data)
    hierarchy = lift(episode, local=["weights"], num_episodes=1000).hierarchy(stream)
    batch = next(stream.batches(jax.random.key(0), EPISODES_A_STEP))

    def ours(shared):
        fits = hierarchy.fits(hierarchy.prior, shared, batch, LaplaceGGN(num_steps=steps), jax.random.key(0))
        return hierarchy.terms(hierarchy.prior, shared, batch, fits).total

    def theirs(p):
        def descend(p, _):
            slope = jax.grad(lambda p: jnp.mean((predict(p, x) - y) ** 2))(p)
            return jax.tree.map(lambda w, g: w - MAML_RATE * g, p, slope), None

        def one(x_, y_):
            nonlocal x, y
            x, y = x_, y_
            q = jax.lax.scan(descend, p, None, length=steps)[0]
            return jnp.mean((predict(q, x_) - y_) ** 2)

        x = y = None
        return jax.vmap(one)(*batch.args).mean()

    params = start | {"out": jnp.zeros(HIDDEN + 1)}
    sizes = {}
    for name, fn, at in (("head", ours, hierarchy.form.initial_shared()), ("MAML", theirs, params)):
        compiled = jax.jit(jax.grad(fn)).lower(at).compile()
        sizes[name] = round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 2)
    return sizes


def aims(
    contenders: dict[str, dict[str, dict[str, float]]], sizes: dict[str, dict[str, float]]
) -> dict[str, bool]:
    """Which aims are met, by their words."""
    ours, theirs = ({c: row["mean"] for c, row in contenders[name].items()} for name in (OURS, "MAML"))
    low, high = AIMS["coverage"]
    few, many = (sizes[n]["head"] for n in (min(sizes, key=int), max(sizes, key=int)))
    return {
        f"squared error at most {AIMS['mse']}": ours["mse"] <= AIMS["mse"],
        f"NLL at most {AIMS['nll']}": ours["nll"] <= AIMS["nll"],
        f"coverage of the 90 % interval from {low} to {high}": low <= ours["coverage"] <= high,
        "squared error below MAML's": ours["mse"] < theirs["mse"],
        "NLL below MAML's": ours["nll"] < theirs["nll"],
        "coverage nearer to 0.9 than MAML's": abs(ours["coverage"] - 0.9) < abs(theirs["coverage"] - 0.9),
        "temporaries of a meta-gradient as many after 50 inner steps as after one, within 5 %": many
        <= 1.05 * few,
    }


def main(quick: bool = False) -> None:
    steps, seeds, episodes, sorted_out = (200, 1, 100, 60) if quick else (5_000, 3, 1_000, 500)
    description = (
        f"sine and line regression, {SUPPORT} shots, {steps} steps of {EPISODES_A_STEP} episodes, {seeds} "
        "seeds"
    )
    print(f"meta_regression: {description}\n")
    keys = jax.random.split(jax.random.key(12345), episodes)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in tqdm(range(seeds), desc="seeds"):
        fit, seconds = head(seed, steps)
        score, more = two_laws(fit, seed, sorted_out)
        judged: dict[str, tuple[Score, dict[str, float]]] = {
            "best Gaussian law": (best_gaussian_law, {"seconds": 0.0, "steps": 0}),
            "head": (one_law(fit), {"seconds": seconds, "steps": steps}),
            OURS: (score, {"seconds": seconds + more, "steps": steps}),
        }
        for name, train in (
            ("MAML", partial(maml, second_order=True)),
            ("first-order MAML", partial(maml, second_order=False)),
        ):
            made, score = train(seed, seconds + more)
            judged[name] = (score, {"seconds": seconds + more, "steps": made})
        made, score = neural_process(seed, seconds + more)
        judged["neural process"] = (score, {"seconds": seconds + more, "steps": made})
        for name, (score, about) in judged.items():
            values = jax.lax.map(lambda key, score=score: score(*episode_data(key)), keys)
            rows.setdefault(name, []).append({k: float(v.mean()) for k, v in values.items()} | about)
    report = {
        "benchmark": "meta_regression",
        "description": description,
        **harness.environment(),
        "contenders": {},
    }
    for name, runs in rows.items():
        table = {}
        for column in runs[0]:
            x = np.array([r[column] for r in runs])
            table[column] = {
                "mean": round(float(x.mean()), 4),
                "se": round(float(x.std(ddof=1) / len(x) ** 0.5), 4) if len(x) > 1 else None,
            }
        report["contenders"][name] = table
        line = "   ".join(
            f"{c} {v['mean']:.3f}" + (f" ± {v['se']:.3f}" if v["se"] is not None else "")
            for c, v in table.items()
        )
        print(f"  {name:<18} {line}")
    report["temporary_mebibytes_by_inner_steps"] = {str(n): memory(n) for n in (1, 5, 20, 50)}
    print(f"  MiB of temporaries by inner steps: {report['temporary_mebibytes_by_inner_steps']}")
    report["aims"] = harness.verdicts(
        aims(report["contenders"], report["temporary_mebibytes_by_inner_steps"])
    )
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "meta_regression.json").write_text(json.dumps(report, indent=1) + "\n")
