"""Posterior collapse: which units of an encoder say something, how many would pay, and why not more."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_ext.diagnostics.capacity.causes import eigenvalues, of_data, of_level, readers, residuals
from ppl_ext.diagnostics.capacity.units import Units, encoded
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_count, check_key, check_number, described


class Collapse(NamedTuple):
    """What :func:`collapse` returns.

    ``sites``: :class:`Units` by latent site. ``observed``: active units of the sites that the data's law
    reads. ``predicted``: how many it pays for, the ``eigenvalues`` above ``level``, which is β η²; ``None``
    where the data's law is not normal. ``causes``: in words, why units are inactive, and what else is wrong.

    >>> units = {"z": Units(np.zeros(1), np.zeros(1), np.array([False]))}
    >>> print(Collapse(units, np.array([0.5]), 1.0, 0, 0, ("noise",)))
    z: 0 of 1 active, 0.000 nats
    0 active, 0 predicted
    noise
    """

    sites: dict[str, Units]
    eigenvalues: np.ndarray
    level: float | None
    predicted: int | None
    observed: int
    causes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{name}: {u.active.sum()} of {u.active.size} active, {u.kl.sum():.3f} nats"
            for name, u in self.sites.items()
        ]
        count = "unknown" if self.predicted is None else self.predicted
        return "\n".join([*lines, f"{self.observed} active, {count} predicted", *self.causes])


def collapse(
    fit: Any,
    rng_key: jax.Array | None = None,
    num_samples: int = 200,
    *,
    weights: float | Mapping[str, float] = 1.0,
    inputs: Any = None,
    threshold: float = 0.01,
) -> Collapse:
    r"""Count the active units of a fitted encoder, and those that a locally linear decoder would pay for.

    .. math:: \text{unit } i \text{ is active} \iff \operatorname{Var}_x\big(\mathbb{E}_q[z_i \mid x]\big) >
        \delta, \qquad \text{predicted} = \#\{i : \operatorname{eig}_i \operatorname{Cov}(y - \mathbb{E}[y
        \mid x]) > \beta \eta^2\}

    with η² the variance of the data's normal law and β the weight of the divergence. What a decoder knows of
    y from its input x leaves no work for the latent. A second level, which the data's law does not read, can
    be removed at no cost where the first level's variance is learned; with a larger weight on the first than
    on the second the loss is then unbounded below, and a cause says so.

    :param fit: a :class:`~ppl_ext.result.Fit` of a model whose latent sites share a plate with the data. Of
        several restarts the first is looked at.
    :param num_samples: draws of the guide, over which divergences and means are averaged.
    :param weights: β, one number or by site: the weights of the divergences in the objective, 1 for sites
        without an entry. Scales of handlers are not read.
    :param inputs: x, (rows, ...) in the order of the plate: E[y | x] is then its linear regression.
    :param threshold: δ.
    :return: :class:`Collapse`. The divergence of a site whose law does not factorise is one number.
    :raises ArgumentTypeError: if ``fit`` is no fit of a guide.
    :raises ArgumentError: if a weight names no latent site, or the inputs have another number of rows.
    :raises ModelError: if no latent site shares a plate with one observed site.

    >>> import jax.numpy as jnp, numpyro, optax, ppl_ext, numpyro.distributions as dist
    >>> def model(y):
    ...     with numpyro.plate("rows", len(y)):
    ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...         numpyro.sample("y", dist.Normal(0.0 * z, 1.0), obs=y)
    >>> def guide(y):
    ...     with numpyro.plate("rows", len(y)):
    ...         numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0) * y, 1.0))
    >>> elbo, y = ppl_ext.objectives.ELBO(), jnp.array([-0.5, 0.5])
    >>> key, sgd = jax.random.key(0), optax.sgd(0.0)
    >>> print(collapse(ppl_ext.infer.fit(key, model, guide, elbo, sgd, 1, y, progress_bar=False)))
    z: 0 of 1 active, 0.000 nats
    0 active, 0 predicted
    z, noise: 0 of 1 directions of 'y' have more variance than 1, the noise times the weight.

    Source: Dang, Tran, Nguyen, Ho 2024; active units: Burda, Grosse, Salakhutdinov 2016, section 5.
    """
    if not all(hasattr(fit, name) for name in ("params", "model", "guide", "args", "kwargs")):
        raise ArgumentTypeError(
            f"collapse: fit must be the result of ppl_ext.infer.fit, got {described(fit)}."
        )
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key("collapse: rng_key", rng_key)
    check_count("collapse: num_samples", num_samples)
    check_number("collapse: threshold", threshold, at_least=0.0)
    if fit.outside is not None:
        fit.outside.check("collapse", fit.model, fit.guide)
    params = jax.tree.map(lambda x: x[0], dict(fit.params))
    of = encoded(fit.model, fit.guide, params, fit.args, fit.kwargs)
    beta = _by_site(weights, of.latent)
    units = of.units(rng_key, num_samples, threshold)
    y, noise = of.data(rng_key)
    read_by = {site: readers(of, site) for site in of.latent}
    first = [site for site in of.latent if of.observed in read_by[site]]
    raw = eigenvalues(y)
    left = raw if inputs is None else eigenvalues(residuals(y, inputs))
    observed = sum(int(units[site].active.sum()) for site in first)
    level, predicted = None, None
    causes: list[str] = []
    if noise is not None and first:
        level, size = noise * beta[first[0]], sum(units[site].active.size for site in first)
        predicted = min(int((left > level).sum()), size)
        if observed < size:
            causes += of_data(of, first[0], level, left, raw, observed, predicted)
    for upper in (site for site in of.latent if site not in first):
        for lower in sorted(read_by[upper]):
            causes += of_level(of, upper, lower, units[upper], beta)
    return Collapse(units, left, level, predicted, observed, tuple(causes))


def _by_site(weights: Any, latent: tuple[str, ...]) -> dict[str, float]:
    given = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(latent, weights)
    for name, weight in given.items():
        if name not in latent:
            raise ArgumentError(
                f"collapse: weights names '{name}', and the latent sites are {', '.join(map(repr, latent))}."
            )
        check_number(f"collapse: the weight of '{name}'", weight, at_least=0.0)
    return {name: float(given.get(name, 1.0)) for name in latent}
