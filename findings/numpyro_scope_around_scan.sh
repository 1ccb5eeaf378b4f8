#!/usr/bin/env bash
# NumPyro's scope around a model with a scan renames the sites of its steps when they are stacked, and not while they run. Values given by the
# names that the trace shows do not reach the steps: there the sites are drawn anew. log_density then depends on a random key, and NUTS
# samples something else than the posterior. Of handlers.do around a scan, the intervention reaches no step either.
#
# Expected from memory: scope changes names and nothing else, and an intervention is one at any site that the trace shows.
# Versions: numpyro 0.22.0, jax 0.10.2, on Python 3.11.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip -qq --disable-pip-version-check install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$work/look.py" <<'PYTHON'
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from numpyro import sample
from numpyro.contrib.control_flow import scan
from numpyro.handlers import do, scope, seed
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

y = jnp.array([2.0, -2.0, 2.0, -2.0, 2.0])


def model():
    level = sample("level", dist.Normal(0.0, 0.1))

    def step(carry, y_t):
        x = sample("x", dist.Normal(level, 3.0))
        sample("y", dist.Normal(x, 0.2), obs=y_t)
        return carry, x

    return scan(step, 0.0, y)[1]


values = {"level": 0.0, "x": y}
plain = float(log_density(seed(model, 0), (), {}, values)[0])
scoped = [float(log_density(seed(scope(model, prefix="a"), s), (), {}, {f"a/{n}": v for n, v in values.items()})[0]) for s in (0, 1)]
print(f"log density {plain:.1f}; scoped, with two seeds, {scoped[0]:.1f} and {scoped[1]:.1f}")

means = []
for program, name in ((model, "x"), (scope(model, prefix="a"), "a/x")):
    mcmc = MCMC(NUTS(program), num_warmup=300, num_samples=300, progress_bar=False)
    mcmc.run(random.key(0))
    means.append(mcmc.get_samples()[name].mean(0))
print(f"furthest posterior mean from the data: {float(abs(means[0] - y).max()):.2f}; scoped: {float(abs(means[1] - y).max()):.2f}")

returned = seed(do(model, {"x": jnp.full(5, 9.0)}), 0)()
print(f"steps that return the value of an intervention: {int((returned == 9.0).sum())} of 5")

assert abs(scoped[0] - scoped[1]) > 1.0
assert abs(means[0] - y).max() < 0.5 < 1.0 < abs(means[1] - y).max()
assert not (returned == 9.0).any()
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   log density -6.4; scoped, with two seeds, -446.5 and -959.5
#   furthest posterior mean from the data: 0.02; scoped: 5142153265152.00
#   steps that return the value of an intervention: 0 of 5
