"""Names of backbones: the mini ones from their table, timm's from the text of its source, without importing it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import BackboneConfig
from s2a_bench.errors import InputError, unknown

_MODEL = re.compile(r"^@register_model\b[^\n]*\ndef (\w+)\(", re.MULTILINE)
_OLD_NAMES = re.compile(r"^register_model_deprecations\(__name__, (\{.*?\})\)", re.MULTILINE | re.DOTALL)
_WEIGHTS = re.compile(r"['\"](\w+)\.(\w+)['\"]")


@dataclasses.dataclass(frozen=True)
class TimmNames:
    """timm's models by the text of its source.

    Attributes:
        models: Names of the architectures.
        old: Former names, which timm still takes.
        weights: Tags of pretrained weights by architecture, where they are written out.
        text: The whole source, for tags that are put together elsewhere.
    """

    models: frozenset[str]
    old: frozenset[str]
    weights: dict[str, frozenset[str]]
    text: str = dataclasses.field(repr=False)


@functools.cache
def timm_names() -> TimmNames | None:
    """The names; ``None`` where timm's source cannot be read."""
    spec = find_spec("timm")
    folders = list((spec.submodule_search_locations if spec else None) or ())
    text = "\n".join(
        path.read_text(encoding="utf-8") for folder in folders for path in sorted(Path(folder, "models").glob("*.py"))
    )
    models = frozenset(_MODEL.findall(text))
    if not models:
        return None
    old: set[str] = set()
    for table in _OLD_NAMES.findall(text):
        old |= ast.literal_eval(table).keys()
    weights: dict[str, set[str]] = {}
    for name, tag in _WEIGHTS.findall(text):
        if name in models:
            weights.setdefault(name, set()).add(tag)
    return TimmNames(models, frozenset(old), {name: frozenset(tags) for name, tags in weights.items()}, text)


def check_backbone(config: BackboneConfig) -> None:
    """Checks a backbone's name, and the tag of its weights where timm's are taken.

    What cannot be told from timm's source is left to ``cells.backbones``.

    Raises:
        InputError: There is no such backbone, or timm has no such weights for it.
    """
    if config.name in MINI_BACKBONES or (known := timm_names()) is None:
        return
    model, _, tag = config.name.partition(".")
    if model not in known.models and model not in known.old:
        timm = sys.modules.get("timm")  # A model of the running program's own is only in timm's registry.
        if timm is None or not timm.is_model(config.name):
            raise unknown("backbone", config.name, [*MINI_BACKBONES, *known.models])
        return
    own_weights = config.random_weights or config.weights
    tags = known.weights.get(model)
    if tag and tags and not own_weights and tag not in tags and not re.search(rf"\b{re.escape(tag)}\b", known.text):
        raise unknown(f"weights of {model}", tag, tags)


def check_weights(config: BackboneConfig) -> None:
    """Checks where a backbone's weights come from.

    Raises:
        InputError: No such file, or a file and random weights at the same time.
    """
    if config.weights and config.random_weights:
        raise InputError("--weights and --random-weights exclude each other; give one.")
    if config.weights and not Path(config.weights).exists():
        raise InputError(
            f"No weights file at {config.weights}; pass an existing .safetensors or .pth file, or a folder with "
            "model.safetensors, to --weights."
        )
