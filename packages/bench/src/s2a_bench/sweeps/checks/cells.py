"""Everything that is wrong with the cells of a sweep, where only torch and timm can tell."""

from __future__ import annotations

import json
from collections.abc import Sequence

from s2a_bench.config import BackboneConfig, CellConfig, DataConfig
from s2a_bench.errors import Mistakes


def raise_all_mistakes(cells: Sequence[CellConfig], first: ValueError) -> None:
    """Looks for what else is wrong with cells of which one was refused, and raises all of it.

    Every dataset and every backbone is looked at once, then every method on every backbone, with data that are right.

    Args:
        cells: All cells of the sweep.
        first: Why the first of them was refused.

    Raises:
        ValueError: ``first``, together with what else is wrong.
    """
    from s2a_bench.cells import backbones, run
    from s2a_bench.data import loading

    mistakes = Mistakes()
    mistakes.add(first)

    def checked_data(config: DataConfig) -> DataConfig:
        loading.check(config)
        return config

    def checked_backbone(config: BackboneConfig) -> BackboneConfig:
        backbones.checkpoint_id(config)
        return config

    good_data = {*mistakes.each(checked_data, dict.fromkeys(cell.data for cell in cells))}
    good_backbones = {*mistakes.each(checked_backbone, dict.fromkeys(cell.backbone for cell in cells))}
    one_of_each: dict[str, CellConfig] = {}
    for cell in cells:
        if cell.backbone in good_backbones and cell.data in good_data:
            options = json.dumps(dict(cell.method.options), sort_keys=True, default=repr)
            pair = f"{cell.backbone} {cell.method.name} {options} {cell.train.number_format}"
            one_of_each.setdefault(pair, cell)
    mistakes.each(run.identify, one_of_each.values())
    mistakes.raise_all()
