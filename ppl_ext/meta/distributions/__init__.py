"""Laws of what episodes share, and of a new episode."""
