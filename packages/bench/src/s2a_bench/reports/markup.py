"""HTML and SVG from Python, escaped by construction."""

from __future__ import annotations

import html
from typing import Any


class Markup(str):
    """Text that is already markup. Every other ``str`` that meets ``element`` is escaped."""

    __slots__ = ()


def element(tag: str, /, *children: str, **attributes: Any) -> Markup:
    """One element; plain strings among children and attribute values are escaped.

    Args:
        tag: Its name.
        children: Text, or ``Markup`` from this function.
        attributes: ``class_`` gives ``class``, ``stroke_width`` gives ``stroke-width``; ``None`` and ``False`` leave
            the attribute out, ``True`` gives a bare one.
    """
    parts = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(_text(value))}"')
    head = " ".join(parts)
    if tag in _VOID:
        return Markup(f"<{head}>")
    return Markup(f"<{head}>{join(children)}</{tag}>")


def join(children: Any, between: str = "") -> Markup:
    """Children side by side, escaped where they are plain text."""
    return Markup(between.join(c if isinstance(c, Markup) else html.escape(c, quote=False) for c in children))


_VOID = frozenset({"meta", "br", "hr", "img", "input"})


def _text(value: Any) -> str:
    if isinstance(value, float):
        # Fixed digits: the same picture gives the same bytes.
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
