"""Streams of episodes: batches, ragged ones, arriving ones, and arguments that are no arrays."""
