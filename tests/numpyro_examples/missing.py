"""What was not seen: imputed values, truncation, censoring, and the positions of authors behind their
words.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from tests.numpyro_examples.example import Example

AGES, TITLES, LIVED = (
    np.float32([0.3, np.nan, -1.0, np.nan, 0.8, 0.1]),
    np.array([0, 1, 1, 0, 1, 0]),
    np.array([1, 0, 0, 1, 1, 0]),
)
SEEN = np.float32([0.3, -1.2, 0.7, -0.4])
A, B, OUT = (
    np.array([0, 1, -1, 1, -1]),
    np.float32([0.2, -0.5, 1.0, 0.0, 0.3]),
    np.float32([0.1, 0.9, -0.4, 1.2, 0.5]),
)


def ages(age, title, lived=None):
    """Missing ages are drawn, put into the row, and scored with it."""
    missing = np.nonzero(np.isnan(age))[0]
    mean = numpyro.sample("mean", dist.Normal(0, 1).expand([2]))[title]
    width = numpyro.sample("width", dist.HalfNormal(1).expand([2]))[title]
    imputed = numpyro.sample("imputed", dist.Normal(mean[missing], width[missing]).mask(False))
    age = jnp.asarray(age).at[missing].set(imputed)
    numpyro.sample("age", dist.Normal(mean, width), obs=age)
    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([2]))
    numpyro.sample("lived", dist.Bernoulli(logits=slopes[0] + slopes[1] * age), obs=lived)


def exposure(a, b, y, of_missingness=False):
    """A missing binary covariate is summed out; its probability comes back as a factor."""
    seen = a >= 0
    mean, slope = numpyro.sample("mean_a", dist.Normal(0, 2.5)), numpyro.sample("b_on_a", dist.Normal(0, 2.5))
    on_y = [numpyro.sample(name, dist.Normal(0, 2.5)) for name in ("a_on_y", "b_on_y")]
    noise = numpyro.sample("noise", dist.HalfCauchy(2.5))
    if of_missingness:
        with numpyro.plate("kinds", 2):
            rate = numpyro.sample("rate", dist.Beta(1, 1))
    with numpyro.plate("rows", len(a)):
        law = dist.Bernoulli(logits=mean + b * slope)
        filled = numpyro.sample("a", law.mask(False), infer={"enumerate": "parallel"})
        numpyro.factor("a_scored", jnp.where(seen & (filled != a), -jnp.inf, law.log_prob(filled)))
        numpyro.sample("y", dist.Normal(on_y[0] * filled + on_y[1] * b, noise), obs=y)
        if of_missingness:
            numpyro.sample("seen", dist.Bernoulli(probs=jnp.where(filled, rate[0], rate[1])), obs=seen)


class RightTruncated(dist.Distribution):
    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    reparametrized_params = ["loc", "scale", "high"]

    def __init__(self, loc=0.0, scale=1.0, high=jnp.inf, validate_args=None):
        shape = jnp.broadcast_shapes(*map(jnp.shape, (loc, scale, high)))
        self.loc, self.scale, self.high = promote_shapes(loc, scale, high)
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(event_dim=0)
    def support(self):
        return constraints.less_than(self.high)

    def log_prob(self, value):
        inside = norm.logpdf(value, self.loc, self.scale) - norm.logcdf(self.high, self.loc, self.scale)
        return jnp.where(value < self.high, inside, -jnp.inf)

    def sample(self, key, sample_shape=()):
        u = jax.random.uniform(key, sample_shape + self.batch_shape, minval=1e-6)
        return self.loc + self.scale * jax.scipy.special.ndtri(norm.cdf(self.high, self.loc, self.scale) * u)


def location():
    return numpyro.sample("loc", dist.Normal()), numpyro.sample("scale", dist.LogNormal())


def truncated(kind, x, high):
    loc, scale = location()
    law = (
        dist.TruncatedNormal(loc, scale, high=high)
        if kind == "normal"
        else dist.TruncatedDistribution(dist.SoftLaplace(loc, scale), high=high)
    )
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", law, obs=x)


def folded(x):
    df = numpyro.sample("df", dist.Gamma(6, 2))
    law = dist.FoldedDistribution(dist.StudentT(df, *location()))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", law, obs=jnp.abs(x))


def truncated_somewhere(x):
    """Where it ends is inferred, beyond the greatest value."""
    loc, scale = location()
    high = numpyro.deterministic("high", numpyro.sample("beyond", dist.HalfNormal()) + x.max())
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", RightTruncated(loc, scale, high), obs=x)


class LeftTruncatedPoisson(dist.Distribution):
    arg_constraints = {"low": constraints.nonnegative_integer, "rate": constraints.positive}

    def __init__(self, rate, low, validate_args=None):
        self.low, self.rate = promote_shapes(low, rate)
        super().__init__(jnp.broadcast_shapes(jnp.shape(low), jnp.shape(rate)), validate_args=validate_args)

    @constraints.dependent_property(event_dim=0)
    def support(self):
        return constraints.integer_greater_than(self.low - 1)

    def log_prob(self, value):
        below = jax.scipy.stats.poisson.cdf(self.low - 1, self.rate)
        return jnp.where(
            value >= self.low, jax.scipy.stats.poisson.logpmf(value, self.rate) - jnp.log1p(-below), -jnp.inf
        )

    def sample(self, key, sample_shape=()):
        return jnp.broadcast_to(self.low, sample_shape + self.batch_shape)


def counts_from_somewhere(counts, num_lows=4):
    """From which number on counts are kept is a finite site."""
    low = numpyro.sample("low", dist.Categorical(logits=jnp.zeros(num_lows)), infer={"enumerate": "parallel"})
    rate = numpyro.sample("rate", dist.LogNormal(1, 1))
    with numpyro.plate("rows", len(counts)):
        numpyro.sample("counts", LeftTruncatedPoisson(rate, low), obs=counts)


def censored(times, ended):
    """Lifetimes that ended, and lifetimes that were at least so long."""
    shape, scale = (
        numpyro.sample("shape", dist.LogNormal(0.0, 0.5)),
        numpyro.sample("scale", dist.LogNormal(0.0, 1.0)),
    )
    law = dist.Weibull(scale, shape)
    with numpyro.plate("rows", len(times)):
        numpyro.factor("alive", jnp.where(ended, 0.0, -((times / scale) ** shape)))
        with numpyro.handlers.mask(mask=ended):
            numpyro.sample("times", law, obs=times)


def adjusted_by_the_past(after, treated, before):
    """The response of the second part is what the slope of the first leaves over."""
    first = [numpyro.sample(name, dist.Normal(0, 2)) for name in ("first_level", "first_slope")]
    second = [numpyro.sample(name, dist.Normal(0, 2)) for name in ("second_level", "effect")]
    widths = [numpyro.sample(name, dist.HalfCauchy(2)) for name in ("first_width", "second_width")]
    with numpyro.plate("rows", len(after)):
        numpyro.sample("after", dist.Normal(first[0] + first[1] * before, widths[0]), obs=after)
    left = numpyro.deterministic("left", after - first[1] * (before - before.mean()))
    with numpyro.plate("adjusted_rows", len(after)):
        numpyro.sample("adjusted", dist.Normal(second[0] + second[1] * treated, widths[1]), obs=left)


def ideal_points(words, document, author, sizes, batch):
    num_authors, num_topics = sizes
    with numpyro.plate("authors", num_authors):
        x = numpyro.sample("x", dist.Normal())
    with numpyro.plate("topics", num_topics, dim=-2), numpyro.plate("topic_words", words.shape[1], dim=-1):
        beta, eta = numpyro.sample("beta", dist.Gamma(0.3, 0.3)), numpyro.sample("eta", dist.Normal())
    with numpyro.plate("documents", len(words), subsample_size=batch, dim=-2):
        with numpyro.plate("topics_of_it", num_topics, dim=-1):
            theta = numpyro.sample("theta", dist.Gamma(0.3, 0.3))
        position = x[author[document]][:, None, None]
        rate = jnp.sum(theta[:, :, None] * beta[None] * jnp.exp(position * eta[None]), 1)
        with numpyro.plate("words_of_it", words.shape[1], dim=-1):
            numpyro.sample("words", dist.Poisson(rate), obs=words[document])


def ideal_points_guide(model, example):
    def law(name, kind, shape, index=...):
        loc = numpyro.param(f"{name}_loc", jnp.zeros(shape))
        width = numpyro.param(f"{name}_width", 0.5 * jnp.ones(shape), constraint=constraints.positive)
        return numpyro.sample(name, kind(loc[index], width[index]))

    def guide(words, document, author, sizes, batch):
        num_authors, num_topics = sizes
        with numpyro.plate("authors", num_authors):
            law("x", dist.Normal, (num_authors,))
        with (
            numpyro.plate("topics", num_topics, dim=-2),
            numpyro.plate("topic_words", words.shape[1], dim=-1),
        ):
            law("beta", dist.LogNormal, (num_topics, words.shape[1]))
            law("eta", dist.Normal, (num_topics, words.shape[1]))
        with numpyro.plate("documents", len(words), subsample_size=batch, dim=-2):
            with numpyro.plate("topics_of_it", num_topics, dim=-1):
                law("theta", dist.LogNormal, (len(words), num_topics), document)

    return guide


WORDS = np.random.default_rng(5).integers(0, 3, (4, 3))
BOTH, PART = "var_name", "all of the plate 'documents'"

EXAMPLES = [
    Example("ages imputed", ages, (AGES, TITLES, LIVED), no_loo=BOTH),
    Example("exposure imputed", exposure, (A, B, OUT), summed=("a",), by_parts=True),
    Example(
        "exposure imputed, and missingness",
        exposure,
        (A, B, OUT),
        {"of_missingness": True},
        summed=("a",),
        by_parts=True,
    ),
    Example("truncated normal", truncated, ("normal", SEEN, 1.0)),
    Example("truncated soft Laplace", truncated, ("soft Laplace", SEEN, 1.0)),
    Example("folded", folded, (SEEN,)),
    Example("truncated somewhere", truncated_somewhere, (SEEN,)),
    Example("counts from somewhere", counts_from_somewhere, (np.array([2, 3, 5]),), summed=("low",)),
    Example("censored", censored, (np.float32([0.5, 1.2, 2.0]), np.array([True, False, True]))),
    Example(
        "adjusted by the past",
        adjusted_by_the_past,
        (SEEN, np.array([0, 1, 1, 0]), SEEN[::-1].copy()),
        no_loo=BOTH,
    ),
    Example(
        "ideal points",
        ideal_points,
        (WORDS, np.array([2, 0]), np.array([0, 1, 1, 0]), (2, 2), 2),
        guide=ideal_points_guide,
        no_draws=PART,
    ),
]
