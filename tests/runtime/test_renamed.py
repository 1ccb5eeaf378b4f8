"""Old names work for one release, and say the new one."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan

import ppl_ext
from ppl_ext.errors import ArgumentError
from ppl_ext.smoothing import ScoreAscent


def model(y):
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(numpyro.sample("drift", dist.Normal()) + x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None

    scan(step, jnp.zeros(()), y)


@pytest.mark.parametrize(
    ("package", "old", "new"),
    [("gradients", "Learned", "LearnedBaseline"), ("meta", "SGLD", "LangevinLocal")],
)
def test_names(package, old, new):
    package = getattr(ppl_ext, package)
    with pytest.warns(DeprecationWarning, match=f"{old} is called .*{new} now"):
        assert getattr(package, old) is getattr(package, new)
    assert old not in package.__all__ and new in package.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018


def test_arguments():
    with pytest.warns(DeprecationWarning, match="optimizer= is called optim= now"):
        ScoreAscent(model, optimizer=optax.sgd(0.1))
    with pytest.raises(ArgumentError, match="give it once"):
        ScoreAscent(model, optim=optax.sgd(0.1), optimizer=optax.sgd(0.1))
