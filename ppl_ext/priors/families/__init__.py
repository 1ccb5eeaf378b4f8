"""Families of priors: what is tuned, and the law that it gives."""
