#!/usr/bin/env bash
# NumPyro's scan with reverse=True stacks its sites in the order of the inputs, and reads values given to them in the order in which the
# steps run. So a trace that is handed back to its own model has another density, and what MCMC returns of such a site is mirrored, unless
# the model also has a deterministic site somewhere: then it is not.
#
# Expected from memory: substituting a model's own trace gives the trace's density, and a deterministic site changes no sample.
# Versions: numpyro 0.22.0, jax 0.10.2, on Python 3.11.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip -qq --disable-pip-version-check install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$work/look.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

y = jnp.array([0.0, 2.0, 4.0, 6.0])


def model(y, derived=False):
    if derived:
        numpyro.deterministic("constant", 1.0)

    def step(x_after, y_t):
        x = numpyro.sample("x", dist.Normal(x_after, 3.0))
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y_t)
        return x, None

    scan(step, jnp.zeros(()), y, reverse=True)


drawn = trace(seed(model, jax.random.key(0))).get_trace(y)
own = sum(float(site["fn"].log_prob(site["value"]).sum()) for site in drawn.values())
handed_back = float(log_density(model, (y,), {}, {"x": drawn["x"]["value"]})[0])
print(f"density of a trace {own:.2f}, of its values handed back {handed_back:.2f}")

means = []
for derived in (False, True):
    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=300, progress_bar=False)
    mcmc.run(jax.random.key(0), y, derived)
    means.append(mcmc.get_samples()["x"].mean(0))
    print(f"posterior mean of x {'with' if derived else 'without'} a deterministic site: {[round(float(m), 1) for m in means[-1]]}")

assert abs(own - handed_back) > 1.0
assert jnp.allclose(means[0], y[::-1], atol=0.5) and jnp.allclose(means[1], y, atol=0.5)
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   density of a trace -1568.01, of its values handed back -995.12
#   posterior mean of x without a deterministic site: [5.9, 4.0, 2.0, 0.0]
#   posterior mean of x with a deterministic site: [0.0, 2.0, 4.0, 5.9]
