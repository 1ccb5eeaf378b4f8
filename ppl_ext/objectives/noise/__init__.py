"""Models known up to a constant, learned by comparison with noise."""

__all__: list[str] = []
