"""Kernels that draw backward refuse states that do not say all of what comes later; ``"path"`` takes them."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from ppl_ext.errors import ModelError
from ppl_ext.smoothing import smooth
from ppl_ext.smoothing.backward import Dense, Hybrid, Metropolis, Path
from ppl_ext.smoothing.settings import check_markov
from ppl_ext.state_space.model import lower

Y = jnp.array([0.3, -0.2])


def summed(y):
    """The carry adds up all states: the last one does not say what the sum was before."""

    def step(total, y_t):
        x = numpyro.sample("x", dist.Normal(0.5 * total, 1.0))
        numpyro.sample("y", dist.Normal(total + x, 1.0), obs=y_t)
        return total + x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


@pytest.mark.parametrize("kernel", [Dense(), Hybrid(2), Metropolis()], ids=repr)
def test_backward_draws_are_refused(kernel):
    with pytest.raises(ModelError, match="beyond the step's latent sites.*'path' does not"):
        check_markov(lower(summed, (Y,)), kernel)


def test_the_ancestors_serve():
    check_markov(lower(summed, (Y,)), Path())
    with pytest.raises(ModelError, match="Backward draws need it to"):
        smooth(summed, num_particles=5).run(jax.random.key(0), Y)
