"""Pages the frozen weights of an adapted model, and takes that back."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from s2a.adapted import Adapted, require_adapted
from s2a.backbones import evaluating, input_channels
from s2a.errors import NothingToPage, S2AError
from s2a.paging import Page, Pager, is_plain, paged_apply, paged_forward
from s2a.paging.homes import are_mapped, checked_path, in_file, in_temporary_file, pinned

LEAST_BYTES = 64 << 10
"""Weights of fewer bytes stay: a copy of them costs more time than it saves memory."""


def page_frozen(
    adapted: Adapted,
    store: str | os.PathLike[str] = "host",
    *,
    prefetch: bool | None = None,
    least_bytes: int = LEAST_BYTES,
) -> int:
    """Keeps frozen weights out of the device's memory: layers copy them there while they compute, forward and backward.

    What is paged: the frozen weights of the backbone's linear and convolution layers. Biases, norms, tables and what
    the method added stay. Gradients are those of the model without paging. The parameters stay where they are in the
    model and hold their values, so that ``save``, ``load``, ``merge``, ``state_dict`` and ``export`` work as before;
    ``model.to(...)`` changes their dtype, and not their place. ``detach`` gives the backbone back on its device. Call
    it before DDP wraps the model: every process has a store of its own. ``torch.compile`` leaves paged layers out.

    A deep copy of a model on CUDA, or one that was pickled, has its homes in ordinary host memory, from which copies
    are slower: ``copied.to("cuda")`` pins them.

    Args:
        adapted: What ``s2a.attach`` returned; in place.
        store: ``"host"``: on CUDA pinned host memory; on a CPU a temporary file that is mapped, unless the weights
            are mapped from a file already. Or the path of a ``.safetensors`` file, which is written if it is not there,
            and mapped.
        prefetch: Whether the next layer's copy is made while the present one computes, on a stream of its own;
            ``None``: on CUDA, and of a model without data, which stands for one on a card. With True it is made early
            on a CPU too, which serves simulations of a card.
        least_bytes: Smaller weights are left alone.

    Returns:
        Bytes that left the device (``s2a.host_bytes``).

    Raises:
        NothingToPage: No frozen weight of such a layer that is large enough.
        S2AError: No adapted model, one that is paged already, weights that two layers share, no pinned memory
            left, or a file that cannot hold them.
    """
    adapted = require_adapted("page_frozen", adapted)
    if prefetch not in (None, True, False):
        raise S2AError(f"prefetch={prefetch!r} must be True, False or None.")
    path = None if store == "host" else checked_path(store)
    if adapted._paging:
        raise S2AError("The frozen weights are paged already; call s2a.unpage_frozen first.")
    names = _pageable(adapted, least_bytes)
    layers = [adapted.backbone.get_submodule(name) for name in names]
    weights: list[nn.Parameter] = [layer.weight for layer in layers]  # type: ignore[misc]
    device = weights[0].device
    # 1. Homes; tensors without data have no place, so that theirs is only noted.
    plain = not any(isinstance(weight, FakeTensor) or weight.is_meta for weight in weights)
    mapped = are_mapped(weights) if plain else [True] * len(weights)
    homes: list[Tensor | None] = [None] * len(weights)
    if plain and path is not None:
        stored = in_file(path, {f"{n}.weight": w for n, w in zip(names, weights, strict=True)})
        homes = [stored[f"{name}.weight"] for name in names]
    # 2. Layers, in the order in which they run. All of it is in the log of edits, so that ``detach`` takes it back.
    edits, before = adapted._edits, len(adapted._edits)
    # A model without data stands for one on a card, which holds the next copy too.
    pager = Pager(prefetch if plain or prefetch is not None else True, pins=path is None)
    try:
        for name, layer, weight, home, is_mapped in zip(names, layers, weights, homes, mapped, strict=True):
            if plain and home is None and not is_mapped:
                home = pinned(weight) if device.type == "cuda" else in_temporary_file(weight)
            edits.add(_Moved(layer, adapted.backbone, home is not None))
            if home is not None:
                weight.data = home
            pager.layers.append(layer)
            edits.override(layer, "s2a_page", Page(pager, len(pager.layers) - 1, f"{name}.weight"))
            edits.override(layer, "forward", paged_forward)
            edits.override(layer, "_apply", paged_apply)
        edits.before(adapted, pager.begin)
        _leave_out_of_ddp(adapted, names)
    except BaseException as error:
        edits.undo_only(edits.added_since(before))
        if isinstance(error, OSError):
            raise S2AError(
                f"The frozen weights cannot be moved to a temporary file ({error}); give store=PATH."
            ) from error
        raise
    adapted._paging = edits.added_since(before)
    return sum(weight.numel() * weight.element_size() for weight in weights)


def unpage_frozen(adapted: Adapted) -> None:
    """Puts paged weights back on the device: what ``page_frozen`` did is undone. Without paged weights nothing happens.

    Raises:
        S2AError: No adapted model.
    """
    adapted = require_adapted("unpage_frozen", adapted)
    adapted._edits.undo_only(adapted._paging)
    adapted._paging = []


@dataclasses.dataclass
class _Moved:
    """A weight that was moved to a home; ``model`` is on the device that it goes back to."""

    layer: nn.Module
    model: nn.Module
    moved: bool  # to a home of its own: one that was mapped before stays mapped

    def undo(self) -> None:
        weight = self.layer._parameters["weight"]
        if weight is None:
            return
        device = next(self.model.parameters()).device  # The first one is never paged.
        if weight.device != device:
            weight.data = weight.detach().to(device)
        elif self.moved:
            weight.data = weight.detach().clone()


def _leave_out_of_ddp(adapted: Adapted, names: list[str]) -> None:
    """DDP takes models on one device alone, and neither sends nor checks what a model lists here."""
    key = "_ddp_params_and_buffers_to_ignore"
    listed = [*getattr(adapted, key, []), *(f"backbone.{name}.weight" for name in names)]
    adapted._edits.override(adapted, key, listed)


def _pageable(adapted: Adapted, least_bytes: int) -> list[str]:
    """Names of the layers whose weights can be paged, in the order in which a forward pass calls them.

    Raises:
        NothingToPage: None.
        S2AError: Layers that share a weight.
    """
    backbone = adapted.backbone
    # Whoever asks for the device of a model looks at its first parameter, which therefore stays.
    first = next(backbone.parameters())
    found: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        weight: Any = module._parameters.get("weight")
        if weight is None or weight.requires_grad or weight is first or not is_plain(module):
            continue
        if weight.numel() * weight.element_size() >= least_bytes:
            found[name] = module
    counts = Counter(id(p) for module in adapted.modules() for p in module._parameters.values() if p is not None)
    shared = [name for name, module in found.items() if counts[id(module._parameters["weight"])] > 1]
    if shared:
        raise S2AError(
            f"The weight of {shared[0]} is shared with another module, which would find it in host memory; weights "
            "that are tied cannot be paged."
        )
    order = _called_alone(adapted, found)
    if not order:
        raise NothingToPage(
            f"Nothing of this model can be paged: under {adapted.name!r} no linear or convolution layer of "
            f"{least_bytes:,} bytes or more has a frozen weight that it alone reads; only frozen weights leave the "
            "device."
        )
    return order


def _called_alone(adapted: Adapted, layers: dict[str, nn.Module]) -> list[str]:
    """Which layers are called, and have a weight that nothing else reads, by a pass of a blank image; in its order.

    Some modules multiply with a layer's weight themselves (EVA's attention), without calling the layer.
    """
    watch = _Readers(layers)
    handles = [layer.register_forward_pre_hook(watch.enter) for layer in layers.values()]
    handles += [layer.register_forward_hook(watch.leave) for layer in layers.values()]
    reference = next(adapted.head.parameters(), next(adapted.backbone.parameters()))
    shape = (1, input_channels(adapted.backbone), *adapted.image_size)
    try:
        with evaluating(adapted), watch:
            adapted(torch.zeros(shape, device=reference.device, dtype=reference.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in dict.fromkeys(watch.called) if name not in watch.read_elsewhere]


class _Readers(TorchFunctionMode):
    """Notes which weights are given to functions outside of their own layer's forward pass."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self._names = {id(layer): name for name, layer in layers.items()}
        self._weights = {id(layer._parameters["weight"]): name for name, layer in layers.items()}
        self._running: list[str] = []
        self.called: list[str] = []
        self.read_elsewhere: set[str] = set()

    def enter(self, layer: nn.Module, args: Any) -> None:
        """Forward pre-hook of the layers."""
        self._running.append(self._names[id(layer)])
        self.called.append(self._running[-1])

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the layers."""
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes the weights that a tensor is made of; looking at a shape or a dtype is no reading."""
        out = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) for value in _flat((out,))):
            for value in _flat((*args, *(kwargs or {}).values())):
                name = self._weights.get(id(value))
                if name is not None and self._running[-1:] != [name]:
                    self.read_elsewhere.add(name)
        return out


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _flat(value)
        else:
            yield value
