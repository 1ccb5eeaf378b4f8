# %% [markdown]
# # Many targets, some of them unseen
#
# Boats leave a harbour, and a radar looks once a minute. It misses one boat in ten, and shows echoes that
# are of no boat. Nothing tells which echo is of which boat, nor how many boats there are. What is asked for
# is where they are, and how many.
#
# One boat is an ordinary NumPyro step, as a `scan` takes it. Everything else is said about the set of them:
# where boats appear, how likely one is seen, and how many echoes are false.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext.diagnostics import verdict
from ppl_ext.smoothing.tracking import PoissonTargets, Tracker, draw_scene, gospa

MOVE = jnp.kron(jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.eye(2))
NOISE = 0.02 * jnp.kron(jnp.array([[1 / 3, 1 / 2], [1 / 2, 1.0]]), jnp.eye(2))


def boat(x, z):
    x = numpyro.sample("x", dist.MultivariateNormal(MOVE @ x, NOISE))  # position and velocity
    numpyro.sample("z", dist.Normal(x[:2], 0.7).to_event(1), obs=z)
    return x, None


harbour = dist.Normal(jnp.zeros(4), jnp.array([4.0, 4.0, 1.2, 1.2])).to_event(1)
radar = dist.Uniform(-50.0 * jnp.ones(2), 50.0 * jnp.ones(2)).to_event(1)
tracker = Tracker(
    boat, births=PoissonTargets(0.3, harbour), clutter=8.0, clutter_law=radar, detection=0.9, survival=0.99
)

# %% [markdown]
# A scene is drawn from that very model, and filtered. `run` takes the echoes of each minute as they come,
# and compiles once for any number of them.

# %%
scene = draw_scene(jax.random.key(3), tracker, 40)
tracks = tracker.run(scene.measurements)
tracks.print_summary()

# %% [markdown]
# How many boats there are, and how far what was found is from the truth. The GOSPA metric adds up distances
# of boats that were found, and half the cut-off for each that was missed or is none.

# %%
truth = [x[:, :2] for x in scene.truth]
found = [gospa(tracks.estimates(t)[:, :2], x, c=5.0) for t, x in enumerate(truth)]
raw = [gospa(z, x, c=5.0) for z, x in zip(scene.measurements, truth, strict=True)]
print(f"distance by step {np.mean([g.distance for g in found]):.2f}, of the echoes as they are ", end="")
print(f"{np.mean([g.distance for g in raw]):.2f}")
off = np.asarray(tracks.expected_number) - [len(x) for x in truth]
print(f"number of boats: off by {np.abs(off).mean():.2f} on average")
assert np.mean([g.distance for g in found]) < 0.4 * np.mean([g.distance for g in raw])
assert np.abs(off).mean() < 1.0 and verdict(tracks).level == "unknown"

# %%
figure, (where, many) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
echoes = np.concatenate(scene.measurements)
where.plot(*echoes.T, ".", color="0.8", ms=3, label="echoes of all minutes")
for label in range(1 + max(int(x.max()) for x in scene.labels if len(x))):
    path = [x[k == label][0] for x, k in zip(truth, scene.labels, strict=True) if label in k]
    where.plot(*np.array(path).reshape(-1, 2).T, color="0.3", lw=0.8)
names = np.concatenate([tracks.labels(t) for t in range(40)])
for label in np.unique(names):
    seen = [tracks.estimates(t)[tracks.labels(t) == label] for t in range(40)]
    where.plot(*np.concatenate(seen)[:, :2].T, "-", lw=2.0, alpha=0.7)
where.set(xlim=(-50, 50), ylim=(-50, 50), title="boats (black) and tracks")
where.legend(loc="lower left", markerscale=3)
many.step(range(40), [len(x) for x in truth], "k", where="mid", label="boats")
many.plot(tracks.expected_number, "C0", label="expected")
many.plot([len(tracks.estimates(t)) for t in range(40)], "C1.", label="more likely than not")
many.plot([len(z) for z in scene.measurements], "0.8", label="echoes")
many.set(xlabel="minute", title="how many")
many.legend()
figure.savefig("many_targets.png", dpi=110)

# %% [markdown]
# Where the numbers of the model are not known, the evidence is a factor of a NumPyro model: `filter` takes
# arrays that may be traced, and has derivatives.


# %%
values, seen = np.zeros((40, 30, 2)), np.zeros((40, 30), bool)
for t, z in enumerate(scene.measurements):
    values[t, : len(z)], seen[t, : len(z)] = z, True


@jax.jit
def evidence(detection):
    births = PoissonTargets(0.3, harbour)
    return Tracker(boat, births, 8.0, radar, detection, 0.99).filter(values, seen).log_evidence


grid = np.array([0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99])
logs = np.array([float(evidence(p)) for p in grid])
print({f"{p:g}": round(float(x - logs.max()), 1) for p, x in zip(grid, logs, strict=True)})
assert 0.8 <= grid[logs.argmax()] <= 0.95
print("slope at 0.7:", round(float(jax.grad(evidence)(0.7)), 1))
