# %% [markdown]
# # A conditional VAE whose latent carries a given number of nats
#
# A decoder that sees its input x needs no latent for what x says of y. The weight β of the divergence in a
# conditional VAE decides what else the latent carries; here it is learned, by `constrain`, so that the latent
# carries C nats a datum. `collapse`, told that weight, then predicts how many of its units are active.
#
# With a linear decoder all is known: the axes are eigenvectors of the covariance of what a regression on x
# leaves of y, the level $\beta \eta^2$ follows from C, and an axis is active if its variance exceeds it.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext import log_density, objective, simulate
from ppl_ext.diagnostics import collapse
from ppl_ext.infer import fit
from ppl_ext.objectives import constrain, kl

PAPER = (
    "Sohn, Lee, Yan (2015). Learning structured output representation using deep conditional generative "
    "models. NeurIPS; with a weight as Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed, Lerchner "
    "(2017). beta-VAE. ICLR."
)
LEFT = np.array([6.0, 2.0, 1.0, 0.25])
NOISE = 0.4
ROWS = 128


# %%
def data():
    """Two inputs, and four outputs whose variances given the inputs are exact."""
    rng = np.random.default_rng(1)
    raw = rng.normal(size=(ROWS, 6))
    raw = np.linalg.qr(raw - raw.mean(0))[0] * ROWS**0.5
    y = raw[:, 2:] * LEFT**0.5 + raw[:, :2] @ (2.0 * rng.normal(size=(2, 4)))
    return jnp.asarray(y, dtype=jnp.float32), jnp.asarray(raw[:, :2], dtype=jnp.float32)


def matrix(name, rows, columns):
    return numpyro.param(name, lambda key: 0.3 * jax.random.normal(key, (rows, columns)))


def model(y, x):
    with numpyro.plate("rows", ROWS):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
        mean = z @ matrix("decode", 4, 4) + x @ matrix("inputs", 2, 4)
        numpyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=y)


def guide(y, x):
    spread = numpyro.param("spread", jnp.ones(4), constraint=dist.constraints.positive)
    mean = jnp.concatenate([y, x], 1) @ matrix("encode", 6, 4)
    with numpyro.plate("rows", ROWS):
        numpyro.sample("z", dist.Normal(mean, spread).to_event(1))


@objective
def Likelihood(model, guide):
    return log_density(model, simulate(guide).values).select("y")


# %% [markdown]
# ## The level in closed form, and the fit


# %%
def level(c):
    """β η² at C nats, and the number of axes above it."""
    for k in range(1, len(LEFT) + 1):
        found = np.exp((np.log(LEFT[:k]).sum() - 2 * c) / k)
        if k == len(LEFT) or found >= LEFT[k]:
            return found, k


def run(c, num_steps):
    loss = constrain(Likelihood(), kl("z"), at_most=ROWS * c, rate=0.0005, initial=10.0)
    optim = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    fitted = fit(jax.random.key(0), model, guide, loss, optim, num_steps, *data(), progress_bar=False)
    weight = next(float(v["multiplier"][0]) for v in fitted.params.values() if isinstance(v, dict))
    return weight, collapse(fitted, weights=weight, inputs=data()[1])


# %%
def claims(small=False):
    rows = []
    for c in (1.0,) if small else (0.4, 1.0, 4.0):
        weight, report = run(c, 3000 if small else 6000)
        exact, units = level(c)
        rows += [
            (f"nats at C = {c:g}", f"{c:.3f}", f"{report.sites['z'].kl.sum():.3f}"),
            ("weight of the divergence", f"{exact / NOISE**2:.3f}", f"{weight:.3f}"),
            ("active units; predicted", f"{units}; {units}", f"{report.observed}; {report.predicted}"),
        ]
        rows += (
            [("the cause", "inputs", report.causes[0].split(",")[1].split(":")[0].strip())]
            if report.causes
            else []
        )
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
