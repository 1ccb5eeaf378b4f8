"""The outcomes of finite sites, as far as a program makes them known."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, ExpandedDistribution

from ppl_ext.densities.distributions import elements, unmasked
from ppl_ext.errors import ModelError

SUPPORT = "_ppl_ext_support"  # of a message: the outcomes of a finite site in a scan


class Finite(NamedTuple):
    """A site to sum out: its outcomes (outcomes, *value of an element) and the shape of its elements, each of
    which has them.
    """

    support: jax.Array
    shape: tuple[int, ...]

    def value(self, index: jax.Array) -> jax.Array:
        """Every element at one outcome, or at an outcome of its own."""
        return jnp.take(self.support, jnp.broadcast_to(index, self.shape), axis=0)


def finite_site(name: str, msg: Mapping[str, Any]) -> Finite:
    """What there is to sum over at a site."""
    law = elements(unmasked(msg["fn"]))
    support = msg.get(SUPPORT)
    if support is None:
        support = _listed_support(name, law)
    return Finite(
        support.reshape(support.shape[:1] + law.event_shape), msg["kwargs"]["sample_shape"] + law.batch_shape
    )


def support_in_scan(msg: Mapping[str, Any]) -> jax.Array | None:
    """The outcomes of a site as the body of a scan knows them; None if it does not. (The law that comes out
    of a scan has arrays for numbers, a Binomial's count too.)
    """
    try:
        return _listed_support(msg["name"], elements(unmasked(msg["fn"])))
    except ModelError:
        return None


def _listed_support(name: str, law: Distribution) -> jax.Array:
    try:
        with jax.ensure_compile_time_eval():
            return law.enumerate_support(expand=False)
    except (
        NotImplementedError,
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
    ) as error:
        family = type(law.base_dist if isinstance(law, ExpandedDistribution) else law).__name__
        raise ModelError(f"Site '{name}' ({family}) cannot be summed out: {_why_no_list(error)}") from error


def _why_no_list(error: Exception) -> str:
    if isinstance(error, NotImplementedError) and "nhomogeneous" in str(error):
        return (
            "its elements have lists of values of different lengths. Write it with the longest for all, as "
            "a Categorical whose further probabilities are 0."
        )
    if isinstance(error, NotImplementedError):
        return f"it has no list of values ({error})."
    return (
        "its list of values depends on a number that is not known when the model is compiled, as a draw is "
        "none: give a number that is."
    )
