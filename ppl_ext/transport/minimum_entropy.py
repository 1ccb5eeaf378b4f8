"""A coupling of two finite laws under which one says as much of the other as it can."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import entr

from ppl_ext.errors import ArgumentError
from ppl_ext.runtime.arguments import check_array, described

OFF_ONE = 1e-5
"""How far a sum of probabilities in single precision may be from one."""


class DiscreteCoupling(eqx.Module):
    r"""A joint law of two finite variables, X with n values and Y with m.

    ``joint``: (n, m), its probabilities. ``given_first`` and ``given_second`` are its conditionals as NumPyro
    distributions. It is a tree of arrays and passes through ``jit`` and ``vmap``.

    >>> coupling = minimum_entropy_coupling([0.5, 0.5], [0.25, 0.75])
    >>> coupling.joint.tolist()
    [[0.0, 0.5], [0.25, 0.25]]
    >>> coupling.given_first(0).probs.tolist()  # the law of Y where X = 0
    [0.0, 1.0]
    """

    joint: jax.Array

    def given_first(self, x: Any) -> dist.Distribution:
        """The law of Y given X = x, a Categorical with the batch shape of x. Where X never is x, the law of
        Y.
        """
        return dist.Categorical(probs=_row("given_first", _conditional(self.joint), x))

    def given_second(self, y: Any) -> dist.Distribution:
        """The law of X given Y = y, a Categorical with the batch shape of y. Where Y never is y, the law of
        X.
        """
        return dist.Categorical(probs=_row("given_second", _conditional(self.joint.T), y))

    @property
    def entropy(self) -> jax.Array:
        """H(X, Y) in nats."""
        return entr(self.joint).sum()

    @property
    def information(self) -> jax.Array:
        """I(X; Y) = H(X) + H(Y) - H(X, Y) in nats."""
        return entr(self.joint.sum(1)).sum() + entr(self.joint.sum(0)).sum() - self.entropy

    @property
    def least_entropy(self) -> jax.Array:
        r"""What no coupling with these margins is below, in nats.

        .. math:: H(p \wedge q), \qquad \sum_{i \le k} (p \wedge q)_i = \min\Big(\sum_{i \le k} p_{(i)},
            \sum_{i \le k} q_{(i)}\Big)

        with p and q sorted from the largest. Cicalese, Gargano, Vaccaro 2019, "Minimum-entropy couplings and
        their applications".
        """
        size = max(self.joint.shape)
        sums = [
            jnp.cumsum(jnp.pad(jnp.sort(self.joint.sum(axis))[::-1], (0, size - self.joint.shape[1 - axis])))
            for axis in (0, 1)
        ]
        steps = jnp.diff(jnp.minimum(*sums), prepend=0.0)
        return entr(jnp.maximum(steps, 0.0)).sum()


def _conditional(joint: jax.Array) -> jax.Array:
    """Every row over its sum; a row of zeros becomes the law of the columns."""
    of_rows = joint.sum(1, keepdims=True)
    some = of_rows > 0
    return jnp.where(some, joint / jnp.where(some, of_rows, 1.0), joint.sum(0))


def _row(which: str, table: jax.Array, value: Any) -> jax.Array:
    """The rows of these values: NaN for what is none, where the value is traced."""
    check_array(f"DiscreteCoupling.{which}: the value", value)
    given, value = value, jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.integer) and value.dtype != bool:
        raise ArgumentError(
            f"DiscreteCoupling.{which}: values are numbered by integers, got {described(given)}."
        )
    value = value.astype(int)  # an index that is bool would be a mask
    there = (value >= 0) & (value < len(table))
    if not isinstance(value, jax.core.Tracer) and not bool(there.all()):
        raise ArgumentError(
            f"DiscreteCoupling.{which}: the variable has the values 0 to {len(table) - 1}, got "
            f"{int(value.ravel()[jnp.argmin(there.ravel())])}."
        )
    return jnp.where(there[..., None], table[value], jnp.nan)


def minimum_entropy_coupling(p: Any, q: Any) -> DiscreteCoupling:
    r"""A coupling of two finite laws whose entropy is near the least, and so its mutual information near the
    greatest.

    .. math:: \min_J H(J), \qquad \sum_j J_{ij} = p_i, \quad \sum_i J_{ij} = q_j

    The least is hard to find (NP-hard). This is the greedy one: the largest mass left of X meets the largest
    left of Y, the smaller of the two goes to their pair, and so on, n + m - 1 times. It is at most
    :math:`\log_2(e)/e \approx 0.53` bits above the least (Compton et al. 2023), and
    :attr:`DiscreteCoupling.least_entropy` says how far it can be at most. So a message Y whose law is
    prescribed carries as much of X as it can: sample it from ``coupling.given_first(x)``, and read it by
    ``coupling.given_second(y)``.

    Both margins are exact but for rounding, also in single precision.

    :param p: (n,), the law of X.
    :param q: (m,), that of Y.
    :raises ArgumentTypeError: for what is no array of numbers.
    :raises ArgumentError: for what is no vector, or is negative, or does not sum to one; it names the
        argument. Under ``jit`` values are not known, and only shapes are checked.

    >>> coupling = minimum_entropy_coupling([0.5, 0.375, 0.125], [0.5, 0.5])
    >>> coupling.joint.tolist()  # Y is a function of X
    [[0.5, 0.0], [0.0, 0.375], [0.0, 0.125]]
    >>> round(float(coupling.information / jnp.log(2.0)), 3)  # bits
    1.0

    Source: Kocaoglu, Dimakis, Vishwanath, Hassibi 2017, "Entropic causality and greedy minimum entropy
    coupling"; Ebrahimi et al. 2024, "Minimum entropy coupling with bottleneck".
    """
    p, q = _as_law("p", p), _as_law("q", q)

    def meet(_, state):
        p, q, joint = state
        i, j = jnp.argmax(p), jnp.argmax(q)
        mass = jnp.minimum(p[i], q[j])
        return p.at[i].add(-mass), q.at[j].add(-mass), joint.at[i, j].add(mass)

    start = p, q, jnp.zeros((len(p), len(q)), jnp.result_type(p, q))
    return DiscreteCoupling(jax.lax.fori_loop(0, len(p) + len(q) - 1, meet, start)[2])


def _as_law(which: str, law: Any) -> jax.Array:
    where = f"minimum_entropy_coupling: {which}"
    check_array(where, law)
    given, law = law, jnp.asarray(law, float)
    if law.ndim != 1 or not len(law):
        raise ArgumentError(f"{where} must be a vector of probabilities, got {described(given)}.")
    if not isinstance(law, jax.core.Tracer):
        known = np.asarray(law, np.float64)
        if not (known >= 0).all():
            raise ArgumentError(
                f"{where} must be probabilities, none negative, and all numbers; at index "
                f"{int(np.argmin(known >= 0))} it is {known[np.argmin(known >= 0)]:g}."
            )
        if not abs(known.sum() - 1) < OFF_ONE:
            raise ArgumentError(
                f"{where} must sum to one, since only laws of the same mass have a coupling; it sums to "
                f"{known.sum():.6g}. Divide it by its sum, if that is what it means."
            )
    return law / law.sum()
