"""A ``LogDensity`` computes like the array it stands for, and ``log_mean_exp`` takes its logs plate element
by plate element.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from ppl_ext import LogDensity, expectation, log_density, log_mean_exp, replicate, simulate
from ppl_ext.densities.bound_direction import Estimate
from ppl_ext.densities.log_density import Label, Plate, per_element
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError

DEFAULT_ROWS = 3  # of each table; the others are slow: see conftest.py

OUTER, INNER = Plate("outer", -2, 2, 1.0), Plate("inner", -1, 3, 1.0)
RNG = np.random.default_rng(0)


def close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=2e-5, atol=2e-5)


def single():
    """A scalar term, a term in a plate, and another term of the first name."""
    terms = (jnp.array(-1.5), jnp.array([-1.0, -2.0, 0.5]), jnp.array(0.25))
    return LogDensity(terms, (Label("a", ()), Label("b", (INNER,)), Label("a", ())))


def particles():
    """The same over four particles."""
    shapes = ((4,), (4, 3), (4,))
    rng = np.random.default_rng(1)
    terms = tuple(jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in shapes)
    return LogDensity(terms, single().labels, 1)


# --- arithmetic
# ------------------------------------------------------------------------------------------------------------


ARITHMETIC = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "-x": lambda x, y: -x,
    "x + 2": lambda x, y: x + 2.0,
    "2 + x": lambda x, y: 2.0 + x,
    "x - 2": lambda x, y: x - 2.0,
    "2 - x": lambda x, y: 2.0 - x,
    "3 * x": lambda x, y: 3.0 * x,
    "x * 3": lambda x, y: x * 3.0,
    "x / 4": lambda x, y: x / 4,
    "array * x": lambda x, y: jnp.array(0.5) * x,
    "x - array": lambda x, y: x - jnp.array(0.5),
    "array - x": lambda x, y: jnp.array(0.5) - x,
    "numpy scalar * x": lambda x, y: np.float64(0.5) * x,
    "numpy scalar - x": lambda x, y: np.float32(0.5) - x,
    "a longer one": lambda x, y: (x - 2 * y) / 3 + 1.0 - x,
    "sum()": lambda x, y: sum([x, y, x]),
}


@pytest.mark.parametrize("make", [single, particles])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_that_of_the_totals(name, make):
    x, y = make(), make() * 1.7
    given = ARITHMETIC[name](x, y)
    assert isinstance(given, LogDensity)
    close(given.total, ARITHMETIC[name](x.total, y.total))
    close(sum(given.by_site.values()), given.total)


def test_scalars_per_particle():
    x, weights = particles(), jnp.arange(4.0)
    close((weights * x).total, weights * x.total)
    close((x + weights).total, x.total + weights)
    close((weights - x).total, weights - x.total)


def test_the_terms_stay_apart():
    x, y = single(), LogDensity((jnp.array([1.0, 2.0]),), (Label("c", ()),))
    by_site = (2 * x - y).by_site
    close(by_site["a"], 2 * (-1.5 + 0.25))
    close(by_site["b"], 2 * -2.5)
    close(by_site["c"], -3.0)
    assert (x + y).labels == x.labels + y.labels


def test_by_site_and_total_of_particles_have_their_shape():
    x = particles()
    assert x.total.shape == (4,)
    assert {n: v.shape for n, v in x.by_site.items()} == {"a": (4,), "b": (4,)}
    close(x.by_site["b"], x.terms[1].sum(1))


def test_mean_and_sum_over_particles():
    x = particles()
    for reduced, expected in ((x.mean(), x.total.mean()), (x.sum(), x.total.sum())):
        assert reduced.batch_ndim == 0
        close(reduced.total, expected)
    close(x.mean().by_site["b"], x.terms[1].sum(1).mean())


def test_mean_over_two_particle_axes():
    terms = (jnp.asarray(RNG.normal(size=(4, 5, 3)).astype(np.float32)),)
    x = LogDensity(terms, (Label("b", (INNER,)),), 2)
    assert x.total.shape == (4, 5)
    close(x.mean().total, terms[0].sum(-1).mean())


def test_weighing_and_selecting_by_site():
    x = single()
    weighed = x.weigh({"a": 2.0, "*": jnp.asarray(0.5)})
    close(weighed.by_site["a"], 2 * x.by_site["a"])
    close(weighed.by_site["b"], 0.5 * x.by_site["b"])
    assert weighed.labels == x.labels
    close(x.weigh({"b": 3}).total, x.by_site["a"] + 3 * x.by_site["b"])
    close(x.weigh({}).total, x.total)
    close(x.select("b").total, x.by_site["b"])
    close(x.select("[ab]").total, x.total)
    assert x.select("a").labels == (x.labels[0], x.labels[2])
    over_particles = particles().weigh({"b": jnp.arange(4.0)})
    close(over_particles.by_site["b"], jnp.arange(4.0) * particles().by_site["b"])
    for method in (lambda: x.select("c"), lambda: x.weigh({"a": 1.0, "c*": 2.0})):
        with pytest.raises(ModelError, match=r"fits 'c\*?'. Its sites: 'a', 'b'"):
            method()


def test_a_weighed_estimate_keeps_its_direction():
    x = LogDensity((jnp.zeros(()), jnp.zeros(())), (Label("a", (), Estimate("unbiased")), Label("b", ())))
    assert [label.estimate.errs for label in x.weigh({"a": -2.0}).labels] == ["upper", "exact"]


def test_per_element_of_several_log_densities():
    """The weighted mean of one by the weights of another, in each element of the plate that holds all, times
    N/B.
    """
    plate = Plate("n", -1, 3, 2.0)
    rng = np.random.default_rng(2)
    ell, other = (
        LogDensity((jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),), (Label("a", (plate,)),), 1)
        for _ in range(2)
    )
    given = per_element(lambda a, b: jnp.sum(jax.nn.softmax(a, axis=0) * b, axis=0), ell, other)
    weights = jax.nn.softmax(ell.terms[0] / 2, axis=0)
    close(given.terms[0], 2 * jnp.sum(weights * other.terms[0] / 2, axis=0))
    assert given.labels[0].plates == (plate,)
    whole = LogDensity((jnp.zeros((4,)),), (Label("b", ()),), 1)  # outside the plate: no elements at all
    with pytest.warns(UserWarning, match="'n' is subsampled"):
        close(per_element(lambda a, b: a.sum(0) + b.sum(0), ell, whole).total, ell.total.sum())


def test_the_empty_density():
    nothing = log_density(lambda: None, {})
    assert nothing.terms == ()
    close(nothing.total, 0.0)
    close((nothing + single()).total, single().total)
    close((particles() - nothing).total, particles().total)
    close(log_mean_exp(LogDensity((), (), 1)).total, 0.0)


def test_it_is_a_pytree():
    x = jax.jit(lambda x: 2 * x)(particles())
    assert isinstance(x, LogDensity) and x.labels == particles().labels
    slope = jax.grad(lambda x: (3 * x).total)(single())
    assert all(bool((t == 3.0).all()) for t in slope.terms)
    assert float(single()) == pytest.approx(float(single().total))


def test_what_cannot_be_added():
    with pytest.raises(ArgumentTypeError, match="add a LogDensity and a str"):
        single() + "a"
    with pytest.raises(ArgumentTypeError, match="multiply a LogDensity and a LogDensity"):
        single() * single()
    with pytest.raises(
        ArgumentError, match=r"over 0 particle axes and an array of shape \(3,\); use `.total`"
    ):
        single() + jnp.zeros(3)
    with pytest.raises(
        ArgumentError, match=r"multiply .* over 1 particle axes and an array of shape \(4, 3\)"
    ):
        particles() * jnp.ones((4, 3))
    with pytest.raises(ArgumentError, match="with and without a particle axis"):
        single() + particles()


def test_a_numpy_array_on_the_left_does_not_make_an_array_of_densities():
    with pytest.raises((ArgumentError, ArgumentTypeError, TypeError)):
        np.ones(3) * single()
    product = np.arange(4.0) * particles()
    assert isinstance(product, LogDensity)
    close(product.total, np.arange(4.0) * particles().total)


# --- log_mean_exp
# ------------------------------------------------------------------------------------------------------------


def by_hand(x, axes):
    """Log mean exp over the first axis of the sum over ``axes``."""
    x = np.asarray(x, np.float64).sum(axes)
    return logsumexp(x, axis=0) - np.log(len(x))


def normals(*shape):
    return jnp.asarray(RNG.normal(size=shape).astype(np.float32))


def test_of_an_array():
    x = normals(5, 2)
    close(log_mean_exp(x), by_hand(x, ()))
    close(log_mean_exp([0.0, 0.0]), 0.0)
    close(log_mean_exp(jnp.array([-jnp.inf, 0.0])), -np.log(2))
    assert float(log_mean_exp(jnp.array([-jnp.inf, -jnp.inf]))) == -np.inf


def test_of_a_density_whose_sites_share_a_plate():
    a, b = normals(5, 3), normals(5, 3)
    x = LogDensity((a, b), (Label("a", (INNER,)), Label("b", (INNER,))), 1)
    out = log_mean_exp(x)
    assert out.batch_ndim == 0
    close(out.total, by_hand(a + b, ()).sum())


def test_of_a_density_with_a_global_site():
    a, b = normals(5), normals(5, 3)
    x = LogDensity((a, b), (Label("a", ()), Label("b", (INNER,))), 1)
    close(log_mean_exp(x).total, by_hand(a + b.sum(1), ()))


def test_of_nested_plates_where_one_holds_every_site():
    """The outer plate lies at dim -2: a term in both keeps its row, a term in the outer one alone is a
    column.
    """
    a, b = normals(5, 2, 1), normals(5, 2, 3)
    x = LogDensity((a, b), (Label("a", (OUTER,)), Label("b", (OUTER, INNER))), 1)
    out = log_mean_exp(x)
    close(out.total, by_hand(a[..., 0] + b.sum(-1), ()).sum())
    assert out.labels == (Label("", (OUTER,)),)


def test_of_nested_plates_where_both_hold_every_site():
    a, b = normals(5, 2, 3), normals(5, 2, 3)
    x = LogDensity((a, b), (Label("a", (INNER, OUTER)), Label("b", (OUTER, INNER))), 1)
    close(log_mean_exp(x).total, by_hand(a + b, ()).sum())


def test_of_plates_where_the_inner_dimension_holds_every_site():
    """The common plate lies at dim -1, and one term has an axis left of it, which is summed inside the
    log.
    """
    a, b = normals(5, 3), normals(5, 2, 3)
    x = LogDensity((a, b), (Label("a", (INNER,)), Label("b", (OUTER, INNER))), 1)
    close(log_mean_exp(x).total, by_hand(a + b.sum(1), ()).sum())


def test_of_plates_that_do_not_meet():
    a, b = normals(5, 2, 1), normals(5, 3)
    x = LogDensity((a, b), (Label("a", (OUTER,)), Label("b", (INNER,))), 1)
    close(log_mean_exp(x).total, by_hand(a.sum((1, 2)) + b.sum(1), ()))


def test_the_subsampling_scale_multiplies_outside_the_log():
    plate = Plate("n", -1, 3, 4.0)
    a, b = normals(5, 3), normals(5, 3)
    x = LogDensity((4.0 * a, 4.0 * b), (Label("a", (plate,)), Label("b", (plate,))), 1)
    close(log_mean_exp(x).total, 4.0 * by_hand(a + b, ()).sum())


def test_from_programs():
    """The importance-weighted sum of a plated model, particle by particle and element by element."""
    y = np.array([[0.3, -1.2, 0.8], [1.1, 0.2, -0.4]], np.float32)

    def model():
        with numpyro.plate("outer", 2, dim=-2):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with numpyro.plate("inner", 3, dim=-1):
                numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    def guide():
        with numpyro.plate("outer", 2, dim=-2):
            numpyro.sample("a", dist.Normal(0.5, 0.7))

    def log_weight():
        draw = simulate(guide)
        return log_density(model, draw.values) - draw.log_density

    key = jax.random.key(0)
    value = expectation(lambda: log_mean_exp(replicate(log_weight, 4))).value(key)
    draws = expectation(lambda k, i: replicate(lambda: simulate(guide).values["a"], 4)[k, i, 0])
    a = np.asarray([[draws.value(key, jnp.array(k), jnp.array(i)) for i in range(2)] for k in range(4)])[
        ..., None
    ]
    weights = norm.logpdf(a)[..., 0] + norm.logpdf(y, a, 1.0).sum(-1) - norm.logpdf(a, 0.5, 0.7)[..., 0]
    close(value, by_hand(weights, ()).sum())


def subsampled(global_site):
    plate = Plate("n", -1, 3, 2.0)
    labels = (Label("a", () if global_site else (plate,)), Label("b", (plate,)))
    return LogDensity((normals(5) if global_site else normals(5, 3), normals(5, 3)), labels, 1)


def test_a_minibatch_outside_a_common_plate_is_no_bound():
    with pytest.warns(
        UserWarning, match="Plate 'n' is subsampled .*times 2.* no bound on the evidence.*ELBO"
    ):
        log_mean_exp(subsampled(global_site=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_mean_exp(subsampled(global_site=False))


def test_what_has_no_particles():
    with pytest.raises(ArgumentError, match="got a scalar; use `replicate"):
        log_mean_exp(0.3)
    with pytest.raises(ArgumentError, match="one axis of particles, got 0"):
        log_mean_exp(single())
    with pytest.raises(ArgumentError, match="got 2"):
        log_mean_exp(LogDensity((normals(2, 2),), (Label("a", ()),), 2))
