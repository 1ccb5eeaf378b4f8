"""The chapters: each takes data and a model, runs several algorithms on it, and says what they found."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import substitute
from numpyro.infer import MCMC, NUTS, Predictive, init_to_median
from numpyro.infer.autoguide import AutoMultivariateNormal

from demo import models, pictures
from demo.report import Chapter, Run, Table, compared, say
from demo.running import CLOCK, run_fit, run_mcmc
from ppl_ext import handlers, log_density, marginal
from ppl_ext.algorithms import ExactFilter, ParticleFilter
from ppl_ext.diagnostics.report.arviz_export import build_report
from ppl_ext.infer import ParticleGibbs
from ppl_ext.meta import EpisodeStream, ExactLinearGaussian, evaluate, lift
from ppl_ext.objectives import ELBO, IWELBO, Renyi
from ppl_ext.priors import Gaussian, GaussianProcess, lift_prior, match, posterior_functions
from ppl_ext.smoothing import smooth


def radon() -> Chapter:
    """One model and one guide; a line changes from run to run."""
    data, counties = models.load_radon()
    objectives = {
        "ELBO": ELBO(),
        "IWELBO (K=8)": IWELBO(num_particles=8),
        "Renyi (0.5, K=8)": Renyi(alpha=0.5, num_particles=8),
    }
    nuts, _ = run_mcmc("Radon", "NUTS", NUTS(models.radon, init_strategy=init_to_median), data)
    runs = [nuts]
    for name, objective in objectives.items():
        runs.append(
            run_fit(
                "Radon", name, models.radon, models.radon_guide, objective, data, step_size=0.03, steps=6000
            )
        )
    widths = {run.name: run.distance_from(nuts)[1] for run in runs[1:]}
    shown = {"floor_effect": "first floor", "uranium_effect": "uranium", "county_sd": "county sd"}
    return Chapter(
        "radon",
        "Radon in Minnesota: one line changes the algorithm",
        f"All means lie within {max(run.distance_from(nuts)[0] for run in runs[1:]):.2f} posterior sds of "
        f"NUTS; the ELBO's narrowest sd is {widths['ELBO']:.2f} of NUTS's, that of the importance-weighted "
        f"bound {widths['IWELBO (K=8)']:.2f}.",
        [
            "919 homes in 85 counties, a varying intercept for each, and the soil's uranium as a predictor: "
            "90 continuous unknowns. NUTS is the reference. The three others fit the same guide, a Gaussian "
            "of low rank, by three objectives.",
            "An ELBO makes a guide too narrow where the posterior has more tail than the guide. Bounds of "
            "several particles ask less of the guide: its draws, weighted, are the posterior. The columns "
            "IS ESS and k-hat say how well that works.",
        ],
        [compared("919 homes in 85 counties, 90 continuous unknowns", runs, shown)],
        pictures.radon(runs, counties),
        "Above, the same five parameters by four algorithms. Below, counties of few homes are pulled to the "
        "regression on uranium.",
        runs,
        list(shown),
    )


def faithful() -> Chapter:
    """The same with a discrete site, which NUTS sums out of the model, and a guide may enumerate or draw."""
    data, eruptions = models.load_faithful()
    nuts, _ = run_mcmc("Old Faithful", "NUTS", NUTS(models.faithful, init_strategy=init_to_median), data)
    runs = [nuts]
    for name, strategy in {"ELBO, enumerated": "enumerate", "ELBO, score": "score"}.items():
        guide = handlers.gradient(models.faithful_guide, {"kind": strategy})
        runs.append(
            run_fit(
                "Old Faithful",
                name,
                models.faithful,
                guide,
                ELBO(num_particles=8),
                data,
                step_size=0.1,
                steps=4000,
            )
        )
    shown = {"long_share": "share long", ("duration", 0): "short: duration", ("waiting", 0): "short: waiting"}
    bounds = {run.name: run.bound[0] for run in runs[1:] if run.bound is not None}
    return Chapter(
        "faithful",
        "Old Faithful: discrete unknowns, two ways",
        f"Enumerated and by score function, the fits end at bounds of {bounds['ELBO, enumerated']:.2f} and "
        f"{bounds['ELBO, score']:.2f} nats.",
        [
            "272 eruptions of two kinds that nobody wrote down. NUTS needs the kinds summed out. A guide "
            "may give each eruption a probability of its own, and the gradient for it is a choice by site: "
            "a handler around the guide, and nothing else, decides."
        ],
        [compared("272 eruptions: 272 discrete unknowns and 9 continuous ones", runs, shown)],
        pictures.faithful(runs, eruptions),
        "The components by three algorithms, and each eruption's probability of being a long one.",
        runs,
        ["long_share", "duration", "waiting"],
    )


def nile() -> Chapter:
    """A model with a scan: sampled whole, by particle Gibbs, by a bound that a particle filter estimates, and
    exactly.
    """
    data, years = models.load_nile()
    names = ["level_sd", "noise_sd"]
    summed = marginal(models.nile, names, ExactFilter())
    exact, log_evidence = _nile_exactly(summed, data)
    runs = [exact]
    nuts, _ = run_mcmc(
        "Nile", "NUTS, 101 states and all", NUTS(models.nile, init_strategy=init_to_median), data
    )
    gibbs, mcmc = run_mcmc(
        "Nile", "particle Gibbs", ParticleGibbs(models.nile, num_particles=20), data, 500, 2000
    )
    filtered = marginal(models.nile, names, ParticleFilter(200, gradient="fisher"))
    # of the two parameters; the states are summed out
    guide = AutoMultivariateNormal(summed, init_loc_fn=init_to_median)
    runs += [nuts, gibbs]
    runs.append(run_fit("Nile", "ELBO of a particle filter", filtered, guide, ELBO(), data, 0.03, 1500))
    say("Nile: smoothing at the exact means")
    means = {name: float(exact.draws(name).mean()) for name in names}
    smoothed = smooth(models.nile, num_particles=1000).run(jax.random.key(3), params=means, **data)
    paths = {"NUTS": nuts.draws("level"), "particle Gibbs": gibbs.draws("level")}
    paths["PaRIS, at the means"] = np.asarray(smoothed.sample(num_samples=1000)["level"])
    off = {run.name: run.distance_from(exact)[0] for run in runs[1:]}
    bound = runs[-1]
    return Chapter(
        "nile",
        "The Nile: a scan, and the exact answer",
        "Particle Gibbs and the filter's bound need no more than the model. The first agrees with the "
        f"exact posterior within {off['particle Gibbs']:.2f} of its sds; the guide of the second is off by "
        f"{off[bound.name]:.2f}, and its weights make up for it (k-hat {bound.psis.pareto_k:.2f}): log "
        f"evidence {bound.log_evidence[0]:.2f}, exactly {log_evidence:.2f}.",
        [
            "A hundred years of flow at Aswan: a level that wanders, and noise. The model is linear and "
            "Gaussian, so there is an exact answer to compare with: the states summed out by a Kalman "
            "filter that is read off the model, the two parameters on a grid. The log evidence is "
            f"{log_evidence:.2f}.",
            "NUTS samples the 101 states and the parameters together. Particle Gibbs draws the whole path "
            "by a conditional particle filter, then the parameters by NUTS. The bound is an ELBO whose "
            "density a particle filter estimates; its guide knows only the parameters. None of them was "
            "told that the model is linear.",
        ],
        [
            compared(
                "100 years, 101 states and 2 parameters",
                runs,
                {"level_sd": "sd of the level", "noise_sd": "sd of the noise"},
            )
        ],
        pictures.nile(years, np.asarray(data["flow"]), paths, runs, names),
        "Left, the level by three samplers, with 90 % bands. Right, the two parameters by all four.",
        runs,
        names,
    )


def _nile_exactly(summed, data: dict) -> tuple[Run, float]:
    """Draws from the posterior on a fine grid, evenly by its probabilities, and the log evidence."""
    say("Nile: the exact answer")
    start = time.perf_counter()
    axes = [np.linspace(0.005, 1.4, 140), np.linspace(0.75, 1.75, 140)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)

    @jax.jit
    def density(points):
        def one(at):
            return log_density(summed, {"level_sd": at[0], "noise_sd": at[1]}, **data).total

        return jax.lax.map(one, points, batch_size=700)

    logs = np.asarray(density(jnp.asarray(grid, jnp.float32)), np.float64)
    weights = np.exp(logs - logs.max())
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    drawn = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(8000) + 0.5) / 8000)
    drawn = np.random.default_rng(0).permutation(drawn).reshape(4, 2000)
    groups = {
        "posterior": {"level_sd": grid[drawn, 0], "noise_sd": grid[drawn, 1]},
        "sample_stats": {"lp": logs[drawn]},
    }
    report = build_report(groups)
    total, compiling = time.perf_counter() - start, CLOCK.since(start)
    return Run("exact, on a grid", report, compiling, total - compiling), float(
        logs.max() + np.log(weights.sum() * cell)
    )


def crash() -> Chapter:
    """A network by NUTS, with the prior of habit and with one that was tuned to a Gaussian process."""
    seen, unseen, units = models.load_crash()
    grid = jnp.linspace(-2.0, 2.6, 120)
    wanted = GaussianProcess(lambda a, b: jnp.exp(-0.5 * ((a - b.T) / 0.4) ** 2))
    lifted = lift_prior(models.network, {"*.w": Gaussian(fan_in="auto"), "*.b": Gaussian()})
    say("Crash: tuning the network's prior")
    tuned = match(jax.random.key(0), lifted, output="f", inputs=grid[::3], target=wanted, num_steps=250)
    before, after, floor = tuned.report.distances["Energy"]
    runs, rows, functions = [], [], {}
    for name, model in {"prior of habit": models.network, "tuned prior": tuned.model}.items():
        run, mcmc = run_mcmc("Crash", name, NUTS(model, max_tree_depth=7), seen, 500, 500, 2)
        found = posterior_functions(model, mcmc, unseen["x"], output="f", y=unseen["y"])
        functions[name] = posterior_functions(model, mcmc, grid, output="f").values
        runs.append(run)
        cover = float(found.coverage((0.9,))[0])
        cells = [
            f"{found.rmse * units['sd']['accel']:.1f} g",
            f"{found.nll:.3f}",
            f"{cover:.2f}",
            f"{float(np.nanmax(found.r_hat)):.3f}",
        ]
        rows.append([name, *cells, f"{run.compile_seconds:.1f} s", f"{run.run_seconds:.1f} s"])
        say(f"Crash: {name}, held-out error {cells[0]}, NLL {cells[1]}")
    header = ["prior", "RMSE, held out", "NLL, held out", "90 % covers", "R-hat, largest", "compile", "run"]
    drawn = tuned.functions(jax.random.key(1), grid, 300)
    habit = Predictive(models.network, num_samples=300)(jax.random.key(2), grid)["f"]
    prior = {
        "prior of habit": np.asarray(habit),
        "tuned prior": drawn["after"],
        "the Gaussian process": drawn["target"],
    }
    spread = {name: values.std() * units["sd"]["accel"] for name, values in prior.items()}
    return Chapter(
        "crash",
        "A crash test: say what functions a network should produce",
        f"On the prior of habit, functions have an sd of {spread['prior of habit']:.0f} g; tuned, "
        f"{spread['tuned prior']:.0f} g, as was asked ({spread['the Gaussian process']:.0f} g). Tuning took "
        f"{tuned.run_seconds:.0f} s and {tuned.compile_seconds:.0f} s to compile; the held-out NLL went "
        f"from {rows[0][2]} to {rows[1][2]} nats a point, the error from {rows[0][1]} to {rows[1][1]}.",
        [
            "Acceleration of a dummy's head in a simulated motorcycle crash, 133 readings; those of the "
            "first 9 ms and after 40 ms are held out. The model is a network of one hidden layer of 50. "
            "Nobody knows what N(0, 1) on its weights means; a Gaussian process is easier to say: functions "
            "of size one that bend within 5 ms. The scales of the four layers' priors are tuned until the "
            "network's functions look like that: an energy distance, which was not optimised, falls from "
            f"{before:.3f} to {after:.3f} ({floor:.3f} between draws of the target).",
            "What comes back is an ordinary NumPyro model, so NUTS runs it as it ran the first. Between 9 "
            "and 40 ms the two posteriors agree. Outside, where there is no data, the prior speaks, and the "
            "held-out readings show which one spoke better.",
        ],
        [Table("The same network, the same NUTS", header, rows)],
        pictures.crash(np.asarray(grid), prior, functions, seen, unseen, units),
        "Above, functions of the prior before and after, and of the target. Below, posteriors: 50 and 90 % "
        "bands; dots held out in orange.",
        runs,
        ["noise_sd"],
    )


def chicks(shown: int = 4) -> Chapter:
    """Forty chicks teach how chicks grow; ten others are predicted from their first weighings."""
    table = models.load_chicks()
    by_chick = {chick: rows for chick, rows in table.groupby("chick")}
    new = {c: rows for c, rows in by_chick.items() if c % 5 == 0}
    old = table[table["chick"] % 5 != 0]
    stream = EpisodeStream.from_groups(*(old[column].to_numpy() for column in ("chick", "age", "log_weight")))
    lifted = lift(models.one_chick, local=["curve"])
    say("Chicks: learning from forty")
    fit = lifted.fit(jax.random.key(0), stream, local_solver=ExactLinearGaussian(), num_steps=300)
    known = substitute(lifted.as_model(stream), data=fit.shared)
    run, mcmc = run_mcmc("Chicks", "NUTS on the same hierarchy", NUTS(known), {}, 300, 500, 2)
    nuts, ours = np.asarray(mcmc.get_samples()["curve"]), fit.posteriors(stream)
    off = np.abs(np.asarray(ours.mean) - nuts.mean(0)) / nuts.std(0)
    ratio = np.sqrt(np.diagonal(ours.covariance, axis1=1, axis2=2)) / nuts.std(0)

    columns = [new[c][["age", "log_weight"]].to_numpy(np.float32).T for c in new]
    first, later = [(x[:shown], y[:shown]) for x, y in columns], [(x[shown:], y[shown:]) for x, y in columns]
    learnt = evaluate(fit, jax.random.key(1), first, later)
    alone_model = NUTS(substitute(models.one_chick, data=fit.shared))
    alone = _alone(alone_model, first, later)
    rows = [
        ["learnt from forty", *_scored(learnt.nll, learnt.coverage)],
        ["each alone, by NUTS", *_scored(*alone)],
    ]
    locals_ = [
        [
            f"{off.mean():.3f}",
            f"{off.max():.3f}",
            f"{ratio.min():.2f} to {ratio.max():.2f}",
            f"{fit.run_seconds:.1f} s",
            f"{run.seconds:.1f} s",
        ]
    ]
    return Chapter(
        "chicks",
        "Fifty chicks: what one learns from the others",
        f"From {shown} weighings, the later ones of a new chick are predicted at {np.mean(learnt.nll):.2f} "
        f"nats each, instead of {np.mean(alone[0]):.2f} from its own alone.",
        [
            "Chicks on four diets, weighed every other day for three weeks. The model is of one chick: a "
            "parabola of its log weight. Lifted, it has a Normal-Inverse-Wishart law over parabolas, learnt "
            "from forty chicks in closed form; ten others were kept apart.",
            "The lifted hierarchy is a NumPyro model too, so NUTS can check it: the last table compares the "
            "forty posteriors.",
        ],
        [
            Table(
                f"Ten new chicks after {shown} weighings: their later ones",
                ["", "NLL a weighing", "90 % covers"],
                rows,
            ),
            Table(
                "The forty chicks' own posteriors, closed form against NUTS",
                ["means off, in sds: average", "largest", "sds over NUTS's", "closed form", "NUTS"],
                locals_,
            ),
        ],
        pictures.chicks(fit, columns, list(new), shown),
        f"Six of the new chicks: what is predicted after {shown} weighings, and what came.",
        [run],
        ["mean"],
    )


def _scored(nll, coverage) -> list[str]:
    return [f"{np.mean(nll):.3f} ± {np.std(nll, ddof=1) / np.sqrt(len(nll)):.3f}", f"{np.mean(coverage):.2f}"]


def _alone(kernel: NUTS, first: list, later: list) -> tuple[list[float], list[float]]:
    """NLL and coverage of each new chick by NUTS on the one-chick model with the prior that stands in it."""
    mcmc = MCMC(kernel, num_warmup=300, num_samples=500, progress_bar=False)
    nll, coverage = [], []
    for (x, y), (at, wanted) in zip(first, later, strict=True):
        mcmc.run(jax.random.key(0), jnp.asarray(x), jnp.asarray(y))
        found = posterior_functions(kernel.model, mcmc, jnp.asarray(at), y=jnp.asarray(wanted))
        nll.append(found.nll)
        coverage.append(float(found.coverage((0.9,))[0]))
    return nll, coverage


ALL = {"radon": radon, "faithful": faithful, "nile": nile, "crash": crash, "chicks": chicks}
