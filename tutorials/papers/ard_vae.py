# %% [markdown]
# # How many latent axes do the data need?
#
# A VAE is given sixteen axes, and data of three or six dimensions, on a surface in twenty. `priors.ARD` gives
# each axis a precision of its own, refreshed as the fit goes: from the encoder's means, as in the paper, or
# from its draws, which is variational Bayes. An axis matters by its prior variance times the squared column
# of the decoder's Jacobian, and those that make up 99 % of the sum are counted.
#
# Squares of means leave the encoder's variance out, so that each refresh shrinks the axes a little and the
# decoder has to grow. Where the surface has ripples, that splits its dimensions; draws do not.

# %%
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.priors import ARD, relevance

PAPER = (
    "Saha, Joshi, Whitaker (2025). ARD-VAE: A statistical formulation to find the relevant latent dimensions "
    "of variational autoencoders. arXiv:2501.10901."
)
LATENT, WIDTH, SEEN, BATCH = 16, 64, 20, 100


# %%
def data(dim, num_rows, rippled):
    """Rows near a surface of this dimension in twice as many directions."""
    rng = np.random.default_rng(dim)
    flat = rng.normal(size=(num_rows, dim))
    if rippled:
        bent = np.concatenate([flat, 0.5 * np.sin(2 * flat)], 1)
    else:
        bent = 1.5 * np.tanh(flat @ rng.normal(size=(dim, 2 * dim)) / dim**0.5)
    x = bent @ np.linalg.qr(rng.normal(size=(SEEN, 2 * dim)))[0].T
    return jnp.asarray(x + 0.1 * rng.normal(size=x.shape), dtype=jnp.float32)


def layers(name, *widths):
    """Weights and biases of a network, as parameters."""

    def start(key):
        pairs = zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True)
        return [(jax.random.normal(k, (n, m)) / n**0.5, jnp.zeros(m)) for k, n, m in pairs]

    return numpyro.param(name, start)


def network(weights, x):
    for w, b in weights[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ weights[-1][0] + weights[-1][1]


def encode(x):
    return jnp.split(network(layers("encoder", SEEN, WIDTH, 2 * LATENT), x), 2, -1)


def model(x, means=True, marginal=False):
    decoder = layers("decoder", LATENT, WIDTH, SEEN)
    noise = numpyro.param("noise", 0.5, constraint=dist.constraints.positive)
    with numpyro.plate("rows", len(x), subsample_size=BATCH):
        batch = numpyro.subsample(x, event_dim=1)
        encoded = encode(batch)[0] if means else None
        z = ARD("z", LATENT, encoded=encoded, marginal=marginal)
        numpyro.sample("x", dist.Normal(network(decoder, z), noise).to_event(1), obs=batch)


def guide(x):
    with numpyro.plate("rows", len(x), subsample_size=BATCH):
        mean, log_spread = encode(numpyro.subsample(x, event_dim=1))
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_spread)).to_event(1))


# %%
def axes(x, *programs):
    """How many axes make up 99 % of the relevance, and the prior variances of the last and of the next."""
    params = fit(jax.random.key(0), *programs, x, progress_bar=False).params
    params = jax.tree.map(lambda leaf: leaf[0], params)
    mean, precisions = jnp.split(network(params["encoder"], x), 2, -1)[0], params["z_precisions"]
    found = relevance(lambda z: network(params["decoder"], z), mean, precisions)
    order = jnp.argsort(-found)
    count = int((jnp.cumsum(found[order]) / found.sum() < 0.99).sum()) + 1
    variances = (precisions["rate"] / precisions["concentration"])[order]
    return count, variances[count - 1], variances[count:].max()


def claims(small=False):
    rows, num_steps = [], 2500 if small else 3000
    optim = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    ways = {"means": {}, "means, Student-t": {"marginal": True}, "draws": {"means": False}}
    for name, options in list(ways.items())[:1] if small else ways.items():
        programs = partial(model, **options), guide, ELBO(), optim, num_steps
        for rippled, dim in itertools.product((False,) if small else (False, True), (3, 6)):
            count, last, other = axes(data(dim, 2000, rippled), *programs)
            failed = "" if count == dim else "not reproduced: "
            surface = f"surface of {dim} dimensions{', rippled' if rippled else ''}"
            claim = f"axes for 99 % of the relevance, {surface}, refreshed from {name}"
            rows.append((claim, f"{dim}", f"{failed}{count}; variance {last:.3f}, of others {other:.3f}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
