"""Rows of a plate with unequal probabilities."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from ppl_ext.densities.distributions import log_prob
from ppl_ext.densities.recording import listed
from ppl_ext.errors import ArgumentTypeError, ModelError
from ppl_ext.handlers.cells import cells_of_rows
from ppl_ext.handlers.handler import Handler
from ppl_ext.runtime.arguments import check_program, described
from ppl_ext.tracing.scan_bodies import run_in_scan_body


class subsample(Handler):
    r"""A model whose subsampled plate takes rows with unequal probabilities, by scores of theirs.

    .. math:: p_i = \frac{\mathrm{mix}}{n} + (1 - \mathrm{mix}) \frac{s_i}{\sum_j s_j}, \qquad
        \hat\ell = \sum_{i \in S} \frac{1}{m p_i} \log p(y_i \mid z)

    Whoever takes rows keeps taking them uniformly, but of a longer plate: row i stands in it
    :math:`k_i = \lceil 4 n p_i \rceil` times, as cells that each weigh :math:`1 / k_i` of its log density.
    So the estimate is unbiased whoever draws, with replacement (NumPyro's ``HMCECS``, with a proxy or
    without) or not (``SVI``, ``fit``, ``SGLD``), and the sum over all cells is the log likelihood. Rounding
    takes off a probability at most a fifth of it; ``probabilities`` are those that hold.

    Outside, the plate is called ``<plate>_cells``: under that name a chain keeps its indices and
    :func:`~ppl_ext.simulate` returns them. Who asks for all of it, as diagnostics and a proxy's sums do, gets
    the rows themselves, each once. For draws of new data use the model without the handler.

    Rows must be drawn anew again and again. One draw that is kept (a coreset) leaves its error in the
    posterior, many standard deviations of it when n/m is large; NUTS, which would keep one, refuses.

    :param program: the model.
    :param plate: the name of a plate with ``subsample_size=m``, whose data go through ``numpyro.subsample``
        or are indexed by what the plate gives.
    :param scores: (n,), at least 0: :func:`ppl_ext.designs.leverage`, :func:`ppl_ext.designs.lewis`,
        :func:`ppl_ext.designs.gradient_scores`, or your own.
    :param mix: how much of a uniform draw is mixed in, in [0, 1]. It bounds weights by 5/(4 mix) of uniform
        ones.
    :raises ArgumentTypeError: for scores that are no array of numbers.
    :raises ArgumentError: for a mix outside [0, 1], scores that are negative, not finite or all zero, or a
        mix of 0 with a score of 0.
    :raises ModelError: when run, if the plate is not there, is not subsampled, has not as many rows as there
        are scores, holds a latent site, or lies in or around another subsampled plate.

    >>> import numpyro, ppl_ext
    >>> def model(y):
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("rows", 3, subsample_size=1):
    ...         numpyro.sample("y", dist.Normal(z, 1.0), obs=numpyro.subsample(y, event_dim=0))
    >>> y = jnp.array([0.0, 1.0, 5.0])
    >>> uneven = subsample(model, "rows", [1.0, 1.0, 2.0], mix=0.0)
    >>> uneven.probabilities.tolist()
    [0.25, 0.25, 0.5]
    >>> def at(cell):
    ...     return ppl_ext.log_density(uneven, {"z": 0.0, "rows_cells": jnp.array([cell])}, y).total
    >>> exact = dist.Normal(0.0, 1.0).log_prob(jnp.array([0.0, *y])).sum()
    >>> round(float(sum(at(cell) for cell in range(4)) / 4 - exact), 4)  # the mean over all draws
    0.0

    Source: Woodruff and Yasuda 2023, "Sharper bounds for ℓp sensitivity sampling", for the scores; Dang,
    Quiroz, Kohn, Tran, Villani 2019, "Hamiltonian Monte Carlo with energy conserving subsampling".
    """

    plate: str = eqx.field(static=True)
    rows: np.ndarray
    counts: np.ndarray

    def __init__(self, program: Any, plate: str, scores: Any, mix: float = 0.1):
        check_program("subsample: program", program)
        if not isinstance(plate, str):
            raise ArgumentTypeError(f"subsample: plate must be the name of a plate, got {described(plate)}.")
        self.program, self.plate = program, plate
        self.counts = cells_of_rows(f"subsample '{plate}'", scores, mix)
        self.rows = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)

    # arrays have no hash, and those who compile keep programs by theirs
    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def probabilities(self) -> jax.Array:
        """The probability (n,) of each row to be a draw."""
        return jnp.asarray(self.counts / len(self.rows), float)

    def messenger(self) -> Messenger:
        return _Cells(self.plate, self.rows, self.counts)

    def __call__(self, *args, **kwargs):
        messenger = self.messenger()
        with messenger:
            output = self.program(*args, **kwargs)
        if not messenger.met:
            raise ModelError(
                f"subsample: the model has no plate '{self.plate}'. There are: {listed(messenger.plates)}."
            )
        return output


class _Cells(Messenger):
    """Outside the plate is one of cells, inside one of rows."""

    def __init__(self, plate: str, rows: Any, counts: Any):
        super().__init__()
        self.plate, self.rows, self.counts = plate, rows, counts
        self.plates: dict[str, None] = {}  # those met, and which of them are subsampled
        self.subsampled: set[str] = set()
        self.met: dict | None = None
        self.weights: jax.Array | None = None  # of the rows taken; without, all of them are

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: _NotHere(self.plate))
        elif msg["type"] == "plate":
            self._plate(msg)
        elif held := [f for f in msg.get("cond_indep_stack", ()) if f.name == self.plate]:
            frames = msg["cond_indep_stack"]
            others = sorted({f.name for f in frames} & self.subsampled)
            if others:
                raise ModelError(
                    f"subsample: site '{msg['name']}' lies in plate '{self.plate}' and in plate "
                    f"'{others[0]}', which is subsampled too. Leave the subsample_size of one of them away."
                )
            # scopes inside have the same list
            frames[:] = [f._replace(name=self._outside) if f.name == self.plate else f for f in frames]
            if msg["type"] == "sample":
                self._weigh(msg, held[0].dim)

    @property
    def _outside(self) -> str:
        return f"{self.plate}_cells"

    def _plate(self, msg) -> None:
        name, (size, taken) = msg["name"], msg["args"]
        self.plates[name] = None
        if name != self.plate:
            if taken not in (None, size):
                self.subsampled.add(name)
            return
        if self.met is not None:
            raise ModelError(
                f"subsample: plate '{name}' is made twice, and which rows it takes is not one thing. Make it "
                f"once, rows = numpyro.plate('{name}', ...), and enter that."
            )
        if taken in (None, size):
            raise ModelError(
                f"subsample: plate '{name}' of {size} rows is not subsampled. Give it "
                f"subsample_size=... below {size}."
            )
        if size != len(self.counts):
            raise ModelError(
                f"subsample: plate '{name}' has {size} rows, and there are {len(self.counts)} scores. Give "
                "one score a row."
            )
        self.met = msg
        msg["name"], msg["args"] = self._outside, (len(self.rows), taken)

    def postprocess_message(self, msg):
        if self.met is None or msg is not self.met:
            return
        size, cells = len(self.counts), msg["value"]
        msg["name"] = self.plate
        if len(cells) == len(self.rows):
            # known numbers, so that they index NumPy's arrays too
            with jax.ensure_compile_time_eval():
                msg["args"], msg["value"] = (size, size), jnp.arange(size)
            return
        msg["args"], msg["value"] = (size, len(cells)), jnp.asarray(self.rows)[cells]
        self.weights = 1.0 / jnp.asarray(self.counts, float)[msg["value"]]

    def _weigh(self, msg, dim: int) -> None:
        if not msg["is_observed"]:
            raise ModelError(
                f"subsample: site '{msg['name']}' in plate '{self.plate}' has no data. If it is latent, sum "
                "it out or leave the handler away: a guide would draw it for cells and not for rows. For "
                "draws of new data use the model without the handler."
            )
        if self.weights is None:
            return
        weights = self.weights.reshape(self.weights.shape + (1,) * (-dim - 1))
        law = msg["fn"]
        is_factor = isinstance(law, dist.Unit)
        msg["fn"] = dist.Unit(weights * law.log_factor) if is_factor else _Weighted(law, weights)
        longer = len(self.rows) / len(self.counts)
        msg["scale"] = longer if msg["scale"] is None else longer * msg["scale"]


class _NotHere(Messenger):
    """Refuse the plate in the body of a scan or a branch."""

    def __init__(self, plate: str):
        super().__init__()
        self.plate = plate

    def process_message(self, msg):
        if msg["type"] == "plate" and msg["name"] == self.plate:
            raise ModelError(
                f"subsample: plate '{self.plate}' is in a scan or cond, where each step would take rows of "
                "its own. Move the plate out of it, or leave the handler away."
            )


class _Weighted(Distribution):
    """A law whose log density is multiplied by weights of its elements: those who read a law and no scale, as
    a proxy does, meet them too.
    """

    arg_constraints: dict = {}
    pytree_data_fields = ("base_dist", "weights")

    def __init__(self, base_dist: Distribution, weights: jax.Array, *, validate_args=None):
        self.base_dist, self.weights = base_dist, weights
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @property
    def support(self):
        return self.base_dist.support

    def sample(self, key, sample_shape=()):
        return self.base_dist.sample(key, sample_shape)

    def log_prob(self, value):
        return self.weights * log_prob(self.base_dist, value)
