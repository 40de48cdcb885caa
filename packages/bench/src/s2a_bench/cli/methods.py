"""The methods' cards as text: for the terminal, and as the page docs/methods.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from s2a.card import Recipe
from s2a.registry import get_entry

_LABELS = {
    "trains": "Trains",
    "place": "Place",
    "count": "Trainable values, without the head",
    "keeps": "Keeps for the backward pass",
    "inference": "At inference",
    "source": "Source",
    "evidence": "Evidence",
    "deviations": "Deviations",
}


@dataclasses.dataclass(frozen=True)
class CardText:
    """One method's card.

    Attributes:
        name: Registered name.
        title: Name in the literature.
        rows: Label and text.
    """

    name: str
    title: str
    rows: tuple[tuple[str, str], ...]


def card(name: str) -> CardText:
    """The card of a registered method, its options last.

    Raises:
        S2AError: An unknown method.
    """
    entry = get_entry(name)
    found = getattr(entry.method, "card", None)
    if found is None:
        return CardText(name, name, (("", "This method's package gives it no card."),))
    rows = [(label, getattr(found, key)) for key, label in _LABELS.items()]
    rows += [("Learning rate", f"{found.recipe.learning_rate:g}"), ("Searched", _searched(found.recipe))]
    options = ", ".join(f"{f.name}={getattr(entry.config(), f.name)!r}" for f in dataclasses.fields(entry.config))
    return CardText(name, found.title, (*rows, ("Options", options or "none")))


def _searched(recipe: Recipe) -> str:
    """What a search tries of the method's own."""
    text = "learning rates " + ", ".join(f"{rate:g}" for rate in recipe.searched_rates)
    if recipe.searched_option is None:
        return text
    option, values = recipe.searched_option
    return f"{text}; {option} {' or '.join(map(repr, values))}"


def page(cards: Iterable[CardText]) -> str:
    """The page of all cards, Markdown."""
    lines = [
        "# Methods",
        "",
        "Made by `s2a-bench methods --markdown` from the cards in the code; a test keeps the two equal. N: tokens or",
        "positions, C: channels, r: rank. *Fitted*: the S2A paper does not state the configuration; this one was found",
        "by matching its tables. *Weak*: it matches them only in part.",
    ]
    for text in cards:
        lines += ["", f"## `{text.name}`: {text.title}", "", "| | |", "|---|---|"]
        lines += [f"| {label} | {_escaped(value)} |" for label, value in text.rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
