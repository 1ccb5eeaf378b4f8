"""Log densities, and their gradients, of NumPyro's examples: the same as NumPyro's own."""

import equinox as eqx
import jax
import numpy as np
import pytest

from ppl_ext import log_density
from ppl_ext.errors import ModelError
from tests.numpyro_examples.chains import LENGTHS, NOTES
from tests.numpyro_examples.example import KEY, numpyro_log_density
from tests.numpyro_examples.registry import EXAMPLES
from tests.oracles import quick_jit

DEFAULT_ROWS = 10  # the others are slow: see conftest.py


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_log_density(example):
    model, values = example.drawn()
    real, others = eqx.partition(values, eqx.is_inexact_array)

    def ours(real):
        return log_density(
            model, eqx.combine(real, others), *example.args, rng_key=KEY, **example.kwargs
        ).total

    def theirs(real):
        return numpyro_log_density(example, model, eqx.combine(real, others))

    found, expected = quick_jit(
        lambda real: (jax.value_and_grad(ours)(real), jax.value_and_grad(theirs)(real))
    )(real)
    assert np.isfinite(expected[0])
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * (1 + np.abs(b).max())),
        found[1],
        expected[1],
    )


def test_a_long_chain_of_second_order_is_refused_by_name():
    """Where NumPyro's ``history=2`` would serve: see decision 13."""
    [example] = [e for e in EXAMPLES if e.name == "HMM, second order"]
    model, values = example.drawn()
    with pytest.raises(ModelError, match="Elements of site 'x' meet in the density of 'x'"):
        log_density(model, values, NOTES, LENGTHS)
