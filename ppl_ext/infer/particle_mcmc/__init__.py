"""Markov chain Monte Carlo with particles inside, for models with a ``scan``."""
