"""Writes docs/reference/commands.md from the commands' own arguments: what ``--help`` says, as a page.

python docs/reference/write_commands.py

A test compares the page with what this gives. No torch is imported.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import tyro
from s2a_bench.cli.main import COMMANDS, SETTINGS

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Command line

<!-- Written by docs/reference/write_commands.py; do not edit. -->

What `s2a-bench COMMAND --help` says. Exit codes of all commands: 0 done, 1 something failed and is named,
2 bad input and nothing was written, 130 interrupted.
"""
GROUPS = {
    "Your own images": ("finetune", "predict", "serve", "export", "fits"),
    "The benchmark": ("sweep", "experiments", "estimate", "audit"),
    "Data": ("data list", "data prepare", "data verify"),
    "Records and views": ("report", "track", "ui", "records"),
    "Methods and memory": ("methods", "memory"),
    "Backbones": ("pretrain",),
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser by the command's name; those of ``data`` by both words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the only way to the parser that tyro has
        return dict(_leaves("", tyro.extras.get_parser(COMMANDS, prog="s2a-bench", config=SETTINGS)))


def _leaves(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    if not choices:
        yield name, parser
    for commands in choices:
        for command, inner in (commands or {}).items():
            yield from _leaves(f"{name} {command}".strip(), inner)


def page() -> str:
    """The whole page."""
    found = parsers()
    named = [name for names in GROUPS.values() for name in names]
    groups = {**GROUPS, "Others": tuple(name for name in found if name not in named)}
    parts = [HEAD]
    for title, names in groups.items():
        if known := [name for name in names if name in found]:
            parts += [f"## {title}\n", *(_command(name, found[name]) for name in known)]
    return "\n".join(parts)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    summary, _, rest = (parser.description or "").strip().partition("\n\n")
    rows = [_row(action) for action in parser._actions if "-h" not in action.option_strings]
    # The title of the page is a command's name; its anchor too, so that it can be linked to.
    lines = [f"### `s2a-bench {name}` {{ #{name.replace(' ', '-')} }}\n", _prose(summary) + "\n"]
    lines += [_prose(part) + "\n" for part in rest.split("\n\n") if part.strip()]
    if rows:
        lines += ["| argument | |\n|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    value = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
    shown = " ".join(part for part in (names, value) if part)
    text = " ".join((action.help if isinstance(action.help, str) else "").replace("%%", "%").split())
    text, default = re.sub(r" ?\(default: (None|False)\)", "", text), ""
    if found := re.search(r" ?\(default: (.*?)\)$", text):
        text, default = text[: found.start()], f" Default: `{found[1]}`." if found[1] else ""
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    text = text.replace(" (required)", "")
    default = " **Required.**" if action.required else default
    return f"| <code>{shown}</code> | {_prose(text)}{default} |"


def _prose(text: str) -> str:
    """Text of a help as Markdown: what could be markup is said literally."""
    return re.sub(r"([\\*_<>|\[\]`])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
