"""Latent capacity: what the units of an encoder say, and why some say nothing."""

__all__: list[str] = []
