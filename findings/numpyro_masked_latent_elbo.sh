#!/usr/bin/env bash
# A latent site that the model masks (padding of ragged groups, or the observed half of obs_mask) has no density in NumPyro's Trace_ELBO,
# while the guide's entropy at it counts: the "lower bound" passes the evidence, and grows with the width of the guide at what is not there.
#
# Expected from memory: the evidence lower bound stays below the log evidence whatever the guide.
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
from numpyro.infer import Trace_ELBO

y, seen = jnp.array([1.0, 0.0]), jnp.array([True, False])
log_evidence = float(dist.Normal(0.0, 2.0**0.5).log_prob(1.0))


def model():
    with numpyro.plate("rows", 2):
        numpyro.sample("y", dist.Normal(0.0, 2.0**0.5), obs=y, obs_mask=seen)


def guide(width):
    def program():
        with numpyro.plate("rows", 2):
            numpyro.sample("y_unobserved", dist.Normal(0.0, jnp.where(seen, width, 2.0**0.5)))

    return program


bounds = [-float(Trace_ELBO(num_particles=1000).loss(jax.random.key(0), {}, model, guide(w))) for w in (0.1, 1.0, 100.0)]
print(f"log evidence {log_evidence:.2f}, 'lower bounds' {[round(b, 2) for b in bounds]}")
assert bounds[0] < log_evidence < bounds[2] and bounds[2] - bounds[0] > 6
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   log evidence -1.52, 'lower bounds' [-2.4, -0.1, 4.5]
