"""SMC²: parameters of a state-space model, each with a particle filter of its own."""
