"""Finds bad input before torch is imported: names, options, values and paths, all mistakes together."""
