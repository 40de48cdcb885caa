"""Measures the memory of every row of the paper's Tables 1 and 2.

Source: Structure-Activation Synergy, arXiv:2503.08154, Tables 1 and 2. Memory is the paper's *theoretical* figure, MB
of 1e6 bytes, fp32, batch 32, 224 x 224. All percentages belong to a 100-class head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import s2a
import torch
from s2a.memory import tensors_without_data

from s2a_bench.cells.measure import MB, blank, memory

_VIT, _SWIN, _CONVNEXT = "vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base"


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One printed row.

    Attributes:
        table: 1 or 2.
        row: The row's name in the paper.
        backbone: timm name.
        method: Registered name here.
        options: Of the method's config, the preset that reproduces the row.
        params_percent: As printed; ``None`` where the table has no such column.
        memory_mb: As printed.
    """

    table: int
    row: str
    backbone: str
    method: str
    options: Mapping[str, Any]
    params_percent: float | None
    memory_mb: float


_EXACT = {"activations": "exact"}

PAPER_ROWS: tuple[PaperRow, ...] = (
    PaperRow(1, "Full", _VIT, "full", {}, 100, 4099),
    PaperRow(1, "Linear", _VIT, "linear", {}, 0.09, 344),
    PaperRow(1, "LoRA", _VIT, "lora", {}, 2.15, 2242),
    PaperRow(1, "Adapter", _VIT, "adapter", {}, 4.24, 2583),
    PaperRow(1, "VPT", _VIT, "vpt", {}, 0.63, 2453),
    PaperRow(1, "UniPT", _VIT, "unipt", {}, 2.96, 1472),
    PaperRow(1, "S2A", _VIT, "s2a", {}, 0.90, 640),
    PaperRow(1, "Full", _SWIN, "full", {}, 100, 6390),
    PaperRow(1, "Linear", _SWIN, "linear", {}, 0.12, 353),
    PaperRow(1, "Adapter", _SWIN, "adapter", {}, 2.15, 3228),
    PaperRow(1, "VPT", _SWIN, "vpt", {}, 0.79, 3952),
    PaperRow(1, "UniPT", _SWIN, "unipt", {}, 1.47, 2068),
    PaperRow(1, "S2A", _SWIN, "s2a", {}, 1.03, 745),
    PaperRow(1, "Full", _CONVNEXT, "full", {}, 100, 7171),
    PaperRow(1, "Linear", _CONVNEXT, "linear", {}, 0.11, 350),
    PaperRow(1, "Adapter", _CONVNEXT, "adapter", {}, 2.0, 3743),
    PaperRow(1, "VPT", _CONVNEXT, "vpt", {}, 1.28, 3265),
    PaperRow(1, "UniPT", _CONVNEXT, "unipt", {}, 1.63, 2783),
    PaperRow(1, "S2A", _CONVNEXT, "s2a", {}, 0.98, 741),
    PaperRow(2, "Unquantised", _VIT, "s2a", _EXACT, None, 2097),
    PaperRow(2, "Softmax&GELU", _VIT, "s2a", {}, None, 640),
    PaperRow(2, "Unquantised", _SWIN, "s2a", _EXACT, None, 2672),
    PaperRow(2, "Softmax&GELU", _SWIN, "s2a", {}, None, 745),
    PaperRow(2, "Unquantised", _CONVNEXT, "s2a", _EXACT, None, 2832),
    PaperRow(2, "GELU", _CONVNEXT, "s2a", {}, None, 741),
)


def measure_paper_rows(batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """Every row of Tables 1 and 2 whose method is registered, measured here, next to the printed figures.

    On tensors without data: nothing of the models' size is allocated.

    Yields:
        The fields of ``measure.memory_row`` and ``table``, ``row``, ``paper_params_percent``, ``paper_mb``, and
        ``honest_mb``: the theoretical figure without rule R9.
    """
    known = set(s2a.list_methods())
    cache: dict[tuple[str, str, tuple[tuple[str, Any], ...]], dict[str, Any]] = {}
    for row in PAPER_ROWS:
        if row.method not in known:
            continue
        key = (row.backbone, row.method, tuple(sorted(row.options.items())))
        if key not in cache:
            cache[key] = _measure_row(row, batch_size)
        yield {
            "table": row.table,
            "row": row.row,
            **cache[key],
            "paper_params_percent": row.params_percent,
            "paper_mb": row.memory_mb,
        }


def _measure_row(row: PaperRow, batch_size: int) -> dict[str, Any]:
    with tensors_without_data():
        adapted, side = blank(row.backbone, row.method, row.options, without_data=True)
        found = memory(adapted, torch.empty(batch_size, 3, side, side))
        honest = s2a.theoretical_memory(adapted, batch_size).honest
    names = {"backbone": row.backbone, "method": row.method, "batch_size": batch_size}
    return {**names, **found, "honest_mb": honest / MB}
