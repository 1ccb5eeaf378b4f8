"""Elements of latent sites that the model masks and nothing else sees count in neither program.

The guide is the exact posterior of what is seen, so that each weight is the evidence itself, in every
objective, whatever the guide says of the padding. A guide that masks its own padding by hand needs no mending
and gives the same numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from ppl_ext.diagnostics import psis
from ppl_ext.expectations import masked_latents
from ppl_ext.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    ChiUpperBound,
    DoublyReparameterized,
    FDivergence,
    ForwardKL,
    MarkovScoreClimbing,
    Renyi,
    ReweightedWakeSleep,
    Thermodynamic,
)
from ppl_ext.result import Fit

DEFAULT_ROWS = 2  # of each table; the others are slow: see conftest.py

KEY = jax.random.key(0)
Y, REAL = jnp.array([1.0, 2.0, 0.0, 3.0, 0.0]), jnp.array([True, True, False, True, False])
SEEN = np.array([1.0, 2.0, 3.0])
COVARIANCE = 2 * np.eye(3) + 1.0
EVIDENCE = (
    -0.5 * SEEN @ np.linalg.solve(COVARIANCE, SEEN) - 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]
)
MU_VARIANCE = 1 / (1 + 3 / 2)
MU = dist.Normal(MU_VARIANCE * SEEN.sum() / 2, MU_VARIANCE**0.5)


def groups(y, real):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 5), mask(mask=real):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def an_event(y, real):
    """The same with the groups as an event, and the mask further inside."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    theta = numpyro.sample("theta", dist.Normal(mu, 1.0).expand([5]).mask(real).to_event(1))
    numpyro.sample("y", dist.Normal(theta, 1.0).mask(real).to_event(1), obs=y)


def posterior_of_theta(mu, y, real, padding):
    return dist.Normal(jnp.where(real, (mu + y) / 2, padding[0]), jnp.where(real, 0.5**0.5, padding[1]))


def in_plate(y, real, padding=(5.0, 0.3)):
    mu = numpyro.sample("mu", MU)
    with numpyro.plate("groups", 5):
        numpyro.sample("theta", posterior_of_theta(mu, y, real, padding))


def as_event(y, real, padding=(5.0, 0.3)):
    mu = numpyro.sample("mu", MU)
    numpyro.sample("theta", posterior_of_theta(mu, y, real, padding).to_event(1))


def jointly(y, real):
    """Drawn as one vector: the padding cannot be left out, and follows the prior."""
    mu = numpyro.sample("mu", MU)
    law = posterior_of_theta(mu, y, real, (mu, 1.0))
    numpyro.sample("theta", dist.MultivariateNormal(law.loc, jnp.diag(law.scale**2)))


BOUNDS = [
    ELBO(num_particles=2),
    IWELBO(num_particles=3),
    ELBO(num_particles=2, stick_the_landing=True),
    DoublyReparameterized(num_particles=3),
    Renyi(num_particles=3, alpha=0.5),
    VRIWAE(num_particles=3, alpha=0.3),
    Thermodynamic(num_particles=3),
]


@pytest.mark.parametrize("objective", BOUNDS, ids=repr)
def test_each_weight_is_the_evidence(objective):
    def bound(model, guide):
        return -objective.loss(KEY, {}, model, guide, Y, REAL)

    for model, guide in ((groups, in_plate), (groups, as_event), (groups, jointly), (an_event, as_event)):
        np.testing.assert_allclose(jax.jit(lambda m=model, g=guide: bound(m, g))(), EVIDENCE, rtol=3e-5)


# --- against guides that mask their own padding


def learned(y, real, masked=False, shift=0.0):
    """A guide with params, whose gradient is compared too."""
    mu = numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.3), 0.7))
    law = dist.Normal(
        numpyro.param("means", jnp.linspace(-1.0, 1.0, 5)) + 0.5 * mu + shift,
        numpyro.param("scales", jnp.full(5, 0.8)),
    )
    with numpyro.plate("groups", 5):
        numpyro.sample("theta", law.mask(real) if masked else law)


PARAMS = {"m": jnp.array(0.4), "means": jnp.linspace(-0.5, 1.5, 5), "scales": jnp.full(5, 0.6)}
OTHERS = [
    ChiUpperBound(num_particles=3),
    ForwardKL(num_particles=3),
    ReweightedWakeSleep(num_particles=3),
    FDivergence(num_particles=3),
    ELBO(analytic_kl=True),
    MarkovScoreClimbing(),
]


@pytest.mark.parametrize(
    "objective", [*(b for b in BOUNDS if not isinstance(b, DoublyReparameterized)), *OTHERS], ids=repr
)
def test_values_and_gradients_are_those_of_a_guide_that_masks_its_own_padding(objective):
    def both(guide):
        state = objective.initial_state(KEY, PARAMS, groups, guide, Y, REAL)
        return jax.jit(
            jax.value_and_grad(
                lambda params: objective.loss(KEY, {**state, **params}, groups, guide, Y, REAL)
            )
        )(PARAMS)

    mended, masked = both(learned), both(lambda y, real: learned(y, real, masked=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mended, masked)
    # nothing is learned of the padding
    assert abs(mended[1]["scales"][2]) < 1e-6 < abs(mended[1]["scales"][0])


def value_of(model, guide, *args, objective=ELBO(num_particles=2)):  # noqa: B008
    return float(objective.loss(KEY, {}, model, guide, *args))


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDelta], ids=lambda g: g.__name__)
def test_an_autoguide_site_by_site_does_not_feel_its_padding(autoguide):
    guide = autoguide(groups)
    numpyro.handlers.seed(guide, KEY)(Y, REAL)
    names = [
        n for n in ("theta_auto_loc", "theta_auto_scale") if autoguide is AutoNormal or n.endswith("loc")
    ]
    base = {"mu_auto_loc": jnp.array(0.2), "theta_auto_loc": jnp.ones(5)}
    base |= (
        {"mu_auto_scale": jnp.array(0.5), "theta_auto_scale": jnp.full(5, 0.4)}
        if autoguide is AutoNormal
        else {}
    )
    wild = base | {n: jnp.where(REAL, base[n], 1e4) for n in names}
    losses = [loss(num_particles=2) for loss in (ELBO, Trace_ELBO)]
    ours, theirs = (
        [float(x.loss(KEY, params, groups, guide, Y, REAL)) for params in (base, wild)] for x in losses
    )
    np.testing.assert_allclose(ours[0], ours[1], rtol=1e-5)
    # NumPyro's own gains from every width of what is not there, and passes the evidence
    if autoguide is AutoNormal:
        assert theirs[1] < theirs[0] - 10 and -theirs[1] > EVIDENCE > -ours[1]


@pytest.mark.parametrize("autoguide", [AutoDiagonalNormal, AutoMultivariateNormal], ids=lambda g: g.__name__)
def test_a_joint_autoguide_stays_below_the_evidence(autoguide):
    guide = autoguide(groups)
    numpyro.handlers.seed(guide, KEY)(Y, REAL)
    scale = "auto_scale" if autoguide is AutoDiagonalNormal else "auto_scale_tril"
    for width in (0.1, 1.0, 100.0):
        wide = jnp.array([0.5, 0.5, 0.5, width, 0.5, width])
        spread = wide if autoguide is AutoDiagonalNormal else jnp.diag(wide)
        params = {"auto_loc": jnp.array([1.7, 1.3, 1.8, 1.7, 2.3, 1.7]), scale: spread}
        assert -float(ELBO(num_particles=200).loss(KEY, params, groups, guide, Y, REAL)) < EVIDENCE


def densities_that_mix_axes(y, real):
    """Of a law with events the data flow loses the groups; slopes tell them apart."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 5), mask(mask=real):
        theta = numpyro.sample(
            "theta", dist.MultivariateNormal(mu * jnp.ones(2), jnp.array([[1.0, 0.5], [0.5, 1.0]]))
        )
        share = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample(
            "y", dist.MultivariateNormal(theta + share[:, :2], jnp.eye(2)), obs=y[:, None] * jnp.ones(2)
        )


def test_padding_of_multivariate_sites():
    guide = AutoNormal(densities_that_mix_axes)
    numpyro.handlers.seed(guide, KEY)(Y, REAL)
    base = {"mu_auto_loc": jnp.array(0.2), "mu_auto_scale": jnp.array(0.5)}
    for name in ("theta", "share"):
        base |= {f"{name}_auto_loc": jnp.full((5, 2), 0.3), f"{name}_auto_scale": jnp.full((5, 2), 0.4)}
    wild = {n: v if v.ndim == 0 else jnp.where(REAL[:, None], v, 30.0) for n, v in base.items()}
    losses = [
        float(ELBO(num_particles=2).loss(KEY, params, densities_that_mix_axes, guide, Y, REAL))
        for params in (base, wild)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [None, 2])
def test_a_mask_that_belongs_to_a_minibatch(num_rows):
    """The mask of the rows that this run draws, and no others."""

    def model(y, real):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", 5, subsample_size=num_rows) as rows, mask(mask=real[rows]):
            theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y[rows])

    def guide(masked):
        def program(y, real):
            numpyro.sample("mu", dist.Normal(0.1, 0.9))
            with numpyro.plate("groups", 5, subsample_size=num_rows) as rows:
                law = dist.Normal(0.3 * y[rows], 0.8)
                numpyro.sample("theta", law.mask(real[rows]) if masked else law)

        return program

    for key in jax.random.split(KEY, 4):
        ours, by_hand = (
            float(ELBO(num_particles=2).loss(key, {}, model, guide(masked), Y, REAL))
            for masked in (False, True)
        )
        np.testing.assert_allclose(ours, by_hand, rtol=1e-5)
    draws = [
        Fit({}, np.zeros((1, 1)), model, guide(masked), ELBO(), (Y, REAL)).sample(num_samples=3)
        for masked in (False, True)
    ]
    np.testing.assert_allclose(draws[0].log_weights, draws[1].log_weights, rtol=1e-5)


# --- what else may see a masked element


def test_a_density_that_comes_as_a_factor_keeps_the_entropy():
    def written_out(own):
        def model():
            with numpyro.plate("n", 3):
                if own:
                    x = numpyro.sample("x", dist.Normal(0.5, 2.0))
                else:
                    x = numpyro.sample("x", dist.Normal(0.0, 1.0).mask(False))
                    numpyro.factor("of x", dist.Normal(0.5, 2.0).log_prob(x))
                numpyro.sample("y", dist.Normal(x, 1.0), obs=jnp.arange(3.0))

        return model

    def guide():
        with numpyro.plate("n", 3):
            numpyro.sample("x", dist.Normal(1.0, 0.5))

    np.testing.assert_allclose(
        value_of(written_out(True), guide), value_of(written_out(False), guide), rtol=1e-6
    )


def test_an_element_that_a_sum_reads_is_seen():
    def model(masked):
        with numpyro.plate("n", 3):
            law = dist.Normal(0.0, 1.0)
            x = numpyro.sample("x", law.mask(jnp.array([True, False, True])) if masked else law)
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.3)

    def guide(masked):
        with numpyro.plate("n", 3):
            numpyro.sample("x", dist.Normal(jnp.array([0.1, 0.2, 0.3]), 0.5))

    def guide_with_hole():
        with numpyro.plate("n", 3):
            numpyro.sample(
                "x", dist.Normal(jnp.array([0.1, 0.2, 0.3]), 0.5).mask(jnp.array([True, False, True]))
            )

    def at(x):
        return float(dist.Normal(0.0, 1.0).log_prob(x))

    # The draw is the same in both: the losses differ by its masked density alone.
    both = [value_of(model, guide, masked, objective=ELBO()) for masked in (False, True)]
    entropy_left_out = value_of(model, lambda masked: guide_with_hole(), True, objective=ELBO())
    assert abs(both[0] - both[1]) > 1e-3 and abs(entropy_left_out - both[1]) > 1e-3
    assert at(0.2 - 3.5 * 0.5) - 1e-6 <= both[1] - both[0] <= at(0.0) + 1e-6


@pytest.mark.parametrize("how", ["summed out", "drawn", "in a chain", "two of them"])
def test_an_element_that_a_state_may_pick_is_seen(how):
    """Whatever the state is at one draw: rows without a prior of their own, of which a chain visits some."""
    infer = {"enumerate": "parallel"}

    def model():
        rows = numpyro.sample("rows", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(1).mask(False))

        def step(z, y):
            z = numpyro.sample(
                "z", dist.Categorical(logits=rows[z] - jnp.array([0.0, 9.0])), infer=dict(infer)
            )
            numpyro.sample("y", dist.Normal(rows[z].sum(), 1.0), obs=y)
            return z, None

        if how == "in a chain":
            scan(step, 0, jnp.ones(3))
        else:
            z = numpyro.sample("z", dist.Bernoulli(0.02), infer={} if how == "drawn" else dict(infer))
            if how == "two of them":
                w = numpyro.sample("w", dist.Bernoulli(0.02), infer=dict(infer))
            numpyro.sample(
                "y", dist.Normal(rows[z, w] if how == "two of them" else rows[z].sum(), 1.0), obs=0.4
            )

    def guide():
        numpyro.sample("rows", dist.Normal(0.3, 1e-4).expand([2, 2]).to_event(1))
        if how == "drawn":
            numpyro.sample("z", dist.Bernoulli(0.02), infer={"gradient": "score"})

    log_q = -4 * dist.Normal(0.0, 1e-4).entropy()
    losses = jax.vmap(lambda key: ELBO().loss(key, {}, model, guide))(jax.random.split(KEY, 20))
    # An element left out is 8 nats less; log p of what is observed is -1 to -2, and the noise of log q 1.4.
    np.testing.assert_allclose(losses.mean(), log_q + 1.5, atol=3.0)


@pytest.mark.parametrize("downstream", [False, True])
def test_values_imputed_by_obs_mask_count_where_they_are_missing_alone(downstream):
    """Where y is observed, its latent twin is no part of the model, whoever reads y later."""

    def model(y, real):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 5):
            y = numpyro.sample("y", dist.Normal(mu, 1.5), obs=y, obs_mask=real)
            if downstream:
                numpyro.sample("z", dist.Normal(0.5 * y, 1.0), obs=jnp.arange(5.0))

    def guide(y, real, masked=False):
        numpyro.sample("mu", dist.Normal(0.4, 0.6))
        with numpyro.plate("n", 5):
            law = dist.Normal(1.0, 0.3)
            numpyro.sample("y_unobserved", law.mask(~real) if masked else law)

    def by_hand(y, real):
        return guide(y, real, masked=True)

    np.testing.assert_allclose(value_of(model, guide, Y, REAL), value_of(model, by_hand, Y, REAL), rtol=1e-6)
    assert value_of(model, guide, Y, REAL) > -60.0


@pytest.mark.parametrize("in_scan", [True, False])
def test_steps_after_the_end_of_a_series(in_scan):
    length = jnp.array(3)

    def model(y, length):
        def step(carry, y):
            x, t = carry
            with mask(mask=t < length):
                x = numpyro.sample("x", dist.Normal(0.8 * x, 1.0))
                numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return (x, t + 1), None

        scan(step, (0.0, 0), y)

    def guide(masked):
        def program(y, length):
            def step(t, y):
                law = dist.Normal(0.5 * y, 0.7)
                numpyro.sample("x", law.mask(t < length) if masked else law)
                return t + 1, None

            if in_scan:
                scan(step, 0, y)
            else:
                law = dist.Normal(0.5 * y, 0.7)
                numpyro.sample("x", (law.mask(jnp.arange(5) < length) if masked else law).to_event(1))

        return program

    np.testing.assert_allclose(
        value_of(model, guide(False), Y, length), value_of(model, guide(True), Y, length), rtol=1e-6
    )


def test_the_report_of_a_good_fit_calls_it_good():
    result = Fit({}, np.zeros((1, 1)), groups, in_plate, ELBO(), (Y, REAL))
    draws = result.sample(num_samples=400)
    np.testing.assert_allclose(draws.log_weights, EVIDENCE, rtol=1e-4)
    assert psis(np.round(draws.log_weights, 3)).ess.item() > 390
    joint = Fit({}, np.zeros((1, 1)), groups, jointly, ELBO(), (Y, REAL))
    np.testing.assert_allclose(joint.sample(num_samples=5).log_weights, EVIDENCE, rtol=1e-4)


def test_the_comparisons_have_power(monkeypatch):
    """With nothing absent, or all that is masked absent, the same assertions fail."""
    original = masked_latents.absent_elements
    monkeypatch.setattr(masked_latents, "absent_elements", lambda *args: masked_latents.NONE_ABSENT)
    with pytest.raises(AssertionError):
        test_each_weight_is_the_evidence(ELBO(num_particles=2))
    monkeypatch.setattr(masked_latents, "absent_elements", original)
    monkeypatch.setattr(masked_latents, "collect", lambda cost, relation, shape: jnp.zeros(shape))
    with pytest.raises(AssertionError):
        test_a_density_that_comes_as_a_factor_keeps_the_entropy()
