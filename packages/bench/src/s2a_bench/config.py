"""What a cell is made of. Plain frozen dataclasses, resolved and checked at the edge, then only passed down.

A *cell* is one point of every table: one dataset, one backbone, one method, one recipe, one seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from s2a_bench.errors import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images a cell trains on and is scored on.

    Attributes:
        suite: Key of ``datasets.SUITES``.
        dataset: Key of ``datasets.DATASETS``; in suite ``own`` a folder's name under the root.
        root: Folder that holds prepared datasets; ``None`` for embedded ones. Not part of a cell's identity.
        evaluate: ``"test"``: train on train and val together (VTAB-1k: all 1,000), score the test set once.
            ``"val"``: train on train, score val; the test set is not opened. ``"select"``: train on train, score val
            after every epoch, keep the weights of the best one and score the test set once with them.
        limit_train: Keep this many training images (evenly spaced over the list); ``None`` keeps all.
        limit_test: The same for each list that is scored.
        augment: Random views of training images: ``"default"`` (the suite's own), ``"none"``, ``"crop"``,
            ``"resized-crop"``, ``"rand-m7-n2"``; see ``data/augment.py``.
        mirror: Whether augmentation mirrors images.
    """

    suite: str = "mini"
    dataset: str = "digits"
    root: str | None = None
    evaluate: Literal["test", "val", "select"] = "test"
    limit_train: int | None = None
    limit_test: int | None = None
    augment: str = "default"
    mirror: bool = True


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A timm model, or an embedded mini backbone.

    Attributes:
        name: timm model name or key of ``backbones.MINI_BACKBONES``.
        weights: Local ``.safetensors`` / ``.pth`` file, or a folder with ``model.safetensors``, in timm's layout or
            Hugging Face's; ``None`` takes the embedded file or timm's hub. The path is not part of a cell's identity,
            the content is (``checkpoint_id``).
        random_weights: Start from random weights; said out loud in the record.
        image_size: Side in pixels; ``None`` takes the checkpoint's own.
    """

    name: str = "mini_vit"
    weights: str | None = None
    random_weights: bool = False
    image_size: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The recipe: AdamW, linear warm-up, cosine decay (paper section 4.1).

    Attributes:
        epochs: Passes over the training images, warm-up included.
        warmup_epochs: Linear warm-up from zero.
        batch_size: Images per step; the last, smaller batch is kept.
        lr: Peak learning rate of everything but the head.
        head_lr: Peak learning rate of the head; ``None``: the same as ``lr``.
        weight_decay: AdamW's decoupled decay, on matrices only.
        label_smoothing: Of the cross-entropy.
        clip_norm: Largest gradient norm; 0 switches clipping off.
        drop_path: Stochastic depth rate of the backbone while training.
        precision: ``"fp32"``, or ``"bf16"``: forward pass and loss under autocast; weights stay as they are.
        checkpointing: Keep only every block's input and run the block again in the backward pass (timm's own).
        frozen: How frozen weights lie: ``"fp32"``, or ``"bf16"`` (with ``precision="bf16"``), on the device;
            ``"paged"``, ``"paged-bf16"``: likewise in host memory, from where layers copy them while they compute;
            where a method freezes nothing, or only small weights, nothing is done.
        patience: Stop after this many epochs without a better validation accuracy; 0: train all epochs. Needs
            ``DataConfig.evaluate="select"``.
        balance: Weight the loss of an image by the inverse frequency of its class in the training list.
    """

    epochs: int = 80
    warmup_epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    head_lr: float | None = None
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    drop_path: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    frozen: Literal["fp32", "bf16", "paged", "paged-bf16"] = dataclasses.field(
        default="fp32", metadata={"identity": "unless default"}
    )
    patience: int = dataclasses.field(default=0, metadata={"identity": "unless default"})
    balance: bool = dataclasses.field(default=False, metadata={"identity": "unless default"})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)} is too small; it must be at least 1.")
        if self.lr <= 0 or (self.head_lr is not None and self.head_lr <= 0):
            raise InputError(f"train.lr={self.lr}, train.head_lr={self.head_lr}: learning rates must be above 0.")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(
                f"train.warmup_epochs={self.warmup_epochs} does not fit train.epochs={self.epochs}; "
                "give a warm-up between 0 and the number of epochs."
            )
        for name in ("weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{name}={getattr(self, name)} is negative; it must be 0 or more.")
        for name in ("label_smoothing", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name}={getattr(self, name)} is out of range; it must be in [0, 1).")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"train.precision={self.precision!r} is unknown; choose fp32 or bf16.")
        for name in ("checkpointing", "balance"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"train.{name}={getattr(self, name)!r} is no switch; give true or false.")
        if type(self.patience) is not int or self.patience < 0:
            raise InputError(
                f"train.patience={self.patience!r} is no number of epochs; give a whole number from 1, or 0 to train "
                "all epochs."
            )
        if self.frozen not in ("fp32", "bf16", "paged", "paged-bf16"):
            raise InputError(f"train.frozen={self.frozen!r} is unknown; choose fp32, bf16, paged or paged-bf16.")
        if self.frozen_halves and self.precision != "bf16":
            raise InputError(
                f"train.frozen={self.frozen} needs train.precision=bf16: products of two number formats do not exist."
            )

    @property
    def frozen_halves(self) -> bool:
        """Whether frozen weights are bfloat16."""
        return self.frozen.endswith("bf16")

    @property
    def frozen_paged(self) -> bool:
        """Whether frozen weights lie in host memory."""
        return self.frozen.startswith("paged")

    @property
    def number_format(self) -> TrainConfig:
        """The default recipe with what of this one decides what a step keeps: batch size, formats, checkpointing."""
        kept = {key: getattr(self, key) for key in ("batch_size", "precision", "checkpointing", "frozen")}
        return TrainConfig(**kept)


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """A registered method by name, and the values that differ from its defaults."""

    name: str = "s2a"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CellConfig:
    """One cell: the whole input of ``run.run``.

    ``trial`` and ``search`` only say in the record why this cell was run; ``looks`` are epochs after which val is
    scored besides, for a search that stops trials early. They decide nothing about the result of a cell that comes to
    its end and are not part of its identity.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    method: MethodConfig = dataclasses.field(default_factory=MethodConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    seed: int = 0
    device: str = "cpu"
    threads: int = 0  # torch threads of the cell; 0 leaves torch's own choice
    trial: bool = False  # one of the runs that a search chooses from
    search: Mapping[str, Any] | None = None  # how a search came to this config, see search.Choice.summary
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.looks and self.data.evaluate != "val":
            raise InputError(
                f"looks={list(self.looks)} were asked for on {self.data.evaluate}; only val may be looked at while a "
                "cell trains, the test set is scored once."
            )
        if self.train.patience and self.data.evaluate != "select":
            raise InputError(
                f"train.patience={self.train.patience} has no effect with evaluate={self.data.evaluate}: only "
                "evaluate=select scores validation images after every epoch; leave one of the two out."
            )


def identifying(config: Any) -> dict[str, Any]:
    """A config's values, but those fields at their default that came after the first records were made.

    Such a field is marked with the metadata ``identity: unless default``: without it ids of older cells stay valid.
    ``former`` is a default that it had then, which was left out too. ``changed_with``, ``NAME=VALUE``, is another field
    and a value of it with which results under the default are others than then: there the default stays, so that older
    cells are not taken for such ones.
    """
    values = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        other, _, value = field.metadata.get("changed_with", "").partition("=")
        changed = bool(other) and getattr(config, other) == value
        former = field.metadata.get("former", field.default)
        defaults = (former,) if changed else (field.default, former)
        if field.metadata.get("identity") == "unless default" and values[field.name] in defaults:
            del values[field.name]
    return values


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A config dataclass from plain (JSON) values, strictly.

    Raises:
        InputError: A key that ``cls`` does not have, with the allowed ones.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"Unknown key {where}{key!r}; {cls.__name__} has {', '.join(fields)}.")
        nested = _NESTED.get((cls, key))
        kwargs[key] = from_dict(nested, value, f"{where}{key}.") if nested else value
    return cls(**kwargs)


_NESTED: dict[tuple[type, str], type] = {
    (CellConfig, "data"): DataConfig,
    (CellConfig, "backbone"): BackboneConfig,
    (CellConfig, "method"): MethodConfig,
    (CellConfig, "train"): TrainConfig,
}
