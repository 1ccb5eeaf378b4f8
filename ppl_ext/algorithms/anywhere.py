"""Values for sites that cannot be drawn, in a run that only looks for sites."""

import jax.numpy as jnp
from numpyro.distributions import (
    ExpandedDistribution,
    ImproperUniform,
    Independent,
    MaskedDistribution,
    biject_to,
)
from numpyro.primitives import Messenger


class Anywhere(Messenger):
    """Sites that cannot be drawn get some value, while it is found out which sites there are."""

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None:
            law = msg["fn"]
            while isinstance(law, Independent | ExpandedDistribution | MaskedDistribution):
                law = law.base_dist
            if isinstance(law, ImproperUniform):
                transform, shape = biject_to(msg["fn"].support), msg["fn"].shape()
                msg["value"] = transform(jnp.zeros(transform.inverse_shape(shape)))
