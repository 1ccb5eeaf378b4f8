"""Declare what baselines keep between steps, once the program that carries them has run.

By then every site is known in full (plates around it, the time axis of a scan), and no plate or scan of the
program is open.
"""

from typing import Any

from ppl_ext.densities.distributions import elements
from ppl_ext.gradients import Kept, ScoreFunction, Strategy


class Keeping:
    """The sites of one run of a program whose baselines are :class:`~ppl_ext.gradients.Kept`."""

    def __init__(self):
        # marks the sites that are ours: an outer handler that chooses another strategy puts its own in its
        # place
        self.token = object()
        self.wanted: dict[str, tuple[Kept, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {}
        self.draws: dict[str, Any] = {}
        # draws of a scan that has just ended: none of them is earlier than all the others
        self.stacked: dict[str, Any] = {}
        self.subsampled: set[str] = set()
        # of messages under way, as the program knows them: handlers outside may put scopes in front
        self.names: dict[int, str] = {}

    def expect(self, msg) -> None:
        """Note a site on its way out. One inside a marginal is heard of here only."""
        self.names[id(msg)] = msg["name"]
        self._want(msg["name"], msg)

    def _want(self, name: str, msg) -> None:
        strategy: Strategy | str | None = msg["infer"].get("gradient")
        if not isinstance(strategy, ScoreFunction) or not isinstance(strategy.baseline, Kept):
            return
        fn, sample_shape = msg["fn"], msg["kwargs"]["sample_shape"]
        law = elements(fn.expand((*sample_shape, *fn.batch_shape)) if sample_shape else fn)
        shape = law.batch_shape
        event = len(shape) - len(sample_shape) - len(fn.batch_shape)
        shared = {f.dim - event for f in msg["cond_indep_stack"] if f.name in self.subsampled}
        kept = tuple(1 if axis - len(shape) in shared else n for axis, n in enumerate(shape))
        self.wanted[name] = (strategy.baseline, shape, kept, dict(self.draws))

    def met(self, msg) -> None:
        """Hear how a message ended."""
        self.met_plate(msg)
        if msg["type"] == "control_flow":
            self.draws, self.stacked = self.draws | self.stacked, {}
        elif msg["type"] == "sample" and not msg["is_observed"]:
            name, in_scan = self.names.pop(id(msg)), bool(msg.get("_control_flow_done"))
            if not in_scan:
                self.draws, self.stacked = self.draws | self.stacked, {}
            if msg["infer"].get("_ppl_ext_keeper") is self.token:
                self._want(name, msg)  # plates outside the handler have had their say
            else:
                self.wanted.pop(name, None)
            (self.stacked if in_scan else self.draws)[name] = msg["value"]

    def met_plate(self, msg) -> None:
        if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
            self.subsampled.add(msg["name"])

    def declare(self) -> None:
        for site, (baseline, shape, kept, draws) in self.wanted.items():
            baseline.declare(site, shape, kept, draws)
