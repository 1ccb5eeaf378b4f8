# %% [markdown]
# # The Gaussian part of a score, and teleportation
#
# A diffusion model samples by following the score of its data, noise added, from much noise to none. Where
# there is much noise, only the mean and the covariance of the data are felt: the score is that of a Gaussian,
# whose path has a closed form. So a sampler may jump over its first steps.
#
# The data here are a mixture of three Gaussians in the plane, whose score is exact. The part of it that the
# Gaussian does not explain can be had by quadrature.

# %%
import jax
import jax.numpy as jnp

from ppl_ext.scores import GaussianScore, MixtureScore, probability_flow, teleport

PAPER = (
    "Wang, Vastola (2024). The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion "
    "Models and its Applications. TMLR."
)

MIXTURE = MixtureScore(
    jnp.array([0.5, 0.3, 0.2]),
    jnp.array([[0.0, 0.0], [3.0, 1.0], [-1.0, 3.0]]),
    jnp.stack([jnp.diag(jnp.array([1.0, 0.1])), 0.2 * jnp.eye(2), 0.3 * jnp.eye(2)]),
)
SIGMAS = (0.1, 1.0, 2.0, 5.0)

# %% [markdown]
# The share of the score's mean square that is left when the Gaussian's is taken off.


# %%
def squares(x, sigma):
    score = MIXTURE(x, sigma)
    return jnp.stack([(score - MIXTURE.gaussian(x, sigma)) ** 2, score**2]).sum(-1)


def share_by_quadrature(sigma, num=400):
    half = 5.0 + 6.0 * sigma
    line = jnp.linspace(-half, half, num)
    x = jnp.stack(jnp.meshgrid(line, line), -1)
    left, whole = (squares(x, sigma) * jnp.exp(MIXTURE.log_prob(x, sigma))).sum((1, 2))
    return float(left / whole)


def share_of_draws(sigma, num):
    """The Gaussian is that of the draws without noise, as one has it of data. With its standard error."""
    data = MIXTURE.sample(jax.random.key(0), (num,))
    x = data + sigma * jax.random.normal(jax.random.key(1), data.shape)
    score, gaussian = MIXTURE(x, sigma), GaussianScore.of_draws(data)
    left, whole = ((score - gaussian(x, sigma)) ** 2).sum(-1), (score**2).sum(-1)
    share = left.mean() / whole.mean()
    return float(share), float(jnp.std(left - share * whole) / whole.mean() / num**0.5)


# %% [markdown]
# A sampler of eighteen steps of Heun on the levels of Karras et al. (2022), the same with its first six steps
# replaced by one jump, and one that spreads twelve steps over all levels. Their distance is that to the
# sampler with a thousand steps, from the same start.


# %%
def levels(num, start=80.0, end=0.002, power=7.0):
    a, b = start ** (1 / power), end ** (1 / power)
    return jnp.linspace(a, b, num + 1) ** power


def distances(num):
    x = 80.0 * jax.random.normal(jax.random.key(2), (num, 2))
    fine = probability_flow(MIXTURE, x, levels(1000))
    late = levels(18)[6:]
    jumped = teleport(MIXTURE.gaussian, x, 80.0, late[0])
    samples = {
        "18 steps": probability_flow(MIXTURE, x, levels(18)),
        "jump, 12 steps": probability_flow(MIXTURE, jumped, late),
        "12 steps over all": probability_flow(MIXTURE, x, levels(12)),
    }
    return {name: float(jnp.sqrt(((y - fine) ** 2).mean())) for name, y in samples.items()}


# %%
def claims(small=False):
    rows = []
    for sigma in SIGMAS:
        share, error = share_of_draws(sigma, 5_000 if small else 200_000)
        known = share_by_quadrature(sigma, 200 if small else 400)
        rows.append(
            (
                f"share of the score that a Gaussian leaves at noise {sigma:g}",
                f"{known:.4f} (quadrature)",
                f"{share:.4f} ± {error:.4f}",
            )
        )
    found = distances(500 if small else 5000)
    told = ", ".join(f"{name} {distance:.3f}" for name, distance in found.items())
    rows.append(("RMSE of samples: jumping over a third of the steps costs nothing", "no loss", told))
    return rows


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
