#!/usr/bin/env bash
# After MCMC.warmup(...), which keeps nothing by default, get_samples() of NumPyro gives num_samples draws all the same: zeros, even of a
# scale. Nothing has been sampled yet, and no error says so. With collect_warmup=True it gives the warm-up's draws.
#
# Expected from memory: an error, as before anything has run, or no draws.
# Versions: numpyro 0.22.0, jax 0.10.2, on Python 3.11.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip -qq --disable-pip-version-check install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$work/look.py" <<'PYTHON'
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import MCMC, NUTS


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=4, progress_bar=False)
mcmc.warmup(random.key(0), 5.0)
found = {name: np.asarray(x) for name, x in mcmc.get_samples().items()}
print("after warmup():", {name: x.tolist() for name, x in found.items()})
assert all((x == 0).all() and x.shape == (4,) for x in found.values())
mcmc.run(random.key(1), 5.0)
print("after run():", {name: [round(float(v), 2) for v in x] for name, x in mcmc.get_samples().items()})
assert np.ptp(np.asarray(mcmc.get_samples()["mu"])) > 0
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   after warmup(): {'mu': [-0.0, -0.0, -0.0, -0.0], 'sigma': [0.0, 0.0, 0.0, 0.0]}
#   after run(): {'mu': [0.49, 1.0, 0.87, 0.16], 'sigma': [2.19, 2.57, 2.61, 2.39]}
