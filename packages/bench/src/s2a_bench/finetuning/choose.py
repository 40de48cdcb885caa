"""What a fine-tuning trains with where the user leaves it open: backbone, image size, epochs, batch, plan of memory."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s2a_bench.cells import recipes
from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.finetuning.prepare import PreparedData
from s2a_bench.finetuning.remembered import Remembered
from s2a_bench.finetuning.request import FinetuneRequest
from s2a_bench.sweeps import settings as settings_door

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

SEEN_IMAGES, FEWEST_EPOCHS, MOST_EPOCHS = 20_000, 5, 30
"""Default number of epochs: so many that about this many training images are seen, within these limits."""

FREE_SHARE = 0.9
"""Of a card's free memory that a step may take: the allocator needs the rest."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A cell to train, and what a person should know of how it was chosen.

    Attributes:
        cell: The cell.
        weights: Where the backbone's weights come from, in words.
        weights_file: That file where it is the user's, absolute.
        budget: In words; ``None``: there is none.
        notes: Sentences for the results.
    """

    cell: CellConfig
    weights: str
    weights_file: str | None = None
    budget: str | None = None
    notes: tuple[str, ...] = ()


def device_of(request: FinetuneRequest) -> str:
    """The request's device, ``auto`` resolved."""
    if request.device != "auto":
        return request.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
        f"embedded {OFFLINE_BACKBONE} (32 pixels) was trained instead, which recognises much less. Run the command "
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


def epochs_for(images: int) -> int:
    """Default number of epochs for a number of training images."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(SEEN_IMAGES / images)))


def batch_for(images: int) -> int:
    """Default batch for a number of training images: 32, but 16 or 8 where an epoch would have fewer than 8 steps."""
    return next((size for size in (32, 16) if images >= 8 * size), 8)


def choose_cell(request: FinetuneRequest, data: PreparedData, device: str, remembered: Remembered, say: Say) -> Chosen:
    """The cell of a request.

    Args:
        request: Checked.
        data: Its data.
        device: torch device.
        remembered: What earlier runs chose.
        say: Receives what a person should know meanwhile.

    Raises:
        InputError: A backbone, weights, options or a budget that do not fit, one sentence for each.
        S2AError: A method or a value that its config does not take.
    """
    refusal: ValueError | None = None
    for backbone in find_backbones(request, device, say):
        cell = _make_cell(request, data, backbone.config, device)
        try:
            cell, budget, notes = _fit_memory(request, cell, data.manifest.data_id, remembered)
        except InputError as error:  # a smaller default backbone may fit
            refusal = error
            continue
        if backbone.note:
            say(backbone.note, "warning")
            notes = (backbone.note, *notes)
        file = str(Path(request.weights).absolute()) if request.weights else None
        return Chosen(cell, backbone.weights, file, budget, notes)
    assert refusal is not None
    raise refusal


def _make_cell(request: FinetuneRequest, data: PreparedData, backbone: BackboneConfig, device: str) -> CellConfig:
    given = settings_door.parse_settings(request.settings)
    method = settings_door.parse_method(request.method)
    (method,) = settings_door.methods_with([method], given["method"])
    method = _with_lean(method)
    images = data.manifest.counts["train"]
    values = _train_values(request, given["train"], device)
    values = {"epochs": epochs_for(images), "batch_size": batch_for(images), **values}
    train = recipes.train_config("own", method.name, backbone.name, **values)
    extra: dict[str, Any] = {"augment": request.augment, "mirror": request.mirror}
    extra = {k: v for k, v in extra.items() if k in {f.name for f in dataclasses.fields(DataConfig)}}
    hints = typing.get_type_hints(DataConfig)
    for key, value in given.get("data", {}).items():
        extra[key] = settings_door.coerce(value, hints[key], f"data.{key}")
    config = DataConfig("own", data.name, str(data.root), evaluate="select", **extra)  # type: ignore[arg-type]
    return CellConfig(config, backbone, method, train, request.seed, device)


def _with_lean(method: MethodConfig) -> MethodConfig:
    """The method with lean activations, where nothing else was said of them and it has them."""
    import s2a
    from s2a.registry import get_entry

    if "activations" in method.options or not issubclass(get_entry(method.name).config, s2a.LeanOptions):
        return method
    return dataclasses.replace(method, options={**method.options, "activations": "lean"})


def _train_values(request: FinetuneRequest, given: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Overrides of the recipe from ``--set train.*`` and the flags.

    Raises:
        InputError: One key given both ways with different values.
    """
    hints = typing.get_type_hints(TrainConfig)
    values = {key: settings_door.coerce(value, hints[key], f"train.{key}") for key, value in given.items()}
    lr = request.lr if isinstance(request.lr, float) else None
    flags = {"epochs": request.epochs, "batch_size": request.batch_size, "lr": lr}
    flags |= {"patience": request.patience or None, "balance": request.balance or None}
    for key, value in flags.items():
        if value is not None and values.setdefault(key, value) != value:
            raise InputError(f"train.{key} is given twice ({value} and {values[key]}); give it once.")
    if request.lr == "find" and "lr" in values:
        raise InputError(f"--lr find and --set train.lr={values['lr']:g} exclude each other; give one of them.")
    if device.startswith("cuda") and "precision" not in values:
        import torch

        if torch.cuda.is_bf16_supported():
            values["precision"] = "bf16"
    return values


def _fit_memory(
    request: FinetuneRequest, cell: CellConfig, data_id: str, remembered: Remembered
) -> tuple[CellConfig, str | None, tuple[str, ...]]:
    """The cell with the batch and the plan of memory that fit; the budget in words; sentences about it."""
    if request.memory_budget is None and not cell.device.startswith("cuda"):
        return cell, None, ()
    # What is free on a card differs from run to run: the same command goes on with what it chose first.
    key = remembered.key("fit", cell, data_id, request.memory_budget or "free")
    if (known := remembered.get(key)) is None:
        budget, words = memory_limit(request, cell.device)
        from s2a_bench.cells.fits import choose

        batch, options = choose(cell, budget)
        known = {"batch": batch, "options": dict(options), "words": words}
        remembered.put(key, known)
    batch, options, words = known["batch"], known["options"], known["words"]
    notes: list[str] = []
    if batch != cell.train.batch_size:
        if request.batch_size is not None:
            raise InputError(
                f"--batch-size {request.batch_size} does not fit a memory budget of {words}; the largest batch that "
                f"does is {batch}."
            )
        notes.append(f"The batch is {batch} instead of {cell.train.batch_size}, so that a step fits {words}.")
    if planned := {key: value for key, value in options.items() if cell.method.options.get(key) != value}:
        named = ", ".join(f"{key}={value}" for key, value in planned.items())
        notes.append(f"Memory is planned ({named}), so that a step of {batch} images fits {words}.")
    method = dataclasses.replace(cell.method, options=options)
    train = dataclasses.replace(cell.train, batch_size=batch)
    return dataclasses.replace(cell, method=method, train=train), words, tuple(notes)


def memory_limit(request: FinetuneRequest, device: str) -> tuple[int, str]:
    """Bytes that a training step may take, and the same in words: the budget, or on a card most of what is free."""
    if request.memory_budget is not None:
        from s2a.lean.options import parse_size

        return parse_size(request.memory_budget, "--memory-budget"), request.memory_budget.strip()
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    limit = int(FREE_SHARE * free)
    return limit, f"{limit / 2**30:.1f} GiB ({FREE_SHARE:.0%} of what is free on {device})"
