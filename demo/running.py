"""One algorithm on one model, timed: what changes from run to run is a kernel, or an objective."""

import time

import jax
import optax
from numpyro.infer import MCMC, NUTS
from numpyro.infer.elbo import ELBO as Objective
from numpyro.infer.mcmc import MCMCKernel

import ppl_ext
from demo.report import Run, say
from ppl_ext.infer import fit

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
        # inner functions compile within outer ones: count no second twice
        for begin, end in sorted(self._spans):
            begin = max(begin, reached)
            if end > begin:
                total, reached = total + end - begin, end
        return total


CLOCK = CompileClock()


def run_mcmc(
    title: str,
    name: str,
    kernel: MCMCKernel,
    data: dict,
    warmup: int = 1000,
    samples: int = 2000,
    chains: int = CHAINS,
) -> tuple[Run, MCMC]:
    """A :class:`Run` by one of NumPyro's kernels or ours, all chains at once; and the ``MCMC`` object."""
    say(f"{title}: {name}")
    start = time.perf_counter()
    # vectorises itself, and only then has NumPyro a progress bar for several chains at once
    itself = isinstance(kernel, NUTS)
    how = {"chain_method": "vectorized" if itself else jax.vmap, "progress_bar": itself}
    mcmc = MCMC(kernel, num_warmup=warmup, num_samples=samples, num_chains=chains, **how)
    mcmc.run(jax.random.key(0), **data)
    jax.block_until_ready(mcmc.get_samples())
    total, compiling = time.perf_counter() - start, CLOCK.since(start)
    return Run(name, ppl_ext.to_arviz(mcmc), compiling, total - compiling), mcmc


def run_fit(
    title: str, name: str, model, guide, objective: Objective, data: dict, step_size: float, steps: int
) -> Run:
    """A :class:`Run` by ``fit``: independent restarts as chains."""
    say(f"{title}: {name}")
    optim = optax.adam(optax.cosine_decay_schedule(step_size, steps))
    result = fit(jax.random.key(1), model, guide, objective, optim, steps, num_chains=CHAINS, **data)
    return Run(name, result.to_arviz(num_samples=1000), result.compile_seconds, result.run_seconds)
