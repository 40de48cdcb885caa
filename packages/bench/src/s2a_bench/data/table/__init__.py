"""The table of datasets."""
