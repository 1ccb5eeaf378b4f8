"""Uneven rows in NumPyro's ``HMCECS``: effective draws a second, beside its own uniform ones.

A regression with Student-t noise in which a hundred of 30,000 rows lie far out. Both chains see the same
number of rows a step and have the same proxy, of the first or of the second order; they differ in which rows.
Seconds are those of a run that is compiled, its warm-up apart. Where the estimate of the log likelihood is
noisy, the chain's own target is wider than the posterior, and its draws are effective for that. So they are
counted twice: as they are, and by what they say of the posterior's mean, times the posterior's variance, of a
chain on all rows, over the chain's own, at most one.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import HMCECS, MCMC, NUTS

from benchmarks import harness
from ppl_ext.designs import leverage
from ppl_ext.handlers import subsample

SIZE, TAKEN, FAR = 5, 300, 100
AIM = 3.0


def model(x, y, taken):
    b = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([SIZE]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=taken):
        rows, seen = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.StudentT(4.0, rows @ b), obs=seen)


def data(num: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, SIZE))
    x[:FAR] *= 40.0
    y = x @ np.arange(1.0, SIZE + 1) / SIZE + rng.standard_t(4, num)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def mode(x, y) -> jax.Array:
    b = jnp.linalg.lstsq(x, y)[0]
    for _ in range(60):
        w = 5.0 / (4.0 + (y - x @ b) ** 2)
        b = jnp.linalg.solve(x.T @ (x * w[:, None]) + 0.01 * jnp.eye(SIZE), x.T @ (w * y))
    return b


class Chain:
    """A chain that is compiled by its first run, whose seconds are kept apart."""

    def __init__(self, kernel, args: tuple, num: int):
        self.mcmc = MCMC(kernel, num_warmup=num // 4, num_samples=num, progress_bar=False)
        self.args, self.runs = args, []
        self.first = self._timed(jax.random.key(0))[0]

    def _timed(self, key) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        self.mcmc.run(key, *self.args)
        draws = np.asarray(jax.block_until_ready(self.mcmc.get_samples()["b"]))
        return time.perf_counter() - start, draws

    def run(self, seed: int) -> None:
        """One run from a warm-up of its own, which does not count."""
        self.mcmc.warmup(jax.random.key(seed), *self.args)
        seconds, draws = self._timed(jax.random.key(100 + seed))
        self.runs.append((seconds, float(effective_sample_size(draws[None]).min()), draws.std(0)))

    def rates(self, whole: np.ndarray | None = None) -> np.ndarray:
        """Effective draws a second, of each run: of the chain's target, or for the mean of all rows'."""
        worth = [
            1.0 if whole is None else min(1.0, float(((whole / deviation) ** 2).mean()))
            for _, _, deviation in self.runs
        ]
        return np.array([w * e / s for w, (s, e, _) in zip(worth, self.runs, strict=True)])

    def report(self, whole: np.ndarray) -> dict[str, float]:
        """Medians over runs, and the chain's deviations over those of all rows."""
        seconds, effective, deviations = zip(*self.runs, strict=True)
        return {
            "first_run_seconds": self.first,
            "seconds": float(np.median(seconds)),
            "effective_draws": float(np.median(effective)),
            "effective_a_second": float(np.median(self.rates())),
            "effective_for_the_posterior_a_second": float(np.median(self.rates(whole))),
            "deviation_over_all_rows": float((np.mean(deviations, 0) / whole).mean()),
        }


def main(quick: bool = False) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    num, draws, seeds = (6_000, 300, 1) if quick else (30_000, 1500, 5)
    x, y = data(num)
    reference = {"b": mode(x, y)}
    uneven = subsample(model, "rows", leverage(x))
    every = Chain(NUTS(model), (x, y, None), draws)
    every.run(1)
    report: dict = {
        "benchmark": "subsampling",
        "description": f"HMCECS, {TAKEN} of {num:,} rows, {FAR} of them far out",
        **harness.environment(),
        "chains": {},
        "ratios": {},
    }
    for degree in (1, 2):
        proxy = HMCECS.taylor_proxy(reference, degree)
        chains = {
            name: Chain(HMCECS(NUTS(program), proxy=proxy), (x, y, TAKEN), draws)
            for name, program in (("uneven", uneven), ("uniform", model))
        }
        for seed in range(1, seeds + 1):  # by turns, so that a drift of the machine hits both
            for chain in chains.values():
                chain.run(seed)
        for name, chain in chains.items():
            found = report["chains"][f"{name}, order {degree}"] = chain.report(every.runs[0][2])
            print(
                f"{name}, proxy of order {degree}: {found['effective_draws']:.0f} effective draws of {draws} "
                f"in {found['seconds']:.2f} s, {found['effective_a_second']:.0f} a second; first run, "
                f"compiling, {found['first_run_seconds']:.1f} s; sd over that of all rows "
                f"{found['deviation_over_all_rows']:.2f}"
            )
        of_chain, of_posterior = (
            float(np.median(chains["uneven"].rates(to) / chains["uniform"].rates(to)))
            for to in (None, every.runs[0][2])
        )
        report["ratios"][f"order {degree}"] = {"as they are": of_chain, "for the posterior": of_posterior}
        print(
            f"order {degree}: effective draws a second over uniform's {of_chain:.2f}, for the posterior "
            f"{of_posterior:.2f}"
        )
    found = report["ratios"]["order 1"]
    report["aims"] = harness.verdicts(
        {
            f"proxy of order 1: effective draws a second, {how}, at least {AIM:g} times uniform's": (
                found[how] >= AIM
            )
            for how in found
        }
    )
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "subsampling.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
