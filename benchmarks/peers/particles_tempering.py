"""Tempered SMC by ``particles`` (NumPy), on the problem that standard input holds as JSON.

Run by ``benchmarks.smc --particles-python``; prints JSON. It needs an environment of its own, since particles
0.4 wants NumPy before 2: ``python -m venv ENV && ENV/bin/pip install particles==0.4``.
"""

import json
import sys
import time

import numpy as np
import particles
from particles import distributions as dists
from particles import smc_samplers as ssp


class Logistic(ssp.StaticModel):
    def loglik(self, theta, t=None):
        x, y = self.data
        logits = theta["beta"] @ x.T
        return logits @ y - np.logaddexp(0.0, logits).sum(1)


class Hierarchical(ssp.StaticModel):
    def loglik(self, theta, t=None):
        noise, y = self.data
        level = theta["mean"][:, None] + np.exp(theta["log_scale"])[:, None] * theta["effect"]
        return (-0.5 * ((y - level) / noise) ** 2 - np.log(noise) - 0.5 * np.log(2 * np.pi)).sum(1)


def model_of(problem):
    x, y = np.asarray(problem["x"]), np.asarray(problem["y"])
    if problem["name"] == "logistic":
        size = x.shape[1]
        law = dists.StructDist({"beta": dists.MvNormal(loc=np.zeros(size), cov=np.eye(size))})
        return Logistic(data=(x, y), prior=law)
    size = len(y)
    law = {
        "mean": dists.Normal(scale=2.0),
        "log_scale": dists.Normal(),
        "effect": dists.MvNormal(loc=np.zeros(size), cov=np.eye(size)),
    }
    return Hierarchical(data=(x, y), prior=dists.StructDist(law))


def main():
    problem = json.load(sys.stdin)
    model, seconds, found = model_of(problem), [], []
    for _ in range(problem["repeats"]):
        # its last move comes before the last temperature: one more, so that all make as many
        exponents = np.append(problem["temperatures"], 1.0)
        length = problem["num_steps"] + 1
        start = time.perf_counter()
        tempering = ssp.Tempering(model=model, wastefree=False, len_chain=length, exponents=exponents)
        smc = particles.SMC(fk=tempering, N=problem["num_particles"], resampling="systematic", ESSrmin=1.0)
        smc.run()
        seconds.append(time.perf_counter() - start)
        found.append(float(smc.logLt))
    print(json.dumps({"seconds": seconds, "log_evidence": found, "numpy": np.__version__}))


if __name__ == "__main__":
    main()
