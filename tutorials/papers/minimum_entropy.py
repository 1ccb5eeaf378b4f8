# %% [markdown]
# # A message in a law that is prescribed
#
# X is a message and Y what is sent, and the law of Y is not ours to choose. A coupling of the two laws is a
# way to send X; the less its entropy, the more Y tells of X. The least entropy is hard to find, and a greedy
# coupling is near it: the largest mass left of X meets the largest left of Y, again and again.

# %%
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ppl_ext.transport import minimum_entropy_coupling

PAPER = "Ebrahimi et al. (2024). Minimum Entropy Coupling with Bottleneck. NeurIPS."


def pairs(num, size):
    laws = dist.Dirichlet(jnp.ones(size)).sample(jax.random.key(size), (2, num))
    return laws / laws.sum(-1, keepdims=True)


# %% [markdown]
# How far above a bound that no coupling goes below, and how far the margins are off.


# %%
def above_the_bound(num, size):
    p, q = pairs(num, size)
    couplings = jax.vmap(minimum_entropy_coupling)(p, q)
    bits = jax.vmap(lambda c: (c.entropy - c.least_entropy) / jnp.log(2.0))(couplings)
    off = jnp.abs(couplings.joint.sum(2) - p).max(), jnp.abs(couplings.joint.sum(1) - q).max()
    return float(bits.mean()), float(bits.max()), float(max(off))


# %% [markdown]
# With three states the least can be found: a concave function has its minimum at a vertex of the polytope of
# couplings, where five cells at most are positive, and all choices of five can be tried.


# %%
def above_the_least(num, size=3):
    p, q = np.asarray(pairs(num, size), np.float64)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    sums = np.concatenate([np.kron(np.eye(size), np.ones(size)), np.kron(np.ones(size), np.eye(size))])[:-1]
    cells = np.array(list(itertools.combinations(range(size**2), 2 * size - 1)))
    systems = np.moveaxis(sums[:, cells], 1, 0)
    regular = np.abs(np.linalg.det(systems)) > 0.5
    x = np.linalg.solve(systems[regular][None], np.concatenate([p, q], 1)[:, None, :-1, None])[..., 0]
    entropy = -np.where(x > 0, x * np.log2(np.maximum(x, 1e-300)), 0.0).sum(-1)
    least = np.where(x.min(-1) > -1e-9, entropy, np.inf).min(1)
    found = jax.vmap(lambda p, q: minimum_entropy_coupling(p, q).entropy / jnp.log(2.0))(p, q)
    return np.asarray(found) - least


# %% [markdown]
# Sending: X is one of 64 messages, and Y a number of events with mean 20. The receiver decodes by the other
# conditional.


# %%
def sent(num):
    """Bits of X in a Y, and how often the likeliest message is the right one."""
    counts = jnp.exp(dist.Poisson(20.0).log_prob(jnp.arange(60)))
    coupling = minimum_entropy_coupling(jnp.full(64, 1 / 64), counts / counts.sum())

    def model():
        x = numpyro.sample("x", dist.DiscreteUniform(0, 63))
        y = numpyro.sample("y", coupling.given_first(x))
        return coupling.given_second(y).probs.argmax() == x

    keys = jax.random.split(jax.random.key(0), num)
    right = jax.vmap(lambda key: numpyro.handlers.seed(model, key)())(keys)
    best = float(coupling.joint.max(0).sum())  # of the likeliest message given each y
    return float(coupling.information / jnp.log(2.0)), float(right.mean()), best


# %%
def claims(small=False):
    rows = []
    for size in (8, 32, 64):
        mean, most, off = above_the_bound(50 if small else 400, size)
        known = "at most 1.443 (Compton 2022)"
        rows.append(
            (
                f"bits above a lower bound, {size} states",
                known,
                f"{mean:.3f}, at most {most:.3f}; off {off:.0e}",
            )
        )
    excess = above_the_least(20 if small else 400)
    told = f"{excess.mean():.4f}, at most {excess.max():.3f}, none in {np.mean(excess < 1e-5):.0%}"
    rows.append(("bits above the least entropy, 3 states", "at most 0.531 (Compton et al. 2023)", told))
    bits, right, best = sent(200 if small else 5000)
    counts = dist.Poisson(20.0).log_prob(jnp.arange(60))
    of_y = float(-(jnp.exp(counts) * counts).sum() / jnp.log(2.0))
    rows.append(("bits of a message in a Poisson number", f"below {of_y:.3f}, its entropy", f"{bits:.3f}"))
    rows.append(("messages that are read rightly", f"{best:.3f} (exact)", f"{right:.3f}"))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
