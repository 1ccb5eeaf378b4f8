"""Draws of a projection DPP by DPPy (NumPy), of the size that standard input holds as JSON.

Run by ``benchmarks.dpp --dppy-python``; prints JSON. It needs an environment of its own: ``python -m venv ENV
&& ENV/bin/pip install dppy==0.3.3``.
"""

import json
import sys
import time

import numpy as np
from dppy.finite_dpps import FiniteDPP


def main():
    problem = json.load(sys.stdin)
    features = np.random.default_rng(0).normal(size=(problem["candidates"], problem["features"]))
    start = time.perf_counter()
    basis, _ = np.linalg.qr(features)
    dpp = FiniteDPP("correlation", projection=True, K_eig_dec=(np.ones(basis.shape[1]), basis))
    built = time.perf_counter() - start
    rng, seconds, leverages = np.random.RandomState(1), [], []
    for _ in range(problem["repeats"]):
        start = time.perf_counter()
        rows = dpp.sample_exact(random_state=rng)
        seconds.append(time.perf_counter() - start)
        leverages.append(float((basis[rows] ** 2).sum(1).mean()))
    print(json.dumps({"seconds": seconds, "built": built, "leverages": leverages, "numpy": np.__version__}))


if __name__ == "__main__":
    main()
