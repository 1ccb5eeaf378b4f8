#!/usr/bin/env bash
# NumPyro's validation is on by default and decides what a log density is, under jit too. With it, an observation that is NaN has the log
# density minus infinity, so that nothing downstream is NaN and a check for NaN never fires; without it, values outside of the support of an
# Exponential or a HalfNormal have finite densities, so that a model is fitted to impossible data in silence.
#
# Expected from memory: validation is off by default and only warns or raises; enable_validation's own note says that it does not take
# effect under jit. NaN in, NaN out.
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
from numpyro.distributions import Distribution

print("validated by default:", Distribution._validate_args)
found = {}
for on in (True, False):
    with numpyro.validation_enabled(on):
        densities = (
            jax.jit(lambda y: dist.Normal(0.0, 1.0).log_prob(y))(jnp.nan),
            jax.jit(lambda y: dist.Exponential(1.0).log_prob(y))(-1.0),
            jax.jit(lambda y: dist.HalfNormal(1.0).log_prob(y))(-1.0),
        )
        found[on] = [round(float(x), 3) for x in densities]
        print("validation", on, "- Normal at NaN, Exponential at -1, HalfNormal at -1:", found[on])
assert "jit" in numpyro.enable_validation.__doc__.lower()
assert Distribution._validate_args is True
assert found[True] == [-jnp.inf] * 3
assert found[False][0] != found[False][0] and found[False][1:] == [1.0, -0.726]
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   validated by default: True
#   validation True - Normal at NaN, Exponential at -1, HalfNormal at -1: [-inf, -inf, -inf]
#   validation False - Normal at NaN, Exponential at -1, HalfNormal at -1: [nan, 1.0, -0.726]
