"""Tempered sequential Monte Carlo as an algorithm: any program with continuous sites, from its prior or a
guide to its posterior.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.sharding import Mesh

from ppl_ext.algorithms.absent_sites import draw_absent
from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.enumeration import Enumeration
from ppl_ext.algorithms.target import Retained, Target, log_quotient
from ppl_ext.algorithms.tempered.moves import Moves, RandomWalk, as_array
from ppl_ext.algorithms.tempered.numpyro_moves import NumPyroMoves
from ppl_ext.algorithms.tempered.points import Path, held_fixed
from ppl_ext.algorithms.tempered.retained import run_through
from ppl_ext.algorithms.tempered.stages import Plan, Rules, State, run_found, run_planned
from ppl_ext.algorithms.tempered.start import path_from_guide, path_from_prior
from ppl_ext.algorithms.tempered.unconstrained import Unconstrained
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, StrategyError
from ppl_ext.gradients import Constant
from ppl_ext.runtime.arguments import (
    check_array,
    check_count,
    check_flag,
    check_mapping,
    check_number,
    described,
)
from ppl_ext.runtime.sharding import check_mesh
from ppl_ext.state_space.resampling import Scheme, multinomial, scheme_of


def _after_zero(temperatures: Any) -> Any:
    """Temperatures as an array without a 0 in front, where the run starts anyway.

    Here and not later: when a run is compiled they are no numbers any more, and their count must not change.
    """
    x = as_array(temperatures)
    if isinstance(x, np.ndarray | jax.Array) and not isinstance(x, jax.core.Tracer):
        return x[1:] if x.ndim == 1 and x.size > 1 and x[0] == 0 else x
    return x


class TemperedSMC(Algorithm):
    r"""N particles from the prior, or a guide, to the posterior along a path of densities.

    .. math:: \pi_\tau(z) \propto p(z)\, p(y \mid z)^\tau, \qquad 0 = \tau_0 < \dots < \tau_T = 1, \qquad
        w = \prod_{t=1}^T \frac1N \sum_i p(y \mid z^i_{t-1})^{\tau_t - \tau_{t-1}}

    At each temperature the particles are weighed, resampled, and moved by a kernel that leaves its density
    unchanged. They move in NumPyro's unconstrained positions; finite sites are summed out, whether marked for
    it or not, and drawn given the others where a draw is asked for.

    **What is unbiased.** With given temperatures and moves that are fixed, :math:`\mathbb{E}[w] = p(x)` for
    every N. Temperatures and moves that are found from the particles would make that a limit in N. So where
    something is to be found, a run beside (``pilot_particles``) finds it, and its plan is then given to fresh
    particles: what this class returns is unbiased, always. :class:`ppl_ext.infer.SMC` saves that second run,
    and its evidence is consistent.

    A conditional run goes back from the given z by the reversed moves, and then forward through the path; a
    draw is one of the particles at the end. Gradients of log w hold all draws fixed, as ``ParticleFilter(...,
    gradient="fisher")``: :math:`\nabla \log w = \tfrac1N \sum_i \nabla \log p(x, z^i)`, with a bias that
    vanishes with N.

    :param num_particles: N, at least 2.
    :param temperatures: increasing, the last one 1; by default they are found, each as far as the effective
        sample size of the weights is ``ess`` of the particles.
    :param moves: :class:`RandomWalk`, :class:`IndependentMoves` or :class:`NumPyroMoves`; or NumPyro's class
        ``NUTS`` or ``HMC`` for ``NumPyroMoves`` of it.
    :param ess: share of the particles, between 0 and 1.
    :param initial: start from this program q, not the prior: :math:`\pi_\tau \propto q^{1 - \tau} p^\tau`. It
        is called as ``ImportanceSampling``'s proposal, or with ``params`` as a guide, by the program's own
        arguments.
    :param params: of a fitted guide, by its ``param`` sites. Guides of NumPyro over one vector
        (``AutoMultivariateNormal``, ...) need them.
    :param along: a plate's name, or ``"time"`` for the steps of a scan: their rows come one after the other,
        in ``num_blocks`` blocks (by default one by one), instead of all being tempered. The temperature is
        then the share of the blocks that are in, a fraction of one tempered.
    :param waste_free: every place of a chain is a particle: N / (num_steps + 1) of them are resampled. N must
        be a multiple of that.
    :param resampling: as for ``ParticleFilter``.
    :param max_stages: temperatures at most; the last of them is 1 whatever the weights say.
    :param pilot_particles: of the run that finds temperatures and moves, if one must; N by default.
    :param mesh: devices over which the particles are spread.
    :raises ArgumentError: for fewer than 2 particles, temperatures that do not increase to 1, or particles
        that do not divide.
    :raises ModelError: when run: a discrete site without a finite list of values, a prior that cannot be
        drawn from, a plate ``along`` that is not there, or a density inside that is an estimate. The message
        names the site.
    :raises StrategyError: where an expectation asks for gradients of its draws.

    Sources: Neal 2001; Del Moral, Doucet, Jasra 2006, section 3; Chopin 2002 for data in order; Jasra et al.
    2011 for temperatures; Dau and Chopin 2022, algorithm 4, waste-free.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from ppl_ext import marginal, log_density
    >>> def model(y):
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> tempered = marginal(model, ["scale"], TemperedSMC(200))
    >>> log_w = log_density(tempered, {"scale": 1.0}, 0.0, rng_key=jax.random.key(0)).total
    >>> exact = dist.HalfNormal(1.0).log_prob(1.0) + dist.Normal(0.0, 2 ** 0.5).log_prob(0.0)
    >>> bool(abs(log_w - exact) < 0.2)
    True
    """

    num_particles: int = eqx.field(static=True)
    temperatures: Any = eqx.field(default=None, converter=_after_zero)
    moves: Any = eqx.field(default_factory=RandomWalk)
    ess: float = eqx.field(static=True, default=0.5)
    initial: Callable | None = None
    params: Mapping[str, Any] | None = None
    along: str | None = eqx.field(static=True, default=None)
    num_blocks: int | None = eqx.field(static=True, default=None)
    waste_free: bool = eqx.field(static=True, default=False)
    resampling: str | Scheme = eqx.field(static=True, default="systematic")
    max_stages: int = eqx.field(static=True, default=100)
    pilot_particles: int | None = eqx.field(static=True, default=None)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    scans = True

    def __check_init__(self):
        check_count("TemperedSMC: num_particles", self.num_particles)
        if self.num_particles < 2:
            raise ArgumentError(
                "TemperedSMC: num_particles must be at least 2: one alone is never resampled. Use "
                "ImportanceSampling(1)."
            )
        self._check_temperatures()
        self.moving()
        check_number("TemperedSMC: ess", self.ess)
        if not 0.0 < self.ess < 1.0:
            raise ArgumentError(f"TemperedSMC: ess must be between 0 and 1, got {described(self.ess)}.")
        self._check_start()
        for name in ("max_stages", "pilot_particles", "num_blocks"):
            if getattr(self, name) is not None:
                check_count(f"TemperedSMC: {name}", getattr(self, name))
        check_flag("TemperedSMC: waste_free", self.waste_free)
        for name in ("num_particles", "pilot_particles"):
            self._check_divides(name)
        scheme_of("TemperedSMC: resampling", self.resampling)
        check_mesh("TemperedSMC", self.mesh, self.num_particles, "num_particles")

    def _check_temperatures(self) -> None:
        if self.temperatures is None:
            return
        check_array("TemperedSMC: temperatures", self.temperatures)
        if jnp.ndim(self.temperatures) != 1 or jnp.size(self.temperatures) == 0:
            raise ArgumentError(
                "TemperedSMC: temperatures must be a list of numbers that increase to 1, got "
                f"{described(self.temperatures)}."
            )
        if isinstance(self.temperatures, jax.core.Tracer):
            return
        steps = np.diff(np.asarray(self.temperatures, float), prepend=0.0)
        if not (steps[1:] > 0).all() or steps[0] < 0 or abs(steps.sum() - 1.0) > 1e-6:
            raise ArgumentError(
                "TemperedSMC: temperatures must increase and end in 1, as in jnp.linspace(0, 1, 11), "
                f"got {np.asarray(self.temperatures).tolist()}."
            )

    def _check_start(self) -> None:
        if self.initial is not None and not callable(self.initial):
            raise ArgumentTypeError(f"TemperedSMC: initial must be a program, got {described(self.initial)}.")
        if self.params is not None:
            check_mapping("TemperedSMC: params", self.params, "from param sites to arrays")
            if self.initial is None:
                raise ArgumentError("TemperedSMC: params are those of a guide; give initial=, too.")
        if self.along is not None and not isinstance(self.along, str):
            raise ArgumentTypeError(
                f"TemperedSMC: along must be the name of a plate, or 'time', got {described(self.along)}."
            )
        if self.along is not None and self.initial is not None:
            raise ArgumentError(
                "TemperedSMC: a guide has seen the data, which cannot then come in order: give along= or "
                "initial=, not both."
            )

    def _check_divides(self, name: str) -> None:
        num, length = getattr(self, name), self.moving().num_steps + 1
        if self.waste_free and num is not None and (num % length or num < 2 * length):
            raise ArgumentError(
                f"TemperedSMC: waste-free, {name}={num} must be a multiple of num_steps + 1 = {length}, the "
                f"length of a chain, and at least two of them; take {max(2, round(num / length)) * length}."
            )

    def moving(self) -> Moves:
        """The moves, of a class of NumPyro too."""
        moves = NumPyroMoves(kernel=self.moves) if isinstance(self.moves, type) else self.moves
        if not isinstance(moves, Moves):
            raise ArgumentTypeError(
                "TemperedSMC: moves must be RandomWalk(), IndependentMoves(), NumPyroMoves(...), or one of "
                f"NumPyro's classes NUTS and HMC, got {described(self.moves)}."
            )
        return moves

    def path(self, target: Target) -> Path:
        """The path of densities for a target, where nothing has derivatives."""
        draw_absent(target)
        if self.initial is not None:
            return held_fixed(path_from_guide("TemperedSMC", target, self.initial, self.params))
        return held_fixed(path_from_prior("TemperedSMC", target, self.along, self.num_blocks))

    def rules(self, num_particles: int | None = None, independent: bool = False) -> Rules:
        """How a run goes, as :mod:`ppl_ext.algorithms.tempered.stages` wants it."""
        scheme = multinomial if independent else scheme_of("TemperedSMC: resampling", self.resampling)
        given = self.given()
        num_stages = self.max_stages if given is None else given.size
        num = self.num_particles if num_particles is None else num_particles
        return Rules(num, self.moving(), scheme, self.ess, num_stages, self.waste_free, self.mesh)

    def given(self) -> jax.Array | None:
        """The given temperatures."""
        if self.temperatures is None:
            return None
        return jnp.asarray(self.temperatures, float).at[-1].set(1.0)

    def evidence(self, target: Target) -> jax.Array:
        path = self.path(target)
        run = self._run(target.key(), path)
        return self._with_gradient(target, path, run)

    def evidence_through(self, target: Target, retained: Retained) -> jax.Array:
        path = self.path(target)
        values = stop_gradient(retained.values)
        space = Unconstrained("TemperedSMC", target, from_prior=False)
        pilot_key, key = jax.random.split(target.key())
        plan = self._plan(pilot_key, path)
        run = run_through(
            key, path, self.rules(independent=True), plan, stop_gradient(space.position(values))
        )
        return self._with_gradient(target, path, run)

    def draw(self, target: Target) -> tuple[dict[str, jax.Array], jax.Array]:
        path = self.path(target)
        if target.has_strategies:
            self._check_fixed(target)
        run = self._run(target.key(), path, independent=True)
        possible = target.possible = run.log_evidence.value > -jnp.inf
        index = jax.random.randint(target.key(), (), 0, self.num_particles)
        values = stop_gradient(path.values(run.points.position[index]))
        log_evidence = self._with_gradient(target, path, run)
        log_density, more = self._finite(target, values)
        values = {n: (values | more)[n] for n in target.free}
        return values, log_quotient(log_density, log_evidence, possible)

    def score(self, target: Target, values: dict[str, jax.Array]) -> jax.Array:
        draw_absent(target)
        log_density = target.log_density(values).total
        return log_density - self.evidence_through(target, Retained(values, log_density, lambda: log_density))

    def _finite(self, target: Target, values) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The log joint density, and finite sites drawn from their law given the others."""
        finite = tuple(n for n in target.free if n not in values)
        if not finite:
            return target.log_density(values).total, {}
        rest = target.only(finite, values)
        with target.inside():
            more, _ = Enumeration().draw(rest)
        return target.log_density({**values, **more}).total, more

    def _run(self, key: jax.Array, path: Path, independent: bool = False) -> State:
        pilot_key, key = jax.random.split(key)
        return run_planned(key, path, self.rules(independent=independent), self._plan(pilot_key, path))

    def _plan(self, key: jax.Array, path: Path) -> Plan:
        """Temperatures and fits: given, or found by particles of their own."""
        moves, given = self.moving(), self.given()
        if not moves.alone:
            raise ModelError(
                "TemperedSMC: SA moves particles in groups, so that the evidence would not be unbiased. Take "
                "RandomWalk(), NUTS or HMC here, or run ppl_ext.infer.SMC."
            )
        if given is None or not moves.is_fixed:
            rules = self.rules(self.pilot_particles)
            return stop_gradient(run_found(key, path, rules._replace(mesh=None), given).plan)
        begun, num = moves.begin(path.size), given.size
        fits = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, float), (num, *jnp.shape(x))), begun)
        return stop_gradient(Plan(given, fits, jnp.asarray(num, jnp.int32)))

    def _with_gradient(self, target: Target, path: Path, run: State) -> jax.Array:
        """The log evidence, with the derivative of the particles' mean log density."""
        log_evidence = stop_gradient(run.log_evidence.value)
        positions = stop_gradient(run.points.position)
        space = Unconstrained("TemperedSMC", target, from_prior=False)
        densities = jax.vmap(lambda u: space.density(stop_gradient(path.values(u))).total)(positions)
        weights = jnp.where(jnp.isfinite(densities), 1.0 / len(positions), 0.0)
        kept = jnp.where(jnp.isfinite(densities), densities, 0.0)
        slope = jnp.sum(weights * (kept - stop_gradient(kept)))
        return log_evidence + slope

    def _check_fixed(self, target: Target) -> None:
        """Within an expectation draws have gradients, and a move's have none: the handlers outside must hold
        them fixed.
        """
        for name in target.free:
            if not isinstance(target.annotations(name, dist.Normal(), {}).get("gradient"), Constant):
                raise StrategyError(
                    f"The draws of TemperedSMC (site '{name}') have no gradient. Hold them fixed, "
                    "ppl_ext.handlers.detach(program), or use ImportanceSampling."
                )
