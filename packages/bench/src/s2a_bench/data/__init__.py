"""Datasets: table, download, preparation, loading."""
