"""Matching a prior's functions with a target's: the steps, the problem that they solve, and what they
return.
"""
