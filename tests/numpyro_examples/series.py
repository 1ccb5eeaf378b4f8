"""Series: autoregressions, smoothing with seasons, trends, volatility."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.handlers import condition, reparam
from numpyro.infer.reparam import LocScaleReparam

from tests.numpyro_examples.example import Example

SERIES = jnp.array([0.2, 0.5, -0.3, 0.1, 0.9, 0.4, -0.2])
PAIRS = jnp.stack([SERIES, 0.5 * SERIES[::-1]], -1)
SALES = jnp.array([3.0, 4.5, 2.5, 3.5, 5.0, 3.0, 4.0, 5.5])


def ar2_priors():
    slopes = [numpyro.sample(name, dist.Normal(0, 1)) for name in ("first", "second", "const")]
    return *slopes, numpyro.sample("noise", dist.HalfNormal(1))


def ar2_scanned(y):
    first, second, const, noise = ar2_priors()

    def step(carry, _):
        before, earlier = carry
        mean = const + first * before + second * earlier
        return (numpyro.sample("y", dist.Normal(mean, noise)), before), mean

    with condition(data={"y": y[2:]}):
        _, means = scan(step, (y[1], y[0]), jnp.arange(len(y) - 2))
    numpyro.deterministic("means", means)


def ar2_written_out(y):
    first, second, const, noise = ar2_priors()
    earlier, before = y[0], y[1]
    for t in range(2, len(y)):
        now = numpyro.sample(
            f"y_{t}", dist.Normal(const + first * before + second * earlier, noise), obs=y[t]
        )
        earlier, before = before, now


def var2(y):
    """The whole series is carried, and each step reads its own row."""
    width = y.shape[1]
    const = numpyro.sample("const", dist.Normal(0, 1).expand([width]))
    first, second = (
        numpyro.sample(name, dist.Normal(0, 1).expand([width, width]).to_event(2))
        for name in ("first", "second")
    )
    scales = numpyro.sample("scales", dist.HalfNormal(1.0).expand([width]).to_event(1))
    factor = scales[..., None] * numpyro.sample("correlation", dist.LKJCholesky(width, concentration=1.0))

    def step(carry, t):
        before, earlier, rows = carry
        mean = const + jnp.dot(first, before) + jnp.dot(second, earlier)
        now = numpyro.sample("y", dist.MultivariateNormal(loc=mean, scale_tril=factor), obs=rows[t])
        return (now, before, rows), mean

    _, means = scan(step, (y[1], y[0], y[2:]), jnp.arange(len(y) - 2))
    numpyro.deterministic("means", means)


def holt_winters(y, seasons, future=0):
    length = len(y)
    alpha, beta, gamma = (numpyro.sample(name, dist.Beta(1, 1)) for name in ("alpha", "beta", "gamma"))
    gamma, noise = gamma * (1 - alpha), numpyro.sample("noise", dist.HalfNormal(1))
    level, trend = (numpyro.sample(name, dist.Normal(0, 1)) for name in ("level", "trend"))
    with numpyro.plate("seasons", seasons):
        season = numpyro.sample("season", dist.Normal(0, 1))

    def step(carry, t):
        level, trend, season = carry
        known, s = t < length, season[0]
        now = jnp.where(known, alpha * (y[t] - s) + (1 - alpha) * (level + trend), level)
        slope = jnp.where(known, beta * (now - level) + (1 - beta) * trend, trend)
        new = jnp.where(known, gamma * (y[t] - (level + trend)) + (1 - gamma) * s, s)
        mean = level + jnp.where(known, 1, t - length + 1) * trend + s
        seen = numpyro.sample("y", dist.Normal(mean, noise))
        return (now, slope, jnp.concatenate([season[1:], new[None]])), seen

    with condition(data={"y": y}):
        _, means = scan(step, (level, trend, season), jnp.arange(length + future))
    if future > 0:
        numpyro.deterministic("forecast", means[-future:])


def seasonal_global_trend(y, season_length):
    length, width = len(y), jnp.max(y) / 150
    nu, power = numpyro.sample("nu", dist.Uniform(2, 20)), numpyro.sample("power", dist.Uniform(0, 1))
    scale = numpyro.sample("scale", dist.HalfCauchy(width))
    offset = numpyro.sample("offset", dist.TruncatedCauchy(low=1e-10, loc=1e-10, scale=width))
    slope = numpyro.sample("slope", dist.Cauchy(0, width))
    trend_power = 1.5 * numpyro.sample("trend_power", dist.Beta(1, 1)) - 0.5
    season_power = numpyro.sample("season_power", dist.Beta(1, 1))
    level_rate, season_rate = (
        numpyro.sample("level_rate", dist.Beta(1, 2)),
        numpyro.sample("season_rate", dist.Uniform(0, 1)),
    )
    begun = numpyro.sample("begun", dist.Cauchy(0, y[:season_length] * 0.3))

    def step(carry, t):
        level, season, total = carry
        now = season[0] * level**season_power
        mean = jnp.clip(level + slope * level**trend_power + now, 0)
        total = total + y[t] - jnp.where(t >= season_length, y[t - season_length], 0.0)
        target = jnp.where(t >= season_length, total / season_length, y[t] - now)
        level = jnp.clip(level_rate * target + (1 - level_rate) * level, 0)
        new = (season_rate * (y[t] - level) / now + (1 - season_rate)) * season[0]
        seen = numpyro.sample("y", dist.StudentT(nu, mean, scale * mean**power + offset))
        return (level, jnp.concatenate([season[1:], new[None]]), total), seen

    with condition(data={"y": y[1:]}):
        scan(step, (y[0], jnp.concatenate([begun[1:], begun[:1]]), y[0]), jnp.arange(1, length))


def volatility(returns):
    width = numpyro.sample("width", dist.Exponential(50.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(scale=width, num_steps=jnp.shape(returns)[0]))
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    return numpyro.sample("returns", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


def volatility_scanned(returns):
    width, nu = numpyro.sample("width", dist.Exponential(5.0)), numpyro.sample("nu", dist.Exponential(0.1))

    def step(s, y):
        s = numpyro.sample("s", dist.Normal(s, width))
        numpyro.sample("returns", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=y)
        return s, None

    scan(step, jnp.zeros(()), returns)


def hierarchical_forecast(arrivals, season_length):
    """How far the drift is centred is drawn itself; the levels are a loop of JAX's."""
    num, _, length = arrivals.shape
    origins, targets = numpyro.plate("origins", num, dim=-3), numpyro.plate("targets", num, dim=-2)
    phases = numpyro.plate("phases", season_length, dim=-1)
    width = numpyro.sample("width", dist.LogNormal(-2, 1))
    centred = numpyro.sample("centred", dist.Uniform(0, 1))
    with origins, phases:
        origin_season = numpyro.sample("origin_season", dist.Normal(0, 5))
    with targets:
        with numpyro.plate("time", length), reparam(config={"drift": LocScaleReparam(centered=centred)}):
            drift = numpyro.sample("drift", dist.Normal(0, width))
        with phases:
            target_season = numpyro.sample("target_season", dist.Normal(0, 5))
    with origins, targets:
        pairwise = numpyro.sample("pairwise", dist.Normal(0, 1))
    with origins:
        origin_scale = numpyro.sample("origin_scale", dist.LogNormal(-1, 1))
    with targets:
        scale = origin_scale + numpyro.sample("target_scale", dist.LogNormal(-1, 1))
    season = jnp.tile(origin_season + target_season, length // season_length)
    _, levels = jax.lax.scan(
        lambda level, t: (level + drift[..., t],) * 2, jnp.zeros(num), jnp.arange(length)
    )
    with condition(data={"arrivals": arrivals}):
        numpyro.sample("arrivals", dist.Normal(levels.T + season + pairwise, scale))


FEEDS = "one step ahead"

EXAMPLES = [
    Example("AR(2), scanned", ar2_scanned, (SERIES,), no_loo=FEEDS),
    Example("AR(2), written out", ar2_written_out, (SERIES,), no_loo="var_name"),
    Example("VAR(2)", var2, (PAIRS,), no_loo=FEEDS),
    Example("Holt-Winters", holt_winters, (SERIES, 2), no_loo=FEEDS),
    Example("seasonal global trend", seasonal_global_trend, (SALES, 2), no_loo=FEEDS),
    Example("volatility", volatility, (SERIES,)),
    Example("volatility, scanned", volatility_scanned, (SERIES,), states=("s",)),
    Example("hierarchical forecast", hierarchical_forecast, (jnp.tile(SERIES[:6], (2, 2, 1)), 3)),
]
