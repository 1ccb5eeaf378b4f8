"""What is wrong with a program, its values or its key is said, with the name of the site and the remedy."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from ppl_ext import log_density, simulate
from ppl_ext.errors import ArgumentTypeError, ModelError, ProgramError
from tests.programs import XS, Y3, branching, close, flat, minibatch, plated, random_walk

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py


def refused(error, *names):
    """A block that raises this type, with each of these names in the message."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{n})" for n in names))


def test_a_missing_value():
    with refused(ModelError, "No value for latent site 'z'", "'mu'"):
        log_density(plated, {"mu": 0.0})
    with refused(ModelError, "No value for latent site 'x'"):
        log_density(random_walk, {}, Y3)
    with refused(ModelError, "No value for latent site 'b'"):
        log_density(branching, {"a": 0.1})


def test_a_missing_value_is_never_drawn_even_with_a_key(rng_key):
    with refused(ModelError, "'z'"):
        log_density(plated, {"mu": 0.0}, rng_key=rng_key)
    with refused(ModelError, "'x'"):
        log_density(random_walk, {}, Y3, rng_key=rng_key)


def test_where_a_program_failed_is_told_by_the_name_of_its_last_site_as_it_stands():
    def model():
        numpyro.sample("heat at noon", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, -1.0, validate_args=True), obs=0.0)

    with refused(ProgramError, "failed after site 'heat at noon'"):
        log_density(model, {"heat at noon": 0.0})


def rows_of(law, size=None):
    def model(y):
        if size is None:
            numpyro.sample("y", law, obs=y)
        else:
            with numpyro.plate("rows", size):
                numpyro.sample("y", law, obs=y)

    return model


NORMALS = dist.Normal(np.zeros(3, np.float32), 1.0)
MISSHAPEN = {
    "data against parameters": (
        rows_of(NORMALS),
        ("Normal, has batch shape \\(3,\\)", "value has shape \\(4,\\)", "law's parameters the shape of"),
    ),
    "data against a plate": (
        rows_of(dist.Normal(0.0, 1.0), 3),
        ("Normal, has", "batch shape \\(3,\\)", "numpyro.plate\\('rows', data.shape\\[0\\]\\)"),
    ),
    "data against an event": (
        rows_of(NORMALS.to_event(1)),
        ("Normal, has", "event shape \\(3,\\)", "last axis is one draw, \\(3,\\)"),
    ),
    "parameters against a plate": (
        rows_of(NORMALS, 4),
        ("failed at site 'y'", "plate 'rows' has size 4 on axis -1", "to_event"),
    ),
}


@pytest.mark.parametrize("name", list(MISSHAPEN))
def test_shapes_that_do_not_fit_are_told_with_what_to_change(name):
    model, words = MISSHAPEN[name]
    with refused(ProgramError, "program 'model' failed", "site 'y'", *words):
        log_density(model, {}, np.zeros(4, np.float32))


def test_a_value_without_a_site():
    with refused(ModelError, "no latent site 'zz'", "it has 'z'"):
        log_density(flat, {"z": 0.1, "zz": 0.2})
    with refused(ModelError, "no latent site 'twice'"):
        log_density(flat, {"z": 0.1, "twice": 0.2})


def test_a_value_for_an_observed_site():
    with refused(ModelError, "'y' is observed"):
        log_density(flat, {"z": 0.1, "y": 0.2})
    with refused(ModelError, "'y' is observed"):
        log_density(random_walk, {"x": XS, "y": Y3}, Y3)


@pytest.mark.parametrize(
    "value", [np.zeros(2), np.zeros((3, 3)), np.zeros((2, 3)), 0.0], ids=lambda v: str(np.shape(v))
)
def test_a_value_of_the_wrong_shape(value):
    with refused(ModelError, "Shapes disagree at site 'z'", r"\(3,\)"):
        log_density(plated, {"mu": 0.0, "z": value})


def test_values_of_the_wrong_shape_in_scan():
    for wrong in (np.zeros(4), np.zeros(2), np.zeros((3, 2))):
        with refused(ModelError, "Shapes disagree at site 'x'"):
            log_density(random_walk, {"x": wrong}, Y3)


def test_leading_axes_of_size_one_are_no_disagreement():
    close(
        log_density(plated, {"mu": 0.0, "z": np.zeros((1, 3))}).total,
        log_density(plated, {"mu": 0.0, "z": np.zeros(3)}).total,
    )


def test_two_sites_of_one_name(rng_key):
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    with refused(ModelError, "'z' appears twice"):
        simulate(model, rng_key=rng_key)
    with refused(ModelError, "'z' appears twice"):
        log_density(model, {"z": 0.0})


def test_no_key():
    with refused(ModelError, "No random key to draw sample 'z'", "rng_key"):
        simulate(flat)
    with refused(ModelError, "No random key to draw plate 'n'"):
        log_density(minibatch, {"mu": 0.0})


def test_no_key_in_scan():
    with refused(ModelError, "No random key", "'x'"):
        simulate(random_walk, Y3)


def test_no_program_and_no_dict(rng_key):
    with refused(ArgumentTypeError, "program must be a NumPyro program", "got 3"):
        simulate(3, rng_key=rng_key)
    with refused(ArgumentTypeError, "program must be a NumPyro program", "got None"):
        log_density(None, {})
    with refused(ArgumentTypeError, "values must be a dict", "list"):
        log_density(flat, [0.1])


def test_a_site_marked_for_enumeration_that_cannot_be():
    def model():
        numpyro.sample("k", dist.Poisson(0.3), infer={"enumerate": "parallel"})

    with refused(ModelError, "'k'", "marked for enumeration"):
        log_density(model, {})
