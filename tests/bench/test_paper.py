"""The paper's Tables 1 and 2, reproduced by rule: counts, theoretical memory, and the page of method cards."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import s2a
import torch
from s2a_bench.cells.backbones import create
from s2a_bench.cli import methods as cards
from s2a_bench.config import BackboneConfig
from s2a_bench.experiments import memory_tables as paper
from s2a_bench.experiments.memory_tables import PAPER_ROWS, PaperRow

PRESETS = {(row.backbone, row.method, json.dumps(dict(row.options))): row for row in reversed(PAPER_ROWS)}
"""Table 2 repeats Table 1's S2A rows: each preset once, with the row that also has a percentage."""

TIGHT, LOOSE = 0.01, 0.03
"""Relative. The issue of each figure's last digit is the paper's rounding."""


@functools.lru_cache(maxsize=1)  # Rows of one backbone follow each other; drawing its weights takes longest.
def backbone_of(name: str) -> tuple[Any, int]:
    """A backbone with random weights, not to be changed, and the side of its images."""
    model, expected = create(BackboneConfig(name, random_weights=True))
    return model, expected.size


def name_of(row: PaperRow) -> str:
    return f"{row.backbone.split('_')[0]}-{row.row}"


@pytest.mark.parametrize(
    "row",
    # The fast ring: every row on the ViT, and S2A's on the others.
    [
        pytest.param(
            row, id=name_of(row), marks=[] if name_of(row)[:3] == "vit" or row.row == "S2A" else pytest.mark.full
        )
        for row in PRESETS.values()
    ],
)
def test_a_row_of_the_paper_is_reproduced(row: PaperRow) -> None:
    plain, size = backbone_of(row.backbone)
    model: Any = copy.deepcopy(plain)
    backbone = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head."))
    if row.backbone == "convnext_base":  # Its final norm is inside of what timm calls the head.
        backbone += 2 * 1024
    adapted = s2a.attach(model, s2a.method_config(row.method, **row.options), 100, image_size=size)
    theory = s2a.theoretical_memory(adapted, 32).total / 1e6
    assert theory == pytest.approx(row.memory_mb, rel=LOOSE)
    if row.params_percent is not None and (row.backbone, row.method) != ("convnext_base", "linear"):
        trainable = sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
        tolerance = TIGHT if row.method in ("lora", "adapter", "vpt") else LOOSE
        assert 100 * trainable / backbone == pytest.approx(row.params_percent, rel=tolerance)


def test_every_figure_of_the_tables_has_a_row() -> None:
    assert len([row for row in PAPER_ROWS if row.table == 1]) == 19
    assert len({(row.backbone, row.method, row.memory_mb) for row in PAPER_ROWS}) == 22
    assert {row.method for row in PAPER_ROWS} <= set(s2a.list_methods())


def test_unipts_honest_figure_is_below_s2as() -> None:
    """Nothing of a backbone without gradient is kept: the paper's UniPT rows count its activation inputs anyway."""
    model, expected = create(BackboneConfig("vit_base_patch16_224", random_weights=True))
    adapted = s2a.attach(model, s2a.method_config("unipt"), 100, image_size=expected.size)
    theory = s2a.theoretical_memory(adapted, 32)
    assert theory.rules["R9"] == 32 * 12 * 197 * 3072 * 4  # every GELU's input
    assert theory.honest == theory.total - theory.rules["R9"] < 640e6
    kept = s2a.saved_bytes(adapted.train(), torch.randn(1, 3, expected.size, expected.size))
    assert not [name for name in kept if name.startswith("backbone")]


def test_small_batches_extend_to_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line through batches 1 and 2 meets what is measured at 5."""
    row = PaperRow(1, "Adapter", "mini_vit", "adapter", {}, None, 0.0)
    monkeypatch.setattr(paper, "PAPER_ROWS", (row,))
    (found,) = paper.measure_paper_rows(batch_size=5)
    model, expected = create(BackboneConfig("mini_vit", random_weights=True))
    adapted = s2a.attach(model, s2a.method_config("adapter"), 100, image_size=expected.size).train()
    images = torch.randn(5, 3, expected.size, expected.size)
    assert found["saved_mb"] * 1e6 == pytest.approx(s2a.saved_bytes(adapted, images).total, abs=1)


# Cards


@pytest.mark.parametrize("method", s2a.list_methods())
def test_every_method_has_a_card(method: str) -> None:
    text = cards.card(method)
    values = dict(text.rows)
    assert {"Trains", "Place", "Evidence", "Learning rate", "Searched", "Options"} <= values.keys()
    assert all(value.strip() and not value.endswith(" ") for value in values.values())


def test_the_page_of_cards_is_the_codes() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    shipped = [name for name in s2a.list_methods() if _ours(name)]
    assert page.read_text(encoding="utf-8") == cards.page(cards.card(name) for name in shipped)


def _ours(name: str) -> bool:
    from s2a.registry import get_entry

    module: Any = get_entry(name).method.__module__
    return module.split(".")[0] in ("s2a", "s2a_baselines")
