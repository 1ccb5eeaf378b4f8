"""Log densities of programs: their terms, which sites are summed out of them, and which way an estimate of
one errs.
"""
