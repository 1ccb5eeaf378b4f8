"""Large batches of episodes over devices that one host pretends to have come to an end: where a thread pool
is too small for that, it is said before anything starts.
"""

import pytest

from tests.on_devices import run_on

LONG = 300.0  # seconds; a run takes half a minute, compilation included


@pytest.mark.parametrize(
    ("devices", "num_episodes"),
    [
        (2, 256),
        *(pytest.param(d, n, marks=pytest.mark.slow) for d in (2, 4) for n in (1024, 4096)),
        pytest.param(4, 256, marks=pytest.mark.slow),
    ],
)
def test_they_return_what_one_device_returns(devices, num_episodes):
    run_on(devices, "tests.meta.many_episodes", devices, num_episodes, "spread", timeout=LONG)


@pytest.mark.parametrize("devices", [2])
def test_too_few_threads_are_refused(devices):
    run_on(devices, "tests.meta.many_episodes", devices, 256, "refused", timeout=LONG, num_threads=devices)
