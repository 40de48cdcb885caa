"""Build hook: puts the repository's embedded backbones into what is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EmbedData(BuildHookInterface):
    """Adds ``data/backbones``; a wheel made from a source archive finds them in the package already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        source = Path(self.root).parents[1] / "data" / "backbones"
        inside = {"wheel": "s2a_bench", "sdist": "src/s2a_bench"}[self.target_name]
        if version != "editable" and source.is_dir():
            build_data["force_include"][str(source)] = f"{inside}/_data/backbones"
