#!/usr/bin/env bash
# NumPyro 0.22.0: a subsampled plate that a model enters twice by its name picks other rows the second time.
#
# One would guess that a name has one subsample in a run, as it is one site of the trace. Two blocks
# `with numpyro.plate("rows", 1000, subsample_size=4)` draw an index each, the trace keeps the second, and
# nothing is said. Where the first block reads rows that the second one uses, rows are paired with strangers:
# a regression of x on itself, whose residuals are zero, has a loss of a billion or more in SVI where the
# guide has no plate of that name. A guide that enters the plate makes both the same, as its index is replayed;
# so does one plate object that is entered twice.
#
# Output seen:
#   two blocks: the same rows? False
#   one object: the same rows? True
#   the trace keeps the second: True
#   loss, two blocks: above a million? True
#   loss, two blocks, a guide with the plate: above a million? False
#   loss, one object: above a million? False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" -q install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cat > "$folder/plates.py" <<'PY'
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.handlers import seed, trace
from numpyro.infer import SVI, Trace_ELBO

X = jnp.arange(1000.0)


def rows():
    return numpyro.plate("rows", 1000, subsample_size=4)


def two_blocks():
    return rows(), rows()


def one_object():
    of = rows()
    return of, of


def model(plates):
    first, second = plates()
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with first as index:
        mean = X[index] + level
    with second as index:
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=X[index])
    return mean - level, X[index]


def guide(plates):
    numpyro.sample("level", dist.Normal(numpyro.param("loc", 0.0), 0.1))


def guide_with_the_plate(plates):
    guide(plates)
    with rows():
        pass


def loss(plates, guide):
    svi = SVI(model, guide, optax.adam(0.01), Trace_ELBO())
    return svi.evaluate(svi.init(jax.random.key(0), plates), plates)


for name, plates in (("two blocks", two_blocks), ("one object", one_object)):
    with seed(rng_seed=0), trace() as record:
        mean, y = model(plates)
    print(f"{name}: the same rows?", bool(jnp.allclose(mean, y, atol=1e-2)))
    if plates is two_blocks:
        kept = bool((X[record["rows"]["value"]] == y).all())
two, with_plate, one = loss(two_blocks, guide), loss(two_blocks, guide_with_the_plate), loss(one_object, guide)
print("the trace keeps the second:", kept)
print("loss, two blocks: above a million?", bool(two > 1e6))
print("loss, two blocks, a guide with the plate: above a million?", bool(with_plate > 1e6))
print("loss, one object: above a million?", bool(one > 1e6))
PY
JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/plates.py" | tee "$folder/seen"
cat > "$folder/known" <<'TXT'
two blocks: the same rows? False
one object: the same rows? True
the trace keeps the second: True
loss, two blocks: above a million? True
loss, two blocks, a guide with the plate: above a million? False
loss, one object: above a million? False
TXT
diff "$folder/known" "$folder/seen"
