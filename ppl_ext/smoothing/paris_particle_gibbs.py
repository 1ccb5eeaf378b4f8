r"""PaRIS particle Gibbs: conditional PaRIS again and again, each sweep frozen on the path that the last one
drew.

.. math:: \hat h = \frac{1}{k - k_0} \sum_{\ell = k_0 + 1}^{k} \hat h_\ell

As the paths forget where they began the estimates' bias falls geometrically, and their average keeps the
variance of PaRIS (Cardoso, Janati El Idrissi, Le Corff, Moulines, Olsson 2023, algorithm 3 and theorem 2).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_call, check_count, check_key, described
from ppl_ext.runtime.constants import compiled, odd_data_blamed
from ppl_ext.runtime.open_handlers import refuse_open_handlers
from ppl_ext.runtime.outside import Outside, reading
from ppl_ext.runtime.results import Summarised
from ppl_ext.runtime.verdict import Verdict
from ppl_ext.smoothing.backward import BackwardKernel
from ppl_ext.smoothing.conditional_paris import Sweep, conditional_paris
from ppl_ext.smoothing.online import TOLERANCE, check_excess
from ppl_ext.smoothing.parameters import check_inside, outside, parameters
from ppl_ext.smoothing.settings import Options, settings
from ppl_ext.smoothing.space import Space
from ppl_ext.smoothing.trajectories import trajectories
from ppl_ext.state_space.extinction import shown, warn_extinct
from ppl_ext.state_space.gaps import refuse_raw, without_gaps
from ppl_ext.state_space.model import StateSpace


def sweeps(rng_key: jax.Array, space: Space, path: dict[str, jax.Array], num_sweeps: int) -> Sweep:
    """``num_sweeps`` conditional sweeps, the first frozen on ``path``: what they return, stacked."""

    def one(path: dict[str, jax.Array], key: jax.Array) -> tuple[dict[str, jax.Array], Sweep]:
        sweep = conditional_paris(key, space, path)
        return sweep.path, sweep

    return jax.lax.scan(one, path, jax.random.split(rng_key, num_sweeps))[1]


def in_order(lowered: StateSpace, sweep: Sweep) -> Sweep:
    """A sweep with what it has by time in the order of the inputs, that before the first step still in
    front.
    """

    def turned(x):
        return jnp.concatenate([x[:1], lowered.ordered(x[1:])])

    path = lowered.ordered_values(sweep.path)
    return sweep._replace(path=path, renewed=turned(sweep.renewed), ess=turned(sweep.ess))


class ParisParticleGibbs:
    """Smoothing by particle Gibbs with few particles: PPG(N, Ñ, k, k₀).

    :param num_particles: N, at least 2.
    :param num_backward: Ñ, backward draws a particle.
    :param num_sweeps: k.
    :param burn_in: k₀ < k, sweeps whose estimates are left out.
    :raises ArgumentError: for fewer than 2 particles, or a ``burn_in`` that leaves no sweep.
    :raises ModelError: when run, if the model has no state-space form, or its states do not suffice for a
        backward kernel.

    The other arguments are those of :class:`~ppl_ext.smoothing.OnlineSmoother`. It has less bias than one run
    with k N particles only where N is large enough to renew the path: see ``renewal`` of the result.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> products = {"s10": lambda t, x_prev, x: x_prev * x}
    >>> ppg = ParisParticleGibbs(model, products, num_particles=20, num_sweeps=30, burn_in=5)
    >>> result = ppg.run(jax.random.key(0), jnp.array([0.3, -0.1, 0.5]), params={"phi": 0.9})
    >>> result.expectations["s10"].shape, result.trajectories["x"].shape, bool((result.renewal > 0.5).all())
    ((), (1, 25, 3), True)

    Source: Cardoso, Janati El Idrissi, Le Corff, Moulines, Olsson 2023, algorithm 3 and theorem 2.
    """

    def __init__(
        self,
        model: Callable,
        functionals: Mapping[str, Any] | None = None,
        num_particles: int = 100,
        backward: str | BackwardKernel = "mcmc",
        num_backward: int = 2,
        num_sweeps: int = 50,
        burn_in: int = 10,
        log_bound: float | None = None,
        proposal: Callable | None = None,
        initial_proposal: Callable | None = None,
    ):
        options = Options(num_particles, backward, num_backward, log_bound=log_bound)
        options = options._replace(proposal=proposal, initial_proposal=initial_proposal)
        self.how = settings("ParisParticleGibbs", model, functionals, options, frozen=True)
        check_count("ParisParticleGibbs: num_sweeps", num_sweeps)
        if (
            isinstance(burn_in, bool)
            or not isinstance(burn_in, int | np.integer)
            or not 0 <= burn_in < num_sweeps
        ):
            raise ArgumentError(
                "ParisParticleGibbs: burn_in must be an integer from 0 to num_sweeps - 1, got "
                f"{described(burn_in)}."
            )
        self.num_sweeps, self.burn_in = int(num_sweeps), int(burn_in)
        self._run = compiled(self._chain, 3, (5, 6))

    def run(
        self,
        rng_key: jax.Array,
        *args: Any,
        params: Mapping[str, Any] | None = None,
        num_chains: int = 1,
        **kwargs: Any,
    ) -> "ParticleGibbsSmoothing":
        """Smooth one series; chains are independent, each from a path of a filter of its own.

        A sweep in which no particle survives a step, not the frozen one either, is NaN from there on, and a
        warning names it.

        :raises ModelError: if the model has no state-space form, or its states do not suffice for a backward
            kernel.
        """
        check_key("ParisParticleGibbs: rng_key", rng_key)
        check_count("ParisParticleGibbs: num_chains", num_chains)
        check_call("ParisParticleGibbs: model", self.how.model, args, kwargs)
        refuse_open_handlers("ParisParticleGibbs.run")
        params = parameters("ParisParticleGibbs", params)
        with odd_data_blamed("ParisParticleGibbs:", args, kwargs), reading(self.how) as seen:
            every, initial_names, misplaced = self._run(
                seen, rng_key, params, args, kwargs, int(num_chains), without_gaps(args, kwargs)
            )
        check_inside("ParisParticleGibbs", misplaced, params)
        check_excess(jax.tree.map(jnp.max, every.tally))
        if (
            not isinstance(every.ess, jax.core.Tracer)
            and (dead := np.argwhere(np.asarray(every.ess) == 0)).size
        ):
            if not without_gaps(args, kwargs):
                refuse_raw("ParisParticleGibbs", lambda: self.how.begin(params, args, kwargs).lowered)
            chain, sweep, step = map(int, dead[0])
            place = f"step {step - 1}" if step else "what is observed before the scan"
            warn_extinct(
                "ParisParticleGibbs", f"{place} in sweep {sweep} of chain {chain}", self.how.num_particles
            )
        kept = jax.tree.map(lambda x: x[:, self.burn_in :], every)
        wrong = every.tally.excess.max() > TOLERANCE  # within a trace nothing is raised
        estimates = jax.tree.map(lambda x: jnp.where(wrong, jnp.nan, x), kept.estimates or {})
        return ParticleGibbsSmoothing(
            expectations=jax.tree.map(lambda x: x.mean((0, 1)), estimates),
            estimates=estimates,
            trajectories=shown(kept.path),
            renewal=kept.renewed.mean((0, 1)),
            renewed=kept.renewed,
            ess=kept.ess,
            fallbacks=every.tally.fallbacks.sum(),
            model=self.how.model,
            args=args,
            kwargs=kwargs,
            params=params,
            initial_names=tuple(initial_names),
            how=self.how.described() | {"num_sweeps": self.num_sweeps, "burn_in": self.burn_in},
            outside=seen,
        )

    def _chain(
        self, seen: Outside, rng_key, params, args, kwargs, num_chains: int, whole: bool
    ) -> tuple[Sweep, dict[str, None], dict[str, jax.Array]]:
        space = self.how._replace(whole=whole).begin(params, args, kwargs)

        def one(key):
            path_key, filter_key, sweep_key = jax.random.split(key, 3)
            path = jax.tree.map(lambda x: x[0], trajectories(path_key, filter_key, space, 1)[0])
            every = sweeps(sweep_key, space, path, self.num_sweeps)
            return jax.vmap(lambda sweep: in_order(space.lowered, sweep))(every)

        every = jax.vmap(one)(jax.random.split(rng_key, num_chains))
        return every, dict.fromkeys(space.lowered.initial_sites), outside(space.lowered)


@dataclass(frozen=True, eq=False, repr=False)
class ParticleGibbsSmoothing(Summarised):
    """A series smoothed by :class:`ParisParticleGibbs`; sweeps are those after the burn-in.

    :param expectations: of the functionals, averaged over sweeps and chains.
    :param estimates: before that, (chain, sweep, ...).
    :param trajectories: the paths, by latent site: (chain, sweep, ...), those of the steps (chain, sweep,
        time, ...).
    :param renewal: (T + 1,) how often a sweep changed the path, by time, that before the first step included.
    :param renewed: the same before averaging, (chain, sweep, T + 1), and ``ess``, the effective sample sizes.
    :param fallbacks: backward rows in which no particle before could have led to the one after.
    :param initial_names: the sites before the scan among the trajectories'.

    >>> # of one chain, two sweeps, one time and the one before it
    >>> renewed = np.array([[[True, True], [False, True]]])
    >>> numbers = {"renewal": renewed.mean((0, 1)), "renewed": renewed, "fallbacks": 0}
    >>> numbers["ess"] = np.full((1, 2, 2), 3.0)
    >>> ParticleGibbsSmoothing({}, {}, {}, model=None, args=(), kwargs={}, params={}, **numbers)
    ParticleGibbsSmoothing(renewal=0.5..1, {})
    """

    expectations: dict[str, Any]
    estimates: dict[str, Any]
    trajectories: dict[str, jax.Array]
    renewal: jax.Array
    renewed: jax.Array
    ess: jax.Array
    fallbacks: jax.Array
    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    params: dict[str, jax.Array]
    initial_names: tuple[str, ...] = ()
    how: dict[str, Any] = field(default_factory=dict)
    outside: Outside | None = None

    def __repr__(self) -> str:
        low, high = float(np.min(self.renewal)), float(np.max(self.renewal))
        return f"ParticleGibbsSmoothing(renewal={low:.2g}..{high:.2g}, {self.how})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.smoothing.verdicts import of_sweeps

        return of_sweeps(self)

    def summary(self) -> str:
        from ppl_ext.smoothing.summaries import of_sweeps

        return of_sweeps(self)

    def to_arviz(self) -> Any:
        """The ArviZ report: ``posterior`` with the paths (chain, draw, time); ``sample_stats`` with ``ess``
        and ``renewed`` by time; the renewal rate before the first step is the attribute
        ``renewal_initial``."""
        from ppl_ext.smoothing.arviz_reports import of_trajectories

        if self.outside is not None:
            self.outside.check("to_arviz", self.model)
        values = {name: np.asarray(x) for name, x in self.trajectories.items()}
        stats = {"ess": np.asarray(self.ess)[..., 1:], "renewed": np.asarray(self.renewed)[..., 1:]}
        attrs = {
            "backward_fallbacks": int(self.fallbacks),
            "renewal_initial": float(self.renewal[0]),
            **self.how,
        }
        return of_trajectories(self, values, stats, attrs)
