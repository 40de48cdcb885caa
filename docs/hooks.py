"""What mkdocs does beside the pages as they lie in docs/: mkdocs.yml names this file as a hook.

Contributing and changelog are the files at the top of the repository, where people look for them; examples are the
scripts themselves. So that they are written once, the site takes them from there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAKEN = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page, with what belongs to it from outside of docs/."""
    path = page.file.src_uri
    if path in TAKEN:
        markdown = (ROOT / TAKEN[path]).read_text(encoding="utf-8").replace("](docs/", "](")
    if path == "examples.md":
        scripts = sorted((ROOT / "examples").glob("*.py"))
        markdown += "".join(f"\n## `{s.name}`\n\n```python\n{s.read_text(encoding='utf-8')}```\n" for s in scripts)
    # Links to a script lead to it on the page of examples.
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples.md#\1py)", markdown)
