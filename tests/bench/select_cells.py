"""A small cell whose epoch is chosen on the validation images."""

from __future__ import annotations

from typing import Any

from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig

RECIPE = TrainConfig(epochs=4, warmup_epochs=1, batch_size=8, drop_path=0.2, lr=1e-2)


def cell(evaluate: Any = "select", method="bias", recipe=RECIPE, **options) -> CellConfig:
    """Stochastic depth draws from torch's generator, the order of the images from the loop's own."""
    return CellConfig(
        DataConfig(dataset="digits", limit_train=24, limit_test=30, evaluate=evaluate),
        BackboneConfig(),
        MethodConfig(method, options),
        recipe,
        threads=1,
    )
