"""Finite sites under masks, scales and conditions, in pairs, in every verb that sums them out: against every
joint value by hand.

What a masked site's outcomes count is scale * mask * log p: one each. A scale multiplies the log of what it
holds; reports of single terms leave it out.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.funsor import config_enumerate

from ppl_ext import log_density, marginal, normalize
from ppl_ext.algorithms import Enumeration
from ppl_ext.diagnostics import log_likelihood
from ppl_ext.objectives import ELBO, IWELBO
from ppl_ext.result import Fit

DEFAULT_ROWS = 4  # of each table; the others are slow: see conftest.py

Y = jnp.array([0.4, -1.0, 2.0])
PART = np.array([True, False, True])
SHIFT = 0.3


def model(y, z_law=lambda law: law, y_law=lambda law: law, around_z=lambda program: program, own=None):
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    g = numpyro.sample("g", dist.Bernoulli(0.2))
    with numpyro.plate("n", 3):
        z = around_z(lambda: numpyro.sample("z", z_law(dist.Categorical(jnp.array([0.2, 0.5, 0.3])))))()
        if own is not None:
            numpyro.factor("own", own(z))
        numpyro.sample("y", y_law(dist.Normal(2.0 * z + shift - g, 1.0)), obs=y)


def all_masked(law):
    return law.mask(False)


def partly(law):
    return law.mask(jnp.asarray(PART))


def masked_by_handler(program):
    return handlers.mask(program, mask=jnp.asarray(PART))


def conditioned(program):
    return handlers.condition(program, data={"z": jnp.array([0, 2, 1])})


def intervened(program):
    return handlers.do(program, data={"z": jnp.array([0, 2, 1])})


# name: (keyword arguments of the model, a handler around all of it, the scale that this brings)
CHANGES = {
    "plain": ({}, None, 1.0),
    "z masked": ({"z_law": all_masked}, None, 1.0),
    "z partly masked": ({"z_law": partly}, None, 1.0),
    "y partly masked": ({"y_law": partly}, None, 1.0),
    "z under a mask": ({"around_z": masked_by_handler}, None, 1.0),
    "everything masked by halves": ({}, lambda m: handlers.mask(m, mask=True), 1.0),
    "own factor": ({"own": lambda z: jnp.array([-1.0, 0.5, -0.2])[z]}, None, 1.0),
    "z conditioned": ({"around_z": conditioned}, None, 1.0),
    "z set": ({"around_z": intervened}, None, 1.0),
    "g conditioned": ({}, lambda m: handlers.condition(m, data={"g": jnp.array(1)}), 1.0),
    "scaled": ({}, lambda m: handlers.scale(m, scale=2.5), 2.5),
}
PAIRS = [
    p for p in itertools.combinations(CHANGES, 2) if not (CHANGES[p[0]][0].keys() & CHANGES[p[1]][0].keys())
]


def build(pair):
    options = CHANGES[pair[0]][0] | CHANGES[pair[1]][0]
    program = lambda y: model(y, **options)  # noqa: E731
    for name in pair:
        if CHANGES[name][1] is not None:
            program = CHANGES[name][1](program)
    return program, CHANGES[pair[0]][2] * CHANGES[pair[1]][2]


def by_hand(program, scale, only=None):
    """The log of the sum over every joint value that the program leaves open; ``only``: the y that stays, the
    others left out.
    """
    free = handlers.trace(handlers.seed(program, 0)).get_trace(Y)
    shapes = {
        n: free[n]["value"].shape
        for n in ("g", "z")
        if n in free and not free[n]["is_observed"] and free[n]["type"] == "sample"
    }
    if "z" in shapes and free["z"].get("stop"):
        shapes.pop("z")
    sizes = {"g": 2, "z": 3}
    joint = [np.ndindex(*(sizes[n],) * int(np.prod(s))) for n, s in shapes.items()]
    totals = []
    for outcome in itertools.product(*joint):
        values = {n: jnp.asarray(o).reshape(s) for (n, s), o in zip(shapes.items(), outcome, strict=True)}
        values["shift"] = jnp.array(SHIFT)
        trace = handlers.trace(handlers.substitute(handlers.seed(program, 0), values)).get_trace(Y)
        total = 0.0
        for name, site in trace.items():
            if site["type"] == "sample" and (only is None or name not in ("shift",)):
                term = jnp.broadcast_to(site["fn"].log_prob(site["value"]), site["fn"].batch_shape)
                total += float(term.sum() if only is None or name != "y" else term[only])
        totals.append(total)
    return scale * np.logaddexp.reduce(totals)


def guide(y):
    numpyro.sample("shift", dist.Delta(jnp.array(SHIFT)))


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_every_verb_agrees_with_every_joint_value(pair):
    program, scale = build(pair)
    exact = by_hand(program, scale)
    marked = config_enumerate(program)

    @jax.jit
    def verbs():
        return (
            log_density(marked, {"shift": SHIFT}, Y).total,
            -ELBO().loss(jax.random.key(0), {}, marked, guide, Y),
            -IWELBO(num_particles=2).loss(jax.random.key(0), {}, marked, guide, Y),
        )

    np.testing.assert_allclose(verbs(), exact, rtol=2e-5)
    draws = Fit({}, np.zeros((1, 1)), program, guide, ELBO(), (Y,)).sample(num_samples=1)
    np.testing.assert_allclose(draws.log_p, exact, rtol=2e-5)
    # Terms of the report have no scale, and leave out the prior of what is given.
    terms = log_likelihood(program, {"shift": jnp.full(1, SHIFT)}, Y, batch_ndims=1, units="independent")
    whole = np.nansum(np.concatenate([np.ravel(t) for t in terms.values()]))
    prior = float(dist.Normal(0.0, 1.0).log_prob(SHIFT))
    masked_out = "y partly masked" in pair
    if not masked_out and "z conditioned" not in pair and "g conditioned" not in pair:
        conditional = exact / scale - prior
        if "own factor" in pair:  # what else is known of z is conditioned on
            conditional -= by_hand(handlers.block(program, hide=["y"]), 1.0) - prior
        np.testing.assert_allclose(whole, conditional, rtol=5e-5)


@pytest.mark.parametrize(
    "pair",
    [("plain", "own factor"), ("z masked", "own factor"), ("z partly masked", "y partly masked")],
    ids=" and ".join,
)
def test_transformations_that_enumerate_agree(pair):
    program, _ = build(pair)
    exact = by_hand(program, 1.0)
    few = marginal(lambda: program(Y), keep=["shift"], algorithm=Enumeration())
    np.testing.assert_allclose(log_density(few, {"shift": SHIFT}).total, exact, rtol=2e-5)
    posterior = normalize(
        lambda: handlers.condition(program, data={"shift": jnp.array(SHIFT)})(Y), {}, Enumeration()
    )
    every = [{"g": jnp.array(g), "z": jnp.array(z)} for g in range(2) for z in np.ndindex(3, 3, 3)]
    each = jax.jit(lambda values: log_density(posterior, values, rng_key=jax.random.key(0)).total)
    total = np.logaddexp.reduce([float(each(values)) for values in every])
    np.testing.assert_allclose(total, 0.0, atol=1e-4)


def test_observed_halves_under_obs_mask_are_no_part_of_the_model():
    """Without the rows that were seen twice the evidence is the same, whoever reads the imputed value."""
    seen, labels = jnp.array([True, False, True]), jnp.array([1, 0, 0])

    def imputed(labels):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 3):
            z = numpyro.sample(
                "z", dist.Bernoulli(logits=shift), obs=labels, obs_mask=seen, infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=Y)

    p = 1 / (1 + np.exp(-SHIFT))
    law = np.array([1 - p, p])
    each = np.exp(dist.Normal(2.0 * jnp.arange(2), 1.0).log_prob(Y[:, None]))
    exact = np.log(law[1] * each[0, 1]) + np.log(law @ each[1]) + np.log(law[0] * each[2, 0])
    exact += float(dist.Normal(0.0, 1.0).log_prob(SHIFT))
    np.testing.assert_allclose(log_density(imputed, {"shift": SHIFT}, labels).total, exact, rtol=1e-5)
    np.testing.assert_allclose(-ELBO().loss(jax.random.key(0), {}, imputed, guide, labels), exact, rtol=1e-5)
    draws = Fit({}, np.zeros((1, 1)), imputed, guide, ELBO(), (labels,)).sample(num_samples=1)
    np.testing.assert_allclose(draws.log_p, exact, rtol=1e-5)


def test_the_comparison_has_power(monkeypatch):
    from ppl_ext.densities import summed_sites
    from ppl_ext.densities.distributions import elements, log_prob

    # the mask of a summed site ignored
    monkeypatch.setattr(summed_sites, "element_log_prob", lambda fn, value: log_prob(elements(fn), value))
    with pytest.raises(AssertionError):
        test_every_verb_agrees_with_every_joint_value(("z masked", "scaled"))
