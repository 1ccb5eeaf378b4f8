"""Couplings: joint laws whose margins are given, each a conditional distribution that a model can sample."""

from ppl_ext.transport.light_bridge import LightSB, light_sb
from ppl_ext.transport.minimum_entropy import DiscreteCoupling, minimum_entropy_coupling

__all__ = ["DiscreteCoupling", "LightSB", "light_sb", "minimum_entropy_coupling"]
