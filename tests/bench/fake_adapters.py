"""Folders that look like adapters to whoever reads only what they say of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def fake_adapter(folder: Path, *, name: str = "vit", id: str = "0" * 16, method: str = "s2a", **changes: Any) -> str:
    """Writes a folder of a backbone, and returns its path."""
    facts = {"method": method, "num_classes": 2, "labels": ["ant", "bee"], "image": None}
    config = json.dumps({**facts, "backbone": {"name": name, "id": id}, **changes})
    return raw_adapter(folder, config.encode())


def raw_adapter(folder: Path, config: bytes) -> str:
    """Writes a folder with any bytes as its config, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(b"state")
    return str(folder)
