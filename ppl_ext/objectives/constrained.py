"""Constraints on parts of an objective, with multipliers that are learned (Rezende and Viola 2018, algorithm
1, in additive form).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.expectations.objective import Objective, carried
from ppl_ext.expectations.replicate import replicate
from ppl_ext.objectives.terms.analytic_kl import evidence, known_sites
from ppl_ext.runtime.arguments import check_count, check_function, check_number, described


@dataclass(frozen=True)
class kl:
    r"""The divergence of guide and model at single sites, as a quantity to constrain, weigh or report.

    .. math:: \mathbb{E}_{z \sim q} \sum_{s \text{ fits}} \big[\log q(z_s \mid z_{<s}) - \log p(z_s \mid
        \cdot)\big]

    ``kl("z")(model, guide)`` is a :class:`~ppl_ext.densities.log_density.LogDensity` inside an objective or
    expectation. A divergence in closed form is used where it is known (see
    :class:`~ppl_ext.objectives.ELBO`).

    :param pattern: the sites, by a name pattern of the shell.
    :param num_particles: draws of the guide.
    :raises ArgumentTypeError: if the pattern is no string.
    :raises ModelError: when used, if no common latent site fits; the message lists those there are.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> def guide(y):
    ...     numpyro.sample("z", dist.Normal(1.0, 1.0))
    >>> from ppl_ext import Program, expectation
    >>> divergence = expectation(lambda y: kl("z")(Program(model, (y,)), Program(guide, (y,))))
    >>> round(float(divergence.value(jax.random.key(0), 1.0)), 3)
    0.5
    """

    pattern: str
    num_particles: int = 1

    def __post_init__(self):
        if not isinstance(self.pattern, str):
            raise ArgumentTypeError(
                f"kl takes the name of a site or a pattern, got {described(self.pattern)}."
            )
        check_count("kl(num_particles=...)", self.num_particles)

    def __repr__(self) -> str:
        return f"kl({self.pattern!r}{f', {self.num_particles}' if self.num_particles > 1 else ''})"

    def __call__(self, model, guide) -> LogDensity:
        known = known_sites(model, guide)

        def terms():
            log_ratio, latent = evidence(model, guide, known)
            try:
                return -log_ratio.split(latent)[0].select(self.pattern)
            except ModelError:
                sites = ", ".join(f"'{name}'" for name in sorted(latent)) or "none"
                raise ModelError(
                    f"{self!r}: model and guide have no common latent site that fits. They have {sites}."
                ) from None

        return replicate(terms, self.num_particles).mean()


def constrain(
    objective: Objective,
    quantity: Callable,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    rate: float = 0.01,
    initial: float = 1.0,
) -> Objective:
    r"""Maximise an objective subject to a bound on the mean of a quantity, with a learned multiplier.

    .. math:: \max_{\theta, \phi} \; O(\theta, \phi) \;\text{ subject to }\; \mathbb{E}[g] \le C: \qquad
        O - \lambda (\mathbb{E}[g] - C), \qquad \lambda \leftarrow \max(0, \lambda + \eta (\hat g - C))

    The multiplier is state that the objective carries (start it with ``carried_by`` in NumPyro's ``SVI``),
    under the constraint as a name: a :class:`~ppl_ext.result.Fit` has it as
    ``params["kl('z') <= 2.0"]["multiplier"]``. Value and gradient are unbiased for the Lagrangian at the
    multiplier as it stands. Constraints nest.

    :param objective: an objective, such as ``ELBO()``.
    :param quantity: ``g(model, guide)``, a scalar or a :class:`~ppl_ext.densities.log_density.LogDensity`:
        :class:`kl` of a site, or your own, which may simulate and score as an objective does.
    :param at_most: C, as a bound from above.
    :param at_least: or as a bound from below.
    :param rate: η, how fast the multiplier learns.
    :param initial: its first value, at least 0.
    :raises ArgumentError: for both bounds or none, a rate or multiplier below 0, or a bound below 0 on a
        divergence :class:`kl`.
    :raises ArgumentTypeError: for an objective that is a class and no instance, or a quantity that is no
        function.

    >>> from ppl_ext.objectives import IWELBO
    >>> constrain(IWELBO(8), kl("z"), at_most=2.0)
    constrain(IWELBO(num_particles=8), kl('z'), at_most=2.0, rate=0.01, initial=1.0)

    Source: Rezende and Viola 2018, algorithm 1, in additive form.
    """
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise ArgumentTypeError(
            "constrain: objective must be an instance such as ppl_ext.objectives.ELBO(), got "
            f"{described(objective)}."
        )
    check_function("constrain: quantity", quantity)
    if (at_most is None) == (at_least is None):
        raise ArgumentError("constrain takes either at_most=... or at_least=...")
    bound = at_most if at_most is not None else at_least
    check_number("constrain: at_most or at_least", bound)
    if isinstance(quantity, kl) and bound is not None and bound < 0:
        raise ArgumentError(
            f"constrain: {quantity!r} is a divergence and never below 0, so that the bound {bound:g} has no "
            "meaning. Give the nats that the site may carry, at least 0."
        )
    check_number("constrain: rate", rate, at_least=0.0)
    check_number("constrain: initial", initial, at_least=0.0)
    return _Constrained(
        objective=objective, quantity=quantity, at_most=at_most, at_least=at_least, rate=rate, initial=initial
    )


class _Constrained(Objective):
    """An objective under a constraint, as :func:`constrain` makes it."""

    @staticmethod
    def body(model, guide, objective, quantity, at_most, at_least, rate, initial):
        state = carried(_name(quantity, at_most, at_least), {"multiplier": jnp.asarray(float(initial))})
        measured, multiplier = quantity(model, guide), state["multiplier"]
        excess = measured - at_most if at_most is not None else at_least - measured
        by = excess.total if isinstance(excess, LogDensity) else excess
        state["multiplier"] = jnp.maximum(0.0, multiplier + rate * jax.lax.stop_gradient(by))
        return objective(model, guide) - multiplier * excess

    def refused(self, params: Mapping[str, Any]) -> str | None:
        return getattr(self.options["objective"], "refused", lambda params: None)(params)

    def __repr__(self) -> str:
        shown = {
            k: v for k, v in self.options.items() if k not in ("objective", "quantity") and v is not None
        }
        numbers = ", ".join(f"{k}={v!r}" for k, v in shown.items())
        return f"constrain({self.options['objective']!r}, {self.options['quantity']!r}, {numbers})"


def _name(quantity: Callable, at_most, at_least) -> str:
    what = quantity.__name__ if inspect.isfunction(quantity) else repr(quantity)
    return f"{what} <= {at_most}" if at_most is not None else f"{what} >= {at_least}"
