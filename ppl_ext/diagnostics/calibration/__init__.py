"""Simulation-based calibration: data simulated from the prior, ranks of the truths, and whether they are
uniform.
"""
