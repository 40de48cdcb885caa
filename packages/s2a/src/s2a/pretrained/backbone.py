"""The backbone of an adapter folder: described when it is saved, built without values, and found again with them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from s2a.adapted import Adapted
from s2a.backbones.view import input_size
from s2a.errors import S2AError
from s2a.identity import architecture_of, tensor_places
from s2a.image_transform import ImageTransform
from s2a.pretrained.config import check_backbone, is_plain_name, join

GROUP = "s2a.backbones"
"""Entry points: name -> callable that takes the config's arguments and returns a model with its own weights."""
HUB_FILE = "model.safetensors"
"""The name that timm's weights have on the hub."""


def registered(name: str) -> EntryPoint | None:
    """The entry point of a backbone, if an installed package has one of that name."""
    return next(iter(entry_points(group=GROUP, name=name)), None)


def check_name(name: str) -> None:
    """Checks that a backbone can be made here.

    Raises:
        S2AError: Neither timm nor an installed package knows it.
    """
    if not timm.is_model(name) and registered(name) is None:
        raise S2AError(
            f"the backbone {name!r} is known neither to timm {timm.__version__} nor to an installed package (entry "
            f"point group {GROUP}); install or upgrade the package that has it (s2a-bench has the mini backbones)."
        )


def create(name: str, args: Mapping[str, Any]) -> Any:
    """A model of a backbone's name: timm's has no pretrained weights, an entry point's has its own.

    Raises:
        S2AError: It cannot be made, whatever the maker runs into.
    """
    point = None if timm.is_model(name) else registered(name)
    try:
        model = timm.create_model(name, pretrained=False, **args) if point is None else point.load()(**args)
    except Exception as error:
        raise S2AError(
            f"the backbone {name} cannot be made with the arguments {dict(args)} ({_first(error)}); correct them, or "
            "take another copy."
        ) from error
    if not isinstance(model, nn.Module):
        raise S2AError(f"the entry point {name} of {GROUP} gave a {type(model).__name__}, not a model.")
    return model


def create_empty(name: str, args: Mapping[str, Any]) -> Any:
    """The same, of which only names, shapes and settings count: without values where its class allows that.

    Raises:
        S2AError: As ``create``.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        if timm.is_model(name):
            with contextlib.suppress(Exception), torch.device("meta"):
                return create(name, args)
        return create(name, args)


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Name of every parameter and buffer but the classifier's -> its shape."""
    return {name: tuple(getattr(module, leaf).shape) for name, (module, leaf) in tensor_places(model).items()}


def describe_backbone(adapted: Adapted, given: Any) -> dict[str, Any]:
    """``name``, ``args`` and ``weights`` of an adapted model's backbone.

    Args:
        adapted: The model.
        given: The same as the caller has it; ``None``: what timm noted in the model.

    Raises:
        S2AError: They make another model: other names, shapes or settings.
    """
    model: Any = adapted.backbone
    found = check_backbone(_own_description(model) if given is None else given)
    name, args = found["name"], found["args"]
    check_name(name)
    if given is None and timm.is_model(name):
        args = found["args"] = _with_size_and_pooling(model, name, args)
    other = create_empty(name, args)
    if differences := _differences(adapted, other):
        made = f"{name} with {args}" if args else name
        raise S2AError(
            f"the model's backbone is not what {made} makes: {join(differences)}; pass backbone={{'name': ..., "
            "'args': {...}}, with the arguments of timm.create_model that it was made with."
        )
    return found


def _own_description(model: Any) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None) or {}
    name = architecture_of(model)
    if not timm.is_model(name):
        if registered(name) is None:
            raise S2AError(
                f"timm does not know the model's backbone, {name}; pass backbone={{'name': ..., 'args': {{...}}}} with "
                f"a name of timm's or of the entry-point group {GROUP}."
            )
        return {"name": name}
    # timm >= 1.0.31 notes the arguments.
    noted = {key: value for key, value in (getattr(model, "_model_args", None) or {}).items() if key != "num_classes"}
    try:
        args = check_backbone({"name": name, "args": noted})["args"]
    except S2AError:
        args = {}
    tag = config.get("tag")
    return {"name": f"{name}.{tag}" if tag else name, "args": args, "weights": weights_of(config)}


def weights_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the weights of a model with this ``pretrained_cfg`` come from, as far as can be told without a network."""
    file = config.get("file")
    if file:
        path = Path(str(file))
        digest = sha256_of(path) if path.is_file() else None
        return {"file": path.name if is_plain_name(path.name) else None, "sha256": digest}
    hub = str(config.get("hf_hub_id") or "")
    if hub.endswith("/"):
        hub += ".".join(str(config[key]) for key in ("architecture", "tag") if config.get(key))
    hub, _, revision = hub.partition("@")
    if hub.count("/") != 1:
        return None
    name = str(config.get("hf_hub_filename") or HUB_FILE)
    return {"hub": hub, "file": name, **_cached(hub, name, revision or None)}


def _cached(hub: str, name: str, revision: str | None) -> dict[str, str | None]:
    """Revision and hash of a file that lies in the hub's cache, which calls large files by their SHA-256."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub, name, revision=revision)
    if not isinstance(path, str):
        return {"revision": revision, "sha256": None}
    digest = Path(path).resolve().name
    return {"revision": Path(path).parent.name, "sha256": digest if re.fullmatch("[0-9a-f]{64}", digest) else None}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_size_and_pooling(model: Any, name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the model's image size and pooling, where those differ from what the name alone makes."""
    plain = create_empty(name, args)
    found = dict(args)
    if hasattr(getattr(model, "patch_embed", None), "img_size") and input_size(model) != input_size(plain):
        height, width = input_size(model)
        found["img_size"] = height if height == width else [height, width]
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str) and pool != getattr(plain, "global_pool", None):
        found["global_pool"] = pool
    return found


_UNCOMPARED = ("num_classes", "grad_checkpointing", "training", "s2a_method", "drop_rate")


def _differences(adapted: Adapted, other: Any) -> list[str]:
    """What distinguishes an adapted model's backbone from another model, in words: tensors, then settings."""
    own = {name: tuple(getattr(module, leaf).shape) for name, (module, leaf) in adapted._places.items()}
    new = shapes_of(other)
    found = [f"{name} is missing there" for name in sorted(own.keys() - new.keys())]
    found += [f"{name} is missing here" for name in sorted(new.keys() - own.keys())]
    found += [
        f"{name} has shape {own[name]}, there {new[name]}"
        for name in sorted(own.keys() & new.keys())
        if own[name] != new[name]
    ]
    if found:
        return found
    here, there = _settings(adapted.backbone), _settings(other)
    return [
        f"{key} is {here[key]!r}, there {there[key]!r}"
        for key in sorted(here.keys() & there.keys())
        if here[key] != there[key]
    ]


def _settings(model: Any) -> dict[str, Any]:
    """What the forward pass of a model may depend on beside its tensors: pooling, prefix tokens and the like."""
    return {
        key: value
        for key, value in vars(model).items()
        if isinstance(value, bool | int | float | str) and not key.startswith("_") and key not in _UNCOMPARED
    }


@contextlib.contextmanager
def sentence(start: str) -> Iterator[None]:
    """Errors of what is inside begin with a path or name."""
    try:
        yield
    except S2AError as error:
        raise type(error)(f"{start}: {error}") from error


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def check_image_size(adapted: Adapted, transform: ImageTransform) -> None:
    """Refuses images of a size that a backbone with fixed position embeddings does not take.

    Raises:
        S2AError: Neither the model's own size nor the one that it was adapted at.
    """
    fixed = hasattr(getattr(adapted.backbone, "patch_embed", None), "img_size")
    if fixed and transform.sides not in (adapted.image_size, input_size(adapted.backbone)):
        raise S2AError(
            f"image size {transform.size} is not that of the model, {adapted.image_size[0]} x {adapted.image_size[1]}."
        )
