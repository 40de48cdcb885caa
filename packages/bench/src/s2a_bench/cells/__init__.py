"""One cell, from its config to its record."""
