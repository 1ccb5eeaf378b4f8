"""How much each row of a data set can move a fit: scores by which to take rows."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import log_prob
from ppl_ext.densities.recording import listed
from ppl_ext.designs.orthonormal import orthonormal
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.runtime.arguments import check_call, check_number, check_program, check_values, described


def leverage(features: Any) -> jax.Array:
    r"""Leverage of rows: the largest share that one of them can have in a sum of squares.

    .. math:: s_i = a_i^\top (A^\top A)^{-1} a_i = \max_x \frac{(a_i^\top x)^2}{\|A x\|^2}

    They sum to the number of features.

    :param features: A, (n, d), of full rank.
    :return: (n,).
    :raises ArgumentTypeError: for features that are no array of numbers.
    :raises ArgumentError: for features without full rank, or with fewer rows than columns.

    >>> [round(float(s), 4) for s in leverage([[1.0], [1.0], [2.0]])]
    [0.1667, 0.1667, 0.6667]

    Source: Woodruff and Yasuda 2023, "Sharper bounds for ℓp sensitivity sampling".
    """
    basis, _ = orthonormal("leverage", features, None)
    return (basis**2).sum(1)


def lewis(features: Any, p: float) -> jax.Array:
    r"""Lewis weights of rows: leverage for sums of powers other than two, as of absolute errors (p = 1).

    .. math:: w_i = \big(a_i^\top (A^\top W^{1 - 2/p} A)^{-1} a_i\big)^{p/2}, \qquad W = \mathrm{diag}(w)

    They are the leverages of :math:`W^{1/2 - 1/p} A`, and sum to the number of features too. The equation is
    iterated as it stands for p below 2; above, where that need not converge, its power 2/p is.

    :param features: A, (n, d), of full rank.
    :param p: above 0.
    :return: (n,).
    :raises ArgumentTypeError: for features that are no array of numbers.
    :raises ArgumentError: for features without full rank, values that are traced, p not above 0, or one for
        which the iteration does not settle.

    >>> [round(float(w), 4) for w in lewis([[1.0], [1.0], [2.0]], p=1.0)]
    [0.25, 0.25, 0.5]

    Source: Cohen and Peng 2015, "ℓp row sampling by Lewis weights".
    """
    check_number("lewis: p", p)
    if not 0 < p < np.inf:
        raise ArgumentError(f"lewis: p must be above 0 and finite, got {described(p)}.")
    basis, _ = orthonormal("lewis", features, None)
    if isinstance(basis, jax.core.Tracer):
        raise ArgumentError("lewis: the weights are iterated until they settle, and the features are traced.")
    rows = np.asarray(basis, np.float64)
    there = (rows != 0).any(1)  # a row of zeros weighs nothing
    rows = rows[there]
    w = np.full(len(rows), rows.shape[1] / len(rows))
    with np.errstate(all="ignore"):  # weights that vanish do not settle
        for _ in range(5000):
            before = w
            gram = rows.T @ (w[:, None] ** (1 - 2 / p) * rows)
            quadratic = np.einsum("ij,ji->i", rows, np.linalg.solve(gram, rows.T))
            w = quadratic ** (p / 2) if p < 2 else w ** (1 - 2 / p) * quadratic
            if np.abs(np.log(w / before)).max() < 1e-9:
                full = np.zeros(len(there))
                full[there] = w
                return jnp.asarray(full, float)
    raise ArgumentError(f"lewis: the weights do not settle for p={p:g}. Take a p nearer to 2.")


def gradient_scores(
    model: Callable, plate: str, at: Mapping[str, Any], *args: Any, **kwargs: Any
) -> jax.Array:
    r"""How far leaving out a row moves the mode of a model, in the posterior's own measure.

    .. math:: s_i = J_i^\top H^{-1} J_i, \qquad J_i = \nabla_u \log p(y_i \mid u), \qquad
        H = -\nabla_u^2 \log p(u \mid y)

    with unconstrained latent values u. The first order of what happens at the mode without row i is a shift
    by :math:`-H^{-1} J_i`, whose squared length under H this is. For a linear model with normal noise it is
    the leverage times the squared residual, so rows that fit well at the mode score little whatever their
    leverage: mix in a uniform part, or take leverage.

    :param model: a NumPyro model with continuous latent sites, none of them in the plate.
    :param plate: the name of the plate of rows, subsampled or not; it is run on all of its rows.
    :param at: the mode, or near it: a value of every latent site by name, constrained.
    :param args: arguments of the model, as are ``kwargs``.
    :return: (n,).
    :raises ModelError: if the plate or a value is not there, no observed site lies in the plate, or a latent
        site is discrete.
    :raises ArgumentError: if H is not positive definite at this point.

    >>> import numpyro, numpyro.distributions as dist
    >>> def model(x, y):
    ...     b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
    ...     with numpyro.plate("rows", len(x)):
    ...         numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)
    >>> x, y = jnp.array([1.0, 1.0, 2.0]), jnp.array([1.0, 0.0, 0.0])
    >>> scores = gradient_scores(model, "rows", {"b": 1 / 6}, x, y)
    >>> [round(float(s), 4) for s in scores / (y - x / 6) ** 2]  # residuals taken off: leverage
    [0.1667, 0.1667, 0.6667]
    """
    where = f"gradient_scores '{plate}'"
    check_program(f"{where}: model", model)
    check_values(f"{where}: at", at)
    check_call(f"{where}: model", model, args, kwargs)
    if not isinstance(plate, str):
        raise ArgumentTypeError(
            f"gradient_scores: plate must be the name of a plate, got {described(plate)}."
        )
    model = partial(_on_all_rows, seed(model, jax.random.key(0)))
    record = trace(substitute(model, data=dict(at))).get_trace(*args, **kwargs)
    _check_sites(where, plate, record, at)
    u, unravel = ravel_pytree(unconstrain_fn(model, args, kwargs, dict(at)))

    def energy(u):
        return potential_energy(model, args, kwargs, unravel(u))

    def rows(u):
        values = constrain_fn(model, args, kwargs, unravel(u))
        sites = trace(substitute(model, data=values)).get_trace(*args, **kwargs).values()
        return sum(_of_rows(plate, site) for site in sites if site["type"] == "sample" and _held(plate, site))

    gradients, curvature = jax.jacfwd(rows)(u), jax.hessian(energy)(u)
    root = jnp.linalg.cholesky(curvature)
    if not jnp.isfinite(root).all():
        raise ArgumentError(
            f"{where}: the curvature of the log posterior is not negative definite here, so this is no mode. "
            "Pass the mode, as AutoDelta finds it; or take designs.leverage of the features."
        )
    return (solve_triangular(root, gradients.T, lower=True) ** 2).sum(0)


def _check_sites(where: str, plate: str, record: Mapping[str, dict], at: Mapping[str, Any]) -> None:
    plates = [name for name, site in record.items() if site["type"] == "plate"]
    if plate not in plates:
        raise ModelError(f"{where}: the model has no such plate. There are: {listed(plates)}.")
    samples = {name: site for name, site in record.items() if site["type"] == "sample"}
    latent = [name for name, site in samples.items() if not site["is_observed"]]
    if set(latent) != set(at):
        raise ModelError(
            f"{where}: at must hold a value of every latent site, {listed(latent)}, and holds {listed(at)}."
        )
    for name in latent:
        if samples[name]["fn"].support.is_discrete:
            raise ModelError(f"{where}: the latent site '{name}' is discrete and has no gradient.")
        if _held(plate, samples[name]):
            raise ModelError(
                f"{where}: the latent site '{name}' lies in the plate, one value a row. Sum it out first."
            )
    if not any(_held(plate, site) for name, site in samples.items()):
        raise ModelError(f"{where}: no observed site lies in plate '{plate}', so rows have no density.")


def _held(plate: str, site: Mapping[str, Any]) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def _of_rows(plate: str, site: Mapping[str, Any]) -> jax.Array:
    """The log density of each row: (n,)."""
    [frame] = [f for f in site["cond_indep_stack"] if f.name == plate]
    term = log_prob(site["fn"], site["value"])
    scale = site["scale"]
    term = term if scale is None else scale * term
    return jnp.moveaxis(term, frame.dim, 0).reshape(frame.size, -1).sum(1)


def _on_all_rows(model: Callable, *args: Any, **kwargs: Any) -> Any:
    with _AllRows(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's, of values that are not in their support: found below
        return model(*args, **kwargs)


class _AllRows(Messenger):
    def process_message(self, msg):
        if msg["type"] == "plate":
            size, _ = msg["args"]
            # known numbers, so that they index NumPy's arrays too
            with jax.ensure_compile_time_eval():
                msg["args"], msg["value"] = (size, size), jnp.arange(size)
