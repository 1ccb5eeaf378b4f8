"""How much a measurement is expected to tell: of where the maximum is, or of anything."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from ppl_ext.designs.acquisitions.functions import Gaussian, as_functions, as_rows, check_noise, needs_draws
from ppl_ext.designs.acquisitions.knowledge_gradient import Fantasies
from ppl_ext.runtime.arguments import check_count, check_key


class EntropySearch(eqx.Module):
    r"""How much a measurement is expected to tell of where the function is greatest.

    .. math:: a(x) = H(x^*) - \mathbb{E}_{y \mid x} H(x^* \mid y)

    in nats. The law of :math:`x^*` is that of the draws' own maxima among the candidates; after an imagined
    measurement draws weigh :math:`N(y; f_s(x), \sigma^2)`. Not below zero but for imagined measurements being
    few.

    :param noise: the standard deviation of a measurement. Small against the spread of draws, it tells single
        draws apart, and every candidate seems to say all.
    :param rng_key: for imagined measurements.
    :param num_fantasies: how many.
    :return: called with draws (draws, n), and maybe ``pending`` candidates, (n,) nats of all of them
        together.
    :raises ArgumentTypeError: for a normal law (hand draws of it), or a missing key.
    :raises ArgumentError: for a noise that is not above zero.

    >>> draws = jnp.array([[9.0, 0.0, 5.0], [0.0, 9.0, 5.0]])
    >>> print(EntropySearch(noise=0.1, rng_key=jax.random.key(0))(draws).round(4) + 0.0)
    [0.6931 0.6931 0.    ]

    Source: Hennig, Schuler 2012, "Entropy search for information-efficient global optimization".
    """

    noise: Any
    rng_key: Any
    num_fantasies: int = eqx.field(default=128, static=True)

    def __check_init__(self):
        check_noise("EntropySearch: noise", self.noise)
        check_key("EntropySearch: rng_key", self.rng_key)
        check_count("EntropySearch: num_fantasies", self.num_fantasies)

    def __call__(self, functions: Any, pending: Any = ()) -> jax.Array:
        where = "EntropySearch"
        values = needs_draws(where, as_functions(where, functions))
        rows = as_rows(f"{where}: pending", pending, values.shape[1])
        top = jax.nn.one_hot(values.argmax(1), values.shape[1])
        fantasies = Fantasies(self.rng_key, len(values), self.num_fantasies, len(rows) + 1, self.noise)

        def told(candidate):
            after = fantasies.weights(values[:, jnp.append(rows, candidate)]) @ top
            return entr(top.mean(0)).sum() - entr(after).sum(1).mean()

        return jax.lax.map(told, jnp.arange(values.shape[1]))


class PredictiveEntropy(eqx.Module):
    r"""How uncertain a measurement is: the entropy of its predictive law. Measure where least is known.

    With draws, a measurement is one of them plus noise, and pairs of draws stand for the entropy:

    .. math:: a(x) = -\frac{1}{S} \sum_i \log \frac{1}{S} \sum_j \exp\big(-\|f_i(x) - f_j(x)\|^2 / 2
        \sigma^2\big)

    which is 0 where all draws agree and log S where none do. For a normal law it is
    :math:`\frac12 \log(1 + k(x, x) / \sigma^2)`, how much the noise's entropy is exceeded, exactly. The
    greatest is where the law's variance is. With ``pending`` candidates it is that of all of them together.
    What is told of anything is worth the same: of a maximum :class:`EntropySearch` speaks.

    :param noise: the standard deviation of a measurement.
    :return: called with functions, (n,) nats; a measurement may be an array, then draws are (draws, n, ...).
    :raises ArgumentError: for a noise that is not above zero.

    >>> draws = jnp.array([[0.0, 0.0], [0.0, 9.0]])
    >>> print(PredictiveEntropy(noise=0.1)(draws).round(4))
    [0.     0.6931]

    Source: Nolan, Stevens, van Nierop, van Sloun 2025, "Active diffusion subsampling"; of mixtures: Hershey,
    Olsen 2007, "Approximating the Kullback Leibler divergence between Gaussian mixture models".
    """

    noise: Any

    def __check_init__(self):
        check_noise("PredictiveEntropy: noise", self.noise)

    def __call__(self, functions: Any, pending: Any = ()) -> jax.Array:
        where = "PredictiveEntropy"
        known = as_functions(where, functions, arrays=True)
        rows = as_rows(f"{where}: pending", pending, known.num_candidates)
        if isinstance(known, Gaussian):
            after = known.given(rows, self.noise)
            before = jnp.log(after.totals / self.noise**2).sum()
            return 0.5 * (before + jnp.log1p((after.root**2).sum(1) / self.noise**2))
        values = known.values / self.noise

        def entropy(candidate):
            at = values[:, jnp.append(rows, candidate)].reshape(len(values), -1)
            logs = -0.5 * ((at[:, None] - at) ** 2).sum(-1)
            return jnp.log(len(values)) - jax.nn.logsumexp(logs, axis=1).mean()

        return jax.lax.map(entropy, jnp.arange(known.num_candidates))
