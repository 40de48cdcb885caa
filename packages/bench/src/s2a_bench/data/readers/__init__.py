"""Readers of datasets in the formats that their makers publish and other tools export."""
