"""Many targets: against Kalman's filter, counting, a filter in plain NumPy, and scenes of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

from benchmarks import tracking as beside
from benchmarks.runner import count_compilations
from ppl_ext.smoothing.tracking import BernoulliTargets, PoissonTargets, Tracker, draw_scene
from ppl_ext.smoothing.tracking.linear_step import read_step
from ppl_ext.state_space.exact import smooth_exactly
from ppl_ext.state_space.model import lower
from tests.smoothing.tracking_problems import (
    MOVE,
    NOISE,
    OFFSET,
    SEE,
    SHIFT,
    SPREAD,
    born,
    kalman,
    mixed,
    normal,
    one,
    predicted,
    step,
    tracker,
    wherever,
)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# --- the step


def test_the_matrices_are_those_of_the_step(double):
    motion, measurement, excess = tracker().one_target()
    for found, right in zip(motion, (MOVE, OFFSET, NOISE), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-12)
    for found, right in zip(measurement, (SEE, SHIFT, [[SPREAD**2]]), strict=True):
        np.testing.assert_allclose(found, right, atol=1e-12)
    np.testing.assert_allclose(excess, 0.0, atol=1e-12)


def test_a_measurement_may_be_several_sites(double):
    def two(x, z):
        x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0).to_event(1))
        numpyro.sample("whole", dist.Normal(x[0], 0.1), obs=z[0])
        numpyro.sample("rest", dist.Normal(x[0] - x[1], 0.2).expand([1]).to_event(1), obs=z[1:])
        return x, None

    law = jax.jit(lambda: read_step(two, 2, 2))().measurement
    np.testing.assert_allclose(law.slope, [[1.0, 0.0], [1.0, -1.0]], atol=1e-12)
    np.testing.assert_allclose(law.covariance, np.diag([0.01, 0.04]), atol=1e-12)


# --- one target


def series(num=6, seed=0):
    return np.random.default_rng(seed).normal(size=(num, 1)) + 1.0


@pytest.mark.parametrize("births", ["Poisson", "Bernoulli"])
def test_one_target_without_clutter_is_the_kalman_filter(births, double):
    """Mean, covariance and evidence, against the exact filter of the same step in a scan."""
    z, no_one = series(), dist.Normal(jnp.zeros(2), 5.0).to_event(1)
    never = PoissonTargets(0.0, no_one) if births == "Poisson" else BernoulliTargets(0.0, no_one)
    of = tracker(never, 1e-12, initial=one(), detection=1.0, survival=1.0)
    found = of.run(z[:, None])

    def model(z):
        scan(step, numpyro.sample("start", one().law), z)

    right = jax.jit(lambda: smooth_exactly(lower(model, (z,), {})))()
    np.testing.assert_allclose(found.existence[:, 0], 1.0, atol=1e-10)
    np.testing.assert_allclose(found.existence[:, 1:], 0.0, atol=1e-10)
    np.testing.assert_allclose(found.mean[:, 0], right.filtered_mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance[:, 0], right.filtered_covariance, atol=1e-9)
    np.testing.assert_allclose(found.log_increments, right.log_increments, atol=1e-9)
    np.testing.assert_allclose(found.log_evidence, right.log_evidence, atol=1e-8)
    assert found.label[:, 0].tolist() == [0] * len(z)


def test_no_clutter_at_all_where_births_can_explain_everything(double):
    z = series()
    of = tracker(born(0.3), 0.0, initial=one(), detection=1.0, survival=1.0)
    found = of.run(z[:, None])
    mean, covariance = np.array([1.0, -1.0]), np.array([[1.0, 0.2], [0.2, 0.5]])
    for t, y in enumerate(z):
        mean, covariance, log = kalman(*predicted(mean, covariance), y)
        np.testing.assert_allclose(found.mean[t, 0], mean, atol=1e-9)
        np.testing.assert_allclose(found.covariance[t, 0], covariance, atol=1e-9)
        np.testing.assert_allclose(found.log_increments[t], log - 0.3, atol=1e-9)  # nobody was born


def test_a_target_that_may_be_missed_or_gone(double):
    """Closed forms: what is there though unseen, and Kalman where it was seen."""
    of = tracker(PoissonTargets(0.0, born().law), 0.5, initial=one(0.7))
    found = of.run([np.zeros((0, 1)), np.zeros((0, 1))])
    r, d, s = 0.7, 0.8, 0.9
    mean, covariance = np.array([1.0, -1.0]), np.array([[1.0, 0.2], [0.2, 0.5]])
    for t in range(2):
        r, (mean, covariance) = s * r, predicted(mean, covariance)
        np.testing.assert_allclose(found.log_increments[t], np.log(1 - r * d) - 0.5, atol=1e-10)
        r = r * (1 - d) / (1 - r * d)
        np.testing.assert_allclose(found.existence[t, 0], r, atol=1e-10)
        np.testing.assert_allclose(found.mean[t, 0], mean, atol=1e-10)
        np.testing.assert_allclose(found.covariance[t, 0], covariance, atol=1e-10)


# --- one scan, from first principles


def test_one_scan_of_one_target_unseen_ones_and_clutter(double):
    """No circle of pairs: associations are exact, and so are existence, moments and evidence. The target has
    one of the measurements or none; each other one is clutter's or a new target's.
    """
    z, clutter, rate, d, r = np.array([[-1.2], [0.3], [4.0]]), 1.5, 0.6, 0.8, 0.9 * 0.7
    of = tracker(born(rate), clutter, initial=one(0.7), max_undetected=30)
    found = of.run([z])
    m, P = predicted(np.array([1.0, -1.0]), np.array([[1.0, 0.2], [0.2, 0.5]]))
    after = [kalman(m, P, y) for y in z]
    first = [kalman(np.zeros(2), np.diag([25.0, 1.0]), y) for y in z]
    new = np.array([rate * d * np.exp(log) for _, _, log in first])
    rho = clutter / 40.0 + new
    weights = np.array(
        [1 - r * d, *(r * d * np.exp(log) / k for (*_, log), k in zip(after, rho, strict=True))]
    )
    shares = weights / weights.sum()
    evidence = np.log(weights.sum()) + np.log(rho).sum() - clutter - rate * d
    np.testing.assert_allclose(found.log_evidence, evidence, atol=1e-10)
    unseen = shares[0] * r * (1 - d) / (1 - r * d)
    exists = unseen + shares[1:].sum()
    by_label = {int(k): i for i, k in enumerate(found.label[0]) if k >= 0}
    np.testing.assert_allclose(found.existence[0, by_label[0]], exists, atol=1e-10)
    laws = [(m, P), *(x[:2] for x in after)]
    mean, covariance = mixed([unseen, *shares[1:]], *zip(*laws, strict=True))
    np.testing.assert_allclose(found.mean[0, by_label[0]], mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance[0, by_label[0]], covariance, atol=1e-9)
    others = np.sort((1 - shares[1:]) * new / rho)
    mine = np.sort([found.existence[0, i] for k, i in by_label.items() if k > 0])
    np.testing.assert_allclose(mine, others, atol=1e-10)
    for k, i in by_label.items():
        if k > 0:
            j = np.argmin(np.abs((1 - shares[1:]) * new / rho - float(found.existence[0, i])))
            np.testing.assert_allclose(found.mean[0, i], first[j][0], atol=1e-9)
            np.testing.assert_allclose(found.covariance[0, i], first[j][1], atol=1e-9)
    np.testing.assert_allclose(found.undetected[0], rate * (1 - d), atol=1e-10)


def test_clutter_is_nowhere_outside_its_law(double):
    """A measurement there is of a target for sure: of the known one, if nobody is born."""
    law = PoissonTargets(0.0, born().law)
    of = Tracker(step, law, 5.0, wherever(0.5), 0.8, 0.9, one(0.3), max_targets=3, max_measurements=2)
    outside, inside = (of.run([[[z]]]) for z in (2.0, 0.2))
    np.testing.assert_allclose(outside.existence[0, 0], 1.0, atol=1e-12)
    assert float(inside.existence[0, 0]) < 0.5
    m, P = predicted(np.array([1.0, -1.0]), np.array([[1.0, 0.2], [0.2, 0.5]]))
    right = np.log(0.8 * 0.9 * 0.3) + kalman(m, P, 2.0)[2] - 5.0
    np.testing.assert_allclose(outside.log_evidence, right, atol=1e-9)


def test_the_evidence_of_a_scan_sums_to_one():
    """Over all sets of measurements: none, one, two ... by quadrature, of a target that may exist, unseen
    ones, and a little clutter. Sets of one have an intensity, of two half an integral over both.
    """
    of = tracker(born(0.05), 0.05, initial=one(0.7), survival=1.0, max_measurements=2)
    line = np.linspace(-19.99, 19.99, 160)
    width = line[1] - line[0]
    none = np.zeros((1, 1, 2, 1)), np.zeros((1, 1, 2), bool)
    single = np.zeros((160, 1, 2, 1)), np.zeros((160, 1, 2), bool)
    single[0][:, 0, 0, 0], single[1][:, 0, 0] = line, True
    x, y = (v.ravel() for v in np.meshgrid(line, line))
    double = np.stack([x, y], 1)[:, None, :, None], np.ones((160 * 160, 1, 2), bool)
    run = jax.jit(jax.vmap(lambda values, seen: of.filter(values, seen).log_evidence))
    p0, p1, p2 = (np.exp(np.asarray(run(*x), float)) for x in (none, single, double))
    total = p0.sum() + p1.sum() * width + p2.sum() * width**2 / 2
    more = 1 - sum(  # two of three independent sources, or more, are needed for three measurements
        stats.poisson.pmf(k, 0.09) * (1 if k < 2 else 0.44) for k in range(3)
    )
    assert 0.0 <= 1.0 - total < more + 1e-3


# --- many steps


@pytest.mark.parametrize("detection", [0.9, 0.6])
def test_a_filter_in_plain_numpy_gives_the_same_numbers(detection, double):
    of = beside.tracker(4, 6.0, detection=detection, max_targets=12, max_measurements=30)
    beside.check(of, draw_scene(jax.random.key(1), of, 8).measurements)


def test_the_expected_number_is_that_of_the_scenes():
    """Over scenes of the model itself, the expected number of targets minus the true one has mean zero, but
    for what matching moments costs (less than 0.01 here). False alarms at 4.5 errors: one in 150,000.
    """
    of = tracker(born(0.3), 1.0, initial=born(1.0), max_targets=16, max_measurements=16, max_undetected=40)
    off = []
    for key in jax.random.split(jax.random.key(5), 300):
        scene = draw_scene(key, of, 5)
        number = of.run(scene.measurements).expected_number
        off.append(float(number[-1]) - len(scene.truth[-1]))
    assert abs(np.mean(off)) < 4.5 * np.std(off) / 300**0.5 + 0.01
    assert np.std(off) < 1.2


def test_bernoulli_births_are_born_in_every_step(double):
    """One that is never measured: the probability that a target stands there grows as it should."""
    of = tracker(BernoulliTargets(0.1, born().law), 0.5, detection=0.3, recycle_below=1e-6)
    found = of.run([[], [], []])
    np.testing.assert_allclose(np.asarray(found.existence > 0).sum(1), [1, 2, 3])
    first = 0.1 * 0.7 / (1 - 0.03)
    np.testing.assert_allclose(found.existence[0, 0], first, atol=1e-12)
    second = 0.9 * first * 0.7 / (1 - 0.3 * 0.9 * first)
    np.testing.assert_allclose(np.sort(found.existence[1])[-2:], np.sort([first, second]), atol=1e-12)
    assert found.label[2, :3].tolist() == [2, 1, 0]  # the newest is the likeliest


def test_labels_stay_with_their_targets():
    of = beside.tracker(3, 2.0, detection=0.95)
    scene = draw_scene(jax.random.key(3), of, 15)
    found = of.run(scene.measurements)
    start = beside.there(3).bernoullis().mean[:, :2]
    for t in range(15):
        at = {int(k): x for k, x in zip(found.labels(t), found.estimates(t), strict=True)}
        for k in {0, 1, 2} & set(at) & set(scene.labels[t].tolist()):
            truth = scene.truth[t][scene.labels[t].tolist().index(k)]
            assert np.linalg.norm(at[k][:2] - truth[:2]) < 5.0
    assert np.linalg.norm(start[0] - start[1]) > 30.0  # they are far apart at the start


# --- slots


def test_what_finds_no_slot_joins_the_unseen_and_is_told():
    z = [np.array([[-6.0], [0.0], [7.0]])] * 3
    wide, narrow = (tracker(born(2.0), 0.1, max_targets=n, max_undetected=60) for n in (6, 1))
    seen = np.ones((1, 3), bool)
    both = [of.filter(jnp.array(z[:1]), seen) for of in (wide, narrow)]
    np.testing.assert_allclose(*(x.expected_number for x in both), rtol=1e-5)
    assert [int(x.crowded[0]) for x in both] == [0, 2] and float(both[1].crowded_most[0]) > 0.5
    assert both[1].verdict().level == "doubtful" and "max_targets" in str(both[1].verdict())
    np.testing.assert_allclose(both[1].lost, 0.0)
    few = tracker(born(2.0), 0.1, max_targets=1, max_undetected=1).filter(jnp.array(z[:1]), seen)
    np.testing.assert_allclose(few.expected_number + few.lost, both[0].expected_number, rtol=1e-5)
    assert float(few.lost[0]) > 0.5 and "max_undetected" in str(few.verdict())


def test_one_compilation_for_all_numbers_below_the_caps():
    of = tracker()
    rng = np.random.default_rng(0)
    sizes = [(2, 0, 1), (0, 0, 0), (4, 4, 4), (1, 3, 2)]
    counts = []
    for k, ns in enumerate(sizes):
        with count_compilations() as seen:
            jax.block_until_ready(of.run([rng.normal(size=(n, 1)) for n in ns]))
        counts.append(len(seen))
        if k == 1:  # other numbers in the model are no new program
            of = tracker(born(0.7), 3.0, detection=0.7, survival=0.95, recycle_below=0.02)
    assert counts[0] > 0 and counts[1:] == [0, 0, 0]


def test_what_is_not_seen_is_never_read():
    of, rng = tracker(), np.random.default_rng(0)
    values, seen = rng.normal(size=(4, 4, 1)), rng.random((4, 4)) < 0.6
    filtered = jax.jit(of.filter)
    found = filtered(values, seen)
    for rubbish in (np.nan, np.inf, 1e30):
        other = filtered(np.where(seen[..., None], values, rubbish), seen)
        np.testing.assert_array_equal(found.existence, other.existence)
        np.testing.assert_array_equal(found.log_increments, other.log_increments)
    turned = filtered(values[:, ::-1], seen[:, ::-1])
    np.testing.assert_allclose(np.sort(found.existence), np.sort(turned.existence), atol=1e-5)
    np.testing.assert_allclose(found.log_increments, turned.log_increments, atol=1e-4)


def test_nan_in_what_is_seen_is_seen_in_the_answer():
    of, values = tracker(), np.zeros((4, 2, 1))
    values[2, 1] = np.nan
    found = of.filter(values, np.ones((4, 2), bool))
    assert np.isfinite(found.existence[:2]).all() and np.isfinite(found.log_increments[:2]).all()
    assert np.isnan(found.existence[2:]).all() and np.isnan(found.log_increments[2:]).all()
    assert found.verdict().level == "bad"
    on = of.filter(np.zeros((1, 2, 1)), np.ones((1, 2), bool), found.last)
    assert np.isnan(on.existence).all()


def test_a_series_in_two_parts():
    of = tracker()
    z = [np.random.default_rng(t).normal(size=(t % 4, 1)) for t in range(8)]
    whole, first = of.run(z), of.run(z[:5])
    second = of.run(z[5:], state=first.last)
    for name in ("existence", "mean", "label", "log_increments", "undetected"):
        parts = np.concatenate([getattr(first, name), getattr(second, name)])
        np.testing.assert_allclose(getattr(whole, name), parts, atol=1e-5)


# --- transformations of JAX, and models of NumPyro


def test_many_series_at_once_and_derivatives(double):
    of, rng = tracker(), np.random.default_rng(0)
    values, seen = rng.normal(size=(3, 4, 4, 1)), rng.random((3, 4, 4)) < 0.7
    many = jax.vmap(of.filter)(values, seen)
    for k in range(3):
        alone = of.filter(values[k], seen[k])
        np.testing.assert_allclose(many.existence[k], alone.existence, atol=1e-10)
        np.testing.assert_allclose(many.log_evidence[k], alone.log_evidence, atol=1e-10)
    assert "many series" in many.summary()

    def evidence(x):
        detection, noise, rate, clutter = x

        def step(x, z):
            x = numpyro.sample("x", dist.Normal(0.9 * x, noise).to_event(1))
            numpyro.sample("z", dist.Normal(x[:1], 0.5).to_event(1), obs=z)
            return x, None

        births = PoissonTargets(rate, born().law)
        of = Tracker(step, births, clutter, wherever(), detection, 0.9, max_targets=5, max_undetected=30)
        return of.filter(values[0], seen[0]).log_evidence

    at = jnp.array([0.8, 0.7, 0.4, 1.0])
    slopes = jax.grad(evidence)(at)
    for i in range(4):
        h = 1e-5 * jnp.eye(4)[i]
        np.testing.assert_allclose(
            slopes[i], (evidence(at + h) - evidence(at - h)) / 2e-5, rtol=1e-5, atol=1e-6
        )


def test_the_evidence_is_a_factor_of_a_model():
    values, seen = np.zeros((3, 2, 1)), np.ones((3, 2), bool)

    def model():
        detection = numpyro.sample("detection", dist.Beta(8.0, 2.0))
        found = tracker(detection=detection).filter(values, seen)
        numpyro.factor("scans", found.log_evidence)

    record = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    assert set(record) == {"detection", "scans"}
    slope = jax.grad(lambda p: numpyro.infer.util.log_density(model, (), {}, {"detection": p})[0])(0.7)
    assert np.isfinite(slope)


# --- scenes


def test_scenes_have_the_numbers_of_the_model():
    """Means over 400 scenes: targets after n steps, measurements of them, and clutter."""
    of = tracker(born(0.5), 2.0, initial=PoissonTargets(3.0, born().law), detection=0.7)
    scenes = [draw_scene(key, of, 4) for key in jax.random.split(jax.random.key(0), 400)]
    number = np.array([[len(x) for x in scene.truth] for scene in scenes])
    measured = np.array([[len(x) for x in scene.measurements] for scene in scenes])
    right = 3.0 * 0.9 ** np.arange(1, 5) + 0.5 * (1 - 0.9 ** np.arange(1, 5)) / 0.1
    assert (np.abs(number.mean(0) - right) < 4.5 * np.sqrt(right / 400)).all()
    expected = 2.0 + 0.7 * right
    assert (np.abs(measured.mean(0) - expected) < 4.5 * np.sqrt(expected / 400)).all()
    for scene in scenes[:20]:
        assert [len(x) for x in scene.labels] == [len(x) for x in scene.truth]


def test_scenes_repeat_with_their_key_and_targets_with_any_clutter():
    one, other = (draw_scene(jax.random.key(2), tracker(clutter=c), 6) for c in (1.0, 9.0))
    for x, y in zip(one.truth, other.truth, strict=True):
        np.testing.assert_array_equal(x, y)
    again = draw_scene(jax.random.key(2), tracker(clutter=1.0), 6)
    np.testing.assert_array_equal(np.concatenate(one.measurements), np.concatenate(again.measurements))
    assert draw_scene(jax.random.PRNGKey(2), tracker(), 2).truth[0].shape[1] == 2


def test_what_it_says(capsys):
    of = beside.tracker(3, 2.0)
    found = of.run(draw_scene(jax.random.key(0), of, 6).measurements)
    found.print_summary()
    told = capsys.readouterr().out
    assert "6 steps, 40 slots, at most 3 targets" in told and "Verdict: unknown" in told
    report = found.to_arviz()
    assert report["estimates"]["mean"].dims == ("time", "slot", "state")
    assert repr(found) == "Tracks(existence=(6, 40), mean=(6, 40, 4))"
    assert normal([0.0], [[1.0]]).event_shape == (1,)
