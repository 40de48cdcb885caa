"""Datasets as their owners publish them: readers of original archives and of exported folders, without their tools."""
