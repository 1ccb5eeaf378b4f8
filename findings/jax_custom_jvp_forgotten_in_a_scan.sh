#!/usr/bin/env bash
# JAX 0.10.2: a custom_jvp rule inside lax.scan is used for the first derivative and forgotten for the second
# where this goes backwards through the loop.
#
# f(m, a, s) = sin(m) s is called with s = a, and its rule says df = cos(m) a dm + sin(m) da: s counts for
# nothing, since a stands for it. That is the derivative of sin(m) a, and without the scan all orders follow it.
# In a scan jax.grad does, too, and so do two forward derivatives; but jax.hessian (and grad of grad) takes
# derivatives of what the function computes instead of asking the rule again. Nothing is told.
# One would guess that a rule holds for every derivative or for none, as the page on custom rules reads.
# What computes by one formula and has derivatives by another must make both agree, or second derivatives
# are those of neither.
#
# Output seen (jax 0.10.2):
#   unrolled: gradient 1.8009, hessian 0.7235
#   scan: gradient 1.8009, forward twice 0.7235, hessian 0.9307, grad of grad 0.9307
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" -q install jax==0.10.2 jaxlib==0.10.2
cat > "$folder/rule.py" <<'PY'
import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def f(m, a, s):
    return jnp.sin(m) * s


@f.defjvp
def rule(primals, tangents):
    m, a, s = primals
    dm, da, _ = tangents
    return f(m, a, s), jnp.cos(m) * a * dm + jnp.sin(m) * da


def unrolled(a):
    m = 0.3
    for _ in range(3):
        m = f(m, a, lax.stop_gradient(a))
    return m


def scanned(a):
    return lax.scan(lambda m, _: (f(m, a, lax.stop_gradient(a)), None), jnp.asarray(0.3), None, length=3)[0]


def twice(fn):
    return jax.jacfwd(jax.jacfwd(fn))(1.7)


print(f"unrolled: gradient {jax.grad(unrolled)(1.7):.4f}, hessian {jax.hessian(unrolled)(1.7):.4f}")
hessian, again = jax.hessian(scanned)(1.7), jax.grad(jax.grad(scanned))(1.7)
print(
    f"scan: gradient {jax.grad(scanned)(1.7):.4f}, forward twice {twice(scanned):.4f}, hessian {hessian:.4f}, "
    f"grad of grad {again:.4f}"
)
assert abs(jax.grad(unrolled)(1.7) - jax.grad(scanned)(1.7)) < 1e-4
assert abs(twice(scanned) - jax.hessian(unrolled)(1.7)) < 1e-3
assert abs(hessian - 0.9307) < 1e-3 and abs(again - 0.9307) < 1e-3, "the rule is asked again: finding is stale"
PY
"$folder/env/bin/python" "$folder/rule.py"
