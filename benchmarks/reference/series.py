"""Series, processes and differential equations."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.infer import init_to_median

from benchmarks.reference.problem import Problem, as_arrays, columns, scaled

ORDER = 3


def autoregression(y):
    """Of order three, given the first three."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([ORDER]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    past = jnp.stack([y[ORDER - k : len(y) - k] for k in range(1, ORDER + 1)], 1)
    numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[ORDER:])


def lake():
    return as_arrays(columns("datasets", "LakeHuron", "value")[0] - 579.0)


def arma(y):
    """One autoregressive term, one of the errors."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.5))

    def step(carry, y_t):
        y_prev, error = carry
        error = y_t - (mu + phi * (y_prev - mu) + theta * error)
        return (y_t, error), error

    _, errors = jax.lax.scan(step, (mu, jnp.zeros(())), y)
    numpyro.sample("error", dist.Normal(jnp.zeros(len(y)), sigma), obs=errors)


def arma_series():
    """Generated (seed 7)."""
    e = np.random.default_rng(7).standard_normal(151) * 0.8
    y = np.zeros(151)
    for t in range(1, 151):
        y[t] = 0.5 + 0.7 * (y[t - 1] - 0.5) + e[t] + 0.4 * e[t - 1]
    return as_arrays(y[1:])


def garch(y):
    """Of order (1, 1)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    a0 = numpyro.sample("alpha0", dist.HalfNormal(1.0))
    a1 = numpyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    b1 = numpyro.deterministic("beta1", (1.0 - a1) * share)

    def step(variance, y_t):
        return a0 + a1 * (y_t - mu) ** 2 + b1 * variance, variance

    _, variances = jax.lax.scan(step, jnp.ones(()), y)
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(variances)), obs=y)


def returns(num: int):
    def data():
        price = columns("datasets", "EuStockMarkets", "DAX")[0]
        return as_arrays(scaled(np.diff(np.log(price))[300 : 300 + num]))

    return data


def drives(y):
    """A hidden Markov model of two states, summed out by the forward recursion; two measurements a time."""
    stay = numpyro.sample("stay", dist.Beta(5.0, 2.0).expand([2]).to_event(1))
    low = numpyro.sample("low", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    gap = numpyro.sample("gap", dist.HalfNormal(3.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0).expand([2]).to_event(1))
    mean = jnp.stack([low, low + gap])
    terms = dist.Normal(mean, sigma).log_prob(y[:, None]).sum(-1)
    move = jnp.log(jnp.stack([jnp.stack([stay[0], 1 - stay[0]]), jnp.stack([1 - stay[1], stay[1]])]))

    def step(alpha, term):
        return logsumexp(alpha[:, None] + move, axis=0) + term, None

    alpha, _ = jax.lax.scan(step, terms[0] - jnp.log(2.0), terms[1:])
    numpyro.factor("series", logsumexp(alpha))


def drive_events():
    """Generated (seed 8)."""
    rng = np.random.default_rng(8)
    state, y = 0, []
    for _ in range(120):
        state = state if rng.uniform() < (0.9, 0.8)[state] else 1 - state
        y.append(rng.normal([(0.0, 0.5), (1.5, 2.5)][state], (0.7, 0.9)))
    return as_arrays(np.array(y))


def kernel(x, rho, alpha):
    return alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)


def gp_regression(x, y):
    """Values integrated out."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = kernel(x, rho, alpha) + sigma**2 * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def gp_poisson(x, y):
    """Counts whose log rate is a Gaussian process, in white coordinates."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    white = numpyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
    f = jnp.linalg.cholesky(kernel(x, rho, alpha) + 1e-3 * jnp.eye(len(x))) @ white
    numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y)


def curve(counts: bool):
    """Generated (seed 9): eleven places."""

    def data():
        rng, x = np.random.default_rng(9), np.linspace(-10.0, 10.0, 11)
        f = 1.5 * np.sin(x / 3.0) + 1.0
        return as_arrays(x, rng.poisson(np.exp(f)) if counts else f - 1.0 + 0.3 * rng.standard_normal(11))

    return data


def chain(white: bool, start, step, y):
    """The states of an autoregression x' ~ Normal(a + b x, tau) as sites of a scan, each with its data; or,
    for the reference, made of independent noises.

    :param step: ``(state, y_t) -> None`` samples what is seen. ``start``: (name, law of x0, a, b, tau).
    """
    name, first, a, b, tau = start
    x0 = numpyro.sample(f"{name}0", first)
    if not white:

        def one(x_prev, y_t):
            x = numpyro.sample(name, dist.Normal(a + b * x_prev, tau))
            step(x, y_t)
            return x, None

        scan(one, x0, y)
        return
    noise = numpyro.sample("noise", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    _, x = jax.lax.scan(lambda x, e: (a + b * x + tau * e,) * 2, x0, noise)
    step(numpyro.deterministic(name, x), y)


def volatility(white: bool):
    """A log variance that is an autoregression."""

    def model(y):
        phi = numpyro.sample("phi", dist.Beta(20.0, 1.5))
        tau = numpyro.sample("tau", dist.HalfNormal(0.5))
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

        def seen(h, y):
            numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)

        chain(white, ("h", dist.Normal(0.0, 1.0), mu * (1.0 - phi), phi, tau), seen, y)

    return model


def level(white: bool):
    """A random walk seen with noise."""

    def model(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

        def seen(x, y):
            numpyro.sample("y", dist.Normal(x, sigma), obs=y)

        chain(white, ("x", dist.Normal(0.0, 2.0), 0.0, 1.0, tau), seen, y)

    return model


def nile():
    return as_arrays(scaled(columns("datasets", "Nile", "value")[0][:60]))


def events(white: bool):
    """Counts whose log rate is an autoregression."""

    def model(y):
        phi = numpyro.sample("phi", dist.Beta(8.0, 2.0))
        tau = numpyro.sample("tau", dist.HalfNormal(0.5))
        mu = numpyro.sample("mu", dist.Normal(1.0, 1.0))

        def seen(x, y):
            numpyro.sample("y", dist.Poisson(jnp.exp(mu + x)), obs=y)

        chain(white, ("x", dist.Normal(0.0, 1.0), 0.0, phi, tau), seen, y)

    return model


def discoveries():
    """Great inventions and discoveries a year, 1860 to 1899."""
    return as_arrays(columns("datasets", "discoveries", "value")[0][:40].astype(int))


def solved(field, at, first, rates, step):
    """The solution of an ordinary differential equation at given times, by Tsitouras' method."""
    import diffrax

    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        0.0,
        float(at[-1]),
        step,
        first,
        rates,
        saveat=diffrax.SaveAt(ts=jnp.asarray(at)),
        max_steps=512,
    ).ys


DAYS = np.arange(1.0, 15.0, dtype=np.float32)


def infections(t, z, rates):
    beta, gamma = rates
    s, i = z
    return jnp.stack([-beta * s * i, beta * s * i - gamma * i])


def sir(y):
    """Shares of susceptible and infected; counts of the infected are negative binomial."""
    beta = numpyro.sample("beta", dist.LogNormal(0.5, 0.5))
    gamma = numpyro.sample("gamma", dist.LogNormal(-0.5, 0.5))
    first = numpyro.sample("i0", dist.Beta(1.0, 200.0))
    phi = numpyro.sample("phi", dist.Gamma(2.0, 0.1))
    z = solved(infections, DAYS, jnp.stack([1.0 - first, first]), (beta, gamma), 0.1)
    mean = 763.0 * jnp.maximum(z[:, 1], 1e-6)
    numpyro.sample("y", dist.NegativeBinomial2(mean, phi), obs=y)


def influenza():
    """A boarding school of 763 boys, in bed by day (British Medical Journal 1978)."""
    return as_arrays([3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4])


YEARS = np.arange(1.0, 21.0, dtype=np.float32)


def predation(t, z, rates):
    growth, eaten, death, fed = rates
    prey, hunters = jnp.exp(jnp.clip(z, -15.0, 10.0))  # logarithms, which no draw of the prior takes to zero
    return jnp.stack([growth - eaten * hunters, fed * prey - death])


def lotka_volterra(y):
    """Pelts of hares and of lynxes by year, with errors that are log-normal; rates as Carpenter (2018) has
    them in his case study.
    """
    growth = numpyro.sample("growth", dist.TruncatedNormal(1.0, 0.5, low=0.0))
    eaten = numpyro.sample("eaten", dist.TruncatedNormal(0.05, 0.05, low=0.0))
    death = numpyro.sample("death", dist.TruncatedNormal(1.0, 0.5, low=0.0))
    fed = numpyro.sample("fed", dist.TruncatedNormal(0.05, 0.05, low=0.0))
    first = numpyro.sample("first", dist.LogNormal(np.log(10.0), 1.0).expand([2]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    start = jnp.log(first)
    later = solved(predation, YEARS, start, (growth, eaten, death, fed), 0.5)
    numpyro.sample("y", dist.LogNormal(jnp.concatenate([start[None], later]), noise).to_event(2), obs=y)


def pelts():
    """Hares and lynxes in thousands, 1900 to 1920 (Hudson's Bay Company; Hewitt 1921)."""
    both = (
        "30 47.2 70.2 77.4 36.3 20.6 18.1 21.4 22 25.4 27.1 40.3 57 76.6 52.3 19.5 11.2 7.6 14.6 16.2 24.7",
        "4 6.1 9.8 35.2 59.4 41.7 19 13 8.3 9.1 7.4 8 12.3 19.5 45.7 51.1 29.7 15.8 9.7 10.1 8.6",
    )
    return as_arrays(np.array([of.split() for of in both], float).T)


PROBLEMS = [
    Problem("arK", autoregression, lake),
    Problem("arma11", arma, arma_series),
    Problem("garch11", garch, returns(200)),
    Problem("hmm_drive", drives, drive_events),
    Problem("gp_regr", gp_regression, curve(False)),
    Problem("gp_pois", gp_poisson, curve(True)),
    Problem("volatility", volatility(False), returns(60), of=volatility(True), scan=True),
    Problem("nile_level", level(False), nile, of=level(True), scan=True),
    Problem("discoveries", events(False), discoveries, of=events(True), scan=True),
    Problem("sir", sir, influenza),
    Problem("lotka_volterra", lotka_volterra, pelts, steep=True, start=init_to_median),
]
