"""The sleep phase: the guide learns from the model's own simulations (Hinton, Dayan, Frey, Neal 1995; Le et
al. 2019, eq. 7).
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.expectations.objective import objective
from ppl_ext.expectations.replicate import replicate
from ppl_ext.handlers import detach, unobserved
from ppl_ext.objectives.terms.path_gradient import fixed
from ppl_ext.program import Program, log_density, simulate
from ppl_ext.runtime.arguments import described


@objective
def Sleep(model, guide, num_particles: int = 8, data: dict[str, str] | None = None):
    r"""The guide's mean log density of latent sites, given data, that the model itself has drawn.

    .. math:: \mathbb{E}_{(z, y') \sim p} \log q_\phi(z \mid y') = -\mathbb{E}_{y' \sim p} \, \mathrm{KL}(p(z
        \mid y') \| q_\phi(z \mid y'))
        + \text{const}

    Value and gradient are unbiased, whatever the sites: no gradient goes through a draw. Not a bound on the
    evidence of the data, which it does not look at; the model gets no gradient. The guide must be a function
    of the data, for all data sets at once.

    :param num_particles: simulations per estimate.
    :param data: which argument of the guide holds the data of which observed site of the model,
        ``{"argument": "site"}``. By default the arguments that are named as observed sites.
    :raises ArgumentError: if no argument of the guide is known to hold the data.
    :raises ModelError: if a simulation does not have the shape of the argument, as with a subsampled plate.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):
    ...     numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * y, 0.7))
    >>> bool(jax.numpy.isfinite(Sleep().loss(jax.random.key(0), {}, model, guide, 1.0)))
    True

    Source: Hinton, Dayan, Frey, Neal 1995; Le, Kosiorek, Siddharth, Teh, Wood 2019, eq. 7.
    """

    def dream():
        observed: set[str] = set()
        values = fixed(simulate(detach(unobserved(model, observed))).values)
        seen, latent = {n: values.pop(n) for n in sorted(observed)}, values
        return log_density(_with_data(guide, seen, data), latent)

    return replicate(dream, num_particles).mean()


def _with_data(guide: Program, seen: dict[str, Any], data: dict[str, str] | None) -> Program:
    """The guide with simulated data in the place of its arguments."""
    signature = _signature(guide.fn)
    if data is None:
        data = {name: name for name in signature.parameters if name in seen}
    if not data:
        raise ArgumentError(
            f"Sleep: which argument of the guide holds the data? It takes {signature}, and the model "
            f"observes {', '.join(map(repr, seen)) or 'nothing'}. Say Sleep(data={{'argument': 'site'}})."
        )
    bound = signature.bind(*guide.args, **guide.kwargs)
    for argument, site in data.items():
        if argument not in signature.parameters or site not in seen:
            raise ArgumentError(
                f"Sleep(data={data!r}): the guide takes {signature}, and the model observes "
                f"{', '.join(map(repr, seen)) or 'nothing'}."
            )
        given = bound.arguments.get(argument)
        if given is not None and jnp.shape(given) != jnp.shape(seen[site]):
            raise ModelError(
                f"Sleep: a simulation of site '{site}' has shape {jnp.shape(seen[site])}, but the guide's "
                f"argument '{argument}' is {described(given)}. Give the model the full data, without "
                "subsampling, and observe the argument itself."
            )
        bound.arguments[argument] = seen[site] if given is None else seen[site].astype(jnp.result_type(given))
    return Program(guide.fn, bound.args, bound.kwargs)


def _signature(fn: Callable) -> inspect.Signature:
    """That of the function below handlers, which themselves take whatever comes."""
    while True:
        inner = next(
            (getattr(fn, a) for a in ("__wrapped__", "program", "fn") if callable(getattr(fn, a, None))), None
        )
        if inner is None or inspect.isfunction(fn) and not hasattr(fn, "__wrapped__"):
            return inspect.signature(fn)
        fn = inner
