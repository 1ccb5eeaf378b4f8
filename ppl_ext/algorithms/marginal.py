"""Sum sites of a program out: a program on fewer sites, with an estimated density."""

import warnings
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import block
from numpyro.primitives import _PYRO_STACK, Messenger

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.held_sites import HeldAsGiven
from ppl_ext.algorithms.hidden_sites import Inner, Run, no_key, refuse_open_plates, run_here, unused_run
from ppl_ext.algorithms.target import (
    RecordInside,
    Retained,
    Target,
    forward_weight,
    is_estimated,
    is_normalised,
    only_forward,
)
from ppl_ext.densities.bound_direction import Estimate
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.program import Program


class marginal(eqx.Module):
    r"""The program on the kept sites alone; an algorithm estimates what summing out the others leaves.

    .. math:: p(x) = \int p(x, z) \, dz

    It is again a NumPyro program, with the kept sites x and one factor, ``"marginal(x)"``, that carries the
    estimated log density log w:

    - :func:`~ppl_ext.simulate` runs the program, keeps x, and runs the algorithm conditionally on the z that
      came with it: :math:`\mathbb{E}[1/w \mid x] = 1/p(x)`, tagged *reciprocal*. If the program has observed,
      masked or rescaled sites, its z is no draw from p(z | x), and the estimate is an unbiased one;
    - :func:`~ppl_ext.log_density` at given x, like NUTS and ``Predictive``: :math:`\mathbb{E}[w] = p(x)`,
      tagged *unbiased*.

    So ``ELBO`` with a marginal guide is the hierarchical bound (Salimans, Kingma, Welling 2015; Ranganath,
    Tran, Blei 2016) with one particle and the importance-weighted hierarchical bound (Sobolev and Vetrov
    2019) with more, and it is a bound with a marginal model too. Inside an expectation the hidden sites are
    ordinary random sites named ``"marginal/z"``, each with its gradient strategy, so value and gradient are
    unbiased; elsewhere their randomness comes from ``numpyro.handlers.seed``, which under NUTS is one fixed
    draw. Marginals nest.

    :param program: a NumPyro program; parameters, plates and observed sites are welcome, subsampled plates
        are not, a ``scan`` only with an algorithm for it (:class:`~ppl_ext.algorithms.ParticleFilter`).
    :param keep: names of latent sites. Their support must not depend on the sites that are summed out.
    :param algorithm: an :class:`~ppl_ext.algorithms.Algorithm`.
    :return: calling it returns the dict of kept values; the program's own output may depend on what is summed
        out.
    :raises ArgumentError: if nothing is kept.
    :raises ModelError: when run: a kept site is unknown or observed, no site is left to sum out, a plate is
        open around it, a plate inside is subsampled, or there is a scan inside that the algorithm does not
        take. The message names it.

    >>> import jax, ppl_ext, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.algorithms import Enumeration
    >>> def mixture():
    ...     k = numpyro.sample("k", dist.Bernoulli(0.5))
    ...     numpyro.sample("x", dist.Normal(2.0 * k, 1.0))
    >>> program = marginal(mixture, ["x"], Enumeration())
    >>> density = ppl_ext.log_density(program, {"x": 1.0}, rng_key=jax.random.key(0))
    >>> bool(abs(density.total - dist.Normal(0.0, 1.0).log_prob(1.0)) < 1e-5)
    True
    """

    program: Callable
    keep: tuple[str, ...] = eqx.field(static=True)
    algorithm: Algorithm

    def __init__(self, program: Callable, keep: Sequence[str], algorithm: Algorithm):
        if not callable(program):
            raise ArgumentTypeError(f"marginal wraps a program (a callable), got {type(program).__name__}.")
        if isinstance(keep, str):
            raise ArgumentTypeError(
                f"keep must be a list of site names, got the string {keep!r}; write [{keep!r}]."
            )
        if not isinstance(algorithm, Algorithm):
            raise ArgumentTypeError(
                f"algorithm must be an instance such as ImportanceSampling(8), got {algorithm!r}."
            )
        self.program, self.keep, self.algorithm = program, tuple(dict.fromkeys(keep)), algorithm
        if not self.keep:
            raise ArgumentError(
                "marginal keeps no site; give at least one name. For the evidence alone use objectives or "
                "the algorithm."
            )

    def __call__(self, *args, **kwargs) -> dict[str, jax.Array]:
        what = f"marginal({', '.join(self.keep)})"
        refuse_open_plates(what)
        program = Program(HeldAsGiven(self.program), args, kwargs)
        run, keyless = self._run(what)
        with (
            (pilot := Inner("marginal", run, {}, frozenset(self.keep), self.algorithm.scans)),
            (record := RecordInside()),
        ):
            program()
        sites = record.sites
        if keyless and is_estimated(sites):
            raise no_key(what)
        free = self._free(sites)
        given = {name: sites[name]["value"] for name in self.keep}
        drawn = all(pilot.drawn.values())
        normalised = drawn and is_normalised(sites)
        if only_forward():
            log_w, kind = jnp.zeros(()), "exact"
        else:
            target = Target(program, given, free, pilot, sites)
            if normalised:
                values = {name: sites[name]["value"] for name in free}
                retained = Retained(
                    values, record.log_density().total, lambda: forward_weight(sites, frozenset(self.keep))
                )
                log_w, kind = self.algorithm.evidence_through(target, retained), "reciprocal"
            else:
                log_w, kind = self.algorithm.evidence(target), "unbiased"
            if self.algorithm.exact and not is_estimated(sites):
                kind = "exact"

        def forward(outer: frozenset[str]) -> jax.Array:
            return forward_weight(
                sites, frozenset(name for name, seen in pilot.outward.items() if seen in outer)
            )

        emit(what, log_w, Estimate(kind), forward, normalised, pilot.blocked)
        return given

    def _run(self, what: str) -> tuple[Run, bool]:
        """Who draws what is summed out, and whether nobody gave a key: an exact sum does not depend on these
        draws.
        """
        try:
            return run_here(what), False
        except ModelError:
            if not self.algorithm.exact:
                raise
            return unused_run(), True

    def _free(self, sites: dict[str, dict]) -> tuple[str, ...]:
        latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
        if unknown := [n for n in self.keep if n not in latent]:
            raise ModelError(
                f"The program has no latent site {listed(unknown)} to keep; it has {listed(latent)}."
            )
        free = tuple(n for n in latent if n not in self.keep)
        if not free:
            raise ModelError(
                f"marginal keeps every latent site ({listed(latent)}), so nothing is to be summed out: use "
                "the program itself."
            )
        return free


def emit(
    name: str,
    log_w: jax.Array,
    estimate: Estimate,
    forward: Callable,
    normalised: bool,
    blocked: dict[str, bool],
) -> None:
    """The factor that carries an estimated log density, with what an enclosing transformation must know of
    it.

    :param blocked: by site that it is the density of, whether a handler hides that one from outside.
    """
    unit = dist.Unit(log_w)
    infer = {
        "is_auxiliary": True,
        "_ppl_ext_estimate": estimate,
        "_ppl_ext_forward": forward,
        "_ppl_ext_normalised": normalised,
    }
    with _Seen(name, [site for site, hidden in blocked.items() if not hidden]):
        numpyro.sample(name, unit, obs=unit.sample(None), infer=infer)


class _Seen(Messenger):
    """Tell when a block hides the factor and leaves its sites: their density is then lost."""

    def __init__(self, name: str, visible: list[str]):
        super().__init__()
        self.name, self.visible = name, visible

    def postprocess_message(self, msg):
        if msg["name"] != self.name or not self.visible:
            return
        for handler in reversed(_PYRO_STACK):
            if isinstance(handler, Inner):
                return
            if isinstance(handler, block) and handler.hide_fn(msg):
                warnings.warn(
                    f"A block hides the factor '{self.name}', which carries the log density of "
                    f"{listed(self.visible)}, so what is outside counts them as zero. Let it through: "
                    f"block(..., hide_fn=lambda site: ... and site['name'] != '{self.name}').",
                    stacklevel=3,
                )
                return
