"""Finite sites summed out for reports: terms of each observation, and one-step-ahead terms of chains."""
