"""Stochastic gradient Markov chain Monte Carlo: kernels, minibatches, noise and step sizes."""
