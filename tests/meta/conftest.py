"""One fit that many tests read."""

import pytest

from ppl_ext.meta import lift
from tests.meta.test_lift import line, quiet


@pytest.fixture(scope="session")
def fitted():
    return quiet(lift(line, ["w"]))
