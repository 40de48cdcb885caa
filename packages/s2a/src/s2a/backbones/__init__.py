"""Backbones: the table of families, the view of a model that a method is given, and undoable edits."""

from s2a.backbones.calls import (
    BlockRun,
    Pass,
    in_checkpoint,
    new_pass,
    refuse_cut_gradients,
    run_block,
    running,
    separate_passes,
    state_of,
)
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
    "BlockRun",
    "Edits",
    "Layout",
    "Pass",
    "Shape",
    "called",
    "channel_axis",
    "classifier_name",
    "describe",
    "evaluating",
    "family_of",
    "in_checkpoint",
    "input_channels",
    "new_pass",
    "pooled_features",
    "reads_class_token",
    "refuse_cut_gradients",
    "run_block",
    "running",
    "separate_passes",
    "split_tokens",
    "state_of",
]
