"""Particle marginal Metropolis-Hastings: a random walk on the parameters, judged by a filter's unbiased
evidence.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from numpyro.distributions import biject_to
from numpyro.infer.gibbs import latent_sample_sites, prototype_trace
from numpyro.infer.mcmc import MCMCKernel

from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.infer.particle_mcmc.particle_gibbs import initial_names, path_sites
from ppl_ext.infer.svi.checks import begun, check_init_params, check_one_key
from ppl_ext.runtime.arguments import check_count, check_program
from ppl_ext.runtime.outside import Outside
from ppl_ext.runtime.random_choices import log_uniforms
from ppl_ext.runtime.sharding import check_mesh
from ppl_ext.state_space import filtering
from ppl_ext.state_space.extinction import is_extinct, warn_extinct
from ppl_ext.state_space.gaps import refuse_raw
from ppl_ext.state_space.model import lower
from ppl_ext.state_space.resampling import Scheme, scheme_of


class PMMHState(NamedTuple):
    """``z``: parameters, unconstrained. ``log_density``: estimated, of these parameters, kept until they
    change. ``accepted``: the last proposal. ``mean`` and ``covariance`` of the parameters so far, from which
    the warm-up makes proposals. ``i``: steps."""

    z: dict[str, jax.Array]
    log_density: jax.Array
    accepted: jax.Array
    mean: jax.Array
    covariance: jax.Array
    i: jax.Array
    rng_key: jax.Array


class PMMH(MCMCKernel):
    r"""Metropolis on the parameters of a state-space model with the evidence estimated by a particle filter.

    .. math:: \theta' \sim \mathcal{N}(\theta, c\,\Sigma), \quad \text{accepted with probability} \quad
        \min\Bigl(1, \frac{\hat Z(\theta')\, p(\theta')}{\hat Z(\theta)\, p(\theta)}\Bigr)

    in unconstrained parameters, with their Jacobian in p. Exact for any number of particles because Ẑ is
    unbiased and the estimate at θ is kept, not redrawn (Andrieu, Doucet, Holenstein 2010, section 2.4.2); too
    few of them make the chain stick, and a standard deviation of log Ẑ of about 1.2 is the best use of time.
    During the warm-up Σ is the covariance of the chain, c = 2.38² / dimension (Haario, Saksman, Tamminen
    2001); afterwards it stays. The states are integrated out: ``get_samples()`` has the parameters.

    :param model: a NumPyro model with one ``scan``.
    :param num_particles: of the filter.
    :param resampling: a scheme of :mod:`ppl_ext.state_space.resampling`.
    :param initial: sites before the scan that belong to the state; as for
        :class:`~ppl_ext.infer.ParticleGibbs`.
    :param mesh: devices over which the particles are spread; see :class:`~ppl_ext.algorithms.ParticleFilter`.
    :raises ArgumentError: for fewer particles than 1, or a number that does not divide over the mesh.
    :raises ModelError: when run, if the model has no parameter, or a finite one.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> from numpyro.infer import MCMC
    >>> def model(y):
    ...     phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    ...     def step(x_prev, y_t):
    ...         x = numpyro.sample("x", dist.Normal(phi * x_prev, 0.5))
    ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
    ...         return x, None
    ...     scan(step, numpyro.sample("x0", dist.Normal(0, 1)), y)
    >>> mcmc = MCMC(PMMH(model, num_particles=20), num_warmup=20, num_samples=30, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.array([0.3, -0.1, 0.5]))
    >>> {name: x.shape for name, x in mcmc.get_samples().items()}
    {'phi': (30,)}
    """

    sample_field = "z"
    default_fields = ("z", "log_density", "accepted")
    sums_out_states = True  # its draws have no path, so a report has no pointwise likelihood

    def __init__(
        self,
        model: Callable,
        num_particles: int = 1000,
        resampling: str | Scheme = "systematic",
        initial: tuple[str, ...] | None = None,
        mesh: Mesh | None = None,
    ):
        check_program("PMMH: model", model)
        check_count("PMMH: num_particles", num_particles)
        self.model, self._initial = model, initial_names("PMMH", initial)
        check_mesh("PMMH", mesh, num_particles, "num_particles")
        self._rules = filtering.Rules(
            int(num_particles), scheme_of("PMMH: resampling", resampling), 0.5, mesh=mesh
        )
        self._transforms: dict[str, Any] = {}
        self._num_warmup = 0
        self._seen: Outside | None = None

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> PMMHState:
        """``init_params``: unconstrained values; by default a draw from the prior."""
        with begun("PMMH", self):
            return self._first(rng_key, num_warmup, init_params, model_args, model_kwargs)

    def _first(self, rng_key, num_warmup, init_params, model_args, model_kwargs) -> PMMHState:
        model_kwargs = dict(model_kwargs or {})
        check_one_key("PMMH", rng_key)
        rng_key, prior_key, filter_key = jax.random.split(rng_key, 3)
        path = path_sites(self.model, tuple(model_args), model_kwargs, self._initial, "PMMH")
        trace = prototype_trace(self.model, prior_key, model_args, model_kwargs)
        names = [name for name in latent_sample_sites(trace) if name not in path]
        if not names:
            raise ModelError(
                "PMMH: the model has no parameter to sample; use ppl_ext.smoothing.smooth for its states."
            )
        if finite := [name for name in names if trace[name]["fn"].support.is_discrete]:
            raise ModelError(
                f"PMMH: parameter '{finite[0]}' is discrete, and a random walk needs a continuous one."
            )
        self._transforms = {name: biject_to(trace[name]["fn"].support) for name in names}
        self._num_warmup = num_warmup
        if init_params is None:
            z = {name: self._transforms[name].inv(trace[name]["value"]) for name in names}
        else:
            check_init_params("PMMH", init_params, {name: trace[name] for name in names}, exactly=True)
            z = {name: jnp.asarray(init_params[name]) for name in names}
        flat = ravel_pytree(z)[0]
        log_density, died = self._estimate(filter_key, z, model_args, model_kwargs)
        if is_extinct(log_density) and int(died) >= 0:
            params = {name: self._transforms[name](x) for name, x in z.items()}
            refuse_raw(
                "PMMH", lambda: lower(self.model, tuple(model_args), model_kwargs, params, initial="rest")
            )
            place = f"step {int(died) - 1} of the run" if int(died) else "what is observed before the scan"
            remedy = (
                "The chain begins there all the same, and takes the first proposal that has survivors; give "
                "it init_params that have."
            )
            warn_extinct("PMMH: at its first parameters", place, self._rules.num_particles, remedy=remedy)
        start = 0.1 * jnp.eye(len(flat))
        return PMMHState(z, log_density, jnp.zeros((), bool), flat, start, jnp.zeros((), jnp.int32), rng_key)

    def sample(self, state: PMMHState, model_args, model_kwargs) -> PMMHState:
        if not self._transforms:
            raise ArgumentError("PMMH: init must be called before sample; run it by numpyro.infer.MCMC.")
        rng_key, move_key, filter_key, choice_key = jax.random.split(state.rng_key, 4)
        flat, unravel = ravel_pytree(state.z)
        num = len(flat)
        jitter = 1e-6 * jnp.eye(num)
        root = jnp.linalg.cholesky(2.38**2 / num * (state.covariance + jitter))
        proposed = unravel(flat + root @ jax.random.normal(move_key, (num,)))
        log_density, _ = self._estimate(filter_key, proposed, model_args, dict(model_kwargs or {}))
        # From where the filter found no possible path, any place where it does is better.
        log_ratio = jnp.where(jnp.isneginf(state.log_density), jnp.inf, log_density - state.log_density)
        accepted = (log_uniforms(choice_key, ()) < log_ratio) & ~jnp.isneginf(log_density)
        z = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposed, state.z)
        # The first covariance counts for a few steps, so that a chain that has not moved yet goes on
        # proposing.
        i = state.i + 1
        weight = jnp.where(i <= self._num_warmup, 1.0 / (i + 10.0), 0.0)
        away = ravel_pytree(z)[0] - state.mean
        covariance = (1.0 - weight) * (state.covariance + weight * jnp.outer(away, away))
        new = jnp.where(accepted, log_density, state.log_density)
        return PMMHState(z, new, accepted, state.mean + weight * away, covariance, i, rng_key)

    def _estimate(self, rng_key, z, model_args, model_kwargs) -> tuple[jax.Array, jax.Array]:
        """log Ẑ, log prior and log Jacobian together; and the step that no particle survived, as a filter's
        state has it.
        """
        params = {name: self._transforms[name](x) for name, x in z.items()}
        jacobian = sum(
            (jnp.sum(t.log_abs_det_jacobian(z[name], params[name])) for name, t in self._transforms.items()),
            jnp.zeros(()),
        )
        lowered = lower(self.model, tuple(model_args), model_kwargs, params, initial="rest")
        state = filtering.run_filter(lowered, self._rules, rng_key).state
        total = state.log_evidence.value + lowered.log_prior + jacobian
        return jnp.where(jnp.isnan(total), -jnp.inf, total), state.died

    def postprocess_fn(self, model_args, model_kwargs):
        return lambda z: {name: self._transforms[name](x) for name, x in z.items()}

    def get_diagnostics_str(self, state: PMMHState) -> str:
        return f"log density {float(state.log_density):.2f}"
