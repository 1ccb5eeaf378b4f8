# %% [markdown]
# # Equations in the plane whose solutions oscillate fast
#
# A solution of Δu = f on a square is given a Gaussian process prior, whose kernel is a product of mixtures of
# waves, one mixture for each axis. On a grid covariances are Kronecker products, so that four thousand points
# cost what two matrices of sixty-four cost.
#
# The kernel is fitted to the right side, which has the frequencies of the solution; the paper fits it
# together with the solution and with boundary values. The process then says of every function on the grid
# what its second derivatives are, and in a basis that whitens the covariance and makes these diagonal, axis
# by axis, the equation is solved. No boundary is told: waves whose Laplacian is zero have no place in the
# prior. On a line, with the ends and the exact evidence: `fast_equations.py`.
#
# One solution is the paper's, the other has two waves along each axis; f comes from differentiating.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.linalg import solve_triangular

from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO

PAPER = (
    "Fang, Cooley, Long, Li, Kirby, Zhe (2024). Solving high frequency and multi-scale PDEs with Gaussian "
    "processes. ICLR; arXiv:2311.04465."
)
WAVES, TOP, GRID = 30, 120.0, np.linspace(0.0, 1.0, 64)
S, C = jnp.sin, jnp.cos
SOLUTIONS = {
    "sin 100x sin 100y": lambda x, y: S(100 * x) * S(100 * y),
    "(sin 6x + .1 sin 80x) (sin 10y + .1 cos 50y)": lambda x, y: (
        (S(6 * x) + 0.1 * S(80 * x)) * (S(10 * y) + 0.1 * C(50 * y))
    ),
}


# %%
def kernel(order, lag, log_weights, frequencies, log_lengths):
    """The kernel at lags (...), or its second derivative."""
    lag, curve = lag[..., None], -jnp.exp(-2 * log_lengths)
    wave = jnp.exp(log_weights + 0.5 * curve * lag**2 + 1j * frequencies * lag)
    return jnp.real(wave * {0: 1.0, 2: (lag * curve + 1j * frequencies) ** 2 + curve}[order]).sum(-1)


def waves(axis):
    """Log weights, frequencies and log lengths, to be learned."""
    at, same = jnp.linspace(0.0, TOP, WAVES), jnp.ones(WAVES)
    weights = numpyro.param(f"weights of {axis}", -jnp.log(WAVES) * same)
    at = numpyro.param(f"frequencies of {axis}", at)
    return weights, at, numpyro.param(f"lengths of {axis}", jnp.log(WAVES / TOP) * same)


def covariances(*found):
    """A root of the covariance between the points of an axis, and that with second derivatives."""
    steps = jnp.arange(len(GRID))
    cov, second = (kernel(k, GRID - GRID[0], *found)[abs(steps[:, None] - steps)] for k in (0, 2))
    return jnp.linalg.cholesky(cov + 1e-11 * cov[0, 0] * jnp.eye(len(GRID))), second


def model(b):
    roots = [covariances(*waves(axis))[0] for axis in "xy"]
    numpyro.sample("b", dist.MatrixNormal(jnp.zeros_like(b), *roots), obs=b)


def everywhere(f):
    return jax.vmap(lambda x: jax.vmap(lambda y: f(x, y))(GRID))(GRID)


def solved(u, num_steps):
    """The relative error on the grid, and the first frequency of each axis."""
    b = everywhere(lambda x, y: sum(jax.grad(jax.grad(u, k), k)(x, y) for k in (0, 1)))
    optim = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    start = jax.random.key(0), model, lambda b: None, ELBO(), optim, num_steps, b / jnp.std(b)
    params = {name: x[0] for name, x in fit(*start, progress_bar=False).params.items()}
    bases, first, turned = [], [], b
    for axis in "xy":
        found = numpyro.handlers.substitute(waves, params)(axis)
        root, second = covariances(*found)
        half = solve_triangular(root, second, lower=True)
        rates, turn = jnp.linalg.eigh(solve_triangular(root, half.T, lower=True))
        bases, first = [*bases, (rates, root @ turn)], [*first, found[1][jnp.argmax(found[0])]]
        turned = (turn.T @ solve_triangular(root, turned, lower=True)).T  # in the end, as it was
    (p, rows), (q, columns) = bases
    rates, true = p[:, None] + q, everywhere(u)
    off = rows @ (turned * rates / (rates**2 + 1e-6)) @ columns.T - true
    return float(jnp.linalg.norm(off) / jnp.linalg.norm(true)), first


# %%
def claims(small=False):
    rows, num_steps = [], 200 if small else 400
    with jax.enable_x64(True):
        for name, u in list(SOLUTIONS.items())[: 1 if small else 2]:
            off, (x, y) = solved(u, num_steps)
            rows.append(
                (f"error of {name}", "at most 1e-3", f"{off:.0e}; first frequencies {x:.1f}, {y:.1f}")
            )
    return rows


if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
