"""One run over two processes: the numbers of one process, and what becomes of it when one of them is
killed.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def start(num: int, folder: Path, what: str) -> list[subprocess.Popen]:
    """``num`` processes with two devices each; one process has one device."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={min(num, 2)}",
        "NPROC": "4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    flags |= {"JAX_COMPILATION_CACHE_DIR": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "tests.processes", address, str(num)]
    return [
        subprocess.Popen(
            [*command, str(i), str(folder), what], cwd=ROOT, env={**os.environ, **flags}, **pipes
        )
        for i in range(num)
    ]


def run(num: int, folder: Path, what: str) -> list[dict[str, np.ndarray]]:
    processes = start(num, folder, what)
    said = [process.communicate(timeout=1200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * num, "\n".join(said)
    return [dict(np.load(folder / f"{what}-{num}-{i}.npz")) for i in range(num)]


def agree(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-4, atol=2e-4, err_msg=name)


def test_two_processes_give_what_one_gives(tmp_path):
    """Chains of a fit and of MCMC, particles, episodes; and each of the two has all of the result."""
    [one] = run(1, tmp_path, "all")
    first, second = run(2, tmp_path, "all")
    agree(first, one)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on_from_its_checkpoint(tmp_path, killed):
    processes = start(2, tmp_path, f"killed:{killed}")
    processes[killed].communicate(timeout=600)
    assert processes[killed].returncode == -9
    died = time.monotonic()
    said = processes[1 - killed].communicate(timeout=120)[0]
    assert time.monotonic() - died < 60
    assert processes[1 - killed].returncode not in (0, -9)
    assert "lost another one" in said or "distributed service detected fatal errors" in said, said
    assert not list(tmp_path.glob("killed*.npz")) and (tmp_path / "run.npz").exists()
    assert 20 <= np.load(tmp_path / "run.npz")["losses"].shape[1] < 200
    first, _ = run(2, tmp_path, "resumed")
    (tmp_path / "run.npz").unlink()
    [whole] = run(1, tmp_path, "resumed")
    agree(first, whole)
