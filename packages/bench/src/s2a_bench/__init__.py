"""S2A Bench: the corridor from a cell's config to its record, and the doors on it (Ray, MLflow, report)."""
