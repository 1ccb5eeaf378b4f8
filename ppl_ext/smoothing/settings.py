"""How to smooth: what the smoothers and learners are given, checked."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.runtime.arguments import check_call, check_count, check_function, check_number, check_program
from ppl_ext.runtime.sharding import check_mesh
from ppl_ext.smoothing.additive import Additive, Context, as_additive, joined
from ppl_ext.smoothing.backward import BackwardKernel, backward_kernel
from ppl_ext.smoothing.space import Space
from ppl_ext.state_space import filtering
from ppl_ext.state_space.model import StateSpace, lower
from ppl_ext.state_space.resampling import Scheme, scheme_of


class Settings(NamedTuple):
    """How to smooth: what :class:`OnlineSmoother` and :func:`~ppl_ext.smoothing.smooth` are given,
    checked.
    """

    model: Callable
    functionals: dict[str, Additive]
    rules: filtering.Rules
    backward: BackwardKernel
    num_backward: int
    log_bound: Any
    whole: bool = False  # data that are traced have no gaps
    gaps: Literal["draw", "refuse"] = "draw"

    @property
    def num_particles(self) -> int:
        return self.rules.num_particles

    def described(self) -> dict[str, Any]:
        """For a report."""
        return {
            "num_particles": self.num_particles,
            "backward": type(self.backward).__name__,
            "num_backward": self.num_backward,
        }

    def begin(self, params: Mapping[str, Any], args: tuple, kwargs: Mapping[str, Any]) -> Space:
        """The model at these parameters, within a trace.

        :raises ModelError: if the model's states do not suffice for a backward kernel.
        """

        def lowered(params):
            return lower(self.model, args, kwargs, params, gaps=self.gaps, whole=self.whole)

        at = lowered(params)
        check_markov(at, self.backward)
        space = Space(at, self.rules, self.backward, self.num_backward, self.log_bound)
        if self.backward.needs_bound:
            check_bound(space)
        return space._replace(functional=joined(self.functionals, Context(lowered, at)))


class Options(NamedTuple):
    """How to smooth, as a user says it: see :class:`OnlineSmoother`."""

    num_particles: int
    backward: str | BackwardKernel
    num_backward: int = 1
    resampling: str | Scheme = "systematic"
    ess_threshold: float = 0.5
    log_bound: Any = None
    proposal: Callable | None = None
    initial_proposal: Callable | None = None
    look_ahead: Callable | None = None
    mesh: Mesh | None = None


def settings(
    where: str, model: Callable, functionals: Mapping[str, Any] | None, options: Options, frozen: bool = False
) -> Settings:
    """The settings of a smoother, checked; an error begins with ``where``.

    :param frozen: one of the particles is frozen on a path, so that there must be another.
    """
    num_particles, ess_threshold = options.num_particles, options.ess_threshold
    check_program(f"{where}: model", model)
    check_count(f"{where}: num_particles", num_particles)
    if frozen and num_particles < 2:
        raise ArgumentError(f"{where}: num_particles must be at least 2: one of them is frozen on the path.")
    check_count(f"{where}: num_backward", options.num_backward)
    check_number(f"{where}: ess_threshold", ess_threshold, at_least=0.0)
    if ess_threshold > 1.0:
        raise ArgumentError(
            f"{where}: ess_threshold must be a share from 0 (never resample) to 1 (always), got "
            f"{ess_threshold}."
        )
    if options.log_bound is not None:
        check_number(f"{where}: log_bound", options.log_bound)
    step, moves = ("parameters", "carry", "x"), {}
    for name, args in (("proposal", step), ("initial_proposal", step[:1]), ("look_ahead", step)):
        moves[name] = fn = getattr(options, name)
        if fn is not None:
            check_function(f"{where}: {name}", fn)
            check_call(f"{where}: {name}, called with ({', '.join(args)}):", fn, args, {})
    check_mesh(where, options.mesh, num_particles, "num_particles")
    threshold, scheme = float(ess_threshold), scheme_of(f"{where}: resampling", options.resampling)
    return Settings(
        model,
        as_additive(f"{where}: functionals", {} if functionals is None else functionals),
        filtering.Rules(int(num_particles), scheme, threshold, **moves, mesh=options.mesh),
        backward_kernel(f"{where}: backward", options.backward, ("exact",) if where == "smooth" else ()),
        int(options.num_backward),
        options.log_bound,
    )


def check_markov(lowered: StateSpace, kernel: BackwardKernel) -> None:
    """:raises ModelError: if the kernel needs states that say all of what comes later, and these do not."""
    if lowered.not_markov and kernel.needs_markov:
        raise ModelError(f"{lowered.not_markov} Backward draws need it to; backward='path' does not.")


def check_bound(space: Space) -> None:
    """:raises ArgumentError: if a kernel needs a bound and nothing gives one."""
    lowered = space.lowered
    x = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), lowered.xs)
    first = lowered.placed({n: jnp.zeros(s.shape, s.dtype) for n, s in lowered.initial_sites.items()}).carry
    if space.log_bound(jax.tree.map(lambda a: a[None], first), x) is None:
        raise ArgumentError(
            "backward='hybrid' needs a bound on the log transition density. It follows for Normal, "
            "MultivariateNormal, categorical and a few other laws, if neither their scale depends on "
            "another site of the step nor the emission on the state before. Pass log_bound=, or use "
            "backward='mcmc'."
        )
