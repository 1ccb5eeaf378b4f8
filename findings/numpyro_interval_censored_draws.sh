#!/usr/bin/env bash
# NumPyro's IntervalCensoredDistribution draws points, and its density takes intervals: a draw has not the law's own shape, and log_prob
# reads two rows' points as the two ends of one interval, without a word. What Predictive draws of such a site cannot be scored again, and
# with any number of rows but two the error comes later, from broadcasting.
#
# Expected from memory: x = d.sample(key) has the shape d.shape(), and d.log_prob(x) is the density of that draw.
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
from jax.scipy.stats import norm

nothing = jnp.zeros(2, bool)
d = dist.IntervalCensoredDistribution(dist.Normal(jnp.zeros(2), 1.0), left_censored=nothing, right_censored=nothing)
x = d.sample(random.key(0))
print("shape of the law", d.shape(), "of a draw", x.shape)
low, high = sorted(map(float, x))
between = jnp.log(norm.cdf(high) - norm.cdf(low))
scored = d.log_prob(jnp.array([low, high]))
print("the draws of two rows, scored:", [round(float(v), 4) for v in scored], "and log P(between the two)", round(float(between), 4))
assert d.shape() == (2, 2) and x.shape == (2,)
assert jnp.allclose(scored, between, atol=1e-4)
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   shape of the law (2, 2) of a draw (2,)
#   the draws of two rows, scored: [-3.4766, -3.4766] and log P(between the two) -3.4766
