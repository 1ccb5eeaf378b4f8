"""Tempered sequential Monte Carlo of a whole model, with a report."""
