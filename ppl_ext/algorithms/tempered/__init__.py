"""Particles along a path of densities, from one that is drawn from to one that is wanted: the engine of
:class:`~ppl_ext.algorithms.TemperedSMC`.
"""
