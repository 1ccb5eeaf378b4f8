"""Whatever is wrong with an episode or an argument ends in an error that names it and says what to do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_ext.errors import (
    ArgumentError,
    ArgumentTypeError,
    HandlerError,
    ModelError,
    NonFiniteError,
    ProgramError,
)
from ppl_ext.meta import NIW, ArrivingStream, EpisodeStream, SimulatedStream, lift
from tests.meta.test_lift import KEY, episodes, line, quiet

DEFAULT_ROWS = 8  # of each table; the others are slow: see conftest.py

X, Y = np.arange(5, dtype=np.float32), np.ones(5, np.float32)
HOLED = np.where(X == 2, np.float32(np.nan), Y)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (
            (X, HOLED),
            {},
            NonFiniteError,
            "adapt: the log density of site 'y' is .*1 NaN of 5: drop them, or mask",
        ),
        (
            (X, Y[:3]),
            {},
            ModelError,
            r"site 'y' has data of shape \(3,\), but its .* has shape \(5,\), in plate 'rows' of size 5",
        ),
        ((X,), {"y": Y[:3]}, ModelError, r"site 'y' has data of shape \(3,\)"),
        ((X,), {}, ArgumentError, "had 2 arguments, this one has 1"),
        ((), {}, ArgumentError, "takes .* missing a required argument: 'x'"),
        ((X, Y, Y), {}, ArgumentError, "too many positional"),
        ((X,), {"z": Y}, ArgumentError, "unexpected keyword argument 'z'"),
        (
            (X, Y[:, None]),
            {},
            ArgumentError,
            r"argument 1 has shape \(5, 1\); in the episodes trained on it was \(rows,\)",
        ),
        ((X, Y[:0]), {}, ArgumentError, "argument 1 is empty and argument 0 is not"),
        ((X, "a"), {}, ArgumentError, "argument 1 has another structure"),
        ((X, None), {}, ArgumentError, "argument 1 has another structure"),
        ((X, np.array([None] * 5)), {}, ArgumentTypeError, "argument 1 is an object array"),
        ((X, Y), {"prior": "normal"}, ArgumentError, "'student_t' or 'mode'"),
        ((X, Y), {"num_samples": 0}, ArgumentError, "num_samples must be a positive"),
        ((X, Y), {"num_nodes": -1}, ArgumentError, "num_nodes must be a positive"),
    ],
)
def test_what_adapt_refuses(fitted, args, kwargs, error, message):
    with pytest.raises(error, match=message):
        fitted.adapt(KEY, *args, **kwargs)


@pytest.mark.slow
def test_adapt_takes_keywords_and_lists(fitted):
    by_place = fitted.adapt(KEY, X, Y, num_samples=3)
    for other in (
        fitted.adapt(KEY, y=Y, x=X, num_samples=3),
        fitted.adapt(KEY, X.tolist(), Y.tolist(), num_samples=3),
    ):
        np.testing.assert_allclose(by_place.theta, other.theta, rtol=1e-5)


@pytest.mark.slow
def test_a_density_that_breaks_down_in_training_names_episode_and_site():
    with pytest.raises(
        NonFiniteError, match="at step 0: in episode 1 the log density of site 'y' is .*1 NaN of 5.*result"
    ):
        quiet(lift(line, ["w"]), [(X, Y), (X, HOLED), (X[:3], Y[:3])], num_steps=2)


def outside(y):
    import numpyro
    import numpyro.distributions as dist

    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Exponential(rate), obs=y)


L = lift(line, ["w"])
NORMAL = dict(loc=np.zeros(2), mean_precision=1.0, scale_matrix=np.eye(2), df=4.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: L.fit(KEY, [(X, Y[:3])]), ModelError, r"site 'y' has data of shape \(3,\)"),
        (lambda: L.fit(KEY, [(X, Y[:, None])]), ModelError, r"site 'y' has data of shape \(5, 1\)"),
        (lambda: L.fit(KEY, [(X, Y, Y)]), ArgumentError, "too many positional"),
        (lambda: L.fit(KEY, "abc"), ArgumentTypeError, "list of tuples"),
        (lambda: L.fit(KEY, [(X, Y)], steps=3), ArgumentError, r"no option \['steps'\]; there are"),
        (lambda: L.fit(KEY, [(X, Y)], rate="a"), ArgumentTypeError, "rate must be a real number"),
        (lambda: L.fit(KEY, [(X, Y)], rate=math.nan), ArgumentError, "rate must be a real number"),
        (lambda: L.fit(KEY, [(X, Y)], init=3), ArgumentTypeError, "init must be a MetaFit"),
        (lambda: L.fit(KEY, [(X, Y)], checkpoint="run"), ArgumentTypeError, "checkpoint must be"),
        (lambda: L.fit(KEY, [(X, Y)], num_steps=None), ArgumentError, "num_steps must be a positive"),
        (lambda: L.fit(KEY, iter([(X, Y)]), batch_size=1), ArgumentError, "say num_episodes"),
        (
            lambda: lift(line, ["w"], num_episodes=9).fit(KEY, iter([(X, Y)])),
            ArgumentError,
            "the ArrivingStream does not hold all of its episodes.*batch_size=32",
        ),
        (lambda: L.load("nowhere.npz", [(X, Y)]), ArgumentError, "no file 'nowhere.npz'"),
        (
            lambda: L.as_model(SimulatedStream(lambda key: (jnp.zeros(3),))),
            ArgumentTypeError,
            "needs all episodes at once",
        ),
        (lambda: lift(line, None), ArgumentError, "local must be a list"),
        (lambda: lift(line, ["w"], num_episodes="a"), ArgumentTypeError, "num_episodes must be a real"),
        (lambda: lift(line, ["w"], num_episodes=math.nan), ArgumentError, "num_episodes must be a real"),
        (
            lambda: EpisodeStream([(X, Y), ("a", "b")]),
            ArgumentError,
            r"differ in structure: .*Held\('a'\).*no array must be the same in all",
        ),
        (
            lambda: EpisodeStream([(X, np.array(["a"] * 3))]),
            ArgumentTypeError,
            "Episode 0: argument 1 must be an array of numbers.*np.unique",
        ),
        (lambda: EpisodeStream(["ab", "c"]), ArgumentTypeError, "Episode 0 is 'ab'"),
        (lambda: EpisodeStream([[X, Y]]), ArgumentTypeError, "Episode 0 is a list; it must be a tuple"),
        (lambda: EpisodeStream([(X, None), (X, Y)]), ArgumentError, "differ in structure.*None"),
        (lambda: EpisodeStream([(X[:0], Y[:0])]), ArgumentError, "every episode is empty"),
        (lambda: EpisodeStream([(X, Y), (X, Y[:2])]), None, None),
        (lambda: EpisodeStream([(X, Y), (X[:3], Y[:2])]), ArgumentError, "3 and 2 in episode 1"),
        (lambda: EpisodeStream([(X, Y)]).batch([1]), ArgumentError, "from 0 to 0"),
        (lambda: EpisodeStream([(X, Y), (X[:2], Y[:2])]).batch([0], pad_to=2), ArgumentError, "has 5 rows"),
        (
            lambda: EpisodeStream.from_groups([1, 2], ["a", "b"]),
            ArgumentTypeError,
            "column 0 must be an array of numbers",
        ),
        (lambda: EpisodeStream.from_groups([1, 2]), ArgumentError, "0 columns"),
        (
            lambda: EpisodeStream.from_arrays(np.zeros((2, 3)), np.zeros((3, 3))),
            ArgumentError,
            "same leading axis",
        ),
        (lambda: ArrivingStream(iter([])), ArgumentError, "no episode"),
        (lambda: ArrivingStream("abc"), ArgumentTypeError, "iterator"),
        (
            lambda: list(ArrivingStream([(X, Y), (X[:2], Y[:2])], peek=1).batches(KEY, 1)),
            ArgumentError,
            "larger peek=",
        ),
        (lambda: next(SimulatedStream(lambda key: ("a",)).batches(KEY, 2)), ProgramError, "failed"),
        (lambda: NIW(**{**NORMAL, "mean_precision": "a"}), ArgumentTypeError, "mean_precision must be real"),
        (lambda: NIW(**{**NORMAL, "scale_matrix": [[1.0, 0.5], [0.0, 1.0]]}), ArgumentError, "not symmetric"),
        (lambda: NIW(**{**NORMAL, "df": math.inf}), ArgumentError, "df is not finite"),
        (lambda: NIW(**{**NORMAL, "blocks": "a"}), ArgumentTypeError, "blocks must be whole numbers"),
        (lambda: NIW(**NORMAL).kl(3), ArgumentTypeError, "must be a NIW"),
        (
            lambda: NIW(**NORMAL).posterior(np.zeros((3, 3)), np.zeros((3, 2, 2))),
            ArgumentError,
            r"shape \(n, 2\)",
        ),
        (lambda: NIW(**NORMAL).sample(3), ArgumentTypeError, "rng_key must be one random key"),
    ],
)
def test_arguments(call, error, message):
    if message is None:
        call()
        return
    with pytest.raises(error, match=message):
        call()


def test_what_posteriors_refuses(fitted):
    with pytest.raises(NonFiniteError, match="posteriors: in episode 1 .*'y'"):
        fitted.posteriors([*episodes((5,)), (X, HOLED)])
    with pytest.raises(ModelError, match="site 'y' has data"):
        fitted.posteriors([(X, Y[:2])])
    with pytest.raises(ArgumentTypeError, match="needs all episodes at once"):
        fitted.posteriors(SimulatedStream(lambda key: (jnp.zeros(3), jnp.zeros(3))))


def test_data_outside_a_support_say_so():
    with pytest.raises(
        NonFiniteError, match="'y' is -?(inf|nan). Its data lie outside the support of Exponential in 1 of 2"
    ):
        lift(outside, ["rate"]).fit(KEY, [np.array([1.0, -1.0], np.float32)], num_steps=1, progress_bar=False)


def test_an_open_handler_is_refused():
    import numpyro

    with numpyro.handlers.seed(rng_seed=0), pytest.raises(HandlerError, match="seed"):
        L.fit(jax.random.key(0), [(X, Y)])
