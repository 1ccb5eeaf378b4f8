# %% [markdown]
# # A coupling to the last digit: Newton's steps after Sinkhorn's
#
# The coupling P of two laws r and c that costs least, but for an entropy, is P = exp(η (f + g' − C)) with
# potentials f and g that maximise a concave function,
#
#     f · r + g · c − Σ P / η.
#
# Sinkhorn's step solves for one potential given the other, and at a large η it creeps. Newton's step moves
# both, but solves a system of all. P is nearly sparse there, so that the Hessian is kept with the largest
# entries of P off its diagonal alone, and the system is solved by conjugate gradients. At a small η there is
# nothing to gain: Sinkhorn's steps are cheaper, and arrive in about as few.
#
# Sinkhorn's steps are those of ott-jax, in double precision. One of them follows each of Newton's, which
# alone may leave a row or a column of P without any mass, and then there is no next step. Where η is so large
# that P is next to a permutation, Newton's steps from Sinkhorn's first do not arrive at all: there η is
# doubled again and again, each time from the potentials of the one before.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn
from scipy import sparse
from scipy.sparse.linalg import cg

PAPER = (
    "Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying (2024). Accelerating Sinkhorn "
    "Algorithm with Sparse Newton Iterations. ICLR. arXiv:2401.12253."
)


# both laws are uniform
def plan(cost, eta, f, g):
    with np.errstate(over="ignore"):  # of steps that are too long
        return np.exp(eta * (f[:, None] + g - cost))


def off(p):
    """What the margins miss, summed."""
    return np.abs(p.sum(0) - 1 / len(p)).sum() + np.abs(p.sum(1) - 1 / len(p)).sum()


@partial(jax.jit, static_argnums=4)
def steps_of_ott(cost, eta, f, g, steps):
    solver = Sinkhorn(threshold=0.0, min_iterations=steps, max_iterations=steps, inner_iterations=steps)
    found = solver(LinearProblem(Geometry(cost, epsilon=1 / eta)), (f, g))
    return found.f, found.g


def sinkhorn(cost, eta, f, g, steps):
    """Potentials after so many steps, each of g and then of f."""
    with jax.enable_x64(True):
        return tuple(map(np.asarray, steps_of_ott(*map(jnp.asarray, (cost, eta, f, g)), steps)))


def objective(cost, eta, f, g):
    return f.mean() + g.mean() - plan(cost, eta, f, g).sum() / eta


def sparse_hessian(p, eta, entries):
    """Minus the Hessian, with so many entries a row off the diagonal."""
    kept = sparse.csr_array(p * (p >= np.partition(p.ravel(), -entries * len(p))[-entries * len(p)]))
    sums = sparse.diags_array(np.concatenate([p.sum(1), p.sum(0)]))
    return eta * (sparse.block_array([[None, kept], [kept.T, None]]) + sums).tocsr()


def newton(cost, eta, f, g, most=100, entries=4, enough=2.8e-11):
    """Potentials, and how many steps it took; ``most``, where these were not enough."""
    for step in range(most):
        p = plan(cost, eta, f, g)
        if off(p) <= enough:
            return f, g, step
        h, slope = sparse_hessian(p, eta, entries), 1 / len(p) - np.concatenate([p.sum(1), p.sum(0)])
        way, _ = cg(h, slope, rtol=1e-10, maxiter=2000, M=sparse.diags_array(1 / h.diagonal()))
        df, dg, now, size = way[: len(p)], way[len(p) :], objective(cost, eta, f, g), 1.0
        while size > 1e-9 and not objective(cost, eta, f + size * df, g + size * dg) >= now - 1e-15:
            size /= 2
        if size > 1e-9:
            f, g = f + size * df, g + size * dg
        f, g = sinkhorn(cost, eta, f, g, 1)
    return f, g, most


def doubled(cost, eta, first=20, times=8):
    """Potentials by Newton's steps at η / 128, η / 64, ... η, and how many steps of Newton's in all."""
    f = g = np.zeros(len(cost))
    total = 0
    for k in reversed(range(times)):
        f, g, steps = newton(cost, eta / 2**k, *sinkhorn(cost, eta / 2**k, f, g, first))
        total += steps
    return f, g, total


# %%
def claims(small=False):
    n, first, rows = 60 if small else 300, 20, []
    cost, zeros = np.random.default_rng(0).uniform(size=(n, n)), np.zeros(n)
    for eta, long in ((4 * n, 400 if small else 4000), (n // 3, 40)):
        *potentials, steps = newton(cost, eta, *sinkhorn(cost, eta, zeros, zeros, first))
        slow = off(plan(cost, eta, *sinkhorn(cost, eta, zeros, zeros, long)))
        known = "37, 2.8e-11; 5.6e-6 (aim)" if eta == 4 * n else "no gain"
        told = f"{first + steps}, {off(plan(cost, eta, *potentials)):.1e}; {slow:.1e}"
        rows.append(
            (f"n = {n}, η = {eta}: steps with Newton's, margins off; {long} of Sinkhorn's", known, told)
        )
    cost, zeros, eta = cost[:60, :60], np.zeros(60), 4800
    *alone, steps = newton(cost, eta, *sinkhorn(cost, eta, zeros, zeros, first), most=50)
    *potentials, total = doubled(cost, eta)
    told = f"{steps}, {off(plan(cost, eta, *alone)):.1e}; {total}, {off(plan(cost, eta, *potentials)):.1e}"
    name = "n = 60, η = 4800: Newton's steps at once, margins off; by doubling η"
    return [*rows, (name, "– (at most 2.8e-11)", told)]


# %%
if __name__ == "__main__":
    for row in claims():
        print(*row, sep=" | ")
