"""Choose the gradient strategy of sites by name pattern."""

from collections.abc import Callable
from fnmatch import fnmatchcase

import equinox as eqx
from numpyro.primitives import Messenger

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.gradients import Strategy, as_strategy
from ppl_ext.handlers.handler import Handler
from ppl_ext.handlers.keeping import Keeping
from ppl_ext.runtime.arguments import check_mapping
from ppl_ext.tracing.inner_jits import trace_state
from ppl_ext.tracing.scan_bodies import run_in_scan_body
from ppl_ext.tracing.vmapped_sites import sent_out, was_sent


class gradient(Handler):
    """A program whose sites matching a pattern use the given gradient strategy.

    It wins over ``infer={"gradient": ...}`` on the site, and an outer ``gradient`` over an inner one. Among
    the patterns of one handler the first match counts. Patterns are those of a shell: ``*``, ``?`` and
    ``[...]``. Sites inside ``scan`` and ``cond`` are reached.

    It also declares what the baselines of score-function sites keep between steps
    (:class:`~ppl_ext.gradients.MovingAverage`, :class:`~ppl_ext.gradients.LearnedBaseline`; chosen here or by
    annotation): sites ``"<site>_baseline"``, which ``SVI`` finds in the program.

    :param program: a NumPyro program, usually the guide.
    :param strategies: dict from pattern to a strategy or its short form (see :mod:`ppl_ext.gradients`).
    :raises ModelError: when the program runs and a pattern matches none of its latent sites.
    :raises StrategyError: if a short form is unknown.

    >>> import numpyro, numpyro.distributions as dist
    >>> guide = lambda: numpyro.sample("z", dist.Bernoulli(0.3))
    >>> guide = gradient(guide, {"z*": "enumerate"})
    """

    program: Callable
    strategies: tuple[tuple[str, Strategy], ...] = eqx.field(static=True)

    def __init__(self, program: Callable, strategies: dict):
        check_mapping("gradient: strategies", strategies, "from name pattern to strategy")
        if not strategies:
            raise ArgumentError(
                "gradient: strategies is empty; give at least one pattern, such as {'z*': 'score'}."
            )
        self.program = program
        self.strategies = tuple((pattern, as_strategy(s, pattern)) for pattern, s in strategies.items())

    def messenger(self) -> Messenger:
        return _Annotate(self.strategies)

    def __call__(self, *args, **kwargs):
        messenger = self.messenger()
        with messenger:
            output = self.program(*args, **kwargs)
        for pattern, _ in self.strategies:
            if pattern not in messenger.matched:
                sites = ", ".join(f"'{s}'" for s in sorted(messenger.seen)) or "none"
                raise ModelError(
                    f"gradient: the pattern '{pattern}' matches no latent site. Latent sites: {sites}."
                )
        messenger.keeping.declare()
        return output


class _Annotate(Messenger):
    reaches_inner = True  # the sites inside a marginal or normalize, under scoped names

    def __init__(self, strategies):
        super().__init__()
        self.strategies, self.matched, self.seen, self.keeping = strategies, set(), set(), Keeping()
        self.state = trace_state()

    def process_message(self, msg):
        if sent_out(self, self.state, msg):
            return
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _AnnotateBody(self))
        elif msg["type"] == "sample" and not msg["is_observed"]:
            self.annotate(msg)
            self.keeping.expect(msg)

    def annotate(self, msg):
        name = msg["name"]
        self.seen.add(name)
        hits = [(pattern, s) for pattern, s in self.strategies if fnmatchcase(name, pattern)]
        self.matched.update(pattern for pattern, _ in hits)
        if hits:
            msg["infer"] = {**msg["infer"], "gradient": hits[0][1], "_ppl_ext_keeper": self.keeping.token}
        elif "_ppl_ext_keeper" not in msg["infer"]:
            msg["infer"] = {**msg["infer"], "_ppl_ext_keeper": self.keeping.token}

    def postprocess_message(self, msg):
        if not was_sent(self, msg):
            self.keeping.met(msg)


class _AnnotateBody(Messenger):
    """Annotate sites inside a scan's body or a branch of ``cond``, whose sites come out once more when it is
    over.
    """

    def __init__(self, outside: _Annotate):
        super().__init__()
        self.outside = outside

    def process_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            self.outside.annotate(msg)

    def postprocess_message(self, msg):
        self.outside.keeping.met_plate(msg)
