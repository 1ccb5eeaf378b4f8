#!/usr/bin/env bash
# NumPyro 0.22.0: LowRankMultivariateNormal.precision_matrix is no inverse of its covariance_matrix.
#
# Both are public properties of one law, and one would guess that they are each other's inverse, as those of
# MultivariateNormal are. With fewer factors than dimensions, which is what the law is for, precision_matrix
# raises a ValueError about a "core dimension"; with as many it returns a matrix that is wrong, in silence.
# log_prob is right, which is checked beside it. Whoever wants the precision of an
# AutoLowRankMultivariateNormal guide inverts the covariance.
#
# Output seen (largest entry of covariance @ precision - I):
#   MultivariateNormal 0.00
#   3 factors, 3 dimensions 30.49
#   2 factors, 3 dimensions ValueError
#   log_prob right
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" -q install numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/low_rank.py" <<'PY'
import jax.numpy as jnp
import numpyro.distributions as dist
from scipy.stats import multivariate_normal

W = jnp.array([[1.0, 0.2, 0.0], [0.5, -1.0, 0.3], [0.0, 2.0, 1.0]])
diagonal, at = jnp.array([0.5, 1.0, 2.0]), jnp.array([0.3, -1.0, 2.0])


def off(law):
    return float(jnp.abs(law.covariance_matrix @ law.precision_matrix - jnp.eye(3)).max())


law = dist.LowRankMultivariateNormal(jnp.zeros(3), W, diagonal)
print(f"MultivariateNormal {off(dist.MultivariateNormal(jnp.zeros(3), law.covariance_matrix)):.2f}")
print(f"3 factors, 3 dimensions {off(law):.2f}")
law = dist.LowRankMultivariateNormal(jnp.zeros(3), W[:, :2], diagonal)
try:
    print(f"2 factors, 3 dimensions {off(law):.2f}")
except ValueError:
    print("2 factors, 3 dimensions ValueError")
right = multivariate_normal(jnp.zeros(3), law.covariance_matrix).logpdf(at)
print("log_prob", "right" if abs(float(law.log_prob(at)) - right) < 1e-4 else "wrong")
PY
JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/low_rank.py" | tee "$folder/seen"
cat > "$folder/known" <<'TXT'
MultivariateNormal 0.00
3 factors, 3 dimensions 30.49
2 factors, 3 dimensions ValueError
log_prob right
TXT
diff "$folder/known" "$folder/seen"
