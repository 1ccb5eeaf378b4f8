"""Variational inference on a stream, in a window that slides along."""
