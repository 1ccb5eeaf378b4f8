"""Models of annotators who disagree: six of NumPyro's example, the true class of each item summed out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import reparam
from numpyro.infer.reparam import LocScaleReparam
from numpyro.ops.indexing import Vindex

from tests.numpyro_examples.example import Example

WHO = np.array([0, 0, 1, 2])
SAID = np.array([[0, 0, 1, 0], [2, 2, 2, 1], [1, 1, 1, 1]])


def multinomial(said):
    classes = int(np.max(said)) + 1
    with numpyro.plate("class", classes):
        confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.ones(classes)))
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(classes)))
    with numpyro.plate("item", said.shape[0], dim=-2):
        truth = numpyro.sample("truth", dist.Categorical(prevalence), infer={"enumerate": "parallel"})
        with numpyro.plate("position", said.shape[1]):
            numpyro.sample("said", dist.Categorical(confusion[truth]), obs=said)


def dawid_skene(who, said):
    classes = int(np.max(said)) + 1
    with numpyro.plate("annotator", int(np.max(who)) + 1, dim=-2), numpyro.plate("class", classes):
        confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.ones(classes)))
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(classes)))
    with numpyro.plate("item", said.shape[0], dim=-2):
        truth = numpyro.sample("truth", dist.Categorical(prevalence), infer={"enumerate": "parallel"})
        with numpyro.plate("position", said.shape[1]):
            numpyro.sample("said", dist.Categorical(Vindex(confusion)[who, truth, :]), obs=said)


def mace(who, said):
    classes = int(np.max(said)) + 1
    with numpyro.plate("annotator", int(np.max(who)) + 1):
        habit = numpyro.sample("habit", dist.Dirichlet(jnp.full(classes, 10)))
        honesty = numpyro.sample("honesty", dist.Beta(0.5, 0.5))
    with numpyro.plate("item", said.shape[0], dim=-2):
        truth = numpyro.sample("truth", dist.DiscreteUniform(0, classes - 1), infer={"enumerate": "parallel"})
        with numpyro.plate("position", said.shape[1]):
            spams = numpyro.sample("spams", dist.Bernoulli(1 - honesty[who]), infer={"enumerate": "parallel"})
            probs = jnp.where(spams[..., None] == 0, jax.nn.one_hot(truth, classes), habit[who])
            numpyro.sample("said", dist.Categorical(probs), obs=said)


def padded(logits):
    """The last class has the logit 0."""
    return jnp.pad(logits, [(0, 0)] * (jnp.ndim(logits) - 1) + [(0, 1)])


def by_class(names, classes):
    priors = {"loc": dist.Normal(0, 1), "scale": dist.HalfNormal(1), "item_scale": dist.HalfNormal(1)}
    with numpyro.plate("class", classes):
        return [numpyro.sample(name, priors[name].expand([classes - 1]).to_event(1)) for name in names]


def logits_of_annotators(who, classes, loc, scale):
    with numpyro.plate("annotator", int(np.max(who)) + 1, dim=-2), numpyro.plate("class", classes):
        with reparam(config={"ability": LocScaleReparam(0)}):
            return padded(numpyro.sample("ability", dist.Normal(loc, scale).to_event(1)))


def hierarchical_dawid_skene(who, said):
    classes = int(np.max(said)) + 1
    ability = logits_of_annotators(who, classes, *by_class(("loc", "scale"), classes))
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(classes)))
    with numpyro.plate("item", said.shape[0], dim=-2):
        truth = numpyro.sample("truth", dist.Categorical(prevalence), infer={"enumerate": "parallel"})
        with numpyro.plate("position", said.shape[1]):
            numpyro.sample("said", dist.Categorical(logits=Vindex(ability)[who, truth, :]), obs=said)


def item_difficulty(said):
    classes = int(np.max(said)) + 1
    loc, scale = by_class(("loc", "item_scale"), classes)
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(classes)))
    with numpyro.plate("item", said.shape[0], dim=-2):
        truth = numpyro.sample("truth", dist.Categorical(prevalence), infer={"enumerate": "parallel"})
        with reparam(config={"difficulty": LocScaleReparam(0)}):
            difficulty = padded(
                numpyro.sample("difficulty", dist.Normal(loc[truth], scale[truth]).to_event(1))
            )
        with numpyro.plate("position", said.shape[1]):
            numpyro.sample("said", dist.Categorical(logits=difficulty), obs=said)


def random_effects(who, said):
    classes = int(np.max(said)) + 1
    loc, scale, item_scale = by_class(("loc", "scale", "item_scale"), classes)
    ability = logits_of_annotators(who, classes, loc, scale)
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(classes)))
    with numpyro.plate("item", said.shape[0], dim=-2):
        truth = numpyro.sample("truth", dist.Categorical(prevalence), infer={"enumerate": "parallel"})
        with reparam(config={"difficulty": LocScaleReparam(0)}):
            difficulty = padded(numpyro.sample("difficulty", dist.Normal(0, item_scale[truth]).to_event(1)))
        with numpyro.plate("position", said.shape[1]):
            numpyro.sample(
                "said", dist.Categorical(logits=Vindex(ability)[who, truth, :] - difficulty), obs=said
            )


EXAMPLES = [
    Example("annotation, multinomial", multinomial, (SAID,), summed=("truth",)),
    Example("annotation, Dawid-Skene", dawid_skene, (WHO, SAID), summed=("truth",)),
    Example("annotation, MACE", mace, (WHO, SAID), summed=("truth", "spams")),
    Example("annotation, hierarchical Dawid-Skene", hierarchical_dawid_skene, (WHO, SAID), summed=("truth",)),
    Example("annotation, item difficulty", item_difficulty, (SAID,), summed=("truth",), by_parts=True),
    Example("annotation, random effects", random_effects, (WHO, SAID), summed=("truth",), by_parts=True),
]
