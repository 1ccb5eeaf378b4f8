"""Run by ``test_many_devices.py`` in a process of its own, since the number of devices is fixed when JAX
starts: fits to a file.
"""

import sys

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.sharding import AxisType

from ppl_ext.errors import ArgumentError
from ppl_ext.infer import Checkpoint, fit
from ppl_ext.objectives import ELBO


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    numpyro.sample("switch", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y):
    numpyro.sample("mu", dist.Normal(numpyro.param("loc", lambda key: jax.random.normal(key)), 0.3))
    numpyro.sample("switch", dist.Bernoulli(logits=numpyro.param("logit", 0.2)))


def run(mesh, num_chains=8, **options):
    data = np.linspace(-1.0, 2.0, 7, dtype=np.float32)
    how = {"num_chains": num_chains, "mesh": mesh, "progress_bar": False}
    return fit(jax.random.key(1), model, guide, ELBO(), optax.adam(0.05), 60, data, **how, **options)


def halfway(now):
    assert len(now.params()["loc"].sharding.device_set) == jax.device_count()
    return now.losses.shape[1] >= 30


if __name__ == "__main__":
    folder, devices = sys.argv[1], int(sys.argv[2])
    assert jax.device_count() == devices
    mesh = jax.make_mesh((devices,), ("chains",), axis_types=(AxisType.Auto,)) if devices > 1 else None
    whole = run(mesh)
    stopped = run(mesh, checkpoint=Checkpoint(f"{folder}/state-{devices}.npz", every=20), callback=halfway)
    resumed = run(mesh, checkpoint=Checkpoint(f"{folder}/state-{devices}.npz", every=20))
    assert stopped.num_steps < 60 and resumed.num_steps == 60
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    if mesh is not None:
        try:
            run(mesh, num_chains=3)
        except ArgumentError as error:
            assert (
                "num_chains=3 does not divide over the 8 devices of the mesh's axis 'chains'. Take a "
                "multiple of 8." in str(error)
            )
        else:
            raise AssertionError("three chains on eight devices")
    np.savez(f"{folder}/{devices}.npz", losses=whole.losses, **whole.params)
