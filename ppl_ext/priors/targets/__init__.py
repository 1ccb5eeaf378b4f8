"""What functions a prior shall produce: processes, models, and both under linear operators."""
