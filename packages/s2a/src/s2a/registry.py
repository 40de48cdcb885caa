"""The registry of methods. Installed packages add theirs through the entry-point group ``s2a.methods``."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from s2a.backbones import Backbone, Edits, pooled_features
from s2a.card import Card
from s2a.errors import BrokenPackageWarning, S2AError


class Config(Protocol):
    """A method's config: a frozen dataclass that checks its own values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Method(nn.Module):
    """What a method adds to a backbone: its own parameters, and how features are made.

    A subclass takes ``(config, backbone, edits)``: it creates its parameters, places hooks or modules through
    ``edits``, and switches on the backbone parameters that train. Everything of the backbone is frozen before.

    A config that extends ``s2a.LeanOptions`` lets the method run with lean activations. Modules of its own then keep
    little where their class has a lean forward (``s2a.register_lean_forward``), and write over the residual stream
    where they can (``s2a.lean.WritesInPlace``).

    Attributes:
        feature_dim: Width of ``forward``'s output, the head's input.
        identity_at_start: True where the first ``backbone.features`` columns of ``forward``'s output are the backbone's
            own before any training.
        trains_backbone: False where the backbone runs under ``no_grad`` and keeps nothing for the backward pass.
        fixed_features: True where nothing but the head trains and ``forward`` is a fixed function of the image: the
            features may then be computed once.
        card: What is known of the method: texts for its user, default recipe, marker in figures.
        paper_rules: Of the theoretical calculator's special rules, those that hold (``"R8"``, ``"R9"``).
        appended_tokens: Tokens that the method adds to every sequence of a block (rule R8).
        reads_stream: True where the backward pass of the method's own modules reads the residual stream itself, which
            then cannot be written over (``LeanOptions.in_place``).
    """

    feature_dim: int
    identity_at_start: bool = False
    trains_backbone: bool = True
    fixed_features: bool = False
    card: ClassVar[Card]
    paper_rules: ClassVar[frozenset[str]] = frozenset()
    appended_tokens: int = 0
    reads_stream: bool = False

    def __init__(self, config: Any, backbone: Backbone, edits: Edits) -> None:
        super().__init__()
        self.feature_dim = backbone.features

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features of ``images`` ``(B, 3, H, W)`` for the head, ``(B, feature_dim)``."""
        return pooled_features(model, images)

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes that the method's own modules hold for the backward pass of a training step in fp32.

        The conformance suite compares this with what autograd really holds, module by module.

        Args:
            batch_size: Images of the step.

        Returns:
            Path of a module inside the method ("" is the method itself) -> bytes, those left out that keep nothing.
        """
        return {}

    def why_no_fold(self) -> str | None:
        """A sentence on why ``fold`` cannot work with this config; ``None``: it can. By default where it is written."""
        return None if type(self).fold is not Method.fold else _cannot_merge(self)

    def fold(self, model: nn.Module) -> None:
        """Writes what was learned into the weights of ``model``, a plain copy of the backbone, exactly.

        What trained of the backbone's own parameters is in ``model`` already.

        Raises:
            S2AError: The backbone alone cannot compute what the method computes.
        """
        raise S2AError(_cannot_merge(self))


def _cannot_merge(method: Method) -> str:
    return (
        f"{type(method).__name__} cannot be merged: what it adds is not of the backbone's form; "
        "keep the adapted model, or save it with s2a.save."
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered method: its name, config class and module class."""

    name: str
    config: type[Any]
    method: type[Method]


M = TypeVar("M", bound=type[Method])
_METHODS: dict[str, Entry] = {}
_broken: dict[str, str] = {}
_loaded = _loading = False
_lock = threading.RLock()


def register_method(name: str, config: type[Any]) -> Callable[[M], M]:
    """Class decorator: makes a ``Method`` known under ``name``; its config's type leads ``attach`` to it.

    Raises:
        S2AError: Another method has the name or the config class, or the card searches an option that the config
            lacks, or values that leave out its default.
    """

    def decorate(cls: M) -> M:
        _check_searched_option(name, config, getattr(cls, "card", None))
        for entry in _METHODS.values():
            same = entry.method.__module__ == cls.__module__ and entry.method.__qualname__ == cls.__qualname__
            if (entry.name == name or entry.config is config) and not same:
                raise S2AError(
                    f"Method {name!r} with {config.__name__} clashes with {entry.name!r} of {entry.method.__module__}; "
                    "choose another name and an own config class."
                )
        _METHODS[name] = Entry(name, config, cls)
        return cls

    return decorate


def _check_searched_option(name: str, config: type[Any], card: Card | None) -> None:
    if card is None or card.recipe.searched_option is None:
        return
    option, values = card.recipe.searched_option
    if option not in (fields := [field.name for field in dataclasses.fields(config)]):
        raise S2AError(
            f"The card of method {name!r} searches {option!r}, which {config.__name__} does not have; "
            f"its options: {', '.join(fields) or 'none'}."
        )
    if (default := getattr(config(), option)) not in values:
        raise S2AError(
            f"The card of method {name!r} searches {option} in {values}, without the default {default!r}; add it."
        )


def _load() -> None:
    """Imports all installed packages of methods, once; one that cannot be imported is passed over, with a warning.

    Such a package is somebody else's. It must not take away the methods of the others, whatever it does: an exception,
    ``sys.exit``, text on standard output, which may be a pipe that expects JSON.
    """
    global _loaded, _loading
    if _loaded:
        return
    with _lock:  # Another thread waits until all are there.
        if _loaded or _loading:  # A package may ask for the registered methods while it is imported.
            return
        _loading = True
        try:
            _import_all()
            _loaded = True
        finally:
            _loading = False


def _import_all() -> None:
    for point in entry_points(group="s2a.methods"):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: nobody asked the program to end
            _broken[point.value] = f"{type(error).__name__}: {error}".rstrip(": ")
            warnings.warn(_broken_sentence(point.value), BrokenPackageWarning, stacklevel=4)


def broken_packages() -> dict[str, str]:
    """Packages of methods that could not be imported in this process, each with a sentence that says so."""
    return {package: _broken_sentence(package) for package in _broken}


def _missing() -> str:
    """What an error about an unknown method adds: packages whose methods are not there."""
    return "".join(f" {sentence}" for sentence in broken_packages().values())


def _broken_sentence(package: str) -> str:
    reason = " ".join(_broken[package].split())[:300]
    return f"The methods of {package!r} cannot be imported ({reason}) and are missing; repair or uninstall it."


def list_methods() -> list[str]:
    """Names of the registered methods, those of all installed packages included."""
    _load()
    return sorted(_METHODS)


def get_entry(name: str) -> Entry:
    """The registered method called ``name``.

    Raises:
        S2AError: No such method; the message has the near matches.
    """
    _load()
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise S2AError(f"Unknown method {name!r}: {hint}Registered: {', '.join(sorted(_METHODS))}.{_missing()}")
    return _METHODS[name]


def get_card(name: str) -> Card:
    """The card of a method, for tables and figures of past runs too.

    A method that is not installed here, or that has no card, gets one with empty texts and the defaults.
    """
    _load()
    found = getattr(_METHODS[name].method, "card", None) if name in _METHODS else None
    return found or Card(title=name, trains="", place="", count="", keeps="", inference="", source="")


def entry_for(config: Any) -> Entry:
    """The registered method whose config ``config`` is.

    Raises:
        S2AError: The object is not a registered method's config.
    """
    _load()
    for entry in _METHODS.values():
        if type(config) is entry.config:
            return entry
    known = ", ".join(f"{e.config.__name__} ({e.name})" for e in _METHODS.values())
    raise S2AError(f"{type(config).__name__} is not a registered method's config; registered: {known}.{_missing()}")


def presets_of(method: str) -> dict[str, dict[str, Any]]:
    """Sets of options of a method by name, ``{"plus": {"update_rank": 8, ...}}``, which nobody may change.

    They are the class variable ``presets`` of its config, a literal; empty where there is none.

    Raises:
        S2AError: Unknown method.
    """
    return getattr(get_entry(method).config, "presets", {})


def method_config(name: str, **overrides: Any) -> Any:
    """The config of method ``name`` with some values overridden.

    Args:
        name: Of a registered method.
        **overrides: Options. ``preset`` stands for those that a config class lists under a name in its class variable
            ``presets``; what is given beside it goes over them.

    Raises:
        S2AError: Unknown method, key or preset, or a value out of range.
    """
    config = get_entry(name).config
    presets = presets_of(name)
    if presets and "preset" in overrides:
        overrides = {**_preset(name, presets, overrides["preset"]), **overrides}
        del overrides["preset"]
    fields = [f.name for f in dataclasses.fields(config)]
    options = [*fields, "preset"] if presets else fields
    for key in overrides:
        if key not in fields:
            near = difflib.get_close_matches(key, options, n=2)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise S2AError(f"Method {name!r} has no option {key!r}: {hint}Options: {', '.join(options) or 'none'}.")
    return config(**overrides)


def _preset(method: str, presets: dict[str, dict[str, Any]], name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in presets:
        raise S2AError(f"Method {method!r} has no preset {name!r}; choose one of {', '.join(map(repr, presets))}.")
    return presets[name]
