"""Hierarchies: local unknowns under a scale that is itself unknown."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam

from benchmarks.reference.problem import Problem, as_arrays, columns, scaled


def schools(centred: bool):
    """Both write mu, tau and theta; where ``z`` is sampled it stands for theta."""

    def model(y, sigma):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", len(y)):
            if centred:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                theta = numpyro.deterministic("theta", mu + tau * z)
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return model


def eight():
    """Rubin 1981, table 1."""
    return as_arrays(
        [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    )


def radon(centred: bool):
    """Levels of counties around a mean."""

    def model(floor, county, y, num):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("county", num):
            if centred:
                alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
            else:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                alpha = numpyro.deterministic("alpha", mu + tau * z)
        with numpyro.plate("house", len(y)):
            numpyro.sample("y", dist.Normal(alpha[county] + beta * floor, sigma), obs=y)

    return model


def houses(num: int):
    """Log radon by floor in the first counties of Minnesota (HLMdiag)."""

    def data():
        y, floor, county = columns("HLMdiag", "radon", "log.radon basement county")
        names, county = np.unique(county, return_inverse=True)
        first = county < num
        return *as_arrays(floor[first], county[first], y[first]), num

    return data


def partial_pooling(n, y):
    """Successes of n by group, logits around a mean."""
    mu = numpyro.sample("mu", dist.Normal(-1.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("group", len(y)):
        logits = numpyro.sample("logits", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Binomial(n, logits=logits), obs=y)


apart = reparam(partial_pooling, config={"logits": LocScaleReparam(0.0)})
"""Its logits as a mean and multiples of tau, for the reference."""


def bball():
    """Hits of eighteen players in their first 45 times at bat (Efron and Morris 1975, table 1)."""
    hits = [18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]
    return as_arrays([45] * 18, hits)


def surgical():
    """Deaths after heart operations on infants, by hospital (Spiegelhalter, Best, Gilks, Inskip 1996)."""
    n = [47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360]
    return as_arrays(n, [0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24])


def failures(hours, y):
    """Rates of failure, Gamma, and its two parameters."""
    alpha = numpyro.sample("alpha", dist.Exponential(1.0))
    beta = numpyro.sample("beta", dist.Gamma(0.5, 1.0))
    with numpyro.plate("pump", len(y)):
        theta = numpyro.sample("theta", dist.Gamma(alpha, beta))
        numpyro.sample("y", dist.Poisson(theta * hours), obs=y)


def pumps():
    """Ten pumps (Gaver and O'Muircheartaigh 1987)."""
    hours = [94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5]
    return as_arrays(hours, [5, 1, 5, 14, 3, 19, 1, 1, 4, 22])


def growing(x, chick, y, num):
    """Lines of chicks with their own intercepts and slopes."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("chick", num):
        line = numpyro.sample("line", dist.Normal(mu, tau).to_event(1))
    mean = line[chick, 0] + line[chick, 1] * x
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def rats():
    """Weights of the first ten chicks (ChickWeight), as posteriordb has those of rats."""
    weight, time, chick = columns("datasets", "ChickWeight", "weight Time Chick")
    first = chick <= 10
    return *as_arrays(scaled(time[first]), chick[first].astype(int) - 1, np.log(weight[first]) - 4.5), 10


def sleep():
    """Reaction times of eighteen people by days without sleep (sleepstudy)."""
    y, days, who = columns("lme4", "sleepstudy", "Reaction Days Subject")
    who = np.unique(who, return_inverse=True)[1]
    return *as_arrays(scaled(days), who, scaled(y)), 18


def funnel(hard: bool):
    """Neal 2003, § 8, with five local ones; the centred one is the hard one."""

    def model():
        v = numpyro.sample("v", dist.Normal(0.0, 2.0))
        if hard:
            numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([5]).to_event(1))
        else:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
            numpyro.deterministic("x", z * jnp.exp(v / 2))

    return model


def pca(y):
    """Logistic, of one component: scores of rows and loadings, the first of these positive."""
    rows, items = y.shape
    first = numpyro.sample("first", dist.HalfNormal(1.5))
    others = numpyro.sample("others", dist.Normal(0.0, 1.5).expand([items - 1]).to_event(1))
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.5).expand([items]).to_event(1))
    loading = jnp.concatenate([first[None], others])
    with numpyro.plate("row", rows):
        score = numpyro.sample("score", dist.Normal(0.0, 1.0))
        logits = score[:, None] * loading + bias
        numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)


def answers():
    """Generated (seed 6)."""
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((40, 1)) * np.array([1.5, 1.2, 1.0, 1.8, -0.8]) + np.linspace(-1, 1, 5)
    return as_arrays((rng.uniform(size=(40, 5)) < 1 / (1 + np.exp(-logits))).astype(int))


PROBLEMS = [
    Problem("eight_schools_centered", schools(True), eight, of=schools(False)),
    Problem("eight_schools_noncentered", schools(False), eight),
    Problem("radon_centered", radon(True), houses(12)),
    Problem("radon_noncentered", radon(False), houses(12)),
    Problem("bball", partial_pooling, bball, of=apart),
    Problem("surgical", partial_pooling, surgical),
    Problem("pumps", failures, pumps),
    Problem("rats", growing, rats),
    Problem("sleepstudy", growing, sleep),
    Problem("funnel", funnel(True), tuple, of=funnel(False)),
    Problem("logistic_pca", pca, answers),
]
