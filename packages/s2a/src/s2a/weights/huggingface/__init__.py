"""Weights in the layout of Hugging Face ``transformers``, brought into timm's.

A layout is recognised by the names of its tensors, with or without the model's prefix (``vit.``, ``dinov2.`` ...) and
with or without a classifier. ``layouts`` has one entry per family, ``loading`` puts the converted tensors in.
"""

from s2a.weights.huggingface.layouts import LAYOUTS, MODEL_TYPES, Layout, find_layout
from s2a.weights.huggingface.loading import configs_beside, load, model_type_beside

__all__ = ["LAYOUTS", "MODEL_TYPES", "Layout", "configs_beside", "find_layout", "load", "model_type_beside"]
