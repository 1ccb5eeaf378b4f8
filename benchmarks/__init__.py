"""Side by side with peers: one process, the same inputs, compile and run apart, printed as ratios."""
