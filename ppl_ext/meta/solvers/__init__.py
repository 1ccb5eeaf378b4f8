"""Local solvers: one episode's Gaussian, by one of several ways."""
