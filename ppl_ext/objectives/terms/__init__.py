"""Parts that several objectives share: divergences in closed form, path gradients, many draws at once,
weights.
"""
