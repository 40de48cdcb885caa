"""The backbone of a fine-tuning: the one that was named, or a good one for the device whose weights can be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import BackboneConfig
from s2a_bench.errors import InputError
from s2a_bench.finetuning.request import FinetuneRequest

Say = Callable[[str, str], None]
"""Receives a sentence and its level: ``info``, ``warning``."""

DEFAULT_BACKBONES = {
    "cuda": ("vit_base_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
    "cpu": ("vit_small_patch14_dinov2.lvd142m",),
}
"""By kind of device, the preferred one first; others are tried where its step does not fit the memory. DINOv2 (Oquab et
al., 2023, Apache 2.0): features that transfer well, also from few images."""

OFFLINE_BACKBONE = "mini_vit"
"""Embedded: always here."""

IMAGE_SIZE = 224
"""Side in pixels; checkpoints of 384 or 518 cost three to six times as much for a little more accuracy."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone whose weights are here.

    Attributes:
        config: For the cell.
        weights: Where its weights come from, in words.
        note: A sentence for the results, where it is not the one that would be best.
    """

    config: BackboneConfig
    weights: str
    note: str = ""


def find_backbones(request: FinetuneRequest, device: str, say: Say) -> list[Backbone]:
    """The backbones to try, the preferred one first; one that was named is the only one.

    Args:
        request: The request.
        device: torch device.
        say: Told when weights are fetched.

    Raises:
        InputError: A backbone that was named cannot be had, or weights are of no known architecture.
    """
    from s2a_bench.cells.backbones import weights_file

    if request.backbone is not None or request.weights is not None:
        name = request.backbone or _architecture_of(Path(request.weights or ""))
        if name not in MINI_BACKBONES and request.weights is None:
            say(f"Getting the weights of {name}, from the cache or the Hugging Face hub.", "info")
        config = BackboneConfig(name, request.weights, image_size=image_size(name, request.image_size))
        try:
            weights_file(config)
        except InputError as error:
            if request.weights is not None or name in MINI_BACKBONES:
                raise
            reason = str(error).partition(";")[0]
            raise InputError(f"{reason}; give --weights FILE for a local file, or another --backbone.") from error
        return [Backbone(config, _weights_words(config))]
    found = []
    names = DEFAULT_BACKBONES["cuda" if device.startswith("cuda") else "cpu"]
    say(f"Getting the weights of {names[0]}, from the cache or the Hugging Face hub.", "info")
    for name in names:
        config = BackboneConfig(name, image_size=image_size(name, request.image_size))
        try:
            weights_file(config)
        except InputError:
            continue
        found.append(Backbone(config, _weights_words(config)))
    if found:
        return found
    config = BackboneConfig(OFFLINE_BACKBONE, image_size=image_size(OFFLINE_BACKBONE, request.image_size))
    note = (
        f"The weights of {names[0]} are not on this machine and the Hugging Face hub cannot be reached: the small "
        f"embedded {OFFLINE_BACKBONE} (32 pixels) takes its place, which recognises much less. Run the command "
        "again with a connection, or give --backbone NAME --weights FILE."
    )
    return [Backbone(config, _weights_words(config), note)]


def _architecture_of(weights: Path) -> str:
    """The backbone that a weights file is named after.

    Raises:
        InputError: After none.
    """
    import timm

    model, *endings = weights.name.split(".")
    if model in MINI_BACKBONES:
        return model
    if timm.is_model(model):
        tagged = f"{model}.{endings[0]}" if endings else model
        return tagged if timm.is_model_pretrained(tagged) else model
    raise InputError(f"--weights {weights} does not say which backbone it is for; give --backbone NAME too.")


def image_size(name: str, asked: int | None) -> int | None:
    """Side of a backbone's images; ``None``: the checkpoint's own.

    224 where the checkpoint was trained on larger ones and its model takes other sizes: plain ViTs and convolutional
    networks. Windows of others are tied to their size.
    """
    if asked is not None or name in MINI_BACKBONES:
        return asked
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return IMAGE_SIZE
    plain = name.startswith(("vit_", "deit", "eva", "beit")) or not config.fixed_input_size
    return IMAGE_SIZE if plain and config.input_size[-1] > IMAGE_SIZE else None


def _weights_words(config: BackboneConfig) -> str:
    if config.weights:
        return f"of file {config.weights}"
    return "embedded in s2a-bench" if config.name in MINI_BACKBONES else "of the Hugging Face hub, as timm names them"
