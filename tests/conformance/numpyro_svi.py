"""What the tests share that run NumPyro's own problems: an optimum by its ``SVI``, and how close one is to
another.
"""

import jax
import numpy as np
from jax import random
from numpyro import optim
from numpyro.handlers import infer_config
from numpyro.infer import SVI

from tests.oracles import quick_jit

KEY = random.PRNGKey(0)


def scored(fn):
    """NumPyro's tests disguise a distribution as one that cannot be reparameterised; we say how to treat
    it.
    """
    return infer_config(fn, lambda site: {"gradient": "score"})


def optimum(model, guide, loss, num_steps, step, *args, **kwargs):
    """Constrained parameters, averaged over the last half of the run: less noise, the same optimum."""
    svi = SVI(model, guide, optim.Adam(step), loss)
    state = svi.init(random.PRNGKey(1), *args, **kwargs)

    def body(state, _):
        state, _ = svi.update(state, *args, **kwargs)
        return state, svi.optim.get_params(state.optim_state)

    _, path = quick_jit(lambda state: jax.lax.scan(body, state, length=num_steps))(state)
    return svi.constrain_fn(jax.tree.map(lambda x: x[num_steps // 2 :].mean(0), path))


def close(actual, expected, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), actual, expected)
