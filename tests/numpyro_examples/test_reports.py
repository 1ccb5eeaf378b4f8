"""From ``fit`` or NUTS to ArviZ on NumPyro's examples: finite losses, log likelihoods as NumPyro has them,
leave-one-out or why not.
"""

import jax
import numpy as np
import optax
import pytest
from numpyro.handlers import substitute
from numpyro.infer import MCMC, NUTS
from numpyro.infer import log_likelihood as of_numpyro

import ppl_ext
from ppl_ext.diagnostics import log_likelihood, loo
from ppl_ext.errors import PplExtError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from tests.numpyro_examples.example import KEY, mean_field
from tests.numpyro_examples.registry import EXAMPLES

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py
SUBSAMPLED = {"documents", "rows", "songs"}  # plates
DRAWS = 25  # as few as leave-one-out takes
NOTHING_OBSERVED = "no log_likelihood"


def left_out(example, report):
    """Leave-one-out, or its refusal in words."""
    if example.no_loo is None:
        assert loo(report).n_data_points > 0
    else:
        with pytest.raises(PplExtError, match=example.no_loo):
            loo(report)


HARD = {"skewed angles": [pytest.mark.slow], "halves of pictures": [pytest.mark.slow]}
WARNS = (
    "ignore:Plate '.*' is subsampled",
    "ignore:Estimated shape parameter of Pareto",
    "ignore:The point-wise LOO is the same",
)


def rows(examples):
    return [pytest.param(e, id=e.name, marks=HARD.get(e.name, [])) for e in examples]


@pytest.mark.filterwarnings(*WARNS)
@pytest.mark.parametrize("example", rows(EXAMPLES))
def test_fit(example):
    guide = (example.guide or mean_field)(example.model, example)
    result = fit(
        KEY,
        example.model,
        guide,
        ELBO(),
        optax.adam(1e-3),
        20,
        *example.args,
        progress_bar=False,
        **example.kwargs,
    )
    assert result.losses.shape == (1, 20) and np.isfinite(result.losses).all()
    if example.no_draws:
        with pytest.raises(PplExtError, match=example.no_draws):
            result.sample(num_samples=DRAWS)
        return
    draws = result.sample(num_samples=DRAWS)
    drawn = set(example.drawn()[1])
    latent = drawn - SUBSAMPLED
    assert latent <= draws.values.keys() and np.isfinite(draws.log_weights).all()
    report = result.to_arviz(num_samples=DRAWS)
    assert {name.replace("/", ".") for name in latent} <= set(report.posterior.data_vars)
    left_out(example, report)
    # NumPyro's is for none of these
    if not (example.summed or drawn & SUBSAMPLED or example.no_loo == NOTHING_OBSERVED):
        model = substitute(example.model, data=jax.tree.map(lambda x: x[0], result.params))
        values = {name: x[0] for name, x in draws.values.items()}
        ours = log_likelihood(model, values, *example.args, batch_ndims=1, **example.kwargs)
        theirs = of_numpyro(model, values, *example.args, **example.kwargs)
        for name, terms in ours.items():
            np.testing.assert_allclose(
                terms[~np.isnan(terms)], np.asarray(theirs[name])[~np.isnan(terms)], rtol=1e-4, atol=1e-4
            )


NOT_BY_NUTS = {
    "capture, by year",  # NumPyro's enumerated scan takes no latent that was transformed within it
    "capture, random years",
    "subsampled HMC",  # for HMCECS
}
CHAINS = [
    e
    for e in EXAMPLES
    if not e.guide
    and e.name not in {"tune, scanned", "several predators", "predators", "random scale", *NOT_BY_NUTS, *HARD}
]


@pytest.mark.filterwarnings(*WARNS)
@pytest.mark.parametrize("example", rows(CHAINS))
def test_nuts(example):
    mcmc = MCMC(NUTS(example.model, max_tree_depth=3), num_warmup=10, num_samples=DRAWS, progress_bar=False)
    mcmc.run(KEY, *example.args, **example.kwargs)
    report = ppl_ext.to_arviz(mcmc)
    latent = set(example.drawn()[1]) - set(example.summed)
    assert latent & set(mcmc.get_samples()) <= set(report.posterior.data_vars)
    left_out(example, report)
