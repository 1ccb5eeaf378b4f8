"""One law of each public class of ``numpyro.distributions``, as a function of real numbers: one for each row
of its batch.

``LAWS[name](t)`` has the batch shape of ``t``, and its density moves smoothly with ``t`` wherever the class
has a parameter that is real.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.nn import sigmoid
from numpyro.distributions import constraints, transforms

EYE = jnp.eye(2)
NEIGHBOURS = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def vector(t, *shifts: float):
    """A vector for each row: ``t`` plus each of the shifts."""
    return jnp.asarray(t)[..., None] + jnp.array(shifts)


def simplex(t):
    return jax.nn.softmax(vector(t, 0.0, 0.5, -0.3) * jnp.array([1.0, 0.0, 0.5]))


def above(t):
    """A number above one half."""
    return 0.5 + jnp.exp(0.3 * jnp.asarray(t))


def covariance(t):
    return above(t)[..., None, None] * jnp.array([[1.0, 0.3], [0.3, 0.8]])


def correlation(t):
    r = 0.5 * jnp.tanh(jnp.asarray(t))[..., None, None]
    return EYE + r * (1 - EYE)


def cholesky(t):
    return jnp.linalg.cholesky(covariance(t))


def two(t):
    """Probabilities of the two components of a mixture."""
    return dist.Categorical(logits=vector(t, 0.0, 0.4) * jnp.array([0.5, -0.5]))


def von_mises_pair(t):
    return dist.VonMises(vector(t, 0.0, 0.5), 1.5).to_event(1)


CONTINUOUS: dict[str, Callable] = {
    "AsymmetricLaplace": lambda t: dist.AsymmetricLaplace(t, 1.0, 1.2),
    "AsymmetricLaplaceQuantile": lambda t: dist.AsymmetricLaplaceQuantile(t, 1.0, 0.3),
    "Beta": lambda t: dist.Beta(above(t), 2.0),
    "BetaProportion": lambda t: dist.BetaProportion(sigmoid(t), 4.0),
    "CAR": lambda t: dist.CAR(vector(t, 0.0, 0.5, 1.0), 0.4, above(t), NEIGHBOURS),
    "Cauchy": lambda t: dist.Cauchy(t, 1.0),
    "Chi2": lambda t: dist.Chi2(2 * above(t)),
    "CirculantNormal": lambda t: dist.CirculantNormal(
        vector(t, 0.0, 0.5, 1.0, 0.0), jnp.array([1.0, 0.3, 0.1, 0.3])
    ),
    "Dagum": lambda t: dist.Dagum(above(t), 4.0, 1.0),
    "Delta": lambda t: dist.Delta(t, log_density=0.5),
    "Dirichlet": lambda t: dist.Dirichlet(above(vector(t, 0.0, 0.5, 1.0))),
    "DoublyTruncatedPowerLaw": lambda t: dist.DoublyTruncatedPowerLaw(above(t), 0.5, 2.0),
    "EulerMaruyama": lambda t: dist.EulerMaruyama(
        jnp.linspace(0.0, 1.0, 4), lambda x, _: (-x, jnp.ones_like(x)), dist.Normal(t, 1.0)
    ),
    "Exponential": lambda t: dist.Exponential(above(t)),
    "ExpandedDistribution": lambda t: (
        dist.Normal(jnp.asarray(t)[..., None], 1.0).expand((*jnp.shape(t), 2)).to_event(1)
    ),
    "FoldedDistribution": lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)),
    "Gamma": lambda t: dist.Gamma(2.0, above(t)),
    "GaussianCopula": lambda t: dist.GaussianCopula(dist.Laplace(vector(t, 0.0, 0.5), 1.0), correlation(t)),
    "GaussianCopulaBeta": lambda t: dist.GaussianCopulaBeta(
        above(vector(t, 0.0, 0.5)), jnp.full((*jnp.shape(t), 2), 2.0), correlation_matrix=correlation(t)
    ),
    "GaussianRandomWalk": lambda t: dist.GaussianRandomWalk(above(t), 3),
    "GaussianStateSpace": lambda t: dist.GaussianStateSpace(3, 0.5 * EYE, covariance_matrix=covariance(t)),
    "Gompertz": lambda t: dist.Gompertz(above(t), 1.0),
    "Gumbel": lambda t: dist.Gumbel(t, 1.0),
    "HalfCauchy": lambda t: dist.HalfCauchy(above(t)),
    "HalfNormal": lambda t: dist.HalfNormal(above(t)),
    "Independent": lambda t: dist.Independent(dist.Normal(vector(t, 0.0, 0.5), 1.0), 1),
    "InverseGamma": lambda t: dist.InverseGamma(4.0, above(t)),
    "InverseWishart": lambda t: dist.InverseWishart(jnp.full(jnp.shape(t), 8.0), covariance(t)),
    "InverseWishartCholesky": lambda t: dist.InverseWishartCholesky(
        jnp.full(jnp.shape(t), 8.0), covariance(t)
    ),
    "Kumaraswamy": lambda t: dist.Kumaraswamy(above(t), 2.0),
    "LKJ": lambda t: dist.LKJ(3, above(t)),
    "LKJCholesky": lambda t: dist.LKJCholesky(3, above(t)),
    "Laplace": lambda t: dist.Laplace(t, 1.0),
    "LeftTruncatedDistribution": lambda t: dist.LeftTruncatedDistribution(dist.Normal(t, 1.0), low=-0.5),
    "LeftTruncatedGamma": lambda t: dist.LeftTruncatedGamma(dist.Gamma(2.0, above(t)), low=0.2),
    "Levy": lambda t: dist.Levy(t, 1.0),
    "LogNormal": lambda t: dist.LogNormal(t, 0.5),
    "LogUniform": lambda t: dist.LogUniform(0.5 * above(t), 3.0),
    "Logistic": lambda t: dist.Logistic(t, 1.0),
    "LowRankMultivariateNormal": lambda t: dist.LowRankMultivariateNormal(
        vector(t, 0.0, 0.5), jnp.ones((2, 1)), jnp.array([0.5, 1.0])
    ),
    "LowerTruncatedPowerLaw": lambda t: dist.LowerTruncatedPowerLaw(-2.0 - above(t), 0.5),
    "MaskedDistribution": lambda t: dist.Normal(t, 1.0).mask(True),
    "MatrixNormal": lambda t: dist.MatrixNormal(
        vector(t, 0.0, 0.5)[..., None] * jnp.ones((2, 3)), cholesky(t), jnp.eye(3)
    ),
    "Mixture": lambda t: dist.Mixture(two(t), dist.Normal(vector(t, 0.0, 2.0), 1.0)),
    "MixtureGeneral": lambda t: dist.MixtureGeneral(
        two(t), [dist.Normal(t, 1.0), dist.StudentT(5.0, 1.0 + jnp.asarray(t), 1.0)]
    ),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        two(t), dist.MultivariateNormal(vector(t, 0.0, 0.5)[..., None, :] + jnp.array([[0.0], [1.0]]), EYE)
    ),
    "MultivariateNormal": lambda t: dist.MultivariateNormal(vector(t, 0.0, 0.5), covariance(t)),
    "MultivariateStudentT": lambda t: dist.MultivariateStudentT(5.0, vector(t, 0.0, 0.5), cholesky(t)),
    "Normal": lambda t: dist.Normal(t, 1.0),
    "Pareto": lambda t: dist.Pareto(0.5, 2 + above(t)),
    "ProjectedNormal": lambda t: dist.ProjectedNormal(vector(t, 0.2, 0.5)),
    "RelaxedBernoulli": lambda t: dist.RelaxedBernoulli(0.7, logits=t),
    "RelaxedBernoulliLogits": lambda t: dist.RelaxedBernoulliLogits(0.7, t),
    "RightTruncatedDistribution": lambda t: dist.RightTruncatedDistribution(dist.Normal(t, 1.0), high=0.5),
    "RightTruncatedGamma": lambda t: dist.RightTruncatedGamma(dist.Gamma(2.0, above(t)), high=3.0),
    "SineBivariateVonMises": lambda t: dist.SineBivariateVonMises(t, 0.5, 2.0, 1.5, correlation=0.4),
    "SineSkewed": lambda t: dist.SineSkewed(von_mises_pair(t), jnp.array([0.3, -0.4])),
    "SoftLaplace": lambda t: dist.SoftLaplace(t, 1.0),
    "StudentT": lambda t: dist.StudentT(5.0, t, 1.0),
    "TransformedDistribution": lambda t: dist.TransformedDistribution(
        dist.Normal(t, 1.0), transforms.SigmoidTransform()
    ),
    "TruncatedCauchy": lambda t: dist.TruncatedCauchy(t, 1.0, low=-1.0, high=2.0),
    "TruncatedDistribution": lambda t: dist.TruncatedDistribution(dist.Laplace(t, 1.0), low=-1.0, high=2.0),
    "TruncatedGamma": lambda t: dist.TruncatedGamma(2.0, above(t), low=0.2, high=3.0),
    "TruncatedNormal": lambda t: dist.TruncatedNormal(t, 1.0, low=-1.0),
    "TruncatedPolyaGamma": lambda t: dist.TruncatedPolyaGamma(jnp.shape(t)),
    "TwoSidedTruncatedDistribution": lambda t: dist.TwoSidedTruncatedDistribution(
        dist.Normal(t, 1.0), -1.0, 2.0
    ),
    "TwoSidedTruncatedGamma": lambda t: dist.TwoSidedTruncatedGamma(dist.Gamma(2.0, above(t)), 0.2, 3.0),
    "Uniform": lambda t: dist.Uniform(jnp.asarray(t) - 2.0, jnp.asarray(t) + 3.0),
    "VonMises": lambda t: dist.VonMises(t, 1.5),
    "Weibull": lambda t: dist.Weibull(above(t), 2.0),
    "Wishart": lambda t: dist.Wishart(jnp.full(jnp.shape(t), 6.0), covariance(t)),
    "WishartCholesky": lambda t: dist.WishartCholesky(jnp.full(jnp.shape(t), 6.0), covariance(t)),
    # takes one scale only
    "ZeroSumNormal": lambda t: dist.ZeroSumNormal(1.0 if jnp.ndim(t) else above(t), (3,)).expand(
        jnp.shape(t)
    ),
}

# Continuous but for points that have a probability of their own.
MIXED: dict[str, Callable] = {
    "HurdleGamma": lambda t: dist.HurdleGamma(sigmoid(t), 2.0, above(t)),
    "HurdleLogNormal": lambda t: dist.HurdleLogNormal(sigmoid(t), t, 0.5),
    "IntervalCensoredDistribution": lambda t: dist.IntervalCensoredDistribution(
        dist.Normal(t, 1.0), 0.0, 0.0
    ),
    "LeftCensoredDistribution": lambda t: dist.LeftCensoredDistribution(
        dist.Normal(t, 1.0), censored=jnp.zeros(jnp.shape(t))
    ),
    "RightCensoredDistribution": lambda t: dist.RightCensoredDistribution(
        dist.Normal(t, 1.0), censored=jnp.zeros(jnp.shape(t))
    ),
}

COUNTS: dict[str, Callable] = {
    "BetaNegativeBinomial": lambda t: dist.BetaNegativeBinomial(4 * above(t), 2.0, 3.0),
    "DirichletMultinomial": lambda t: dist.DirichletMultinomial(above(vector(t, 0.0, 0.5, 1.0)), 2),
    "GammaPoisson": lambda t: dist.GammaPoisson(2.0, above(t)),
    "Geometric": lambda t: dist.Geometric(sigmoid(t)),
    "GeometricLogits": lambda t: dist.GeometricLogits(t),
    "GeometricProbs": lambda t: dist.GeometricProbs(sigmoid(t)),
    "HurdleDistribution": lambda t: dist.HurdleDistribution(dist.Poisson(above(t)), gate=sigmoid(t)),
    "HurdleLogits": lambda t: dist.HurdleLogits(dist.Poisson(above(t)), t),
    "HurdleNegativeBinomial2": lambda t: dist.HurdleNegativeBinomial2(sigmoid(t), above(t), 2.0),
    "HurdlePoisson": lambda t: dist.HurdlePoisson(sigmoid(t), above(t)),
    "HurdleProbs": lambda t: dist.HurdleProbs(dist.Poisson(above(t)), sigmoid(t)),
    "Multinomial": lambda t: dist.Multinomial(2, probs=simplex(t)),
    "MultinomialLogits": lambda t: dist.MultinomialLogits(
        vector(t, 0.0, 0.5, 1.0) * jnp.array([1.0, 0.0, 0.5]), 2
    ),
    "MultinomialProbs": lambda t: dist.MultinomialProbs(simplex(t), 2),
    "NegativeBinomial": lambda t: dist.NegativeBinomial(3.0, probs=0.5 * sigmoid(t)),
    "NegativeBinomial2": lambda t: dist.NegativeBinomial2(above(t), 2.0),
    "NegativeBinomialLogits": lambda t: dist.NegativeBinomialLogits(3.0, jnp.asarray(t) - 1.0),
    "NegativeBinomialProbs": lambda t: dist.NegativeBinomialProbs(3.0, 0.5 * sigmoid(t)),
    "Poisson": lambda t: dist.Poisson(above(t)),
    "ZeroInflatedDistribution": lambda t: dist.ZeroInflatedDistribution(
        dist.Poisson(above(t)), gate=sigmoid(t)
    ),
    "ZeroInflatedLogits": lambda t: dist.ZeroInflatedLogits(dist.Poisson(above(t)), t),
    "ZeroInflatedNegativeBinomial2": lambda t: dist.ZeroInflatedNegativeBinomial2(
        above(t), 2.0, gate=sigmoid(t)
    ),
    "ZeroInflatedPoisson": lambda t: dist.ZeroInflatedPoisson(sigmoid(t), above(t)),
    "ZeroInflatedProbs": lambda t: dist.ZeroInflatedProbs(dist.Poisson(above(t)), sigmoid(t)),
}

FINITE: dict[str, Callable] = {
    "Bernoulli": lambda t: dist.Bernoulli(sigmoid(t)),
    "BernoulliLogits": lambda t: dist.BernoulliLogits(t),
    "BernoulliProbs": lambda t: dist.BernoulliProbs(sigmoid(t)),
    "BetaBinomial": lambda t: dist.BetaBinomial(above(t), 2.0, 3),
    "Binomial": lambda t: dist.Binomial(3, probs=sigmoid(t)),
    "BinomialLogits": lambda t: dist.BinomialLogits(t, 3),
    "BinomialProbs": lambda t: dist.BinomialProbs(sigmoid(t), 3),
    "Categorical": lambda t: dist.Categorical(probs=simplex(t)),
    "CategoricalLogits": lambda t: dist.CategoricalLogits(
        vector(t, 0.0, 0.5, 1.0) * jnp.array([1.0, 0.0, 0.5])
    ),
    "CategoricalProbs": lambda t: dist.CategoricalProbs(simplex(t)),
    "DiscreteUniform": lambda t: dist.DiscreteUniform(0, 3).expand(jnp.shape(t)),
    "OrderedLogistic": lambda t: dist.OrderedLogistic(t, jnp.array([-1.0, 0.5])),
}

# Nothing can be drawn of these.
NO_DRAW: dict[str, Callable] = {
    "ImproperUniform": lambda t: dist.ImproperUniform(constraints.real, jnp.shape(t), ()),
    "Unit": lambda t: dist.Unit(jnp.asarray(t)),
}

# Of these NumPyro's own draws fail (TFP's incomplete beta function is not there) or are no values that the
# density takes.
WITHOUT_DRAWS = {"GaussianCopulaBeta", "IntervalCensoredDistribution"}

LAWS = CONTINUOUS | MIXED | COUNTS | FINITE | NO_DRAW
NO_LAWS = {"Distribution", "biject_to", "constraints", "kl_divergence", "transforms"}
