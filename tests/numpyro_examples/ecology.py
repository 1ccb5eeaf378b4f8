"""Animals caught again, and deaths by age, place and year."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import expit, logit
from numpyro.contrib.control_flow import scan
from numpyro.distributions.util import clamp_probs
from numpyro.handlers import mask, reparam
from numpyro.infer.reparam import LocScaleReparam

from tests.numpyro_examples.example import Example

CAUGHT = np.array([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
SEX = np.array([0, 1, 1, 0, 1])


def history(caught, survival):
    """``survival`` is called at each step. Whether an animal lives counts from its first capture on."""
    seen_again = numpyro.sample("seen_again", dist.Uniform(0.0, 1.0))

    def step(carry, y):
        marked, alive = carry
        phi = survival()
        with numpyro.plate("animals", len(caught), dim=-1), mask(mask=marked):
            probs = marked * phi * alive + (1 - marked)
            alive = numpyro.sample(
                "alive", dist.Bernoulli(clamp_probs(probs)), infer={"enumerate": "parallel"}
            )
            numpyro.sample("caught", dist.Bernoulli(clamp_probs(seen_again * alive)), obs=y)
        return (marked | y.astype(bool), alive), None

    begun = caught[:, 0].astype(bool), jnp.ones(len(caught), jnp.int32)
    scan(step, begun, jnp.swapaxes(caught[:, 1:], 0, 1))


def constant(caught, sex):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    history(caught, lambda: phi)


def by_year(caught, sex):
    history(caught, lambda: numpyro.sample("phi", dist.Uniform(0.0, 1.0)))


def random_years(caught, sex):
    mean, width = (
        numpyro.sample("mean", dist.Uniform(0.0, 1.0)),
        numpyro.sample("width", dist.Uniform(0.0, 10.0)),
    )

    def survival():
        with reparam(config={"logit": LocScaleReparam(0)}):
            return expit(numpyro.sample("logit", dist.Normal(logit(mean), width)))

    history(caught, survival)


def by_sex(caught, sex):
    male, female = (numpyro.sample(name, dist.Uniform(0.0, 1.0)) for name in ("male", "female"))
    history(caught, lambda: sex * male + (1.0 - sex) * female)


def by_sex_and_year(caught, sex):
    offset = sex * numpyro.sample("offset", dist.Normal(0.0, 10.0))
    history(caught, lambda: expit(offset + numpyro.sample("year", dist.Normal(0.0, 10.0))))


MORTALITY = {
    f"{name}_{kind}": LocScaleReparam(0)
    for name, kind in (("region", "effect"), ("place", "effect"), ("age", "drift"))
}


@reparam(config=MORTALITY)
def mortality(age, place, year, region_of, population, deaths=None):
    ages, places, years = (len(np.unique(x)) for x in (age, place, year))
    by_age, by_place = numpyro.plate("ages", ages, dim=-3), numpyro.plate("places", places, dim=-2)
    scales = {
        name: numpyro.sample(f"{name}_scale", dist.HalfNormal(1.0))
        for name in ("region", "place", "age", "trend", "year")
    }
    with numpyro.plate("regions", len(np.unique(region_of)), dim=-2):
        region = numpyro.sample("region_effect", dist.Normal(0, scales["region"]))
    with by_place:
        local = numpyro.sample("place_effect", dist.Normal(region[region_of], scales["place"]))

    def drift(name):
        widths = jnp.pad(jnp.broadcast_to(scales[name], ages - 1), (1, 0), constant_values=10.0)[
            :, None, None
        ]
        return jnp.cumsum(numpyro.sample(f"{name}_drift", dist.Normal(0, widths)), -3)

    with by_age:
        level, trend = drift("age"), drift("trend")
    with numpyro.plate("years", years - 1, dim=-1):
        walk = jnp.pad(jnp.cumsum(numpyro.sample("year_drift", dist.Normal(0, scales["year"])), -1), (1, 0))
    rate = level + jnp.outer(trend, jnp.arange(years))[:, None, :] + local + walk
    with numpyro.plate("rows", len(population)):
        numpyro.sample("deaths", dist.Binomial(population, logits=rate[age, place, year]), obs=deaths)


CHAIN = dict(args=(CAUGHT, SEX), summed=("alive",), by_parts=True, no_loo="one step ahead")
ROWS = np.indices((2, 3, 3)).reshape(3, -1)

EXAMPLES = [
    Example("capture, constant", constant, states=("alive",), exact=True, **CHAIN),
    Example("capture, by year", by_year, states=("phi", "alive"), **CHAIN),
    Example("capture, random years", random_years, states=("logit_decentered", "alive"), **CHAIN),
    Example("capture, by sex", by_sex, states=("alive",), exact=True, **CHAIN),
    Example(
        "capture, by sex and year",
        by_sex_and_year,
        given={"offset": 0.5, "year": jnp.array([-0.3, 0.8, 1.5])},
        **CHAIN,
    ),
    Example("mortality", mortality, (*ROWS, np.array([0, 1, 1]), np.full(18, 30), np.arange(18) % 4)),
]
