"""Episodes of several kinds: a mixture of shared laws, told apart by variational EM on local fits already
made.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, logsumexp

from ppl_ext.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ppl_ext.meta.adapt import Adapted, Nodes, local_fit, of_laws, scale_nodes
from ppl_ext.meta.distributions.low_rank import Factored
from ppl_ext.meta.distributions.mixtures import Mixture
from ppl_ext.meta.distributions.niw import NIW
from ppl_ext.meta.episode import EpisodeLoss
from ppl_ext.meta.fitted import MetaFit, check_finite
from ppl_ext.meta.groups import bad_of_stream, each
from ppl_ext.meta.hierarchy import POINT
from ppl_ext.meta.solvers.local import Gaussian, Quadratic, closed_form
from ppl_ext.meta.streams.arriving import finite_stream
from ppl_ext.runtime.arguments import check_count, check_key, described
from ppl_ext.runtime.results import NUM_SAMPLES, Summarised
from ppl_ext.runtime.verdict import Verdict

SEEDS, TRIES = 3, 10
"""Episodes that a kind starts from, and rounds of EM after which the best start goes on."""


@dataclass(frozen=True, repr=False)
class Kinds(Summarised):
    """Several shared laws instead of one; what :func:`kinds` returns.

    ``laws``: a :class:`NIW` of each kind. ``concentration``: (K,), of the Dirichlet posterior of their
    shares. ``memberships``: (n, K), how probably each episode seen is of each kind. ``losses``: the bound per
    episode by round, up to a constant. ``fit`` has the shared values.

    >>> laws = tuple(NIW(jnp.array([at]), 5.0, jnp.eye(1), 8.0) for at in (-9.0, 9.0))
    >>> one = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> Kinds(None, laws, jnp.array([3.0, 1.0]), one, np.array([2.0, 1.5]))  # as kinds returns it
    Kinds(2, shares=[0.75, 0.25])
    """

    fit: MetaFit
    laws: tuple[NIW, ...]
    concentration: jax.Array
    memberships: np.ndarray
    losses: np.ndarray

    def __repr__(self) -> str:
        return f"Kinds({len(self.laws)}, shares={np.asarray(self.shares).round(3).tolist()})"

    def verdict(self) -> Verdict:
        """Whether to believe the result, with reasons: see :func:`ppl_ext.diagnostics.verdict`."""
        from ppl_ext.meta.verdicts import of_kinds

        return of_kinds(self)

    def summary(self) -> str:
        """Each kind's law and share, and how surely episodes were told apart."""
        from ppl_ext.meta.summaries import of_kinds

        return of_kinds(self)

    def to_arviz(self, rng_key: jax.Array | None = None, num_samples: int = NUM_SAMPLES) -> Any:
        """The ArviZ report: ``posterior`` has draws of the kinds' shares, means and covariances from their
        variational laws (chain, draw, kind, ...), one chain; ``estimates`` the ``memberships`` by ``episode``
        and ``kind``; ``vi_trace`` the bound by round."""
        from ppl_ext.meta.arviz_report import kinds_to_arviz

        return kinds_to_arviz(self, rng_key, num_samples)

    @property
    def shares(self) -> jax.Array:
        """Expected shares, shape (K,)."""
        return self.concentration / self.concentration.sum()

    def adapt(
        self, rng_key: jax.Array, *args, num_samples: int = NUM_SAMPLES, num_nodes: int = 64, **kwargs
    ) -> Adapted:
        """Adapt to an episode, as :meth:`MetaFit.adapt`, under a mixture of each kind's Student-t: which kind
        the episode is of is averaged over.

        :raises ArgumentError: for arguments unlike those of the episodes trained on.
        :raises ModelError: for data that do not fit their distribution, naming the site.
        :raises NonFiniteError: for data whose density is not finite, naming the site.
        """
        check_key("adapt: rng_key, the first argument,", rng_key)
        check_count("adapt: num_samples", num_samples)
        check_count("adapt: num_nodes", num_nodes)
        loss = self.fit.new_episode("adapt", args, kwargs)
        of_fit, of_nodes, of_draws = jax.random.split(rng_key, 3)
        law = self.law(loss, of_fit, self.nodes(num_nodes, of_nodes))
        check_finite("adapt", law)
        theta = law.draw(of_draws, num_samples)
        return Adapted(jax.vmap(self.fit.hierarchy.form.values)(theta), theta, law, self.fit.shared)

    def nodes(self, num_nodes: int, rng_key: jax.Array) -> list[Nodes]:
        """Scales of the kinds' Student-t laws."""
        return [scale_nodes(law, num_nodes, rng_key) for law in self.laws]

    def law(self, loss: EpisodeLoss | None, rng_key: jax.Array, nodes: list[Nodes]) -> Mixture:
        """The law of a new episode's θ, pure; ``None`` stands for an episode without data."""
        return _adapted(
            loss, self.fit.niw, self.fit.solver, rng_key, list(self.laws), jnp.log(self.shares), nodes
        )


@eqx.filter_jit
def _adapted(loss, niw, solver, rng_key, laws, log_shares, nodes) -> Mixture:
    return of_laws(local_fit(loss, niw, solver, rng_key), laws, log_shares, nodes)


def kinds(
    fit: MetaFit,
    rng_key: jax.Array,
    episodes: Any,
    num_kinds: int = 2,
    num_rounds: int = 50,
    num_starts: int = 10,
) -> Kinds:
    r"""Tell apart the kinds of episode that one shared law has taken together.

    .. math:: \pi \sim \mathrm{Dirichlet}(1, \dots, 1), \quad z_i \sim \pi, \quad \theta_i \mid z_i = k \sim
        N(\mu_k, \Sigma_k), \quad
        (\mu_k, \Sigma_k) \sim \text{the hierarchy's prior}

    The shared values stay those of ``fit``, and so do the local fits, a quadratic for each episode made under
    its law: exact for linear-Gaussian episodes. Given these every update has a closed form:
    :math:`q(\theta_i \mid k)` against the law of kind k; memberships
    :math:`r_{ik} \propto \exp(\mathbb{E} \log \pi_k - \mathbb{E}\,\ell_i - \mathbb{E}\,\mathrm{KL}(q_{ik} \|
    N(\mu_k,
    \Sigma_k)))`; and the laws by conjugacy, each episode counted :math:`r_{ik}` times. The bound grows in
    every round.

    EM finds a local optimum. It starts ``num_starts`` times from laws of three random episodes each, and goes
    on from the best.

    :param episodes: an ``EpisodeStream`` or a list of episodes, which stand for all N of the hierarchy.
    :raises ArgumentError: if the shared law is diagonal, or there are too few episodes.
    :raises NonFiniteError: naming episode and site.

    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> from ppl_ext.meta import ExactLinearGaussian, lift
    >>> def episode(y):
    ...     level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", len(y)):
    ...         numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
    >>> rows = [(np.full(3, sign * 9.0 + i / 10, np.float32),) for i in range(8) for sign in (-1, 1)]
    >>> fit = lift(episode, ["level"]).untrained(rows, ExactLinearGaussian())  # .fit(key, rows) trains
    >>> two = kinds(fit, jax.random.key(0), rows)
    >>> two, sorted(round(float(law.loc[0])) for law in two.laws)
    (Kinds(2, shares=[0.5, 0.5]), [-9, 9])

    Source: the variational mixture of Gaussians (Bishop 2006, section 10.2), with the θ themselves latent, as
    here.
    """
    if not isinstance(fit, MetaFit):
        raise ArgumentTypeError(f"kinds: fit must be a MetaFit, got {described(fit)}.")
    check_key("kinds: rng_key", rng_key)
    for name, value in (("num_kinds", num_kinds), ("num_rounds", num_rounds), ("num_starts", num_starts)):
        check_count(f"kinds: {name}", value)
    if fit.niw.diagonal:
        raise ArgumentError(
            "kinds: the shared law is diagonal, with a scale for each coordinate; lift with "
            "structure='full' or 'block'."
        )
    stream, h, state = finite_stream("kinds", episodes), fit.hierarchy, fit.state
    if len(stream) < SEEDS * num_kinds:
        raise ArgumentError(
            f"kinds: {num_kinds} kinds start from {SEEDS} episodes each; there are {len(stream)} in all."
        )
    batch = stream.batch(np.arange(len(stream)))
    h.form.unchanged("kinds")
    if (why := bad_of_stream(h, state.shared, stream, batch, fit.niw.loc)) is not None:
        raise NonFiniteError(f"kinds: {why}")
    of_fits, of_starts = jax.random.split(rng_key)
    keys = jax.random.split(of_fits, len(stream))
    run = eqx.filter_jit(h.fits)
    fits = each(
        h, stream, batch, lambda batch, keys: run(state.niw, state.shared, batch, fit.solver, keys), keys
    )
    fits = fits._replace(precision=_dense(fits.precision))
    near = jax.vmap(partial(closed_form, niw=state.niw))(fits)
    em = _EM(fits, near, h.prior, min(h.num_episodes, POINT))
    seeds = jax.vmap(
        lambda key: jax.random.permutation(key, len(stream))[: SEEDS * num_kinds].reshape(num_kinds, SEEDS)
    )(jax.random.split(of_starts, num_starts))
    laws, concentration = _tried(em, seeds)
    laws, concentration, memberships, losses = _run(em, laws, concentration, num_rounds)
    laws_of = tuple(jax.tree.map(lambda x, k=k: x[k], laws) for k in range(num_kinds))
    check_finite("kinds", (laws_of, losses))
    return Kinds(fit, laws_of, concentration, np.asarray(memberships), np.asarray(losses))


def _dense(precision: jax.Array | Factored) -> jax.Array:
    """Matrices of all episodes."""
    if isinstance(precision, Factored):
        return jax.vmap(lambda factored: factored.dense())(precision)
    return jax.vmap(jnp.diag)(precision) if precision.ndim == 2 else precision


class _EM(eqx.Module):
    """Rounds of EM; stacked laws have a leading axis of kinds. ``near``: each episode's Gaussian under the
    one law.
    """

    fits: Quadratic
    near: Gaussian
    prior: NIW
    num_episodes: float

    def start(self, seeds: jax.Array) -> tuple[NIW, jax.Array]:
        """Laws of a few episodes each, (kind, episode), as if all N were like them."""
        means, covariances, count = self.near.mean, jnp.asarray(self.near.covariance), seeds.shape[0]
        laws = jax.vmap(lambda s: self.prior.posterior(means[s], covariances[s], self.num_episodes / count))(
            seeds
        )
        return laws, jnp.full(count, 1 + self.num_episodes / count, means.dtype)

    def round(self, laws: NIW, concentration: jax.Array) -> tuple[NIW, jax.Array, jax.Array, jax.Array]:
        """The next laws and concentration; memberships and bound under those given."""
        log_shares = digamma(concentration) - digamma(concentration.sum())
        q, costs = jax.vmap(self._local)(laws)  # costs (kind, episode)
        logits = (log_shares[:, None] - costs).T
        globals_ = jax.vmap(lambda law: law.kl(self.prior))(laws).sum() + _kl_of_shares(concentration)
        loss = globals_ / self.num_episodes - logsumexp(logits, axis=1).mean()
        memberships = jax.nn.softmax(logits, axis=1)
        laws = jax.vmap(self._law)(q, memberships.T)
        return laws, 1 + self.num_episodes * memberships.mean(0), memberships, loss

    def _local(self, law: NIW) -> tuple[Gaussian, jax.Array]:
        """Each episode's q against one law, and what it costs: E ℓ, up to a constant of the episode, and the
        divergence.
        """
        q = jax.vmap(partial(closed_form, niw=law))(self.fits)

        def cost(fit, q, near):
            # The loss from where the one law put the episode: whole losses are large, and their differences
            # would be rounded away.
            r = q.mean - near
            loss = (fit.precision @ near - fit.linear) @ r + 0.5 * (
                r @ fit.precision @ r + jnp.trace(fit.precision @ q.covariance)
            )
            return loss + law.expected_kl(q.mean, q.covariance)

        return q, jax.vmap(cost)(self.fits, q, self.near.mean)

    def _law(self, q: Gaussian, weights: jax.Array) -> NIW:
        """The conjugate update, each episode counted as often as its weight: one episode with their moments
        stands for them all.
        """
        share = weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        mean = share @ q.mean
        r = q.mean - mean
        covariance = jnp.einsum("n,nij->ij", share, jnp.asarray(q.covariance) + r[:, :, None] * r[:, None])
        return self.prior.posterior(mean[None], covariance[None], self.num_episodes * weights.mean())


def _kl_of_shares(concentration: jax.Array) -> jax.Array:
    """KL(Dirichlet(concentration) ‖ Dirichlet(1, ..., 1))."""
    total, count = concentration.sum(), concentration.shape[0]
    normaliser = gammaln(total) - gammaln(concentration).sum() - gammaln(jnp.asarray(count, total.dtype))
    return normaliser + ((concentration - 1) * (digamma(concentration) - digamma(total))).sum()


@eqx.filter_jit
def _run(em: _EM, laws: NIW, concentration: jax.Array, num_rounds: int):
    """Laws, concentration and memberships at the end, and the bound by round."""

    def step(carry, _):
        laws, concentration, _, loss = em.round(*carry)
        return (laws, concentration), loss

    (laws, concentration), losses = jax.lax.scan(step, (laws, concentration), length=num_rounds)
    return laws, concentration, em.round(laws, concentration)[2], losses


@eqx.filter_jit
def _tried(em: _EM, seeds: jax.Array) -> tuple[NIW, jax.Array]:
    """The best of several starts after a few rounds."""

    def one(seeds):
        laws, concentration, _, losses = _run(em, *em.start(seeds), TRIES)
        return laws, concentration, losses[-1]

    laws, concentration, losses = jax.lax.map(one, seeds)
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    return jax.tree.map(lambda x: x[best], (laws, concentration))
