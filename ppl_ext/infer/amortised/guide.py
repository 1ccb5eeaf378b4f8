"""Amortised inference: a network reads the data and puts out the posterior."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import biject_to
from numpyro.handlers import block, infer_config, substitute

from ppl_ext.algorithms.algorithm import Algorithm
from ppl_ext.algorithms.marginal import marginal
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer.amortised.answer import drawing_together
from ppl_ext.infer.amortised.law import mixture, mixture_size, site_law
from ppl_ext.infer.amortised.network import PARAMS, bound_network, check_network
from ppl_ext.infer.amortised.pilot import Piloted, piloted
from ppl_ext.program import log_density, simulate
from ppl_ext.result import Fit
from ppl_ext.runtime.arguments import (
    check_call,
    check_count,
    check_key,
    check_mapping,
    check_program,
    described,
)
from ppl_ext.runtime.open_handlers import refuse_open_handlers


class Weighed(NamedTuple):
    """Draws for one data set, by site (draw, ...), and their log importance weights, (draw,), in nats.

    >>> # of Amortised.weighed
    >>> weighed = Weighed({"mu": jnp.array([0.1, 0.4])}, jnp.array([-3.0, -3.0]))
    >>> float(jax.nn.softmax(weighed.log_weights) @ weighed.values["mu"])
    0.25
    """

    values: dict[str, jax.Array]
    log_weights: jax.Array


def amortise(
    model: Callable,
    network: Any,
    *args: Any,
    rows: Sequence[str] = (),
    count: str | None = None,
    sites: Sequence[str] | None = None,
    num_components: int = 1,
    **kwargs: Any,
) -> "Amortised":
    r"""A guide that is a network of the data: trained once on simulations, it answers for any data set.

    .. math:: q_\phi(z \mid D) = \sum_k \pi_k\, \mathcal{N}(T^{-1}(z);\, \mu_k, L_k L_k^\top)\,
        |\det \partial T^{-1}(z)|, \qquad (\pi, \mu, L) = f_\phi(D)

    with T from unconstrained space to the supports of the sites (``biject_to``). Train it by ``fit`` with
    :class:`~ppl_ext.objectives.Sleep`, which needs no data: :math:`\max_\phi \mathbb{E}_{(z, D) \sim p} \log
    q_\phi(z \mid D)`, that is, the mean of :math:`\mathrm{KL}(p(z \mid D) \| q_\phi)` over the model's own
    data sets. Then :meth:`Amortised.laws` is one pass of the network, and :meth:`Amortised.answer` is a
    :class:`Fit` for new data, whose weights and Pareto k tell where the network is out of its depth.

    **Whatever the network is to read is an observed site, named as the argument that holds it**: data, but
    covariates, parameters of the prior and the place of a prediction too, each with the law that it shall be
    trained for. Numbers are put to median 0 and scale 1 of 1000 simulations on their way in and out.

    Sets of several lengths: the model draws how many rows there are (``count``), and what is beyond is masked
    in the model and hidden from the network.

    A *prediction* is answered for as well: a latent site for the new value, and ``sites=`` its name; the
    other latent sites are then averaged over by the simulations, if ``fit`` is given
    :attr:`Amortised.simulator` for the model. Its law is a mixture of ``num_components`` and no histogram: it
    has tails and a slope, needs no bins chosen from the prior, and with one component a Gaussian answer can
    be exact.

    :param model: a NumPyro model, whose observed sites are arguments of it.
    :param network: called as ``network(rows, seen, rest)`` with the rows of all ``rows`` side by side,
        (N, F), which of them are there, (N,), and all other numbers, (C,); it returns :attr:`Amortised.size`
        numbers. :class:`SetTransformer`, a module of flax (linen, nnx) or equinox, or what has ``init`` and
        ``apply``.
    :param args: with ``kwargs``, any possible data set of the full length, for its shapes.
    :param rows: observed sites with one entry a row.
    :param count: the observed site that says how many rows there are; by default all, always.
    :param sites: latent sites to answer for; by default all.
    :param num_components: K.
    :raises ArgumentError: for names that are no such sites, or a data set that the model cannot have.
    :raises ModelError: for a model without observed or latent sites, discrete or masked latent sites,
        factors, improper, scaled or subsampled sites, data that are no argument, or masks that
        are not those of ``count``; the message names the site.

    >>> import numpyro, optax, numpyro.distributions as dist, ppl_ext
    >>> from ppl_ext.infer import SetTransformer, fit
    >>> def model(width, y):  # the prior's width is read, too
    ...     width = numpyro.sample("width", dist.Uniform(0.5, 2.0), obs=width)
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, width))
    ...     with numpyro.plate("rows", 3):
    ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> full = jnp.array(1.0), jnp.zeros(3)
    >>> guide = amortise(model, SetTransformer(8, num_layers=1), *full, rows=["y"])
    >>> run = fit(jax.random.key(0), model, guide, ppl_ext.objectives.Sleep(16), optax.adam(0.01), 300, *full,
    ...           progress_bar=False)
    >>> new = 1.5, jnp.array([0.2, 1.0, 0.6])
    >>> law = guide.laws(run, *new)["mu"]  # exact: mean 0.52, standard deviation 0.54
    >>> bool(abs(law.mean - 0.52) < 0.3)
    True
    >>> guide.answer(run, *new).sample(num_samples=100).log_weights.shape
    (1, 100)

    Sources: Müller, Hollmann, Pineda Arango, Grabocka, Hutter 2022, "Transformers can do Bayesian inference";
    Whittle, Ziomek, Rawling, Osborne 2025, "Distribution transformers", where the network reads the prior.
    """
    refuse_open_handlers("amortise")
    check_program("amortise: model", model)
    check_network(network)
    check_count("amortise: num_components", num_components)
    check_call("amortise: model", model, args, kwargs)
    pilot = piloted(model, args, kwargs, rows, count, sites)
    pilot.data.bound(args, kwargs)  # which checks it
    simulator = model
    if pilot.others:
        simulator = infer_config(
            model, lambda site: {"is_auxiliary": True} if site["name"] in pilot.others else {}
        )
    return Amortised(model, simulator, network, int(num_components), pilot)


@dataclass(frozen=True, eq=False, repr=False)
class Amortised:
    """A NumPyro guide that is a network of the data: :func:`amortise` makes it, with an example.

    It takes the model's arguments, and draws the latent sites it answers for. Where a data set's numbers are
    at hand, and not traced, they are checked whenever it is run.

    :param simulator: what it is trained on: the model, with the latent sites that it does not answer for
        marked as no concern of a guide's.

    >>> import numpyro, numpyro.distributions as dist
    >>> from ppl_ext.infer import SetTransformer, amortise
    >>> def model(y):
    ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)
    >>> guide = amortise(model, SetTransformer(8), jnp.array(0.0), num_components=2)
    >>> guide, guide.size  # two weights, means and standard deviations
    (Amortised('mu', num_components=2), 6)
    """

    model: Callable
    simulator: Callable
    network: Any
    num_components: int
    pilot: Piloted

    def __repr__(self) -> str:
        return f"Amortised({listed(self.pilot.latent)}, num_components={self.num_components})"

    @property
    def __signature__(self) -> inspect.Signature:
        return self.pilot.data.signature

    @cached_property
    def samplers(self) -> dict[Any, Any]:
        """What answers of this guide compiled, and the models that they integrate."""
        return {}

    @property
    def size(self) -> int:
        """How many numbers the network puts out, K (d + d (d + 1) / 2), and K weights of more than one."""
        return mixture_size(self.num_components, len(self.pilot.center))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        logits, loc, tril = self._mixture(args, kwargs)
        whitened = jnp.zeros((self.num_components, 0), loc.dtype)
        for name, site in self.pilot.latent.items():
            # the mixture given the sites before: weights by how well each component foretold them
            here, before = slice(site.start, site.end), slice(0, site.start)
            shift = loc[:, here] + jnp.einsum("kij,kj->ki", tril[:, here, before], whitened)
            own = tril[:, here, here]
            value = numpyro.sample(name, site_law(site, logits, shift, own))
            if site.end < loc.shape[1]:
                away = jnp.ravel(biject_to(site.support).inv(value)) - shift
                e = solve_triangular(own, away[..., None], lower=True)[..., 0]
                spread = jnp.log(jnp.diagonal(own, axis1=1, axis2=2)).sum(-1)
                logits = logits - 0.5 * jnp.sum(e**2, -1) - spread
                whitened = jnp.concatenate([whitened, e], 1)

    def laws(self, run: Any, *args: Any, **kwargs: Any) -> dict[str, dist.Distribution]:
        """The marginal law of each site for one data set: one pass of the network.

        Under ``jax.jit`` and ``jax.vmap`` it answers for many; the numbers of the data sets are not at hand
        there, and only their shapes are checked.

        :param run: the :class:`Fit`, whose first chain is taken, or params by name.
        :param args: a data set; rows may be fewer than the full number, and ``count`` is then left out.
        :raises ArgumentError: for more rows than the network was trained for, other shapes, a value where the
            law of its site has no mass, or other constants than those trained for; site and value are named.
        :raises NonFiniteError: for data that are not finite.
        """
        with block(), substitute(data=_params(run)):
            logits, loc, tril = self._mixture(args, kwargs)
        found = {}
        for name, site in self.pilot.latent.items():
            part = tril[:, site.start : site.end, : site.end]
            own = part if not site.start else jnp.linalg.cholesky(part @ jnp.swapaxes(part, 1, 2))
            found[name] = site_law(site, logits, loc[:, site.start : site.end], own)
        return found

    def weighed(self, rng_key: jax.Array, run: Any, num_samples: int, *args: Any, **kwargs: Any) -> Weighed:
        """Draws for one data set and their importance weights, for ``jit`` and ``vmap`` over data sets:
        ``psis(log_weights).pareto_k`` tells where the network is out of its depth, and the weights mend it.

        :raises ModelError: if the guide answers for some latent sites only, whose joint density needs an
            algorithm: see :meth:`answer`.
        """
        check_key("weighed: rng_key", rng_key)
        check_count("weighed: num_samples", num_samples)
        self._refuse_some("weighed")
        full, params = self.pilot.data.bound(args, kwargs), _params(run)

        def one(key):
            with block(), substitute(data=params):
                draw = simulate(self, *full.args, rng_key=key, **full.kwargs)
                values = dict(draw.values)
                log_p = log_density(self.model, values, *full.args, rng_key=key, **full.kwargs)
            return Weighed(values, log_p.total - draw.log_density.total)

        return jax.vmap(one)(jax.random.split(rng_key, num_samples))

    def answer(self, run: Fit, *args: Any, algorithm: Algorithm | None = None, **kwargs: Any) -> Fit:
        """The trained guide for one data set, as a :class:`Fit`: with draws and their weights, report,
        verdict and :meth:`Fit.refined`. Draws are compiled once for all data sets; what a report, a verdict
        by short chains and a refinement need besides is compiled anew for each.

        :param algorithm: for a guide of some of the latent sites, what integrates out the others, as in
            :func:`ppl_ext.marginal`.
        :raises ArgumentError: as :meth:`laws`, which see.
        """
        if (
            not isinstance(run, Fit)
            or not isinstance(run.guide, Amortised)
            or run.guide.pilot is not self.pilot
        ):
            raise ArgumentTypeError(
                f"answer: run must be what fit returned for this guide, got {described(run)}. For params of "
                "another run there is laws."
            )
        full = self.pilot.data.bound(args, kwargs)
        if algorithm is None:
            self._refuse_some("answer")
        run = replace(run, args=full.args, kwargs=full.kwargs)
        if algorithm is not None and self.pilot.others:
            run = replace(run, model=self._integrated(algorithm), outside=None)
        return drawing_together(run)

    def _integrated(self, algorithm: Algorithm) -> Callable:
        """The model without the sites left out: one program for one algorithm, compiled once."""
        key = "integrated", id(algorithm)
        if key not in self.samplers:
            self.samplers[key] = algorithm, marginal(self.model, [*self.pilot.latent], algorithm)
        return self.samplers[key][1]

    def _refuse_some(self, what: str) -> None:
        if self.pilot.others:
            raise ModelError(
                f"{what}: the guide answers for {listed(self.pilot.latent)} and leaves "
                f"{listed(self.pilot.others)} out, so that the model's density is an integral. laws() does "
                "not need it; answer(..., algorithm=) takes what integrates, such as ImportanceSampling(100)."
            )

    def _mixture(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits (K,), means (K, d) and Cholesky factors (K, d, d), in unconstrained space."""
        inputs = self.pilot.data.inputs(self.pilot.data.bound(args, kwargs).arguments)
        out = bound_network(self.network, self.size, inputs)(*inputs)
        k, d = self.num_components, len(self.pilot.center)
        if jnp.shape(out) != (self.size,):
            raise ModelError(
                f"amortise: the network put out {described(out)}, and shape ({self.size},) is wanted: "
                f"{d} means and {d * (d + 1) // 2} numbers of a Cholesky factor for each of {k} components, "
                "and their weights if there is more than one."
            )
        return mixture(out, k, self.pilot.center, self.pilot.scale)


def _params(run: Any) -> Mapping[str, Any]:
    if isinstance(run, Fit):
        return jax.tree.map(lambda x: x[0], dict(run.params))
    check_mapping("amortise: run", run, "from names of params to arrays, or a Fit")
    if PARAMS not in run:
        raise ArgumentError(f"amortise: run has no '{PARAMS}'; it has {listed(run)}.")
    return run
