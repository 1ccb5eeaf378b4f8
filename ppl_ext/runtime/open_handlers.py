"""Handlers that are open around a compiled call: a cached compilation would ignore them, or keep them for
good.
"""

from numpyro.primitives import _PYRO_STACK

from ppl_ext.errors import HandlerError


def refuse_open_handlers(what: str, but: type | tuple[type, ...] = ()) -> None:
    """Raise an error that names them.

    :param what: the call, as the user wrote it.
    :param but: handlers that are part of the call itself.
    :raises HandlerError: if any other is open.
    """
    if handlers := [type(h).__name__ for h in _PYRO_STACK if not isinstance(h, but)]:
        raise HandlerError(
            f"{what} is compiled, and NumPyro handlers are open around the call ({', '.join(handlers)}): a "
            "cached compilation would ignore them. Wrap the model or guide instead, for example "
            "numpyro.handlers.scale(model, scale=2.0)."
        )
