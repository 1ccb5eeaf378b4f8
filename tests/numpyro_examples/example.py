"""What a row of the table is: a model of the structure of one of NumPyro's examples, with little data."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.funsor import config_enumerate, enum
from numpyro.contrib.funsor import log_density as summed_log_density
from numpyro.handlers import block, seed, substitute, trace
from numpyro.infer.util import _guess_max_plate_nesting, log_density

from tests.oracles import quick_jit

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Example:
    """A model and what is special about it.

    :param guide: made from the model and the example; by default :func:`mean_field`.
    :param summed: finite sites that are marked for enumeration, which get no value.
    :param by_parts: that NumPyro's ``TraceEnum_ELBO`` is another number than its log densities give: it drops
        masks of finite sites (decision 12), and counts a law of the model several times that is expanded
        along them.
    :param given: values of sites that cannot be drawn from their prior.
    :param no_loo: what ``loo`` says where it refuses.
    :param no_draws: what ``Fit.sample`` says of a guide that takes its minibatch for the whole plate.
    :param states: sites of a scan that a filter draws; the others are parameters.
    :param exact: whether the smoother's exact recursions serve for them.
    """

    name: str
    model: Callable
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guide: Callable[[Callable, Any], Callable] | None = None
    summed: tuple[str, ...] = ()
    by_parts: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    no_loo: str | None = None
    no_draws: str | None = None
    states: tuple[str, ...] = ()
    exact: bool = False

    def drawn(self, key=KEY) -> tuple[Callable, dict[str, jax.Array]]:
        """The model with its parameters held, and a draw of the prior: latent sites but those that are summed
        out, and subsampled rows.
        """
        held, values = drawn(substitute(self.model, data=self.given), self, key)
        return substitute(self.model, data=held), {
            name: x for name, x in values.items() if name not in self.summed
        }


def drawn(program: Callable, example: Example, key) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """A run of a program: parameters and states, and values of latent sites and the rows of subsampled
    plates.
    """
    kinds = {}

    def run(key):
        sites = trace(seed(program, key)).get_trace(*example.args, **example.kwargs)
        kinds.update({name: site["type"] for name, site in sites.items() if _is_free(site)})
        return {name: sites[name]["value"] for name in kinds}

    found = quick_jit(run)(key)
    held = {name: x for name, x in found.items() if kinds[name] in ("param", "mutable")}
    return held, {name: x for name, x in found.items() if name not in held}


def _is_free(site) -> bool:
    if site["type"] == "plate":
        return len(site["value"]) < site["args"][0]
    if site["type"] == "sample":
        return not site["is_observed"] and not isinstance(site["fn"], dist.Delta)
    return site["type"] in ("param", "mutable")


def numpyro_log_density(example: Example, model: Callable, values) -> jax.Array:
    """By NumPyro's own functions; what is to be summed out, as its NUTS does it."""
    model = seed(model, KEY)
    if not example.summed:
        return log_density(model, example.args, example.kwargs, values)[0]
    # with the values, as an improper law has no draws
    drawn = trace(substitute(model, data=values)).get_trace(*example.args, **example.kwargs)
    nesting = _guess_max_plate_nesting(drawn)
    return summed_log_density(
        enum(config_enumerate(model), -nesting - 1), example.args, example.kwargs, values
    )[0]


def mean_field(model: Callable, example: Example) -> Callable:
    """A Gaussian on the real line for each latent site, in the plates of the model: an automatic guide that
    is not set up by a run.
    """

    def guide(*args, **kwargs):
        with block():
            sites = trace(seed(substitute(model, data=example.given), KEY)).get_trace(*args, **kwargs)
        for name, site in sites.items():
            if site["type"] != "sample" or not _is_free(site) or name in example.summed:
                continue
            transform, shape = dist.biject_to(site["fn"].support), jnp.shape(site["value"])
            inner = transform.inverse_shape(shape)
            loc = numpyro.param(f"{name}_loc", jnp.full(inner, 0.2))
            width = numpyro.param(f"{name}_width", jnp.full(inner, 0.3), constraint=dist.constraints.positive)
            law = dist.Normal(loc, width).to_event(site["fn"].event_dim - len(shape) + len(inner))
            with ExitStack() as plates:
                for frame in site["cond_indep_stack"]:
                    plates.enter_context(numpyro.plate(frame.name, frame.size, dim=frame.dim))
                numpyro.sample(name, dist.TransformedDistribution(law, transform))

    return guide
