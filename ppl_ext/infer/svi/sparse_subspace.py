"""A mean-field guide that holds few of many weights, and finds which."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax
from numpyro.distributions import constraints
from numpyro.handlers import block, seed, trace
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from numpyro.primitives import mutable, prng_key

from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentError, ModelError
from ppl_ext.infer.svi.subspace_law import OnSubspace
from ppl_ext.runtime.arguments import check_count, check_number, check_positive, check_program, described

NAME = "subspace"


class SparseSubspace:
    r"""A NumPyro guide with normal laws for k weights, which it chooses; all others are exactly zero.

    .. math:: q(w) = \prod_{i \in A} N(w_i; \mu_i, \sigma_i^2) \prod_{i \notin A} \delta_0(w_i), \quad |A| = k

    It holds k means and k standard deviations, whatever the number of weights, and the k places. Every so
    many steps some places are exchanged: those of lowest signal to noise :math:`|\mu_i| / \sigma_i` go, and
    those come where the log joint density is steepest at the means, if a step of Newton's there promises
    more, :math:`\bar\sigma |\partial_{w_i} \log p(w, y)|` with the median :math:`\bar\sigma`. After the last
    exchange the places stay, and are trained to the end. They are state of NumPyro's ``mutable`` kind, which
    ``SVI`` and :func:`~ppl_ext.infer.fit` carry from step to step.

    The prior's density at zero counts for a weight that is off: a constant, if the prior's scale is one. The
    loss is then that of the model in which all other weights are zero, up to it, and no bound of the
    evidence. A law that is a point in part has no density to weigh by: a verdict says so, and importance
    sampling and :meth:`Fit.refined` refuse it. All other latent sites get a normal law of their own
    (``AutoNormal``).

    :param model: a NumPyro model without ``param`` sites.
    :param sites: the weights' latent sites: real, and in no plate. One budget is for all of them.
    :param num_active: k.
    :param every: steps between exchanges.
    :param num_exchanges: how many there are.
    :param share: of k, what is exchanged at once at most, above 0 and at most 1.
    :param init_scale: :math:`\sigma_i` at first.
    :raises ArgumentError: for numbers out of these ranges.
    :raises ModelError: when run, if a site is not there, is no latent one, is not real, or lies in a plate;
        if there are fewer weights than k; or if the model has ``param`` sites.

    >>> import numpyro.distributions as dist
    >>> import optax
    >>> from ppl_ext.infer import fit
    >>> from ppl_ext.objectives import ELBO
    >>> x = jax.random.normal(jax.random.key(0), (100, 30))
    >>> y = 2.0 * x[:, 3] - 3.0 * x[:, 17]
    >>> def model(x, y):
    ...     w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
    ...     numpyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)
    >>> guide = SparseSubspace(model, "w", 2, every=50, num_exchanges=8, share=0.5)
    >>> run = fit(jax.random.key(1), model, guide, ELBO(), optax.adam(0.05), 800, x, y, progress_bar=False)
    >>> sorted(run.params["subspace"]["active"][0].tolist())
    [3, 17]

    Source: Li, Miao, Qiu, Zhang 2024, "Training Bayesian neural networks with sparse subspace variational
    inference".
    """

    def __init__(
        self,
        model: Callable,
        sites: str | Sequence[str],
        num_active: int,
        *,
        every: int = 100,
        num_exchanges: int = 20,
        share: float = 0.2,
        init_scale: float = 0.1,
    ):
        where = "SparseSubspace"
        check_program(f"{where}: model", model)
        self.sites = self.points = (sites,) if isinstance(sites, str) else tuple(sites)
        if not self.sites or not all(isinstance(name, str) for name in self.sites):
            raise ArgumentError(f"{where}: sites must be names of latent sites, got {described(sites)}.")
        for name, value in (("num_active", num_active), ("every", every), ("num_exchanges", num_exchanges)):
            check_count(f"{where}: {name}", value)
        check_number(f"{where}: share", share)
        if not 0 < share <= 1:
            raise ArgumentError(f"{where}: share must be above 0 and at most 1, got {described(share)}.")
        check_positive(f"{where}: init_scale", init_scale)
        self.model, self.num_active, self.every = model, num_active, every
        self.num_exchanges, self.init_scale = num_exchanges, init_scale
        self.num_exchanged = max(1, round(share * num_active))
        self.others = AutoNormal(block(model, hide=list(self.sites)), prefix=f"{NAME}_others")

    def __call__(self, *args, **kwargs) -> dict[str, jax.Array]:
        shapes, has_others = self._laid_out(args, kwargs)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total, k = sum(sizes.values()), self.num_active
        if k > total:
            raise ModelError(
                f"SparseSubspace: {k} weights are to be active, and sites {listed(self.sites)} have {total}. "
                "Ask for fewer."
            )
        values = dict(self.others(*args, **kwargs)) if has_others else {}
        key = prng_key()
        key = jax.random.key(0) if key is None else key
        loc = numpyro.param(f"{NAME}_loc", jnp.zeros(k))
        scale = numpyro.param(
            f"{NAME}_scale", jnp.full(k, self.init_scale), constraint=constraints.softplus_positive
        )
        first = {"active": jax.random.choice(key, total, (k,), replace=False), "step": jnp.zeros((), int)}
        state = mutable(NAME, first)
        start, active = 0, jnp.asarray(state["active"])  # a fit's parameters are of NumPy
        for name, shape in shapes.items():
            law = OnSubspace(loc, scale, active - start, shape)
            values[name] = numpyro.sample(name, law)
            start += sizes[name]

        def exchanged():
            dense = jnp.zeros(total).at[active].set(loc)
            others = {name: value for name, value in values.items() if name not in shapes}
            slopes = jax.grad(self._log_joint(shapes, others, key, args, kwargs))(dense)
            # both in standard deviations: that of a newcomer is taken to be the median
            promised = (jnp.abs(slopes) * jnp.median(scale)).at[active].set(-jnp.inf)
            num = min(self.num_exchanged, total - k)
            (held, worst), (found, best) = (lax.top_k(x, num) for x in (-jnp.abs(loc) / scale, promised))
            return active.at[worst].set(jnp.where(found > -held, best.astype(active.dtype), active[worst]))

        step = state["step"] + 1
        due = (step % self.every == 0) & (step <= self.every * self.num_exchanges)
        state["active"] = lax.cond(due, exchanged, lambda: active) if total > k else active
        state["step"] = step
        return values

    def _log_joint(self, shapes, others, key, args, kwargs) -> Callable[[jax.Array], jax.Array]:
        def of(dense):
            at, start = dict(others), 0
            for name, shape in shapes.items():
                at[name] = dense[start : start + math.prod(shape)].reshape(shape)
                start += math.prod(shape)
            with block():
                return log_density(seed(self.model, key), args, kwargs, at)[0]

        return of

    def _laid_out(self, args, kwargs) -> tuple[dict[str, tuple[int, ...]], bool]:
        """Shapes of the weights' sites, in the model's order, and whether there are other latent ones."""
        with block():
            record = trace(seed(self.model, jax.random.key(0))).get_trace(*args, **kwargs)
        latent = {
            name: site
            for name, site in record.items()
            if site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary")
        }
        for name in self.sites:
            if name not in latent:
                raise ModelError(
                    f"SparseSubspace: the model has no latent site '{name}'. There are: {listed(latent)}."
                )
            law, frames = latent[name]["fn"], latent[name]["cond_indep_stack"]
            if frames:
                raise ModelError(
                    f"SparseSubspace: site '{name}' lies in plate '{frames[0].name}'. Make its law one of "
                    "the whole array: .expand(shape).to_event()."
                )
            if not _is_real(law.support):
                raise ModelError(
                    f"SparseSubspace: site '{name}' has support {law.support}, in which zero is no weight "
                    "that is off. Leave it out of sites: it gets a normal law of its own."
                )
        if params := [name for name, site in record.items() if site["type"] == "param"]:
            raise ModelError(
                f"SparseSubspace: the model has the param site '{params[0]}', and the guide does not know "
                "its value. Give it a law: numpyro.sample."
            )
        shapes = {name: jnp.shape(site["value"]) for name, site in latent.items() if name in self.sites}
        return shapes, len(latent) > len(shapes)


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support in (constraints.real, constraints.real_vector, constraints.real_matrix)
