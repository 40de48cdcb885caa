"""Numerics: codes, levels and the operators that pack and unpack them, on every device."""
