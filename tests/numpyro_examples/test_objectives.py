"""Bounds of NumPyro's examples in NumPyro's ``SVI``: at the same draw of the guide, the number that NumPyro's
own objective has.
"""

import jax
import numpy as np
import pytest
from numpyro import optim
from numpyro.handlers import seed, substitute
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoDAIS
from numpyro.infer.util import log_density as of_numpyro

from ppl_ext.objectives import ELBO, IWELBO
from tests.numpyro_examples.example import KEY, drawn, mean_field, numpyro_log_density
from tests.numpyro_examples.registry import EXAMPLES
from tests.oracles import quick_jit

DEFAULT_ROWS = 10  # the others are slow: see conftest.py
# NumPyro's wants every site in the plate that is subsampled
REFUSED_BY_RENYI = {"subsampled HMC", "ideal points"}


@pytest.mark.filterwarnings("ignore:Plate '.*' is subsampled")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_bounds(example):
    model, values = example.drawn()
    guide = (example.guide or mean_field)(model, example)
    held = drawn(guide, example, KEY)[0] if example.guide else {}
    guide = substitute(guide, data=held | values)

    def by(loss):
        svi = SVI(model, guide, optim.Adam(0.01), loss)
        return svi.evaluate(svi.init(KEY, *example.args, **example.kwargs), *example.args, **example.kwargs)

    def theirs():
        if not example.summed:
            of_many = [] if example.name in REFUSED_BY_RENYI else [RenyiELBO(alpha=0.0, num_particles=3)]
            return tuple(map(by, [Trace_ELBO(), *of_many]))
        if not example.by_parts:
            return (by(TraceEnum_ELBO()),)
        log_q = of_numpyro(seed(guide, KEY), example.args, example.kwargs, {})[0]
        return (log_q - numpyro_log_density(example, model, values),)

    ours, expected = quick_jit(lambda: ((by(ELBO()), by(IWELBO(3))), theirs()))()
    assert np.all(np.isfinite(expected))
    np.testing.assert_allclose(ours, [expected[0], expected[-1]], rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["volatility", *(pytest.param(name, marks=pytest.mark.slow) for name in ("varying intercepts", "DAIS"))],
)
def test_means_of_many_draws(name):
    """Over draws of the guide, not held: bounds of one and of three particles, those of AutoDAIS among
    them.
    """
    [example] = [e for e in EXAMPLES if e.name == name]
    guide, params = mean_field(example.model, example), {}
    if name == "DAIS":
        guide = AutoDAIS(example.model, K=3)
        svi = SVI(example.model, guide, optim.Adam(0.01), Trace_ELBO())
        params = svi.get_params(svi.init(KEY, *example.args))

    def losses(key):
        pairs = (ELBO(), Trace_ELBO()), (IWELBO(3), RenyiELBO(alpha=0.0, num_particles=3))
        return [
            [
                loss.loss(k, params, example.model, guide, *example.args)
                for loss, k in zip(pair, jax.random.split(key), strict=True)
            ]
            for pair in pairs
        ]

    # (bound, ours or theirs, key)
    found = np.asarray(quick_jit(jax.vmap(losses))(jax.random.split(KEY, 2000)), np.float64)
    error = np.hypot(*(found.std(-1).T / np.sqrt(found.shape[-1])))
    # Two comparisons by default at 4.5 standard errors: a false alarm in 10^5.
    assert np.all(np.abs(found[:, 0].mean(-1) - found[:, 1].mean(-1)) < 4.5 * error + 1e-4)
