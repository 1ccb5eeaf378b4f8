# %% [markdown]
# # Do the intervals of a neural equation cover?
#
# A gas of viscosity ν starts with a velocity that is not known, here a small network of the place, and
# flows by Burgers' equation, u_t + u u_x = ν u_xx. A few noisy readings of u, later on, are all that is
# seen. As Cole and Hopf found, the solution is a mean over a normal law: with the antiderivative ψ of the
# velocity at the start,
#
#     u(x, t) = E[ψ'(y) exp(-ψ(y) / 2ν)] / E[exp(-ψ(y) / 2ν)],   y ~ N(x, 2 ν t)
#
# so that by quadrature network, viscosity and equation are one NumPyro program, without residuals. Problems
# are drawn from the prior, all in one plate. The posterior's intervals then cover as often as they say,
# exactly, and ways of inference can be held to that: NUTS; SG-HMC, which sees half of the readings at a
# step; an ensemble of points, fitted from several starts; and one whose members have a prior centre and
# noise of their own each. The network has one layer whose weights are free. Problems, sizes and figures are
# our own.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.infer import MCMC, NUTS, init_to_sample
from numpyro.infer.autoguide import AutoDelta

from ppl_ext.infer import SGHMC, fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Psaros, Meng, Zou, Guo, Karniadakis (2023). Uncertainty quantification in scientific machine learning: "
    "methods, metrics, and comparisons. Journal of Computational Physics; arXiv:2201.07766."
)
NOISE, MEMBERS, SHIFTS = 0.1, 20, jnp.array([-1.2, -0.4, 0.4, 1.2])
X, T = (f.ravel() for f in jnp.meshgrid(jnp.linspace(-1.5, 1.5, 5), jnp.array([0.2, 0.8])))
NODES, MASSES = (jnp.asarray(f) for f in np.polynomial.hermite_e.hermegauss(16))
PLACES = jnp.linspace(-1.5, 1.5, 7)


# %% The velocity at the start, and its antiderivative; and the velocity later.
def start(heights, x):
    at = 2.0 * (x[..., None] - SHIFTS)
    return (jnp.tanh(at) * heights).sum(-1), (jnp.logaddexp(at, -at) * heights).sum(-1) / 2.0


def velocity(nu, heights, x, t):
    u, potential = start(heights, x + jnp.sqrt(2.0 * nu * t) * NODES)
    return jax.nn.softmax(jnp.log(MASSES) - potential / (2.0 * nu)) @ u


def unpacked(free):
    return 0.1 * jnp.exp(0.5 * free[..., 0]), 0.7 * free[..., 1:]


def model(y, centre, batch=None):
    with numpyro.plate("problems", len(y), dim=-2):
        free = numpyro.sample("free", dist.Normal(centre[:, None], 1.0).to_event(1))
        with numpyro.plate("readings", len(X), subsample_size=batch, dim=-1) as seen:
            at_all = jax.vmap(jax.vmap(velocity, (None, None, 0, 0)), (0, 0, None, None))
            law = dist.Normal(at_all(*unpacked(free[:, 0]), X[seen], T[seen]), NOISE)
            numpyro.sample("y", law, obs=None if y is None else y[:, seen])


# %% Draws (draw, problem, 5) by each way of inference.
def drawn(key, kernel, num_warmup, num_samples, *data):
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(key, *data)
    return mcmc.get_samples()["free"][:, :, 0]


def points(key, num_steps, num_chains, *data):
    guide, optim = AutoDelta(model, init_loc_fn=init_to_sample), optax.adam(0.05)
    settings = {"num_chains": num_chains, "progress_bar": False}
    run = fit(key, model, guide, ELBO(), optim, num_steps, *data, **settings)
    return run.params["free_auto_loc"][:, :, 0]


def ways(y, zero, num):
    key, many = random.key(1), jnp.tile(y, (MEMBERS, 1))
    centres = random.normal(random.key(2), (len(many), zero.shape[1]))
    yield "NUTS", drawn(key, NUTS(model), num // 2, num, y, zero)
    yield "SG-HMC", drawn(key, SGHMC(model, step_size=0.05, friction=0.1), num, 10 * num, y, zero, 5)
    yield "an ensemble from several starts", points(key, num, MEMBERS, y, zero)
    many = many + NOISE * random.normal(random.key(3), many.shape)
    found = points(key, num, 1, many, centres)
    yield "an ensemble with centres and noise of its own", found.reshape(MEMBERS, *zero.shape)


def told(draws, truth):
    """Shares of intervals that hold the truth, with standard errors over problems."""
    cells = []
    for level in (0.5, 0.9):
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        inside = ((low < truth) & (truth < high)).reshape(len(truth), -1).mean(1)
        cells.append(f"{inside.mean():.2f} ± {inside.std(ddof=1) / len(truth) ** 0.5:.2f}")
    return ", ".join(cells)


def claims(small=False):
    num, rows = 12 if small else 40, []
    zero, truth = jnp.zeros((num, 5)), random.normal(random.key(4), (num, 5))
    clean = jax.vmap(jax.vmap(velocity, (None, None, 0, 0)), (0, 0, None, None))(*unpacked(truth), X, T)
    y = clean + NOISE * random.normal(random.key(5), clean.shape)
    for name, draws in ways(y, zero, 100 if small else 400):
        of = [(unpacked(f)[0], start(unpacked(f)[1][..., None, :], PLACES)[0]) for f in (draws, truth)]
        for what, found, known in zip(("viscosity", "velocity at the start"), *of, strict=True):
            rows.append(
                (
                    f"coverage of the {what} by {name}",
                    "0.50, 0.90",
                    told(np.asarray(found), np.asarray(known)),
                )
            )
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
