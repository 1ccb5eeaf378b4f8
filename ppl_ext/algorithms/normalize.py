"""The posterior of a program as a program: it draws by an algorithm, and estimates the density of its
draws.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from numpyro.primitives import _PYRO_STACK

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.anywhere import Anywhere
from ppl_ext.algorithms.held_sites import HeldAsGiven
from ppl_ext.algorithms.hidden_sites import (
    Drawn,
    Inner,
    has_strategies,
    refuse_open_plates,
    run_here,
    unused_run,
)
from ppl_ext.algorithms.marginal import emit
from ppl_ext.algorithms.target import ImposeSome, RecordInside, Target, is_estimated
from ppl_ext.densities.bound_direction import Estimate
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentTypeError, ModelError
from ppl_ext.expectations.run import Run
from ppl_ext.program import Program
from ppl_ext.state_space.extinction import lost


class normalize(eqx.Module):
    r"""The program given data, as a program on its remaining latent sites.

    .. math:: q(z) \approx p(z \mid y) = p(y, z) / p(y)

    q is the law of what the algorithm draws: the posterior itself for exact algorithms, and for K importance
    samples the law of sampling importance resampling, which tends to the posterior as K grows. The density of
    q is estimated by w = p(y, z) / evidence, carried by a factor ``"normalize(z)"``:

    - :func:`~ppl_ext.simulate` runs the algorithm: :math:`\mathbb{E}[1/w \mid z] = 1/q(z)`, tagged
      *reciprocal*;
    - :func:`~ppl_ext.log_density` at given z runs it conditionally on z: :math:`\mathbb{E}[w] = q(z)`, tagged
      *unbiased*.

    With ``normalize(model, {}, ImportanceSampling(K, proposal))`` for a guide, the ELBO is the
    importance-weighted bound with K particles. The hidden sites are named ``"normalize/z"`` (particles) and
    ``"normalize/index"`` (which one is drawn); the strategies of these carry the gradient.

    :param program: a NumPyro program; its observed sites and factors count as data too.
    :param data: dict from names of latent sites to values to condition on; ``{}`` for a program that has its
        data already.
    :param algorithm: an :class:`~ppl_ext.algorithms.Algorithm`.
    :return: calling it returns the dict of values. Where nothing is possible given the data, a draw is NaN
        (of integers, the least one), with a warning outside of a trace; inside an objective its weight is
        zero.
    :raises ModelError: when run: a name in ``data`` is no latent site, or none is left; otherwise as
        :class:`marginal`.

    Sources: Becker et al. 2024; Andrieu, Doucet, Holenstein 2010 for the extended space.

    >>> import jax, ppl_ext, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.algorithms import Enumeration
    >>> def model():
    ...     k = numpyro.sample("k", dist.Bernoulli(0.5))
    ...     numpyro.sample("x", dist.Bernoulli(0.25 + 0.5 * k))
    >>> posterior = normalize(model, {"x": 1}, Enumeration())
    >>> round(float(jnp.exp(ppl_ext.log_density(posterior, {"k": 1}, rng_key=jax.random.key(0)).total)), 4)
    0.75
    """

    program: Callable
    data: dict[str, Any]
    algorithm: Algorithm

    def __check_init__(self):
        if not callable(self.program):
            raise ArgumentTypeError(
                f"normalize wraps a program (a callable), got {type(self.program).__name__}."
            )
        if not isinstance(self.data, dict):
            raise ArgumentTypeError(
                f"data must be a dict from site names to values, got {type(self.data).__name__}."
            )
        if not isinstance(self.algorithm, Algorithm):
            raise ArgumentTypeError(
                f"algorithm must be an instance such as ImportanceSampling(8), got {self.algorithm!r}."
            )

    def __call__(self, *args, **kwargs) -> dict[str, jax.Array]:
        refuse_open_plates("normalize")
        program, run = Program(HeldAsGiven(self.program), args, kwargs), run_here("normalize")
        data = {name: jnp.asarray(value) for name, value in self.data.items()}
        # This run finds the sites and registers parameters; its draws are of no use, so the expectation does
        # not see them.
        pilot = Inner("normalize", unused_run(), {}, frozenset(), self.algorithm.scans)
        with pilot, (record := RecordInside()), ImposeSome(data, set()), Anywhere():
            program()
        pilot.run = run
        free = self._free(record.sites)
        target = Target(program, data, free, pilot, record.sites)
        cache: list = []

        def drawn(name: str):
            if not cache:
                cache.append(
                    _or_nothing(what, target, *self.algorithm.draw(target))
                    if alone
                    else self.algorithm.draw(target)
                )
            return cache[0][0][name]

        what, alone = f"normalize({', '.join(free)})", _nobody_weighs(run)
        with (kept := Inner("", run, {}, frozenset(free))):
            values = {name: _sample(record.sites[name], drawn) for name in free}
        all_drawn = all(kept.drawn.values())
        if all_drawn:
            log_w, kind = cache[0][1], "reciprocal"
        else:
            log_w, kind = self.algorithm.score(target, values), "unbiased"
        if self.algorithm.exact and not is_estimated(record.sites):
            kind = "exact"

        def forward(outer: frozenset[str]) -> jax.Array:
            held = [name for name, seen in kept.outward.items() if seen in outer]
            if held and len(held) < len(free):
                raise ModelError(
                    f"{what} has no density for {listed(held)} alone, so it cannot be run forward with "
                    "these given. Pass a proposal to ImportanceSampling, or sum the other sites out inside."
                )
            return log_w if held else jnp.zeros(())

        emit(what, log_w, Estimate(kind), forward, all_drawn, kept.blocked)
        return values

    def _free(self, sites: dict[str, dict]) -> tuple[str, ...]:
        latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
        if unknown := [n for n in self.data if n not in latent]:
            raise ModelError(
                f"The program has no latent site {listed(unknown)} to condition on; it has {listed(latent)}."
            )
        free = tuple(n for n in latent if n not in self.data)
        if not free:
            raise ModelError(
                f"normalize conditions on every latent site ({listed(latent)}), so nothing is left to draw."
            )
        return free


def _nobody_weighs(run: Run) -> bool:
    """Whether draws go to a user as they are. An objective, or a transformation around, gives a draw its
    weight, zero where none was possible, and its sum over draws is right only if they are numbers."""
    return not has_strategies(run) and not any(isinstance(handler, Inner) for handler in _PYRO_STACK)


def _or_nothing(
    what: str, target: Target, values: dict[str, jax.Array], log_w: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """A draw, or NaN where the algorithm found nothing to draw."""
    if (possible := target.possible) is None:
        return values, log_w
    if not isinstance(possible, jax.core.Tracer) and not bool(possible):
        warnings.warn(
            f"{what}: nothing that the algorithm drew is possible given the data (all weights are zero), so "
            "there is no posterior to draw from, and the draw is NaN (of integers, the least one). Look at "
            "the data and the supports of their laws; if they are possible, use more particles, or a "
            "proposal.",
            stacklevel=4,
        )
    return lost(values, ~possible), jnp.where(possible, log_w, jnp.nan)


def _sample(site: dict, drawn: Callable[[str], jax.Array]) -> jax.Array:
    """The site as the world outside sees it: asked for a value only if nobody there gives one."""
    name, shape = site["name"], jnp.shape(site["value"])
    infer = {key: value for key, value in site["infer"].items() if key == "is_auxiliary"}
    return numpyro.sample(name, Drawn(site["fn"], shape, lambda: drawn(name)), infer=infer)
