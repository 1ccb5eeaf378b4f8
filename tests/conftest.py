"""What every test stands on: the CPU, and a key to start from."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")


@pytest.fixture
def rng_key():
    """The key a test starts from."""
    return jax.random.key(0)
