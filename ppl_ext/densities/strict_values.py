"""Densities that know their support, whatever NumPyro's validation is set to."""

import copy
import warnings

import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from ppl_ext.tracing.scan_bodies import run_in_scan_body


class StrictValues(Messenger):
    """Give values outside of a site's support the log density minus infinity.

    NumPyro does so while its validation is on, which checks what laws are built with too, and raises there
    without the site's name. With it off, an ``Exponential`` has a finite log density at -1.

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro.handlers import trace
    >>> with numpyro.validation_enabled(False), trace() as record, StrictValues():
    ...     _ = numpyro.sample("y", dist.Exponential(1.0), obs=-1.0)
    ...     print(float(record["y"]["fn"].log_prob(-1.0)), float(dist.Exponential(1.0).log_prob(-1.0)))
    -inf 1.0
    """

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            run_in_scan_body(self, msg, lambda _: StrictValues())
        elif msg["type"] == "sample" and isinstance(msg["fn"], Distribution):
            msg["fn"] = _strict(msg["fn"])


def _strict(fn: Distribution) -> Distribution:
    given, fn = fn, copy.copy(fn)

    def unwarned(value):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPyro's does not name the site
            # NumPyro compares by NumPy what is NumPy's, which traced bounds are not
            return given._validate_sample(jnp.asarray(value))

    fn._validate_args, fn._validate_sample = True, unwarned
    if isinstance(base := vars(fn).get("base_dist"), Distribution):
        fn.base_dist = _strict(base)
    return fn
