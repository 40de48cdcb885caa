"""What the bench reads from the methods' cards; torch is imported when a card is first asked for, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2a.card import Card


def card(method: str) -> Card:
    """The card of a method; one of defaults if the method is not installed here or has no card."""
    from s2a.registry import get_card

    return get_card(method)


def table_position(method: str) -> tuple[int, str]:
    """Sort key of a method in tables: its card's order, then its name."""
    return (card(method).order, method)


def default_methods() -> tuple[str, ...]:
    """What a sweep compares when no method is named, in the order of tables."""
    from s2a.registry import list_methods

    names = (name for name in list_methods() if card(name).compared_by_default)
    return tuple(sorted(names, key=table_position))
