# %% [markdown]
# # Denoising without clean data: a score, then Tweedie's formula
#
# The posterior mean of x given a noisy y is a function of the score of y alone. So a network that learns the
# score of the noisy data, by denoising what is made noisier still, denoises the data as well, whatever the
# noise is. One learned score, three kinds of noise.
#
# Here x is a number with two peaks, and everything exact is a sum over a fine grid of it.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

from ppl_ext.scores import GammaNoise, GaussianNoise, PoissonNoise, tweedie

PAPER = (
    "Kim, Ye (2021). Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean "
    "Images. NeurIPS."
)

CLEAN = dist.MixtureSameFamily(
    dist.Categorical(jnp.array([0.5, 0.5])), dist.Gamma(jnp.array([10.0, 40.0]), jnp.array([10.0, 10.0]))
)
GRID = jnp.linspace(0.02, 9.0, 500)
LOOKS = 4.0
# The law of y given x, the formula, and how much noise is added to learn the score: counts want more.
NOISE = {
    "Gaussian": (lambda x: dist.Normal(x, 1.0), GaussianNoise(1.0), (0.05, 0.5)),
    "Poisson": (lambda x: dist.Poisson(x), PoissonNoise(), (0.4, 0.8)),
    "Gamma": (lambda x: dist.Gamma(LOOKS, LOOKS / x), GammaNoise(LOOKS), (0.05, 0.3)),
}

# %% [markdown]
# The network sees y and the added noise, and is asked for the score at all levels at once: the amortised
# residual of Lim et al. (2020). Its least level is the one that is used.


# %%
def learned_score(rng_key, y, levels, num_steps):
    start, run = jax.random.split(rng_key)
    net = eqx.nn.MLP(2, "scalar", 64, 3, jax.nn.silu, key=start)
    optim = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    arrays, rest = eqx.partition(net, eqx.is_array)

    def score(arrays, y, sigma):
        scaled = (y - mean) / spread
        return jax.vmap(eqx.combine(arrays, rest))(jnp.stack([scaled, sigma], -1)) / spread

    def loss(arrays, key):
        rows, noise, level = jax.random.split(key, 3)
        clean = y[jax.random.randint(rows, (1000,), 0, len(y))]
        sigma = jax.random.uniform(level, (1000,), minval=levels[0], maxval=levels[1])
        u = jax.random.normal(noise, (1000,))
        return ((u + sigma * score(arrays, clean + sigma * u, sigma)) ** 2).mean()

    def step(state, key):
        arrays, opt = state
        updates, opt = optim.update(jax.grad(loss)(arrays, key), opt)
        return (optax.apply_updates(arrays, updates), opt), None

    mean, spread = y.mean(), y.std()
    keys = jax.random.split(run, num_steps)
    (arrays, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))((arrays, optim.init(arrays)))
    return lambda y: score(arrays, y, jnp.full(y.shape, levels[0]))


# %%
def errors(kind, small=False):
    """Mean squared errors, by name: with the learned score, by the formula at the exact one, and so on."""
    noise, family, levels = NOISE[kind]
    keys = jax.random.split(jax.random.key(0), 3)
    num = 4000 if small else 20_000
    x = CLEAN.sample(keys[0], (num,))
    y = noise(x).sample(keys[1]).astype(float)
    log_weights = jax.vmap(lambda y: noise(GRID).log_prob(y))(y) + CLEAN.log_prob(GRID)
    weights = jax.nn.softmax(log_weights)
    learned = learned_score(keys[2], y, levels, 400 if small else 4000)
    found = {"noisy": y, "learned": tweedie(learned, family)(y), "Bayes": weights @ GRID}
    if kind == "Gamma":
        found["harmonic"] = 1 / (weights @ (1 / GRID))
    return {name: float(((guess - x) ** 2).mean()) for name, guess in found.items()}


# %%
def claims(small=False):
    rows = []
    for kind in NOISE:
        mse = errors(kind, small)
        known = f"Bayes {mse['Bayes']:.3f}, noisy {mse['noisy']:.3f}"
        if "harmonic" in mse:
            known += f", the formula at the exact score {mse['harmonic']:.3f}: it is 1/E[1/x given y]"
        rows.append((f"MSE without clean data, {kind} noise", known, f"{mse['learned']:.3f}"))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
