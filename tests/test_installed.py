"""The wheel in an environment of its own, without any extra: what it does there, and what it says of an extra
that is missing.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.test_house import ROOT, build, run
from tools.installed import SCRIPT


@pytest.mark.slow
def test_the_wheel_works_without_extras_and_names_the_one_that_is_missing(tmp_path):
    for name in ("tree", "dist"):
        (tmp_path / name).mkdir()
    [wheel] = build(tmp_path / "tree", tmp_path / "dist").glob("*.whl")
    run("-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    constraints = "constraints.txt" if sys.version_info < (3, 12) else "constraints-newest.txt"
    install = ["-m", "pip", "install", "--quiet", "-c", ROOT / constraints, wheel]
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    for arguments in (install, [tmp_path / "script.py"]):
        last = in_environment(python, arguments, tmp_path)
    assert last.endswith("works\n")


def in_environment(python: Path, arguments: list, folder: Path) -> str:
    done = subprocess.run([python, "-I", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
