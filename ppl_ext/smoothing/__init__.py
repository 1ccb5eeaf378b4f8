"""Smoothing of state-space models."""
