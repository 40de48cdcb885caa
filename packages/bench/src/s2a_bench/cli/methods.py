"""``s2a-bench methods``: the methods' cards, for the terminal and as the page docs/methods.md."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2a_bench.cli.common import DONE, Flag, make_console, say_next
from s2a_bench.cli.steps import show_activity

if TYPE_CHECKING:
    from s2a.card import Recipe

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
class Methods:
    """What each method trains, where it sits, what it keeps, what it costs, and where it comes from.

    Attributes:
        name: One method; all if left out.
        markdown: Print the page docs/methods.md.
    """

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    markdown: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: An unknown method.
            S2AError: The same, of a method that other packages might have.
        """
        from s2a_bench.sweeps.checks.methods import method_table

        if self.name is not None:
            method_table().check_name(self.name)
        with show_activity(make_console(sys.stderr), "loading the methods"):
            import s2a
        texts = [card(found) for found in ([self.name] if self.name else s2a.list_methods())]
        if self.markdown:
            print(page(texts), end="", file=console.file)
            return DONE
        for text in texts:
            table = Table(title=f"{text.name}: {text.title}", title_justify="left", title_style="bold", box=None)
            table.show_header, table.padding = False, (0, 2, 0, 0)
            table.add_column(style="dim", max_width=18)
            table.add_column()
            for key, value in text.rows:
                table.add_row(Text(key), Text(value))
            console.print(table)
            console.print()
        name = self.name or "NAME"
        own = f"on your own images: s2a-bench finetune DIR --method {name}"
        say_next(console, f"Next: s2a-bench memory --method {name}; {own}")
        return DONE


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
    """The card of a registered method, its options last, without older names of others.

    Raises:
        S2AError: An unknown method.
    """
    from s2a.lean.options import is_older_name
    from s2a.registry import get_entry, presets_of

    entry = get_entry(name)
    found = getattr(entry.method, "card", None)
    if found is None:
        return CardText(name, name, (("", "This method's package gives it no card."),))
    rows = [(label, getattr(found, key)) for key, label in _LABELS.items()]
    rows += [("Learning rate", _rates(found.recipe)), ("Searched", _searched(found.recipe))]
    fields = (field.name for field in dataclasses.fields(entry.config) if not is_older_name(field))
    options = ", ".join(f"{name}={getattr(entry.config(), name)!r}" for name in fields)
    rows.append(("Options", options or "none"))
    if presets := presets_of(name):
        rows.append(("Presets", "; ".join(_preset(label, values) for label, values in presets.items())))
    return CardText(name, found.title, tuple(rows))


def _preset(name: str, values: Mapping[str, Any]) -> str:
    return f"preset={name}: {', '.join(f'{key}={value!r}' for key, value in values.items()) or 'the defaults'}"


def _rates(recipe: Recipe) -> str:
    """The default on the embedded backbones, and what becomes of it on wider ones."""
    from s2a.card import REFERENCE_WIDTH

    if recipe.width_power == 0:
        return f"{recipe.learning_rate:g} at any width"
    wider = ", ".join(f"{recipe.rate_at(width):g} at {width}" for width in (384, 768, 1024))
    return f"{recipe.learning_rate:g} up to a width of {REFERENCE_WIDTH}; {wider}"


def _searched(recipe: Recipe) -> str:
    """What a search tries of the method's own."""
    text = "learning rates " + ", ".join(f"{rate:g}" for rate in recipe.searched_rates)
    text += " (as far lower when wider)" if recipe.width_power else ""
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
