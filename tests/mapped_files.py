"""Weights files that a model's tensors are mapped from, small models for them, and what tests ask of both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
VIT: tuple[str, dict[str, Any]] = "vit_tiny_patch16_224", {"depth": 1, "img_size": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": VIT,
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (2, 1, 1, 1), "embed_dim": 24, "img_size": 64, "window_size": 4},
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1)}),
    "resnet": ("resnet10t", {}),
    "eva": ("eva02_tiny_patch14_224", {"depth": 1, "img_size": 56}),
    "cait": ("cait_xxs24_224", {"depth": 1, "img_size": 32}),
}


def make(name: str, arguments: dict[str, Any], seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, **arguments, **more)


def write(state: dict[str, Tensor], path: Path, begin: int = 0) -> Path:
    """A safetensors file whose first tensor begins at ``begin`` modulo 64, which the length of the header decides."""
    note, off = "", 0
    for _ in range(2):
        safetensors.torch.save_file(state, path, metadata={"note": note})
        with path.open("rb") as file:
            off = (begin - 8 - int.from_bytes(file.read(8), "little")) % 64
        note = "x" * off
    assert off == 0
    return path


def write_as(name: str, state: dict[str, Tensor], folder: Path) -> Path:
    """A file in the format that its name says."""
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def mappings(path: Path) -> list[range]:
    """Addresses of this process that are the file's."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) > 5 and line[5] == str(path)]
    assert all("s" not in line[1] for line in lines if len(line) > 5 and line[5] == str(path)), "shared with the file"
    return [range(int(first, 16), int(last, 16)) for first, last in spans]


def aligned(path: Path) -> set[str]:
    """Names of a safetensors file's tensors that begin at a multiple of 64 bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {n for n, e in header.items() if n != "__metadata__" and (8 + length + e["data_offsets"][0]) % 64 == 0}


def mapped(model: nn.Module, path: Path) -> set[str]:
    """Names of the model's tensors whose memory is the file's."""
    places = mappings(path)
    return {name for name, value in tensors(model) if any(value.data_ptr() in place for place in places)}


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors, those that no file has included, and their order in memory are the same."""
    ours, theirs = dict(tensors(model)), dict(tensors(other))
    assert ours.keys() == theirs.keys()
    return all(
        torch.equal(ours[n], theirs[n])
        and (type(ours[n]), ours[n].dtype, ours[n].stride(), ours[n].requires_grad)
        == (type(theirs[n]), theirs[n].dtype, theirs[n].stride(), theirs[n].requires_grad)
        for n in ours
    )


def copied(path: Path, name: str, arguments: dict[str, Any]) -> Any:
    """The model with the file's weights as timm alone loads them: copied."""
    given = {"file": str(path), "custom_load": False}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given, **arguments)


def results(model: Any, images: Tensor) -> list[Tensor]:
    """Logits, and gradients of all parameters."""
    model.eval().zero_grad()
    logits = model(images)
    F.cross_entropy(logits, torch.arange(len(images))).backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
