"""What a pretraining run of a mini backbone is made of; torch-free, for the command line."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        backbone: Name in ``MINI_BACKBONES``.
        epochs: Passes over the training images.
        full_epochs: How many of them, at the end, see every patch.
        patch_drop: Fraction of patches hidden before that, in [0, 1); only for models that can.
        batch_size: Images per step.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        label_smoothing: Of the cross-entropy.
        bf16: Forward under bfloat16 autocast (weights stay fp32); about half the time where the CPU has the
            instructions.
        seed: Of weights, order and augmentation.
    """

    backbone: str = "mini_vit"
    epochs: int = 28
    full_epochs: int = 5
    patch_drop: float = 0.5
    batch_size: int = 128
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    bf16: bool = False
    seed: int = 0
