"""The fenced blocks and commands of README.md and docs/*.md, for the tests that read and run them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"methods.md"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if path.name not in GENERATED
)
_FENCE = re.compile(r"^( *)```(.*)$")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file.
        line: Of the fence.
        language: What stands behind the fence.
        text: What is inside, without the indentation of the fence.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found, start = [], None
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if start is None and fence:
            start = (number, len(fence[1]), fence[2].strip(), [])
        elif start is not None and fence and not fence[2].strip():
            found.append(Block(page, start[0], start[2], "\n".join(start[3]) + "\n"))
            start = None
        elif start is not None:
            start[3].append(line[start[1] :])
    assert start is None, f"{page}: the block of line {start and start[0]} has no end"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a bash block, one each, without comments; lines that end in a backslash are joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(text.split()) for line in lines if (text := re.sub(r"(^|\s)#.*$", "", line).strip())]


def simple(command: str) -> Iterator[list[str]]:
    """The words of each part of a command: those on both sides of a pipe, ``&&`` or ``;``."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word and set(word) <= set("|&;"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def all_commands() -> list[tuple[str, str]]:
    """Where, and each command of every bash block."""
    return [(b.where, c) for page in PAGES for b in blocks(page) if b.language == "bash" for c in commands(b)]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_commands() -> list[tuple[str, str]]:
    """Page, and each ``s2a-bench ...`` or ``nox ...`` in backticks within the text; tables of commands too."""
    found = []
    for page in PAGES:
        found += [(page, " ".join(c.split())) for c in re.findall(r"`((?:s2a-bench|nox) [^`]+)`", prose(page))]
    return found
