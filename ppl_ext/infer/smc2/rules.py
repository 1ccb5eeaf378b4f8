"""What a user says of an SMC² run, checked."""

from typing import Any, NamedTuple

from ppl_ext.algorithms.particle_filter import ParticleFilter
from ppl_ext.algorithms.tempered.moves import IndependentMoves, RandomWalk
from ppl_ext.errors import ArgumentError, ArgumentTypeError
from ppl_ext.infer.smc2.cloud import Rules
from ppl_ext.runtime.arguments import check_count, check_number, described
from ppl_ext.state_space.resampling import Scheme, scheme_of


class Options(NamedTuple):
    """Options of :class:`~ppl_ext.infer.SMC2`, which says what they mean."""

    moves: Any = None
    ess: float = 0.5
    min_acceptance: float = 0.2
    max_states: int | None = None
    resampling: str | Scheme = "systematic"
    initial: tuple[str, ...] | None = None


GROWTH = 16
"""How many times as many states filters may come to have, unless ``max_states`` says otherwise."""


def options_of(options: dict[str, Any]) -> Options:
    """:raises ArgumentError: for a name that is none of theirs."""
    if unknown := [n for n in options if n not in Options._fields]:
        raise ArgumentError(
            f"SMC2 has no option '{unknown[0]}'; there are {', '.join(map(repr, Options._fields))}, and "
            "those of the filter, algorithm=ParticleFilter(100, ...)."
        )
    return Options(**options)


def rules_of(num_particles: int, algorithm: Any, options: Options) -> Rules:
    """The rules of a run.

    :raises ArgumentError: for numbers out of range, and ArgumentTypeError for what is of another kind.
    """
    check_count("SMC2: num_particles", num_particles)
    if num_particles < 2:
        raise ArgumentError(
            "SMC2: num_particles must be at least 2: one parameter alone is never weighed against another."
        )
    if not isinstance(algorithm, ParticleFilter):
        raise ArgumentTypeError(
            "SMC2: algorithm must be the filter of each parameter, as ParticleFilter(100), got "
            f"{described(algorithm)}."
        )
    if algorithm.mesh is not None:
        raise ArgumentError("SMC2: its filters run side by side, each on one device; leave mesh= out.")
    moves = RandomWalk(num_steps=3) if options.moves is None else options.moves
    if not isinstance(moves, RandomWalk | IndependentMoves):
        raise ArgumentTypeError(
            "SMC2: moves must be RandomWalk(...) or IndependentMoves(...), since a filter's evidence has no "
            f"gradient for others; got {described(moves)}."
        )
    for name in ("ess", "min_acceptance"):
        value = getattr(options, name)
        check_number(f"SMC2: {name}", value, 0.0)
        if value > 1:
            raise ArgumentError(f"SMC2: {name} must be a share from 0 to 1, got {described(value)}.")
    num_states = algorithm.num_particles
    most = GROWTH * num_states if options.max_states is None else options.max_states
    check_count("SMC2: max_states", most)
    if most < num_states:
        raise ArgumentError(
            f"SMC2: max_states={most} is less than the {num_states} states that filters begin with."
        )
    return Rules(
        int(num_particles),
        algorithm.rules(),
        moves,
        scheme_of("SMC2: resampling", options.resampling),
        float(options.ess),
        float(options.min_acceptance),
        int(most),
    )
