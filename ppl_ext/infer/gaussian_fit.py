"""What a fit with a Gaussian guide says, over one vector of all its latent sites in unconstrained space."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from numpyro.distributions import biject_to
from numpyro.handlers import seed, trace
from numpyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from ppl_ext.diagnostics.sites import FullPlates, given, is_factor
from ppl_ext.errors import ModelError
from ppl_ext.program import log_density
from ppl_ext.result import Fit
from ppl_ext.tracing.credit import mark, trace_credit

DIAGONAL = (AutoNormal, AutoDiagonalNormal)
FULL = (AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoLaplaceApproximation)


class GaussianFit(NamedTuple):
    """One fit: its sites, and where in one vector over all of them (names in order) its own vector lies."""

    where: str
    fit: Any
    sites: dict[str, dict]
    order: np.ndarray

    @classmethod
    def of(cls, where: str, fit: Fit) -> "GaussianFit":
        guide: Any = fit.guide
        set_up(guide, fit.args, fit.kwargs)
        part = cls.sites_of(where, guide)
        for name in part.sites if isinstance(guide, AutoNormal) else ():
            if (known := np.shape(fit.params[f"{name}_{guide.prefix}_loc"])[1:]) != part.shape(name):
                raise ModelError(
                    f"merge: site '{name}' of {where} lies in a plate that was subsampled: the guide has "
                    f"shape {known} and a step saw {part.shape(name)}. Latent sites of rows cannot be merged."
                )
        prefixes = tuple(f"{name}_{guide.prefix}_" for name in part.sites)
        learned = [n for n in fit.params if not n.startswith((f"{guide.prefix}_", *prefixes))]
        if learned:
            raise ModelError(
                f"merge: the model of {where} has param '{learned[0]}', a point without a precision. Make it "
                "a sample site, or fix it."
            )
        return part._replace(fit=fit)

    @classmethod
    def sites_of(cls, where: str, guide: Any) -> "GaussianFit":
        sites = {
            n: site
            for n, site in sorted(guide.prototype_trace.items())
            if site["type"] == "sample" and not site["is_observed"]
        }
        order = np.arange(0)
        if isinstance(guide, AutoContinuous):
            places = guide._unpack_latent(np.arange(guide.latent_dim))
            order = np.concatenate([np.ravel(places[n]) for n in sites])
        return cls(where, None, sites, order)

    def check_sites(self, first: "GaussianFit") -> None:
        """Whether the latent sites are those of the first fit."""
        if only := sorted(self.sites.keys() ^ first.sites.keys()):
            here, there = (self, first) if only[0] in self.sites else (first, self)
            raise ModelError(
                f"merge: {here.where} has the latent site '{only[0]}', and {there.where} has not. Merge fits "
                "of one model."
            )
        for name, site in self.sites.items():
            other = first.sites[name]
            for what, x, y in (
                ("shape", np.shape(site["value"]), np.shape(other["value"])),
                ("support", _support(site), _support(other)),
            ):
                if x != y:
                    raise ModelError(
                        f"merge: site '{name}' has {what} {x} for {self.where} and {y} for {first.where}. "
                        "Only what all fits share can be merged; the rows' own latent sites cannot."
                    )

    def free(self, z: jax.Array) -> dict[str, jax.Array]:
        """A vector over all sites, by site."""
        sizes = [int(np.prod(self.shape(name))) for name in self.sites]
        pieces = jnp.split(z, np.cumsum(sizes)[:-1])
        return {n: x.reshape(self.shape(n)) for n, x in zip(self.sites, pieces, strict=True)}

    def shape(self, name: str) -> tuple[int, ...]:
        site = self.sites[name]
        return jax.eval_shape(biject_to(site["fn"].support).inv, site["value"]).shape

    def terms(self, z: jax.Array) -> dict[str, jax.Array]:
        """The model's log density at unconstrained positions, by site."""
        values, jacobians = {}, {}
        for name, x in self.free(z).items():
            to = biject_to(self.sites[name]["fn"].support)
            values[name] = to(x)
            jacobians[name] = jnp.sum(to.log_abs_det_jacobian(x, values[name]))
        whole = partial(FullPlates.around, self.fit.model, self.fit.args, self.fit.kwargs)
        found = log_density(whole, values).by_site
        return {n: x + jacobians.get(n, 0.0) for n, x in found.items()}

    def prior(self, factors: Collection[str], z: jax.Array) -> jax.Array:
        names = {*self.sites, *factors}
        return jnp.asarray(sum(x for n, x in self.terms(z).items() if n in names))

    def factors_without_data(self) -> frozenset[str]:
        """Factors that read no array among the arguments: they are there however the data are parted."""
        leaves, tree = jax.tree.flatten((self.fit.args, dict(self.fit.kwargs)))
        arrays = {f"argument {i}": i for i, x in enumerate(leaves) if isinstance(x, np.ndarray | jax.Array)}
        values = {n: np.asarray(site["value"]) for n, site in self.sites.items()}
        names: list[str] = []

        def factors():
            marked = [mark(x, n, 0) if (n := f"argument {i}") in arrays else x for i, x in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(tree, marked)
            whole = partial(FullPlates.around, given(self.fit.model, values), args, kwargs)
            found = trace(seed(whole, jax.random.key(0))).get_trace()
            names[:] = [n for n, site in found.items() if site["type"] == "sample" and is_factor(site)]
            return [jnp.asarray(found[n]["fn"].log_factor) for n in names]

        try:
            credit, met = trace_credit(factors)
        except jax.errors.ConcretizationTypeError:  # Python reads their numbers: they may be anywhere
            return frozenset()
        if arrays.keys() - met:  # read where the data flow is not
            return frozenset()
        return frozenset(n for n, deps in zip(names, credit, strict=True) if not deps)

    def gaussian(self, chain: int) -> tuple[jax.Array, jax.Array]:
        """Mean, and precision (size, size) or its diagonal (size,)."""
        guide = self.fit.guide
        params = {n: jnp.asarray(x[chain]) for n, x in self.fit.params.items()}
        if isinstance(guide, AutoNormal):
            mean, scale = (
                jnp.concatenate([jnp.ravel(params[f"{n}_{guide.prefix}_{part}"]) for n in self.sites])
                for part in ("loc", "scale")
            )
            return mean, scale**-2
        if isinstance(guide, AutoLaplaceApproximation):
            mean = params[f"{guide.prefix}_loc"][self.order]
            return mean, jax.jit(partial(guide._hessian_fn, lambda z: -sum(self.terms(z).values())))(mean)
        law = guide.get_posterior(params)
        if isinstance(guide, AutoDiagonalNormal):
            return law.loc[self.order], law.scale[self.order] ** -2
        # not law.precision_matrix, which is wrong for NumPyro's low-rank law (0.22)
        precision = cho_solve((law.scale_tril, True), jnp.eye(law.loc.size, dtype=law.loc.dtype))
        return law.loc[self.order], precision[self.order][:, self.order]


def _support(site: Mapping[str, Any]) -> str:
    return repr(site["fn"].support)


def set_up(guide: AutoGuide, args: tuple, kwargs: Mapping[str, Any]) -> None:
    if guide.prototype_trace is None:
        with FullPlates():
            seed(guide, jax.random.key(0))(*args, **kwargs)
