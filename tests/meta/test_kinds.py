"""Episodes of several kinds: EM's bound and updates against the one law's, and adaptation against enumeration
of kinds and scales.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import multivariate_normal

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.meta import NIW, EpisodeStream, ExactLinearGaussian, LaplaceGGN, kinds, lift
from ppl_ext.meta.kinds import _EM, Kinds
from ppl_ext.meta.solvers.local import Gaussian
from tests.meta.test_lift import KEY, NOISE, STREAM, line, quiet

LAWS = (
    NIW(jnp.array([2.0, -1.0]), 3.0, jnp.array([[2.0, 0.5], [0.5, 1.0]]), 6.0),
    NIW(jnp.array([-1.0, 0.5]), 9.0, jnp.array([[0.5, 0.0], [0.0, 3.0]]), 9.0),
)


@pytest.fixture(scope="module")
def untrained():
    return lift(line, ["w"]).untrained(STREAM, ExactLinearGaussian())


@pytest.fixture(scope="module")
def em(untrained):
    h, state = untrained.hierarchy, untrained.state
    batch = STREAM.batch(np.arange(len(STREAM)))
    fits = jax.jit(lambda: h.fits(state.niw, state.shared, batch, untrained.solver, KEY))()
    n = len(STREAM)
    near = Gaussian(jnp.full((n, 2), 0.3), jnp.broadcast_to(jnp.eye(2), (n, 2, 2)))  # any points will do
    return _EM(fits, near, h.prior, 6.0), batch


@pytest.mark.slow
def test_with_one_kind_the_bound_is_that_of_one_law(untrained, em):
    """Up to a constant: the difference between two laws is the same."""
    em, batch = em
    h, shared = untrained.hierarchy, untrained.state.shared

    def both(law):
        stacked = jax.tree.map(lambda x: x[None], law)
        return em.round(stacked, jnp.array([7.0]))[3], h.terms(law, shared, batch, em.fits).total

    (ours, theirs), (ours2, theirs2) = (jax.jit(both)(law) for law in LAWS)
    np.testing.assert_allclose(ours - ours2, theirs - theirs2, rtol=1e-4)
    assert abs(theirs - theirs2) > 0.1


@pytest.mark.slow
def test_a_round_counts_each_episode_by_its_membership(em):
    """Memberships from the costs, and laws that whole counts of episodes would give."""
    em, _ = em
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *LAWS)
    laws, concentration, memberships, loss = eqx.filter_jit(em.round)(stacked, jnp.array([4.0, 2.0]))
    q, costs = jax.vmap(em._local)(stacked)
    digamma = jax.scipy.special.digamma
    logits = (digamma(jnp.array([4.0, 2.0])) - digamma(6.0))[:, None] - costs
    np.testing.assert_allclose(memberships, jax.nn.softmax(logits, axis=0).T, rtol=1e-4)
    np.testing.assert_allclose(concentration, 1 + memberships.sum(0), rtol=1e-5)
    # KL(Dirichlet(4, 2) || Dirichlet(1, 1)): the first share is Beta(4, 2), by quadrature.
    p = (np.arange(20_000) + 0.5) / 20_000
    density = 20 * p**3 * (1 - p)
    of_shares = np.mean(density * np.log(density))
    of_laws = sum(float(law.kl(em.prior)) for law in LAWS)
    np.testing.assert_allclose(loss, (of_laws + of_shares) / 6 - logsumexp(logits, axis=0).mean(), rtol=1e-4)

    counts = [2, 0, 1, 0, 0, 3]
    one = jax.tree.map(lambda x: x[0], q)
    ours = em._law(one, jnp.array(counts, float))
    index = np.repeat(np.arange(6), counts)
    theirs = em.prior.posterior(one.mean[index], one.covariance[index])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_adaptation_is_the_mixture_over_kinds_and_scales(untrained):
    """Given kind and scale an episode of known noise has a Gaussian evidence and Gaussian regression: all of
    them enumerated.
    """
    two = Kinds(untrained, LAWS, jnp.array([3.0, 1.0]), np.zeros((6, 2)), np.zeros(1))
    x, y = np.array([0.5, -1.0, 2.0]), np.array([0.0, 0.1, 0.4])
    post = two.adapt(KEY, x.astype(np.float32), y.astype(np.float32), num_nodes=8)
    f = np.stack([np.ones(3), x], 1)
    log_weights, means = [], []
    for law, share, nodes in zip(LAWS, (0.75, 0.25), two.nodes(8, KEY), strict=True):
        df, loc = float(law.df) - 1, np.asarray(law.loc, float)
        wide = np.asarray(law.scale_matrix, float) * (1 + 1 / float(law.mean_precision)) / df
        for u, log_weight in zip(np.asarray(nodes.scales)[:, 0], np.asarray(nodes.log_weights), strict=True):
            prior, noise = wide / u, NOISE**2 * np.eye(3)
            seen = f @ prior @ f.T + noise
            log_weights.append(np.log(share) + log_weight + multivariate_normal(f @ loc, seen).logpdf(y))
            means.append(loc + prior @ f.T @ np.linalg.solve(seen, y - f @ loc))
    weights = np.exp(np.array(log_weights) - float(logsumexp(jnp.array(log_weights))))
    np.testing.assert_allclose(post.mixture.weights, weights, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(post.mean, weights @ np.array(means), rtol=1e-3, atol=1e-4)
    assert 0.02 < weights[:8].sum() < 0.98  # both kinds count
    assert post.samples["w"].shape == (1000, 2)
    np.testing.assert_allclose(
        post.theta.mean(0), post.mean, atol=4.5 * float(jnp.sqrt(post.covariance.diagonal().max() / 1000))
    )


@pytest.mark.slow
@pytest.mark.parametrize("solver", [ExactLinearGaussian(), LaplaceGGN(2, structure="diagonal")])
def test_two_populations_are_told_apart(solver):
    """Flat lines around 3, and steep ones through 0, with a quarter of the first; the bound never rises."""
    rng = np.random.default_rng(0)
    rows, flat = [], rng.random(60) < 0.25
    for is_flat in flat:
        x = rng.normal(size=8)
        level, slope = (
            (3 + 0.3 * rng.normal(), 0.3 * rng.normal())
            if is_flat
            else (0.3 * rng.normal(), 3 * rng.normal())
        )
        rows.append(
            (x.astype(np.float32), (level + slope * x + NOISE * rng.normal(size=8)).astype(np.float32))
        )
    fit = quiet(lift(line, ["w"]), EpisodeStream(rows), local_solver=solver)
    two = kinds(fit, KEY, rows, num_starts=4, num_rounds=30)
    assert (np.diff(two.losses) <= 1e-5).all()
    found = two.memberships.argmax(1)
    right = found == flat if found[flat].mean() > 0.5 else found != flat
    assert right.mean() > 0.9
    np.testing.assert_allclose(np.sort(two.shares), np.sort([flat.mean(), 1 - flat.mean()]), atol=0.1)
    assert two.memberships.shape == (60, 2) and "Kinds(2" in repr(two)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fit": None}, ArgumentTypeError, "must be a MetaFit"),
        ({"num_kinds": 0}, ArgumentError, "num_kinds"),
        ({"num_kinds": 3}, ArgumentError, "there are 6 in all"),
        ({"num_starts": 1.5}, ArgumentError, "num_starts"),
        ({"rng_key": 3}, ArgumentTypeError, "rng_key"),
        (
            {"episodes": [(np.zeros(3, np.float32), np.full(3, np.nan, np.float32))] * 6},
            NonFiniteError,
            "'y'",
        ),
    ],
)
def test_what_kinds_refuses(untrained, change, error, message):
    arguments = {"fit": untrained, "rng_key": KEY, "episodes": STREAM, "num_kinds": 2} | change
    with pytest.raises(error, match=message):
        kinds(**arguments)


def test_a_diagonal_law_has_no_kinds():
    with pytest.raises(ArgumentError, match="diagonal"):
        kinds(lift(line, ["w"], structure="diagonal").untrained(STREAM), KEY, STREAM)


def test_before_training_the_law_is_the_prior(untrained):
    assert (
        untrained.niw is untrained.hierarchy.prior
        and untrained.losses.size == 0
        and "num_steps=0" in repr(untrained)
    )
    with pytest.raises(ArgumentTypeError, match="local_solver"):
        lift(line, ["w"]).untrained(STREAM, LaplaceGGN)
