"""Finite sites that the guide does not have are summed out of the model: against every joint value, one after
the other.

The oracle never eliminates: it gives the sites each of their joint values and takes the log of the sum of the
densities. Chains too long for that are compared with the forward algorithm.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate, enum
from numpyro.contrib.funsor import log_density as funsor_log_density
from numpyro.handlers import mask, scale
from numpyro.infer import TraceEnum_ELBO
from scipy.stats import norm

from ppl_ext import log_density, marginal, simulate
from ppl_ext.algorithms import ImportanceSampling
from ppl_ext.densities import variable_elimination
from ppl_ext.densities.factors import Factor, PreviousStep, log_sum_exp, summed_along
from ppl_ext.errors import ModelError
from ppl_ext.objectives import ELBO, IWELBO
from tests.oracles import quick_jit

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
Y = jnp.array([0.2, 1.4, -0.5, 0.8])
MARK = {"enumerate": "parallel"}
THETA = jnp.array([0.3, -0.7, 0.9])


def flips(theta, chain=0.0, local=0.0):
    return dist.Bernoulli(logits=theta[0] + theta[1] * chain + theta[2] * local)


def tree(theta):
    """A global coin over a plate of coins, each over a die, and an unrelated normal site."""
    a = numpyro.sample("a", flips(theta))
    numpyro.sample("other", dist.Normal(theta[0], 1.0), obs=0.3)
    with numpyro.plate("n", 3):
        b = numpyro.sample("b", flips(theta, a))
        c = numpyro.sample("c", dist.Categorical(logits=jnp.array([[0.1, 0.5, -0.2], [0.3, 0.0, 1.0]])[b]))
        numpyro.sample("y", dist.Normal(c - b + theta[1], 1.0), obs=Y[:3])


def nested(theta):
    """Coins in an outer plate over a row each; two observations a cell, in a plate of which nothing is
    summed.
    """
    with numpyro.plate("outer", 2, dim=-2):
        a = numpyro.sample("a", flips(theta))
        with numpyro.plate("inner", 3, dim=-1):
            b = numpyro.sample("b", flips(theta, a))
            with numpyro.plate("twice", 2, dim=-3):
                numpyro.sample(
                    "y", dist.Normal(b + a * theta[2], 1.0), obs=jnp.arange(12.0).reshape(2, 2, 3) / 5
                )


def shared(theta):
    """A coin whose plate is read by one with a plate more, and an event of two coins."""
    a = numpyro.sample("a", flips(theta).expand([2]).to_event(1))
    with numpyro.plate("n", 3):
        numpyro.sample("y", dist.Normal(a[0] * theta[1] + 2.0 * a[1], 1.0), obs=Y[:3])


def meeting(theta):
    """A plate of coins that two densities read as a whole, and a chain that reads two steps back."""
    with numpyro.plate("n", 3):
        z = numpyro.sample("z", flips(theta))

    def step(state, y):
        x = numpyro.sample("x", flips(theta, state[1], z[0]))
        numpyro.sample("y", dist.Normal(x + z.sum(), 1.0), obs=y)
        return (x, state[0]), None

    scan(step, (0, 1), Y)


def loop(theta):
    x = 0
    for t, y in enumerate(Y):
        x = numpyro.sample(f"x{t}", flips(theta, x))
        numpyro.sample(f"y{t}", dist.Normal(x * theta[2], 1.0), obs=y)


def ring(theta):
    """A chain whose ends meet: elimination has to carry one along."""
    xs = [numpyro.sample(f"x{t}", flips(theta)) for t in range(4)]
    for t in range(4):
        numpyro.factor(f"f{t}", theta[1] * xs[t] * xs[t - 1])


def hidden_markov(theta):
    def step(x, y):
        x = numpyro.sample("x", flips(theta, x))
        numpyro.sample("y", dist.Normal(x * theta[2], 1.0), obs=y)
        return x, None

    scan(step, 1, Y)


def from_a_site(theta):
    """The first state is a site, the observation reads the step before too, and a site of each step hangs on
    the chain.
    """

    def step(x, y):
        new = numpyro.sample(
            "x", dist.Categorical(logits=jnp.array([[0.1, 0.5, -0.2], [0.3, 0.0, 1.0], [0.0, -0.5, 0.2]])[x])
        )
        w = numpyro.sample("w", flips(theta, new))
        numpyro.sample("y", dist.Normal(new - x * theta[0] + w, 1.0), obs=y)
        return new, None

    scan(step, numpyro.sample("x0", flips(theta)), Y[:3])


def side_by_side(theta):
    """A plate of chains under one global coin."""
    g = numpyro.sample("g", flips(theta))

    def step(x, y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", flips(theta, x, g))
            numpyro.sample("y", dist.Normal(x * theta[2], 1.0), obs=y)
        return x, None

    scan(step, jnp.zeros(2, int), Y.reshape(2, 2))


def coupled(theta):
    """Two chains that read each other's past."""

    def step(state, y):
        u, v = state
        new = numpyro.sample("u", flips(theta, v)), numpyro.sample("v", flips(theta, u, v))
        numpyro.sample("y", dist.Normal(new[0] + new[1] * theta[1], 1.0), obs=y)
        return new, None

    scan(step, (0, 1), Y[:3])


def steps_apart(theta):
    """A site of each step without a chain, after the scan read again in a plate."""

    def step(carry, y):
        x = numpyro.sample("x", flips(theta))
        numpyro.sample("y", dist.Normal(x * theta[2], 1.0), obs=y)
        return carry, x

    _, xs = scan(step, 0, Y)
    with numpyro.plate("again", 4):
        numpyro.sample("z", dist.Normal(xs + theta[0], 1.0), obs=Y)


def one_step(theta):
    scan(lambda x, _: (numpyro.sample("x", flips(theta, x)), None), 1, None, length=1)


def masked(theta):
    with numpyro.plate("n", 4), mask(mask=jnp.array([True, False, True, False])):
        z = numpyro.sample("z", flips(theta))
        numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=Y)


def imputed(theta):
    """A site whose own probability is masked and added as a factor (NumPyro's notebook on discrete
    imputation), in two plates.
    """
    with numpyro.plate("n", 3):
        a = numpyro.sample("a", flips(theta))
        with mask(mask=jnp.array([True, False, False])):
            b = numpyro.sample("b", flips(theta, a).mask(False))
        numpyro.factor("own", jnp.where(jnp.array([False, True, True]), flips(theta, a).log_prob(b), 0.0))
        numpyro.sample("y", dist.Normal(b * theta[1] - a, 1.0), obs=Y[:3])


def masks_within_events(theta):
    hidden = jnp.array([True, False])
    e = numpyro.sample("e", flips(theta).expand([2]).mask(hidden).to_event(1))
    numpyro.sample("f", flips(theta, e.sum()).expand([2]).to_event(1).mask(False))
    with numpyro.plate("n", 2):
        g = numpyro.sample("g", flips(theta).mask(hidden))
        numpyro.sample("y", dist.Normal(e @ theta[:2] + g, 1.0).mask(~hidden), obs=Y[:2])


def of_several_lengths(theta):
    """Two chains, one of which ends early."""

    def step(carry, y):
        x, t = carry
        with numpyro.plate("n", 2), mask(mask=t < jnp.array([1, 3])):
            x = numpyro.sample("x", flips(theta, x))
            numpyro.sample("y", dist.Normal(x * theta[2], 1.0), obs=y)
        return (x, t + 1), None

    scan(step, (jnp.ones(2, int), 0), Y[:3, None] + jnp.arange(2.0))


MASKED = (masked, imputed, masks_within_events, of_several_lengths)
MODELS = (
    tree,
    nested,
    shared,
    meeting,
    loop,
    ring,
    hidden_markov,
    from_a_site,
    side_by_side,
    coupled,
    steps_apart,
    one_step,
    *MASKED,
)


def by_hand(model, theta):
    """The log of the sum over every joint value of the latent sites, which are all finite."""
    latent = simulate(model, theta, rng_key=KEY).values
    top = {"c": 3, "x": 3 if model is from_a_site else 2}
    spaces = [itertools.product(range(top.get(n, 2)), repeat=math.prod(v.shape)) for n, v in latent.items()]
    joint = np.array([sum(z, ()) for z in itertools.product(*map(list, spaces))])
    ends = np.cumsum([math.prod(v.shape) for v in latent.values()])[:-1]
    columns = [
        jnp.asarray(z.reshape(-1, *v.shape))
        for z, v in zip(np.split(joint, ends, axis=1), latent.values(), strict=True)
    ]
    values = dict(zip(latent, columns, strict=True))
    return logsumexp(jax.vmap(lambda z: log_density(model, z, theta).total)(values))


def both(model, theta=THETA):
    def of(fn):
        return quick_jit(jax.value_and_grad(fn))(theta)

    return of(lambda theta: log_density(config_enumerate(model), {}, theta).total), of(
        lambda theta: by_hand(model, theta)
    )


def close(actual, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), actual, expected)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_value_and_gradient_are_those_of_the_sum(model):
    close(*both(model))


@pytest.mark.parametrize(
    ("model", "broken"),
    [(hidden_markov, "_by_parity"), (tree, "multiplied_along"), (nested, "summed")],
    ids=["parity", "plates", "sums"],
)
def test_the_comparison_has_power(model, broken, monkeypatch):
    """With even and odd steps alike, with plates averaged, with a sum that takes the largest: the same
    assertion fails.
    """
    factors = variable_elimination.Factor
    monkeypatch.setattr(
        variable_elimination,
        broken,
        {
            "_by_parity": lambda index, axis, shape: index[0],
            "multiplied_along": lambda f, plates: factors(
                f.table.mean(tuple(i for i, a in enumerate(f.axes) if a in plates)),
                tuple(a for a in f.axes if a not in plates),
            ),
            "summed": lambda f, s: factors(f.table.max(f.axes.index(s)), tuple(a for a in f.axes if a != s)),
        }[broken],
    )
    with pytest.raises(AssertionError):
        close(*both(model))


def forward(theta, ys):
    log_alpha = jnp.array([-jnp.inf, 0.0])
    to_one = jax.nn.log_sigmoid(theta[0] + theta[1] * jnp.arange(2))
    transition = jnp.stack([jax.nn.log_sigmoid(-theta[0] - theta[1] * jnp.arange(2)), to_one], -1)
    for y in ys:
        log_alpha = logsumexp(log_alpha[:, None] + transition, 0) + dist.Normal(
            jnp.arange(2) * theta[2], 1.0
        ).log_prob(y)
    return logsumexp(log_alpha)


def chain_of(length):
    ys = jnp.sin(jnp.arange(float(length)))

    def in_scan(theta):
        def step(x, y):
            x = numpyro.sample("x", flips(theta, x), infer=MARK)
            numpyro.sample("y", dist.Normal(x * theta[2], 1.0), obs=y)
            return x, None

        scan(step, 1, ys)

    def in_loop(theta):
        x = 1
        for t in range(length):
            x = numpyro.sample(f"x{t}", flips(theta, x), infer=MARK)
            numpyro.sample(f"y{t}", dist.Normal(x * theta[2], 1.0), obs=ys[t])

    return in_scan, in_loop, ys


def test_where_every_outcome_is_impossible_the_sum_is_too_and_its_gradient_zero():
    table = jnp.array([[-jnp.inf, -jnp.inf], [0.0, 0.0], [-jnp.inf, 2.0]])
    found, slope = (
        log_sum_exp(table, 1),
        jax.grad(lambda x: jnp.sum(jnp.where(jnp.isfinite(y := log_sum_exp(x, 1)), y, 0.0)))(table),
    )
    np.testing.assert_allclose(found, [-np.inf, np.log(2.0), 2.0], rtol=1e-6)
    np.testing.assert_allclose(slope, [[0.0, 0.0], [0.5, 0.5], [0.0, 1.0]], rtol=1e-6)


def test_a_chain_of_two_dice_is_summed_over_all_its_paths():
    """A table by step, another plate, and both dice now and one step earlier: the first step reads no earlier
    one.
    """
    table = np.random.default_rng(0).normal(size=(4, 2, 2, 3, 2, 3)).astype(np.float32)
    axes = (7, -3, PreviousStep("a"), PreviousStep("b"), "a", "b")
    found = jax.jit(lambda x: summed_along(Factor(x, axes), 7, {"a": 2, "b": 3}).table)(table)
    dice = list(itertools.product(range(2), range(3)))
    for other in range(2):
        paths = [
            table[0, other, 0, 0, *path[0]]
            + sum(table[t, other, *path[t - 1], *path[t]] for t in range(1, 4))
            for path in itertools.product(dice, repeat=4)
        ]
        np.testing.assert_allclose(found[other], np.logaddexp.reduce(paths), rtol=1e-5)


@pytest.mark.parametrize("objective", [ELBO(), IWELBO(num_particles=2)], ids=repr)
@pytest.mark.slow
def test_a_chain_of_fifty_flips_is_the_forward_algorithm(objective):
    model, _, ys = chain_of(50)
    with jax.enable_x64(True):
        theta = jnp.asarray(THETA, jnp.float64)
        loss = quick_jit(
            jax.value_and_grad(lambda theta: -objective.loss(KEY, {}, model, lambda theta: None, theta))
        )(theta)
        exact = quick_jit(jax.value_and_grad(lambda theta: forward(theta, ys)))(theta)
    close(loss, exact)


def test_the_program_grows_with_a_loop_and_not_with_a_scan():
    def size(model):
        return str(jax.make_jaxpr(lambda theta: log_density(model, {}, theta).total)(THETA)).count(" = ")

    (scan_5, loop_5, _), (scan_10, loop_10, _), (_, loop_15, _) = chain_of(5), chain_of(10), chain_of(15)
    assert size(scan_5) == size(scan_10)
    np.testing.assert_allclose(size(loop_15) - size(loop_10), size(loop_10) - size(loop_5), rtol=0.05)


# --- beside a guide


def mixture(subsample_size=None):
    loc = numpyro.sample("loc", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    with numpyro.plate("n", 4, subsample_size=subsample_size) as index:
        z = numpyro.sample("z", dist.Bernoulli(0.4), infer=MARK)
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=Y[index])


def guide(subsample_size=None):
    numpyro.sample("loc", dist.Normal(numpyro.param("m", jnp.zeros(2)), 0.5).to_event(1))


def test_the_bound_with_a_mixture_is_that_of_the_mixture_written_as_one():
    def written_out():
        loc = numpyro.sample("loc", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
        with numpyro.plate("n", 4):
            parts = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.6, 0.4])), dist.Normal(loc, 1.0))
            numpyro.sample("y", parts, obs=Y)

    def loss(objective, model):
        return quick_jit(jax.value_and_grad(lambda m: objective.loss(KEY, {"m": m}, model, guide)))(
            jnp.array([0.3, -0.2])
        )

    for objective in (ELBO(num_particles=3), IWELBO(num_particles=3)):
        close(loss(objective, mixture), loss(objective, written_out))


@pytest.mark.parametrize("subsample_size", [None, 1, 2])
@pytest.mark.slow
def test_terms_keep_their_plate_and_its_scale(subsample_size):
    drawn = {"loc": jnp.array([0.5, -1.0])} | (
        {} if subsample_size is None else {"n": jnp.arange(subsample_size)}
    )
    out = log_density(mixture, drawn, subsample_size)
    term = dict(zip((label.site for label in out.labels), out.terms, strict=True))["z + y"]
    (plate,) = next(label for label in out.labels if label.site == "z + y").plates
    size = 4 if subsample_size is None else subsample_size
    assert (plate.name, plate.dim, plate.scale) == ("n", -1, 4 / size)
    parts = jnp.stack([dist.Normal(m, 1.0).log_prob(Y[:size]) for m in drawn["loc"]]) + jnp.log(
        jnp.array([[0.6], [0.4]])
    )
    close(term, 4 / size * logsumexp(parts, axis=0))


def test_each_outcome_of_a_masked_element_counts_one():
    """As scale * mask * log p says; an element that nothing else sees adds log 2, as in NumPyro's own
    ``log_density``.
    """
    out = log_density(config_enumerate(masked), {}, THETA)
    q = jax.nn.sigmoid(THETA[0])
    seen = jnp.log(
        (1 - q) * jnp.exp(dist.Normal(0.0, 1.0).log_prob(Y)) + q * jnp.exp(dist.Normal(2.0, 1.0).log_prob(Y))
    )
    close(out.total, seen[0] + seen[2] + 2 * jnp.log(2.0))
    close(out.total, funsor_log_density(enum(config_enumerate(masked), -2), (THETA,), {}, {})[0])


@pytest.mark.slow
def test_impossible_outcomes():
    def model(p):
        z = numpyro.sample("z", dist.Categorical(probs=jnp.array([0.0, p, 1 - p])))
        numpyro.factor("f", jnp.array([0.0, -jnp.inf, 1.0])[z])

    value, slope = jax.value_and_grad(lambda p: log_density(config_enumerate(model), {}, p).total)(0.4)
    close((value, slope), (1.0 + jnp.log(0.6), -1 / 0.6))

    def none_left(p):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.factor("f", -jnp.inf * jnp.ones(2)[z])

    value, slope = jax.value_and_grad(lambda p: log_density(config_enumerate(none_left), {}, p).total)(0.4)
    assert value == -jnp.inf and slope == 0.0


@pytest.mark.slow
def test_what_the_guide_has_is_not_summed():
    """``config_enumerate`` marks every finite site; the guide's are given."""

    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        numpyro.sample("y", dist.Normal(a + 2.0 * b, 1.0), obs=0.9)

    def guide(phi):
        numpyro.sample("a", dist.Bernoulli(logits=phi))

    def loss(objective, guide):
        return jax.value_and_grad(
            lambda phi: objective.loss(KEY, {}, config_enumerate(model), lambda: guide(phi))
        )(0.3)

    theirs = loss(TraceEnum_ELBO(), config_enumerate(guide))
    close(loss(ELBO(), guide), theirs)


@pytest.mark.slow
def test_where_trace_enum_is_off():
    """With a ``scan`` NumPyro's own density agrees with ours, and its ``TraceEnum_ELBO`` with neither, in
    silence.
    """

    def model():
        hidden_markov(THETA)

    marked = config_enumerate(model)
    exact = by_hand(hidden_markov, THETA)
    close(-ELBO().loss(KEY, {}, marked, lambda: None), exact)
    close(funsor_log_density(enum(marked, -1), (), {}, {})[0], exact)
    assert abs(-TraceEnum_ELBO().loss(jax.random.PRNGKey(0), {}, marked, lambda: None) - exact) > 0.1


# --- what cannot be summed out


def refused(*words):
    return pytest.raises(ModelError, match="(?s)" + "".join(f"(?=.*{w})" for w in words))


def enumerated(model, **values):
    return log_density(config_enumerate(model), values)


def test_elements_that_meet():
    def model():
        with numpyro.plate("n", 13):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=0.0)

    def two_steps_back():
        def step(state, _):
            x = numpyro.sample("x", dist.Bernoulli(0.2 + 0.3 * state[1]))
            return (x, state[0]), None

        scan(step, (0, 0), None, length=13)

    with refused("Elements of site 'z' meet in the density of 'y'"):
        enumerated(model)
    with refused("Elements of site 'x' meet in the density of 'x'"):
        enumerated(two_steps_back)


@pytest.mark.slow
def test_plates_that_cross():
    def model():
        rows, columns = numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1)
        with rows:
            a = numpyro.sample("a", dist.Bernoulli(0.3))
        with columns:
            b = numpyro.sample("b", dist.Bernoulli(0.3))
        with rows, columns:
            numpyro.sample("y", dist.Normal(a + b, 1.0), obs=0.0)

    with refused("Site 'a' and 'b' lie in plates or scans that cross"):
        enumerated(model)


def test_scales_that_differ():
    def model():
        a = numpyro.sample("a", dist.Bernoulli(0.3))
        with scale(scale=2.0):
            numpyro.sample("y", dist.Normal(a, 1.0), obs=0.0)

    with refused("'a' do not share one scale"):
        enumerated(model)


def test_scales_are_one_if_they_are_equal_numbers():
    def model():
        with scale(scale=np.float32(2.0)):
            a = numpyro.sample("a", dist.Bernoulli(0.3), infer=MARK)
        with scale(scale=np.float32(2.0)):
            numpyro.sample("y", dist.Normal(a, 1.0), obs=0.4)

    close(log_density(model, {}).total, 2.0 * np.log(0.7 * norm.pdf(0.4) + 0.3 * norm.pdf(0.4, 1.0)))


def test_a_site_that_nothing_reads_sums_to_one():
    def model():
        numpyro.sample("a", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])), infer=MARK)
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.3)

    close(log_density(model, {}).total, dist.Normal(0.0, 1.0).log_prob(0.3))


def test_too_many_at_once():
    def model():
        zs = [numpyro.sample(f"z{i}", dist.Bernoulli(0.3)) for i in range(15)]
        numpyro.sample("y", dist.Normal(sum(zs), 1.0), obs=0.0)

    with refused("'z0', .*'z14'", "32768 joint values"):
        enumerated(model)


@pytest.mark.slow
def test_a_density_that_is_an_estimate():
    def inner(z):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(u + z, 1.0))

    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=MARK)
        marginal(inner, keep=["x"], algorithm=ImportanceSampling(2))(z)

    with refused("'z'", "itself an estimate"):
        log_density(model, {"x": 0.4}, rng_key=KEY)
