"""NumPyro's own tests of SVI and of gradients, with our objectives in place of its classes.

``python -m tools.numpyro_tests PATH [pytest options]`` runs ``test_svi.py`` and ``test_gradient.py`` in PATH,
the folder test/infer of a copy of NumPyro (which is not ours and not committed). A test that is excused below
must fail and is not counted; the exit code is 1 if any other fails, or if an excused one passes: then its
line here is to go.
"""

import sys
from pathlib import Path
from typing import Any

import numpyro.infer
import pytest

from ppl_ext.objectives import ELBO, Renyi

PRIVATE = "it calls a private method of NumPyro's class"
DISCRETE = "it expects a warning, or an error, for discrete latent sites, which every objective here takes"
RIGHT = (
    "it expects a wrong answer where a divergence in closed form may not stand for the sampled terms; the "
    "data flow decides here"
)
KEPT = "it expects a warning that mutable state is ignored with many particles; here it is kept"

EXCUSED = {
    "test_renyi_nonnested_plates": PRIVATE,
    "test_renyi_create_plates": PRIVATE,
    "test_svi_discrete_latent": DISCRETE,
    "test_analytic_kl_1[...-False]": RIGHT,
    **{
        f"test_mutable_state[{elbo}-10-{stable}]": KEPT
        for elbo in ("ELBO", "_mean_field")
        for stable in (True, False)
    },
}
"""By test, with the parameters or without: why it fails."""


def _mean_field(*args: Any, **options: Any) -> ELBO:
    return ELBO(*args, analytic_kl=True, **options)


def _renyi(alpha: float = 0.0, num_particles: int = 2) -> Renyi:
    return Renyi(alpha=alpha, num_particles=num_particles)


def _enumerated(
    num_particles: int = 1, max_plate_nesting: float = float("inf"), vectorize_particles: Any = True
) -> ELBO:
    return ELBO(num_particles, vectorize_particles=vectorize_particles)


SUBSTITUTED = {
    "Trace_ELBO": ELBO,
    "TraceGraph_ELBO": ELBO,
    "TraceMeanField_ELBO": _mean_field,
    "TraceEnum_ELBO": _enumerated,
    "RenyiELBO": _renyi,
}


class Tally:
    """A plugin of pytest that counts and lists."""

    def __init__(self):
        self.passed, self.skipped = 0, 0
        self.failed: dict[str, str] = {}
        self.excused: dict[str, str] = {}
        self.stale: list[str] = []

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        name = report.nodeid.split("::", 1)[-1]
        test, _, row = name.partition("[")
        reason = EXCUSED.get(name) or EXCUSED.get(test) or EXCUSED.get(f"{test}[...{row[row.rfind('-') :]}")
        if report.skipped:
            self.skipped += 1
        elif report.passed:
            self.passed += 1
            self.stale += [name] if reason else []
        elif reason:
            self.excused[name] = reason
        else:
            self.failed[name] = str(report.longrepr).strip().splitlines()[-1]


def main(argv: list[str]) -> int:
    if not argv or not (folder := Path(argv[0])).is_dir():
        print(__doc__)
        return 2
    for name, ours in SUBSTITUTED.items():
        setattr(numpyro.infer, name, ours)
    tally = Tally()
    files = [str(folder / f"{name}.py") for name in ("test_svi", "test_gradient")]
    options = [
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-c",
        "/dev/null",
        "-W",
        "ignore",
        "--tb=line",
    ]
    pytest.main([*options, f"--rootdir={folder}", *files, *argv[1:]], plugins=[tally])
    print(
        f"{tally.passed} passed, {tally.skipped} skipped, {len(tally.excused)} excused, {len(tally.failed)} "
        "failed"
    )
    for title, found in (("excused", tally.excused), ("failed", tally.failed)):
        for name, why in found.items():
            print(f"{title}: {name}: {why}")
    for name in tally.stale:
        print(f"excused, and passes: {name}")
    return int(bool(tally.failed or tally.stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
