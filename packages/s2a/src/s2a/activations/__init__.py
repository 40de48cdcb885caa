"""The paper's activation half (section 3.2): what the backward pass keeps, and in how many bits."""

from s2a.activations.quantize import quantize_activations, release_frozen_inputs

__all__ = ["quantize_activations", "release_frozen_inputs"]
