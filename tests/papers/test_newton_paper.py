"""What the program on regularised Newton steps claims, at its small size."""

import re

from tests.papers.programs import claims


def test_it_reaches_the_mode_from_everywhere():
    found = {row.claim.split("from starts of size ")[1]: row.ours for row in claims("regularized_newton")}
    assert len(found) == 9
    for size in ("0.5", "5", "20"):
        reached, of, steps = map(float, re.findall(r"[\d.]+", found[f"{size}, regularised Newton"]))
        assert reached == of == 3 and steps <= 25
        assert found[f"{size}, L-BFGS"].startswith("3 of 3")
        if size != "0.5":
            assert found[f"{size}, Newton"] == "0 of 3"
