"""Hidden Markov models: by hand, and enumerated in each of the variants that NumPyro's example has."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask
from numpyro.ops.indexing import Vindex

from tests.numpyro_examples.example import Example

STATES, TONES = 3, 2
LENGTHS = np.array([4, 3])
NOTES = np.random.default_rng(2).integers(0, 2, (len(LENGTHS), 4, TONES))
WORDS, TAGS = np.array([0, 3, 1, 2, 3]), np.array([0, 1, 1, 0, 1])


def by_hand(prior, word_prior, tags, tagged_words, words):
    """A part of the states is seen; the rest is summed out by a loop of JAX's into a factor."""
    states = len(prior)
    moves = numpyro.sample("moves", dist.Dirichlet(jnp.broadcast_to(prior, (states, states))))
    emits = numpyro.sample("emits", dist.Dirichlet(jnp.broadcast_to(word_prior, (states, len(word_prior)))))
    numpyro.sample("tags", dist.Categorical(moves[tags[:-1]]), obs=tags[1:])
    numpyro.sample("tagged_words", dist.Categorical(emits[tags]), obs=tagged_words)

    def forward(log_prob, word):
        return logsumexp(log_prob[:, None] + jnp.log(moves) + jnp.log(emits)[:, word], axis=0), None

    log_prob, _ = jax.lax.scan(forward, jnp.log(emits)[:, words[0]], words[1:])
    numpyro.factor("untagged", logsumexp(log_prob, axis=0, keepdims=True))


def transitions(name, *shape):
    law = dist.Dirichlet(0.9 * jnp.eye(STATES) + 0.1)
    return numpyro.sample(name, (law.expand(shape + (STATES,)) if shape else law).to_event(1 + len(shape)))


def emissions(*shape):
    return numpyro.sample("emits", dist.Beta(1.0, 2.0).expand([*shape, TONES]).to_event(len(shape) + 1))


def sequences(step, notes, lengths, *begun, history=1):
    """Each step inside of the plate of sequences, masked behind its end. ``step`` takes what was carried, the
    notes, and returns both.
    """

    def body(carry, y):
        *states, t = carry
        with numpyro.plate("sequences", len(notes), dim=-2), mask(mask=(t < lengths)[..., None]):
            return (*step(*states, y), t + 1), None

    scan(body, (*begun, 0), jnp.swapaxes(notes, 0, 1), history=history)


def nobody(notes, width=1):
    return jnp.zeros((len(notes), width), jnp.int32)


def state(name, probs):
    return numpyro.sample(name, dist.Categorical(probs), infer={"enumerate": "parallel"})


def first_order(notes, lengths, with_prior=True):
    with mask(mask=with_prior):
        moves, emits = transitions("moves"), emissions(STATES)

    def step(x, y):
        x = state("x", moves[x])
        with numpyro.plate("tones", TONES, dim=-1):
            numpyro.sample("y", dist.Bernoulli(emits[x.squeeze(-1)]), obs=y)
        return (x,)

    sequences(step, notes, lengths, nobody(notes))


def autoregressive(notes, lengths):
    moves, emits = transitions("moves"), emissions(STATES, 2)

    def step(x, before, y):
        x = state("x", moves[x])
        with numpyro.plate("tones", TONES, dim=-1) as tones:
            y = numpyro.sample("y", dist.Bernoulli(emits[x, before, tones]), obs=y)
        return x, y

    sequences(step, notes, lengths, nobody(notes), nobody(notes, TONES))


def factorial(notes, lengths):
    w_moves, x_moves, emits = transitions("w_moves"), transitions("x_moves"), emissions(STATES, STATES)

    def step(w, x, y):
        w, x = state("w", w_moves[w]), state("x", x_moves[x])
        with numpyro.plate("tones", TONES, dim=-1) as tones:
            numpyro.sample("y", dist.Bernoulli(emits[w, x, tones]), obs=y)
        return w, x

    sequences(step, notes, lengths, nobody(notes), nobody(notes))


def one_drives_the_other(notes, lengths):
    w_moves, x_moves, emits = (
        transitions("w_moves"),
        transitions("x_moves", STATES),
        emissions(STATES, STATES),
    )

    def step(w, x, y):
        w = state("w", w_moves[w])
        x = state("x", Vindex(x_moves)[w, x])
        with numpyro.plate("tones", TONES, dim=-1) as tones:
            numpyro.sample("y", dist.Bernoulli(emits[w, x, tones]), obs=y)
        return w, x

    sequences(step, notes, lengths, nobody(notes), nobody(notes))


def second_order(notes, lengths):
    moves, emits = transitions("moves", STATES), emissions(STATES)

    def step(before, x, y):
        before, x = x, state("x", Vindex(moves)[before, x])
        with numpyro.plate("tones", TONES, dim=-1):
            numpyro.sample("y", dist.Bernoulli(emits[x.squeeze(-1)]), obs=y)
        return before, x

    sequences(step, notes, lengths, nobody(notes), nobody(notes), history=2)


ONE_STEP = "one step ahead"
SONGS = dict(args=(NOTES, LENGTHS), by_parts=True, no_loo=ONE_STEP)

ONE_SONG = SONGS | {"args": (NOTES[:1], LENGTHS[:1]), "no_loo": "history=1"}

EXAMPLES = [
    Example(
        "HMM, by hand",
        by_hand,
        (np.ones(2, np.float32), np.ones(4, np.float32), TAGS, WORDS, WORDS[::-1].copy()),
        no_loo=ONE_STEP,
    ),
    Example("HMM, first order", first_order, summed=("x",), states=("x",), exact=True, **SONGS),
    Example(
        "HMM, prior masked",
        first_order,
        kwargs={"with_prior": False},
        summed=("x",),
        states=("x",),
        exact=True,
        **SONGS,
    ),
    Example("HMM, autoregressive", autoregressive, summed=("x",), states=("x",), exact=True, **SONGS),
    Example("HMM, factorial", factorial, summed=("w", "x"), states=("w", "x"), exact=True, **SONGS),
    Example(
        "HMM, one drives the other",
        one_drives_the_other,
        summed=("w", "x"),
        states=("w", "x"),
        exact=True,
        **SONGS,
    ),
    Example("HMM, second order", second_order, summed=("x",), states=("x",), **ONE_SONG),
]
