"""The one idea: a program is a NumPyro model, and it can be simulated and scored.

``simulate(program, *args)`` draws from a program and says how likely the draw was.
``log_density(program, values, *args)`` scores given values. Objectives, gradient strategies and inference
algorithms are built from these two, so whatever NumPyro accepts as a model (plates, subsampling, masks,
``scale``, ``factor``, ``param``, ``scan``, modules, observed sites) works everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
from numpyro.handlers import seed
from numpyro.primitives import _PYRO_STACK

from ppl_ext.densities.log_density import LogDensity
from ppl_ext.densities.numbers_at_hand import AlsoDrawn, Numbers
from ppl_ext.densities.recording import Aside, Impose, Record, listed
from ppl_ext.errors import ModelError
from ppl_ext.runtime.arguments import check_call, check_key, check_program, check_values
from ppl_ext.runtime.explain import explained
from ppl_ext.tracing.inner_jits import past_inner_jits


class Program(eqx.Module):
    """A NumPyro model together with (some of) its arguments: ``Program(model, args, kwargs)(*more)`` runs it.

    It is itself a NumPyro model: handlers wrap it, and NUTS or SVI take it. Arrays in the arguments are
    leaves, so a program passes through ``jit`` and ``vmap``.

    >>> import numpyro, numpyro.distributions as dist
    >>> program = Program(lambda loc, y: numpyro.sample("y", dist.Normal(loc, 1.0), obs=y), (0.0,))
    >>> round(float(log_density(program, {}, 0.0).total), 4)  # more arguments follow those it has
    -0.9189
    """

    fn: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = eqx.field(default_factory=dict)

    def __call__(self, *args, **kwargs):
        return self.fn(*self.args, *args, **self.kwargs, **kwargs)


@jax.tree_util.register_pytree_node_class
class SiteValues(dict):
    """Values by site name, remembering which were auxiliary (``infer={"is_auxiliary": True}``) and so concern
    no other program.
    """

    def __init__(self, values=(), auxiliary: frozenset[str] = frozenset()):
        super().__init__(values)
        self.auxiliary = auxiliary

    def tree_flatten(self):
        names = tuple(self)
        return tuple(self[n] for n in names), (names, self.auxiliary)

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(zip(aux[0], leaves, strict=True), aux[1])


class Draw(NamedTuple):
    """What :func:`simulate` returns.

    ``values``: the unobserved sites by name, and the indices a subsampling plate drew, under the plate's
    name. ``log_density``: a :class:`~ppl_ext.densities.log_density.LogDensity` of the whole run (latent and
    observed sites, factors), masks and scales applied. ``output``: what the program returned.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> draw = simulate(lambda: 2 * numpyro.sample("z", dist.Delta(3.0)), rng_key=jax.random.key(0))
    >>> float(draw.values["z"]), float(draw.log_density.total), float(draw.output)
    (3.0, 0.0, 6.0)
    """

    values: SiteValues
    log_density: LogDensity
    output: Any


def _seeded(what: str, program: Callable, rng_key, args: tuple, kwargs: dict) -> Callable:
    """The program with its key, if there is one; all of it checked."""
    check_program(f"{what}: program", program)
    check_call(f"{what}: program", program, args, kwargs)
    if rng_key is None:
        return program
    if not isinstance(rng_key, int):  # a number is a seed to NumPyro
        check_key(f"{what}: rng_key", rng_key)
    return seed(program, rng_key)


def _past_inner_jits(attempt: Callable) -> Any:
    """Try as :func:`past_inner_jits` does; with handlers open, which have seen the first run, it is theirs to
    run again.
    """
    return past_inner_jits(attempt, again=not _PYRO_STACK)


def simulate(program: Callable, *args, rng_key: jax.Array | None = None, **kwargs) -> Draw:
    r"""Draw the unobserved sites of a program and score the run.

    .. math:: z \sim \prod_s p(z_s \mid z_{<s}), \qquad \ell = \sum_s \text{scale}_s \cdot \text{mask}_s \cdot
        \log p(z_s \mid z_{<s})

    with the log density :math:`\ell` over all sample sites, observed ones and factors included.

    :param program: a NumPyro model or guide; ``args`` and ``kwargs`` are passed to it.
    :param rng_key: needed outside :func:`ppl_ext.expectation` and ``numpyro.handlers.seed``, which bring
        their own.
    :return: :class:`Draw`.
    :raises ModelError: if two sites share a name, or no key is to be had.

    >>> import jax, numpyro, numpyro.distributions as dist
    >>> draw = simulate(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)), rng_key=jax.random.key(0))
    >>> bool(draw.log_density.total == dist.Normal(0.0, 1.0).log_prob(draw.values["z"]))
    True
    """
    run = _seeded("simulate", program, rng_key, args, kwargs)

    def attempt():
        record = Record(program)
        with explained(program, lambda: record.stands), record:
            return record, run(*args, **kwargs)

    record, output = _past_inner_jits(attempt)
    values, auxiliary = {}, set()
    for name, site in record.sites.items():
        if site["type"] == "sample" and not site["is_observed"]:
            values[name] = site["value"]
            if site["infer"].get("is_auxiliary"):
                auxiliary.add(name)
        elif site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            values[name] = site["value"]
            auxiliary.add(name)
    return Draw(SiteValues(values, frozenset(auxiliary)), record.log_density(), output)


def log_density(
    program: Callable, values: dict[str, Any], *args, rng_key: jax.Array | None = None, **kwargs
) -> LogDensity:
    r"""The log density of a program at given values of its unobserved sites.

    .. math:: \sum_s \text{scale}_s \cdot \text{mask}_s \cdot \log p(z_s \mid z_{<s})

    over all sample sites, observed ones and factors included. A subsampling plate takes its indices from
    ``values`` (as :func:`simulate` returns them); if they are missing it draws them, and the result is then
    an unbiased estimate. Finite latent sites that are marked ``infer={"enumerate": "parallel"}``
    (``numpyro.contrib.funsor.config_enumerate`` marks them all) and have no value are summed out, exactly and
    along the structure of the program (:mod:`ppl_ext.densities.variable_elimination`); the terms that they
    link are one term.

    :param values: one entry per unobserved site, shaped as the site; sites in ``scan`` have a leading time
        axis.
    :param rng_key: only for subsampling without given indices, outside :func:`ppl_ext.expectation`.
    :return: :class:`~ppl_ext.densities.log_density.LogDensity`; ``.total`` is the number.
    :raises ModelError: if a latent site has no value, a value has no site, shapes disagree, or a marked site
        cannot be summed out. The message names the site.

    >>> import numpyro, numpyro.distributions as dist
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
    >>> round(float(log_density(model, {"z": 0.0}, 0.0)), 4)
    -1.8379
    """
    run = _seeded("log_density", program, rng_key, args, kwargs)
    check_values("log_density: values", values)

    def once(values, seen: set[str], summed: set[str]) -> Record:
        record = Record(program)
        with explained(program, lambda: record.stands), record, Impose(values, seen, summed):
            run(*args, **kwargs)
        return record

    summed = set[str]()

    def attempt():
        seen = set[str]()
        summed.clear()
        record = once(values, seen, summed)
        if not summed:
            return record, seen, record.log_density()
        from ppl_ext.densities.summed_sites import summed_out  # most programs have nothing to sum

        def aside(more: Mapping[str, jax.Array]) -> dict[str, dict]:
            with Aside():
                return once({**values, **more}, set(), set()).sites

        return record, seen, summed_out(record.sites, record.log_density(), summed, aside)

    def at_a_draw():
        key, numeric = jax.random.key(0), AlsoDrawn(program)
        drawn = simulate(numeric, *args, rng_key=key, **kwargs)
        log_density(
            numeric, {n: x for n, x in drawn.values.items() if n not in summed}, *args, rng_key=key, **kwargs
        )

    with Numbers(at_a_draw):
        record, seen, result = _past_inner_jits(attempt)
    extra = [n for n in values if n not in seen and n not in getattr(values, "auxiliary", ())]
    # Values of observed sites were refused above; a value for a deterministic site or a param is a
    # misunderstanding too.
    if extra:
        latent = [n for n, s in record.sites.items() if s["type"] == "sample" and not s["is_observed"]]
        raise ModelError(
            f"The program has no latent site {listed(extra)}; it has {listed(latent)}. If the values come "
            "from a guide, rename the site or mark it infer={'is_auxiliary': True}."
        )
    return result
