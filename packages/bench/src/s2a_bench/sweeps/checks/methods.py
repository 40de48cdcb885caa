"""Names and options of the registered methods, read from the source of their packages without importing them.

Importing a method imports torch, which takes seconds; a wrong name shall cost less. What a method says about itself
stands in its file in a form that can be read: ``@register_method("bias", BiasConfig)`` and the config's dataclass
fields. Where the registry has been imported already, it is asked instead.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2a_bench.errors import unknown

_GROUP = "s2a.methods"
_OWN = "s2a_baselines"
_TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)},
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")},
    "typing": typing,
}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        hint: Annotated type of its config field; ``Any`` where it could not be read.
        default: Its default.
    """

    hint: Any
    default: Any = None


@dataclasses.dataclass(frozen=True)
class MethodTable:
    """What is known of the registered methods.

    Attributes:
        options: Method -> its options by name.
        complete: No other method can be registered: a name that is not in ``options`` is wrong.
        partial: Methods that may have more options than those listed.
        fixed_features: Methods whose features are a fixed function of the image (``s2a.Method.fixed_features``).
        frozen_backbone: Methods whose backbone runs without gradient (``s2a.Method.trains_backbone`` is false).
    """

    options: Mapping[str, Mapping[str, Option]]
    complete: bool
    partial: frozenset[str] = frozenset()
    fixed_features: frozenset[str] = frozenset()
    frozen_backbone: frozenset[str] = frozenset()

    def check_name(self, name: str) -> None:
        """Checks a method's name, as far as that is possible without importing anything.

        Raises:
            InputError: There is no such method.
        """
        if self.complete and name not in self.options:
            raise unknown("method", name, self.options)

    def check_option(self, method: str, key: str) -> None:
        """Checks an option of a method that is in the table.

        Raises:
            InputError: The method has no such option.
        """
        if method not in self.partial and key not in self.options[method]:
            raise unknown(f"option of {method}", key, self.options[method])


def method_table() -> MethodTable:
    """The registered methods: from the registry if it is imported, else from the source of the installed packages."""
    if "s2a.registry" in sys.modules:  # Importing it costs nothing now, and it knows methods of the running program.
        return _from_registry()
    return table_from_source()


def _from_registry() -> MethodTable:
    from s2a.registry import get_entry, list_methods, presets_of

    options = {}
    entries = {name: get_entry(name) for name in list_methods()}
    for name, entry in entries.items():
        try:
            hints = typing.get_type_hints(entry.config)
        except Exception:  # somebody else's method: its annotations may name anything
            hints = {}
        fields = dataclasses.fields(entry.config)
        options[name] = {field.name: Option(hints.get(field.name, Any), _default(field)) for field in fields}
        options[name] |= _preset_option(presets_of(name))
    fixed = frozenset(name for name, entry in entries.items() if entry.method.fixed_features)
    frozen = frozenset(name for name, entry in entries.items() if not entry.method.trains_backbone)
    return MethodTable(options, complete=True, fixed_features=fixed, frozen_backbone=frozen)


def _preset_option(presets: Iterable[str]) -> dict[str, Option]:
    """The option ``preset`` of a config that has some."""
    return {"preset": Option(typing.Literal[tuple(presets)])} if presets else {}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@functools.cache
def table_from_source() -> MethodTable:
    """The methods of ``s2a`` and, if they are installed, of ``s2a_baselines``, from their source.

    With packages of others among the entry points of group ``s2a.methods`` the table is not complete.
    """
    packages = {point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=_GROUP)}
    files = [file for package in ("s2a", *sorted(packages & {_OWN})) for file in _read(package)]
    options: dict[str, dict[str, Option]] = {}
    partial, fixed, frozen = set(), set(), set()
    complete = packages <= {_OWN} and bool(files)
    for file in files:
        if "@register_method(" not in file.text:
            continue
        for node in (node for node in file.tree.body if isinstance(node, ast.ClassDef)):
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(ast.Name("register_method"), [ast.Constant(str(name)), ast.Name(config), *_]):
                        options[name], whole = _fields(config, file, files)
                        if not whole:
                            partial.add(name)
                        if _says(node, "fixed_features", True):
                            fixed.add(name)
                        if _says(node, "trains_backbone", False):
                            frozen.add(name)
                    case ast.Call(ast.Name("register_method")):  # a name or a config that is computed
                        complete = False
    return MethodTable(options, complete, frozenset(partial), frozenset(fixed), frozenset(frozen))


def _says(cls: ast.ClassDef, name: str, value: bool) -> bool:
    """Whether a class sets an attribute to a value in its own body."""
    for node in cls.body:
        match node:
            case ast.Assign([ast.Name(target)], ast.Constant(found)) | ast.AnnAssign(
                ast.Name(target), value=ast.Constant(found)
            ) if target == name:
                return found is value
    return False


@dataclasses.dataclass(frozen=True)
class _File:
    """A source file of a package."""

    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    def find_class(self, name: str) -> ast.ClassDef | None:
        """The class of that name at the top level."""
        if f"class {name}" not in self.text:
            return None
        return next((node for node in self.tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _read(package: str) -> list[_File]:
    """Every module of a package; a top-level package is found without running any of it."""
    spec = find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    return [_File(path.read_text(encoding="utf-8")) for folder in folders for path in sorted(folder.rglob("*.py"))]


def _fields(name: str, file: _File, files: Iterable[_File]) -> tuple[dict[str, Option], bool]:
    """Fields of a config class and of its bases in order, and whether all of the bases were found.

    A class that is not in the file itself is looked for by its name in all others.
    """
    places = [(one, cls) for one in (file, *files) if (cls := one.find_class(name)) is not None]
    if not places:
        return {}, False
    home, cls = places[0]
    found: dict[str, Option] = {}
    whole, presets = True, []
    for base in cls.bases:
        inherited, known = _fields(base.id, home, files) if isinstance(base, ast.Name) else ({}, False)
        found |= inherited
        whole = whole and known
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ast.unparse(node.annotation)
            if node.target.id == "presets" and isinstance(node.value, ast.Dict):
                presets = [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
            elif not re.match(r"(typing\.)?ClassVar\b", text):
                found[node.target.id] = Option(_hint(node.annotation, home), _value(node.value, (home, *files)))
    return found | _preset_option(presets), whole


def _hint(annotation: ast.expr, file: _File) -> Any:
    """The type that an annotation stands for; names of the file's own (``Kind = Literal[...]``) are looked up."""
    names = dict(_TYPES)
    for node in file.tree.body:
        match node:
            case ast.Assign([ast.Name(name)], value=value) if _mentions(annotation, name):
                names[name] = _hint(value, file)
    try:
        return eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, names)
    except (NameError, TypeError, AttributeError):  # a type from elsewhere
        return Any


def _mentions(expression: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(expression))


def _value(default: ast.expr | None, files: Sequence[_File]) -> Any:
    """The default of a field: a literal, ``field(default=...)``, or a function of the files that makes such a field."""
    match default:
        case None:
            return None
        case ast.Call(ast.Name(name), [only], _) if (made := _field_made_by(name, files)) is not None:
            return _value(only if isinstance(made, ast.Name) else made, files)
        case ast.Call(keywords=keywords):
            return next((_value(k.value, files) for k in keywords if k.arg == "default"), None)
    try:
        return ast.literal_eval(default)
    except ValueError:
        return None


def _field_made_by(name: str, files: Sequence[_File]) -> ast.expr | None:
    """The default in ``def name(x): return dataclasses.field(default=x, ...)``, in the first file that has it."""
    for node in (node for file in files if f"def {name}(" in file.text for node in file.tree.body):
        match node:
            case ast.FunctionDef(name=found, body=[*_, ast.Return(ast.Call(keywords=keywords))]) if found == name:
                return next((k.value for k in keywords if k.arg == "default"), None)
    return None
