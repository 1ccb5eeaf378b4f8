# %% [markdown]
# # The weights of a mixture, by who wins
#
# A guide that is a mixture draws its component, and that draw has no derivative. Three ways to learn the
# weights: the score of the mixture with the other particles as baseline, all components summed out, and
# `ComponentFrequency`, which fits the weights to the frequencies at which components win: responsibilities,
# estimated by importance. The first two are unbiased, the third is not: it is right where the guide can be
# the posterior. Elsewhere its weights rest where they fit the posterior forwards.
#
# Each step costs twelve values of the target: twelve particles; six, of two components each; four, with one
# draw and one of either component each. Sixteen draws of either cost 33; their frequencies are nearer to
# those of the posterior, and the guide is further from the optimum of the bound. Some runs come to rest where
# a wide component covers two modes.

# %%
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax

from ppl_ext import expectation, replicate
from ppl_ext.gradients import ScoreFunction
from ppl_ext.gradients.mixtures import ComponentFrequency

PAPER = (
    "Weights of a mixture by a loss on frequencies: by its formula, no publication of it was found. Where it "
    "rests: Douc, Guillin, Marin, Robert (2007). Convergence of adaptive mixtures of importance sampling "
    "schemes. Annals of Statistics 35."
)
POINTS = jnp.linspace(-25.0, 25.0, 10_001)
TWO = dist.Categorical(jnp.array([0.3, 0.7])), jnp.array([-2.0, 1.5]), jnp.array([0.5, 0.8])
THREE = dist.Categorical(jnp.array([0.3, 0.4, 0.3])), jnp.array([-3.0, 1.5, 3.5]), jnp.full(3, 0.5)
TARGETS = {
    "two normal modes": dist.MixtureSameFamily(TWO[0], dist.Normal(*TWO[1:])),
    "two modes with heavy tails": dist.MixtureSameFamily(TWO[0], dist.StudentT(2.0, *TWO[1:])),
    "three modes": dist.MixtureSameFamily(THREE[0], dist.Normal(*THREE[1:])),
}
START = {"logits": jnp.zeros(2), "loc": jnp.array([-1.0, 1.0]), "log_scale": jnp.zeros(2)}


def guide(params):
    parts = dist.Normal(params["loc"], jnp.exp(params["log_scale"]))
    return dist.MixtureSameFamily(dist.Categorical(logits=params["logits"]), parts)


# %% [markdown]
# ## The same bound, three gradients; parameters in log q are held fixed


# %%
def slope_of(target, way, num_particles, num_estimates):
    def one(params):
        if way == "enumerate":
            k = numpyro.sample("k", guide(params).mixing_distribution, infer={"gradient": way})
            noise = numpyro.sample("noise", dist.Normal())
            z = params["loc"][k] + jnp.exp(params["log_scale"][k]) * noise
        else:
            z = numpyro.sample("z", guide(params), infer={"gradient": way})
        return target.log_prob(z) - guide(jax.lax.stop_gradient(params)).log_prob(z)

    of = expectation(lambda params: replicate(lambda: one(params), num_particles).mean())

    def slope(key, params):
        slopes = jax.vmap(of.value_and_grad, (0, None))(jax.random.split(key, num_estimates), params)[1]
        return jax.tree.map(lambda x: -x.mean(0), slopes)

    return slope


WAYS = {  # with particles of one estimate, and estimates
    "leave-one-out": (ScoreFunction(), 12, 1),
    "enumerated": ("enumerate", 1, 6),
    "by frequencies": (ComponentFrequency(), 1, 4),
    "by those of 16 draws": (ComponentFrequency(16), 1, 1),
}


@jax.jit
def divergence(params, target):
    log_q = guide(params).log_prob(POINTS)
    return jnp.trapezoid(jnp.exp(log_q) * (log_q - target.log_prob(POINTS)), POINTS)


def descend(slope, num_steps):
    optim = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))

    def step(state, key):
        params, memory = state
        updates, memory = optim.update(slope(key, params), memory)
        return (optax.apply_updates(params, updates), memory), None

    start = START, optim.init(START)
    return jax.jit(lambda key: jax.lax.scan(step, start, jax.random.split(key, num_steps))[0][0])


def described(params, target):
    weight, far = jax.nn.softmax(params["logits"])[..., 0], jax.vmap(divergence, (0, None))(params, target)
    return f"{jnp.median(weight):.3f}; {abs(jnp.median(far)):.4f}, {far.max():.4f}"


# %%
def claims(small=False):
    num_steps, num_seeds, rows, ways = (700, 3, [], ["by frequencies"]) if small else (2000, 20, [], [*WAYS])
    keys = jax.random.split(jax.random.key(0), num_seeds)
    for name, target in list(TARGETS.items())[: 1 if small else None]:
        exact = jax.vmap(descend(lambda _, p, t=target: jax.grad(divergence)(p, t), num_steps))(keys[:1])
        for way in ways:
            found = jax.vmap(descend(slope_of(target, *WAYS[way]), num_steps))(keys)
            claim = f"{name}, {way}: first weight, median; divergence, median and worst"
            rows.append((claim, described(exact, target), described(found, target)))
    target = TARGETS["two normal modes"]
    known = f"{jax.jit(jax.grad(divergence))(START, target)['logits'][0]:.3f}"
    for way in [] if small else ways:
        draws = jax.random.split(keys[0], 4000)
        at = jax.vmap(slope_of(target, *WAYS[way]), (0, None))(draws, START)["logits"][:, 0]
        noise = f"noise {at.std():.3f}, ratio {abs(at.mean()) / at.std():.2f}"
        rows.append((f"two normal modes, {way}: a slope at the start", known, f"{at.mean():.3f}; {noise}"))
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
