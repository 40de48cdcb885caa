"""Many cells: which are missing, and where they run."""
