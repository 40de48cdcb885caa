"""Generates a miniature source of every dataset in its makers' format: from a seed, offline, with made-up images."""
