"""Time to the first number: what a call takes that finds nothing compiled, beside NumPyro's, blackjax's,
cuthbert's and dynamax's (where these are installed).

Every call gets a model that nobody has seen, so that it is traced and compiled from nothing; what is compiled
once in a process, the single operations of JAX, is so before the clock starts. Calls are interleaved, ratios
taken within a round. Processor seconds stand beside those of the clock: they hardly feel a neighbour's job.
A second call of each has all compiled, and says what the run alone takes.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoNormal

from benchmarks import harness, smc, smoothing
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.smoothing import smooth

KEY = jax.random.key(0)
ROWS, DRAWS = 100, 1000


class Row(NamedTuple):
    """A kind of call: what makes a fresh one of ours and of theirs, who they are, and the aim for the ratio
    of the first calls; None where there is none.
    """

    ours: Callable[[], Callable[[], Any]]
    theirs: Callable[[], Callable[[], Any]]
    peer: str
    at_most: float | None


# --- models, each time a function of its own


def regression():
    def model(x, y):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("rows", ROWS):
            numpyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)

    return model


def hierarchy():
    def model(x, y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        with numpyro.plate("rows", ROWS):
            effect = numpyro.sample("effect", dist.Normal(mean, spread))
            numpyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    return model


def mixture():
    def model(x, y):
        shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
        means = numpyro.sample("means", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        with numpyro.plate("rows", ROWS):
            kind = numpyro.sample("kind", dist.Categorical(shares), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(means[kind], 1.0), obs=y)

    return model


def series():
    def model(x, y):
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))

        def step(level, y_t):
            level = numpyro.sample("level", dist.Normal(level, noise))
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y_t)
            return level, None

        scan(step, 0.0, y)

    return model


def data() -> tuple[jax.Array, jax.Array]:
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x.sum(1))


def guide_of(model):
    return AutoNormal(block(model, hide=["kind"]))


# --- calls


def our_fit(make):
    def fresh():
        model = make()
        guide = guide_of(model)
        return lambda: fit(KEY, model, guide, ELBO(), ADAM, 1, *data(), progress_bar=False).params

    return fresh


def their_fit(make, loss):
    def fresh():
        model = make()
        svi = SVI(model, guide_of(model), ADAM, loss())
        return lambda: svi.run(KEY, 1, *data(), progress_bar=False).params

    return fresh


ADAM = optax.adam(0.01)


def our_report(make):
    def fresh():
        model = make()
        result = fit(KEY, model, guide_of(model), ELBO(), ADAM, 1, *data(), progress_bar=False)
        return lambda: result.to_arviz(KEY, num_samples=DRAWS)

    return fresh


def their_report(make):
    """Draws of the guide, and NumPyro's log likelihood at them: what a report is made of."""

    def fresh():
        model = make()
        guide = guide_of(model)
        found = SVI(model, guide, ADAM, Trace_ELBO()).run(KEY, 1, *data(), progress_bar=False)

        def report():
            draws = Predictive(guide, params=found.params, num_samples=DRAWS)(KEY, *data())
            draws = {name: x for name, x in draws.items() if not name.startswith("_")}
            return draws, log_likelihood(model, draws, *data())

        return report

    return fresh


def jitted(contender, *args):
    """A contender of another benchmark, a function object of its own each time."""

    def fresh():
        run = jax.jit(lambda *given: contender(*given))
        return lambda: run(KEY, *args)

    return fresh


def exactly():
    """Kalman's filter and smoother, as they are read off the model."""
    smoother = smooth(smoothing.model, smoothing.FUNCTIONALS, backward="exact")

    def run(key, y):
        found = smoother.run(key, y, params=smoothing.PARAMETERS)
        return found.log_evidence, found.expectations

    return run


def dynamaxs():
    """dynamax's Kalman filter and smoother, whose first state is that of the first step; None where it is not
    installed.
    """
    try:
        from dynamax.linear_gaussian_ssm import inference
    except ImportError:
        return None
    phi, sigma, noise = (smoothing.PARAMETERS[name] for name in ("phi", "sigma", "noise"))
    zero, one = jnp.zeros(1), jnp.eye(1)

    def run(key, y):
        given = inference.ParamsLGSSM(
            inference.ParamsLGSSMInitial(zero, (phi**2 + sigma**2) * one),
            inference.ParamsLGSSMDynamics(phi * one, zero, jnp.zeros((1, 0)), sigma**2 * one),
            inference.ParamsLGSSMEmissions(one, zero, jnp.zeros((1, 0)), noise**2 * one),
        )
        found = inference.lgssm_smoother(given, y[:, None])
        return found.marginal_loglik, found.smoothed_cross_covariances.sum()

    return run


def rows() -> dict[str, Row]:
    found = {
        f"fit, {make.__name__}: its first step": Row(
            our_fit(make), their_fit(make, loss), "NumPyro's SVI", 1.1
        )
        for make, loss in (
            (regression, Trace_ELBO),
            (hierarchy, Trace_ELBO),
            (mixture, TraceEnum_ELBO),
            (series, Trace_ELBO),
        )
    }
    found |= {
        f"a fit's report, {make.__name__}": Row(
            our_report(make), their_report(make), "Predictive and log_likelihood", 1.5
        )
        for make in (regression, hierarchy, series)
    }
    for name in smc.PROBLEMS:
        given = smc.data(name)
        found[f"tempered SMC, {name}"] = Row(
            lambda name=name, given=given: jitted(smc.ours(name, fitted=False), *given)(),
            lambda name=name, given=given: jitted(smc.blackjaxs(name), *given)(),
            "blackjax",
            None,
        )
    y = smoothing.series(100)
    if smoothing.cuthberts(100, backward=False) is not None:
        found["particle filter"] = Row(
            lambda: jitted(smoothing.ours(100), y)(),
            lambda: jitted(smoothing.cuthberts(100, backward=False), y)(),
            "cuthbert",
            1.0,
        )
    if dynamaxs() is not None:
        found["exact smoother"] = Row(
            lambda: jitted(exactly(), y)(), lambda: jitted(dynamaxs(), y)(), "dynamax", None
        )
    return found


# --- the clock


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(jax.tree.leaves(call()))
    return time.perf_counter() - clock, time.process_time() - processor


def measured(row: Row, repeats: int) -> dict[str, Any]:
    """The first and the second of ``repeats`` fresh calls of each, after one that is not counted."""
    seen: dict[str, list] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        for who in ("ours", "theirs") if repeat % 2 else ("theirs", "ours"):
            call = getattr(row, who)()
            gc.collect()
            first, again = timed(call), timed(call)
            if repeat:
                seen[who].append([*first, *again])
    ours, theirs = (np.asarray(seen[who]) for who in ("ours", "theirs"))
    names = ("first_clock", "first_processor", "again_clock", "again_processor")
    medians = {
        who: dict(zip(names, np.median(x, axis=0).round(4).tolist(), strict=True))
        for who, x in (("ours", ours), ("theirs", theirs))
    }
    ratios = {name: harness.paired_ratio(ours[:, i], theirs[:, i]) for i, name in enumerate(names[:2])}
    return {"seconds": medians, "ratios": {name: ratio._asdict() for name, ratio in ratios.items()}}


def main(quick: bool = False, only: list[str] | None = None) -> None:
    """:param only: rows to make anew; the saved ones of the others stay."""
    jax.config.update("jax_enable_compilation_cache", False)
    repeats = 2 if quick else 9
    description = f"{repeats} fresh calls of each, interleaved; {DRAWS} draws a report"
    report: dict[str, Any] = {
        "benchmark": "first_number",
        "description": description,
        **harness.environment(),
        "cases": {},
    }
    path = harness.RESULTS / "first_number.json"
    if only and path.exists():
        report["cases"] = json.loads(path.read_text())["cases"]
    print(f"first_number: {description}\n")
    for name, row in rows().items():
        if only and name not in only:
            continue
        case = report["cases"][name] = {"peer": row.peer, **measured(row, repeats)}
        ours, theirs = case["seconds"]["ours"], case["seconds"]["theirs"]
        ratio = harness.Ratio(*case["ratios"]["first_processor"].values())
        case["at_most"] = row.at_most
        case["verdict"] = None if row.at_most is None else ratio.verdict(row.at_most)
        aim = "" if row.at_most is None else f"  aim {row.at_most:g}  {case['verdict']}"
        print(
            f"{name}\n  first {ours['first_clock']:.2f} s, {theirs['first_clock']:.2f} s by {row.peer}; "
            "processor "
            f"{ours['first_processor']:.2f} s, {theirs['first_processor']:.2f} s\n"
            f"  again {ours['again_clock'] * 1e3:.0f} ms, {theirs['again_clock'] * 1e3:.0f} ms\n"
            f"  ratio of the first, clock {case['ratios']['first_clock']['median']:.2f}, processor "
            f"{ratio.median:.2f} (quartiles {ratio.quartiles[0]:.2f} to {ratio.quartiles[1]:.2f}){aim}",
            flush=True,
        )
    if not quick:
        harness.RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_number", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two fresh calls; prints only")
    parser.add_argument("--only", action="append", choices=list(rows()), metavar="ROW")
    options = parser.parse_args()
    main(options.quick, options.only)
