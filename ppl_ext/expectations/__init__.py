"""Expected values of programs: one run, its random choices, and one surrogate whose value and derivatives are
unbiased.
"""
