#!/usr/bin/env bash
# The vector of an automatic guide (AutoMultivariateNormal and all others of one vector) has its sites in the model's order if SVI.init is
# called as it is, and in the order of their names if it is called under jit, or vmapped over keys for restarts: the search for a first
# point is then a while_loop, which hands a dictionary on sorted. So auto_loc and auto_scale_tril of the two do not fit together, without an
# error where all sites are scalars: a vector that was saved by one and given to the other as init_params swaps the sites.
#
# Expected from memory: jit changes when something is compiled and not what a parameter means; the layout is the model's order of sites.
# Versions: numpyro 0.22.0, jax 0.10.2, on Python 3.11.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/python" -m pip -qq --disable-pip-version-check install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$work/look.py" <<'PYTHON'
import jax
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoMultivariateNormal


def model():
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("a", dist.Normal(0.0, 1.0))


found = {}
for how, wrap in (("plain", lambda f: f), ("jit", jax.jit)):
    guide = AutoMultivariateNormal(model, init_loc_fn=init_to_value(values={"z": 26.0, "a": 1.0}))
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    found[how] = svi.get_params(wrap(svi.init)(jax.random.key(0)))["auto_loc"].tolist()
    print(how, "- auto_loc where z begins at 26 and a at 1:", found[how])
assert found == {"plain": [26.0, 1.0], "jit": [1.0, 26.0]}

guide = AutoMultivariateNormal(model)
svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
given = svi.init(jax.random.key(0), init_params={"auto_loc": jax.numpy.array(found["jit"])})
median = {name: float(x) for name, x in guide.median(svi.get_params(given)).items()}
print("the jitted vector read by a guide set up without jit:", median)
assert median == {"z": 1.0, "a": 26.0}
PYTHON
"$work/venv/bin/python" "$work/look.py"
# Output seen:
#   plain - auto_loc where z begins at 26 and a at 1: [26.0, 1.0]
#   jit - auto_loc where z begins at 26 and a at 1: [1.0, 26.0]
#   the jitted vector read by a guide set up without jit: {'z': 1.0, 'a': 26.0}
