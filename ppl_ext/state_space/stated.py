r"""Steps whose distributions are written as normal ones: their laws and observations as they stand there.

A ``Normal`` or ``MultivariateNormal`` site has its noise written down, and a location that is linear in the
states. For all latent sites b of a step together, given the state a before it, and for an observation y,

.. math:: b = F a + H b + c + L e, \qquad y = G x + d + M e, \qquad e \sim \mathcal{N}(0, I)

One derivative of the locations gives F, H, c, G and d, where a log density would have to be taken apart by
two (:mod:`ppl_ext.state_space.kalman`), and no number is squared on the way. A site reads earlier ones of its
own step only, so :math:`(I - H)^{-1} = I + H + H^2 + \dots` ends.
"""

from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.scipy.linalg import block_diag, solve_triangular
from numpyro.distributions.util import is_identically_one

from ppl_ext.densities.distributions import element_mask, elements
from ppl_ext.state_space.kalman import Law, Seen, law_of, seen_as_data, seen_of
from ppl_ext.state_space.missing import holds_nan, seen_root
from ppl_ext.state_space.small_matrices import SMALL, cholesky, product
from ppl_ext.tracing.depends import depends

Sites = dict[str, dict[str, Any]]


class Noise(NamedTuple):
    """Noise of a normal law: ``scale`` of each entry, or ``root``, a Cholesky factor of the last axis'
    covariance, and that where it was given. ``gone`` are the entries that are masked or were not seen. Where
    it is not ``valid`` the law has no density.
    """

    valid: jax.Array
    scale: jax.Array | None
    covariance: jax.Array | None
    root: jax.Array | None
    gone: jax.Array | None


class Linear(NamedTuple):
    """By site: entries of its location, or of an observed one of its value less that, as ``moves @ x + at``
    for a step's states x before and after it; and its noise. ``names`` are those of all sites.
    """

    names: list[str]
    moves: dict[str, jax.Array]
    at: dict[str, jax.Array]
    noise: dict[str, Noise]


def linear(
    sites_of: Callable[..., Sites], latent: Iterable[str], before: jax.Array, after: jax.Array
) -> Linear:
    """What is stated of a step: of sites that are normal as they are written, and are not scaled.

    :param sites_of: the sites of the step at vectors of states, before and after it.
    :param latent: names of those that are latent.

    >>> def sites_of(a, b):
    ...     return {"b": {"fn": dist.Normal(0.5 * a[0] + 1.0, 2.0), "value": b[0], "scale": None}}
    >>> found = linear(sites_of, ["b"], jnp.zeros(1), jnp.zeros(1))
    >>> found.moves["b"].tolist(), found.at["b"].tolist(), float(found.noise["b"].scale)
    ([0.5, 0.0], 1.0, 2.0)
    """
    names: list[str] = []

    def off(x):
        entries, noise = {}, {}
        sites = sites_of(x[: len(before)], x[len(before) :])
        names[:] = sites
        for name, site in sites.items():
            if found := _stated(site):
                noise[name], loc = found[1], found[0]
                entries[name] = loc if name in latent else jnp.asarray(site["value"]) - loc
        return entries, (entries, noise)

    moves, (at, noise) = jax.jacfwd(off, has_aux=True)(jnp.zeros_like(jnp.concatenate([before, after])))
    return Linear(names, moves, at, noise)


def law_and_seen(
    step: Callable,
    sites_of: Callable[..., Sites] | None,
    latent: list[str],
    before: jax.Array,
    after: jax.Array,
) -> tuple[Law, Seen]:
    """The law of a step's state given that before it, and what its observations say of it, or of both.

    :param step: its densities at vectors of these sizes, and what it observes as ``each``.
    :param sites_of: its sites there, in the same order; ``None`` where they count for other than their laws.
    :param latent: names of those that the state is made of, in this order.
    """
    observed = jax.make_jaxpr(lambda b, x: step(b, x).log_emission)(before, after)
    of_both = any(depends(observed, [True, False]))
    of = linear(sites_of, latent, before, after) if sites_of else Linear([], {}, {}, {})
    law = stated_law(of, latent, after) or law_of(lambda b, x: step(b, x).log_transition, before, after)
    names = [name for name in of.names if name not in latent]
    rows = stated_rows(of, [name for name in names if name in of.at], jnp.concatenate([before, after]))
    rows = rows if of_both else rows[:, len(before) :]
    if sites_of and all(name in of.at for name in names):
        return law, seen_as_data(rows)

    def others(b, x):
        return [term for term, name in zip_longest(step(b, x).each, names) if name not in of.at]

    if of_both:
        return law, seen_of(others, before, after, stated=rows)
    return law, seen_of(lambda x: others(before, x), after, stated=rows)


def stated_law(of: Linear, latent: list[str], b: jax.Array) -> Law | None:
    """The law of b given a, whose entries are those of the latent sites in this order; ``None`` unless all
    are stated.
    """
    if not latent or not all(name in of.at for name in latent):
        return None
    wide = [jnp.concatenate([of.moves[name], of.at[name][..., None]], -1) for name in latent]
    joint = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in wide]).astype(b.dtype)
    before, one = joint.shape[1] - len(b) - 1, jnp.eye(len(b), dtype=b.dtype)
    slope, within, offset = joint[:, :before], joint[:, before:-1], joint[:, -1]
    covariance = _covariance(of.noise, latent, b)
    through = one
    for _ in latent[1:]:
        through = one + product(within, through)
    if len(latent) > 1:
        slope, offset = product(through, slope), product(through, offset)
        covariance = product(through, covariance, through.T)
    valid = jnp.stack([of.noise[name].valid for name in latent]).all()
    return Law(slope, offset, covariance, jnp.where(valid, jnp.zeros((), b.dtype), jnp.nan))


def stated_rows(of: Linear, observed: Iterable[str], like: jax.Array) -> jax.Array:
    """What those of the observed sites that are stated say of the states x, as data z of ``rows @ x`` with
    noise of variance one: rows, and z in the last column.
    """
    found = [jnp.zeros((0, len(like) + 1), like.dtype)]
    for name in observed:
        wide = jnp.concatenate([-of.moves[name], of.at[name][..., None]], -1)
        _, scale, _, root, gone = of.noise[name]
        if gone is not None:
            wide = jnp.where(gone[..., None], 0.0, wide)
        if scale is not None:
            wide = wide / scale[..., None]
        elif root is not None:
            if gone is not None:
                root = lax.cond(gone.any(), lambda x, out: seen_root(x, out)[0], lambda x, _: x, root, gone)
            wide = solve_triangular(root, wide, lower=True)
        found.append(wide.reshape(-1, len(like) + 1))
    return jnp.concatenate(found)


def _stated(site: dict[str, Any]) -> tuple[jax.Array, Noise] | None:
    if not (site["scale"] is None or is_identically_one(site["scale"])):
        return None
    fn, value = site["fn"], jnp.asarray(site["value"])
    law, shape = elements(fn), jnp.broadcast_shapes(value.shape, fn.shape())
    while isinstance(law, dist.ExpandedDistribution):
        law = law.base_dist
    if type(law) not in (dist.Normal, dist.MultivariateNormal):
        return None
    loc, gone = jnp.broadcast_to(law.loc, shape), None
    if holds_nan(fn, value):
        gone = jnp.broadcast_to(jnp.isnan(value), shape)
    if (mask := element_mask(fn)) is not None:
        hidden = jnp.broadcast_to(~mask.reshape(mask.shape + (1,) * law.event_dim), shape)
        gone = hidden if gone is None else gone | hidden
    if type(law) is dist.Normal:
        return loc, Noise(jnp.all(law.scale > 0.0), jnp.broadcast_to(law.scale, shape), None, None, gone)
    # The covariance where it was given: no derivative goes through its factor, and of a small one that
    # factor, which says whether it is one, is written out.
    given, root = "covariance_matrix" in vars(law), law.scale_tril
    if given and shape[-1] <= SMALL:
        root = jnp.vectorize(cholesky, signature="(n,n)->(n,n)")(law.covariance_matrix)
    valid = jnp.all(jnp.diagonal(root, axis1=-2, axis2=-1) > 0.0)
    covariance = jnp.broadcast_to(law.covariance_matrix, (*shape, shape[-1])) if given else None
    return loc, Noise(valid, None, covariance, jnp.broadcast_to(root, (*shape, shape[-1])), gone)


def _covariance(noise: dict[str, Noise], names: list[str], like: jax.Array) -> jax.Array:
    blocks: list[jax.Array] = []
    for name in names:
        _, scale, covariance, root, _ = noise[name]
        if scale is not None:
            blocks.append(jnp.diag(jnp.ravel(scale) ** 2))
        elif covariance is not None:
            blocks += list(covariance.reshape(-1, *covariance.shape[-2:]))
        elif root is not None:
            roots = root.astype(like.dtype).reshape(-1, *root.shape[-2:])
            blocks += [product(r, r.T) for r in roots]
    return block_diag(*blocks).astype(like.dtype)
