#!/usr/bin/env bash
# arviz.loo computes its importance weights in the precision of the log likelihood that it is handed. In float32, which is what JAX gives
# and what from_numpyro keeps, weights that span hundreds of nats underflow before the tail is fitted: ArviZ 0.23 then reports a Pareto k-hat of
# 0.048 (1/21), "good", with no warning, and ArviZ 1.3 reports NaN, where the same numbers in float64 give 23 to 28, "very bad".
#
# Expected from memory: the same k-hat up to rounding, or at least one that is as bad.
# Versions: arviz 0.23.4 and arviz 1.3.0, on Python 3.11 and 3.13.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/look.py" <<'PYTHON'
import sys
import warnings

import arviz
import numpy as np

rng = np.random.default_rng(0)
log_likelihood = 80.0 * rng.normal(size=(2, 500, 3))
found = {}
for dtype in (np.float32, np.float64):
    groups = {"posterior": {"a": rng.normal(size=(2, 500))}, "log_likelihood": {"y": log_likelihood.astype(dtype)}}
    report = arviz.from_dict(**groups) if arviz.__version__.startswith("0.") else arviz.from_dict(groups)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        k = np.asarray(arviz.loo(report, pointwise=True).pareto_k)
    found[dtype.__name__] = k
    told = any("shape parameter" in str(w.message) for w in caught)
    print(f"arviz {arviz.__version__}, {dtype.__name__}: k-hat {k.round(3).tolist()}, warned of the shape: {told}")
assert (found["float64"] > 20).all()
if sys.argv[1] == "0":
    assert np.allclose(found["float32"], 1 / 21)
else:
    assert np.isnan(found["float32"]).all()
PYTHON
look() {
    "$1" -m venv "$work/$2"
    "$work/$2/bin/python" -m pip -qq --disable-pip-version-check install "${@:4}"
    "$work/$2/bin/python" "$work/look.py" "$3"
}
look python3.11 old 0 arviz==0.23.4 numpy==2.4.6 xarray==2026.9.0 scipy==1.17.1
look "${NEW_PYTHON:-python3.13}" new 1 arviz==1.3.0 arviz-base==1.3.1 arviz-stats==1.3.3 arviz-plots==1.3.2 numpy==2.4.6 \
    xarray==2026.9.0 scipy==1.17.1
# Output seen:
#   arviz 0.23.4, float32: k-hat [0.048, 0.048, 0.048], warned of the shape: False
#   arviz 0.23.4, float64: k-hat [28.372, 22.936, 24.13], warned of the shape: True
#   arviz 1.3.0, float32: k-hat [nan, nan, nan], warned of the shape: False
#   arviz 1.3.0, float64: k-hat [28.643, 22.866, 24.086], warned of the shape: True
