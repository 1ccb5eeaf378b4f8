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

PAPER = "Liu, Ramadge, Adams (2024). Generative marginalization models. ICML; arXiv:2310.12920."
N, COUPLING, WIDTH, BATCH = 9, 0.4264263, 128, 512
PAIRS = np.array([(i, i + 1) for i in range(N) if i % 3 < 2] + [(i, i + 3) for i in range(6)]).T


def energy(x):
    """The log density of spins -1 and 1 without its constant; of a part, 0 elsewhere, of its pairs."""
    return COUPLING * (x[..., PAIRS[0]] * x[..., PAIRS[1]]).sum(-1)


def log_part(params, x):
    """Unnormalised log probability of a part: x is 0 where a spin is summed out."""
    h = jnp.concatenate([x, x**2], -1)
    for w, b in params[:-1]:
        h = jax.nn.gelu(h @ w + b)
    w, b = params[-1]
    free = (x == 0).sum(-1)
    return energy(x) + free * jnp.log(2.0) + jnp.where(free > 0, (h @ w + b)[..., 0], 0.0)


def network(key):
    sizes = itertools.pairwise((2 * N, WIDTH, WIDTH, 1))
    keys = jax.random.split(key, 3)
    return [
        (jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b)) for k, (a, b) in zip(keys, sizes, strict=True)
    ]


def with_one_more(params, x, place):
    """The sum over the spin at ``place``, in logs."""
    at = jax.nn.one_hot(place, N)
    return jnp.logaddexp(log_part(params, x + at), log_part(params, x - at))


def consistency():
    params = numpyro.param("network", network)
    spins, order, size = (numpyro.prng_key() for _ in range(3))
    x = jax.random.rademacher(spins, (BATCH, N), float)
    rank = jax.random.permutation(order, jnp.tile(jnp.arange(N), (BATCH, 1)), axis=1, independent=True)
    taken = jax.random.randint(size, (BATCH, 1), 0, N)  # how many are in the part
    part = jnp.where(rank < taken, x, 0.0)
    off = log_part(params, part) - with_one_more(params, part, (rank == taken).argmax(1))
    numpyro.factor("off", -jnp.mean(off**2))


# %% [markdown]
# Its conditionals, spin after spin in any order, make a guide for the model. Importance weights then mend
# what the network still has wrong.


# %%
def spins():
    x = jnp.stack([numpyro.sample(f"x{i}", dist.Bernoulli(0.5)) for i in range(N)], -1)
    numpyro.factor("pairs", energy(2.0 * x - 1.0) + N * jnp.log(2.0))


def guide_of(params, order):
    def guide():
        x = jnp.zeros(N)
        for i in order:
            at = jnp.zeros(N).at[i].set(1.0)
            logit = log_part(params, x + at) - log_part(params, x - at)
            x = x + at * (2.0 * numpyro.sample(f"x{i}", dist.Bernoulli(logits=logit)) - 1.0)

    return guide


# %%
def claims(small=False):
    num_steps = 1500 if small else 15_000
    optim = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    run = fit(jax.random.key(0), consistency, lambda: None, ELBO(), optim, num_steps, progress_bar=False)
    params = jax.tree.map(lambda p: p[0], run.params["network"])
    every = np.array(list(itertools.product([-1.0, 1.0], repeat=N)))
    logs, rng = np.asarray(energy(every), float), np.random.default_rng(0)
    log_z, off = logsumexp(logs), []
    for _ in range(300):
        x = rng.choice([-1.0, 1.0], N) * (rng.permutation(N) < rng.integers(1, N))
        exact = logsumexp(logs[(every[:, x != 0] == x[x != 0]).all(1)])
        off.append(
            abs(float(log_part(params, jnp.asarray(x)) - log_part(params, jnp.zeros(N))) - exact + log_z)
        )
    guide = guide_of(params, rng.permutation(N).tolist())
    estimate = -float(IWELBO(num_particles=1000).loss(jax.random.key(1), {}, spins, guide))
    return [
        ("log of the constant, from the network", f"{log_z:.3f}", f"{log_part(params, jnp.zeros(N)):.3f}"),
        ("300 log probabilities of parts: mean error", "0.017 (aim)", f"{np.mean(off):.4f}"),
        ("log of the constant, by weights of its draws", f"{log_z:.3f}", f"{estimate:.4f}"),
    ]


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
