"""S2A: fine-tunes vision backbones in a fraction of the memory.

``attach`` puts a method on a timm model, ``detach`` takes it off; ``save`` and ``load`` keep what was trained,
``save_pretrained`` and ``from_pretrained`` with all that is needed to use it; ``export`` writes files that run without
this library; ``saved_bytes`` measures what the backward pass holds, ``simulated_peak`` what a whole training step
needs, ``fits`` how large a batch a memory budget has room for.
"""

from s2a.activations import quantize_activations
from s2a.adapted import Adapted, cast_frozen, trainable_parameters
from s2a.attach import attach, detach, merge
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, StateMismatch, UnsupportedModel
from s2a.exporting import ExportReport, export
from s2a.fitting import Fit, fits
from s2a.lean import LeanOptions, register_lean_forward
from s2a.memory import Peak, SavedBytes, Theory, saved_bytes, simulated_peak, theoretical_memory
from s2a.multitask import MultiTask, Task
from s2a.paged_model import page_frozen, unpage_frozen
from s2a.paging import host_bytes
from s2a.planning import Plan, plan_memory
from s2a.pretrained import backbone_of, from_pretrained, push_to_hub, save_pretrained
from s2a.registry import Method, list_methods, method_config, register_method
from s2a.s2a_method import S2AConfig
from s2a.state import load, save

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Card",
    "ExportReport",
    "Fit",
    "LeanOptions",
    "Method",
    "MultiTask",
    "Peak",
    "Plan",
    "Recipe",
    "S2AConfig",
    "S2AError",
    "SavedBytes",
    "StateMismatch",
    "Style",
    "Task",
    "Theory",
    "UnsupportedModel",
    "attach",
    "backbone_of",
    "cast_frozen",
    "detach",
    "export",
    "fits",
    "from_pretrained",
    "host_bytes",
    "list_methods",
    "load",
    "merge",
    "method_config",
    "page_frozen",
    "plan_memory",
    "push_to_hub",
    "quantize_activations",
    "register_lean_forward",
    "register_method",
    "save",
    "save_pretrained",
    "saved_bytes",
    "simulated_peak",
    "theoretical_memory",
    "trainable_parameters",
    "unpage_frozen",
]
