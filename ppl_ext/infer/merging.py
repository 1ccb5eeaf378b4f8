"""Several Gaussian posteriors as one, each with the precision that it has (Matena, Raffel 2022)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.util import cholesky_of_inverse
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from ppl_ext.algorithms.absent_sites import Unmasked
from ppl_ext.densities.distributions import element_mask
from ppl_ext.densities.recording import listed
from ppl_ext.diagnostics.sites import FullPlates
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, NonFiniteError
from ppl_ext.expectations.masked_latents import absent_elements
from ppl_ext.infer.gaussian_fit import DIAGONAL, FULL, GaussianFit, set_up
from ppl_ext.result import Fit
from ppl_ext.runtime.arguments import check_array, check_call, described
from ppl_ext.runtime.explain import name_of
from ppl_ext.runtime.open_handlers import refuse_open_handlers


def merge(fits: Sequence[Fit], weights: Any = None, *args: Any, **kwargs: Any) -> Fit:
    r"""One Gaussian guide from several: the product of their densities, with the prior counted once.

    .. math:: \Lambda = \sum_i \lambda_i F_i - (\bar\lambda - 1) F_0, \quad
        \theta^* = \bar\theta - (\bar\lambda - 1)\, \Lambda^{-1} \nabla \log p(\bar\theta), \quad
        \bar\theta = \Big(\sum_i \lambda_i F_i\Big)^{-1} \sum_i \lambda_i F_i \theta_i

    with :math:`\theta_i, F_i` the mean and the precision of guide i in unconstrained space,
    :math:`\bar\lambda = \sum_i \lambda_i`, and :math:`F_0 = -\nabla^2 \log p(\bar\theta)` that of the prior.

    Each posterior has the prior in it, so their product has it :math:`\bar\lambda` times; all but one are
    taken out. A ``factor`` that reads no array among the model's arguments, nor its size, is part of the
    prior; one that does is data, as observed sites are.

    Weights of 1, the default, are for fits of separate data: the result is the posterior of all data, exactly
    if everything is Gaussian. Weights that sum to 1 are for fits that share their data: nothing is taken out,
    and :math:`\theta^* = \bar\theta` is Fisher-weighted averaging. A prior that is not Gaussian in
    unconstrained space is taken by its second-order expansion at :math:`\bar\theta`.

    Guides: ``AutoLaplaceApproximation``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal``,
    ``AutoNormal``, ``AutoDiagonalNormal``, mixed as you like. If all are of the last two, the result is an
    ``AutoNormal``, else an ``AutoMultivariateNormal``. The likelihoods of the models may differ; their latent
    sites and priors may not. Latent sites that belong to single rows are taken for the same in all fits.

    :param fits: of :func:`ppl_ext.infer.fit`; chain c of the result is made of the chains c.
    :param weights: :math:`\lambda`, at least 0, one a fit.
    :param args: with ``kwargs``, the arguments of the model of ``fits[0]`` with all data, by which the result
        scores and reports its draws. May be left out if the fits had the same ones.
    :return: a :class:`~ppl_ext.infer.Fit` that no step was taken for.
    :raises ArgumentTypeError: for a fit that is none, or whose guide is not Gaussian.
    :raises ArgumentError: for other numbers of chains, or weights, or arguments that are needed.
    :raises ModelError: if latent sites, shapes, supports or priors differ, naming the site; or if a model
        masks elements of one, and nothing else sees them.
    :raises NonFiniteError: if less than nothing is left of a precision; it names the sites where it is so.

    >>> import numpyro, optax, numpyro.distributions as dist, ppl_ext
    >>> from ppl_ext.infer import fit
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)
    >>> first, second = jnp.array([1.0, 2.0]), jnp.array([3.0])
    >>> from numpyro.infer.autoguide import AutoLaplaceApproximation
    >>> guide = AutoLaplaceApproximation(model)
    >>> settings = ppl_ext.objectives.ELBO(), optax.sgd(0.2), 100
    >>> fits = [fit(jax.random.key(0), model, guide, *settings, y, progress_bar=False)
    ...         for y in (first, second)]
    >>> merged = merge(fits, None, jnp.concatenate([first, second]))
    >>> merged  # the posterior of all three: N(6 / 4, 1 / 4)
    Fit(None, AutoMultivariateNormal, num_chains=1, num_steps=0, stop_reason='merged from 2 fits')
    >>> [merged.params[f"auto_{name}"].round(3).tolist() for name in ("loc", "scale_tril")]
    [[[1.5]], [[[0.5]]]]

    Source: Matena and Raffel 2022, "Merging models with Fisher-weighted averaging", for the average; that the
    prior is counted once is Bayes' rule.
    """
    refuse_open_handlers("merge")
    fits = _checked(fits)
    weights = _weights(weights, len(fits))
    args, kwargs = _arguments(fits, args, kwargs)
    parts = [GaussianFit.of(f"fit {i}", fit) for i, fit in enumerate(fits)]
    for part in parts[1:]:
        part.check_sites(parts[0])
    for part in parts:
        _refuse_absent(part)
    full = not all(isinstance(fit.guide, DIAGONAL) for fit in fits)
    model = fits[0].model
    guide = AutoMultivariateNormal(model) if full else AutoNormal(model)
    set_up(guide, args, kwargs)
    GaussianFit.sites_of("the arguments given", guide).check_sites(parts[0])
    whole = parts[0]._replace(fit=replace(fits[0], args=args, kwargs=kwargs))
    chains = [_merged(parts, whole, weights, c, full) for c in range(fits[0].num_chains)]
    found = [_params(guide, parts[0], *chain) for chain in chains]
    return Fit(
        params=jax.tree.map(lambda *x: np.stack(x), *found),
        losses=np.zeros((len(chains), 0)),
        model=model,
        guide=guide,
        objective=None,
        args=args,
        kwargs=kwargs,
        rng_key=fits[0].rng_key,
        stop_reason=f"merged from {len(fits)} fits",
    )


def _checked(fits: Any) -> list[Fit]:
    if isinstance(fits, Fit) or not isinstance(fits, list | tuple) or len(fits) < 2:
        raise ArgumentTypeError(
            f"merge: fits must be a list of two or more results of ppl_ext.infer.fit, got {described(fits)}."
        )
    for i, fit in enumerate(fits):
        if not isinstance(fit, Fit):
            raise ArgumentTypeError(
                f"merge: fits[{i}] must be a result of ppl_ext.infer.fit, got {described(fit)}."
            )
        if not isinstance(fit.guide, DIAGONAL + FULL):
            raise ArgumentTypeError(
                f"merge: fits[{i}] has the guide {name_of(fit.guide)}, which is no Gaussian in unconstrained "
                f"space. Fit one of {', '.join(kind.__name__ for kind in DIAGONAL + FULL)}."
            )
        if fit.num_chains != fits[0].num_chains:
            raise ArgumentError(
                f"merge: fits[{i}] has {fit.num_chains} chains and fits[0] has {fits[0].num_chains}. Chain c "
                "is merged with the chains c: fit all with one num_chains."
            )
    return list(fits)


def _weights(weights: Any, count: int) -> np.ndarray:
    if weights is None:
        return np.ones(count)
    check_array("merge: weights", weights)
    found = np.asarray(weights, float)
    if found.shape != (count,) or not (np.isfinite(found).all() and (found >= 0.0).all() and found.any()):
        raise ArgumentError(
            f"merge: weights must be {count} numbers of at least 0, one a fit and not all 0, got "
            f"{found.tolist()}."
        )
    return found


def _arguments(fits: list[Fit], args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Those of the merged fit's model."""
    if not args and not kwargs:
        args, kwargs = fits[0].args, fits[0].kwargs
        for i, fit in enumerate(fits[1:], start=1):
            if not _alike((args, kwargs), (fit.args, fit.kwargs)):
                raise ArgumentError(
                    f"merge: fits[{i}] had other arguments than fits[0], so that it is not known by which "
                    "data the result shall be scored. Give those with all data: merge(fits, weights, data)."
                )
    check_call("merge: model", fits[0].model, args, kwargs)
    return args, kwargs


def _alike(x: Any, y: Any) -> bool:
    if str(jax.tree.structure(x)) != str(jax.tree.structure(y)):
        return False
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def _merged(
    parts: list[GaussianFit], whole: GaussianFit, weights: np.ndarray, chain: int, full: bool
) -> tuple[jax.Array, jax.Array]:
    """Mean, and the Cholesky factor of the covariance or the standard deviations."""
    found = [part.gaussian(chain) for part in parts]
    if full:
        found = [(mean, jnp.diag(f) if f.ndim == 1 else f) for mean, f in found]

    def solved(precision, x):
        return jnp.linalg.solve(precision, x) if full else x / precision

    times = jnp.matmul if full else jnp.multiply
    precision = sum(w * f for w, (_, f) in zip(weights, found, strict=True))
    mean = solved(precision, sum(w * times(f, x) for w, (x, f) in zip(weights, found, strict=True)))
    _check_priors(parts, mean)
    prior = partial(parts[0].prior, _factors_of_the_prior([*parts, whole], mean))
    more = float(weights.sum()) - 1.0
    curvature = jax.jit(jax.hessian(prior))(mean) if full else _diagonal(prior, mean)
    precision = precision + more * curvature
    mean = mean - more * solved(precision, jax.jit(jax.grad(prior))(mean))
    spread = cholesky_of_inverse(precision) if full else precision**-0.5
    if not bool(jnp.isfinite(spread).all() & jnp.isfinite(mean).all()):
        raise NonFiniteError(
            f"merge: no positive precision is left in chain {chain}{_without_precision(parts[0], precision)} "
            f"when the prior is taken out {more:g} times. The guides are wider than the prior, or it is far "
            "from Gaussian, or a Laplace guide has not reached its optimum. Run more steps, or give weights "
            "that sum to 1, which take nothing out."
        )
    return mean, spread


def _refuse_absent(part: GaussianFit) -> None:
    """No objective feels an element that the model masks and nothing else sees: where a guide has it, and how
    wide, means nothing, and its precision would be added to others all the same.
    """
    if not any(element_mask(site["fn"]) is not None for site in part.sites.values()):
        return
    program = partial(FullPlates.around, part.fit.model, part.fit.args, part.fit.kwargs)
    absent = absent_elements(program, Unmasked(program), jax.random.key(0))
    for name, elements in {**absent.guide, **absent.model}.items():
        if bool(elements.any()):
            raise ModelError(
                f"merge: {part.where} masks {int(elements.sum())} of the {elements.size} elements of site "
                f"'{name}', and nothing else sees them: the guide says nothing of them that could be merged. "
                "Leave them out of the model, or take the mask away, so that they have their prior."
            )


def _without_precision(part: GaussianFit, precision: jax.Array) -> str:
    """Where less than nothing is left, in words."""
    sizes = [int(np.prod(part.shape(name))) for name in part.sites]
    ends = np.cumsum(sizes)
    found = []
    for name, end, size in zip(part.sites, ends, sizes, strict=True):
        at = slice(end - size, end)
        own = precision[at, at] if precision.ndim == 2 else jnp.diag(precision[at])
        if not bool((jnp.linalg.eigvalsh(own) > 0.0).all()):
            found.append(name)
    return f" at site {listed(found)}" if found else ""


def _diagonal(fn: Callable, z: jax.Array) -> jax.Array:
    """The diagonal of the Hessian, a column at a time."""

    def at(i):
        one = jnp.zeros_like(z).at[i].set(1.0)
        return jax.jvp(jax.grad(fn), (z,), (one,))[1][i]

    return jax.lax.map(at, jnp.arange(z.size), batch_size=64)


def _check_priors(parts: list[GaussianFit], z: jax.Array) -> None:
    first = jax.jit(parts[0].terms)(z)
    for part in parts[1:]:
        for name, x in jax.jit(part.terms)(z).items():
            if name in part.sites and not np.allclose(x, first[name], rtol=1e-4, atol=1e-4):
                raise ModelError(
                    f"merge: the prior of site '{name}' is another for {part.where} than for "
                    f"{parts[0].where}: log density {float(x):.4g} and {float(first[name]):.4g} at the "
                    "average. The prior can only be counted once if it is the same."
                )


def _factors_of_the_prior(parts: list[GaussianFit], z: jax.Array) -> frozenset[str]:
    """Factors that read no data and are the same in all fits and given all data, whose size they may read:
    each fit has them whole.
    """
    shared = frozenset.intersection(*(part.factors_without_data() for part in parts))
    found = [jax.jit(part.terms)(z) for part in parts] if shared else []
    return frozenset(n for n in shared if all(np.allclose(x[n], found[0][n], rtol=1e-4) for x in found))


def _params(guide: Any, part: GaussianFit, mean: jax.Array, spread: jax.Array) -> dict[str, np.ndarray]:
    """What the merged guide takes for its params."""
    if isinstance(guide, AutoNormal):
        both = ((part.free(x), end) for x, end in ((mean, "loc"), (spread, "scale")))
        return {f"{n}_{guide.prefix}_{end}": np.asarray(x) for by, end in both for n, x in by.items()}
    back = np.argsort(GaussianFit.sites_of("", guide).order)
    covariance = (spread @ spread.T)[back][:, back]
    return {
        f"{guide.prefix}_loc": np.asarray(mean[back]),
        f"{guide.prefix}_scale_tril": np.asarray(jnp.linalg.cholesky(covariance)),
    }
