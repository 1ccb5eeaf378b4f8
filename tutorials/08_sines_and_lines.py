# %% [markdown]
# # Sines and lines: few-shot regression with honest bands
#
# Half of the tasks are pieces of a sine, half are lines, and a new task shows five points. A network learns
# features that all tasks share; its last layer is each task's own, and a Normal-Inverse-Wishart law over that
# layer is learnt from all of them. What comes out is a mean **and** a band, in closed form.

# %%
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import nnx_module

from ppl_ext.meta import ExactLinearGaussian, SimulatedStream, evaluate, head, lift, plot_episodes

NOISE, WIDTH, SHOWN = 0.3, 24, 5

# %% [markdown]
# ## Tasks without end
#
# A simulator of one task is a stream: it returns the arguments of the model below.


# %%
def task(key):
    of_x, of_size, of_phase, of_line, of_kind, of_noise = jax.random.split(key, 6)
    x = jax.random.uniform(of_x, (30,), minval=-5.0, maxval=5.0)
    sine = jax.random.uniform(of_size, minval=0.1, maxval=5.0) * jnp.sin(
        x + jax.random.uniform(of_phase, maxval=jnp.pi)
    )
    slope, intercept = jax.random.uniform(of_line, (2,), minval=-3.0, maxval=3.0)
    y = jnp.where(jax.random.bernoulli(of_kind), sine, slope * x + intercept)
    return x, y + NOISE * jax.random.normal(of_noise, x.shape)


stream = SimulatedStream(task)

# %% [markdown]
# ## One task, as an ordinary NumPyro model
#
# `head` is a linear layer with bias whose weights are one sample site, `"weights"`. The rest of the network
# and the noise are params.

# %%
module = nnx.Sequential(
    nnx.Linear(
        1,
        WIDTH,
        kernel_init=nnx.initializers.normal(1.0),
        bias_init=nnx.initializers.uniform(4.0),
        rngs=nnx.Rngs(0),
    ),
    jnp.tanh,
    nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(1)),
    jnp.tanh,
)


def episode(x, y=None):
    features = nnx_module("net", module)(x[:, None])
    noise = numpyro.param("noise", 0.5, constraint=dist.constraints.positive)
    f = head("weights", features)
    with numpyro.plate("points", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


# %% [markdown]
# ## Lift and train
#
# The weights are local. Given the features a task is linear and Gaussian, so its posterior is exact. The
# simulator has no end, so we say how many tasks the hierarchy stands for. A minute of training shows the
# idea; `python -m benchmarks meta_regression` has the long run, beside MAML and a neural process.

# %%
STEPS = 600
fit = lift(episode, local=["weights"], num_episodes=10_000).fit(
    jax.random.key(0),
    stream,
    local_solver=ExactLinearGaussian(),
    optim=optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)),
    num_steps=STEPS,
    batch_size=10,
    rate=lambda step: jnp.maximum(0.05 * (1 - step / STEPS), 2e-3),
    progress_bar=False,
)
print(f"noise {float(fit.shared['noise']):.2f} (true: {NOISE})")

# %% [markdown]
# ## New tasks
#
# After five points the band is narrow where there is data, and where the features know what must follow;
# elsewhere it is wide.

# %%
new = [tuple(np.asarray(a) for a in task(jax.random.key(100 + i))) for i in range(60)]
shown, asked = [(x[:SHOWN], y[:SHOWN]) for x, y in new], [(x[SHOWN:], y[SHOWN:]) for x, y in new]
axes = plot_episodes(fit, shown[:4], np.linspace(-5, 5, 100), num_samples=500)
for ax, (x, y) in zip(axes, asked, strict=False):
    ax.plot(x, y, ".", color="0.6", zorder=0)
plt.savefig("sines_and_lines.png", dpi=110)

# %% [markdown]
# Is the band right? Over sixty new tasks, the 90 % intervals should hold nine tenths of what was not shown.

# %%
scores = evaluate(fit, jax.random.key(1), shown, asked, num_samples=300)
scores.print_summary()
assert 0.8 < scores.coverage.mean() < 0.97

# %% [markdown]
# More points, less to say: the same task after one, five and twenty of its points.

# %%
x, y = new[1]
_, axes = plt.subplots(1, 3, figsize=(10.2, 3.4), layout="constrained", sharey=True)
plot_episodes(
    fit,
    [(x[:n], y[:n]) for n in (1, 5, 20)],
    np.linspace(-5, 5, 100),
    axes,
    labels=["1 point", "5 points", "20 points"],
)
plt.savefig("more_points.png", dpi=110)
