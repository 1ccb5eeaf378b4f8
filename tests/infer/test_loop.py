"""How many steps go in one launch depends on the clock; the run does not: same states, same looks at the
losses, same saves.

``REFRESH`` 0 launches chunk by chunk, which here is every 20 steps; a long one launches eight times as many
each time. The loop is run over a chaotic map in place of a model, so that a step too many or too few changes
every number after it; one ``fit`` shows the same of JAX.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from tqdm import tqdm

from ppl_ext.infer import Plateau, fit
from ppl_ext.infer.svi import loop
from ppl_ext.infer.svi.loop import take_steps
from ppl_ext.infer.svi.runner import AT_ONCE
from ppl_ext.objectives import ELBO
from ppl_ext.runtime.training import Saver

STEPS, CHUNK, LONG = 1000, 20, 1e6


class Logistic:
    """x -> 3.9 x (1 - x) in two chains, its loss x; past ``cliff`` steps the second is not a number."""

    def __init__(self, cliff=STEPS):
        self.cliff, self.launches = cliff, []

    def _run(self, states, num, careful):
        (x, step), losses, alive = states, np.zeros((2, AT_ONCE)), np.ones(2, bool)
        for i in range(num):
            new = 3.9 * x * (1 - x)
            new = np.where([False, step + i >= self.cliff], np.nan, new)
            alive = alive & np.isfinite(new)
            losses[:, i] = new
            x = np.where(alive | (not careful), new, x)
        return (x, step + num), losses, alive

    def freely(self, states, data, constants, num):
        self.launches.append(("freely", num))
        return self._run(states, num, careful=False)

    def carefully(self, states, data, constants, num):
        self.launches.append(("carefully", num))
        return self._run(states, num, careful=True)

    def params(self, states):
        return {"x": states[0]}


def run(monkeypatch, refresh, cliff=STEPS, stop_at=None, done=0, save_every=None, calls=None):
    """(what was seen, the launches): a run from step ``done``, with everything that looks at it recorded."""
    monkeypatch.setattr(loop, "REFRESH", refresh)
    runner, looks, saves, called = Logistic(cliff), [], [], []

    def early_stopping(losses):
        looks.append(losses.copy())
        return "enough" if stop_at is not None and losses.shape[1] >= stop_at else None

    def callback(now):
        called.append((now.losses.shape[1], now.params()["x"]))
        return len(called) == calls

    class Kept:
        every = save_every

        def save(self, states, losses, about):
            saves.append((losses.shape[1], states[0]))

    saver = Saver(None if save_every is None else Kept(), {})
    saver.saved = done

    states, losses, _ = runner._run((np.array([0.3, 0.4]), 0), done, careful=False)
    with tqdm(disable=True) as bar:
        taken = take_steps(
            runner,
            states,
            [],
            (),
            losses[:, :done],
            STEPS,
            bar,
            early_stopping,
            None if calls is None else callback,
            saver,
        )
    seen = {
        "states": taken.states[0],
        "losses": taken.losses,
        "alive": taken.alive,
        "stop_reason": taken.stop_reason,
    }
    return seen | {"looks": looks, "saves": saves, "called": called}, runner.launches


@pytest.mark.parametrize(
    ("options", "num_launches"),
    [
        ({}, 3),  # 20, 160 and 820 steps
        ({"done": 33}, 3),
        ({"stop_at": 467}, 4),  # found in the third launch, which is taken again up to there
        ({"save_every": 130}, 9),
        ({"done": 33, "save_every": 1}, 49),
        ({"calls": 17}, 17),
        ({"calls": 90, "save_every": 130, "stop_at": 700}, 35),
    ],
)
def test_the_clock_changes_the_launches_and_nothing_else(monkeypatch, options, num_launches):
    many, one_by_one = run(monkeypatch, 0.0, **options)
    few, launches = run(monkeypatch, LONG, **options)
    np.testing.assert_equal(few, many)
    assert len(launches) == num_launches and len(one_by_one) >= num_launches
    assert max(num for _, num in one_by_one) == CHUNK
    assert [x.shape[1] for x in many["looks"]] == [
        *range(many["looks"][0].shape[1], many["losses"].shape[1], CHUNK),
        many["losses"].shape[1],
    ]
    assert all(x.shape[1] % CHUNK == 0 for x in many["looks"])


def test_the_states_are_those_of_the_last_step(monkeypatch):
    """Not of the end of the launch in which it was found that the run should have stopped."""
    seen, _ = run(monkeypatch, LONG, stop_at=467)
    assert seen["losses"].shape == (2, 480) and seen["stop_reason"] == "enough"
    np.testing.assert_array_equal(seen["states"], seen["losses"][:, -1])


@pytest.mark.parametrize("cliff", [3, 20, 467, 999])
def test_careful_steps_begin_where_they_always_would(monkeypatch, cliff):
    many, one_by_one = run(monkeypatch, 0.0, cliff=cliff, save_every=300)
    few, launches = run(monkeypatch, LONG, cliff=cliff, save_every=300)
    np.testing.assert_equal(few, many)
    assert one_by_one[-1] == launches[-1] == ("carefully", CHUNK)
    np.testing.assert_array_equal(few["alive"], [True, False])
    assert few["losses"].shape[1] == few["saves"][-1][0] == cliff // CHUNK * CHUNK + CHUNK
    assert len(few["looks"]) == cliff // CHUNK  # none at the chunk that broke down
    np.testing.assert_array_equal(few["states"][1], few["losses"][1, cliff - 1])
    assert np.isfinite(few["states"]).all()


def test_a_fit_has_the_same_bits(monkeypatch):
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def guide(y):
        numpyro.sample(
            "mu",
            dist.Normal(
                numpyro.param("loc", 3.0), numpyro.param("width", 1.0, constraint=dist.constraints.positive)
            ),
        )

    results = []
    for refresh in (0.0, LONG):
        monkeypatch.setattr(loop, "REFRESH", refresh)
        options = {"num_chains": 2, "progress_bar": False, "early_stopping": Plateau(window=100)}
        results.append(fit(jax.random.key(0), model, guide, ELBO(), optax.adam(0.05), 2000, 1.0, **options))
    first, second = results
    assert first.num_steps < 2000 and first.stop_reason == second.stop_reason
    np.testing.assert_array_equal(first.losses, second.losses)
    for name in first.params:
        np.testing.assert_array_equal(first.params[name], second.params[name])


def test_the_bar_shows_the_last_chunks_mean_and_its_change():
    losses = np.array([[9.0, 1.0, 3.0, 5.0, 9.0], [9.0, 3.0, 5.0, 7.0, 7.0]])
    assert loop._postfix(losses, 2) == "loss 7 (+4)"
    assert loop._postfix(losses[:, :2], 2) == "loss 5.5"
