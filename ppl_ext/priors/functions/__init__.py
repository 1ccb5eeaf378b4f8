"""Fits read in function space."""
