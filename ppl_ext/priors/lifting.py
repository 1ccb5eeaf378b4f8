"""Lift the prior of a model's sites: the same model, with priors of a family whose parameters can be
tuned.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpyro
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.priors.families.family import Family, Unit
from ppl_ext.priors.latent_sites import choose, survey
from ppl_ext.runtime.arguments import check_mapping, check_program, described

Raw = dict[str, dict[str, dict[str, jax.Array]]]
"""Unconstrained parameters by pattern, unit and name."""

_ENDINGS = ("_base", "_variance", "_precision", "_support")
"""Of the sites that families add."""


class Layout(NamedTuple):
    """What a lifted prior looks like at some arguments: by pattern, the family and its units."""

    rules: tuple[tuple[str, Family, tuple[Unit, ...]], ...]

    def init(self) -> Raw:
        """Parameters before the first step."""
        return {pattern: {u.name: family.init(u) for u in units} for pattern, family, units in self.rules}

    def values(self, raw: Raw) -> Raw:
        """Parameters as a reader wants them."""
        return {
            pattern: {u.name: family.values(u, raw[pattern][u.name]) for u in units}
            for pattern, family, units in self.rules
        }

    def sites(self) -> list[str]:
        return [s.name for _, _, units in self.rules for u in units for s in u.sites]


def lift_prior(model: Callable, rules: Mapping[str, Family]) -> "Lifted":
    """Give latent sites of a model a family of priors, to be tuned by :func:`~ppl_ext.priors.match`.

    The model is any NumPyro model: plain, or with modules of flax (linen and nnx) or equinox through
    ``random_flax_module``, ``random_nnx_module`` and ``random_eqx_module``. The distributions that the sites
    have in it are replaced; their shapes stay.

    :param rules: from patterns of site names to families. ``*`` stands for any characters, ``?`` for one; a
        name written out stands for itself. Sites that no pattern matches keep their priors.
    :return: :class:`Lifted`, which is a NumPyro model too, at the families' starting values.
    :raises ArgumentTypeError: if a rule is no family. What the patterns match is checked when the model first
        runs: a pattern that matches nothing, or an observed, discrete, constrained or already hierarchical
        site, raises a :class:`~ppl_ext.errors.ModelError` there.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.priors import Gaussian
    >>> def model(x):
    ...     w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
    ...     return numpyro.deterministic("f", (x[:, None] @ w).sum(-1))
    >>> lifted = lift_prior(model, {"w": Gaussian(scale=2.0)})
    >>> lifted.layout(jax.numpy.ones(4)).values(lifted.layout(jax.numpy.ones(4)).init())
    {'w': {'w': {'scale': Array(2., dtype=float32)}}}
    """
    check_program("lift_prior: model", model)
    if isinstance(model, Lifted):
        raise ArgumentError("lift_prior: the model is lifted already; give all rules in one call.")
    check_mapping("lift_prior: rules", rules, "from patterns of site names to families such as Gaussian()")
    if not rules:
        raise ArgumentError(
            "lift_prior: rules is empty; give a pattern and a family, such as {'*': Gaussian()}."
        )
    for pattern, family in rules.items():
        if not isinstance(family, Family):
            raise ArgumentTypeError(
                f"lift_prior: the rule for '{pattern}' must be a family such as Gaussian(), got "
                f"{described(family)}."
            )
    return Lifted(model, dict(rules))


class Lifted:
    """A model with priors to be tuned. Called, it is the model with the families' starting values.

    >>> import numpyro, numpyro.distributions as dist
    >>> from ppl_ext.priors import Gaussian
    >>> def model(x):
    ...     return numpyro.sample("w", dist.Normal(0.0, 1.0)) * x
    >>> lift_prior(model, {"w": Gaussian()})
    Lifted(model, ['w'])
    """

    def __init__(self, program: Callable, rules: dict[str, Family]):
        self.program = program
        self.rules = rules

    def __repr__(self) -> str:
        return (
            f"Lifted({getattr(self.program, '__name__', type(self.program).__name__)}, {sorted(self.rules)})"
        )

    def layout(self, *args, **kwargs) -> Layout:
        """Which sites share which parameters, at these arguments of the model.

        :raises ModelError: if a pattern matches nothing, or a site that cannot be lifted, naming it.
        """
        found = survey(self.program, args, kwargs)
        taken = set(found)
        rules = []
        for pattern, sites in choose(found, list(self.rules)).items():
            family = self.rules[pattern]
            units = []
            for unit in family.units(pattern, sites):
                prefix, count = unit.prefix, 2
                while any(f"{prefix}{end}" in taken for end in _ENDINGS):
                    prefix, count = f"{unit.prefix}_{count}", count + 1
                taken |= {f"{prefix}{end}" for end in _ENDINGS}
                units.append(unit._replace(prefix=prefix))
            rules.append((pattern, family, tuple(units)))
        return Layout(tuple(rules))

    def at(self, layout: Layout, raw: Raw) -> "Tuned":
        """The model with these values of the parameters."""
        return Tuned(self.program, layout, raw)

    def __call__(self, *args, **kwargs):
        layout = self.layout(*args, **kwargs)
        return self.at(layout, layout.init())(*args, **kwargs)


class Tuned:
    """A NumPyro model whose tuned priors are constants of it: same arguments, same sites, and nothing that
    SVI could train.

    A scale mixture adds the latent sites of its variances, three layers those of their precisions, a flow the
    latent ``_base`` with the weights deterministic.
    """

    # A plain object, compared and hashed by identity: compiled runners keep one per model, and its arrays are
    # constants to them.
    def __init__(self, program: Callable, layout: Layout, raw: Raw):
        self.program = program
        self._layout = layout
        self._raw = raw
        functools.update_wrapper(self, program, updated=())

    def __repr__(self) -> str:
        return f"Tuned({getattr(self.program, '__name__', type(self.program).__name__)})"

    def __call__(self, *args, **kwargs):
        given: dict[str, Any] = {}
        with numpyro.validation_enabled(False):
            for pattern, family, units in self._layout.rules:
                for unit in units:
                    given |= family.begin(unit, self._raw[pattern][unit.name])
        with _Given(given):
            return self.program(*args, **kwargs)


class _Given(Messenger):
    """Put the tuned laws and values in the place of the sites' own. Opened around the model, it meets names
    with all their scopes.
    """

    def __init__(self, given: Mapping[str, Any]):
        super().__init__()
        self.given = given

    def process_message(self, msg):
        if msg["type"] != "sample" or msg["name"] not in self.given or msg.get("_control_flow_done"):
            return
        new, old = self.given[msg["name"]], msg["fn"]
        shape = new.shape() if isinstance(new, dist.Distribution) else new.shape
        if tuple(shape) != tuple(old.shape()):
            raise ModelError(
                f"Site '{msg['name']}' has shape {tuple(old.shape())} with these arguments, but its prior "
                f"was tuned for {tuple(shape)}. Match the prior again with inputs of this width."
            )
        if isinstance(new, dist.Distribution):
            msg["fn"] = new.mask(old._mask) if isinstance(old, dist.MaskedDistribution) else new
            return
        if msg["value"] is not None:
            raise ModelError(
                f"Site '{msg['name']}' is a function of other sites under its tuned prior, so no value can "
                "be given for it."
            )
        msg["type"], msg["value"] = "deterministic", new
        for key in [k for k in msg if k not in ("type", "name", "value", "cond_indep_stack")]:
            del msg[key]  # as NumPyro's own reparam does: a deterministic site has no distribution
