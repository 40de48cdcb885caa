"""Which weights a backbone had when a method was attached: fingerprints that survive a change of number format.

An identity is taken once, by ``s2a.attach``. It is written into every file of ``s2a.save``, and goes with every
``state_dict`` (in its metadata, which ``torch.save`` keeps), so that neither an average of weights, nor a cast, nor a
state loaded later changes which backbone a trained state belongs to.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2a.backbones import classifier_name

SAMPLE = 64
"""Values of a tensor that are kept to tell rounding from other values."""

_DIGITS = 8
_UNKNOWN = "-" * _DIGITS
_ROUNDED = 1e-3
"""Relative change that averaging in float32 does not reach and other weights do."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What is kept of one tensor's values.

    Attributes:
        dtype: Its number format, ``"float32"`` for example.
        exact: 8 hex digits of the hash of shape and values.
        bfloat16: The same after rounding to bfloat16; as ``exact`` where values are no floating-point numbers.
        float16: The same after rounding to float16.
        sample: Up to ``SAMPLE`` values at equal distances.
    """

    dtype: str
    exact: str
    bfloat16: str
    float16: str
    sample: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there were values to take a fingerprint of."""
        return self.exact != _UNKNOWN


UNKNOWN = Fingerprint("", _UNKNOWN, _UNKNOWN, _UNKNOWN)
"""Of a tensor whose values at attach nobody knows (on the meta device, for example)."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """A backbone without its classifier, as it was before a method was attached.

    Attributes:
        architecture: timm's name of it, or its class.
        checkpoint: What timm knows of its weights: ``tag``, ``hf_hub_id``, ``file``, ``url``, as far as given.
        layout: 8 hex digits of the hash of all names and shapes.
        tensors: Name of every parameter and buffer -> fingerprint.
    """

    architecture: str
    checkpoint: dict[str, str]
    layout: str
    tensors: dict[str, Fingerprint]

    @property
    def dtype(self) -> str:
        """The number format of most tensors."""
        formats = [print_.dtype for print_ in self.tensors.values() if "float" in print_.dtype]
        return max(sorted(set(formats)), key=formats.count) if formats else "unknown"

    @property
    def id(self) -> str:
        """16 hex digits; the same for float32 weights and their bfloat16 copy."""
        lines = [self.layout, *(self.tensors[name].bfloat16 for name in sorted(self.tensors))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    @functools.cached_property
    def text(self) -> str:
        """All of it as JSON, samples included; ``from_text`` reads it."""
        return json.dumps(dataclasses.asdict(self))

    def named_checkpoint(self) -> str:
        """The checkpoint in words."""
        known = [f"{key} {value}" for key, value in self.checkpoint.items()]
        return f"{self.architecture} ({', '.join([*known, f'id {self.id}', self.dtype])})"


def fingerprint(tensor: Tensor) -> Fingerprint:
    """The fingerprint of a tensor; ``UNKNOWN`` where it has no values (meta device) or does not give them."""
    value = _values(tensor)
    if value is None:
        return UNKNOWN
    dtype, exact = str(value.dtype).removeprefix("torch."), _digest(value)
    if not value.is_floating_point():
        return Fingerprint(dtype, exact, exact, exact, _sample(value))
    bfloat16, float16 = (
        exact if value.dtype == half else _digest(value.to(half)) for half in (torch.bfloat16, torch.float16)
    )
    return Fingerprint(dtype, exact, bfloat16, float16, _sample(value))


def identify(model: Any) -> Identity:
    """The identity of a timm model that carries no method.

    Raises:
        UnsupportedModel: No single module is the classifier.
    """
    places = tensor_places(model)
    tensors = {name: fingerprint(getattr(module, leaf)) for name, (module, leaf) in places.items()}
    shapes = {name: tuple(getattr(module, leaf).shape) for name, (module, leaf) in places.items()}
    layout = hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:_DIGITS]
    config = getattr(model, "pretrained_cfg", None) or {}
    known = {key: str(config[key]) for key in ("tag", "hf_hub_id", "file", "url") if config.get(key)}
    if "file" in known:
        known["file"] = Path(known["file"]).name  # Where it lies here is nobody else's business.
    if len(known) > 1 and "url" in known:
        del known["url"]  # Another source of what the rest names already.
    return Identity(architecture_of(model), known, layout, tensors)


def architecture_of(model: Any) -> str:
    """The name that timm gives a model, or its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def tensor_places(model: Any) -> dict[str, tuple[nn.Module, str]]:
    """Name of every parameter and buffer, classifier left out -> its module and its name in there."""
    classifier = classifier_name(model)
    places = {}
    for path, module in model.named_modules():
        if path == classifier or path.startswith(f"{classifier}."):
            continue
        for leaf, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                places[f"{path}.{leaf}" if path else leaf] = (module, leaf)
    return places


def same_weights(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two tensors are the same, or one is the other in another number format; unknown ones pass."""
    if not (one.known and other.known) or one.exact == other.exact or one.bfloat16 == other.bfloat16:
        return True
    # float16 takes small values to zero: it only decides where nothing finer is there.
    return "float16" in (one.dtype, other.dtype) and one.float16 == other.float16


def is_rounded(tensor: Tensor, before: Fingerprint) -> bool:
    """Whether a tensor has the values of a fingerprint up to rounding, by the sample alone."""
    value = _values(tensor)
    if value is None or not before.known:
        return True
    now, then = torch.tensor(_sample(value)), torch.tensor(before.sample)
    if now.shape != then.shape:
        return False
    half = any(d in ("bfloat16", "float16") for d in (before.dtype, str(value.dtype).removeprefix("torch.")))
    allowed = (2**-7 if half else _ROUNDED) * then.abs() + 1e-7 + 1e-6 * (then.abs().max() if len(then) else 0)
    return bool(((now - then).abs() <= allowed).all())


def is_unchanged(tensor: Tensor, before: Fingerprint) -> bool:
    """Whether a tensor has every value of a fingerprint, a change of the number format apart."""
    value = _values(tensor)
    if value is None:
        return not before.known
    if not before.known:
        return False
    if _digest(value) == before.exact and str(value.dtype) == f"torch.{before.dtype}":
        return True
    if not value.is_floating_point() or "float" not in before.dtype:
        return False
    # A cast may have gone through a narrower format: then every value is one of that format.
    formats = {before.dtype: before.exact, "bfloat16": before.bfloat16, "float16": before.float16}
    for dtype, digest in formats.items():
        narrow = value.to(getattr(torch, dtype))
        if _digest(narrow) == digest and torch.equal(narrow.to(value.dtype), value):
            return True
    return False


def from_text(text: Any) -> Identity | None:
    """The identity whose ``text`` it is; ``None`` if it is something else."""
    try:
        values = json.loads(text)
        tensors = {
            str(name): Fingerprint(
                *(str(entry[key]) for key in ("dtype", "exact", "bfloat16", "float16")),
                sample=tuple(float(value) for value in entry["sample"]),
            )
            for name, entry in values["tensors"].items()
        }
        checkpoint = {str(key): str(value) for key, value in values["checkpoint"].items()}
        return Identity(str(values["architecture"]), checkpoint, str(values["layout"]), tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def pack(identity: Identity) -> dict[str, Any]:
    """What a file's header holds of an identity: digests in the order of the names, which the model gives."""
    prints = [identity.tensors[name] for name in sorted(identity.tensors)]
    formats = sorted({print_.dtype for print_ in prints})
    return {
        "checkpoint": identity.checkpoint,
        "layout": identity.layout,
        "dtypes": formats,
        "dtype": [formats.index(print_.dtype) for print_ in prints],
        **{key: "".join(getattr(p, key) for p in prints) for key in ("exact", "bfloat16", "float16")},
    }


def unpack(architecture: str, packed: Any, names: list[str]) -> Identity:
    """What ``pack`` wrote, for a model with these names.

    Args:
        architecture: Of the file.
        packed: What ``pack`` returned, through JSON.
        names: Names of the tensors of the given model; where they are not those of the file, ``layout`` differs and
            the names are numbers.

    Raises:
        ValueError, TypeError, KeyError, IndexError: It is damaged.
    """
    formats, count = [str(name) for name in packed["dtypes"]], len(packed["dtype"])
    if any(len(packed[key]) != _DIGITS * count for key in ("exact", "bfloat16", "float16")):
        raise ValueError("a digest is missing")
    ordered = sorted(names) if len(names) == count else [f"{i:09}" for i in range(count)]
    tensors = {}
    for i, name in enumerate(ordered):
        exact, bfloat16, float16 = (
            str(packed[k][_DIGITS * i : _DIGITS * (i + 1)]) for k in ("exact", "bfloat16", "float16")
        )
        tensors[name] = Fingerprint(formats[packed["dtype"][i]], exact, bfloat16, float16)
    checkpoint = {str(key): str(value) for key, value in packed["checkpoint"].items()}
    return Identity(architecture, checkpoint, str(packed["layout"]), tensors)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor (FSDP2), of which every process holds a part, put together; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def _values(tensor: Tensor) -> Tensor | None:
    tensor = whole(tensor).detach()
    if tensor.is_meta or type(tensor) is not Tensor:
        return None  # Without data, or a subclass that stands for values it does not hold as they are.
    return tensor.cpu().contiguous()


def _digest(value: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(value.shape)).encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]


def _sample(value: Tensor) -> tuple[float, ...]:
    flat = value.reshape(-1)
    return tuple(flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].double().tolist())
