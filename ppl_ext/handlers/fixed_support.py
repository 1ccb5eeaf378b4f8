"""Draw a site whose support depends on other sites on the real line instead, by a transformation that follows
the support.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import equinox as eqx
import numpyro
from numpyro.distributions import MaskedDistribution, TransformedDistribution, biject_to
from numpyro.primitives import Messenger

from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.handlers.handler import Handler
from ppl_ext.runtime.arguments import described
from ppl_ext.tracing.scan_bodies import run_in_scan_body


def _names(sites: str | Sequence[str]) -> tuple[str, ...]:
    found = (sites,) if isinstance(sites, str) else sites
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise ArgumentTypeError(f"fixed_support: sites must be names of sites, got {described(sites)}.")
    if not found:
        raise ArgumentError("fixed_support: sites must name a site.")
    return tuple(found)


class fixed_support(Handler):
    r"""A program in which sites with supports that move are drawn on the real line.

    .. math:: x = T_{z}(u), \qquad p(u \mid z) = p(x \mid z)\, |T_{z}'(u)|

    where :math:`T_z` is NumPyro's bijection from the real line to the support of x given the sites z before
    it. The site becomes ``<name>_base``, and x, under its own name, a deterministic site. An automatic guide
    of NumPyro keeps the support that a site had when the guide was set up; on the real line there is nothing
    to keep. The joint density of everything else is what it was, and NUTS, which follows moving supports by
    itself, samples the same posterior.

    :param sites: a name, several, or patterns of a shell.
    :raises ArgumentTypeError: if ``sites`` is neither.
    :raises ModelError: when the program runs and a name fits no sample site, or a site of one of the names is
        discrete.

    >>> import jax, numpyro.distributions as dist, ppl_ext
    >>> def model():
    ...     a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    ...     numpyro.sample("b", dist.Uniform(0.0, 1.0 - a))
    >>> draw = ppl_ext.simulate(fixed_support(model, "b"), rng_key=jax.random.key(0))
    >>> sorted(draw.values)
    ['a', 'b_base']
    """

    sites: tuple[str, ...] = eqx.field(static=True, converter=_names)

    def messenger(self) -> Messenger:
        return _FixedSupport(self.sites, {})

    def __call__(self, *args, **kwargs):
        messenger = self.messenger()
        with messenger:
            output = self.program(*args, **kwargs)
        for pattern in self.sites:
            if not any(fnmatchcase(name, pattern) for name in messenger.met):
                raise ModelError(
                    f"fixed_support: '{pattern}' fits no sample site. There are: {listed(messenger.met)}."
                )
        return output


class _FixedSupport(Messenger):
    """``met``: sample sites so far, in scans too."""

    def __init__(self, sites: tuple[str, ...], met: dict[str, None]):
        super().__init__()
        self.sites, self.met = sites, met
        # the site on the real line that is being drawn: a pattern may fit it too
        self.moved: str | None = None

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _FixedSupport(self.sites, self.met))
        elif msg["type"] == "sample" and not msg.get("_control_flow_done") and msg["name"] != self.moved:
            self.met[msg["name"]] = None
            if (
                msg["value"] is None
                and not msg["is_observed"]
                and any(fnmatchcase(msg["name"], pattern) for pattern in self.sites)
            ):
                self._move(msg)

    def _move(self, msg) -> None:
        law, mask = msg["fn"], None
        if isinstance(law, MaskedDistribution):
            law, mask = law.base_dist, law._mask
        if law.support.is_discrete and msg["name"] not in self.sites:
            return  # a pattern leaves it
        if law.support.is_discrete:
            raise ModelError(
                f"fixed_support: site '{msg['name']}' ({type(law).__name__}) is discrete, and the real line "
                "is none for it."
            )
        to_support = biject_to(law.support)
        base = TransformedDistribution(law, to_support.inv)
        # As NumPyro's reparam: the new site meets all handlers, and the old one is no random site any more.
        self.moved = f"{msg['name']}_base"
        u = numpyro.sample(self.moved, base if mask is None else base.mask(mask), infer=dict(msg["infer"]))
        kept = {
            "type": "deterministic",
            "name": msg["name"],
            "value": to_support(u),
            "cond_indep_stack": msg["cond_indep_stack"],
        }
        msg.clear()
        msg.update(kept)
