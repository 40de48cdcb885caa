"""The paper's experiments: which methods on which backbones, and the printed results.

Each is a file ``experiments/NAME.toml``; a file of the same format may also be given by path.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from s2a_bench.errors import InputError, unknown

FAMILIES: dict[str, tuple[str, str]] = {
    "vit": ("mini_vit", "vit_base_patch16_224.augreg_in21k"),
    "swin": ("mini_swin", "swin_base_patch4_window7_224.ms_in22k"),
    "convnext": ("mini_convnext", "convnext_base.fb_in22k"),
}
"""Family -> its mini backbone and the paper's backbone with weights from ImageNet-21k, by their full timm names."""

COLUMNS = (
    "params_percent",
    "params_m",
    "memory_mb",
    "vtab_natural",
    "vtab_specialized",
    "vtab_structured",
    "fgvc",
)
"""Columns of printed numbers: trainable percent, millions trainable, theoretical MB, and mean accuracies in percent."""


@dataclasses.dataclass(frozen=True)
class ExperimentRow:
    """One row of a table or point of a figure.

    Attributes:
        name: As printed.
        method: Label of the method, ``name:key=value,...``.
        expected: Family to column (of ``COLUMNS``) to the printed number.
        mini: Whether it fits the mini backbones.
    """

    name: str
    method: str
    expected: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    mini: bool = True


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one experiment compares.

    Attributes:
        name: Of its file, e.g. ``"table1"``.
        title: In words.
        source: Where the expected numbers are printed.
        question: The question it answers.
        families: Keys of ``FAMILIES``.
        rows: In printed order.
        note: Remark for readers of the report.
    """

    name: str
    title: str
    source: str
    question: str
    families: tuple[str, ...]
    rows: tuple[ExperimentRow, ...]
    note: str = ""

    def backbones(self, suite: str) -> tuple[str, ...]:
        """Backbones for a suite: the mini ones for ``mini``, the paper's for the others."""
        return tuple(FAMILIES[family][0 if suite == "mini" else 1] for family in self.families)

    def methods(self, suite: str) -> tuple[str, ...]:
        """Labels of the methods for a suite."""
        return tuple(row.method for row in self.rows if row.mini or suite != "mini")


def list_experiments() -> tuple[str, ...]:
    """The packaged experiments."""
    return tuple(sorted(Path(entry.name).stem for entry in _package_folder().iterdir() if entry.name.endswith(".toml")))


@functools.lru_cache(maxsize=32)
def load_experiment(name: str) -> Experiment:
    """An experiment by name, or by the path of a ``.toml`` file.

    Raises:
        InputError: There is no such experiment, or its file is not valid.
    """
    if name in list_experiments():
        return parse_experiment(name, (_package_folder() / f"{name}.toml").read_text(encoding="utf-8"))
    if not name.endswith(".toml"):
        raise unknown("experiment", name, list_experiments())
    path = Path(name)
    try:
        return parse_experiment(path.stem, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Experiment file {path} cannot be read ({error}); known are {', '.join(list_experiments())}."
        ) from error


def parse_experiment(name: str, text: str) -> Experiment:
    """An experiment from the text of its file.

    Raises:
        InputError: Not TOML, a missing or unknown key, or a value of the wrong kind.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"Experiment {name} is not TOML ({error}).") from error
    rows = _pop_value(values, "rows", list, name)
    families = _pop_value(values, "families", list, name)
    for family in families:
        if family not in FAMILIES:
            raise unknown(f"family of experiment {name}", str(family), FAMILIES)
    texts = {key: _pop_value(values, key, str, name) for key in ("title", "source", "question")}
    note = _pop_value(values, "note", str, name, "")
    _refuse_unknown_keys(values, name)
    if not rows or not families:
        raise InputError(f"Experiment {name} has no {'families' if rows else 'rows'}; give at least one.")
    found = tuple(_parse_row(row, f"{name}, row {i}") for i, row in enumerate(rows, start=1))
    return Experiment(name, families=tuple(families), rows=found, note=note, **texts)


def _parse_row(values: Any, where: str) -> ExperimentRow:
    if not isinstance(values, dict):
        raise InputError(f"Experiment {where}: write a table with name and method.")
    row = ExperimentRow(
        _pop_value(values, "name", str, where),
        _pop_value(values, "method", str, where),
        _pop_value(values, "expected", dict, where, {}),
        _pop_value(values, "mini", bool, where, True),
    )
    _refuse_unknown_keys(values, where)
    for family, printed in row.expected.items():
        if family not in FAMILIES:
            raise unknown(f"family of experiment {where}", family, FAMILIES)
        for column, value in printed.items() if isinstance(printed, dict) else ():
            if column not in COLUMNS:
                raise unknown(f"column of experiment {where}", column, COLUMNS)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"Experiment {where}: expected.{family}.{column}={value!r} must be a number.")
        if not isinstance(printed, dict):
            raise InputError(f"Experiment {where}: expected.{family} must be a table of {', '.join(COLUMNS)}.")
    return row


_REQUIRED = object()


def _pop_value(values: dict[str, Any], key: str, kind: type, where: str, default: Any = _REQUIRED) -> Any:
    value = values.pop(key, default)
    if value is _REQUIRED:
        raise InputError(f"Experiment {where} has no {key}; it is needed.")
    if not isinstance(value, kind):
        raise InputError(f"Experiment {where}: {key}={value!r} is of the wrong kind; it must be a {kind.__name__}.")
    return value


def _refuse_unknown_keys(values: dict[str, Any], where: str) -> None:
    if values:
        known = "title, source, question, families, rows, note; in a row name, method, expected, mini"
        raise InputError(f"Experiment {where}: {min(values)!r} is not a known key; the keys are {known}.")


def _package_folder() -> Any:
    return files("s2a_bench") / "experiments"
