"""Two models, each written once, each under several algorithms: one table, one picture, a netCDF file a run.

``python demo/run.py`` (or ``make demo``) takes a minute or two on two cores and writes to ``demo/output/``.
"""

import sys
import time
from pathlib import Path

import jax
import optax
from numpyro.infer import MCMC, NUTS, init_to_median
from numpyro.infer.elbo import ELBO as Objective

import ppl_ext
from ppl_ext import handlers
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO, Renyi

if not __package__:  # run as a script, not as a module: Python then looks beside this file and not in the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import models  # noqa: E402  after the path is set
from demo.picture import draw_picture  # noqa: E402  after the path is set
from demo.report import LEGEND, Run, print_table, say  # noqa: E402  after the path is set

OUTPUT = Path(__file__).resolve().parent / "output"
CHAINS = 4


class CompileClock:
    """Seconds JAX has spent compiling, from its own events: NUTS does not report them."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration: float, **_) -> None:
        if event.startswith("/jax/core/compile"):
            end = time.perf_counter()
            self._spans.append((end - duration, end))

    def since(self, start: float) -> float:
        total, reached = 0.0, start
        for begin, end in sorted(self._spans):  # inner functions compile within outer ones: count no second twice
            begin = max(begin, reached)
            if end > begin:
                total, reached = total + end - begin, end
        return total


def run_nuts(title: str, model, data: dict, clock: CompileClock) -> Run:
    say(f"{title}: NUTS")
    start = time.perf_counter()
    kernel = NUTS(model, init_strategy=init_to_median)
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=2000, num_chains=CHAINS, chain_method="vectorized")
    mcmc.run(jax.random.key(0), **data)
    jax.block_until_ready(mcmc.get_samples())
    total, compiling = time.perf_counter() - start, clock.since(start)
    return Run("NUTS", ppl_ext.to_arviz(mcmc), compiling, total - compiling)


def run_fit(title: str, name: str, model, guide, objective: Objective, data: dict, step_size: float, steps: int) -> Run:
    say(f"{title}: {name}")
    optim = optax.adam(optax.cosine_decay_schedule(step_size, steps))
    result = fit(jax.random.key(1), model, guide, objective, optim, steps, num_chains=CHAINS, **data)
    return Run(name, result.to_arviz(num_samples=1000), result.compile_seconds, result.run_seconds)


def run_radon(data: dict, clock: CompileClock) -> list[Run]:
    """One model and one guide; a line changes from run to run."""
    objectives = {
        "ELBO": ELBO(),
        "IWELBO (K=8)": IWELBO(num_particles=8),
        "Renyi (0.5, K=8)": Renyi(alpha=0.5, num_particles=8),
    }
    runs = [run_nuts("Radon", models.radon, data, clock)]
    for name, objective in objectives.items():
        runs.append(run_fit("Radon", name, models.radon, models.radon_guide, objective, data, step_size=0.03, steps=6000))
    return runs


def run_faithful(data: dict, clock: CompileClock) -> list[Run]:
    """The same with a discrete site, which NUTS sums out of the model, and a guide may enumerate or draw."""
    strategies = {"ELBO, enumerated": "enumerate", "ELBO, score": "score"}
    runs = [run_nuts("Old Faithful", models.faithful, data, clock)]
    for name, strategy in strategies.items():
        guide = handlers.gradient(models.faithful_guide, {"kind": strategy})
        objective = ELBO(num_particles=8)
        runs.append(run_fit("Old Faithful", name, models.faithful, guide, objective, data, step_size=0.1, steps=4000))
    return runs


def main() -> None:
    start = time.perf_counter()
    OUTPUT.mkdir(exist_ok=True)
    clock = CompileClock()
    radon_data, counties = models.load_radon()
    faithful_data, eruptions = models.load_faithful()

    radon_runs = run_radon(radon_data, clock)
    faithful_runs = run_faithful(faithful_data, clock)

    print()
    print_table(
        "Radon in Minnesota: 919 homes in 85 counties, 90 continuous unknowns",
        radon_runs,
        {"floor_effect": "first floor", "uranium_effect": "uranium", "county_sd": "county sd"},
    )
    print_table(
        "Old Faithful: 272 eruptions of two kinds, 272 discrete unknowns and 9 continuous ones",
        faithful_runs,
        {"long_share": "share long", ("duration", 0): "short: duration", ("waiting", 0): "short: waiting"},
    )
    print(LEGEND, flush=True)

    say("Drawing the picture and writing the netCDF files")
    draw_picture(OUTPUT / "demo.png", radon_runs, counties, faithful_runs, eruptions)
    for model, runs in {"radon": radon_runs, "faithful": faithful_runs}.items():
        for run in runs:
            words = "".join(c if c.isalnum() else " " for c in run.name.lower()).split()
            run.report.to_netcdf(str(OUTPUT / f"{'_'.join([model, *words])}.nc"))
    files = len(radon_runs) + len(faithful_runs)
    say(f"Done in {time.perf_counter() - start:.0f} s: demo/output/ has demo.png and {files} netCDF files for arviz.from_netcdf")


if __name__ == "__main__":
    main()
