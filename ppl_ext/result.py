"""What every inference returns, one ArviZ report for all of them, and predictions from any."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC
from numpyro.infer.svi import SVIRunResult

from ppl_ext.diagnostics.draws import Draws, guide_sampler
from ppl_ext.diagnostics.report.options import check_report_options, check_run_options
from ppl_ext.diagnostics.report.run_record import (
    RunRecord,
    name_of,
    objective_name,
    run_of_mcmc,
    seed_numbers,
)
from ppl_ext.diagnostics.report.summary import importance, sentences, table
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.runtime.arguments import check_call, check_count, check_key, described
from ppl_ext.runtime.constants import odd_data_blamed
from ppl_ext.runtime.explain import explained
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.results import NUM_SAMPLES, as_html
from ppl_ext.runtime.verdict import Verdict, judged


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A fitted guide: what :func:`ppl_ext.infer.fit` returns. Chains are independent restarts.

    :param params: by ``param`` site, constrained values; every leaf is (chain, ...).
    :param losses: (chain, step), what was minimised, in nats.
    :param args: arguments of model and guide, as are ``kwargs``. Where a plate was subsampled by passing
        minibatches, put the whole data here before asking for draws:
        ``dataclasses.replace(result, args=(data,))``.
    :param rng_key: the key of the run; draws use keys folded from it unless given their own.
    :param stop_reason: why the run ended.
    :param outside: what model and guide read from outside of their arguments while they were fitted; a report
        of other data is refused.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> guide = AutoNormal(model)
    >>> svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    >>> run = svi.run(jax.random.key(0), 300, 2.0, progress_bar=False)
    >>> params = jax.tree.map(lambda x: x[None], run.params)
    >>> result = Fit(params, run.losses[None], model, guide, Trace_ELBO(), (2.0,), rng_key=jax.random.key(0))
    >>> draws = result.sample(num_samples=500)
    >>> draws.values["mu"].shape, bool(abs(draws.values["mu"].mean() - 1.0) < 0.2)
    ((1, 500), True)
    """

    params: dict[str, Any]
    losses: np.ndarray
    model: Callable
    guide: Callable
    objective: Any
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    rng_key: jax.Array | None = None
    num_steps: int | None = None
    compile_seconds: float | None = None
    run_seconds: float | None = None
    stop_reason: str = "completed"
    outside: Outside | None = None
    refiner: ClassVar[Callable | None] = None  # what runs SMC stands above, and sets it
    mover: ClassVar[Callable] = lambda fit, draws: []  # likewise, what runs short chains from draws

    @property
    def num_chains(self) -> int:
        return np.shape(self.losses)[0]

    def __repr__(self) -> str:
        return (
            f"Fit({objective_name(self.objective)}, {name_of(self.guide)}, num_chains={self.num_chains}, "
            f"num_steps={self._steps}, stop_reason={self.stop_reason!r})"
        )

    def _repr_html_(self) -> str:
        # A look must not cost draws and their compilation: print_summary does.
        from ppl_ext.diagnostics.report.estimates import losses_in_words

        return as_html(f"{self!r}\n{losses_in_words(np.asarray(self.losses))}")

    @property
    def skipped(self) -> np.ndarray:
        """How many steps of each chain were left out since they were not finite: with ``stable_update=True``;
        of a run that broke down, all that it did not take."""
        return np.isnan(np.asarray(self.losses)).sum(1)

    @property
    def _steps(self) -> int:
        return np.shape(self.losses)[1] if self.num_steps is None else self.num_steps

    def _key(self, rng_key: jax.Array | None) -> jax.Array:
        if rng_key is not None:
            return rng_key
        # Away from the keys of the run itself, which are splits of its key.
        return jax.random.fold_in(jax.random.key(0) if self.rng_key is None else self.rng_key, 0x5A)

    def sample(self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES) -> Draws:
        r"""Draw from the guide, on the full plates, and weigh each draw against the model.

        .. math:: z \sim q, \qquad \log w = \log p(y, z) - \log q(z)

        Subsampled plates are evaluated on all of their indices by guide and model, so that all draws are
        scored on the same data. Finite sites that the guide leaves to the model are summed out of p.
        ``AutoLaplaceApproximation`` is drawn from, and scored as, its normal distribution rather than the
        point it is fitted with.

        :param num_samples: draws per chain.
        :return: :class:`~ppl_ext.diagnostics.draws.Draws`: ``values`` by site (chain, draw, ...),
            constrained, the model's deterministic sites among them; ``log_p``, ``log_q`` and ``log_weights``
            (chain, draw) in nats.
        :raises ModelError: if guide or model cannot run on the full plates, or their sites do not match.
        :raises ModelError: if data that model or guide read from outside have changed since the fit, naming
            what.
        :raises HandlerError: if a handler is open around the call.
        """
        check_count("sample: num_samples", num_samples)
        if rng_key is not None:
            check_key("sample: rng_key", rng_key)
        refuse_open_handlers("sample")
        if self.outside is not None:
            self.outside.check("sample", self.model, self.guide)
        return self._sampler(self._key(rng_key), int(num_samples))

    @cached_property
    def _sampler(self) -> Callable[[jax.Array, int], Draws]:
        # Compiled by the first call; the summary, the report and the file need no second compilation.
        for name, program in (("model", self.model), ("guide", self.guide)):
            check_call(f"sample: {name}", program, self.args, self.kwargs)
        mirrored = (
            None
            if hasattr(self.objective, "initial_state")
            else "this result was not made by one of them, or does not say so"
        )
        return guide_sampler(
            self.model, self.guide, self.params, self.num_chains, self.args, self.kwargs, mirrored
        )

    def to_arviz(
        self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES, **options: Any
    ) -> Any:
        """The ArviZ report of this fit; ``options`` are those of :func:`to_arviz`."""
        return to_arviz(self, rng_key=rng_key, num_samples=num_samples, **options)

    def print_summary(self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES) -> None:
        """Print the posterior, R-hat between restarts, and whether to believe it: ELBO ± standard error,
        Pareto k, importance ESS and a verdict in words."""
        draws = self.sample(rng_key, num_samples)
        print(table(draws.values))
        print(
            f"\n{objective_name(self.objective)} with {name_of(self.guide)}, {self._steps} steps, "
            f"{self.stop_reason}."
        )
        if (skipped := self.skipped).any():
            lost = ", ".join(f"chain {c}: {n}" for c, n in enumerate(skipped) if n)
            print(
                f"Not finite, and left out: {lost} of {np.shape(self.losses)[1]} steps. More than a few say "
                "that a density is wrong."
            )
        print(sentences(draws, importance(draws)))
        print(self._judge(draws))

    def verdict(self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES) -> Verdict:
        """Whether to believe the fit, with reasons: see :func:`ppl_ext.diagnostics.verdict`. More draws a
        chain can settle what is doubtful. Where the weights of the draws do not say good, short chains start
        from some of them: some four hundred gradients of each of 1024, and compiling them. If nothing moves,
        200 particles from the prior are asked whether all restarts missed most of the evidence.
        """
        return self._judge(self.sample(rng_key, num_samples))

    def _judge(self, draws: Draws) -> Verdict:
        from ppl_ext.diagnostics.verdicts.slices import reasons_of_slices, separate
        from ppl_ext.diagnostics.verdicts.weights import reasons_of_fit

        found = judged(reasons_of_fit(draws, self.losses, lambda: Fit.mover(self, draws)))
        if found.level in ("good", "unknown") or not draws.slices:
            return found
        draw = {n: x[0, 0] for n, x in draws.values.items()}
        params = jax.tree.map(lambda x: x[0], dict(self.params))
        alone = partial(separate, self.model, draw=draw, args=self.args, kwargs=self.kwargs, params=params)
        return judged([*found.reasons, *reasons_of_slices(draws.slices, alone)])

    def refined(self, rng_key: jax.Array, algorithm: Any, **options: Any) -> Any:
        r"""Take the guide's draws on to the posterior by tempered Monte Carlo, and the prior's beside them.

        .. math:: \pi_\tau(z) \propto q(z)^{1 - \tau}\, p(y, z)^\tau, \qquad 0 \le \tau \le 1

        The guide is where it starts, and no more than that: particles are weighed, resampled and moved until
        they follow the posterior. Of several chains the one with the lowest loss at its end is taken.

        No path from a guide finds a peak or a tail that it has no draws of, so a second run starts from the
        prior, :math:`q = p(z)`. Both estimate the same evidence, and what a run misses is missing there. The
        guide's run is returned if its evidence is the larger by more than two standard deviations, the
        prior's otherwise, with the other as ``beside``; the verdict is good only where both agree.

        :param algorithm: a :class:`~ppl_ext.algorithms.TemperedSMC`, ``TemperedSMC(1000)`` or
            ``TemperedSMC(1000, moves=NUTS)``.
        :param options: ``from_prior=False`` leaves the second run out, as happens by itself where the prior
            is improper; and ``progress_bar``, ``checkpoint`` (the second run's file ends in ``.prior``) and
            ``unbiased`` of :class:`~ppl_ext.infer.SMC`.
        :return: :class:`~ppl_ext.infer.SMCResult`: draws, the evidence and a verdict of its own.
        :raises ArgumentError: if the algorithm has a start of its own.
        :raises ModelError: as :class:`~ppl_ext.algorithms.TemperedSMC`.

        Source: Neal 2001, § 2, for the bridge.
        """
        if Fit.refiner is None:
            raise ArgumentError("refined: import ppl_ext.infer first, which runs tempered Monte Carlo.")
        return Fit.refiner(self, rng_key, algorithm, **options)

    def save(
        self, path: str | os.PathLike, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES
    ) -> Path:
        """Write the ArviZ report to ``path`` (netCDF) and the params beside it (``<path>.params.npz``).

        Each file is written aside and then renamed, the report last: if it is there, both are whole.
        ``arviz.from_netcdf`` reads the report, :func:`~ppl_ext.diagnostics.report.params_file.read_params`
        the params. Nothing is pickled.

        :return: the path of the report.
        """
        from ppl_ext.diagnostics.report.arviz_export import report_path, write_report
        from ppl_ext.diagnostics.report.params_file import write_params

        path = report_path(path)
        report = self.to_arviz(rng_key, num_samples)
        write_params(self.params, path.with_name(path.name + ".params.npz"))
        return write_report(report, path)


def to_arviz(
    result: Any,
    *,
    model: Callable | None = None,
    guide: Callable | None = None,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    rng_key: jax.Array | None = None,
    num_samples: int | None = None,
    log_likelihood: bool | None = None,
    posterior_predictive: bool | Mapping[str, Any] = False,
    prior: Mapping[str, Any] | None = None,
    constant_data: Mapping[str, Any] | None = None,
    predictions: Mapping[str, Any] | None = None,
    predictions_constant_data: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    pred_dims: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> Any:
    """The ArviZ report of anything that this library returns, and of NumPyro's runs.

    Every :class:`~ppl_ext.runtime.results.Result` is asked for its own, ``result.to_arviz(...)``, with the
    options that it takes: its page says which groups there are. Posteriors of several new episodes, a dict by
    label or a list, make one report. What follows is that of a fit, of ``MCMC`` and of ``SVI``, in one shape.

    Groups: ``posterior`` on the full plates; ``log_likelihood`` with finite latent sites summed out and
    masked observations left out, in terms that are independent given the other sites (so leave-one-out may
    use them); for a chain (a finite site in ``scan``), or observations that feed the density of later ones
    (an autoregression), instead ``log_predictive_one_step`` with log p(y_t | y_<t), which leave-one-out must
    not use (see :func:`ppl_ext.diagnostics.loo`); ``observed_data``; ``sample_stats`` with ``lp``, the log
    joint density in constrained space (if finite sites cannot be summed out there is none, and the attribute
    ``lp_omitted`` says why), and for a guide ``log_q`` and ``log_weight``, for MCMC what the kernel recorded
    (``diverging``, and ``energy``, ``num_steps``, ``accept_prob``, ... if asked for by ``extra_fields``)
    under ArviZ's names; ``vi_trace`` with the loss by ``step``.
    Axes are named after plates, ``time`` for a ``scan``. Attributes say how the run was made and, for a
    guide, its Pareto k and importance ESS.

    R-hat between the restarts of a guide means something; within one, where draws are independent, it does
    not. Leave- one-out from a guide's draws takes them for posterior draws, so it is as good as its Pareto k.

    :param result: a :class:`Fit`, a numpyro ``MCMC`` that has run, an ``SVIRunResult``, or any other result,
        one's own included, that has ``to_arviz``.
    :param model: the model; needed for an ``SVIRunResult``, as is ``guide``. Otherwise that of the run.
    :param model_args: arguments of model and guide; by default those of the run. Pass the whole data here if
        the run saw minibatches.
    :param num_samples: draws per chain from a guide; 1000 by default.
    :param log_likelihood: ``None``: if it exists (if not, the attribute ``log_likelihood_omitted`` says why);
        True: raise if it does not; False: leave it out.
    :param posterior_predictive: draws (chain, draw, ...) by site, or True to replicate the observed sites.
    :param prior: draws (chain, draw, ...) by site.
    :param constant_data: arrays by name, such as covariates.
    :param predictions: draws (chain, draw, ...) by site for rows without data, as :func:`predict` returns.
    :param predictions_constant_data: arrays by name, such as the covariates of those rows.
    :param coords: labels by axis.
    :param dims: names of axes by site, instead of the plates'.
    :param pred_dims: names of axes of the predictions and their constant data; by default those of ``dims``.
        New rows that have labels (``coords``) need an axis of their own.
    :param options: of other results, as their ``to_arviz`` takes them.
    :raises HandlerError: if a handler is open around the call.
    :return: ``arviz.InferenceData``; with ArviZ 1.x an ``xarray.DataTree``.
    :raises ArgumentTypeError: if ``result`` is none of these.
    :raises ArgumentError: if something that is needed is missing, or the result does not take an option,
        which is named.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import MCMC, NUTS
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", 3):
    ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=50, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jax.numpy.array([0.0, 1.0, 2.0]))
    >>> dict(to_arviz(mcmc).log_likelihood["y"].sizes)
    {'chain': 1, 'draw': 50, 'rows': 3}
    """
    given: dict[str, Any] = dict(
        model=model,
        guide=guide,
        model_args=model_args,
        model_kwargs=model_kwargs,
        rng_key=rng_key,
        num_samples=num_samples,
        log_likelihood=log_likelihood,
        posterior_predictive=posterior_predictive,
        prior=prior,
        constant_data=constant_data,
        predictions=predictions,
        predictions_constant_data=predictions_constant_data,
        coords=coords,
        dims=dims,
        pred_dims=pred_dims,
    )
    from ppl_ext.diagnostics.report.asked import another, refuse_unknown

    if not isinstance(result, Fit | MCMC | SVIRunResult) and not _has_record(result):
        return another(result, given | options)
    refuse_unknown(f"to_arviz: the report of a {type(result).__name__}", options, given)
    given["num_samples"] = num_samples = NUM_SAMPLES if num_samples is None else num_samples
    from ppl_ext.diagnostics.report.run_report import report_of

    check_report_options(**given)
    run, key = _run_of("to_arviz", result, model, guide, model_args, model_kwargs, rng_key, num_samples)
    given_groups = {"prior": prior, "constant_data": constant_data, "predictions": predictions}
    given_groups["predictions_constant_data"] = predictions_constant_data
    axes = {"dims": dims, "pred_dims": pred_dims, "coords": coords}
    return report_of(
        run,
        key,
        given_groups,
        log_likelihood=log_likelihood,
        posterior_predictive=posterior_predictive,
        **axes,
    )


def predict(
    rng_key: jax.Array,
    result: Any,
    *args: Any,
    redraw: Sequence[str] = (),
    model: Callable | None = None,
    guide: Callable | None = None,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    num_samples: int = NUM_SAMPLES,
    **kwargs: Any,
) -> dict[str, np.ndarray]:
    r"""Draws of what the model says of rows that have no data yet, at each posterior draw of a run.

    .. math:: \tilde y_s \sim p(\tilde y \mid \theta_s, \tilde x), \qquad \theta_s \sim p(\theta \mid y, x)

    The model is run on the arguments given here, on its full plates. Sites that have posterior draws have
    these values; data that are given are conditioned on (the past of a series, say); all else is drawn: data
    that are ``None``, finite sites, sites that are new. Draws of a site that belongs to rows, or to the steps
    of a ``scan``, are for those of the run: a warning names one whose law is another for these arguments.

    :param result: a :class:`Fit`, a numpyro ``MCMC`` that has run, or an ``SVIRunResult`` (with ``model=``,
        ``guide=`` and ``model_args=``).
    :param args: with ``kwargs``, the arguments of the model for the new rows.
    :param redraw: latent sites that belong to the rows (an effect of each, say), which new rows do not share
        with those of the run: drawn from the model, given the other sites.
    :param model: with ``guide``, ``model_args``, ``model_kwargs``: of the run, as in :func:`to_arviz`.
    :param num_samples: draws per chain from a guide; the same that :func:`to_arviz` reports without a key of
        its own.
    :return: by site (chain, draw, ...): all that was drawn, and deterministic sites; for
        ``to_arviz(predictions=)``.
    :raises ArgumentError: if a latent site has another shape for these arguments than its draws, ``redraw``
        names no such site, or nothing is drawn.
    :raises ModelError: if data that are given depend on a site without posterior draws, which would be drawn
        as if they were not.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import MCMC, NUTS
    >>> def model(x, y=None):
    ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(x)):
    ...         numpyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
    >>> mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=50, progress_bar=False)
    >>> x = jax.numpy.array([1.0, 2.0, 3.0])
    >>> mcmc.run(jax.random.key(0), x, 2.0 * x)
    >>> new = predict(jax.random.key(1), mcmc, jax.numpy.array([10.0, 20.0]))
    >>> new["y"].shape, bool(abs(new["y"].mean((0, 1)) - jax.numpy.array([20.0, 40.0])).max() < 1.0)
    ((1, 50, 2), True)
    >>> dict(to_arviz(mcmc, predictions=new).predictions["y"].sizes)
    {'chain': 1, 'draw': 50, 'rows': 2}
    """
    check_key("predict: rng_key", rng_key)
    check_run_options(
        "predict",
        model=model,
        guide=guide,
        model_args=model_args,
        model_kwargs=model_kwargs,
        num_samples=num_samples,
    )
    if isinstance(redraw, str) or not all(isinstance(name, str) for name in redraw):
        raise ArgumentTypeError(f"predict: redraw must be a list of names of sites, got {described(redraw)}.")
    run, _ = _run_of("predict", result, model, guide, model_args, model_kwargs, None, num_samples)
    if run.model is None:
        raise ArgumentError("predict needs the model; this run has none. Pass model=...")
    check_call("predict: model", run.model, args, kwargs)
    from ppl_ext.diagnostics.report.predicted import predictions, warn_of_other_rows

    with odd_data_blamed("predict: model", args, kwargs), explained(run.model):
        found = predictions(run.model, run.values, run.params, rng_key, args, kwargs, redraw)
        warn_of_other_rows(run, args, kwargs, redraw)
    return found


def _run_of(
    what: str, result, model, guide, model_args, model_kwargs, rng_key, num_samples
) -> tuple[RunRecord, jax.Array | None]:
    """A run of any kind, and the key for what is drawn beside it."""
    refuse_open_handlers(what)
    if isinstance(result, SVIRunResult):
        result = _fit_of(result, model, guide, model_args, model_kwargs)
    if isinstance(result, Fit):
        changes: dict[str, Any] = {"model": model, "guide": guide, "args": model_args, "kwargs": model_kwargs}
        changes = {name: x for name, x in changes.items() if x is not None}
        if model_args is not None:
            changes["args"] = tuple(model_args)
        changed = replace(result, **changes) if changes else result
        if model_args is not None or model_kwargs is not None:
            from ppl_ext.diagnostics.report.predicted import refuse_lost_data

            here = jax.tree.map(lambda x: x[0], result.params)
            refuse_lost_data(
                what, changed.model, (result.args, result.kwargs), (changed.args, changed.kwargs), here
            )
        result, rng_key = changed, changed._key(rng_key)
        run = _run_of_fit(result, rng_key, num_samples)
    elif isinstance(result, MCMC):
        run = run_of_mcmc(what, result, model, model_args, model_kwargs)
    elif _has_record(result):
        run = result.run_record()
    else:
        raise ArgumentTypeError(
            f"{what}: result must be a Fit, a numpyro MCMC or an SVIRunResult, got {described(result)}."
        )
    if run.model is not None:
        check_call(f"{what}: model", run.model, run.args, run.kwargs)
    return run, rng_key


def _has_record(result: Any) -> bool:
    """Whether a result says itself what a report needs to know of it."""
    return not isinstance(result, type) and callable(getattr(result, "run_record", None))


def _fit_of(result: SVIRunResult, model, guide, model_args, model_kwargs) -> Fit:
    missing = [name for name, x in (("model", model), ("guide", guide)) if x is None]
    if missing:
        raise ArgumentError(
            f"An SVIRunResult does not know its {' and '.join(missing)}: pass {'=, '.join(missing)}=."
        )
    params = dict(result.params)
    state = result.state
    if getattr(state, "mutable_state", None):
        params |= state.mutable_state
    return Fit(
        params=jax.tree.map(lambda x: jnp.asarray(x)[None], params),
        losses=np.asarray(result.losses)[None],
        model=model,
        guide=guide,
        objective=None,
        args=() if model_args is None else tuple(model_args),
        kwargs=dict(model_kwargs or {}),
        rng_key=getattr(state, "rng_key", None),
    )


def _run_of_fit(fit: Fit, key: jax.Array, num_samples: int) -> RunRecord:
    from ppl_ext.diagnostics.regimes import weight_regime  # a report alone wants it

    draws = fit.sample(key, num_samples)
    weights = importance(draws)
    attrs = {
        "objective": None if fit.objective is None else objective_name(fit.objective),
        "guide": name_of(fit.guide),
        "model": name_of(fit.model),
        "num_steps": fit._steps,
        "stop_reason": fit.stop_reason,
        "num_skipped": int(fit.skipped.sum()) or None,
        "compile_seconds": fit.compile_seconds,
        "run_seconds": fit.run_seconds,
        "elbo": weights.elbo,
        "elbo_standard_error": weights.elbo_se,
        "pareto_k": weights.pareto_k,
        "importance_ess": weights.ess,
        "weight_regime": ", ".join(weight_regime(row).regime for row in draws.log_weights),
        "point_sites": ", ".join(draws.points) or None,
        "seed": seed_numbers(fit.rng_key),
    }
    stats = {"lp": draws.log_p, "log_q": draws.log_q, "log_weight": draws.log_weights}
    return RunRecord(
        fit.model,
        fit.args,
        fit.kwargs,
        fit.params,
        draws.values,
        stats,
        {"loss": np.asarray(fit.losses)},
        attrs,
    )
