"""Every tutorial runs as a script, from its first cell to its last."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
BY_DEFAULT = {"03_your_own_objective"}  # each takes most of a minute; make test-all and make docs run all


def test_there_are_tutorials():
    assert BY_DEFAULT <= {p.stem for p in TUTORIALS}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem in BY_DEFAULT else pytest.mark.slow) for p in TUTORIALS],
)
def test_tutorial_runs(path, tmp_path):
    # The root is on the path so that a source tree that is not installed serves as well; output lands in
    # tmp_path.
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": search}
    ran = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
