"""Miniature sources of every dataset in their makers' own formats: structurally true, made from a seed, offline."""
