"""Run by ``test_sharding.py`` in a process of its own, since the number of devices is fixed when JAX starts:
every algorithm to a file.
"""

import re
import sys
from unittest.mock import patch

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS

from ppl_ext import log_density, marginal
from ppl_ext.algorithms import ParticleFilter
from ppl_ext.errors import ArgumentError
from ppl_ext.infer import PMMH, SGHMC, SMC, ParticleGibbs, chains_over, fit
from ppl_ext.meta import EpisodeStream, LaplaceGGN, lift
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.smoothing import OnlineSmoother, smooth

Y = np.array([0.3, -0.1, 0.5, 1.2, 0.9], np.float32)
X = np.linspace(-1.0, 1.0, 64, dtype=np.float32)


def walk(y):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.7))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def line(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


def guide(x, y):
    numpyro.sample("slope", dist.Normal(numpyro.param("loc", 0.1), 0.2))


def tempered(mesh):
    """A result, whose particles come in the order of one device."""
    result = SMC(line, 64, mesh=mesh, temperatures=[0.1, 1.0], progress_bar=False).run(
        jax.random.key(0), X, 0.7 * X
    )
    return {"evidence": result.log_evidence, "slope": result.values["slope"]}


def filtered(mesh):
    of = marginal(walk, ["phi"], ParticleFilter(64, mesh=mesh))

    def log_w(phi):
        return log_density(of, {"phi": phi}, Y, rng_key=jax.random.key(0)).total

    value, slope = jax.jit(jax.value_and_grad(log_w))(0.8)
    return {"value": value, "slope": slope}


def filtering_objective(mesh):
    """Particles inside of two chains of a fit, which run side by side; here every draw is a site."""

    def of_phi(y):
        numpyro.sample("phi", dist.TruncatedNormal(numpyro.param("loc", 0.5), 0.1, low=-1.0, high=1.0))

    of = marginal(walk, ["phi"], ParticleFilter(16, mesh=mesh))
    result = fit(
        jax.random.key(5), of, of_phi, ELBO(), optax.adam(0.01), 5, Y, num_chains=2, progress_bar=False
    )
    return {"loc": result.params["loc"], "losses": result.losses}


FUNCTIONALS = {"s10": lambda t, x_prev, x: x_prev * x}


def smoothed(mesh, backward):
    result = smooth(walk, FUNCTIONALS, num_particles=64, backward=backward, mesh=mesh).run(
        jax.random.key(1), Y, params={"phi": 0.8}
    )
    draws = result.sample(num_samples=3)
    return {
        "evidence": result.log_evidence,
        "s10": result.expectations["s10"],
        "ess": result.ess,
        "x": draws["x"],
    }


def online(mesh):
    smoother = OnlineSmoother(walk, FUNCTIONALS, num_particles=64, mesh=mesh)
    state = smoother.init(jax.random.key(1), params={"phi": 0.8})
    for y in Y:
        state = smoother.step(state, y)
    result = smoother.result(state)
    return {"evidence": result.log_evidence, "s10": result.expectations["s10"]}


def episodes(x, y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.StudentT(5.0, level + slope * x, 0.3), obs=y)


def meta(mesh):
    rng = np.random.default_rng(0)
    rows = [
        (X[:n], (0.5 + 0.3 * k * X[:n] + 0.3 * rng.normal(size=n)).astype(np.float32))
        for k, n in enumerate([5, 8, 3, 8] * 4)
    ]
    lifted = lift(episodes, ["level", "slope"])
    found = lifted.fit(
        jax.random.key(2),
        EpisodeStream(rows),
        local_solver=LaplaceGGN(),
        num_steps=4,
        batch_size=8,
        progress_bar=False,
        mesh=mesh,
    )
    return {"loc": found.state.niw.loc, "matrix": found.state.niw.scale_matrix, "loss": found.terms.loss}


def chains(mesh, kernel, *args):
    method = "sequential" if mesh is None else chains_over(mesh)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=5, num_chains=8, chain_method=method, progress_bar=False)
    mcmc.run(jax.random.key(3), *args)
    return dict(mcmc.get_samples(group_by_chain=True))


def rows_of_data(mesh):
    """Nothing but where the data lie: the sums over a plate are shared out."""
    data = X, 1.5 * X
    data = (
        data if mesh is None else jax.device_put(data, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))
    )
    result = fit(jax.random.key(4), line, guide, IWELBO(2), optax.adam(0.1), 20, *data, progress_bar=False)
    return {"loc": result.params["loc"], "losses": result.losses}


ALGORITHMS = {
    "filter": filtered,
    "tempered": tempered,
    "filtering_objective": filtering_objective,
    "smooth_mcmc": lambda mesh: smoothed(mesh, "mcmc"),
    "smooth_dense": lambda mesh: smoothed(mesh, "dense"),
    "smooth_hybrid": lambda mesh: smoothed(mesh, "hybrid"),
    "online": online,
    "meta": meta,
    "rows": rows_of_data,
    "nuts": lambda mesh: chains(mesh, NUTS(line), X, 1.5 * X),
    "sghmc": lambda mesh: chains(mesh, SGHMC(line, step_size=0.01), X, 1.5 * X),
    "particle_gibbs": lambda mesh: chains(mesh, ParticleGibbs(walk, num_particles=6), Y),
    "pmmh": lambda mesh: chains(mesh, PMMH(walk, num_particles=16), Y),
    "pmmh_particles": lambda mesh: chains(None, PMMH(walk, num_particles=16, mesh=mesh), Y),
}


def shows(fn, *words):
    try:
        fn()
    except ArgumentError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"not refused: {words}")


def check_refusals(mesh):
    what = ("does not divide over the 8 devices of the mesh's axis 'all'", "Take a multiple of 8")
    shows(lambda: ParticleFilter(63, mesh=mesh), "ParticleFilter: num_particles=63", *what)
    shows(lambda: smooth(walk, num_particles=12, mesh=mesh), "smooth: num_particles=12", *what)
    shows(
        lambda: OnlineSmoother(walk, num_particles=12, mesh=mesh), "OnlineSmoother: num_particles=12", *what
    )
    shows(lambda: PMMH(walk, num_particles=12, mesh=mesh), "PMMH: num_particles=12", *what)
    stream = EpisodeStream([(X[:4], X[:4])] * 6)
    shows(
        lambda: lift(episodes, ["level"]).fit(jax.random.key(0), stream, progress_bar=False, mesh=mesh),
        "episodes in a batch=6",
        *what,
    )
    mcmc = MCMC(
        SGHMC(line, step_size=0.01),
        num_warmup=1,
        num_samples=1,
        num_chains=3,
        chain_method=chains_over(mesh),
        progress_bar=False,
    )
    shows(lambda: mcmc.run(jax.random.key(0), X, X), "MCMC: num_chains=3", *what)
    square = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    shows(lambda: smooth(walk, num_particles=8, mesh=square), "mesh must have one axis, and this one has 2")
    explicit = jax.make_mesh((8,), ("all",), axis_types=(AxisType.Explicit,))
    shows(lambda: ParticleFilter(64, mesh=explicit), "must be of type AxisType.Auto", "of type Explicit")


def check_messages(mesh):
    """A step sends the weights, and what ancestors hand down; not the parts of every running sum."""
    smoother = smooth(walk, {"s": lambda t, x_prev, x: x_prev * x}, num_particles=2048, mesh=mesh)
    text = (
        jax.jit(lambda key: smoother.run(key, Y, params={"phi": 0.8}).expectations)
        .lower(jax.random.key(0))
        .compile()
        .as_text()
    )
    sent = re.findall(
        r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text
    )
    assert "all-gather" in sent and "collective-permute" not in sent and len(sent) <= 30, sent


def spread(name, mesh):
    """Run an algorithm; where there is a mesh it must lay something along it, or one device would do all of
    the work, and rightly.
    """
    laid = []

    def note(place):
        return lambda tree, sharding: (
            laid.append(sharding.spec == PartitionSpec("all")) or place(tree, sharding)
        )

    with (
        patch.object(lax, "with_sharding_constraint", note(lax.with_sharding_constraint)),
        patch.object(jax, "device_put", note(jax.device_put)),
    ):
        found = ALGORITHMS[name](mesh)
    assert any(laid) == (mesh is not None), name
    return found


if __name__ == "__main__":
    file, devices, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:] or ALGORITHMS
    assert jax.device_count() == devices
    mesh = jax.make_mesh((devices,), ("all",), axis_types=(AxisType.Auto,)) if devices > 1 else None
    found = {f"{name}/{key}": np.asarray(x) for name in names for key, x in spread(name, mesh).items()}
    if mesh is not None:
        check_refusals(mesh)
        check_messages(mesh)
    np.savez(file, **found)
