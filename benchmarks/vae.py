"""One gradient step of a variational autoencoder: this library, NumPyro's ``Trace_ELBO`` and hand-coded JAX.

The network of Becker et al. 2024 (genjax.vi), section 7: decoder 10 -> 200 -> 784, encoder 784 -> 200 -> (10,
10), on batches of binary images. All contenders draw one reparameterised sample and score it with the same
Gaussian and Bernoulli log densities, so they do the same arithmetic: the difference is what the programming
system costs.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO as NumPyroELBO

from benchmarks import harness
from ppl_ext.objectives import ELBO

PIXELS, HIDDEN, LATENT = 784, 200, 10
BATCHES = (64, 128, 256, 512, 1024)

_SHAPES = {
    "decoder_w1": (LATENT, HIDDEN),
    "decoder_b1": (HIDDEN,),
    "decoder_w2": (HIDDEN, PIXELS),
    "decoder_b2": (PIXELS,),
    "encoder_w1": (PIXELS, HIDDEN),
    "encoder_b1": (HIDDEN,),
    "encoder_w_loc": (HIDDEN, LATENT),
    "encoder_b_loc": (LATENT,),
    "encoder_w_scale": (HIDDEN, LATENT),
    "encoder_b_scale": (LATENT,),
}


def initial_params(key):
    keys = jax.random.split(key, len(_SHAPES))
    return {
        name: jax.random.normal(k, shape) / jnp.sqrt(shape[0]) if len(shape) == 2 else jnp.zeros(shape)
        for k, (name, shape) in zip(keys, _SHAPES.items(), strict=True)
    }


def decode(p, z):
    hidden = jnp.tanh(z @ p["decoder_w1"] + p["decoder_b1"])
    return hidden @ p["decoder_w2"] + p["decoder_b2"]


def encode(p, x):
    hidden = jnp.tanh(x @ p["encoder_w1"] + p["encoder_b1"])
    loc = hidden @ p["encoder_w_loc"] + p["encoder_b_loc"]
    return loc, jnp.exp(hidden @ p["encoder_w_scale"] + p["encoder_b_scale"])


def _params(prefix):
    return {
        name: numpyro.param(name, jnp.zeros(shape))
        for name, shape in _SHAPES.items()
        if name.startswith(prefix)
    }


def model(x):
    p = _params("decoder")
    with numpyro.plate("images", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decode(p, z)).to_event(1), obs=x)


def guide(x):
    p = _params("encoder")
    with numpyro.plate("images", x.shape[0]):
        numpyro.sample("z", dist.Normal(*encode(p, x)).to_event(1))


def programmed(objective: NumPyroELBO):
    """A gradient step through a NumPyro objective, ours or theirs."""
    return jax.value_and_grad(lambda params, key, x: objective.loss(key, params, model, guide, x))


def hand_coded_loss(params, key, x):
    """The same estimator as someone would write it in plain JAX."""
    loc, scale = encode(params, x)
    z = loc + scale * jax.random.normal(key, loc.shape)
    logits = decode(params, z)
    log_q = jnp.sum(-0.5 * jnp.square((z - loc) / scale) - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))
    log_prior = jnp.sum(-0.5 * jnp.square(z) - 0.5 * jnp.log(2 * jnp.pi))
    # log p(x | z) = x l - log(1 + e^l), in the form that cannot overflow
    log_likelihood = jnp.sum(x * logits - jnp.maximum(logits, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(logits))))
    return log_q - log_prior - log_likelihood


def cases(batches=BATCHES) -> list[harness.Case]:
    steps = {
        "ppl_ext": programmed(ELBO()),
        "hand-coded": jax.value_and_grad(hand_coded_loss),
        "numpyro": programmed(Trace_ELBO()),
    }
    contenders = {
        name: lambda key, params, x, step=step: step(params, key, x) for name, step in steps.items()
    }
    params = initial_params(jax.random.key(0))
    images = jax.random.bernoulli(jax.random.key(1), 0.3, (max(batches), PIXELS)).astype(jnp.float32)
    return [harness.Case(f"batch {batch}", contenders, (params, images[:batch])) for batch in batches]


def check(case: harness.Case, draws: int = 50) -> None:
    """Stop when contenders do not estimate the same loss: timing different computations would mean
    nothing.
    """
    keys = jax.random.split(jax.random.key(2), draws)
    losses = {
        name: jax.lax.map(lambda key, step=step: step(key, *case.args)[0], keys)
        for name, step in case.contenders.items()
    }
    reference = losses["hand-coded"]
    for name, loss in losses.items():
        error = jnp.sqrt((loss.var() + reference.var()) / draws)
        if jnp.abs(loss.mean() - reference.mean()) > 5 * error + 1e-4 * jnp.abs(reference.mean()):
            raise AssertionError(
                f"{name} estimates a loss of {loss.mean():.2f}, hand-coded {reference.mean():.2f}"
            )


def main(quick: bool = False) -> None:
    problems = cases((64, 256) if quick else BATCHES)
    check(problems[0])
    harness.run(
        "vae",
        problems,
        targets=[
            harness.Target("ppl_ext", "hand-coded", "run", 1.02),
            harness.Target("ppl_ext", "numpyro", "run", 1.0),
            harness.Target("ppl_ext", "numpyro", "compile", 1.3),
        ],
        description="value and gradient of the negative ELBO of a VAE (10-200-784), one sample per image",
        calls=100 if quick else 300,
        compilations=3 if quick else 7,
        save=not quick,
    )
