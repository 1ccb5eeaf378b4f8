"""A module of the tests in a process of its own, with several devices on this host."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_on(
    devices: int,
    module: str,
    *arguments: object,
    timeout: float | None = None,
    num_threads: int | None = None,
) -> None:
    """``python -m module arguments``; its errors, if it fails, or takes longer than ``timeout`` seconds."""
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "NPROC": str(num_threads or 2 * devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
