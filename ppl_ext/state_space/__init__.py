"""NumPyro models with a ``scan`` as state-space models: one step at a time, filtered, resampled, summed or
integrated exactly.
"""
