"""Regressions and pooling: the examples on baseball, forest cover, admissions, waters fished in, births of
shrinkage, and notebooks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

from tests.numpyro_examples.example import Example

rng = np.random.default_rng(1)
X = rng.normal(size=(8, 3)).astype(np.float32)
Y = (X @ np.float32([1.0, -0.5, 0.0]) + 0.3 * rng.normal(size=8)).astype(np.float32)
LABELS = (Y > 0).astype(np.int32)
COUNTS = rng.poisson(1.5, 8).astype(np.int32) * (rng.random(8) < 0.7)
GROUPS = np.array([0, 0, 1, 1, 2, 2, 2, 0])
TRIALS, HITS = np.array([12, 9, 20, 7]), np.array([4, 1, 9, 2])


def pooled(trials, hits=None):
    rate = numpyro.sample("rate", dist.Uniform(0, 1))
    with numpyro.plate("players", len(trials)):
        return numpyro.sample("hits", dist.Binomial(trials, probs=rate), obs=hits)


def not_pooled(trials, hits=None):
    with numpyro.plate("players", len(trials)):
        rate = numpyro.sample("rate", dist.Uniform(0, 1))
        return numpyro.sample("hits", dist.Binomial(trials, probs=rate), obs=hits)


def partly_pooled(trials, hits=None):
    mean, strength = (
        numpyro.sample("mean", dist.Uniform(0, 1)),
        numpyro.sample("strength", dist.Pareto(1, 1.5)),
    )
    with numpyro.plate("players", len(trials)):
        rate = numpyro.sample("rate", dist.Beta(mean * strength, (1 - mean) * strength))
        return numpyro.sample("hits", dist.Binomial(trials, probs=rate), obs=hits)


def partly_pooled_logits(trials, hits=None):
    loc, scale = numpyro.sample("loc", dist.Normal(-1, 1)), numpyro.sample("scale", dist.HalfCauchy(1))
    with numpyro.plate("players", len(trials)):
        logit = numpyro.sample("logit", dist.Normal(loc, scale))
        return numpyro.sample("hits", dist.Binomial(trials, logits=logit), obs=hits)


def logistic(x, labels=None):
    width = x.shape[-1]
    slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(width), jnp.ones(width)))
    return numpyro.sample("labels", dist.Bernoulli(logits=x @ slopes), obs=labels)


def logistic_in_minibatches(x, labels, batch):
    """The structure of subsampled HMC with energy conserved: rows by ``numpyro.subsample``."""
    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=batch):
        here = numpyro.subsample(x, event_dim=1)
        numpyro.sample(
            "labels", dist.Bernoulli(logits=here @ slopes), obs=numpyro.subsample(labels, event_dim=0)
        )


def funnel(dim=4):
    width = numpyro.sample("width", dist.Normal(0, 3))
    numpyro.sample("x", dist.Normal(jnp.zeros(dim - 1), jnp.exp(width / 2)))


funnel_apart = reparam(funnel, config={"x": LocScaleReparam(0)})


def horseshoe(x, y=None, binary=False):
    with numpyro.plate("covariates", x.shape[1]):
        local = numpyro.sample("local", dist.HalfCauchy(1.0))
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0))
    overall = numpyro.sample("overall", dist.HalfCauchy(1.0))
    mean = x @ numpyro.deterministic("effects", overall * local * slopes)
    if binary:
        numpyro.sample("y", dist.Bernoulli(logits=mean), obs=y)
    else:
        precision = numpyro.sample("precision", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0 / jnp.sqrt(precision)), obs=y)


def admissions(group, male, trials, admitted=None):
    means = numpyro.sample("means", dist.Normal(0, jnp.array([4.0, 1.0])))
    scales = numpyro.sample("scales", dist.HalfNormal(jnp.ones(2)))
    factor = scales[..., None] * numpyro.sample("correlation", dist.LKJCholesky(2, concentration=2))
    z = numpyro.sample("z", dist.Normal(jnp.zeros((len(np.unique(group)), 2)), 1))
    offsets = (factor @ z.T).T
    logits = means[0] + offsets[group, 0] + (means[1] + offsets[group, 1]) * male
    numpyro.sample("admitted", dist.Binomial(trials, logits=logits), obs=admitted)


def zero_inflated(x, counts):
    gate, rate = (
        numpyro.sample(name, dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        for name in ("gate", "rate")
    )
    with numpyro.plate("rows", len(x)):
        law = dist.ZeroInflatedPoisson(gate=jax.scipy.special.expit(x @ gate), rate=jnp.exp(x @ rate))
        numpyro.sample("counts", law, obs=counts)


def varying_intercepts(group, x, y=None):
    hyper = {name: numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("a_mean", "b_mean")}
    hyper |= {name: numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("a_scale", "b_scale")}
    with numpyro.plate("groups", len(np.unique(group))):
        a = numpyro.sample("a", dist.Normal(hyper["a_mean"], hyper["a_scale"]))
        b = numpyro.sample("b", dist.Normal(hyper["b_mean"], hyper["b_scale"]))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(a[group] + b[group] * x, noise), obs=y)


def optional_covariates(first=None, second=None, y=None):
    mean = numpyro.sample("intercept", dist.Normal(0.0, 0.2))
    for name, x in {"first": first, "second": second}.items():
        if x is not None:
            mean = mean + numpyro.sample(f"slope_{name}", dist.Normal(0.0, 0.5)) * x
    numpyro.sample("y", dist.Normal(mean, numpyro.sample("noise", dist.Exponential(1.0))), obs=y)


def proportions(design, outcome=None):
    slopes = numpyro.sample(
        "slopes", dist.MultivariateNormal(loc=0.0, covariance_matrix=jnp.eye(design.shape[1]))
    )
    with numpyro.plate("rows", len(design)):
        numpyro.sample("outcome", dist.Bernoulli(logits=design.dot(slopes)), obs=outcome)


def schools_partly_centred(sigma, y=None):
    """How far a site is centred is a parameter of the model."""
    mean, scale = numpyro.sample("mean", dist.Normal(0, 5)), numpyro.sample("scale", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)), reparam(config={"effect": LocScaleReparam(centered=None)}):
        effect = numpyro.sample("effect", dist.Normal(mean, scale))
        numpyro.sample("y", dist.Normal(effect, sigma), obs=y)


def stacking(x, num_discrete, scores, loc, scale):
    num_models, width = scores.shape[1], x.shape[1]
    with numpyro.plate("models", num_models - 1, dim=-2):
        mean = numpyro.sample("mean", dist.Normal(0, loc))
        sd = numpyro.sample("sd", dist.HalfNormal(scale=scale))
        with numpyro.plate("discrete", num_discrete, dim=-1):
            discrete = numpyro.sample("discrete_effect", dist.Normal(0, 1))
        with numpyro.plate("continuous", width - num_discrete, dim=-1):
            continuous = numpyro.sample("continuous_effect", dist.Normal(0, 1))
    effects = numpyro.deterministic(
        "effects", jnp.hstack([(sd.squeeze() * discrete.T + mean.squeeze()).T, continuous])
    )
    log_weights = jax.nn.log_softmax(jnp.hstack([x @ effects.T, jnp.zeros((len(x), 1))]), axis=1)
    numpyro.deterministic("weights", jnp.exp(log_weights))
    numpyro.factor("score", jax.nn.logsumexp(scores + log_weights, axis=1).sum())


# --- ordered categories: cut points from nowhere, from a transform, from a simplex

RATINGS = np.array([0, 1, 2, 1, 0, 2, 2, 1])


def cut_points_from_nowhere(x, ratings, classes=3):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    improper = dist.ImproperUniform(
        support=constraints.ordered_vector, batch_shape=(), event_shape=(classes - 1,)
    )
    cuts = numpyro.sample("cuts", improper)
    numpyro.sample("cuts_prior", dist.Normal(0, 1), obs=cuts)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("rating", dist.OrderedLogistic(x * slope, cuts), obs=ratings)


def cut_points_in_order(x, ratings, classes=3):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    law = dist.TransformedDistribution(dist.Normal(0, 1).expand([classes - 1]), transforms.OrderedTransform())
    cuts = numpyro.sample("cuts", law)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("rating", dist.OrderedLogistic(x * slope, cuts), obs=ratings)


def cut_points_of_a_simplex(x, ratings, concentration):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    with reparam(config={"cuts": TransformReparam()}):
        law = dist.TransformedDistribution(
            dist.Dirichlet(concentration), transforms.SimplexToOrderedTransform(0.0)
        )
        cuts = numpyro.sample("cuts", law)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("rating", dist.OrderedLogistic(x * slope, cuts), obs=ratings)


NOTHING_SEEN = "no log_likelihood"

EXAMPLES = [
    Example("baseball, pooled", pooled, (TRIALS, HITS)),
    Example("baseball, not pooled", not_pooled, (TRIALS, HITS)),
    Example("baseball, partly pooled", partly_pooled, (TRIALS, HITS), given={"mean": 0.3, "strength": 5.0}),
    Example("baseball, partly pooled logits", partly_pooled_logits, (TRIALS, HITS)),
    Example("forest cover", logistic, (X, LABELS)),
    Example("subsampled HMC", logistic_in_minibatches, (X, LABELS, 4)),
    Example("funnel", funnel, no_loo=NOTHING_SEEN),
    Example("funnel, not centred", funnel_apart, no_loo=NOTHING_SEEN),
    Example("horseshoe", horseshoe, (X, Y)),
    Example("horseshoe, binary", horseshoe, (X, LABELS), {"binary": True}),
    Example("admissions", admissions, (np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), TRIALS, HITS)),
    Example("zero-inflated", zero_inflated, (X, COUNTS)),
    Example("varying intercepts", varying_intercepts, (GROUPS, X[:, 0], Y)),
    Example("optional covariates", optional_covariates, (None, X[:, 1]), {"y": Y}),
    Example("proportions", proportions, (jnp.asarray(X), LABELS)),
    Example(
        "schools, partly centred",
        schools_partly_centred,
        (np.float32([9.0, 11.0, 8.0]), np.float32([3.0, -2.0, 10.0])),
    ),
    Example("stacking", stacking, (X, 2, X - 1.0, 1.0, 0.5), no_loo=NOTHING_SEEN),
    Example(
        "ordinal, improper",
        cut_points_from_nowhere,
        (Y, RATINGS),
        given={"cuts": jnp.array([-0.4, 0.9])},
        no_loo="var_name",
    ),
    Example("ordinal, ordered", cut_points_in_order, (Y, RATINGS)),
    Example("ordinal, simplex", cut_points_of_a_simplex, (Y, RATINGS, np.ones(3, np.float32))),
]
