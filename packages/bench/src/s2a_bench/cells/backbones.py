"""Backbones of the bench: the embedded mini ones and every timm model, with a checkpoint that has an identity.

Where a backbone's blocks are is ``s2a.backbones``' business; here it is only built, with real weights from a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s2a
import timm
import torch
from s2a import weights
from timm.data.config import resolve_model_data_config
from torch import nn

from s2a_bench.assets import data_file
from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import BackboneConfig
from s2a_bench.errors import InputError, unknown
from s2a_bench.failures import out_of_memory


def build_mini(name: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """A mini backbone with random weights.

    Args:
        name: Key of ``MINI_BACKBONES``.
        num_classes: Of its classifier.
        **kwargs: Passed to timm, over the table's.
    """
    spec = MINI_BACKBONES[name]
    overlay = {
        "input_size": (3, spec.image_size, spec.image_size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": "bicubic",
        "architecture": name,
    }
    arguments = {**spec.kwargs, **kwargs}
    model: Any = timm.create_model(
        spec.architecture, num_classes=num_classes, pretrained_cfg_overlay=overlay, **arguments
    )
    model.built_as = (spec.architecture, arguments)  # for s2a.export: timm does not know it by its own name
    return model


@dataclasses.dataclass(frozen=True)
class DataFormat:
    """What a checkpoint expects of its images; recorded in every cell.

    Attributes:
        size: Side in pixels.
        mean: Per channel, in [0, 1].
        std: Per channel, in [0, 1].
        interpolation: Of resizing.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@functools.lru_cache(maxsize=64)
def _sha256(path: str, modified: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hub_id(name: str) -> str:
    """The hub's repository of the weights that timm has for ``name``.

    Raises:
        InputError: timm knows none.
    """
    config = timm.get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    if config is None or not repository:
        raise InputError(f"timm has no weights for {name!r}; pass --weights FILE, or --random-weights.")
    if repository.endswith("/"):
        repository += f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    return str(repository)


def _hub_file(name: str) -> Path:
    """The checkpoint that timm would take for ``name``, from the hub's cache or the hub.

    Raises:
        InputError: timm knows no weights, or they are neither here nor reachable.
    """
    from s2a.pretrained.fetch import Unreachable, download

    repository = _hub_id(name)
    try:
        return download(repository, "model.safetensors")
    except Unreachable as error:
        raise InputError(
            f"The weights of {name!r} ({repository}) are not on this machine and cannot be had from the hub "
            f"({error}); pass --weights FILE for a local file, or --random-weights."
        ) from error


def weights_file(config: BackboneConfig) -> Path | None:
    """The file (or folder, or index of a file in parts) that a backbone's weights come from; ``None``: random weights.

    Raises:
        InputError: Unknown backbone, no such file, or weights that cannot be had.
    """
    if config.name not in MINI_BACKBONES and not timm.is_model(config.name):
        raise unknown("backbone", config.name, [*MINI_BACKBONES, *timm.list_models()])
    if config.random_weights:
        if config.weights:
            raise InputError("--weights and --random-weights exclude each other; give one.")
        return None
    if config.weights:
        path = Path(config.weights)
        if not path.exists():
            raise InputError(
                f"No weights file at {path}; pass an existing .safetensors or .pth file, or a folder with "
                "model.safetensors, to --weights."
            )
        return path
    if config.name in MINI_BACKBONES:
        path = data_file(f"backbones/{config.name}.safetensors")
        if not path.is_file():
            raise InputError(
                f"The embedded weights of {config.name} are missing ({path}); "
                f"make them with: s2a-bench pretrain --backbone {config.name}."
            )
        return path
    return _hub_file(config.name)


def checkpoint_id(config: BackboneConfig) -> str:
    """Identity of a backbone's weights: hash of the file's content, or ``random`` (drawn from the cell's seed).

    Where several files decide (parts, the config beside weights in Hugging Face's layout): the hash of their hashes.
    """
    path = weights_file(config)
    if path is None:
        return "random"
    ids = []
    with _as_input_error():
        files = weights.source_files(path)
    for file in files:
        ids.append(_sha256_of(file)[:16])
    return ids[0] if len(ids) == 1 else hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]


def describe(config: BackboneConfig) -> dict[str, Any]:
    """What ``s2a.save_pretrained`` takes as ``backbone=``: name, arguments, and where the weights come from.

    Weights of a user's file have no hub id: they need not be the hub's. A file in several parts has no hash.

    Raises:
        InputError: As ``weights_file``.
    """
    path = weights_file(config)
    found: dict[str, Any] = {"name": config.name, "args": _arguments(config), "weights": None}
    if path is not None:
        with _as_input_error():
            files = weights.weight_files(path)
        digest = _sha256_of(files[0]) if len(files) == 1 else None
        found["weights"] = {"hub": None, "revision": None, "file": path.name, "sha256": digest}
        if not config.weights and config.name not in MINI_BACKBONES:
            found["weights"] |= {"hub": _hub_id(config.name), "revision": path.parent.name}
    return found


def _sha256_of(file: Path) -> str:
    """Hash of a file's content, read again only when the file has changed."""
    stat = file.stat()
    return _sha256(str(file.resolve()), stat.st_mtime_ns, stat.st_size)


def create(config: BackboneConfig, seed: int = 0, drop_path: float = 0.0) -> tuple[nn.Module, DataFormat]:
    """A backbone with its weights, and what it expects of images.

    Args:
        config: Which one.
        seed: Of random weights and of whatever the file does not hold.
        drop_path: Stochastic depth rate.

    Raises:
        InputError: As ``weights_file``; a file that does not fit the architecture; a backbone that does not fit
            into memory.
    """
    path = weights_file(config)
    try:
        return _create(config, path, seed, drop_path)
    except Exception as error:
        if not out_of_memory(error):
            raise
        sized = f" at {config.image_size} pixels" if config.image_size else ""
        raise InputError(
            f"Backbone {config.name}{sized} does not fit into memory; give a smaller backbone"
            f"{' or a smaller --image-size' if sized else ''}."
        ) from error


def _create(config: BackboneConfig, path: Path | None, seed: int, drop_path: float) -> tuple[nn.Module, DataFormat]:
    torch.manual_seed(seed)
    kwargs: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    kwargs |= _arguments(config)
    if config.name in MINI_BACKBONES:
        model = build_mini(config.name, 10, **kwargs)
        if path is not None:
            with _as_input_error():
                weights.load_file(model, path, config.name)
    elif path is None:
        model = timm.create_model(config.name, **kwargs)
    else:
        with _as_input_error():
            model = weights.create_with_weights(config.name, path, **kwargs)
    resolved = resolve_model_data_config(model)
    size = config.image_size or int(resolved["input_size"][-1])
    mean, std = tuple(resolved["mean"]), tuple(resolved["std"])
    return model, DataFormat(size, mean, std, str(resolved["interpolation"]))


@functools.lru_cache(maxsize=64)
def width(name: str) -> int | None:
    """Channels of a timm model's last stage, told from its structure alone; ``None`` if timm does not know it."""
    if not timm.is_model(name):
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False)
        return int(model.num_features)


def _arguments(config: BackboneConfig) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that decide the function."""
    return {"img_size": config.image_size} if config.image_size and _takes_image_size(config.name) else {}


def _takes_image_size(name: str) -> bool:
    architecture = MINI_BACKBONES[name].architecture if name in MINI_BACKBONES else name
    return any(part in architecture for part in ("vit", "swin", "deit", "eva", "beit"))


@contextlib.contextmanager
def _as_input_error() -> Iterator[None]:
    """What is wrong with a weights file is bad input of a command."""
    try:
        yield
    except s2a.S2AError as error:
        raise InputError(str(error)) from error
