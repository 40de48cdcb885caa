"""The residual stream: letting its maps go early, and writing residual sums in place.

``model.forward_features`` passes a whole stage's input to a container, and the call's own arguments hold it until the
last block has run. ``stepwise`` calls the same modules one by one instead. ``in_place`` (opt-in) also writes every
residual sum over the stream: then whoever keeps a block's input or output in a hook must copy it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2a.backbones import Backbone, Edits, evaluating, family_of, in_checkpoint, input_channels
from s2a.errors import S2AError
from s2a.lean.registry import WritesInPlace
from s2a.ops.keeping import keeps_for_backward
from s2a.registry import Method


def call_stepwise(backbone: Backbone, edits: Edits) -> None:
    """Lets ``forward_features`` call stem, blocks and norm one by one, if a trial run gives the same features."""
    model: Any = backbone.model
    if family_of(model).steps is None:
        return
    reference = next(model.parameters())
    blank = torch.zeros(1, input_channels(model), *backbone.image_size, device=reference.device, dtype=reference.dtype)
    # Exact equality on one blank image: a model that does more between its blocks keeps its own forward pass. Without
    # data the same operators in the same order stand for it.
    without_data = isinstance(reference, FakeTensor) or reference.is_meta
    with evaluating(model), _Operators() if without_data else contextlib.nullcontext() as noted:
        expected = model.forward_features(blank)
        whole = noted.take() if noted else None
        for step in family_of(model).steps(model):  # type: ignore[misc]
            blank = step(blank)
    same = noted.take() == whole if noted else torch.equal(blank, expected)
    if blank.shape == expected.shape and same:
        paths = {block.name.rpartition(".")[0] for block in backbone.blocks}
        paths |= {path.rpartition(".")[0] for path in paths}
        edits.override(model, "s2a_containers", tuple((path, backbone.module(path)) for path in sorted(paths - {""})))
        edits.override(model, "forward_features", _forward_features)


class _Operators(TorchDispatchMode):
    """Notes the operators that run, and the shapes of their first results."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[str, Any]] = []

    def take(self) -> list[tuple[str, Any]]:
        """What was noted since the last time."""
        seen, self._seen = self._seen, []
        return seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes the operator and runs it."""
        out = func(*args, **(kwargs or {}))
        self._seen.append((str(func), tuple(getattr(out, "shape", ()))))
        return out


def _forward_features(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    given = any(value is not None and value is not False for value in (*args, *kwargs.values()))
    if given or not keeps_for_backward() or not _can_call_parts(self):
        return type(self).forward_features(self, x, *args, **kwargs)
    for step in family_of(self).steps(self):  # type: ignore[misc]
        x = step(x)
    return x


def _can_call_parts(model: nn.Module) -> bool:
    """Whether no container has hooks, gradient checkpointing or a wrapper, which calling its parts would leave out."""
    for path, container in model.s2a_containers:  # type: ignore[union-attr,operator]
        if model.get_submodule(path) is not container or "forward" in container.__dict__:
            return False
    for module in model.modules():
        if module.__dict__.get("grad_checkpointing"):
            return False
        container = isinstance(module, nn.Sequential) or "grad_checkpointing" in module.__dict__
        if container and module is not model and (module._forward_hooks or module._forward_pre_hooks):
            return False
    return True


def writable(x: Tensor) -> bool:
    """Whether a training step may write over a tensor: with gradient, in no checkpoint, no leaf that trains."""
    if not keeps_for_backward() or (x.is_leaf and x.requires_grad):
        return False
    # What a checkpoint holds of a region is the region's input itself, and its second run starts from that; of a
    # reentrant one autograd refuses an output that is a view.
    return torch.compiler.is_compiling() or not (in_checkpoint() or "CheckpointFunction" in type(x.grad_fn).__name__)


def add_in_place(x: Tensor, more: Tensor) -> Tensor:
    """The sum x + more, written over ``x`` where ``x`` has the sum's dtype."""
    return x.add_(more) if x.dtype == torch.promote_types(x.dtype, more.dtype) else x + more


def _vit(self: Any, x: Tensor) -> Tensor:
    x = add_in_place(x, self.drop_path1(self.ls1(self.attn(self.norm1(x)))))
    return add_in_place(x, self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


def _swin(self: Any, x: Tensor) -> Tensor:
    shape = x.shape
    x = add_in_place(x, self.drop_path1(self._attn(self.norm1(x))))
    x = x.reshape(shape[0], -1, shape[3])
    return add_in_place(x, self.drop_path2(self.mlp(self.norm2(x)))).reshape(shape)


def _convnext(self: Any, x: Tensor) -> Tensor:
    if not isinstance(self.shortcut, nn.Identity):
        return type(self).forward(self, x)
    y = self.conv_dw(x)
    if self.use_conv_mlp:
        y = self.mlp(self.norm(y))
    else:
        y = self.mlp(self.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    if self.gamma is not None:
        y = y.mul(self.gamma.reshape(1, -1, 1, 1))
    return add_in_place(x, self.drop_path(y))


def write_in_place(backbone: Backbone, blocks: Iterable[str], method: Method, edits: Edits) -> None:
    """Lets blocks, and what a method adds to the stream, write their sums over it.

    Args:
        backbone: With the method's hooks in place.
        blocks: Paths of the blocks.
        method: Whose modules write too where they can (``registry.WritesInPlace``).
        edits: Log that takes it back.

    Raises:
        S2AError: Something trains that reads the stream in its backward pass.
    """
    # Refuse what would be wrong: a method's module, or a depthwise convolution, that needs its input afterwards.
    modules = [backbone.module(name) for name in blocks]
    mixers = [getattr(module, "conv_dw", None) for module in modules]
    if method.reads_stream or any(mixer is not None and mixer.weight.requires_grad for mixer in mixers):
        raise S2AError(
            f"in_place=True writes over the residual stream, which {type(method).__name__} reads again in the backward "
            f"pass on this {backbone.family}; leave in_place out, activations='lean' works without it."
        )
    for module in modules:
        if type(module) in IN_PLACE:
            edits.override(module, "s2a_in_place", True)
    for module in method.modules():
        if isinstance(module, WritesInPlace):
            edits.override(module, "s2a_in_place", True)


IN_PLACE: dict[type[nn.Module], Any] = {Block: _vit, SwinTransformerBlock: _swin, ConvNeXtBlock: _convnext}
"""Block -> its forward with residual sums written over its input."""
