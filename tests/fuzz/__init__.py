"""Malformed calls of the public surface, by part; ``tests/test_fuzz.py`` makes them."""
