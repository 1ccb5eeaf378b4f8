"""Networks: coders of pictures, topics, a Markov model of tunes, regression with random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import flax_module, random_flax_module
from numpyro.handlers import scale

from tests.numpyro_examples.example import Example

rng = np.random.default_rng(4)
PICTURES = rng.integers(0, 2, (4, 6)).astype(np.float32)
DOCUMENTS = rng.integers(0, 4, (4, 5)).astype(np.float32)
TUNES, LENGTHS = rng.integers(0, 2, (3, 4, 2)).astype(np.float32), np.array([4, 2, 3])
X, Y = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(5, 1)).astype(np.float32)


class Coder(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = nn.softplus(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Normed(nn.Module):
    widths: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x, training):
        x = nn.Dropout(self.dropout, deterministic=not training)(Coder(self.widths)(x))
        return nn.BatchNorm(use_bias=False, use_scale=False, momentum=0.9, use_running_average=not training)(
            x
        )


# --- pictures in minibatches


def pictures(batch, hidden=3, latent=2):
    decode = flax_module("decoder", Coder((hidden, batch.shape[1])), input_shape=(1, latent))
    with numpyro.plate("pictures", len(batch)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
        return numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=batch)


def pictures_guide(model, example):
    def guide(batch, hidden=3, latent=2):
        encode = flax_module("encoder", Coder((hidden, 2 * latent)), input_shape=(1, batch.shape[1]))
        loc, log_scale = jnp.split(encode(batch), 2, axis=-1)
        with numpyro.plate("pictures", len(batch)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return guide


def halves(batch, hidden=3, latent=2):
    """What is not seen of a picture, given what is: a first guess, and a correction of it that is decoded."""
    seen, unseen = batch[:, :3], batch[:, 3:]
    guess = flax_module("guess", Coder((hidden, 3)), input_shape=(1, 3))(seen)
    prior = flax_module("prior", Coder((hidden, 2 * latent)), input_shape=(1, 6))
    decode = flax_module("decoder", Coder((hidden, 3)), input_shape=(1, latent))
    loc, log_scale = jnp.split(prior(jnp.concatenate([seen, guess], -1)), 2, axis=-1)
    with numpyro.plate("pictures", len(batch)):
        z = numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))
        mask = jnp.arange(3) < 2
        numpyro.sample("x", dist.Bernoulli(logits=decode(z)).mask(mask).to_event(1), obs=unseen)


# --- topics


def topics(documents, settings, training=False):
    net = Normed((settings["words"],), settings["dropout"])
    decode = flax_module(
        "decoder", net, input_shape=(1, 2), apply_rng=["dropout"], mutable=["batch_stats"], training=True
    )
    with numpyro.plate("documents", len(documents), subsample_size=settings["batch"]):
        here = numpyro.subsample(documents, event_dim=1)
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(2)))
        logits = decode(theta, training, rngs={"dropout": numpyro.prng_key()})
        numpyro.sample("words", dist.Multinomial(here.sum(-1), logits=logits), obs=here)


def topics_guide(model, example):
    def guide(documents, settings, training=False):
        net = Normed((3, 2), settings["dropout"])
        shape = (1, settings["words"])
        encode = flax_module(
            "encoder", net, input_shape=shape, apply_rng=["dropout"], mutable=["batch_stats"], training=True
        )
        with numpyro.plate("documents", len(documents), subsample_size=settings["batch"]):
            here = numpyro.subsample(documents, event_dim=1)
            numpyro.sample(
                "theta", dist.Dirichlet(jnp.exp(encode(here, training, rngs={"dropout": numpyro.prng_key()})))
            )

    return guide


# --- tunes of different lengths: all states at once, scored by a second site; and the same as a scan


def weights(name, *shape):
    return numpyro.param(name, lambda key: 0.3 * jax.random.normal(key, shape))


def transition(latent):
    gates, shared, widths = (weights(name, latent, latent) for name in ("gate", "shared", "width"))

    def moves(z):
        gate, proposed = nn.sigmoid(z @ gates), jnp.tanh(z @ shared)
        return (1 - gate) * z + gate * proposed, nn.softplus(proposed @ widths) + 0.1

    return moves


def tunes(songs, lengths, *, batch=2, latent=2, annealing=0.5):
    moves, emit = transition(latent), weights("emit", latent, songs.shape[2])
    begun = jnp.broadcast_to(weights("begun", latent), (batch, 1, latent))
    with numpyro.plate("songs", len(songs), subsample_size=batch, dim=-1) as index:
        here, until = jnp.asarray(songs)[index], jnp.asarray(lengths)[index]
        playing = (jnp.arange(songs.shape[1]) < until[:, None])[..., None]
        unscored = dist.Normal(0.0, jnp.ones((songs.shape[1], latent))).mask(False)
        z = numpyro.sample("z", unscored.to_event(2))
        loc, width = moves(jnp.concatenate([begun, z[:, :-1]], axis=-2))
        with scale(scale=annealing):
            numpyro.sample("z_scored", dist.Normal(loc, width).mask(playing).to_event(2), obs=z)
        numpyro.sample("notes", dist.Bernoulli(logits=z @ emit).mask(playing).to_event(2), obs=here)


def tunes_guide(model, example):
    def guide(songs, lengths, *, batch=2, latent=2, annealing=0.5):
        mix, begun = weights("mix", songs.shape[2] + latent, 2 * latent), weights("hidden", latent)
        with numpyro.plate("songs", len(songs), subsample_size=batch, dim=-1) as index:
            here, until = jnp.asarray(songs)[index], jnp.asarray(lengths)[index]
            playing = (jnp.arange(songs.shape[1]) < until[:, None])[..., None]

            def back(h, y):
                out = jnp.concatenate([y, h], -1) @ mix
                return jnp.tanh(out[:, :latent]), out

            _, out = jax.lax.scan(
                back, jnp.broadcast_to(begun, (batch, latent)), here.swapaxes(0, 1), reverse=True
            )
            loc, log_width = jnp.split(out.swapaxes(0, 1), 2, axis=-1)
            with scale(scale=annealing):
                numpyro.sample("z", dist.Normal(loc, jnp.exp(log_width)).mask(playing).to_event(2))

    return guide


def tune_scanned(song, latent=2):
    moves, emit = transition(latent), weights("emit", latent, song.shape[1])

    def step(z, y):
        z = numpyro.sample("z", dist.Normal(*moves(z)).to_event(1))
        numpyro.sample("notes", dist.Bernoulli(logits=z @ emit).to_event(1), obs=y)
        return z, None

    scan(step, weights("begun", latent), song)


# --- regression


def random_network(x, y, hidden=3):
    shapes = {"w1": (x.shape[1], hidden), "w2": (hidden, hidden), "w3": (hidden, 1)}
    w = {
        name: numpyro.sample(name, dist.Normal(jnp.zeros(shape), jnp.ones(shape)))
        for name, shape in shapes.items()
    }
    z = jnp.tanh(jnp.tanh(x @ w["w1"]) @ w["w2"]) @ w["w3"]
    noise = 1.0 / jnp.sqrt(numpyro.sample("precision", dist.Gamma(3.0, 1.0)))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(z, noise).to_event(1), obs=y)


def mean_learned_scale_random(x, y):
    mean = flax_module("mean", Coder((3, 1)), input_shape=(1, x.shape[1]))
    prior = {"Dense_0.kernel": dist.HalfNormal(1.0), "Dense_0.bias": dist.Normal(0.0, 1.0)}
    log_scale = random_flax_module("scale", Coder((1,)), prior, input_shape=(1, x.shape[1]))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(mean(x).squeeze(-1), jnp.exp(log_scale(x).squeeze(-1))), obs=y[:, 0])


EXAMPLES = [
    Example("pictures", pictures, (PICTURES,), guide=pictures_guide),
    Example("halves of pictures", halves, (PICTURES,), guide=pictures_guide),
    Example(
        "topics", topics, (DOCUMENTS, {"words": 5, "dropout": 0.0, "batch": 2}, True), guide=topics_guide
    ),
    Example("tunes", tunes, (TUNES, LENGTHS), guide=tunes_guide, no_draws="all of the plate 'songs'"),
    Example("tune, scanned", tune_scanned, (TUNES[0],), states=("z",)),
    Example("random network", random_network, (X, Y)),
    Example("random scale", mean_learned_scale_random, (X, Y)),
]
