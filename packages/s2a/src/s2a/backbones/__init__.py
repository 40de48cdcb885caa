"""Backbones: the table of families, the view of a model that a method is given, and undoable edits."""

from s2a.backbones.edits import Edits
from s2a.backbones.families import FAMILIES, Layout, family_of
from s2a.backbones.view import (
    Backbone,
    Block,
    Shape,
    called,
    channel_axis,
    classifier_name,
    describe,
    evaluating,
    input_channels,
    pooled_features,
    reads_class_token,
    split_tokens,
)

__all__ = [
    "FAMILIES",
    "Backbone",
    "Block",
    "Edits",
    "Layout",
    "Shape",
    "called",
    "channel_axis",
    "classifier_name",
    "describe",
    "evaluating",
    "family_of",
    "input_channels",
    "pooled_features",
    "reads_class_token",
    "split_tokens",
]
