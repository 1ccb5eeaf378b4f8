"""One-step-ahead terms of chains, against the forward algorithm by hand and against sums over every path of
the hidden sites.
"""

import itertools

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from scipy.special import logsumexp
from scipy.stats import norm

from ppl_ext import log_density
from ppl_ext.diagnostics import log_likelihood, loo
from ppl_ext.errors import ArgumentError, ArgumentTypeError, ModelError
from ppl_ext.infer import fit
from ppl_ext.objectives import ELBO
from ppl_ext.result import Fit, to_arviz

DEFAULT_ROWS = 1  # of each table; the others are slow: see conftest.py

RNG = np.random.default_rng(1)
START, MOVE, PLACE = np.array([0.6, 0.4]), np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([-1.0, 1.5])
Y = RNG.normal(size=6).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def hmm(y):
    width = numpyro.sample("width", dist.LogNormal(0.0, 1.0))

    def step(law, y):
        z = numpyro.sample("z", dist.Categorical(law))
        numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z], width), obs=y)
        return jnp.asarray(MOVE)[z], None

    scan(step, jnp.asarray(START), y)


def forward(y, width):
    """The forward algorithm in double precision: log p(y_t | y_<t), and the filtered law of the last
    state.
    """
    law, terms = START, []
    for value in np.asarray(y, float):
        joint = law * norm.pdf(value, PLACE, width)
        terms.append(np.log(joint.sum()))
        law = joint / joint.sum() @ MOVE
    return np.array(terms)


def backward(y, width):
    """Log p(y) from the other end."""
    message = np.ones(2)
    for value in np.asarray(y, float)[:0:-1]:
        message = MOVE @ (norm.pdf(value, PLACE, width) * message)
    return np.log(START @ (norm.pdf(float(y[0]), PLACE, width) * message))


def one_step(model, samples, *args, **options):
    return log_likelihood(model, samples, *args, units="one_step", **options)


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_a_hidden_markov_model_by_forward_and_backward(length):
    widths = np.array([[0.7, 1.0, 2.0]], np.float32)
    terms = one_step(hmm, {"width": widths}, jnp.asarray(Y[:length]))["y"]
    assert terms.shape == (1, 3, length)
    for width, row in zip(widths[0], terms[0], strict=True):
        close(row, forward(Y[:length], width))
        close(row.sum(), backward(Y[:length], width))


def test_the_terms_are_one_step_ahead_and_not_smoothed():
    """A term must not move when later data do, and must move when earlier data do: it conditions on the past
    alone.
    """
    samples = {"width": np.ones((1, 1), np.float32)}
    base = one_step(hmm, samples, jnp.asarray(Y))["y"][0, 0]
    later, earlier = Y.copy(), Y.copy()
    later[4] += 2.0
    earlier[1] += 2.0
    close(one_step(hmm, samples, jnp.asarray(later))["y"][0, 0, :4], base[:4], 1e-6)
    assert abs(one_step(hmm, samples, jnp.asarray(earlier))["y"][0, 0, 2] - base[2]) > 0.01


def test_a_long_series_loses_no_digits():
    """Summed in float32 as it comes, log p(y_1..t) would be off by 1e-3 a term at t = 3000."""
    y = RNG.normal(size=3000).astype(np.float32)
    terms = one_step(hmm, {"width": np.ones((1, 1), np.float32)}, jnp.asarray(y))["y"][0, 0]
    close(terms, forward(y, 1.0))


# --- every way to link steps, against brute force


def brute_force(model, y, finite, values, logs):
    """log p(y_1..t) for every t, as a sum over every assignment of the finite sites: by site (values, shape
    at length t).
    """
    out = []
    for length in range(1, len(y) + 1):
        spaces = {
            n: list(itertools.product(support, repeat=int(np.prod(shape(length)))))
            for n, (support, shape) in finite.items()
        }
        grid = np.indices([len(s) for s in spaces.values()]).reshape(len(spaces), -1)
        assigned = {
            n: jnp.asarray(np.array(s)[i].reshape(-1, *finite[n][1](length)))
            for (n, s), i in zip(spaces.items(), grid, strict=True)
        }
        joint = jax.vmap(
            lambda z, length=length: log_density(model, {**values, **z}, jnp.asarray(y[:length])).total
        )(assigned)
        out.append(logsumexp(np.asarray(joint, float)) - logs)
    return np.diff(out, prepend=0.0)


def along(*shape):
    return lambda length: (length, *shape)


def fixed(*shape):
    return lambda length: shape


def initial_outside(y):
    z0 = numpyro.sample("z0", dist.Bernoulli(0.3))

    def step(z, y):
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(z == 1, 0.8, 0.1)))
        numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)
        return z, None

    scan(step, z0, y)


def shifted_support(y):
    def step(z, y):
        z = numpyro.sample(
            "z", dist.DiscreteUniform(2, 4).mask(False) if y is None else dist.DiscreteUniform(2, 4)
        )
        w = numpyro.sample("w", dist.Bernoulli(jnp.where(z == 3, 0.9, 0.2)))
        numpyro.sample("y", dist.Normal(z - 3.0 * w, 1.0), obs=y)
        return z, None

    scan(step, 2, y)


def shifted_chain(y):
    def step(z, y):
        z = numpyro.sample("z", dist.Binomial(2, jnp.where(z == 2, 0.9, 0.2)))
        numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)
        return z, None

    scan(step, jnp.array(2), y)


def class_of_the_series(y):
    c = numpyro.sample("c", dist.Bernoulli(0.3))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z] + 2.0 * c, 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def component_within_the_step(y):
    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        k = numpyro.sample("k", dist.Categorical(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])[z]))
        numpyro.sample("y", dist.Normal(1.0 * k, 0.5), obs=y)
        return z, None

    scan(step, 1, y)


def two_chains(y):
    def step(carry, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[carry[0]]))
        w = numpyro.sample("w", dist.Bernoulli(jnp.where(carry[1] == 1, 0.9, 0.3)))
        numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z] * (1.0 + w), 1.0), obs=y)
        return (z, w), None

    scan(step, (0, 1), y)


def autoregression_with_regimes(y):
    def step(carry, y):
        z, last = carry
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
        numpyro.sample("y", dist.Normal(jnp.array([0.9, -0.5])[z] * last, 1.0), obs=y)
        return (z, y), None

    scan(step, (0, 0.0), y)


def plated(y):
    def step(z, y):
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z], 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), y)


def plated_twice(y):
    def step(z, y):
        with numpyro.plate("series", 2, dim=-2):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            with numpyro.plate("tone", 3, dim=-1):
                numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z], 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros((2, 1), int), y)


def one_class_for_all_series(y):
    c = numpyro.sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))

    def step(z, y):
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z] + c, 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), y)


def a_class_for_each_series(y):
    with numpyro.plate("series", 2):
        c = numpyro.sample("c", dist.Bernoulli(0.4))

    def step(z, y):
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z] + 2.0 * c, 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), y)


def seen_beside_the_chain(y):
    """The counts tell of the class, of which the chain's data tell too, and of a component that no chain
    sees: none of them multiplies the states of another.
    """
    c = numpyro.sample("c", dist.Bernoulli(0.3))

    def step(carry, y):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[carry[0]]))
        w = numpyro.sample("w", dist.Bernoulli(jnp.where(carry[1] == 1, 0.9, 0.3)))
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z] + 2.0 * c, 1.0), obs=y)
        numpyro.sample("u", dist.Normal(1.5 * w - c, 1.0), obs=-y)
        numpyro.sample("v", dist.Normal(k + 1.0 * c, 1.0), obs=0.5 * y)
        numpyro.sample("n", dist.Normal(0.5 * c, 2.0), obs=2.0 * y)
        return (z, w), None

    scan(step, (0, 1), y)


def second_order(y):
    def step(carry, y):
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(carry[0] == carry[1], 0.2, 0.7)))
        numpyro.sample("y", dist.Normal(1.0 * z + carry[1], 1.0), obs=y)
        return (z, carry[0]), None

    scan(step, (0, 0), y)


BINARY = (0, 1)
LINKS = {
    "initial outside": (initial_outside, (), {"z0": (BINARY, fixed()), "z": (BINARY, along())}, (0,)),
    "shifted chain": (shifted_chain, (), {"z": ((0, 1, 2), along())}, (0,)),
    "class of the series": (class_of_the_series, (), {"c": (BINARY, fixed()), "z": (BINARY, along())}, (0,)),
    "component within the step": (
        component_within_the_step,
        (),
        {"z": (BINARY, along()), "k": ((0, 1, 2), along())},
        (0,),
    ),
    "two chains": (two_chains, (), {"z": (BINARY, along()), "w": (BINARY, along())}, (0,)),
    "autoregression": (autoregression_with_regimes, (), {"z": (BINARY, along())}, (0,)),
    "beside the chain": (
        seen_beside_the_chain,
        (),
        {"c": (BINARY, fixed()), **{n: (BINARY, along()) for n in "zwk"}},
        (0,),
    ),
    "second order": (second_order, (), {"z": (BINARY, along())}, (0,)),
    "one class for all series": (
        one_class_for_all_series,
        (2,),
        {"c": ((0, 1, 2), fixed()), "z": (BINARY, along(2))},
        (0,),
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_by_brute_force(name):
    model, shape, finite, _ = LINKS[name]
    y = RNG.normal(0.5, 1.5, (4, *shape)).astype(np.float32)
    terms = one_step(model, {}, jnp.asarray(y))
    (label,) = terms
    assert label == ("y+u+v+n" if "v" in label else "y") and terms[label].shape == (1, 1, 4)
    close(terms[label][0, 0], brute_force(model, y, finite, {}, 0.0))


@pytest.mark.parametrize("model", [plated, plated_twice, a_class_for_each_series], ids=lambda m: m.__name__)
@pytest.mark.slow
def test_each_element_of_a_plate_is_a_chain_of_its_own(model):
    """The terms of one series are what brute force finds with the other series out of sight."""
    tones = (3,) if model is plated_twice else ()
    y = RNG.normal(0.5, 1.5, (3, 2, *tones)).astype(np.float32)
    finite = {"z": (BINARY, along(2, 1) if tones else along(2))}
    if model is a_class_for_each_series:
        finite["c"] = (BINARY, fixed(2))
    terms = one_step(model, {}, jnp.asarray(y))["y"]
    assert terms.shape == (1, 1, 3, 2)
    close(terms[0, 0].sum(-1), brute_force(model, y, finite, {}, 0.0))
    turned = one_step(model, {}, jnp.asarray(y[:, ::-1]))["y"]
    close(turned[0, 0], terms[0, 0, :, ::-1], 1e-6)
    assert abs(terms[0, 0, :, 0] - terms[0, 0, :, 1]).min() > 1e-3


@pytest.mark.slow
def test_two_observed_sites_of_a_step_are_one_term():
    def model(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z], 1.0), obs=y)
            numpyro.sample("v", dist.Normal(-1.0 * z, 1.0), obs=2.0 * y)
            return z, None

        scan(step, 0, y)

    terms = one_step(model, {}, jnp.asarray(Y[:4]))
    assert list(terms) == ["y+v"]
    close(terms["y+v"][0, 0], brute_force(model, Y[:4], {"z": (BINARY, along())}, {}, 0.0))


@pytest.mark.slow
def test_unequal_lengths_by_a_mask():
    """As in NumPyro's tutorial: a masked step is no step. Its hidden site must not count K times either."""
    lengths = np.array([4, 2])

    def model(y):
        def step(carry, y):
            z, t = carry
            with numpyro.plate("series", 2), numpyro.handlers.mask(mask=t < jnp.asarray(lengths)):
                z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
                numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z], 1.0), obs=y)
            return (z, t + 1), None

        scan(step, (jnp.zeros(2, int), 0), y)

    y = RNG.normal(size=(4, 2)).astype(np.float32)
    terms = one_step(model, {}, jnp.asarray(y))["y"][0, 0]
    whole = one_step(plated, {}, jnp.asarray(y))["y"][0, 0]
    close(terms[:, 0], whole[:, 0])
    close(terms[:2, 1], whole[:2, 1])
    assert np.isnan(terms[2:, 1]).all()
    result = Fit({}, np.zeros((1, 1)), model, lambda y: None, None, (jnp.asarray(y),))
    # Of the two masked steps each outcome counts one.
    close(result.sample(num_samples=2).log_p, np.nansum(terms) + 2 * np.log(2.0))


def test_missing_steps_by_a_mask():
    """A masked y_t drops its term, and the chain moves on: the next term is two steps ahead."""
    seen = jnp.array([True, False, True])

    def model(y, seen=seen):
        def step(z, x):
            y, seen = x
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(jnp.asarray(PLACE)[z], 1.0).mask(seen), obs=y)
            return z, None

        scan(step, 0, (y, seen))

    terms = one_step(model, {}, jnp.asarray(Y[:3]))["y"][0, 0]
    law = MOVE[0] * norm.pdf(Y[0], PLACE, 1.0)
    close(terms[0], np.log(law.sum()))
    assert np.isnan(terms[1])
    close(terms[2], np.log((law / law.sum() @ MOVE @ MOVE) @ norm.pdf(Y[2], PLACE, 1.0)))


def test_impossible_data_are_minus_infinity_and_not_nan():
    def model(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.eye(2)[z]))
            numpyro.sample("y", dist.Delta(1.0 * z), obs=y)
            return z, None

        scan(step, 0, y)

    terms = one_step(model, {}, jnp.array([0.0, 0.0, 1.0, 0.0]))["y"][0, 0]
    close(terms[:2], 0.0)
    assert np.isneginf(terms[2]) and not np.isnan(terms).any()


def test_sites_beside_a_chain_have_their_own_terms():
    def model(y):
        hmm(y)
        with numpyro.plate("n", 3):
            k = numpyro.sample("k", dist.Bernoulli(0.3))
            numpyro.sample("v", dist.Normal(2.0 * k, 1.0), obs=jnp.arange(3.0))
        numpyro.sample("u", dist.Normal(0.0, 1.0), obs=0.5)

    terms = one_step(model, {"width": np.ones((1, 2), np.float32)}, jnp.asarray(Y))
    assert {n: t.shape for n, t in terms.items()} == {"y": (1, 2, 6), "v": (1, 2, 3), "u": (1, 2)}
    close(terms["y"][0, 1], forward(Y, 1.0))
    mixed = logsumexp(norm.logpdf(np.arange(3.0)[:, None], np.array([0.0, 2.0]), 1.0), b=[0.7, 0.3], axis=-1)
    close(terms["v"][0, 1], mixed)
    close(terms["u"][0, 1], norm.logpdf(0.5))


def test_given_states_between_the_chain_and_the_data():
    """A switching state-space model: given its states, the observations no longer see the chain, which still
    counts in the joint.
    """

    def model(y):
        def step(carry, y):
            z, x = carry
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            x = numpyro.sample("x", dist.Normal(x + jnp.asarray(PLACE)[z], 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return (z, x), None

        scan(step, (0, 0.0), y)

    x = RNG.normal(size=6).astype(np.float32)
    close(one_step(model, {"x": x[None, None]}, jnp.asarray(Y))["y"][0, 0], norm.logpdf(Y, x, 1.0))

    def guide(y):
        numpyro.sample("x", dist.Delta(jnp.asarray(x)).to_event(1))

    law, joint = MOVE[0], norm.logpdf(Y, x, 1.0).sum()
    for now, before in zip(x, [0.0, *x[:-1]], strict=True):
        filtered = law * norm.pdf(now, before + PLACE, 1.0)
        joint += np.log(filtered.sum())
        law = filtered / filtered.sum() @ MOVE
    result = Fit({}, np.zeros((1, 1)), model, guide, None, (jnp.asarray(Y),))
    close(result.sample(num_samples=1).log_p, joint, 1e-4)


@pytest.mark.slow
def test_a_finite_site_of_one_step_alone_leaves_independent_terms():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

        def step(carry, y):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mu + 2.0 * z, 1.0), obs=y)
            return carry, None

        scan(step, 0.0, y)

    report = report_of(model, {"mu": 0.0})
    assert report.log_likelihood["y"].dims == ("chain", "draw", "time")
    mu = np.asarray(report.posterior["mu"], float)
    close(
        report.log_likelihood["y"],
        logsumexp(norm.logpdf(Y[:, None], mu[..., None, None] + [0.0, 2.0], 1.0), b=[0.7, 0.3], axis=-1),
    )


# --- what cannot be had


def refused(model, words, y=Y):
    with pytest.raises(ModelError, match=words):
        one_step(model, {"x": np.zeros((1, 1, len(y)), np.float32)} if "'x'" in words else {}, jnp.asarray(y))


def test_what_the_forward_algorithm_does_not_cover_is_refused_by_name():
    def given_whole(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            x = numpyro.sample("x", dist.Normal(1.0 * z, 1.0))
            numpyro.sample("y", dist.Normal(x + z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    refused(given_whole, "'y' cannot be had: 'x' depends on the chain", Y[:4])

    def backwards(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)
            return z, None

        scan(step, 0, y, reverse=True)

    refused(backwards, "reverse=True")

    def second_order(y):
        def step(carry, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[carry[0]]))
            numpyro.sample("y", dist.Normal(1.0 * z + carry[1], 1.0), obs=y)
            return (z, carry[0]), None

        scan(step, (0, 0), y, history=2)

    refused(second_order, "'z' meet.*can carry the pair", RNG.normal(size=15).astype(np.float32))

    def coupled(y):
        def step(carry, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[carry[0]]))
            with numpyro.plate("series", 2):
                w = numpyro.sample("w", dist.Categorical(jnp.asarray(MOVE)[carry[1]]))
                numpyro.sample("y", dist.Normal(1.0 * z + w, 1.0), obs=y)
            return (z, w), None

        scan(step, (0, jnp.zeros(2, int)), y)

    refused(coupled, "'w' couples the chains", np.zeros((3, 2), np.float32))

    def two_scans(y):
        c = numpyro.sample("c", dist.Bernoulli(0.3))

        def step(name):
            def one(z, y):
                z = numpyro.sample(f"z{name}", dist.Categorical(jnp.asarray(MOVE)[z]))
                numpyro.sample(f"y{name}", dist.Normal(1.0 * z + c, 1.0), obs=y)
                return z, None

            return one

        scan(step("a"), 0, y)
        scan(step("b"), 0, y)

    refused(two_scans, "several scans that depend on each other", Y[:4])

    def seen_outside(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
            numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)
            return z, z

        _, z = scan(step, 0, y)
        numpyro.sample("late", dist.Normal(1.0 * z, 1.0), obs=y)

    refused(seen_outside, "'late' is outside the scan", Y[:4])


@pytest.mark.parametrize("contraction", ["sum", "max", "one hot"])
def test_a_chain_that_is_contracted_has_the_right_terms_and_joint_density(contraction):
    """NumPyro's enumeration puts the outcomes on an axis more, and a sum takes it along: another density, in
    silence. Ours gives each run one outcome.
    """
    contract = {
        "sum": jnp.sum,
        "max": jnp.max,
        "one hot": lambda z: (jnp.eye(2)[z] * jnp.array([0.5, 2.0])).sum(),
    }[contraction]

    def model(y):
        def step(z, y):
            shape = () if contraction == "one hot" else (1,)
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z].reshape(*shape, 2)))
            numpyro.sample("y", dist.Normal(contract(z) + 0.0, 1.0), obs=y)
            return (z if contraction == "one hot" else z[0]), None

        scan(step, 0, y)

    means = np.array([0.5, 2.0]) if contraction == "one hot" else np.array([0.0, 1.0])
    law, exact = MOVE[0], []
    for value in Y[:4]:
        joint = law * norm.pdf(value, means, 1.0)
        exact.append(np.log(joint.sum()))
        law = joint / joint.sum() @ MOVE
    close(one_step(model, {}, jnp.asarray(Y[:4]))["y"][0, 0], exact)
    result = Fit({}, np.zeros((1, 1)), model, lambda y: None, ELBO(), (jnp.asarray(Y[:4]),))
    close(result.sample(num_samples=1).log_p, sum(exact))


def test_the_report_of_a_chain_that_looks_two_steps_back_has_no_density_and_says_why():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2.0 * mu)

        def step(carry, y):
            z = numpyro.sample(
                "z", dist.Categorical(jnp.asarray(MOVE)[carry[0]]), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(1.0 * z + carry[1] + mu, 1.0), obs=y)
            return (z, carry[0]), None

        scan(step, (0, 0), y, history=2)

    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.asarray(RNG.normal(size=15).astype(np.float32)))
    report = to_arviz(mcmc)
    assert sorted(report.posterior) == ["mu", "twice"] and "lp" not in report.sample_stats
    assert "'z' meet" in report.attrs["lp_omitted"] and "the pair" in report.attrs["log_likelihood_omitted"]


# --- the report, and leave-one-out


def report_of(model, loc, **options):
    def guide(y):
        for name, x in loc.items():
            numpyro.sample(name, dist.LogNormal(x, 0.1) if name == "width" else dist.Normal(x, 0.1))

    result = Fit(
        {"unused": np.zeros(2)},
        np.zeros((2, 3)),
        model,
        guide,
        ELBO(),
        (jnp.asarray(Y),),
        rng_key=jax.random.key(0),
    )
    return result.to_arviz(num_samples=20, **options)


@pytest.mark.slow
def test_the_report_labels_them_and_no_leave_one_out_takes_them():
    report = report_of(hmm, {"width": 0.0})
    terms = report["log_predictive_one_step"]["y"]
    assert terms.dims == ("chain", "draw", "time") and "one step ahead" in terms.attrs["terms"]
    for width, row in zip(
        np.asarray(report.posterior["width"], float).ravel(), np.asarray(terms).reshape(-1, 6), strict=True
    ):
        close(row, forward(Y, width))
    assert (
        not hasattr(report, "log_likelihood") and "'z' is in a scan" in report.attrs["log_likelihood_omitted"]
    )
    with pytest.raises(TypeError, match="log likelihood not found"):
        az.loo(report)
    with pytest.raises(ModelError, match="loo: the terms of 'y' are log p.*Use leave-future-out"):
        loo(report)
    with pytest.raises(ModelError, match="'z' is in a scan"):
        report_of(hmm, {"width": 0.0}, log_likelihood=True)
    # Terms and prior make up the joint density.
    width = np.asarray(report.posterior["width"], float)
    close(terms.sum("time") + norm.logpdf(np.log(width)) - np.log(width), report.sample_stats["lp"], 1e-4)


@pytest.mark.slow
def test_plates_of_a_chain_are_named_and_masked_steps_are_left_out():
    def model(y):
        def step(z, x):
            y, seen = x
            with numpyro.plate("series", 2):
                z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[z]))
                numpyro.sample(
                    "y", dist.Normal(jnp.asarray(PLACE)[z], 1.0).mask(seen), obs=jnp.stack([y, -y])
                )
            return z, None

        scan(
            step,
            jnp.zeros(2, int),
            (y, jnp.stack([jnp.arange(6) < 6, jnp.arange(6) < 2], 1) if masked else jnp.ones((6, 2), bool)),
        )

    masked = False
    terms = report_of(model, {})["log_predictive_one_step"]["y"]
    assert terms.dims == ("chain", "draw", "time", "series")
    masked = True
    terms = report_of(lambda y: model(y), {})["log_predictive_one_step"]["y"]
    assert terms.dims == ("chain", "draw", "y_seen") and "one step ahead" in terms.attrs["terms"]
    assert list(terms["y_time"].values) == [0, 0, 1, 1, 2, 3, 4, 5] and list(terms["y_series"].values) == [
        0,
        1,
        0,
        1,
        0,
        0,
        0,
        0,
    ]


def test_leave_one_out_says_what_is_missing():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 6):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            numpyro.sample("v", dist.Normal(mu, 1.0), obs=y)

    report = report_of(model, {"mu": 0.0})
    with pytest.warns(UserWarning, match="Estimated shape parameter"):  # twenty draws are few
        assert loo(report, var_name="v").n_data_points == 6
    with pytest.raises(ArgumentError, match="var_name must be one of 'y', 'v', got None"):
        loo(report)
    with pytest.raises(ArgumentError, match="got 'u'"):
        loo(report, "u")
    with pytest.raises(ArgumentError, match="made without"):
        loo(report_of(model, {"mu": 0.0}, log_likelihood=False))
    with pytest.raises(ArgumentTypeError, match="got ndarray"):
        loo(np.zeros(3))


@pytest.mark.slow
def test_a_fit_of_a_chain_goes_the_whole_way():
    """A guide on the width, the chain summed out of the model: fit, report, refusal."""

    def guide(y):
        numpyro.sample("width", dist.LogNormal(numpyro.param("loc", 0.0), 0.1))
        numpyro.sample("z", dist.Categorical(logits=numpyro.param("logits", jnp.zeros((6, 2)))).to_event(1))

    with pytest.raises(ModelError, match="Use leave-future-out"):
        loo(
            fit(
                jax.random.key(0), hmm, guide, ELBO(), optax.adam(0.01), 3, jnp.asarray(Y), progress_bar=False
            )
        )
