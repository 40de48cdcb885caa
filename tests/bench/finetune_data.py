"""What the tests of fine-tuning share: a folder of tiny images, and an installation that has the mini backbones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from bench.own_folders import picture

CLASSES = ("<script>alert(1)<", "light's & dark", "mid")
"""Names that break pages, shells and tables which take them as they are."""


def write_classes(folder: Path, per_class: int = 13, classes: tuple[str, ...] = CLASSES) -> Path:
    """``<folder>/<class>/<n>.png``: brightness tells the class, up to noise."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            picture(label / max(1, len(classes) - 1), 100 * label + i).save(folder / name / f"{i}.png")
    return folder


def register_mini_backbones(folder: Path) -> None:
    """Makes sure that ``s2a.from_pretrained`` finds the mini backbones where s2a-bench was installed without them."""
    if "mini_vit" in entry_points(group="s2a.backbones").names:
        return
    info = folder / "s2a_mini_backbones-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: s2a-mini-backbones\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[s2a.backbones]\nmini_vit = s2a_bench.cells.embedded:mini_vit\n")
    sys.path.append(str(folder))


def write_results(cell: str, status: str = "done") -> Callable[[Path], None]:
    """Fills a folder as ``results.install`` asks for it, with results that only name the cell."""

    def fill(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text(cell)
        (folder / "report.html").write_text(cell)
        (folder / "metrics.json").write_text(json.dumps({"cell_id": cell, "status": status}))

    return fill
