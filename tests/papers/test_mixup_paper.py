"""What the program on mixed rows claims, at its small size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import seed, substitute, trace

from tests.papers.programs import claims, module


def numbers(text):
    return [float(x) for x in re.findall(r"\d+\.\d+", text)]


def test_mixed_rows_are_calibrated_where_classes_overlap():
    """Two runs of 800 steps each; by one the error is some .3, by the other some .1."""
    plain, mixed = (numbers(row.ours) for row in claims("mixup"))
    assert plain[0] - mixed[0] > 0.1
    assert abs(plain[4] - 0.5) < 0.06 and abs(mixed[4] - 0.5) < 0.06  # each second row is a guess


def test_the_loss_is_that_of_the_formula():
    """Of a batch that is traced, with its rows, partners and shares."""
    program = module("mixup")
    x, y = program.rows(np.random.default_rng(0), program.ROWS, 0.0)
    with seed(rng_seed=0), trace() as record:
        program.model(x, y, 4.0)
    params = {"network$params": record["network$params"]["value"]}
    with seed(rng_seed=0):
        of = substitute(program.network, params)()
    first, second, share = (np.asarray(record[name]["value"]) for name in ("batch", "second", "share"))
    assert len(set(first.tolist())) == program.BATCH and share.std() > 0.1
    between = share[:, None] * x[first] + (1 - share[:, None]) * x[second]
    log_p = np.asarray(jax.nn.log_softmax(of(jnp.asarray(between))))
    at = np.arange(program.BATCH)
    expected = share * log_p[at, y[first]] + (1 - share) * log_p[at, y[second]]
    factor = record["labels"]["fn"].log_prob(record["labels"]["value"])
    np.testing.assert_allclose(factor, expected, rtol=1e-4, atol=1e-5)


def test_rows_as_they_are_have_no_share():
    program = module("mixup")
    with seed(rng_seed=0), trace() as record:
        program.guide(None, None, 0.0)
    assert "share" not in record and record["batch"]["value"].shape == (program.BATCH,)
