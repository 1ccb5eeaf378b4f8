"""What an installed wheel must do in an environment that has no extra: a script that ends with "works"."""

SCRIPT = """
import importlib.metadata, importlib.util, sys

import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
from numpyro.contrib.control_flow import scan
from numpyro.infer.autoguide import AutoNormal

import ppl_ext
from ppl_ext.errors import MissingExtraError

assert ppl_ext.__file__.startswith(sys.prefix), ppl_ext.__file__
extras = ("ott", "tinygp", "blackjax", "flax", "sklearn", "pytest")
absent = [name for name in extras if importlib.util.find_spec(name)]
assert not absent, f"{absent} came with the wheel"
for name in ppl_ext.__all__:
    getattr(ppl_ext, name)

def level(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

y = np.array([1.0, 2.0, 1.5], np.float32)
result = ppl_ext.infer.fit(
    jax.random.key(0), level, AutoNormal(level), ppl_ext.objectives.ELBO(), optax.adam(0.05), 400, y,
    progress_bar=False
)
assert abs(float(result.params["mu_auto_loc"][0]) - 4.5 / 4.0) < 0.3
assert result.to_arviz(jax.random.key(1)).posterior["mu"].ndim == 2

def walk(y):
    def step(x_prev, y_t):
        x = numpyro.sample("x", dist.Normal(x_prev, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, None
    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)

functionals = {"last": lambda t, x_prev, x: jnp.where(t == 2, x, 0.0)}
args = jax.random.key(2), jnp.asarray(y)
exact, particles = (
    ppl_ext.smoothing.smooth(walk, functionals, num_particles=500, backward=b).run(*args)
    for b in ("exact", "mcmc")
)
assert abs(float(exact.log_evidence - particles.log_evidence)) < 0.5

extras = importlib.metadata.metadata("ppl-ext").get_all("Provides-Extra")

def told(extra, fn):
    try:
        fn()
    except MissingExtraError as error:
        assert f"pip install 'ppl_ext[{extra}]'" in str(error) and extra in extras, error
    else:
        raise AssertionError(f"nothing needed {extra}")

told("priors", ppl_ext.priors.Sinkhorn)
sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = None  # ArviZ 0.23 brings it, and 1.x does not
told("plots", lambda: ppl_ext.diagnostics.plots.plot_elbo(result))
print("works")
"""
