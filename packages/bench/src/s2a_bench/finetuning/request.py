"""What a fine-tuning is asked for, as given, and everything that can be wrong with it before data are looked at."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from s2a_bench.cells.outputs import check_no_sweep
from s2a_bench.config import BackboneConfig
from s2a_bench.data.folder import MANIFEST
from s2a_bench.errors import InputError, Mistakes, is_input_error
from s2a_bench.sweeps.checks.backbones import check_backbone, check_weights
from s2a_bench.sweeps.checks.devices import check_device_name
from s2a_bench.sweeps.checks.methods import method_table
from s2a_bench.sweeps.checks.options import check_output
from s2a_bench.sweeps.checks.request import check_labels, check_settings
from s2a_bench.sweeps.request import Request

PREPARATION = (
    *("val", "test", "group_column", "path_column", "label_column", "split_column"),
    *("near_duplicates", "skip_unreadable"),
)
"""Arguments that say how images are prepared, the seed aside."""


@dataclasses.dataclass(frozen=True)
class FinetuneRequest:
    """The arguments of ``s2a_bench.finetune``; see there.

    Attributes:
        data: Folder, table, archive or prepared folder; or the name of a dataset prepared under ``data_dir``.
        output: Absolute path of the output folder.
        backbone: timm or mini backbone; ``None``: chosen for the device.
        method: ``name`` or ``name:key=value,key=value``.
        memory_budget: ``"8GiB"``, for a whole training step; ``None``: the card's free memory, or on a CPU no limit.
        epochs: Passes over the training images; ``None``: by their number.
        batch_size: Images per step; ``None``: by the number of training images and the budget.
        seed: Of the splits, the new parameters and the order of the images.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:0"``.
        weights: Local weights file for the backbone.
        image_size: Side in pixels; ``None``: 224, or less where the checkpoint's own is smaller.
        lr: Peak learning rate; ``"find"``: a range test on the training images; ``None``: the recipe's.
        augment: See ``DataConfig.augment``.
        mirror: Whether training images are mirrored at random.
        balance: Weight the classes of the loss by their inverse frequency.
        patience: Stop after so many epochs without a better validation accuracy; 0: never.
        val: Share of the images drawn for validation, where the data name none.
        test: Share drawn for the final test; 0: none.
        group_column: Column of a table whose rows of one value stay in one split.
        path_column: Column of a table with the images' paths.
        label_column: Column of a table with the labels.
        split_column: Column of a table with the splits.
        near_duplicates: Keep near-duplicates in one split.
        skip_unreadable: Leave images out that cannot be read, instead of refusing them.
        settings: ``train.KEY=VALUE`` and ``method.KEY=VALUE`` texts.
        data_dir: Root of prepared datasets.
        tracking_uri: MLflow store; ``None``: ``<output>/mlflow.db``.
        checkpoint_every: Seconds between checkpoints; 0: after every epoch, as long as that takes 5 % of the time.
    """

    data: str
    output: Path
    backbone: str | None = None
    method: str = "s2a"
    memory_budget: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    weights: str | None = None
    image_size: int | None = None
    lr: float | Literal["find"] | None = None
    augment: str = "default"
    mirror: bool = True
    balance: bool = False
    patience: int = 0
    val: float = 0.1
    test: float = 0.1
    group_column: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    near_duplicates: bool = True
    skip_unreadable: bool = False
    settings: tuple[str, ...] = ()
    data_dir: str | None = None
    tracking_uri: str | None = None
    checkpoint_every: float = 0.0


def check_request(mistakes: Mistakes, request: FinetuneRequest) -> None:
    """Checks names, options, values, paths and the device. Nothing is written, and no image is opened.

    Args:
        mistakes: Where what is wrong is added.
        request: The request.
    """
    for check in (_check_data, _check_place, _check_backbone, _check_fractions, _check_numbers, _check_device):
        try:
            check(mistakes, request)
        except ValueError as error:
            if not is_input_error(error):
                raise
            mistakes.add(error)
    table = method_table()
    check_labels(mistakes, [request.method], table)
    settings = Request(suite="own", settings=request.settings, epochs=request.epochs, batch_size=request.batch_size)
    check_settings(mistakes, settings, [request.method.partition(":")[0]], table)
    if request.memory_budget is not None:
        from s2a.lean.options import parse_size

        with mistakes.collecting():
            parse_size(request.memory_budget, "--memory-budget")
    if request.tracking_uri is not None:
        from s2a_bench.tracking.store import check_installed, check_uri

        with mistakes.collecting():
            check_uri(request.tracking_uri, request.output)
            check_installed()
    if not mistakes:  # what is right in itself may still have no effect
        _check_no_effect(mistakes, request)


def _check_data(mistakes: Mistakes, request: FinetuneRequest) -> None:
    find_source(request)
    if request.data_dir is not None and not Path(request.data_dir).is_dir():
        mistakes.add(InputError(f"--data-dir {request.data_dir} is no folder; give an existing one."))


def is_prepared(source: Path) -> bool:
    """Whether a folder is a standard folder, with lists and manifest, as ``s2a-bench data prepare`` makes it."""
    return (source / MANIFEST).is_file() and (source / "train.txt").is_file()


def _check_no_effect(mistakes: Mistakes, request: FinetuneRequest) -> None:
    source = find_source(request)
    if not is_prepared(source):
        return
    defaults = FinetuneRequest(request.data, request.output)
    given = [name for name in PREPARATION if getattr(request, name) != getattr(defaults, name)]
    if given:
        flags = ", ".join(f"--{'no-' * (name == 'near_duplicates')}{name.replace('_', '-')}" for name in given)
        mistakes.add(
            InputError(
                f"{flags}: {source} is prepared, and its lists stay as they are; leave that out, or give the images "
                "themselves."
            )
        )


def find_source(request: FinetuneRequest) -> Path:
    """Where the data lie.

    Raises:
        InputError: Nowhere.
    """
    try:
        path = Path(request.data).absolute()
        if request.data and path.exists():
            return path
        if request.data and request.data_dir is not None and Path(request.data).name == request.data:
            prepared = Path(request.data_dir).absolute() / request.data
            if prepared.is_dir():
                return prepared
    except OSError:  # a name that no file system takes
        pass
    except ValueError:  # a null byte in it
        pass
    under = f", nor a dataset prepared under {request.data_dir}" if request.data_dir is not None else ""
    raise InputError(
        f"There is no file or folder {request.data!r}{under}; give a folder of images with one folder for each class, "
        "a table of paths and labels, or the name of a dataset prepared under --data-dir."
    )


def _check_place(mistakes: Mistakes, request: FinetuneRequest) -> None:
    check_output(request.output)
    check_no_sweep(request.output)
    if not request.checkpoint_every >= 0:
        mistakes.add(
            InputError(f"--checkpoint-every {request.checkpoint_every:g} must be a number of seconds, or inf.")
        )


def _check_backbone(mistakes: Mistakes, request: FinetuneRequest) -> None:
    if request.backbone is not None:
        with mistakes.collecting():
            check_backbone(BackboneConfig(request.backbone, request.weights))
    with mistakes.collecting():
        check_weights(BackboneConfig(weights=request.weights))
    if request.image_size is not None and request.image_size < 1:
        mistakes.add(InputError(f"--image-size {request.image_size} is too small; it must be at least 1."))


def _check_fractions(mistakes: Mistakes, request: FinetuneRequest) -> None:
    if request.val == 0:
        mistakes.add(
            InputError("--val 0 leaves no validation images, by which the best epoch is chosen; give 0.1, for example.")
        )
    for name in ("val", "test"):
        share = getattr(request, name)
        if not 0 <= share < 1:
            mistakes.add(InputError(f"--{name} {share:g} is no share of the images; give a number from 0 to below 1."))
    if 0 <= request.val < 1 and 0 <= request.test < 1 and request.val + request.test >= 1:
        mistakes.add(
            InputError(
                f"--val {request.val:g} and --test {request.test:g} leave no training images; give smaller shares."
            )
        )


def _check_numbers(mistakes: Mistakes, request: FinetuneRequest) -> None:
    if request.seed < 0:
        mistakes.add(InputError(f"--seed {request.seed} must be an integer of 0 or above."))
    if request.patience < 0:
        mistakes.add(InputError(f"--patience {request.patience} must be a number of epochs, or 0 to train to the end."))
    if isinstance(request.lr, str) and request.lr != "find":
        mistakes.add(InputError(f"--lr {request.lr!r} is no learning rate; give a number, or find."))
    if isinstance(request.lr, float) and not (math.isfinite(request.lr) and request.lr > 0):
        mistakes.add(InputError(f"--lr {request.lr:g} is no learning rate; give a number above 0, or find."))


def _check_device(mistakes: Mistakes, request: FinetuneRequest) -> None:
    if request.device == "auto":
        return
    check_device_name(request.device)
    if request.device == "cpu":
        return
    from s2a_bench.sweeps.resources import check_device

    check_device(request.device)
    name, _, index = request.device.partition(":")
    if name == "cuda" and index:
        import torch

        if int(index) >= (count := torch.cuda.device_count()):
            raise InputError(
                f"Device {request.device!r} is not here: torch finds {count} CUDA devices, counted from 0."
            )
