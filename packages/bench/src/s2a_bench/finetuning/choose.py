"""What a fine-tuning trains with where the user leaves it open: backbone, image size, epochs, batch, plan of memory."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2a_bench.cells import recipes
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.finetuning.default_backbones import Say, find_backbones
from s2a_bench.finetuning.prepare import PreparedData
from s2a_bench.finetuning.remembered import Remembered
from s2a_bench.finetuning.request import FinetuneRequest
from s2a_bench.sweeps import settings as settings_door

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
            cell, budget, notes = _fit_memory(request, cell, data, remembered)
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
    config = DataConfig(
        "own", data.name, str(data.root), evaluate="select", augment=request.augment, mirror=request.mirror
    )
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
    request: FinetuneRequest, cell: CellConfig, data: PreparedData, remembered: Remembered
) -> tuple[CellConfig, str | None, tuple[str, ...]]:
    """The cell with the batch and the plan of memory that fit; the budget in words; sentences about it."""
    if request.memory_budget is None and not cell.device.startswith("cuda"):
        return cell, None, ()
    # What is free on a card differs from run to run: the same command goes on with what it chose first.
    key = remembered.key("fit", cell, data.manifest.data_id, request.memory_budget or "free")
    if (known := remembered.get(key)) is None:
        budget, words = memory_limit(request, cell.device)
        from s2a_bench.cells.fits import choose

        batch, options = choose(cell, budget, len(data.manifest.classes))
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
