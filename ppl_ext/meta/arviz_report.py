"""A fitted hierarchy, and adapted episodes, as ArviZ reports with an ``episode`` axis."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.diagnostics.likelihood import Terms as Likelihood
from ppl_ext.diagnostics.report.arviz_export import ESTIMATES, arviz_version, build_report
from ppl_ext.diagnostics.report.run_record import name_of, versions
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.meta.distributions.low_rank import LowRank
from ppl_ext.meta.groups import Part, parts
from ppl_ext.meta.hierarchy import Hierarchy
from ppl_ext.meta.solvers.local import Gaussian
from ppl_ext.meta.streams.arriving import finite_stream
from ppl_ext.runtime.arguments import check_count, check_key, described
from ppl_ext.runtime.results import NUM_SAMPLES


def fit_to_arviz(
    fit: Any,
    episodes: Any,
    rng_key: jax.Array | None = None,
    num_samples: int = NUM_SAMPLES,
    labels: Sequence[Any] | None = None,
    scores: Any = None,
) -> Any:
    """The report of a fit over episodes: local sites by ``episode``, draws of the shared law, log likelihood
    by episode.

    ``posterior``: local sites (chain, draw, episode, ...) from each episode's q, ``mean`` and ``covariance``
    (or ``variance``) from q(μ, Σ), independent of those by construction, and shared latent sites and params,
    the same in every draw. ``log_likelihood``: of each episode given its own sites, as one term.
    ``vi_trace``: the bound by step. ``constant_data``: ``scores``, if given.

    :param labels: of the episodes, the subjects' names say; by default 0, 1, ...
    :raises ArgumentError: if there are not as many labels or scores as episodes.
    """
    check_count("to_arviz: num_samples", num_samples)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key("to_arviz: rng_key", rng_key)
    stream = finite_stream("to_arviz", episodes)
    names = np.arange(len(stream)) if labels is None else np.asarray(labels)
    if names.shape != (len(stream),):
        raise ArgumentError(
            f"to_arviz: labels must be one for each of the {len(stream)} episodes, got shape {names.shape}."
        )
    if scores is not None and (not hasattr(scores, "nll") or len(scores.nll) != len(stream)):
        raise ArgumentError(
            f"to_arviz: scores must be what evaluate returned for these {len(stream)} episodes, got "
            f"{described(scores)}."
        )
    of_local, of_globals = jax.random.split(rng_key)
    q = fit.posteriors(stream)
    found = parts(fit.hierarchy, stream, stream.batch(np.arange(len(stream))))
    sites, log_likelihood = jax.device_get(
        _drawn(fit.hierarchy, fit.state.shared, q, found, jax.random.split(of_local, num_samples))
    )
    mean, covariance = fit.niw.sample(of_globals, (num_samples,))
    spread = "variance" if fit.niw.diagonal else "covariance"
    posterior = {name: x[None] for name, x in sites.items()}
    posterior |= {
        _free("mean", posterior): np.asarray(mean)[None],
        _free(spread, posterior): np.asarray(covariance)[None],
    }
    dims = {name: ["episode"] for name in sites}
    for name, value in fit.shared.items():
        for path, x in jax.tree_util.tree_flatten_with_path(value)[0]:
            x = np.asarray(x)
            posterior[name + jax.tree_util.keystr(path)] = np.broadcast_to(x, (1, num_samples, *x.shape))
    groups: dict[str, Any] = {"posterior": posterior, "vi_trace": {"loss": fit.losses[None]}}
    if scores is not None:
        groups["constant_data"] = scores.by_name()
        dims |= {name: ["episode"] for name in scores.by_name()}
    terms = {
        "episodes": Likelihood(
            log_likelihood[None], np.zeros(len(stream), bool), ("episodes",), ("episode",), False
        )
    }
    attrs = {
        "model": name_of(fit.hierarchy.form.model),
        "local_solver": repr(fit.solver),
        "num_steps": int(fit.losses.size),
        "run_seconds": fit.run_seconds,
        "mean_precision": float(fit.niw.mean_precision),
        "df": float(fit.niw.df),
        **versions(),
        "arviz_version": arviz_version(),
    }
    return build_report(groups, terms=terms, dims=dims, coords={"episode": names}, attrs=attrs)


def adapted_to_arviz(posteriors: Mapping[Any, Any]) -> Any:
    """The report of new episodes by label: local sites (chain, draw, episode, ...).

    :raises ArgumentError: if they have not as many draws each.
    :param posteriors: by label of the episode, what :meth:`MetaFit.adapt` returned; all with the same sites
        and as many draws.
    :raises ArgumentTypeError: if it is no such dict.

    >>> from ppl_ext.meta.adapt import Adapted
    >>> # in the place of fit.adapt(key, ...)
    >>> draws = {name: np.full(50, level) for name, level in (("ann", 1.0), ("bob", 2.0))}
    >>> episodes = {name: Adapted({"level": x}, x[:, None], None, {}) for name, x in draws.items()}
    >>> report = adapted_to_arviz(episodes)
    >>> report.posterior["level"].dims, report.posterior["level"].mean(("chain", "draw")).values.tolist()
    (('chain', 'draw', 'episode'), [1.0, 2.0])
    """
    if not isinstance(posteriors, Mapping):
        raise ArgumentTypeError(
            "adapted_to_arviz: posteriors must be a dict from labels to adapted posteriors, got "
            f"{described(posteriors)}."
        )
    if not posteriors:
        raise ArgumentError("adapted_to_arviz: there is no posterior.")
    for label, post in posteriors.items():
        if not (hasattr(post, "samples") and hasattr(post, "theta")):
            raise ArgumentTypeError(
                f"adapted_to_arviz: '{label}' must be what adapt returned, got {described(post)}."
            )
    if len({len(p.theta) for p in posteriors.values()}) > 1:
        raise ArgumentError(
            f"adapted_to_arviz: numbers of draws differ: {[len(p.theta) for p in posteriors.values()]}."
        )
    every = list(posteriors.values())
    if any(set(p.samples) != set(every[0].samples) for p in every):
        raise ArgumentError(
            f"adapted_to_arviz: the posteriors have different sites: {[sorted(p.samples) for p in every]}."
        )
    stacked = {
        name: np.stack([np.asarray(p.samples[name]) for p in every], axis=1)[None]
        for name in every[0].samples
    }
    labels = np.array([k if isinstance(k, int | float | str) else str(k) for k in posteriors])
    attrs = {**versions(), "arviz_version": arviz_version()}
    return build_report(
        {"posterior": stacked},
        dims={n: ["episode"] for n in stacked},
        coords={"episode": labels},
        attrs=attrs,
    )


def kinds_to_arviz(kinds: Any, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES) -> Any:
    """The report of kinds of episode: see :meth:`ppl_ext.meta.Kinds.to_arviz`."""
    check_count("to_arviz: num_samples", num_samples)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    check_key("to_arviz: rng_key", rng_key)
    of_shares, *of_laws = jax.random.split(rng_key, 1 + len(kinds.laws))
    drawn = [law.sample(key, (num_samples,)) for law, key in zip(kinds.laws, of_laws, strict=True)]
    means, covariances = (np.stack([np.asarray(pair[i]) for pair in drawn], axis=1) for i in (0, 1))
    shares = np.asarray(jax.random.dirichlet(of_shares, kinds.concentration, (num_samples,)))
    return build_report(
        {
            "posterior": {"share": shares[None], "mean": means[None], "covariance": covariances[None]},
            "vi_trace": {"loss": kinds.losses[None]},
            ESTIMATES: {"memberships": kinds.memberships},
        },
        dims={
            "share": ["kind"],
            "mean": ["kind", "theta"],
            "covariance": ["kind", "theta", "theta_bis"],
            "memberships": ["episode", "kind"],
        },
        attrs={"num_kinds": len(kinds.laws), **versions(), "arviz_version": arviz_version()},
    )


def scores_to_arviz(scores: Any) -> Any:
    """The report of scores: see :meth:`ppl_ext.meta.Scores.to_arviz`."""
    by_episode = scores.by_name()
    by_row = {name: getattr(scores, name) for name in ("pit", "confidence", "correct")}
    by_row = {name: parts for name, parts in by_row.items() if parts}
    rows = {name: np.concatenate([np.ravel(x) for x in parts]) for name, parts in by_row.items()}
    if rows:
        lengths = [np.size(x) for x in next(iter(by_row.values()))]
        rows["of_episode"] = np.repeat(np.arange(len(lengths)), lengths)
    return build_report(
        {ESTIMATES: {**by_episode, **rows}},
        dims={**{name: ["episode"] for name in by_episode}, **{name: ["row"] for name in rows}},
        attrs={"level": scores.level, **versions(), "arviz_version": arviz_version()},
    )


def _free(name: str, taken: Mapping[str, Any]) -> str:
    return f"hierarchy_{name}" if name in taken else name


@eqx.filter_jit
def _drawn(
    h: Hierarchy, shared, q: Gaussian, found: list[Part], keys: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Local sites and log likelihoods, draw by draw: (draw, episode, ...)."""

    def spread(covariance, noise):
        if isinstance(covariance, LowRank):
            return covariance.spread(noise[None])[0]
        return (
            noise * jnp.sqrt(covariance) if covariance.ndim == 1 else jnp.linalg.cholesky(covariance) @ noise
        )

    def draw(key):
        noise = jax.random.normal(key, q.mean.shape, q.mean.dtype)
        theta = q.mean + jax.vmap(spread)(q.covariance, noise)
        each = []
        for places, batch in found:
            one = jax.vmap(lambda t, args, length: h.loss(shared, args, length)(t))
            each.append(one(theta[places], batch.args, batch.lengths))
        back = jnp.argsort(jnp.concatenate([jnp.asarray(places) for places, _ in found]))
        return jax.vmap(h.form.values)(theta), -jnp.concatenate(each)[back]

    return jax.lax.map(draw, keys)
