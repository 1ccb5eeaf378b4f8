"""The README's picture: ``python -m demo.first_picture`` draws it anew into ``docs/images/first.png``."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from tinygp import kernels

from ppl_ext.diagnostics import plot_forest, plot_functions, plot_smoothing
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.priors import Gaussian, GaussianProcess, lift_prior, match
from ppl_ext.smoothing import smooth

matplotlib.use("agg")
PATH = Path(__file__).resolve().parent.parent / "docs" / "images" / "first.png"


def line(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    with numpyro.plate("points", len(x)):
        numpyro.sample("y", dist.Normal(intercept + slope * x, 0.5), obs=y)


def walk(y):
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(x_prev, 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y_t)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def network(x):
    first = numpyro.sample("first.w", dist.Normal(0.0, 1.0).expand([1, 30]).to_event(2))
    bias = numpyro.sample("first.b", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
    last = numpyro.sample("last.w", dist.Normal(0.0, 1.0).expand([30, 1]).to_event(2))
    return numpyro.deterministic("f", (jnp.tanh(x @ first + bias) @ last)[:, 0])


def draw(axes) -> None:
    """One model under three algorithms; a series with a gap; functions of a network before and after."""
    keys = jax.random.split(jax.random.key(0), 6)
    x = jnp.linspace(0.5, 1.5, 25)
    y = 0.5 + 1.5 * x + 0.5 * jax.random.normal(keys[0], x.shape)
    mcmc = MCMC(NUTS(line), num_warmup=500, num_samples=1000, progress_bar=False)
    mcmc.run(keys[1], x, y)
    results = {"NUTS": mcmc}
    for name, guide in (("AutoNormal", AutoNormal(line)), ("full covariance", AutoMultivariateNormal(line))):
        results[name] = fit(keys[2], line, guide, ELBO(10), optax.adam(0.02), 1500, x, y, progress_bar=False)
    plot_forest(results, ["slope"], axes[:1])
    axes[0].set_title("one model, three algorithms")

    time = jnp.arange(60)
    seen = jnp.sin(time / 6.0) + 0.5 * jax.random.normal(keys[3], time.shape)
    seen = seen.at[25:38].set(jnp.nan)
    plot_smoothing(
        smooth(walk, backward="exact").run(keys[4], seen, params={"x0": 0.0}), axes=axes[1:2], observed=seen
    )
    axes[1].set_title("a series with a gap, smoothed")
    axes[1].get_legend().remove()  # the page says what is what

    inputs = jnp.linspace(-2.0, 2.0, 40)[:, None]
    lifted = lift_prior(network, {"*.w": Gaussian(), "*.b": Gaussian()})
    target = GaussianProcess(kernels.ExpSquared(scale=0.7))
    tuned = match(
        keys[5], lifted, output="f", inputs=inputs, target=target, num_steps=300, progress_bar=False
    )
    values = tuned.functions(keys[5], inputs, num_draws=200)
    plot_functions(np.asarray(inputs[:, 0]), values["after"], axes[2])
    axes[2].set_title("a network, tuned to a Gaussian process")


def main() -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["axes.titlesize"] = "medium"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    draw(axes)
    PATH.parent.mkdir(exist_ok=True)
    figure.savefig(PATH, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
