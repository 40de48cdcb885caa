"""Weights of a timm model from a file or a folder, in timm's layout, Google's ``.npz`` or Hugging Face's.

Nothing in a file is run.
"""

from s2a.weights.files import read_weights, weight_files
from s2a.weights.loading import create_with_weights, load_file, source_files

__all__ = ["create_with_weights", "load_file", "read_weights", "source_files", "weight_files"]
