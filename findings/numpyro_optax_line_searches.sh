#!/usr/bin/env bash
# NumPyro 0.22.0 with optax 0.2.8: SVI takes optax's optimisers, but none that searches along a line.
#
# SVI hands the loss on to optax ("value"), so that Polyak's step size works, and one would guess that L-BFGS
# does too. It needs the gradient and the loss as a function as well ("grad", "value_fn"), which NumPyro has
# at hand and does not pass: every such run ends in a TypeError about keyword arguments, from inside optax.
# The same optimisers without their line search work. For a deterministic loss numpyro.optim.Minimize is the
# way.
#
# Output seen:
#   polyak_sgd runs
#   lbfgs TypeError
#   lbfgs without its search runs
#   sgd with a backtracking search TypeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" -q install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cat > "$folder/searches.py" <<'PY'
import jax
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta


def model():
    numpyro.sample("z", dist.Normal(2.0, 1.0))


search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
for name, optim in {
    "polyak_sgd": optax.polyak_sgd(),
    "lbfgs": optax.lbfgs(),
    "lbfgs without its search": optax.lbfgs(0.1, linesearch=None),
    "sgd with a backtracking search": optax.chain(optax.sgd(1.0), search),
}.items():
    svi = SVI(model, AutoDelta(model), optim, Trace_ELBO())
    try:
        svi.run(jax.random.key(0), 5, progress_bar=False)
        print(name, "runs")
    except TypeError:
        print(name, "TypeError")
PY
JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/searches.py" | tee "$folder/seen"
cat > "$folder/known" <<'TXT'
polyak_sgd runs
lbfgs TypeError
lbfgs without its search runs
sgd with a backtracking search TypeError
TXT
diff "$folder/known" "$folder/seen"
