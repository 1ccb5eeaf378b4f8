"""A handler is a value around a program: it chooses, it nests, it passes through jit, and it never changes
what it wraps.
"""

import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import flax_module
from numpyro.handlers import condition, scale, scope, seed, substitute, trace

from ppl_ext import expectation, log_density, simulate
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError, StrategyError
from ppl_ext.expectations.run import Run
from ppl_ext.gradients import Constant, Enumerate, Reparameterize, ScoreFunction
from ppl_ext.handlers import Handler, detach, gradient, unobserved

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

SCORE = ScoreFunction(baseline=None)


def coin(annotation=None):
    def program():
        infer = {} if annotation is None else {"gradient": annotation}
        return numpyro.sample("z", dist.Bernoulli(0.3), infer=infer)

    return program


COIN = coin()


def chosen(program, *args):
    """The strategies that a run of the program inside an expectation meets, by site (reparameterised and
    constant ones do not show).
    """
    with (run := Run(jax.random.key(0), jax.random.key(1))):
        program(*args)
    return {c.name: c.strategy for c in run.choices}


def annotated(program, *args):
    """What the handlers wrote at each latent site."""
    sites = trace(seed(program, jax.random.key(0))).get_trace(*args)
    return {
        n: s["infer"].get("gradient")
        for n, s in sites.items()
        if s["type"] == "sample" and not s["is_observed"]
    }


# --- who decides
# ------------------------------------------------------------------------------------------------------------


def test_outer_handler_over_inner_over_annotation_over_default():
    assert chosen(coin()) == {"z": Enumerate()}
    assert chosen(coin("score")) == {"z": ScoreFunction()}
    inner = gradient(coin("score"), {"z": Enumerate(max_lanes=7)})
    assert chosen(inner) == {"z": Enumerate(max_lanes=7)}
    assert chosen(gradient(inner, {"*": SCORE})) == {"z": SCORE}


def test_the_first_matching_pattern_counts():
    def program():
        for name in ("z_1", "z_2", "w"):
            numpyro.sample(name, dist.Bernoulli(0.3))

    handled = gradient(program, {"z_1": SCORE, "z_*": Enumerate(max_lanes=5), "[wv]": "score"})
    assert chosen(handled) == {"z_1": SCORE, "z_2": Enumerate(max_lanes=5), "w": ScoreFunction()}
    assert chosen(gradient(program, {"z_?": SCORE})) == {"z_1": SCORE, "z_2": SCORE, "w": Enumerate()}


@pytest.mark.parametrize(
    ("short", "strategy"),
    [("score", ScoreFunction()), ("enumerate", Enumerate()), ("reparam", Reparameterize())],
    ids=lambda x: str(x),
)
def test_a_short_form_is_the_strategy_it_stands_for(short, strategy):
    program = coin()
    assert gradient(program, {"z": short}) == gradient(program, {"z": strategy})


def test_a_handler_decides_although_the_site_was_reparameterisable():
    def program():
        return numpyro.sample("x", dist.Normal(0.0, 1.0))

    assert chosen(program) == {}
    assert chosen(gradient(program, {"x": "score"})) == {"x": ScoreFunction()}


# --- patterns that match nothing
# -------------------------------------------------------------------------------------------------------


def test_a_pattern_that_matches_no_latent_site():
    def program():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=0.3)
        numpyro.deterministic("d", z)

    for pattern in ("zz", "y", "d", "Z"):
        with pytest.raises(
            ModelError, match=rf"the pattern '{pattern}' matches no latent site. Latent sites: 'z'"
        ):
            simulate(gradient(program, {"z": "score", pattern: "score"}), rng_key=jax.random.key(0))
        with pytest.raises(ModelError, match=rf"'{pattern}'"):
            log_density(gradient(program, {pattern: "score"}), {"z": 0.1})
    with pytest.raises(ModelError, match="Latent sites: none"):
        simulate(gradient(lambda: None, {"z": "score"}))


def test_wrong_arguments():
    with pytest.raises(ArgumentTypeError, match="dict from name pattern to strategy, got a list"):
        gradient(coin(), ["score"])
    with pytest.raises(ArgumentError, match="strategies is empty"):
        gradient(coin(), {})
    with pytest.raises(
        StrategyError, match="Unknown gradient strategy 'magic' for 'z'.*'reparam', 'score', 'enumerate'"
    ):
        gradient(coin(), {"z": "magic"})
    with pytest.raises(StrategyError, match="is a class; give an instance: ScoreFunction()"):
        gradient(coin(), {"z": ScoreFunction})
    for make in (lambda p: gradient(p, {"z": "score"}), detach):
        with pytest.raises(ArgumentTypeError, match="program must be a NumPyro program"):
            make(3)


# --- inside scan and cond
# ------------------------------------------------------------------------------------------------------------


def scanned(xs):
    def step(x, _):
        x = numpyro.sample("x", dist.Bernoulli(0.2 + 0.5 * x))
        return x, x

    return scan(step, 0, xs)[1]


def test_sites_in_scan_bodies_are_reached():
    assert chosen(scanned, jnp.zeros(3)) == {"x": Enumerate()}
    assert chosen(gradient(scanned, {"x": SCORE}), jnp.zeros(3)) == {"x": SCORE}
    outer = gradient(gradient(scanned, {"x": SCORE}), {"*": Enumerate(max_lanes=9)})
    assert chosen(outer, jnp.zeros(3)) == {"x": Enumerate(max_lanes=9)}
    with pytest.raises(ModelError, match="'y' matches no latent site. Latent sites: 'x'"):
        simulate(gradient(scanned, {"y": "score"}), jnp.zeros(3), rng_key=jax.random.key(0))


def test_sites_in_the_branches_of_cond_are_reached():
    def program():
        return cond(
            jnp.array(True),
            lambda _: numpyro.sample("b", dist.Bernoulli(0.3)),
            lambda _: numpyro.sample("b", dist.Bernoulli(0.6)),
            None,
        )

    assert chosen(gradient(program, {"b": SCORE})) == {"b": SCORE}


@pytest.mark.slow
def test_a_handler_changes_no_draw_and_no_density():
    key = jax.random.key(2)
    for handled in (gradient(scanned, {"x": "score"}), detach(scanned)):
        plain, with_handler = (
            simulate(scanned, jnp.zeros(4), rng_key=key),
            simulate(handled, jnp.zeros(4), rng_key=key),
        )
        np.testing.assert_array_equal(plain.values["x"], with_handler.values["x"])
        np.testing.assert_allclose(plain.log_density.total, with_handler.log_density.total, rtol=1e-6)
        again = log_density(handled, plain.values, jnp.zeros(4))
        np.testing.assert_allclose(plain.log_density.total, again.total, rtol=1e-6)


# --- values
# ------------------------------------------------------------------------------------------------------------


def test_handlers_are_immutable_hashable_and_comparable():
    one, same, other = (gradient(COIN, {"z": s}) for s in ("score", ScoreFunction(), "enumerate"))
    assert one == same and hash(one) == hash(same)
    assert one != other
    assert detach(COIN) == detach(COIN)
    assert hash(detach(COIN)) == hash(detach(COIN))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.program = None
    assert isinstance(one, Handler)


def test_the_dict_given_is_not_kept():
    strategies = {"z": SCORE}
    handled = gradient(COIN, strategies)
    strategies["z"] = Enumerate()
    assert chosen(handled) == {"z": SCORE}


def test_a_handler_can_be_called_again_and_inside_itself():
    handled = gradient(coin(), {"z": SCORE})
    assert chosen(handled) == chosen(handled) == {"z": SCORE}

    def twice():
        with scope(prefix="a"):
            handled()
        with scope(prefix="b"):
            handled()

    assert chosen(gradient(twice, {"a/*": "enumerate"})) == {"a/z": Enumerate(), "b/z": SCORE}


class Shifted(eqx.Module):
    """A program with an array and a number in it."""

    loc: jax.Array

    def __call__(self):
        return numpyro.sample("x", dist.Normal(self.loc, 1.0))


@pytest.mark.parametrize("wrap", [lambda p: gradient(p, {"x": "score"}), detach], ids=["gradient", "detach"])
def test_handlers_pass_through_jit_vmap_and_grad_as_arguments(wrap):
    traced = []

    @eqx.filter_jit
    def score(handler):
        traced.append(1)
        return log_density(handler, {"x": 0.5}).total

    for loc in (0.1, 0.2):
        np.testing.assert_allclose(
            score(wrap(Shifted(jnp.array(loc)))), dist.Normal(loc, 1.0).log_prob(0.5), rtol=1e-5
        )
    assert len(traced) == 1
    locs = jnp.array([0.1, 0.2])
    many = eqx.filter_vmap(lambda loc: log_density(wrap(Shifted(loc)), {"x": 0.5}).total)(locs)
    np.testing.assert_allclose(many, dist.Normal(locs, 1.0).log_prob(0.5), rtol=1e-5)
    slope = eqx.filter_grad(score)(wrap(Shifted(jnp.array(0.1))))
    np.testing.assert_allclose(slope.program.loc, 0.4, rtol=1e-5)


def test_a_new_handler_of_equal_strategies_traces_nothing_anew():
    runs = []

    def program():
        runs.append(1)
        return 1.0 * numpyro.sample("z", dist.Bernoulli(0.3))

    @eqx.filter_jit
    def value(handler, key):
        return simulate(handler, rng_key=key).log_density.total

    value(gradient(program, {"z": "score"}), jax.random.key(0))
    count = len(runs)
    value(gradient(program, {"z": ScoreFunction()}), jax.random.key(1))
    assert len(runs) == count
    value(gradient(program, {"z": "enumerate"}), jax.random.key(1))
    assert len(runs) > count


# --- nesting with NumPyro's handlers
# ---------------------------------------------------------------------------------------------------


def test_nesting_with_numpyros_handlers_both_ways():
    def model():
        loc = numpyro.param("loc", 0.0)
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=0.5)

    plain = log_density(substitute(model, {"loc": 1.0}), {"z": 0.2}).total
    for wrap in (lambda p: gradient(p, {"z": "score"}), detach):
        inside = [
            wrap(substitute(model, {"loc": 1.0})),
            wrap(scale(model, scale=2.0)),
            wrap(scope(model, prefix="a")),
        ]
        outside = [substitute(wrap(model), {"loc": 1.0}), scale(wrap(model), scale=2.0)]
        np.testing.assert_allclose(log_density(inside[0], {"z": 0.2}).total, plain, rtol=1e-6)
        np.testing.assert_allclose(log_density(outside[0], {"z": 0.2}).total, plain, rtol=1e-6)
        doubled = [log_density(p, {"z": 0.2}).total for p in (inside[1], outside[1])]
        np.testing.assert_allclose(doubled[0], doubled[1], rtol=1e-6)
    assert annotated(gradient(scope(model, prefix="a"), {"a/z": "score"})) == {"a/z": ScoreFunction()}
    assert annotated(scope(gradient(model, {"z": "score"}), prefix="a")) == {"a/z": ScoreFunction()}
    assert annotated(condition(gradient(model, {"z": "score"}), {"z": 0.3})) == {}


# --- detach
# ------------------------------------------------------------------------------------------------------------


def location(p):
    def program():
        loc = numpyro.param("loc", 0.5)
        return numpyro.sample("x", dist.Normal(loc, 1.0)) + loc

    return substitute(program, {"loc": p})


def test_detach_stops_params_and_draws():
    key = jax.random.key(0)
    value, grad = expectation(lambda p: location(p)()).value_and_grad(key, 0.3)
    held_value, held_grad = expectation(lambda p: detach(location(p))()).value_and_grad(key, 0.3)
    assert float(held_value) == float(value)
    assert (float(grad), float(held_grad)) == (2.0, 0.0)


@pytest.mark.parametrize("strategy", ["score", "enumerate"])
def test_detach_overrules_the_strategies_inside(strategy):
    def program(p):
        q = numpyro.param("q", 0.3)
        return 1.0 * numpyro.sample("z", dist.Bernoulli(q), infer={"gradient": strategy})

    def held(p):
        return detach(substitute(lambda: program(p), {"q": p}))()

    assert chosen(detach(coin(strategy))) == {}
    assert float(expectation(held).value_and_grad(jax.random.key(0), 0.3)[1]) == 0.0


def test_detach_stops_a_param_that_is_substituted_from_outside():
    """SVI substitutes parameters around the guide, so outside of a ``detach`` in it."""
    program = detach(lambda: 2.0 * numpyro.param("a", 1.0))
    assert float(jax.grad(lambda a: substitute(program, {"a": a})())(3.0)) == 0.0
    assert float(substitute(program, {"a": 3.0})()) == 6.0


def test_detach_lets_what_is_computed_from_arguments_be():
    assert float(jax.grad(lambda a: detach(lambda: numpyro.deterministic("d", 2.0 * a))())(1.0)) == 2.0


def test_detach_reaches_into_scan():
    def program():
        loc = numpyro.param("loc", 0.0)

        def step(x, _):
            x = numpyro.sample("x", dist.Normal(x + loc, 1.0))
            return x, x

        return scan(step, 0.0, jnp.zeros(3))[1].sum()

    _, grad = expectation(lambda p: substitute(program, {"loc": p})()).value_and_grad(jax.random.key(0), 0.3)
    _, held = expectation(lambda p: detach(substitute(program, {"loc": p}))()).value_and_grad(
        jax.random.key(0), 0.3
    )
    assert (float(grad), float(held)) == (6.0, 0.0)

    def sampled(p):  # the parameter comes in from outside: only the draws are held
        def step(x, _):
            x = numpyro.sample("x", dist.Normal(x + p, 1.0))
            return x, x

        return detach(lambda: scan(step, 0.0, jnp.zeros(3))[1].sum())()

    assert float(expectation(sampled).value_and_grad(jax.random.key(0), 0.3)[1]) == 0.0


def test_detach_stops_the_params_of_a_module():
    def program():
        net = flax_module("net", nn.Dense(1), input_shape=(1, 2))
        return net(jnp.array([[1.0, 2.0]])).sum() + numpyro.sample(
            "x", dist.Normal(net(jnp.ones((1, 2))).sum(), 1.0)
        )

    weights = {"net$params": {"kernel": jnp.array([[0.5], [0.3]]), "bias": jnp.array([0.1])}}
    value, grad = expectation(lambda p: substitute(program, p)()).value_and_grad(jax.random.key(0), weights)
    held_value, held = expectation(lambda p: detach(substitute(program, p))()).value_and_grad(
        jax.random.key(0), weights
    )
    np.testing.assert_allclose(held_value, value, rtol=1e-6)
    assert all(bool((g != 0).all()) for g in jax.tree.leaves(grad))
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(held))


def test_a_strategy_outside_of_detach_wins():
    """The outer handler decides: a detached program may be given a gradient again."""
    assert chosen(gradient(detach(coin()), {"z": SCORE})) == {"z": SCORE}
    assert annotated(detach(gradient(coin(), {"z": SCORE}))) == {"z": Constant()}


def test_what_was_observed_is_drawn_and_factors_stay():
    """Inside a scan too, and with the names collected."""

    def model(y):
        numpyro.factor("weight", -2.0)
        numpyro.sample("first", dist.Normal(10.0, 0.1).mask(False), obs=y[0])
        scan(lambda c, x: (c, numpyro.sample("later", dist.Normal(20.0, 0.1), obs=x)), 0.0, y[1:])

    names = set()
    draw = simulate(unobserved(model, names), jnp.zeros(3), rng_key=jax.random.key(0))
    assert set(draw.values) == names == {"first", "later"}
    assert (
        draw.values["later"].shape == (2,)
        and (draw.values["later"] > 19.0).all()
        and draw.values["first"] > 9.0
    )
    assert draw.log_density.by_site["weight"] == -2.0 and draw.log_density.by_site["first"] == 0.0
