# %% [markdown]
# # Mixtures of experts: what more data tell, and what they never do
#
# A row x goes to expert k with probability softmax_k(b_k x + c_k), and the expert answers a_k x + d_k with
# normal noise. The expert is a finite site, which is summed out; `fit` finds the maximum of the likelihood.
#
# With as many experts as there are, parameters and law come in as n^{−1/2}. With one too many the law still
# does, and the parameters hardly: two fitted experts share a true one, and what one is off the other may
# undo. Voronoi's loss asks each fitted expert for the true one that is nearest to it:
#
#     Σ_j |Σ_{i near j} w_i − w_j| + Σ_j Σ_{i near j} w_i |θ_i − θ_j|,
#
# with w = exp(c), and θ the slopes of gate and expert, the expert's level and its scale. In a cell that two
# share only squares of |θ_i − θ_j|, or higher powers, come in as n^{−1/2}. Hellinger's distance of the laws of
# y given x is by quadrature over y and a mean over x.
#
# A temperature, softmax_k(b_k x / τ + c_k), adds a direction in which nothing changes: b and τ grow together.
# The information about it is zero at any n. Where an activation stands before the division it is not. That
# the rates are slow because of it is Nguyen, Akbarian, Ho (2024); the losses are of the paper below. The
# experts are ours.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import ppl_ext
from ppl_ext.infer import RegularizedNewton, fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Nguyen, Nguyen, Ho (2023). Demystifying softmax gating function in Gaussian mixture of experts. NeurIPS. "
    "And Nguyen, Akbarian, Ho (2024). Is temperature sample efficient for softmax Gaussian mixture of "
    "experts? ICML."
)
# gate and expert: slope, level; scale
TRUTH = {"gate": jnp.array([[4.0, 0.5]]), "experts": jnp.array([[1.5, 1.0], [-1.0, -0.5]]), "log_scale": jnp.log(jnp.array([0.4, 0.3]))}


def logits(gate, x):  # the last expert's are zero
    return x[:, None] * jnp.append(gate[:, 0], 0.0) + jnp.append(gate[:, 1], 0.0)


def model(x, y, num):
    start = jax.random.normal
    gate = numpyro.param("gate", lambda key: start(key, (num - 1, 2)))
    experts = numpyro.param("experts", lambda key: start(key, (num, 2)))
    log_scale = numpyro.param("log_scale", jnp.zeros(num))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=logits(gate, x)), infer={"enumerate": "parallel"})
        mean = x * experts[z, 0] + experts[z, 1]
        numpyro.sample("y", dist.Normal(mean, jnp.exp(log_scale[z])), obs=y)


def no_guide(x, y, num):
    pass


def law(params, x):
    means = x[:, None] * params["experts"][:, 0] + params["experts"][:, 1]
    return dist.MixtureSameFamily(dist.Categorical(logits=logits(params["gate"], x)), dist.Normal(means, jnp.exp(params["log_scale"])))


def data(seed, n):
    of_x, of_y = jax.random.split(jax.random.key(seed))
    x = jax.random.uniform(of_x, (n,), minval=-1.0)
    return x, law(TRUTH, x).sample(of_y)


def fitted(seed, n, num):
    x, y = data(seed, n)
    run = fit(jax.random.key(seed), model, no_guide, ELBO(), RegularizedNewton(), 60, x, y, num, num_chains=4, progress_bar=False)
    best = np.nanargmin(run.losses[:, -1])
    return {k: v[best] for k, v in run.params.items()}, run.losses[:,-1]

def hellinger(params):
    y, x = jnp.linspace(-6, 6, 2001)[:, None], jnp.linspace(-1, 1, 101)
    p, q = (jnp.exp(law(each, x).log_prob(y) / 2) for each in (params, TRUTH))
    return float(jnp.sqrt(jnp.trapezoid((p - q) ** 2, dx=12 / 2000, axis=0).mean() / 2))

def atoms(params):
    gate = np.append(params["gate"], [[0, 0]], 0)
    return np.exp(gate[:, 1]), np.column_stack([gate[:, 0], params["experts"], np.exp(params["log_scale"])])
if __name__ == "__main__":
    import time
    for num in (2, 3):
        for n in (300, 10000):
            t = time.time()
            for seed in range(3):
                p, losses = fitted(seed, n, num)
                print(num, n, hellinger(p), losses, atoms(p), time.time() - t)
