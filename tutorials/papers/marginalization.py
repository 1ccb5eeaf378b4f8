# %% [markdown]
# # One network for the probability of any part
#
# Nine spins on a square, alike to their neighbours. A network is asked for the log probability of any few of
# them, the others summed out, in one pass. It learns from nothing but consistency: what it says of some spins
# is to be the sum over one more of what it says of these and that one; of all nine it says what the model's
# density is. So it learns the constant of the density too, which is what it says of no spin at all. The
# program that is fitted has one factor, the squared inconsistency of random parts.

# %%
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from scipy.special import logsumexp

from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.transport import marginalization

PAPER = "Liu, Ramadge, Adams (2024). Generative marginalization models. ICML; arXiv:2310.12920."
N, COUPLING = 9, 0.4264263
PAIRS = np.array([(i, i + 1) for i in range(N) if i % 3 < 2] + [(i, i + 3) for i in range(6)]).T


def energy(x):
    """The log density of spins 0 and 1 without its constant."""
    return within(x, jnp.ones(N, bool))


def within(x, seen):
    """The terms of pairs of which both are there, which the network has to correct."""
    spins = jnp.where(seen, 2.0 * x - 1.0, 0.0)
    return COUPLING * (spins[..., PAIRS[0]] * spins[..., PAIRS[1]]).sum(-1)


# %% [markdown]
# Its conditionals, spin after spin in any order, make a law that a guide can draw from. Importance weights
# then mend what the network still has wrong.


# %%
def spins():
    x = numpyro.sample("x", dist.Bernoulli(0.5).expand([N]).to_event(1))
    numpyro.factor("pairs", energy(x) + N * jnp.log(2.0))


def guide_of(law):
    return lambda: numpyro.sample("x", law)


# %%
def claims(small=False):
    num_steps = 1500 if small else 6_000
    optim = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    model = marginalization(energy, N, 2, guess=within)
    run = fit(jax.random.key(0), model, lambda: None, ELBO(), optim, num_steps, progress_bar=False)
    rng = np.random.default_rng(0)
    law = model.law(run.params, order=rng.permutation(N))
    every = np.array(list(itertools.product([0, 1], repeat=N)))
    logs = np.asarray(energy(every), float)
    log_z, off = logsumexp(logs), []
    for _ in range(300):
        x, seen = rng.integers(2, size=N), rng.permutation(N) < rng.integers(1, N)
        exact = logsumexp(logs[(every[:, seen] == x[seen]).all(1)]) - log_z
        off.append(abs(float(law.log_marginal(x, seen)) - exact))
    # of no spin at all: what is left of the density of one state
    constant = float(energy(every[0]) - law.log_marginal(every[0], np.ones(N, bool)))
    estimate = -float(IWELBO(num_particles=1000).loss(jax.random.key(1), {}, spins, guide_of(law)))
    return [
        ("log of the constant, from the network", f"{log_z:.3f}", f"{constant:.3f}"),
        ("300 log probabilities of parts: mean error", "0.017 (aim)", f"{np.mean(off):.4f}"),
        ("log of the constant, by weights of its draws", f"{log_z:.3f}", f"{estimate:.4f}"),
    ]


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
