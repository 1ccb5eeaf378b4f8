"""``ELBO(analytic_kl=True)``: which divergences are known in closed form, and that they change no mean.

As in ``test_unbiased.py``: 20,000 replicates with fixed keys, within 4.5 standard errors of an oracle that
sums over all outcomes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import mask, scale, substitute
from numpyro.infer.autoguide import AutoNormal

from ppl_ext.handlers import detach
from ppl_ext.objectives import ELBO
from ppl_ext.objectives.terms.analytic_kl import known_sites
from tests import oracles
from tests.objectives.exact import SCORE, check
from tests.oracles import (
    Oracle,
    assert_unbiased,
    bernoulli,
    expected_loss,
    finite,
    normal,
    product,
    replicates,
)
from tests.problems import PROBLEMS, Problem

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py
KNOWN = {
    "chain": {"a", "c"},
    "plated": {"g", "z"},
    "scaled": {"b"},  # a has other scales in model and guide
    "masked": {"g", "z"},
    "subsampled": {"g", "z"},
    "score_normal": {"x"},
    "coin_normal_coin": {"a", "x", "b"},
    "scanned": {"x0"},  # a step's law depends on the step before: its own site
}


@pytest.mark.parametrize(
    "problem",
    [
        name if name in ("plated", "scaled", "subsampled") else pytest.param(name, marks=pytest.mark.slow)
        for name in KNOWN
    ],
)
@pytest.mark.slow
def test_analytic_divergences_change_no_mean(problem):
    problem = PROBLEMS[problem]
    strategy = SCORE if problem.finite_sites else None
    check(ELBO(analytic_kl=True), problem, oracles.elbo(), 1, strategy)


@pytest.mark.parametrize("problem", KNOWN)
def test_which_divergences_are_known(problem):
    problem = PROBLEMS[problem]
    guide = substitute(problem.guide, jax.tree.map(jnp.asarray, problem.params))
    assert (
        known_sites(lambda: problem.model(*problem.args), lambda: guide(*problem.args)) == KNOWN[problem.name]
    )


def test_analytic_divergences_take_noise_away():
    problem = PROBLEMS["score_normal"]
    spread = [np.std(replicates(ELBO(analytic_kl=kl), problem, 2_000)[1]["s"]) for kl in (True, False)]
    assert spread[0] < 0.8 * spread[1]


def crossed(guide_looks_back):
    """The model draws a, then b by looking at a; the guide draws b first, and then a, which may look at b."""
    phi = np.array([0.4, 0.3, 1.2 if guide_looks_back else 0.0])

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Bernoulli(logits=2.0 * a - 1.0))
        numpyro.sample("y", dist.Normal(a - b, 1.0), obs=0.3)

    def guide():
        phi = numpyro.param("phi", jnp.zeros(3))
        b = numpyro.sample("b", dist.Bernoulli(logits=phi[0]))
        numpyro.sample("a", dist.Bernoulli(logits=phi[1] + phi[2] * b if guide_looks_back else phi[1]))

    def log_q(params, z, batch):
        phi = params["phi"]
        return bernoulli(z["b"], phi[0]) + bernoulli(z["a"], phi[1] + phi[2] * z["b"])

    def log_p(params, z, batch):
        return (
            bernoulli(z["a"], np.log(0.4 / 0.6))
            + bernoulli(z["b"], 2.0 * z["a"] - 1.0)
            + normal(0.3, z["a"] - z["b"])
        )

    oracle = Oracle(**product(a=finite(2), b=finite(2)), log_pmf=log_q, log_p=log_p, log_q=log_q)
    return Problem("crossed", model, guide, {"phi": phi}, oracle, ("a", "b"))


def test_a_law_that_depends_on_the_site_itself_is_sampled(monkeypatch):
    """p(b | a) where the guide drew a by looking at b: its divergence from q(b) is another number, and
    whoever takes it is caught.
    """
    problem = crossed(True)
    assert known_sites(problem.model, problem.guide) == {"a"}
    check(ELBO(analytic_kl=True), problem, oracles.elbo(), 1, SCORE)
    monkeypatch.setattr("ppl_ext.objectives.elbo.known_sites", lambda model, guide: frozenset({"a", "b"}))
    with pytest.raises(AssertionError, match="standard errors off"):
        check(ELBO(analytic_kl=True), problem, oracles.elbo(), 1, SCORE)


def test_another_order_of_independent_sites_is_known():
    problem = crossed(False)
    assert known_sites(problem.model, problem.guide) == {"a", "b"}
    expected = expected_loss(problem.oracle, problem.params, oracles.elbo(), 1)
    samples = replicates(ELBO(analytic_kl=True), problem)
    assert_unbiased(samples[0], expected[0])


LAWS = {
    "Normal": (dist.Normal(0.3, 0.7), dist.Normal(-0.2, 1.3)),
    "Normal, event": (
        dist.Normal(jnp.array([0.3, 0.1]), 0.7).to_event(1),
        dist.Normal(-0.2, jnp.array([1.3, 0.8])).to_event(1),
    ),
    "LogNormal": (dist.LogNormal(0.3, 0.7), dist.LogNormal(-0.2, 1.3)),
    "as an automatic guide": (
        dist.TransformedDistribution(dist.Normal(0.3, 0.7), dist.transforms.ExpTransform()),
        dist.LogNormal(0.0, 1.0),
    ),
    "Gamma": (dist.Gamma(2.0, 1.5), dist.Gamma(1.4, 0.9)),
    "Exponential": (dist.Exponential(1.5), dist.Exponential(0.9)),
    "Gamma and Exponential": (dist.Gamma(2.0, 1.5), dist.Exponential(0.9)),
    "Beta": (dist.Beta(2.0, 1.5), dist.Beta(1.4, 0.9)),
    "Dirichlet": (dist.Dirichlet(jnp.array([2.0, 1.5, 3.0])), dist.Dirichlet(jnp.array([1.0, 1.2, 1.4]))),
    "Bernoulli": (dist.Bernoulli(0.3), dist.Bernoulli(logits=0.9)),
    "Categorical": (
        dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])),
        dist.Categorical(logits=jnp.array([0.1, -0.4, 0.3])),
    ),
    "Binomial": (dist.Binomial(4, probs=0.3), dist.Binomial(4, logits=0.9)),
    "MultivariateNormal": (
        dist.MultivariateNormal(jnp.array([0.3, -0.1]), jnp.array([[1.0, 0.3], [0.3, 0.7]])),
        dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.2, -0.2], [-0.2, 0.9]])),
    ),
}
QUICK = (
    "Normal, event",
    "as an automatic guide",
    "Gamma and Exponential",
    "Categorical",
    "MultivariateNormal",
)


@pytest.mark.parametrize(
    "law", [law if law in QUICK else pytest.param(law, marks=pytest.mark.slow) for law in LAWS]
)
def test_closed_forms_agree_with_sampling(law):
    """20,000 draws, eagerly: E_q[log q − log p] within 4.5 standard errors, in an expanded and masked
    plate.
    """
    q, p = LAWS[law]
    keep = np.array([True, False, True])

    def program(law):
        def run():
            with numpyro.plate("n", 3), mask(mask=keep), scale(scale=1.5):
                numpyro.sample("z", law)

        return run

    assert known_sites(program(p), program(q)) == {"z"}
    x = q.sample(jax.random.key(0), (20_000,))
    log_ratio = np.asarray(q.log_prob(x) - p.log_prob(x), np.float64)
    guide = substitute(program(q), {})  # any wrapper
    loss = ELBO(analytic_kl=True).loss(jax.random.key(1), {}, program(p), guide)
    assert abs(float(loss) / 3.0 - log_ratio.mean()) < 4.5 * log_ratio.std() / np.sqrt(len(log_ratio))


UNKNOWN = {
    "laws of two kinds": (lambda: dist.Normal(0.0, 1.0), lambda: dist.Cauchy(0.0, 1.0)),
    "trials": (lambda: dist.Binomial(4, probs=0.3), lambda: dist.Binomial(5, probs=0.3)),
    "a mask": (lambda: dist.Normal(0.0, 1.0).mask(False), lambda: dist.Normal(0.0, 1.0)),
    "a mask inside": (
        lambda: dist.Normal(jnp.zeros(2), 1.0).mask(jnp.ones(2, bool)).to_event(1),
        lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    ),
    "events": (lambda: dist.Normal(jnp.zeros(3), 1.0).to_event(1), lambda: dist.Normal(jnp.zeros(3), 1.0)),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_left_to_sampling(case):
    q, p = UNKNOWN[case]
    assert known_sites(lambda: numpyro.sample("z", p()), lambda: numpyro.sample("z", q())) == frozenset()


def test_a_value_that_was_given_has_no_law():
    program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))  # noqa: E731  a program in one line
    assert known_sites(program, substitute(program, {"z": 0.3})) == frozenset()
    assert known_sites(program, program) == {"z"}


def test_a_law_that_is_held_fixed_is_not_averaged_over():
    program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))  # noqa: E731  a program in one line
    assert known_sites(program, detach(program)) == frozenset()


def test_python_that_branches_on_a_draw_has_no_one_data_flow():
    def branching():
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("z", dist.Normal(1.0 if k else 0.0, 1.0))

    assert known_sites(branching, branching) == frozenset()
    assert jnp.abs(ELBO(analytic_kl=True).loss(jax.random.key(0), {}, branching, branching)) < 1e-6


def test_automatic_guides_are_known():
    def model():
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        width = numpyro.sample("width", dist.LogNormal(0.0, 1.0))
        numpyro.sample("tail", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(loc, width), obs=0.4)

    guide = AutoNormal(model)
    with numpyro.handlers.seed(rng_seed=0):
        guide()
    assert known_sites(model, guide) == {"loc", "width"}
