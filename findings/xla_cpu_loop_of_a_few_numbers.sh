#!/usr/bin/env bash
# XLA for CPUs (jax 0.10.2): lax.scan has a cliff. A loop whose body touches few bytes is compiled into one
# piece of code; with a few numbers more in the state, each operation of the body is started by itself, and a
# step takes a hundred times as long. An option that no page lists moves the cliff:
# XLA_FLAGS=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=BYTES.
#
# A Kalman filter of d numbers over 10,000 steps, as written in textbooks. One would guess a step's time to
# grow smoothly, by the operations (d = 4 has twice those of d = 3); and that what is slow is JAX's
# dispatch, which the loop never comes back to. The option is not one of jax.jit's compiler_options, where it
# is "no such compile option"; as a plain flag it is unknown. With tinygp's QuasisepSolver (Matern 3/2, 10,000
# times, evidence and gradient) it was worth a factor of five.
#
# Output seen (d, ns a step as it is, and by the option; times vary, the assertions ask for a factor of five):
#   2 21    2 21
#   3 30    3 33
#   4 3101  4 43
#   5 2900  5 71
#   6 2923  6 121
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" -q install jax==0.10.2 jaxlib==0.10.2
cat > "$folder/loop.py" <<'PY'
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def filtered(slope, noise, y):
    def step(law, z):
        mean, cov = law
        f, q, obs = z
        mean, cov = f @ mean, f @ cov @ f.T + q
        size, error = cov[0, 0] + 1.0, obs - mean[0]
        gain = cov[:, 0] / size
        return (mean + gain * error, cov - jnp.outer(gain, cov[0])), -0.5 * (jnp.log(size) + error**2 / size)

    d = slope.shape[-1]
    return lax.scan(step, (jnp.zeros(d), jnp.eye(d)), (slope, noise, y))[1].sum()


num, run = 10_000, jax.jit(filtered)
for d in (2, 3, 4, 5, 6):
    slope = jnp.broadcast_to(0.9 * jnp.eye(d), (num, d, d)) + 0.0
    y = jnp.asarray(np.random.default_rng(0).normal(size=num), jnp.float32)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(run(slope, slope, y))
        times.append(time.perf_counter() - start)
    print(f"{d} {1e9 * min(times[1:]) / num:.0f}")
PY
option=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=65536
JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/loop.py" > "$folder/as_it_is"
JAX_PLATFORMS=cpu XLA_FLAGS=$option "$folder/env/bin/python" "$folder/loop.py" > "$folder/by_option"
paste "$folder/as_it_is" "$folder/by_option"
paste "$folder/as_it_is" "$folder/by_option" | awk '
    $1 == 3 { three = $2; if ($2 > 5 * $4) bad = 1 }
    $1 >= 4 { if ($2 < 5 * $4 || $2 < 5 * three) bad = 1 }
    END { exit bad }' || { echo "changed: the cliff is elsewhere"; exit 1; }
