"""State that an objective carries from one step to the next: :func:`carried`."""

from typing import Any

from ppl_ext.run import current_run


def carried(name: str, init: Any) -> dict[str, Any]:
    """State that an objective carries from one step to the next, through the mutable state of NumPyro's ``SVI``.

    It returns a dict, as ``numpyro.mutable`` does: what the objective writes into it is what the next step reads. An unbiased estimate may
    depend on the state of the steps before, and must not depend on what this step's own draws make of it.

    :param name: its name among the mutable state; no parameter may have the same.
    :param init: what it starts from: a dict of arrays, or a function that returns one and may sample.
    :raises ArgumentError: if nobody started the state: see :meth:`ppl_ext.expectation.Objective.carried_by`.
    :raises HandlerError: outside an objective, or inside :func:`replicate`.

    >>> import jax, numpyro, optax, jax.numpy as jnp, numpyro.distributions as dist, ppl_ext
    >>> @ppl_ext.objective
    ... def Counted(model, guide):
    ...     count = carried("count", {"steps": jnp.zeros(())})
    ...     count["steps"] += 1.0
    ...     return -simulate(guide).log_density
    >>> from ppl_ext import simulate
    >>> program = lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))
    >>> result = ppl_ext.infer.fit(jax.random.key(0), program, program, Counted(), optax.sgd(0.1), 5, progress_bar=False)
    >>> float(result.params["count"]["steps"][0])
    5.0
    """
    return current_run().carry(name, init)
