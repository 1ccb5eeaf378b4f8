"""PaRIS, and filtering with backward sampling, by ``particles`` (NumPy), on the series that standard input
holds as JSON.

Run by ``benchmarks.smoothing --particles-python``; prints JSON. It needs an environment of its own, since
particles 0.4 wants NumPy before 2: ``python -m venv ENV && ENV/bin/pip install particles==0.4``.
"""

import json
import sys
import time

import numpy as np
import particles
from particles import distributions as dists
from particles import state_space_models as ssms
from particles.collectors import Paris


class LinearGaussian(ssms.StateSpaceModel):
    def PX0(self):  # noqa: N802  a name of particles
        return dists.Normal(loc=0.0, scale=1.0)

    def PX(self, t, xp):  # noqa: N802  a name of particles
        return dists.Normal(loc=self.phi * xp, scale=self.sigma)

    def PY(self, t, xp, x):  # noqa: N802  a name of particles
        return dists.Normal(loc=x, scale=self.noise)

    def upper_bound_log_pt(self, t):
        return -np.log(self.sigma) - 0.5 * np.log(2 * np.pi)

    def add_func(self, t, xp, x):
        return np.zeros_like(x) if xp is None else xp * x


def main():
    problem = json.load(sys.stdin)
    y, num = np.asarray(problem["y"]), problem["num_particles"]
    model = LinearGaussian(**problem["parameters"])
    seconds = {"paris": [], "ffbs": [], "backward mcmc": [], "filter": []}
    value = 0.0
    for _ in range(problem["repeats"]):
        feynman_kac = ssms.Bootstrap(ssm=model, data=y)
        start = time.perf_counter()
        smc = particles.SMC(fk=feynman_kac, N=num, resampling="systematic", ESSrmin=0.5, collect=[Paris()])
        smc.run()
        seconds["paris"].append(time.perf_counter() - start)
        value = float(smc.summaries.paris[-1])
        start = time.perf_counter()
        smc = particles.SMC(fk=feynman_kac, N=num, resampling="systematic", ESSrmin=0.5, store_history=True)
        smc.run()
        seconds["filter"].append(time.perf_counter() - start)
        filtered = time.perf_counter()
        smc.hist.backward_sampling_mcmc(num)
        seconds["backward mcmc"].append(time.perf_counter() - start)
        filtered, again = filtered - start, time.perf_counter()
        smc.hist.backward_sampling_ON2(num)
        seconds["ffbs"].append(time.perf_counter() - again + filtered)
    print(json.dumps({"seconds": seconds, "value": value, "numpy": np.__version__}))


if __name__ == "__main__":
    main()
