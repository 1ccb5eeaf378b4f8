"""A model's potential energy in unconstrained space, estimated from a fresh minibatch: what stochastic
gradient kernels follow.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, subsample_plate_sizes
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import constrain_fn, find_valid_initial_params, potential_energy, transform_fn

from ppl_ext.densities.strict_values import StrictValues
from ppl_ext.diagnostics.sites import FullPlates, is_factor
from ppl_ext.errors import ArgumentError, ModelError, NonFiniteError
from ppl_ext.infer.sgmcmc.minibatch import Rows, Weighed, cut, draw_rows, find_rows
from ppl_ext.infer.svi.checks import named
from ppl_ext.runtime.arguments import check_call, described
from ppl_ext.runtime.constants import odd_data_blamed
from ppl_ext.runtime.explain import explained
from ppl_ext.runtime.random_bits import split

Values = dict[str, Any]


class Target(NamedTuple):
    r"""The potential :math:`U(z) = -\log p(y, z)` of unconstrained values, Jacobians included, and its
    unbiased estimate.

    .. math:: \hat U(z) = -\log p(z) - \frac{N}{B} \sum_{i \in S} \log p(y_i \mid z)

    for B of N rows S, drawn anew at each call. Subsampled plates get fresh indices, one plate independently
    of the others, and NumPyro scales what lies in them; ``rows`` instead cuts the arguments of a model
    without such plates.

    ``example``: unconstrained values of a draw from the prior. ``plates``: size and subsample size by name.
    ``params``: values of ``numpyro.param`` and mutable sites. ``replay``: whether the model must run for its
    constrained values, because it has deterministic sites or supports that depend on other sites.
    """

    model: Callable
    transforms: dict[str, Any]
    example: Values
    plates: dict[str, tuple[int, int]]
    rows: Rows | None
    params: Values
    replay: bool

    @property
    def num_rows(self) -> int:
        """N: of the largest subsampled plate; 1 if the whole data are used."""
        return self.rows.size if self.rows else max((size for size, _ in self.plates.values()), default=1)

    def estimate(self, z: Values, rng_key: jax.Array, args: tuple, kwargs: Mapping[str, Any]) -> jax.Array:
        """The potential on a fresh minibatch: a scalar."""
        index_key, other_key = split(rng_key, (2,))
        indices = {
            name: draw_rows(jax.random.fold_in(index_key, i), *sizes)
            for i, (name, sizes) in enumerate(sorted(self.plates.items()))
        }
        if self.rows is None:
            return self._at(z, other_key, indices, args, kwargs)
        args, kwargs = cut(
            self.rows.size, draw_rows(index_key, self.rows.size, self.rows.batch_size), args, kwargs
        )
        with Weighed(self.rows.scaled, self.rows.size / self.rows.batch_size):
            return self._at(z, other_key, indices, args, kwargs)

    def _at(
        self, z: Values, rng_key: jax.Array, indices: Values, args: tuple, kwargs: Mapping[str, Any]
    ) -> jax.Array:
        # Outermost, the key goes only to what has no value yet: random numbers that the model takes for
        # itself.
        if indices:  # NumPy's arrays cannot be indexed by what JAX traces
            args, kwargs = jax.tree.map(_traceable, (args, dict(kwargs)))
        with explained(self.model), seed(rng_seed=rng_key):
            return potential_energy(
                substitute(self.model, data={**self.params, **indices}), args, dict(kwargs), z
            )

    def constrain(self, z: Values, args: tuple, kwargs: Mapping[str, Any]) -> Values:
        """Values in their supports, and deterministic sites on the full plates."""
        if not self.replay:
            return transform_fn(self.transforms, z)
        with seed(rng_seed=jax.random.key(0)), FullPlates():
            return constrain_fn(
                substitute(self.model, data=self.params), args, dict(kwargs), z, return_deterministic=True
            )

    def start(
        self, where: str, rng_key: jax.Array, args: tuple, kwargs: Mapping[str, Any], strategy: Callable
    ) -> Values:
        """Unconstrained values at which the estimate and its gradient are finite; for a batch of keys, a
        batch of them.

        :raises NonFiniteError: if a hundred tries find none.
        """
        first = rng_key if rng_key.ndim == _key_ndim(rng_key) else rng_key[0]
        args_, kwargs_, scale = args, dict(kwargs), Weighed(frozenset(), 1.0)
        if self.rows is not None:
            args_, kwargs_ = cut(self.rows.size, np.arange(self.rows.batch_size), args, kwargs)
            scale = Weighed(self.rows.scaled, self.rows.size / self.rows.batch_size)
        indices = {name: jnp.arange(sub) for name, (_, sub) in self.plates.items()}
        args_, kwargs_ = jax.tree.map(_traceable, (args_, kwargs_)) if indices else (args_, kwargs_)
        model = StrictValues(substitute(self.model, data={**self.params, **indices}))
        unnamed = numpyro.validation_enabled(False)  # NumPyro's checks do not name the site

        @jax.jit  # NumPyro's tries are a hundred little programs otherwise
        def find(rng_key, first):
            with scale, seed(rng_seed=first):
                (z, _, _), valid = find_valid_initial_params(
                    rng_key,
                    model,
                    init_strategy=strategy,
                    model_args=args_,
                    model_kwargs=kwargs_,
                    prototype_params=self.example,
                )
            return z, valid

        with named(self.model, first, args, kwargs), unnamed:
            z, valid = find(rng_key, first)
        z = {name: z[name] for name in self.transforms}  # a traced loop goes by name
        if not isinstance(valid, jax.core.Tracer) and not bool(jnp.all(valid)):
            raise NonFiniteError(f"{where}: before the first step, {self.trouble(first, args, kwargs)}")
        return z

    def trouble(self, rng_key: jax.Array, args: tuple, kwargs: Mapping[str, Any]) -> str:
        """Which site has a log density that is not finite at a draw of the prior, on all of the data."""
        with numpyro.validation_enabled(False), trace() as record, FullPlates(), StrictValues():
            _prior(self.model, rng_key, self.params)(*args, **kwargs)
        for name, site in record.items():
            if site["type"] != "sample":
                continue
            if (
                site["is_observed"]
                and not is_factor(site)
                and np.isnan(np.asarray(site["value"], float)).any()
            ):
                total = np.isnan(np.asarray(site["value"], float)).sum()
                return (
                    f"the data of site '{name}' hold {total} NaN: drop them, or mask them with "
                    "numpyro.handlers.mask."
                )
            if not np.isfinite(np.asarray(site["fn"].log_prob(site["value"]))).all():
                return (
                    f"the log density of site '{name}' is not finite at a draw from the prior: look at the "
                    f"parameters that {type(site['fn']).__name__} gets there, and at its data."
                )
        return (
            "no point was found at which the log density and its gradient are finite. Pass init_strategy=, "
            "or init_params= to MCMC.run."
        )


def _prior(model: Callable, rng_key: jax.Array, params: Values) -> Callable:
    return substitute(seed(substitute(model, data=params), rng_key), substitute_fn=init_to_sample)


def _traceable(x: Any) -> Any:
    return jnp.asarray(x) if isinstance(x, np.ndarray) else x


def _key_ndim(rng_key: jax.Array) -> int:
    return 0 if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) else 1


def set_up(
    where: str,
    model: Callable,
    batch_size: int | None,
    rng_key: jax.Array,
    args: tuple,
    kwargs: Mapping[str, Any],
) -> Target:
    """Look at a model once: its latent sites, their supports, and how its data are subsampled.

    :raises ModelError: if it has no latent site, or one that is discrete, a point mass, or of one row each in
        a subsampled plate.
    :raises ArgumentError: if ``batch_size`` does not fit the model; see
        :func:`~ppl_ext.infer.sgmcmc.minibatch.find_rows`.
    """
    own = {n: x for n, x in kwargs.items() if n != GIBBS_SITES_KWARG}
    check_call(f"{where}: model", model, args, own)
    with odd_data_blamed(f"{where}:", args, own), named(model, rng_key, args, kwargs):
        record = trace(_prior(model, rng_key, {})).get_trace(*args, **kwargs)
    plates = subsample_plate_sizes(record)
    transforms, replay = {}, False
    for name, site in record.items():
        if site["type"] == "plate" and site["args"][1] is not None and site["args"][1] > site["args"][0]:
            raise ModelError(
                f"{where}: plate '{name}' of {site['args'][0]} has a subsample_size of {site['args'][1]}, "
                "which is more than it holds."
            )
        replay |= site["type"] == "deterministic"
        if site["type"] != "sample" or site["is_observed"]:
            continue
        fn = site["fn"]
        if fn.support.is_discrete:
            raise ModelError(
                f"{where}: the latent site '{name}' ({type(fn).__name__}) is discrete and has no gradient. "
                "Sum it out in the model, or sample it by another kernel in numpyro.infer.Gibbs."
            )
        if isinstance(fn, dist.Delta):
            raise ModelError(
                f"{where}: the latent site '{name}' is a point mass (Delta). Use numpyro.deterministic."
            )
        inside = [f.name for f in site["cond_indep_stack"] if f.name in plates]
        if inside:
            raise ModelError(
                f"{where}: the latent site '{name}' lies in the subsampled plate '{inside[0]}': a minibatch "
                "has values for its own rows only, so the chain would mix those of different rows. Sum it "
                "out, or leave subsample_size away there."
            )
        transforms[name] = biject_to(fn.support)
        bounds = [getattr(fn.support, a, 0.0) for a in ("lower_bound", "upper_bound")]
        replay |= any(not isinstance(b, int | float) for b in bounds)
    if not transforms:
        raise ModelError(f"{where}: the model has no latent site, so there is nothing to sample.")
    rows = None
    if batch_size is not None:
        if plates:
            name, (size, sub) = next(iter(plates.items()))
            raise ArgumentError(
                f"{where}: the model subsamples its plate '{name}' ({sub} of {size}) itself, so leave "
                f"batch_size away; got {described(batch_size)}."
            )
        rows = find_rows(where, model, batch_size, args, kwargs)
    params = {name: site["value"] for name, site in record.items() if site["type"] in ("param", "mutable")}
    example = transform_fn(transforms, {name: record[name]["value"] for name in transforms}, invert=True)
    return Target(model, transforms, example, plates, rows, params, replay)
