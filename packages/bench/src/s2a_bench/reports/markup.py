"""HTML and SVG from Python, escaped by construction."""

from __future__ import annotations

import html
from collections.abc import Sequence
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


def make_table(head: Sequence[Markup], body: Sequence[Markup], sortable: bool = False) -> Markup:
    """A table that scrolls sideways; its first column stays.

    Args:
        head: Headings.
        body: Rows.
        sortable: Whether the page's script gives its headings buttons.
    """
    rows = [element("thead", element("tr", *head)), element("tbody", *body)]
    table = element("table", *rows, class_="sortable" if sortable and len(body) > 1 else None)
    # Focusable, so that the keyboard can scroll it too.
    return element("div", table, class_="wide", tabindex="0")


_VOID = frozenset({"meta", "br", "hr", "img", "input"})


def _text(value: Any) -> str:
    if isinstance(value, float):
        # Fixed digits: the same picture gives the same bytes.
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
