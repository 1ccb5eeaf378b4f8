"""Stochastic variational inference: one compiled run, its steps, its checks, and when it stops."""
