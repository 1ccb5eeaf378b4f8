"""Couplings: joint laws whose margins are given, each a conditional distribution that a model can sample;
and laws that tell the margins of any of their variables.
"""

from ppl_ext.transport.consistency import marginalization
from ppl_ext.transport.light_bridge import LightSB
from ppl_ext.transport.light_model import light_sb
from ppl_ext.transport.marginalization import Marginalization
from ppl_ext.transport.minimum_entropy import DiscreteCoupling, minimum_entropy_coupling

__all__ = [
    "DiscreteCoupling",
    "LightSB",
    "Marginalization",
    "light_sb",
    "marginalization",
    "minimum_entropy_coupling",
]
