"""Objectives are one only if they are the same in every option: two that print alike may weigh
differently.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from ppl_ext import log_density, objective, simulate
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO, IWELBO, FDivergence, MarkovScoreClimbing, constrain, kl


@objective
def Weighted(model, guide, weights, power=1.0):
    """Minus a weighted sum of squares around the guide's location: its optimum is known."""
    draw = simulate(guide)
    return (
        -jnp.mean(jnp.asarray(weights) * (draw.values["z"] - jnp.asarray(weights)) ** 2)
        + 0.0 * log_density(model, draw.values).total
    )


def model():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def guide():
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1e-3))


def ratio(r):
    return r * jnp.log(r)


def other_ratio(r):
    return r * jnp.log(r)


ONES = np.ones(2000)
CHANGED = np.where(np.arange(2000) == 1000, 3.0, ONES)

DIFFERENT = {
    "an entry that print leaves out": (Weighted(ONES), Weighted(CHANGED)),
    "a jax array": (Weighted(jnp.ones(2000)), Weighted(jnp.asarray(CHANGED))),
    "a dtype": (Weighted(np.ones(3, np.float32)), Weighted(np.ones(3, np.float64))),
    "vectorize_particles": (ELBO(64), ELBO(64, vectorize_particles=False)),
    "a number of particles": (IWELBO(8), IWELBO(9)),
    "a flag": (ELBO(), ELBO(stick_the_landing=True)),
    "a function of the same name": (FDivergence(ratio), FDivergence(other_ratio)),
    "a nested objective": (
        constrain(ELBO(4), kl("z"), at_most=1.0),
        constrain(ELBO(4, vectorize_particles=False), kl("z"), at_most=1.0),
    ),
    "a nested quantity": (
        constrain(ELBO(), kl("z"), at_most=1.0),
        constrain(ELBO(), kl("z", 2), at_most=1.0),
    ),
    "a class": (ELBO(8), IWELBO(8)),
}
SAME = {
    "arrays of equal content": (Weighted(np.ones(2000)), Weighted(np.ones(2000))),
    "the same array": (lambda w: (Weighted(w), Weighted(w)))(jnp.ones(2000)),
    "options": (ELBO(8, analytic_kl=True), ELBO(num_particles=8, analytic_kl=True)),
    "nested": (constrain(ELBO(), kl("z"), at_most=1.0), constrain(ELBO(), kl("z"), at_most=1.0)),
    "a kernel": (MarkovScoreClimbing(), MarkovScoreClimbing()),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_different(case):
    one, other = DIFFERENT[case]
    assert one != other and len({one, other}) == 2


@pytest.mark.parametrize("case", SAME)
def test_the_same(case):
    one, other = SAME[case]
    assert one == other and hash(one) == hash(other)


def test_what_is_shown():
    assert repr(Weighted(ONES)) == "Weighted(weights=<a float64 array of shape (2000,)>, power=1.0)"
    assert repr(ELBO(4, vectorize_particles=False)) == "ELBO(num_particles=4, vectorize_particles=False)"


def test_a_second_fit_uses_its_own_weights():
    """The mean of w (z - w)² is least at Σ w² / Σ w; changed in place, too, and back again with nothing
    compiled.
    """
    optim = optax.adam(0.05)

    def loc(chosen):
        return float(
            fit(jax.random.key(0), model, guide, chosen, optim, 400, progress_bar=False).params["loc"][0]
        )

    weights = np.full(2000, 1.0)
    first = Weighted(weights)
    assert loc(first) == pytest.approx(1.0, abs=0.02)
    # nothing that print would show
    other = np.where((np.arange(2000) > 900) & (np.arange(2000) < 1100), 6.0, 1.0)
    assert repr(Weighted(other)) == repr(first)
    expected = (other**2).sum() / other.sum()
    assert loc(Weighted(other)) == pytest.approx(expected, abs=0.05) and expected > 2.9
    weights[:] = other
    assert loc(first) == pytest.approx(expected, abs=0.05)
