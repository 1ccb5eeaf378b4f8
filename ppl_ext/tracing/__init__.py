"""What is read of JAX: traced programs, which elements depend on which, and handlers inside of scans, jits
and vmaps.
"""
