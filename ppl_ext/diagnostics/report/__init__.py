"""Reports: what a run is, its groups, its summary, and how ArviZ reads them."""
