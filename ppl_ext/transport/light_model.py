"""A NumPyro model whose likeliest parameters are those of a Schrödinger bridge between two samples."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import constraints

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, check_count, check_positive, described
from ppl_ext.transport.light_bridge import LightSB


def light_sb(*, epsilon: float, num_components: int = 10, batch_size: int | None = None) -> "LightSBModel":
    r"""A NumPyro model whose likeliest parameters are those of the Schrödinger bridge between two samples.

    .. math:: \mathcal{L} = \mathbb{E}_{x \sim p_0} \log c(x) - \mathbb{E}_{y \sim p_1} \log v(y)

    which is the Kullback-Leibler divergence from the bridge to this one, up to a constant. The log density of
    the model is :math:`-\mathcal{L}`; it has no latent sites, so that an empty guide fits it, and nothing is
    simulated. Its arguments are ``starts`` (n, d), a sample of the law at time 0, and ``ends`` (m, d), one of
    the law at time 1; which belongs to which is not known. Its parameters are ``log_weights``, ``centers``
    (some of the ends at first) and ``roots``, and its ``bridge(params)`` is the :class:`LightSB` of them.

    :param epsilon: the variance of the noise per unit of time.
    :param num_components: K, of the mixture.
    :param batch_size: rows of each sample that a step sees, drawn with replacement; all by default.
    :return: the model. It raises :class:`~ppl_ext.errors.ArgumentError` for samples that are no (n, d) of one
        d, or not finite, and for fewer ends than components.
    :raises ArgumentError: for an epsilon that is not above zero, or a number below one.

    >>> import optax
    >>> from ppl_ext.infer import fit
    >>> from ppl_ext.objectives import ELBO
    >>> x = jax.random.normal(jax.random.key(0), (400, 1))
    >>> y = 3.0 + 0.5 * jax.random.normal(jax.random.key(1), (400, 1))
    >>> model = light_sb(epsilon=0.5, num_components=1)
    >>> def no_guide(starts, ends): pass
    >>> found = fit(jax.random.key(2), model, no_guide, ELBO(), optax.adam(0.05), 300, x, y,
    ...             progress_bar=False)
    >>> bridge = model.bridge(found.params)
    >>> bool(abs(bridge.given(x).mean.mean() - y.mean()) < 0.05)
    True

    Source: Korotin, Gushchin, Burnaev 2024, "Light Schrödinger bridge".
    """
    check_positive("light_sb: epsilon", epsilon)
    check_count("light_sb: num_components", num_components)
    if batch_size is not None:
        check_count("light_sb: batch_size", batch_size)
    return LightSBModel(float(epsilon), num_components, batch_size)


@dataclass(frozen=True)
class LightSBModel:
    """What :func:`light_sb` returns: a NumPyro model of ``(starts, ends)``."""

    epsilon: float
    num_components: int
    batch_size: int | None

    def __call__(self, starts: Any, ends: Any) -> None:
        starts, ends = self._checked(starts, ends)
        num, dim = self.num_components, ends.shape[1]

        def some(key):
            return jax.random.choice(key, ends, (num,), replace=False)

        eye = jnp.broadcast_to(jnp.eye(dim), (num, dim, dim))
        bridge = LightSB(
            numpyro.param("log_weights", jnp.zeros(num)),
            numpyro.param("centers", some),
            numpyro.param("roots", eye, constraint=constraints.lower_cholesky),
            self.epsilon,
        )
        numpyro.factor("of_starts", -bridge.log_normalizer(self._batch(starts)).mean())
        numpyro.factor("of_ends", bridge.log_potential(self._batch(ends)).mean())

    def _batch(self, rows: jax.Array) -> jax.Array:
        """Some rows, with replacement, which for large samples is much faster than a plate's without."""
        if self.batch_size is None:
            return rows
        return rows[jax.random.randint(numpyro.prng_key(), (self.batch_size,), 0, len(rows))]

    def bridge(self, params: dict[str, Any], chain: int | None = None) -> LightSB:
        """The bridge with these parameters, of NumPyro's ``SVI`` or of :func:`~ppl_ext.infer.fit`.

        :param chain: which, where a fit had several.
        :raises ArgumentError: if a parameter is missing, or the chain is.
        """
        arrays = {}
        for name, ndim in (("log_weights", 1), ("centers", 2), ("roots", 3)):
            value = params.get(name)
            if value is None or jnp.ndim(value) not in (ndim, ndim + 1):
                raise ArgumentError(
                    f"light_sb: params must be those of this model, with '{name}' of {ndim} axes, got "
                    f"{described(value)}."
                )
            if jnp.ndim(value) == ndim:
                value = value[None]
            if not (len(value) == 1 if chain is None else 0 <= chain < len(value)):
                raise ArgumentError(
                    f"light_sb: chain must be one of {len(value)}, from 0 to {len(value) - 1}, got {chain}."
                )
            arrays[name] = jnp.asarray(value[chain or 0])
        return LightSB(**arrays, epsilon=self.epsilon)

    def _checked(self, starts: Any, ends: Any) -> tuple[jax.Array, jax.Array]:
        starts, ends = _sample("light_sb: starts", starts), _sample("light_sb: ends", ends)
        if starts.shape[1] != ends.shape[1]:
            raise ArgumentError(
                f"light_sb: starts and ends must be of one dimension, got {starts.shape[1]} and "
                f"{ends.shape[1]}."
            )
        if len(ends) < self.num_components:
            raise ArgumentError(
                f"light_sb: ends must have {self.num_components} rows or more, as many as components, got "
                f"{len(ends)}. Say a smaller num_components."
            )
        return starts, ends


def _sample(where: str, x: Any) -> jax.Array:
    check_array(where, x)
    if np.ndim(x) != 2 or not np.size(x):
        raise ArgumentError(f"{where} must be a sample (n, d), got {described(x)}.")
    known = None if isinstance(x, jax.core.Tracer) else np.isfinite(np.asarray(x, float)).all(1)
    if known is not None and not known.all():
        raise ArgumentError(f"{where} must be finite; row {int(np.argmin(known))} is not. Leave it out.")
    return jnp.asarray(x, float)
