"""Run by ``test_many_episodes.py`` in a process of its own: large batches of episodes over the devices of one
host, which has to come to an end.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import AxisType

from ppl_ext.errors import ArgumentError
from ppl_ext.meta import EpisodeStream, lift


def episode(x, y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.tanh(x @ weights), 0.5).to_event(1), obs=y)


def run(mesh, num_episodes):
    rng = np.random.default_rng(0)
    stream = EpisodeStream([(x, x[:, 0]) for x in rng.normal(size=(num_episodes, 30, 8)).astype(np.float32)])
    lifted = lift(episode, ["weights"])
    return lifted.fit(jax.random.key(0), stream, num_steps=10, mesh=mesh, progress_bar=False)


if __name__ == "__main__":
    devices, num_episodes, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    mesh = jax.make_mesh((devices,), ("episodes",), axis_types=(AxisType.Auto,))
    if what == "refused":
        try:
            run(mesh, num_episodes)
        except ArgumentError as error:
            assert f"Set the environment variable NPROC={2 * devices} before JAX is imported" in str(error)
        else:
            assert jax.__version_info__ >= (0, 12), "too few threads were not refused"
    else:
        spread, alone = run(mesh, num_episodes), run(None, num_episodes)
        np.testing.assert_allclose(spread.losses, alone.losses, rtol=2e-4)
