"""Posteriors that are known by long runs of NUTS, of the kinds that posteriordb has: see
``benchmarks/posteriors.py``.
"""
