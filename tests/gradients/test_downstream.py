"""Which costs a scored draw is charged with: exactly those downstream of it, on the shapes of plates where
that is easy to get wrong.

The shapes are those of NumPyro's ``test/infer/test_compute_downstream_costs.py`` (a tree of plates, plates
entered in another order, a diamond), with laws that do depend on each other; the code is new. What is
downstream is written by hand: ``own`` is a site's term of the model less its term of the guide, element by
element.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

from ppl_ext.expectations.baselines import collected
from ppl_ext.expectations.run import Run
from ppl_ext.handlers import gradient
from ppl_ext.objectives import ELBO
from ppl_ext.program import Program
from ppl_ext.tracing.credit import trace_credit
from tests.oracles import quick_jit


def coin(name, logit, shape=()):
    return 1.0 * numpyro.sample(name, dist.Bernoulli(logits=jnp.broadcast_to(jnp.asarray(logit), shape)))


def tree(w, observed):
    """A global coin, a plate beside the others, an outer plate with two inner ones."""
    a = coin("a", 0.3)
    with numpyro.plate("single", 5):
        coin("single_b", 0.2 * w, (5,))
    with numpyro.plate("outer", 2, dim=-1):
        b = coin("b", w * a, (2,))
        with numpyro.plate("inner_1", 3, dim=-2):
            c = coin("c1", w * b - 0.1, (3, 2))
            c = coin("c2", 0.4 - w * c, (3, 2))
            coin("c3", w * c, (3, 2))
        with numpyro.plate("inner_2", 4, dim=-2):
            d = coin("d1", w * b + 0.2, (4, 2))
            d = coin("d2", w * d - 0.3, (4, 2))
            if observed:
                numpyro.sample("obs", dist.Normal(d, 1.0), obs=jnp.arange(8.0).reshape(4, 2))


def tree_charges(own):
    d2 = own["d2"] + own["obs"]
    d1 = own["d1"] + d2
    c2 = own["c2"] + own["c3"]
    c1 = own["c1"] + c2
    b = own["b"] + c1.sum(0) + d1.sum(0)
    return {
        "a": own["a"] + b.sum(),
        "single_b": own["single_b"],
        "b": b,
        "c1": c1,
        "c2": c2,
        "c3": own["c3"],
        "d1": d1,
        "d2": d2,
    }


def reused(w, observed):
    """The same two plates, entered in one order and then in the other, with a coin between."""
    first, second = numpyro.plate("first", 3, dim=-1), numpyro.plate("second", 2, dim=-2)
    a = coin("a", w)
    with first, second:
        c = coin("c1", w * a, (2, 3))
    b = coin("b", 0.5 * w)
    with second, first:
        e = coin("c2", w * c - b, (2, 3))
        if observed:
            numpyro.sample("obs", dist.Normal(e, 1.0), obs=jnp.arange(6.0).reshape(2, 3))


def reused_charges(own):
    c2 = own["c2"] + own["obs"]
    c1 = own["c1"] + c2
    return {"a": own["a"] + c1.sum(), "b": own["b"] + c2.sum(), "c1": c1, "c2": c2}


def diamond(w, observed):
    """One coin, two that it loads, one element apiece of what they load together; a plate is summed on the
    way.
    """
    a = coin("a", 0.2)
    left, right = coin("left", w * a), coin("right", -w * a)
    with numpyro.plate("n", 3):
        c = coin("c", w * left - right * jnp.arange(3.0), (3,))
        f = coin("f", w, (3,))
    e = coin("e", w * c.sum())
    if observed:
        numpyro.sample("obs", dist.Normal(e + a, 1.0), obs=0.4)
        with numpyro.plate("m", 3):
            numpyro.sample("obs_f", dist.Normal(f * c, 1.0), obs=jnp.arange(3.0))


def diamond_charges(own):
    e = own["e"] + own["obs"]
    c = own["c"] + own["obs_f"] + e
    side = own["c"].sum() + own["obs_f"].sum() + e
    left, right = own["left"] + side, own["right"] + side
    return {
        "a": own["a"] + own["left"] + own["right"] + side,
        "left": left,
        "right": right,
        "c": c,
        "f": own["f"] + own["obs_f"],
        "e": e,
    }


SHAPES = {
    "tree": (tree, tree_charges),
    "reused": (reused, reused_charges),
    "diamond": (diamond, diamond_charges),
}


def charges(shape):
    """What each site is charged with in one run, and the run's terms by site: model less guide."""
    model, guide = Program(shape, (0.7, True)), gradient(Program(shape, (-0.4, False)), {"*": "score"})

    def run(key, **options):
        with (r := Run(key, key, **options)):
            return r, ELBO()(model, guide)

    labels: list[str] = []
    names: list[str] = []

    def both(key):
        credit, _ = trace_credit(lambda: list(run(key, tracing=True)[1].terms))
        r, cost = run(key)
        labels[:], names[:] = [label.site for label in cost.labels], [c.name for c in r.choices]
        shapes = {id: law.shape for id, law in r.laws.items()}
        return collected(r.choices, shapes, cost.terms, credit), cost.terms

    found, terms = quick_jit(both)(random.key(0))
    own: dict[str, np.ndarray] = {}
    for label, term in zip(labels, terms, strict=True):
        own[label] = own.get(label, 0.0) + np.asarray(term)
    return dict(zip(names, found, strict=True)), own


@pytest.mark.parametrize("name", ["tree", "diamond", pytest.param("reused", marks=pytest.mark.slow)])
def test_a_draw_is_charged_with_what_is_downstream_of_it(name):
    shape, by_hand = SHAPES[name]
    found, own = charges(shape)
    # without the axis of the one particle
    expected = by_hand({site: term.reshape(term.shape[1:]) for site, term in own.items()})
    assert set(found) == set(expected)
    for site, cost in expected.items():
        np.testing.assert_allclose(np.asarray(found[site])[0], cost, rtol=1e-5, atol=1e-5, err_msg=site)
