"""Sites inside of a ``jax.jit`` of the program: its trace would be kept, so it is left away."""

from collections.abc import Callable
from typing import Any

import jax

from ppl_ext.errors import ModelError, ProgramError
from ppl_ext.tracing.jaxprs import get_opaque_trace_state


class InsideError(ModelError):
    """A site is sampled inside a transformation of JAX within its program."""


# Part of the key of every cache of traces: a jitted function that was traced elsewhere, its sites under other
# handlers, is traced anew.
_here = jax.make_user_context(default_value=False)


def past_inner_jits(run: Callable[[], Any], again: bool = True, checked: bool = True) -> Any:
    """What ``run()`` returns. If a site of it lies inside a ``jax.jit``, it runs again (if it may) with every
    such ``jit`` left away.

    JAX then unrolls the program's ``jax.lax`` loops too; those of NumPyro and our own stay (:func:`rolled`).

    :param checked: every site met here is checked by :func:`ppl_ext.tracing.vmapped_sites.sent_out`, so that
        no trace with a site in it is ever kept.
    """
    with _here(checked):
        try:
            return run()
        except (InsideError, ProgramError, jax.errors.UnexpectedTracerError) as error:
            other = isinstance(error, ProgramError) and not isinstance(
                error.__cause__, jax.errors.UnexpectedTracerError
            )
            if other or not again or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
                raise
        with jax.disable_jit():
            return run()


def rolled(loop: Callable, body: Callable, *args, **kwargs) -> Any:
    """``loop(body, ...)`` as a loop even where ``jit`` is left away, as it goes on to be in the body."""
    disabled = jax.config.jax_disable_jit  # type: ignore[attr-defined]

    def as_outside(*args):
        with jax.disable_jit(disabled):
            return body(*args)

    with jax.disable_jit(False):
        return loop(as_outside, *args, **kwargs)


trace_state = get_opaque_trace_state
