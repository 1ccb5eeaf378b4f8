# %% [markdown]
# # Your own objective
#
# An objective here is a short program over a model and a guide. This tutorial writes one, chooses how the
# gradient of each site is estimated, weighs a single term, trains with NumPyro's `SVI` and with `fit`, and
# checks every answer against an exact one.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI

import ppl_ext
from ppl_ext import carried, expectation, log_density, objective, replicate, simulate
from ppl_ext.densities.log_density import lower_bound
from ppl_ext.gradients import MeasureValued
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO, constrain, kl

# %% [markdown]
# ## A model with an exact answer
#
# A coin says which of two levels a measurement comes from; the level itself is uncertain. With four data
# points everything can be summed and integrated by hand.

# %%
Y = np.array([1.6, 2.3, 1.1, 1.9], dtype=np.float32)
LEVELS = jnp.array([0.0, 2.0])


def model(y):
    k = numpyro.sample("k", dist.Bernoulli(0.3))
    mu = numpyro.sample("mu", dist.Normal(LEVELS[k], 0.8))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y):
    k = numpyro.sample("k", dist.Bernoulli(logits=numpyro.param("logit", 0.0)))
    loc = numpyro.param("loc", jnp.zeros(2))
    scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    numpyro.sample("mu", dist.Normal(loc[k], scale[k]))


def exact():
    """log p(y, k), and the posterior of mu given k."""
    variance = 0.8**2
    total = np.ones((len(Y), len(Y))) * variance + np.eye(len(Y))
    log_joint = []
    for prior, level in zip((0.7, 0.3), (0.0, 2.0), strict=True):
        log_lik = dist.MultivariateNormal(level * jnp.ones(len(Y)), jnp.asarray(total, jnp.float32)).log_prob(
            Y
        )
        log_joint.append(np.log(prior) + float(log_lik))
    precision = 1 / variance + len(Y)
    means = [(level / variance + Y.sum()) / precision for level in (0.0, 2.0)]
    return np.array(log_joint), np.array(means), precision**-0.5


log_joint, means, spread = exact()
evidence = np.logaddexp(*log_joint)
print(f"log evidence {evidence:.4f}")

# %% [markdown]
# ## Ten lines
#
# `simulate(guide)` draws and scores; `log_density(model, values)` scores given values. The difference is a
# `LogDensity`: a sum that still knows its terms by site. Here the divergence of every site is weighed by
# `beta`, the likelihood is left alone, and two particles are averaged. What is returned is maximised; its
# value and its gradient are unbiased for its expectation, whatever the sites.


# %%
@objective
def BetaELBO(model, guide, beta: float = 1.0, num_particles: int = 2):
    """An evidence lower bound whose divergence term counts beta times."""

    def weighed():
        draw = simulate(guide)
        log_ratio = log_density(model, draw.values) - draw.log_density
        return log_ratio.weigh({"y": 1.0, "*": beta})

    return replicate(weighed, num_particles).mean()


# %% [markdown]
# ## In NumPyro's SVI, with a gradient strategy for each site
#
# The coin's gradient is measure-valued, the level's reparameterised (the default where it serves). Names are
# patterns, and the model and the guide stay as they are.

# %%
strategies = {"k": MeasureValued(), "mu": "reparam"}
optimiser = optax.adam(optax.exponential_decay(0.05, 800, 0.2))
svi = SVI(model, gradient(guide, strategies), optimiser, loss=BetaELBO())
result = svi.run(jax.random.key(0), 3000, Y, progress_bar=False)

posterior_k = np.exp(log_joint[1] - evidence)
print(f"P(k = 1 | y): {float(jax.nn.sigmoid(result.params['logit'])):.3f}, exactly {posterior_k:.3f}")
assert abs(jax.nn.sigmoid(result.params["logit"]) - posterior_k) < 0.03
np.testing.assert_allclose(result.params["loc"], means, atol=0.06)
np.testing.assert_allclose(result.params["scale"], spread, atol=0.06)

# %% [markdown]
# At beta = 1 the guide can be the posterior, and then the bound is the evidence itself. `expectation`
# evaluates any program of this kind, with the parameters it was fitted to; `kl` of a site is a quantity one
# can report on its own.

# %%
fitted = numpyro.handlers.substitute(guide, data=result.params)
programs = ppl_ext.Program(model, (Y,)), ppl_ext.Program(fitted, (Y,))
bound = expectation(lambda: BetaELBO(num_particles=500)(*programs)).value(jax.random.key(1))
print(f"bound {float(bound):.4f}, evidence {evidence:.4f}")
assert abs(bound - evidence) < 0.02
report = expectation(lambda: kl("mu", 500)(*programs)).value(jax.random.key(2))
print(f"KL of mu from its prior: {float(report):.3f}")

# %% [markdown]
# ## In `fit`
#
# The same objective, with restarts, checks and a report. A beta of one half trusts the data more: by
# conjugacy the optimum is then the posterior of data that count twice, which is exact again.

# %%
half = ppl_ext.infer.fit(
    jax.random.key(3),
    model,
    guide,
    BetaELBO(beta=0.5),
    optimiser,
    3000,
    Y,
    num_chains=2,
    progress_bar=False,
    init_params={"logit": 1.0},
)
precision = 1 / 0.8**2 + 2 * len(Y)
np.testing.assert_allclose(half.params["scale"][:, 1], precision**-0.5, atol=0.05)
np.testing.assert_allclose(half.params["loc"][:, 1], (2.0 / 0.8**2 + 2 * Y.sum()) / precision, atol=0.06)

# %% [markdown]
# ## A bound says so
#
# `lower_bound` is a statement that is checked: if a term were an estimate that errs the wrong way, as with a
# `marginal` scored in the wrong direction, it would be refused with an explanation. With exact densities it
# changes nothing.


# %%
@objective
def Plain(model, guide):
    draw = simulate(guide)
    return lower_bound(log_density(model, draw.values) - draw.log_density)


# %% [markdown]
# ## State from step to step, and constraints
#
# `carried` keeps state between steps, through the mutable state of NumPyro's `SVI`. Here it counts, and warms
# the divergence up over 500 steps. `fit` starts such state by itself; with `SVI`, wrap the guide:
# `WarmUp().carried_by(guide, model)`.


# %%
@objective
def WarmUp(model, guide):
    state = carried("warm-up", {"step": jnp.zeros(())})
    beta = jnp.minimum(1.0, (1.0 + state["step"]) / 500.0)
    state["step"] = state["step"] + 1.0
    draw = simulate(guide)
    return (log_density(model, draw.values) - draw.log_density).weigh({"y": 1.0, "*": beta})


warm = ppl_ext.infer.fit(
    jax.random.key(4), model, gradient(guide, strategies), WarmUp(), optimiser, 3000, Y, progress_bar=False
)
assert warm.params["warm-up"]["step"][0] == 3000
np.testing.assert_allclose(warm.params["loc"][0], means, atol=0.1)

# %% [markdown]
# `constrain` carries a multiplier in the same way: at most 0.1 nats for the coin.

# %%
coin = constrain(ELBO(num_particles=8), kl("k"), at_most=0.1, rate=0.05)
held = ppl_ext.infer.fit(jax.random.key(5), model, guide, coin, optimiser, 3000, Y, progress_bar=False)
p = float(jax.nn.sigmoid(held.params["logit"][0]))
divergence = p * np.log(p / 0.3) + (1 - p) * np.log((1 - p) / 0.7)
multiplier = held.params["kl('k') <= 0.1"]["multiplier"][0]
print(f"P(k = 1) = {p:.3f}, KL = {divergence:.3f}, multiplier {multiplier:.2f}")
assert abs(divergence - 0.1) < 0.02
