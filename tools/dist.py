"""A release in one command: ``make dist`` builds the sdist and the wheel, checks both, and tries the wheel.

It stops with a reason where the version has no section in ``CHANGELOG.md``, a file is not what it should be,
or the installed wheel does not work in an environment that has nothing else. What is left in ``dist/`` can be
uploaded as it is.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tools.installed import SCRIPT

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


class NotReadyError(Exception):
    """Why this tree is no release."""


def version_of(source: str) -> str:
    """The version that ``ppl_ext/__init__.py`` states."""
    if (found := re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)) is None:
        raise NotReadyError("ppl_ext/__init__.py states no __version__.")
    return found[1]


def check_changelog(text: str, version: str) -> None:
    """The version has a section of its own, with a date and something in it."""
    section = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$(.*?)(?=^## |\Z)", text, re.M | re.S
    )
    if section is None or not re.search(r"^- ", section[1], re.MULTILINE):
        raise NotReadyError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with a line in it.")


def check_files(version: str, dist: Path) -> tuple[Path, Path]:
    """The sdist and the wheel of this version, alone in the folder, with every source file of the package."""
    names = {f"ppl_ext-{version}.tar.gz", f"ppl_ext-{version}-py3-none-any.whl"}
    if (found := {path.name for path in dist.iterdir()}) != names:
        raise NotReadyError(
            f"dist holds {', '.join(sorted(found))}; it should hold {', '.join(sorted(names))}."
        )
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ppl_ext").rglob("*.py")} | {
        "ppl_ext/py.typed"
    }
    archive, wheel = (dist / name for name in sorted(names, reverse=True))
    with tarfile.open(archive) as sdist:
        in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    for path, held in ((archive, in_sdist), (wheel, in_wheel)):
        if absent := sorted(sources - held):
            raise NotReadyError(f"{path.name} lacks {', '.join(absent[:5])}.")
    return archive, wheel


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Standard output of a command of this Python; the whole output where it fails."""
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReadyError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def try_out(wheel: Path, version: str) -> None:
    """Install the wheel and nothing else, and use it."""
    constraints = ROOT / ("constraints.txt" if sys.version_info < (3, 12) else "constraints-newest.txt")
    with tempfile.TemporaryDirectory() as scratch:
        run("-m", "venv", Path(scratch, "venv"))
        python = Path(scratch, "venv", "Scripts" if sys.platform == "win32" else "bin", "python")
        (script := Path(scratch, "script.py")).write_text(SCRIPT, encoding="utf-8")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints, wheel]
        says = "import importlib.metadata as m; print(m.version('ppl-ext'))"
        for arguments, last in ((install, ""), ([script], "works\n"), (["-c", says], f"{version}\n")):
            done = subprocess.run(
                [python, "-I", *arguments], cwd=scratch, capture_output=True, text=True, check=False
            )
            if done.returncode or not done.stdout.endswith(last):
                raise NotReadyError(f"The installed wheel does not work:\n{done.stdout}{done.stderr}")


def main() -> None:
    version = version_of((ROOT / "ppl_ext" / "__init__.py").read_text(encoding="utf-8"))
    check_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    shutil.rmtree(DIST, ignore_errors=True)
    run("-m", "build", "--outdir", DIST)
    archive, wheel = check_files(version, DIST)
    run("-m", "twine", "check", "--strict", archive, wheel)
    try_out(wheel, version)
    for path in (archive, wheel):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1024:.0f} KiB")
    print(f"ppl_ext {version} is ready.")


if __name__ == "__main__":
    try:
        main()
    except NotReadyError as reason:
        sys.exit(str(reason))
