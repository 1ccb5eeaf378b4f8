"""Where a guide misses: the importance weights of the single slices of a plate, each for itself."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from ppl_ext.densities.log_density import Label, LogDensity
from ppl_ext.diagnostics.sites import Site


def slice_weights(log_p: LogDensity, log_q: LogDensity, sites: Mapping[str, Site]) -> dict[str, jax.Array]:
    r"""The part of a draw's log weight that each slice of a plate adds, by plate, (size,).

    .. math:: \log w_i = \log p(z_i, y_i \mid \theta) - \log q(z_i \mid \theta)

    with :math:`\theta` what stands outside the plate. Of the plates in which the guide has terms of its own
    for every latent site that the model has there, and whose sites all kept their terms: what a joint guide
    draws, or an elimination has summed over the plate, has none for a slice.

    >>> import jax.numpy as jnp
    >>> from ppl_ext.densities.log_density import Plate
    >>> from ppl_ext.diagnostics.sites import PlateAxis
    >>> rows = PlateAxis("rows", -1, 2)
    >>> site = Site("z", "latent", (2,), (2,), 0, (rows,), False, False, None, False, ())
    >>> label = Label("z", (Plate("rows", -1, 2, 1.0),))
    >>> p, q = (LogDensity((jnp.array(x),), (label,)) for x in ([-1.0, -2.0], [-1.5, -1.0]))
    >>> {plate: w.tolist() for plate, w in slice_weights(p, q, {"z": site}).items()}
    {'rows': [0.5, -1.0]}
    """
    found = {}
    for plate, size in _plates(log_q.labels).items():
        inside = [s for s in sites.values() if plate in {p.name for p in s.plates}]
        latent = {s.name for s in inside if s.kind == "latent" and not s.finite}
        scored = {s.name for s in inside if s.kind in ("latent", "observed", "factor")}
        if latent != _named(log_q.labels, plate) or not scored <= _named(log_p.labels, plate):
            continue
        if any(s.masked and s.kind == "latent" for s in inside):
            continue
        found[plate] = _along(log_p, plate, size) - _along(log_q, plate, size)
    return found


def _plates(labels: Sequence[Label]) -> dict[str, int]:
    return {p.name: p.size for label in labels for p in label.plates}


def _named(labels: Sequence[Label], plate: str) -> set[str]:
    """The sites whose terms stand in the plate; of a term that several were summed into, each of them."""
    here = [label.site for label in labels if plate in {p.name for p in label.plates}]
    return {name for joined in here for name in (joined, *joined.split(" + "))}


def _along(log_density: LogDensity, plate: str, size: int) -> jax.Array:
    total = jnp.zeros(size)
    for term, label in zip(log_density.terms, log_density.labels, strict=True):
        dim = next((p.dim for p in label.plates if p.name == plate), None)
        if dim is None:
            continue
        at = term.ndim + dim
        total = total + term.sum([a for a in range(term.ndim) if a != at])
    return total
