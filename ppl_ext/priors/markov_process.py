"""A stationary Gaussian process over time, as a scan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask
from tinygp.kernels.quasisep import Quasisep

from ppl_ext.errors import ArgumentTypeError
from ppl_ext.priors.times import as_times, check_name, check_one_each, check_order
from ppl_ext.runtime.arguments import check_function, described


def markov(
    name: str,
    kernel: Quasisep | Sequence[Quasisep],
    times: Any,
    observe: Callable[[Any, Any], Any],
    data: Any = None,
    *,
    also_at: Any = None,
) -> Any:
    r"""A Gaussian process at n times, written as a ``scan`` over its state, in O(n).

    .. math:: x_i \sim \mathcal{N}(A_i x_{i-1}, P - A_i P A_i^\top), \qquad A_i = e^{F (t_i - t_{i-1})},
        \qquad f(t_i) = h^\top x_i

    A kernel with a state-space form (Matérn 1/2, 3/2 and 5/2, ``SHO``, ``Celerite``, ``Cosine``, their sums
    and products) is a linear stochastic equation dx = F x dt + L dw with stationary covariance P. So any
    model with it is a state-space model: :class:`~ppl_ext.algorithms.ExactFilter` and
    ``smooth(backward="exact")`` give the evidence and the posterior of Gaussian data exactly, particle
    methods and every objective those of others.

    Call it within a model. The states are the site ``<name>_state``, (n, D); f is the deterministic site
    ``name``. Where two times coincide f is the same but for rounding, 1e-7 of its scale in float64.

    :param kernel: of ``tinygp.kernels.quasisep``; its parameters may be sites of the model. Or several: f is
        then a vector of independent processes, which ``observe`` may mix.
    :param times: (n,), not decreasing.
    :param observe: ``observe(f, data_t)``, the sample statements of one time, given f there: a number, or
        (len(kernel),).
    :param data: an array (n, ...) or a tree of them, or None.
    :param also_at: other times (m,), in any order, where f is wanted and nothing observed.
    :return: f, (n,) or (n, len(kernel)); with ``also_at``, the pair of that and f there.
    :raises ArgumentTypeError: for a kernel without a state-space form.
    :raises ArgumentError: for times that decrease, or data of another length; the message names the site.

    >>> import ppl_ext
    >>> from ppl_ext.algorithms import ExactFilter
    >>> from tinygp.kernels.quasisep import Matern32
    >>> def model(t, y):
    ...     scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    ...     def observe(f, y_t):
    ...         numpyro.sample("y", dist.Normal(f, 0.3), obs=y_t)
    ...     markov("f", Matern32(scale=scale), t, observe, y)
    >>> of_scale = ppl_ext.marginal(model, ["scale"], ExactFilter())  # states integrated out
    >>> t, y = jnp.array([0.0, 0.1, 0.5]), jnp.array([0.2, 0.1, -0.4])
    >>> round(float(ppl_ext.log_density(of_scale, {"scale": 1.0}, t, y)), 3)
    -2.797

    Sources: Hartikainen and Särkkä 2010, "Kalman filtering and smoothing solutions to temporal Gaussian
    process regression models"; Foreman-Mackey et al. 2017 for ``Celerite`` and ``SHO``.
    """
    check_name("markov", name)
    kernels = _checked(name, kernel)
    check_function(f"markov '{name}': observe", observe)
    times = as_times(f"markov '{name}'", "times", times)
    check_order(f"markov '{name}'", times)
    n = len(times)
    check_one_each(f"markov '{name}'", data, n)
    seen = None
    if also_at is not None:
        others = as_times(f"markov '{name}'", "also_at", also_at)
        order = jnp.argsort(jnp.concatenate([times, others]), stable=True)
        times, seen = jnp.concatenate([times, others])[order], order < n
        # what is not observed needs a value all the same: one that the law can have
        data = jax.tree.map(lambda x: jnp.asarray(x)[jnp.where(order < n, order, 0)], data)
    f = _scanned(name, kernels, times, observe, data, seen, single=isinstance(kernel, Quasisep))
    if also_at is None:
        return f
    f = jnp.zeros_like(f).at[order].set(f)
    return f[:n], f[n:]


def _scanned(name, kernels, times, observe, data, seen, single: bool):
    parts = [_transitions(times, k) for k in kernels]
    slope, noise, readout = (_beside([p[i] for p in parts]) for i in range(3))

    def step(state, inputs):
        slope, noise, readout, now, is_seen = inputs
        law = dist.MultivariateNormal(slope @ state, noise)
        state = numpyro.sample(f"{name}_state", law)
        f = numpyro.deterministic(name, (readout @ state)[0] if single else readout @ state)
        if is_seen is None:
            observe(f, now)
        else:
            with mask(mask=is_seen):
                observe(f, now)
        return state, f

    _, f = scan(step, jnp.zeros(noise.shape[-1], noise.dtype), (slope, noise, readout, data, seen))
    return f


def _transitions(times: jax.Array, kernel: Quasisep) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A and the noise's covariance, (n, D, D), and the readout (n, 1, D)."""
    spread = _dense(kernel.stationary_covariance())
    before = jnp.concatenate([times[:1], times[:-1]])
    slope = jax.vmap(lambda s, t: _dense(kernel.transition_matrix(s, t)).T)(before, times)
    slope = slope.at[0].set(0.0)  # the first is the stationary law, whatever was before
    noise = spread - slope @ spread @ jnp.swapaxes(slope, 1, 2)
    little = 8.0 * jnp.finfo(noise.dtype).eps * jnp.diag(jnp.diagonal(spread))
    return (
        slope,
        0.5 * (noise + jnp.swapaxes(noise, 1, 2)) + little,
        jax.vmap(lambda t: kernel.observation_model(t)[None])(times),
    )


def _beside(parts: Sequence[jax.Array]) -> jax.Array:
    """Matrices (n, ...) as the blocks of one, (n, ...)."""
    if len(parts) == 1:
        return parts[0]
    return jax.vmap(lambda *blocks: jax.scipy.linalg.block_diag(*blocks))(*parts)


def _dense(x: Any) -> jax.Array:
    return x.to_dense() if hasattr(x, "to_dense") else jnp.asarray(x)


def _checked(name: str, kernel: Any) -> tuple[Quasisep, ...]:
    kernels = (kernel,) if isinstance(kernel, Quasisep) else kernel
    if isinstance(kernels, list | tuple) and kernels and all(isinstance(k, Quasisep) for k in kernels):
        return tuple(kernels)
    raise ArgumentTypeError(
        f"markov '{name}': kernel must have a state-space form, as those of tinygp.kernels.quasisep, or be a "
        f"sequence of such; got {described(kernel)}. Of other kernels take a GaussianProcess, whose cost "
        "grows with the cube of the times."
    )
