"""How good the predictions for new episodes are: density, coverage, calibration and accuracy, episode by
episode.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.scipy.special import logsumexp
from numpyro.handlers import block, seed, trace

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.meta.adapt import Nodes, adapted, scale_nodes
from ppl_ext.meta.checks import check_new_episode
from ppl_ext.meta.episode import observed_sites
from ppl_ext.meta.fitted import MetaFit
from ppl_ext.meta.groups import bad_of_stream, parts
from ppl_ext.meta.hierarchy import Hierarchy
from ppl_ext.meta.streams.arriving import finite_stream
from ppl_ext.meta.streams.stream import Batch
from ppl_ext.runtime.arguments import check_array, check_count, check_key, check_number, described
from ppl_ext.runtime.results import Summarised
from ppl_ext.runtime.verdict import Verdict

LEVELS = np.linspace(0.05, 0.95, 19)
"""Levels of central intervals over which calibration of real-valued predictions is taken."""


@dataclass(frozen=True, repr=False)
class Scores(Summarised):
    """How new episodes were predicted, by observed value.

    :param nll: (n,), the mean negative log predictive density of an episode's query rows, in nats.
    :param level: of the central predictive intervals.
    :param pit: by episode, for real or ordered values, the share of predictive draws below each value (ties
        at random); uniform if calibrated. ``None`` for classes.
    :param confidence: by episode, for classes, the probability of the likeliest, and ``correct`` whether it
        was right.

    >>> scores = Scores(np.array([1.2, 0.8]), 0.5, [np.array([0.5, 0.9]), np.array([0.3, 0.6])], None, None)
    >>> scores.coverage.tolist()  # 0.9 lies outside of the central half
    [0.5, 1.0]
    """

    nll: np.ndarray
    level: float
    pit: list[np.ndarray] | None
    confidence: list[np.ndarray] | None
    correct: list[np.ndarray] | None

    @property
    def coverage(self) -> np.ndarray | None:
        """(n,), the share of values in their interval; NaN for an episode without query rows."""
        if self.pit is None:
            return None
        return np.array([np.mean(np.abs(u - 0.5) <= self.level / 2) if u.size else np.nan for u in self.pit])

    @property
    def accuracy(self) -> np.ndarray | None:
        """(n,), the share of right classes."""
        return (
            None if self.correct is None else np.array([c.mean() if c.size else np.nan for c in self.correct])
        )

    @property
    def calibration_error(self) -> np.ndarray:
        """(n,), episode by episode; noisy where an episode has few rows: see
        :attr:`pooled_calibration_error`.
        """
        if self.pit is not None:
            return np.array([interval_error(u) for u in self.pit])
        return np.array(
            [
                expected_calibration_error(p, c)
                for p, c in zip(self.confidence or [], self.correct or [], strict=True)
            ]
        )

    @property
    def pooled_calibration_error(self) -> float:
        """Over the rows of all episodes together: of classes, the expected calibration error; of numbers,
        that of intervals.
        """
        if self.pit is not None:
            return interval_error(np.concatenate(self.pit))
        return expected_calibration_error(
            np.concatenate(self.confidence or []), np.concatenate(self.correct or [])
        )

    def by_name(self) -> dict[str, np.ndarray]:
        """What there is, each (n,)."""
        found = {
            "nll": self.nll,
            "coverage": self.coverage,
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
        }
        return {name: x for name, x in found.items() if x is not None}

    def __repr__(self) -> str:
        means = "".join(f", {n}={np.mean(x):.3g}" for n, x in self.by_name().items())
        return f"Scores(num_episodes={len(self.nll)}{means})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.meta.verdicts import of_scores

        return of_scores(self)

    def summary(self) -> str:
        """Means over episodes with their standard errors."""
        from ppl_ext.meta.summaries import of_scores

        return of_scores(self)

    def to_arviz(self) -> Any:
        """The ArviZ report: ``estimates`` with each score by ``episode``; of numbers ``pit`` and of classes
        ``confidence`` and ``correct``, by ``row``, with the number of the row's episode as ``of_episode``. No
        ``posterior``: ``MetaFit.to_arviz(..., scores=)`` puts scores beside one."""
        from ppl_ext.meta.arviz_report import scores_to_arviz

        return scores_to_arviz(self)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 10) -> float:
    r"""How far confidence and accuracy lie apart, over bins of confidence (Guo et al. 2017, eq. 3):
    :math:`\sum_b \tfrac{n_b}{n}
    |\mathrm{acc}_b - \mathrm{conf}_b|`.

    :param confidence: (n,), between 0 and 1.
    :param correct: (n,), 0 or 1.
    :return: a number; NaN where n = 0.
    :raises ArgumentError: for two different shapes, or fewer bins than 1.

    >>> round(expected_calibration_error(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0])), 6)
    0.1
    """
    check_array("expected_calibration_error: confidence", confidence)
    check_array("expected_calibration_error: correct", correct)
    check_count("expected_calibration_error: num_bins", num_bins)
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise ArgumentError(
            f"expected_calibration_error: shapes must be equal and (n,), got {confidence.shape} and "
            f"{correct.shape}."
        )
    if not confidence.size:
        return float("nan")
    bins = np.clip((confidence * num_bins).astype(int), 0, num_bins - 1)
    gaps = np.bincount(bins, correct - confidence, num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def interval_error(pit: np.ndarray) -> float:
    """How far central intervals' coverage lies from their level, a mean over 19 levels; 0 if calibrated, up
    to noise.
    """
    if not pit.size:
        return float("nan")
    return float(np.mean([abs(np.mean(np.abs(pit - 0.5) <= level / 2) - level) for level in LEVELS]))


def evaluate(
    fit: MetaFit,
    rng_key: jax.Array,
    support: Sequence[Any],
    query: Sequence[Any],
    *,
    prior: str = "student_t",
    level: float = 0.9,
    num_samples: int = 500,
    num_nodes: int = 64,
    batch_size: int = 64,
) -> Scores:
    r"""Adapt to the support of each new episode, and score the predictions for its query rows.

    .. math:: \hat p(y \mid \text{support}) = \tfrac1S \sum_s p(y \mid \theta_s), \qquad \theta_s \sim
        \text{the adapted posterior}

    :param support: episodes, in the form of those trained on.
    :param query: as many, in the same order.
    :param level: of the predictive intervals whose coverage is taken.
    :param num_samples: S.
    :param batch_size: episodes at a time.
    :return: :class:`Scores`. Of several observed sites, the density is that of all, the rest is taken from
        the first.
    :raises ArgumentError: if there are not as many queries as supports, or for options out of range.
    :raises NonFiniteError: naming episode and site.

    >>> import jax, numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import ExactLinearGaussian, lift
    >>> def episode(x, y=None):
    ...     level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(x)):
    ...         numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
    >>> rows = [(np.zeros(2, np.float32), np.full(2, y, np.float32)) for y in (1.0, 2.0, 3.0)]
    >>> fit = lift(episode, ["level"]).untrained(rows, ExactLinearGaussian())  # .fit(key, rows) trains
    >>> scores = evaluate(fit, jax.random.key(0), rows, rows, num_samples=50)
    >>> scores.nll.shape, scores.coverage.shape
    ((3,), (3,))
    """
    check_key("evaluate: rng_key", rng_key)
    if not isinstance(fit, MetaFit):
        raise ArgumentTypeError(f"evaluate: fit must be a MetaFit, got {described(fit)}.")
    for name, value in (("num_samples", num_samples), ("num_nodes", num_nodes), ("batch_size", batch_size)):
        check_count(f"evaluate: {name}", value)
    check_number("evaluate: level", level)
    if not 0 < level < 1 or not isinstance(prior, str) or prior not in ("student_t", "mode"):
        raise ArgumentError(
            f"evaluate: level must lie in (0, 1) and prior be 'student_t' or 'mode', got {described(level)} "
            f"and {described(prior)}."
        )
    known, asked = finite_stream("evaluate: support", support), finite_stream("evaluate: query", query)
    if len(known) != len(asked):
        raise ArgumentError(f"evaluate: there are {len(known)} supports and {len(asked)} queries.")
    h, shared = fit.hierarchy, fit.state.shared
    h.form.unchanged("evaluate")
    for name, stream in (("support", known), ("query", asked)):
        first = next(i for i, n in enumerate(stream.lengths) if n)
        check_new_episode(f"evaluate: {name}", h.form, shared, stream[first], {}, h.like)
    nodes = scale_nodes(fit.niw, num_nodes, rng_key) if prior == "student_t" else None
    each: list[Any] = [None] * len(known)
    for start in range(0, len(known), batch_size):
        index = np.arange(start, min(start + batch_size, len(known)))
        pair = [s.batch(index, int(s.lengths.max()) if any(s.ragged) else None) for s in (known, asked)]
        for stream, batch in zip((known, asked), pair, strict=True):
            if (why := bad_of_stream(h, shared, stream, batch, fit.niw.loc)) is not None:
                raise NonFiniteError(f"evaluate: {why}")
        keys = jax.random.split(jax.random.fold_in(rng_key, start), len(index))
        for places, support_part, query_part in _pairs(h, (known, asked), pair):
            found = jax.device_get(
                _scored(h, fit.state, fit.solver, support_part, query_part, keys[places], nodes, num_samples)
            )
            for i, place in enumerate(places):
                each[start + place] = jax.tree.map(lambda x, i=i: x[i], found)
    nll = np.array([-np.mean(p["log_prob"][p["real"]]) if p["real"].any() else np.nan for p in each])
    classes = "probs" in each[0]
    if not classes:
        return Scores(nll, level, [p["pit"][p["real"]] for p in each], None, None)
    chosen = [(p["probs"][p["real"]], p["value"][p["real"]]) for p in each]
    return Scores(nll, level, None, [q.max(-1) for q, _ in chosen], [q.argmax(-1) == y for q, y in chosen])


def _pairs(h: Hierarchy, streams: tuple, pair: list[Batch]) -> Iterator[tuple[np.ndarray, Batch, Batch]]:
    """Supports and queries that are run together, and their places in the batch: where nothing is padded,
    those alike in both lengths.
    """
    for of_support in parts(h, streams[0], pair[0]):
        for of_query in parts(h, streams[1], pair[1]):
            places, i, j = np.intersect1d(of_support.places, of_query.places, return_indices=True)
            if len(places):
                yield (
                    places,
                    jax.tree.map(lambda x, i=i: x[i], of_support.batch),
                    jax.tree.map(lambda x, j=j: x[j], of_query.batch),
                )


@eqx.filter_jit
def _scored(
    h: Hierarchy, state, solver, known: Batch, asked: Batch, keys, nodes: Nodes | None, num_samples: int
) -> dict[str, jax.Array]:
    def one(support, num_known, query, num_asked, key):
        of_fit, of_draws, of_values, of_ties = jax.random.split(key, 4)
        law = adapted(h.loss(state.shared, support, num_known), state.niw, solver, of_fit, nodes, num_known)
        theta = law.draw(of_draws, num_samples)
        each = jax.vmap(lambda t, k: predicted(h, state.shared, t, query, num_asked, k))(
            theta, jax.random.split(of_values, num_samples)
        )
        real, value = each.pop("real")[0], each.pop("value")[0]
        out = {
            "real": real,
            "value": value,
            "log_prob": logsumexp(each["log_prob"], axis=0) - jnp.log(num_samples),
        }
        if "probs" in each:
            return out | {"probs": each["probs"].mean(0)}
        below, ties = (each["draw"] < value).mean(0), (each["draw"] == value).mean(0)
        return out | {"pit": below + ties * jax.random.uniform(of_ties, value.shape)}

    return jax.vmap(one)(known.args, known.lengths, asked.args, asked.lengths, keys)


def predicted(
    h: Hierarchy, shared: Mapping[str, Any], theta: jax.Array, args: tuple, length: jax.Array, key: jax.Array
) -> dict[str, Any]:
    """What one θ says of the observed values, flat over elements: log densities, a draw or the classes'
    probabilities, which are real.
    """
    form = h.form
    of_run, of_draw = jax.random.split(key)
    program = form.given(form.values(theta) | form.shared_values(shared), shared)
    with numpyro.validation_enabled(False), block():
        sites = observed_sites(trace(seed(program, of_run)).get_trace(*args))
    sites = {n: s for n, s in sites.items() if type(s["fn"]).__name__ != "Unit"}
    if not sites:
        raise ArgumentError(
            "evaluate: the episode model observes no values, only factors; there is nothing to predict."
        )
    out: dict[str, Any] = {}
    for site in sites.values():
        fn, value = site["fn"], jnp.asarray(site["value"])
        log_prob = fn.log_prob(value)
        real = jnp.broadcast_to(jnp.asarray(bool(h.row_plates)) | (length > 0), log_prob.shape)
        for frame in site["cond_indep_stack"]:
            if frame.name in h.row_plates:
                real &= (jnp.arange(frame.size) < length).reshape((-1,) + (1,) * (-frame.dim - 1))
        if out:
            if log_prob.shape == out["shape"]:
                out["log_prob"] += log_prob.ravel()
            continue
        out = {"shape": log_prob.shape, "log_prob": log_prob.ravel(), "real": real.ravel(), "value": value}
        if fn.event_dim:
            raise ArgumentError(
                "evaluate: the first observed site has vectors as values; put its elements into a plate, "
                "without to_event."
            )
        if fn.is_discrete and fn.has_enumerate_support:
            support = fn.enumerate_support(expand=False)
            out["probs"] = jnp.exp(jax.vmap(fn.log_prob)(support)).reshape(support.shape[0], -1).T
        else:
            out["draw"] = jnp.broadcast_to(fn.sample(of_draw), log_prob.shape).ravel()
        out["value"] = jnp.broadcast_to(value, log_prob.shape).ravel()
    out.pop("shape")
    return out
