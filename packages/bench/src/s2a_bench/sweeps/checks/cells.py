"""Whatever is wrong with the cells of a sweep, where only torch and timm can tell: all of it, each thing once."""

from __future__ import annotations

import json
from collections.abc import Iterable

from s2a_bench.config import CellConfig, DataConfig
from s2a_bench.errors import InputError, Mistakes, is_input_error


def identify_all(cells: Iterable[CellConfig]) -> dict[str, CellConfig]:
    """Cells by their id, each once.

    After a mistake the cells that share its cause (data, backbone, or a method on a backbone) are passed over: a file
    that has to be fetched is not tried again for every cell.

    Raises:
        ValueError: Cells that cannot run: one sentence for each mistake.
    """
    from s2a_bench.cells.identity import data_opened_once

    with data_opened_once():
        return _identify(list(cells))


def _identify(cells: list[CellConfig]) -> dict[str, CellConfig]:
    from s2a_bench.cells import backbones, run

    mistakes = Mistakes()
    found: dict[str, CellConfig] = {}
    bad_data, bad_backbones, bad_pairs, seen_backbones = set(), set(), set(), set()
    for cell in cells:
        pair = _pair(cell)
        if cell.data in bad_data or cell.backbone in bad_backbones or pair in bad_pairs:
            continue
        try:
            found.setdefault(run.identify(cell), cell)
        except ValueError as error:
            if not is_input_error(error):
                raise
            mistakes.add(error)
            if _data_refused(cell.data):
                bad_data.add(cell.data)
                continue
            # The library refuses methods; of backbones and their files it is the bench that speaks.
            if isinstance(error, InputError):
                bad_backbones.add(cell.backbone)
            else:
                bad_pairs.add(pair)
        seen_backbones.add(cell.backbone)
    if mistakes:  # no cell with good data came to these
        unseen = dict.fromkeys(cell.backbone for cell in cells if cell.backbone not in seen_backbones)
        mistakes.each(backbones.checkpoint_id, unseen)
    mistakes.raise_all()
    return found


def _pair(cell: CellConfig) -> str:
    """A method on a backbone, as far as it decides whether the one takes the other."""
    options = json.dumps(dict(cell.method.options), sort_keys=True, default=repr)
    return f"{cell.backbone} {cell.method.name} {options} {cell.train.number_format}"


def _data_refused(config: DataConfig) -> bool:
    from s2a_bench.data import loading

    mistakes = Mistakes()
    with mistakes.collecting():
        loading.check_data(config)
    return bool(mistakes)
