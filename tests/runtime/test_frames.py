"""What the library looks for by name in frames of NumPyro is there by that name."""

import importlib

import numpyro.distributions as dist
import pytest
from numpyro.distributions.distribution import Distribution
from numpyro.primitives import plate

from ppl_ext.algorithms import particle_filter
from ppl_ext.runtime import explain


def test_methods_whose_frames_are_read():
    assert plate.process_message.__qualname__ == "plate.process_message"
    assert plate.process_message.__module__ == "numpyro.primitives"
    assert "msg" in plate.process_message.__code__.co_varnames
    assert Distribution.sample.__qualname__ == "Distribution.sample"
    assert Distribution.sample.__module__.startswith("numpyro.distributions")
    with pytest.raises(NotImplementedError) as caught:
        dist.ImproperUniform(dist.constraints.real, (), ()).sample(None)
    assert explain._without_sampler(caught.value) == "ImproperUniform"


@pytest.mark.parametrize("name", sorted(particle_filter._SAMPLERS))
def test_modules_of_samplers(name):
    assert importlib.import_module(name).__name__ == name
