"""What the documentation says is true: commands parse, names exist, generated pages are current. Nothing runs here.

``test_docs_run.py`` runs the commands and blocks. No torch is imported.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
import tomllib
import xml.etree.ElementTree as ET

import pytest
import tyro
from doc_blocks import PAGES, ROOT, all_commands, blocks, inline_commands, prose, simple
from s2a_bench.cli.main import COMMANDS, SETTINGS
from s2a_bench.cli.sweep import Sweep
from s2a_bench.errors import InputError, sentences

SESSIONS = re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
OTHERS = {"accelerate", "curl", "export", "find", "mlflow", "nox", "pip", "python", "ray", "torchrun"}
"""Programs of others that the pages call, by name."""


def parse(words: list[str]):
    """The command that the real command line makes of words; nothing runs."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(COMMANDS, args=words, prog="s2a-bench", config=SETTINGS)
    except SystemExit as end:
        if end.code == 0:  # --help
            return None
        raise AssertionError(said.getvalue()) from None


def check_command(words: list[str]) -> None:
    """Checks one command: its name, options and values; of a sweep also datasets, methods and settings."""
    if words[:3] == ["nox", "-s", "bench"]:
        words = ["s2a-bench", "sweep", *words[4:]]
    if words[0] == "nox":
        named = [word for word in words[1:] if not word.startswith("-")]
        assert "-l" in words or set(named[: 1 if "--" in words else None]) <= {*SESSIONS}, named
    elif words[0] == "python":
        assert words[1].startswith("-") or (ROOT / words[1]).is_file(), words[1]
    elif words[0] == "s2a-bench":
        command = parse(words[1:])
        if isinstance(command, Sweep):
            check_sweep(command)
    else:
        assert words[0] in OTHERS, words[0]


def check_sweep(command: Sweep) -> None:
    """What a sweep checks before torch is imported; only files and folders may be missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2a_bench.cli.sweep._preview", lambda job, console: 0)
        patch.setattr("s2a_bench.cli.sweep._sweep", lambda job, console: 0)
        try:
            command.run(None)  # type: ignore[arg-type]
        except InputError as error:
            missing = re.compile(r"was not found|have no list|No weights file|Cannot connect")
            wrong = [sentence for sentence in sentences(error) if not missing.search(sentence)]
            assert not wrong, wrong


@pytest.mark.parametrize(("where", "command"), all_commands(), ids=lambda text: text[:60])
def test_a_command_of_a_block_parses(where, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in simple(re.sub(r"\$\(.*\)", "X", command)):
        check_command(words)


@pytest.mark.parametrize(("page", "command"), sorted(set(inline_commands())), ids=lambda text: text[:60])
def test_a_command_within_the_text_exists(page, command, tmp_path, monkeypatch):
    """It may leave arguments out, and have words like NAME in them."""
    monkeypatch.chdir(tmp_path)
    words = command.partition(" > ")[0].split()
    if words[0] == "nox" or "..." in command or "COMMAND" in command:
        return check_command(["nox", *words[1:]]) if words[0] == "nox" and "..." not in command else None
    try:
        parse(words[1:] if len(words) > 2 else [*words[1:], "--help"])
    except AssertionError as error:
        assert "required" in str(error).lower(), error
    return None


def test_every_command_is_in_a_bash_block():
    """A command in a block of another kind, or in an indented one, would be run by nobody."""
    for page in PAGES:
        for block in blocks(page):
            if block.language != "bash":
                assert not re.search(r"^(s2a-bench|nox|pip|mlflow) \w", block.text, re.MULTILINE), block.where
        text = prose(page)
        assert not re.search(r"^ +(s2a-bench|nox -s|python) .*", text, re.MULTILINE), page


PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def public(package: str) -> set[str]:
    """Public names of a package, from its source: ``__all__``, and submodules."""
    home = next(ROOT.glob(f"packages/*/src/{package}"))
    tree = ast.parse((home / "__init__.py").read_text())
    found = {
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for name in ast.literal_eval(node.value)
    }
    return found | {path.stem for path in home.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.where)
def test_a_python_block_compiles_and_its_names_exist(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("s2a", "s2a_bench")
        ):
            assert node.attr in public(node.value.id), f"{block.where}: {node.value.id}.{node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("s2a", "s2a_bench"):
            first, *rest = (node.module or "").split(".")
            home = next(ROOT.glob(f"packages/*/src/{first}")).joinpath(*rest)
            source = home.with_suffix(".py") if home.with_suffix(".py").is_file() else home / "__init__.py"
            assert source.is_file(), node.module
            for alias in node.names:
                assert alias.name in source.read_text() or alias.name in public(first), alias.name


def test_the_readme_has_the_two_commands_of_a_fresh_machine_and_is_short():
    text = (ROOT / "README.md").read_text()
    for session in ("bench", "tests"):
        assert re.search(rf'^pip install "nox\[uv\]" && nox -s {session} ', text, re.MULTILINE)
    assert len(text.splitlines()) < 150


def test_the_page_of_commands_is_current():
    module = runpy.run_path(str(ROOT / "docs/reference/write_commands.py"))
    assert (ROOT / "docs/reference/commands.md").read_text() == module["page"](), (
        "run python docs/reference/write_commands.py"
    )
    named = {name for names in module["GROUPS"].values() for name in names}
    assert set(module["parsers"]()) <= named, "put the new command into a group of write_commands.py"


def test_every_public_name_is_in_the_reference():
    for package in ("s2a", "s2a_bench"):
        text = (ROOT / f"docs/reference/{package}.md").read_text()
        listed = re.findall(rf"^      heading: {package}\.(\w+)$", text, re.MULTILINE)
        tree = ast.parse(next(ROOT.glob(f"packages/*/src/{package}/__init__.py")).read_text())
        (names,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        )
        assert sorted(listed) == sorted(names)
    methods = {p.stem for p in ROOT.glob("packages/baselines/src/s2a_baselines/*.py") if not p.stem.startswith("_")}
    text = (ROOT / "docs/reference/s2a_baselines.md").read_text()
    assert methods == set(re.findall(r"^::: s2a_baselines\.(\w+)", text, re.MULTILINE))


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    nav = set(re.findall(r": ([\w/-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert nav == pages


def anchor_of(heading: str) -> str:
    """What a heading's link ends in."""
    text = re.sub(r"\]\(.*?\)", "", heading)
    return re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    """As people read them in the repository; mkdocs checks the site's."""
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md" and "reference" not in path:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {anchor_of(heading) for heading in headings}, f"{page}: {target}"


def test_the_glossary_is_sorted_and_has_each_word_once():
    words = re.findall(r"^\*\*(.+?)\.\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) > 30
    assert words == sorted(words, key=str.lower)


def test_the_picture_of_the_readme_shows_the_numbers_of_the_table():
    """Whatever version of matplotlib drew it."""
    shown = "".join(ET.parse(ROOT / "docs/figures/memory_bars.svg").getroot().itertext())
    rows = {}
    for line in (ROOT / "docs/memory.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[0] not in rows:
            rows[cells[0]] = cells[2]
    for name in ("full", "vpt", "lora", "bias", "s2a, paper", "s2a, lean"):
        assert f"{rows[name]} MB" in shown, name
    for page in ("README.md", "docs/index.md"):
        alternative = (ROOT / page).read_text()
        assert all(f"{rows[name]} MB" in alternative for name in ("full", "lora", "s2a, lean"))


def test_the_entry_points_of_the_pages_are_those_of_the_packages():
    projects = [tomllib.loads(path.read_text())["project"] for path in ROOT.glob("packages/*/pyproject.toml")]
    groups = {group for project in projects for group in project.get("entry-points", {})}
    shown = [tomllib.loads(b.text)["project"] for page in PAGES for b in blocks(page) if b.language == "toml"]
    assert {group for project in shown for group in project["entry-points"]} == groups
