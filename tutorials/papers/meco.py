# %% [markdown]
# # Unnormalised models: the likelihood itself, or telling data from noise
#
# An energy $-\log \tilde p_\theta$ without its constant is learned in two ways. Noise-contrastive estimation
# classifies data against draws of a noise law q, with the constant as one more parameter. MECO maximises the
# likelihood: the constant is $\mathbb{E}_q[\tilde p / q]$, tracked over the steps. The first has a flat
# objective where data and noise are easy to tell apart; the second suffers where the noise misses the model.
#
# The paper's own example is a Gaussian of unknown mean, far from where the search starts. The answer of
# maximum likelihood is the mean of the data.

# %%
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext.infer import fit
from ppl_ext.objectives import NCE, CompositionalNLL, unnormalized

PAPER = (
    "Jiang, Qin, Wu, Chen, Yang, Zhang (2023). Learning unnormalized statistical models via compositional "
    "optimization. ICML; NCE: Gutmann, Hyvärinen (2012). JMLR 13."
)
NOISES = {"N(0, 3²)": (0.0, 3.0), "N(4, 1.5²)": (4.0, 1.5), "N(0, 1)": (0.0, 1.0)}


# %%
def model(x, loc, scale):
    mean, constant = numpyro.param("mean", 0.0), numpyro.param("constant", 0.0)
    with numpyro.plate("rows", 2000, subsample_size=100) as rows:
        noise = dist.Normal(loc, scale)
        unnormalized("x", lambda x: -((x - mean) ** 2) / 2 - constant, noise, obs=x[rows])


def guide(x, loc, scale):
    with numpyro.plate("rows", 2000, subsample_size=100):
        pass


# %% [markdown]
# ## Errors after 1000 steps
#
# Plain stochastic gradients, since a flat objective is what the paper blames. Each figure is the root of the
# mean squared distance to the mean of the data, over eight restarts; beside it, how many draws of the noise
# count at the end. Where two of a hundred do, MECO would refuse to go on (`least_ess`), were it not asked to;
# neither fifty times as many draws nor a constant that is remembered ten times as long helps enough.


# %%
OPTIM = optax.sgd(optax.cosine_decay_schedule(0.1 / 2000, 1000))


def error(objective, true_mean, noise):
    x = true_mean + dist.Normal(0.0, 1.0).sample(jax.random.key(1), (2000,))
    run = (model, guide, objective, OPTIM, 1000, x, *map(jnp.array, noise))
    fitted = fit(jax.random.key(0), *run, num_chains=8, progress_bar=False)
    away = jnp.asarray(fitted.params["mean"]) - x.mean()
    ess = fitted.params.get("x_normaliser", {"ess": jnp.ones(1)})["ess"]
    return float(jnp.mean(away**2) ** 0.5), float(jnp.mean(jnp.asarray(ess)))


# %%
def claims(small=False):
    cases = [(4.0, "N(0, 3²)", 100, 0.1), (4.0, "N(4, 1.5²)", 100, 0.1), (2.0, "N(0, 1)", 100, 0.1)]
    far = [(4.0, "N(0, 1)", 100, 0.1), (4.0, "N(0, 1)", 5000, 0.1), (4.0, "N(0, 1)", 100, 0.01)]
    rows = []
    for true_mean, name, num_noise, beta in cases[::2] if small else cases + far:
        meco, ess = error(CompositionalNLL(beta, num_noise, least_ess=1.0), true_mean, NOISES[name])
        nce, _ = error(NCE(1.0, num_noise), true_mean, NOISES[name])
        claim = f"errors of MECO and NCE: mean {true_mean:g}, {num_noise} draws of noise {name}"
        claim += f", memory {1 / beta:g} steps" if beta < 0.1 else ""
        known = "MECO's smaller" if true_mean == 4.0 else "MECO's larger"
        missed = "not reproduced: " if (meco < nce) != (true_mean == 4.0) else ""
        rows.append((claim, known, f"{missed}{meco:.4f} and {nce:.4f}; {ess:.0f} draws count"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
