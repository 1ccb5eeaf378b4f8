"""Malformed calls over the public surface, more than a thousand, each of which must end in an error of ours
that names the argument.

A :class:`~tests.fuzz.case.Case` is one way to get a call wrong: a hypothesis strategy for what is wrong, and
the call. Strategies hold only what is wrong for that argument, so a call that succeeds is a failure of the
test. Nothing here is random from run to run.
"""

import collections
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ppl_ext.errors import PplExtError
from ppl_ext.infer import Checkpoint
from tests.fuzz.core import EXPECTATIONS, HANDLERS, OBJECTIVES, PROGRAMS
from tests.fuzz.meta import LAWS, STREAMS
from tests.fuzz.meta_fits import ADAPTED, LIFTS
from tests.fuzz.priors import FAMILY_CASES, TARGETS
from tests.fuzz.priors_runs import MATCHES, POSTERIORS
from tests.fuzz.runs import DIAGNOSTICS, FITS, REPORTS, RUNS
from tests.fuzz.samplers import SAMPLER_RUNS, SAMPLERS
from tests.fuzz.sequential import SEQUENTIAL, SEQUENTIAL_RUNS
from tests.fuzz.smoothing import SMOOTHED, SMOOTHERS, SMOOTHING_RUNS

DEFAULT_ROWS = 25  # of each table; the others are slow: see conftest.py

ALL = {
    "programs": PROGRAMS,
    "expectations": EXPECTATIONS,
    "objectives": OBJECTIVES,
    "fits": FITS,
    "handlers": HANDLERS,
    "diagnostics": DIAGNOSTICS,
    "reports": REPORTS,
    "runs": RUNS,
    "streams": STREAMS,
    "laws": LAWS,
    "lifts": LIFTS,
    "adapted": ADAPTED,
    "families": FAMILY_CASES,
    "targets": TARGETS,
    "matches": MATCHES,
    "posteriors": POSTERIORS,
    "samplers": SAMPLERS,
    "sampler runs": SAMPLER_RUNS,
    "sequential": SEQUENTIAL,
    "sequential runs": SEQUENTIAL_RUNS,
    "smoothers": SMOOTHERS,
    "smoothing runs": SMOOTHING_RUNS,
    "smoothed": SMOOTHED,
}
CASES = [pytest.param(case, id=f"{group}, {case.name}") for group, cases in ALL.items() for case in cases]
COUNTS: collections.Counter[str] = collections.Counter()

QUIET = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore")  # NumPyro warns of a few of these before it fails
@pytest.mark.parametrize("case", CASES)
def test_a_malformed_call_is_refused_by_name(case):
    @settings(QUIET, max_examples=case.examples)
    @given(case.wrong)
    def refused(wrong):
        COUNTS[case.name] += 1
        with pytest.raises(PplExtError) as caught:
            case.call(wrong)
        message = str(caught.value)
        assert re.search(case.words(wrong) if callable(case.words) else case.words, message), message
        assert len(message.splitlines()) == 1, "one line: what was expected, what came, what to do"
        assert " object at 0x" not in message and "\n" not in message

    refused()


FOREIGN = st.one_of(st.binary(max_size=60), st.just(b"PK\x03\x04"), st.just(b"\x93NUMPY"))


def test_a_file_of_anything_else_is_no_checkpoint(tmp_path):
    path = tmp_path / "run.npz"

    @settings(QUIET, max_examples=25)
    @given(FOREIGN)
    def refused(content):
        COUNTS["foreign files"] += 1
        path.write_bytes(content)
        with pytest.raises(PplExtError, match="run.npz"):
            Checkpoint(path).load({}, {})

    refused()


@pytest.mark.slow  # with all rows of the tables
def test_a_thousand_calls_were_made():
    """After the others; a selection of them proves nothing either way."""
    if len(COUNTS) < len({param.values[0].name for param in CASES}) + 1:
        pytest.skip("only some of the cases ran")
    assert sum(COUNTS.values()) >= 1000, COUNTS
