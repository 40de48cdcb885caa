"""``adapter_config.json``: all that an adapter folder says of itself, beside the trained state.

Keys of schema 1::

    schema        1
    library       "s2a"
    method        registered name; config, its options; package, where the method comes from
    num_classes   outputs of the head; 0: it has none, the outputs are features
    checksum      of adapter_model.safetensors' header: config and state are of one save
    backbone      name   timm's name with tag, or one of the entry-point group s2a.backbones
                  args   arguments of timm.create_model, or of the entry point
                  weights  null, or {hub, revision, file, sha256}: where the weights come from; each may be null
                  id     s2a's identity of the weights, 16 hex digits
                  dtype  number format of the weights when the method was attached
                  frozen_dtype  null, or the half-precision format of s2a.cast_frozen
                  licence  of the weights, or null
    image         null, or size, mean, std, interpolation, resize: see s2a.image_transform
    labels        null, or the class names in the order of the outputs
    metrics       null, or an object of results; numbers that are not finite are null
    data          null, or an object: name, data_id, split_id, counts, licence ...
    memory        params_trained, params_total, adapter_bytes, backbone_bytes
    versions      of s2a, torch, timm when it was saved
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a.errors import S2AError
from s2a.image_transform import make_transform

SCHEMA = 1
CONFIG_FILE = "adapter_config.json"
STATE_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
FILES = (CONFIG_FILE, STATE_FILE, CARD_FILE)
"""Everything that ``save_pretrained`` writes."""

_LARGEST = 64_000_000
_MOST = 100_000
"""No argument of a backbone is as large: a damaged depth or size would fill the memory before it is refused."""
_ARGUMENT = re.compile(r"[a-z][a-z0-9_]*\Z")
_REFUSED_ARGUMENTS = ("checkpoint_path", "cache_dir", "model_name", "name", "path", "num_batches_tracked", "device")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_REVISION = re.compile(r"[\w./-]{1,255}\Z", re.ASCII)


def plain(value: Any, what: str) -> Any:
    """A value as JSON has it: tuples are lists, one-element arrays numbers, numbers that are not finite ``None``.

    Args:
        value: Mappings, sequences, text, numbers, booleans, ``None``.
        what: Its name in the error.

    Raises:
        S2AError: Something else is in it.
    """
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None and _is_single(value):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return text(value, what)
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise S2AError(f"{what} has the key {wrong[0]!r}; keys are text.")
        return {text(key, what): plain(item, f"{what}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{what}[{i}]") for i, item in enumerate(value)]
    raise S2AError(f"{what} is a {type(value).__name__}; what JSON has is allowed: text, numbers, lists, mappings.")


def _is_single(value: Any) -> bool:
    count = value.numel() if hasattr(value, "numel") else value.size
    return bool(count == 1)


def text(value: str, what: str) -> str:
    """Text that can be written as UTF-8.

    Raises:
        S2AError: It cannot.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise S2AError(f"{what} {value!r} is no valid text (UTF-8); rename it.") from error
    return str(value)


def check_labels(labels: Any, num_classes: int) -> list[str] | None:
    """Class names, as many as the head has outputs.

    Raises:
        S2AError: They are not.
    """
    if labels is None:
        return None
    if isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
        raise S2AError(f"labels takes the class names in the order of the outputs, not {type(labels).__name__}.")
    names = list(labels)
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise S2AError(f"labels has {wrong[0]!r}; every class name is text, and not empty.")
    if len(names) != num_classes:
        raise S2AError(f"{len(names)} labels do not fit a head of {num_classes} classes; give one per class.")
    return [text(name, "label") for name in names]


def check_backbone(values: Any) -> dict[str, Any]:
    """The part ``name``, ``args``, ``weights`` of the config's ``backbone``, with every key there.

    Raises:
        S2AError: Not of that form, or a name, path or argument that could make the loader read anything else.
    """
    if not isinstance(values, Mapping):
        raise S2AError(f"backbone is a mapping of name, args and weights, not {type(values).__name__}.")
    name, args, weights = values.get("name"), values.get("args"), values.get("weights")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,199}", name, re.ASCII):
        raise S2AError(f"backbone name {name!r} is neither a name of timm's nor of the group s2a.backbones.")
    if args is not None and not isinstance(args, Mapping):
        raise S2AError(f"backbone args are a mapping, not {type(args).__name__}.")
    for key, value in (args or {}).items():
        if not isinstance(key, str) or not _ARGUMENT.match(key):
            raise S2AError(f"backbone argument {key!r} is no name of an argument.")
        if key.startswith("pretrained") or key in _REFUSED_ARGUMENTS:
            raise S2AError(f"backbone argument {key!r} is not allowed; where weights come from is said under weights.")
        if isinstance(value, Mapping) or not _is_simple(value):
            raise S2AError(
                f"backbone argument {key}={value!r} must be a number below {_MOST:,}, text, True, False, "
                "None or a list."
            )
    return {"name": name, "args": plain(dict(args or {}), "backbone args"), "weights": check_weights(weights)}


def _is_simple(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_simple(item) for item in value)
    return value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < _MOST)


def check_weights(values: Any) -> dict[str, Any] | None:
    """Where weights come from: ``hub``, ``revision``, ``file`` and ``sha256``, each of which may be ``None``.

    Raises:
        S2AError: Not of that form; a file that is more than a plain name.
    """
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise S2AError(f"backbone weights: a mapping of hub, revision, file, sha256, not {type(values).__name__}.")
    found = {key: values.get(key) for key in ("hub", "revision", "file", "sha256")}
    for key, form, words in (
        ("hub", _HUB, "is no hub id owner/name"),
        ("revision", _REVISION, "is no revision of a hub's repository"),
        ("sha256", _SHA256, "is not 64 hex digits"),
    ):
        value = found[key]
        if value is not None and not (isinstance(value, str) and form.match(value) and ".." not in value):
            raise S2AError(f"backbone weights: {key} {value!r} {words}.")
    file = found["file"]
    if file is not None and not is_plain_name(file):
        raise S2AError(f"backbone weights: file {file!r} is more than a file's name; give it without folders.")
    return found if any(value is not None for value in found.values()) else None


def is_plain_name(name: Any) -> bool:
    """Whether a value is the bare name of a file: no folder, no drive, no hidden file, nothing a shell would read."""
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or name.startswith((".", "~", "-")):
        return False
    return name.isprintable() and not set(name) & set('/\\:*?"<>|') and not name.endswith((" ", "."))


def read_config(path: Path) -> dict[str, Any]:
    """A folder's config, checked: types, lengths, and names that lead nowhere else.

    Raises:
        S2AError: Not there, not of this library, of a newer version, or damaged.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise S2AError(f"{path} has {path.stat().st_size} bytes; an adapter's config has less than {_LARGEST}.")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise S2AError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise S2AError(f"{path} is damaged: it is not JSON ({_first(error)}); take another copy.") from error
    if not isinstance(values, dict) or values.get("library") != "s2a":
        kind = values.get("peft_type") if isinstance(values, dict) else None
        found = f"it is one of PEFT's, of type {kind}" if kind else "it has no library 's2a'"
        raise S2AError(f"{path} was not written by s2a.save_pretrained ({found}).")
    schema = values.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise S2AError(
            f"{path} has schema {schema}, this version of s2a reads up to {SCHEMA}; upgrade s2a (pip install -U s2a)."
        )
    try:
        return _checked(values)
    except S2AError as error:
        raise S2AError(f"{path} is damaged: {str(error).rstrip('.')}; take another copy, or save again.") from error


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 1, every key there."""
    if values.get("schema") != SCHEMA or isinstance(values["schema"], bool):
        raise S2AError(f"schema {values.get('schema')!r} must be {SCHEMA}")
    for key, kind in (("method", str), ("config", dict), ("checksum", str), ("num_classes", int), ("backbone", dict)):
        if type(values.get(key)) is not kind:
            raise S2AError(f"{key} {_short(values.get(key))} must be of type {kind.__name__}")
    for key, kind in (("package", str), ("metrics", dict), ("data", dict), ("memory", dict), ("versions", dict)):
        if values.get(key) is not None and type(values[key]) is not kind:
            raise S2AError(f"{key} {_short(values[key])} must be of type {kind.__name__}, or null")
    if values["num_classes"] < 0:
        raise S2AError(f"num_classes {values['num_classes']} must not be below 0")
    backbone = values["backbone"]
    for key in ("id", "dtype", "frozen_dtype", "licence"):
        if backbone.get(key) is not None and not isinstance(backbone[key], str):
            raise S2AError(f"backbone {key} {_short(backbone[key])} must be text, or null")
    if backbone.get("frozen_dtype") not in (None, "bfloat16", "float16"):
        raise S2AError(f"backbone frozen_dtype {_short(backbone['frozen_dtype'])} must be bfloat16, float16 or null")
    image = values.get("image")
    if image is not None:
        make_transform(image)
    labels = values.get("labels")
    if labels is not None and not isinstance(labels, list):
        raise S2AError(f"labels {_short(labels)} must be a list of text, or null")
    names = check_labels(labels, values["num_classes"])
    empty = dict.fromkeys(("package", "metrics", "data", "memory", "versions"))
    more = {"backbone": {**backbone, **check_backbone(backbone)}, "labels": names, "image": image}
    return {**empty, **values, **more}


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a config; the same values give the same bytes."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def join(values: Sequence[str]) -> str:
    """Names in a sentence, the first three of many."""
    return ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
