"""The model card, ``README.md``: front matter as Hugging Face reads it, then what a person wants to know."""

from __future__ import annotations

from typing import Any


def make_card(config: dict[str, Any]) -> str:
    """The text of a config's model card."""
    return f"# {config['method']} on {config['backbone']['name']}\n"
