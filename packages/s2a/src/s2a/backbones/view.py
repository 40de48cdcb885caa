"""A timm model seen through the table of families: its blocks, their shapes, its head."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from s2a.backbones.calls import new_pass, running
from s2a.backbones.families import Layout, family_of
from s2a.backbones.refusals import refuse_quantised
from s2a.errors import UnsupportedModel


@dataclasses.dataclass(frozen=True)
class Block:
    """One residual block and the shape of its input.

    Attributes:
        name: Dotted path in the model.
        stage: Index of its stage, from 0.
        channels: C.
        grid: Height and width in positions.
        grid_out: Height and width of the block's output.
        prefix: Class and register tokens in front of the grid (NLC only).
        layout: See ``Family.layout``.
        window: Height and width of the attention windows; ``None`` where attention is global or absent.
        heads: Attention heads; 0 where there are none.
        linears: Role (``qkv``, ``proj``, ``fc1``, ``fc2``; ``conv1`` ... ``conv3``) -> dotted path in the model, of
            linear and convolution layers that are called.
        parts: Role (``attn_norm``, ``attn``, ``mlp_norm``, ``mlp``) -> dotted path in the model, of modules that are
            called.
    """

    name: str
    stage: int
    channels: int
    grid: tuple[int, int]
    grid_out: tuple[int, int]
    prefix: int
    layout: Layout
    window: tuple[int, int] | None
    heads: int
    linears: dict[str, str]
    parts: dict[str, str]

    @property
    def tokens(self) -> int:
        """N: prefix tokens and grid positions together."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model seen through the table: the read-only view that methods are given.

    Attributes:
        model: The timm model itself.
        family: Its family's name.
        blocks: Every residual block, in forward order.
        features: Width of the pooled features in front of the classifier.
        classifier: Dotted path of the classifier.
        image_size: Height and width the shapes belong to.
    """

    model: nn.Module
    family: str
    blocks: tuple[Block, ...]
    features: int
    classifier: str
    image_size: tuple[int, int]

    @property
    def reads_class_token(self) -> bool:
        """Whether the model's own head reads the class token alone, not a pool over the positions."""
        return reads_class_token(self.model)

    def module(self, name: str) -> nn.Module:
        """The submodule at a dotted path."""
        return self.model.get_submodule(name)


def reads_class_token(model: nn.Module) -> bool:
    """Whether a model's own head reads the class token alone, not a pool over the positions."""
    return family_of(model).layout == "NLC" and getattr(model, "global_pool", "") == "token"


def input_size(model: Any) -> tuple[int, int]:
    """Height and width that a timm model expects: its patch embedding's, else its pretrained config's."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-2:]
    return int(size[0]), int(size[1])


def describe(model: nn.Module, image_size: int | Sequence[int] | None = None) -> Backbone:
    """Looks a timm model up in the table and measures its blocks by one forward pass of a blank image.

    Args:
        model: A timm model of a known family.
        image_size: Side, or height and width, in pixels; ``None`` takes the model's own.

    Raises:
        UnsupportedModel: Unknown family, quantised weights, features that are not pooled, no such block, or a block
            whose input does not have the family's layout.
    """
    family = family_of(model)
    refuse_quantised(model)
    stages = family.stages(model)
    size = input_size(model) if image_size is None else _sides(image_size)
    patch_drop = getattr(model, "patch_drop", None)
    if patch_drop is not None and not isinstance(patch_drop, nn.Identity):
        raise UnsupportedModel(
            f"{type(model).__name__} drops patches in training (patch_drop_rate), which leaves tokens without a place; "
            "create it with patch_drop_rate=0."
        )
    names = [name for stage in stages for name in stage]
    kinds = {
        **dict.fromkeys(family.linears.values(), (nn.Linear, nn.Conv2d)),
        **dict.fromkeys(family.parts.values(), ()),
    }
    inside = [f"{n}.{path}" for n in names for path, kind in kinds.items() if _has_module(model, f"{n}.{path}", kind)]
    shapes, pooled = _run_blank(model, [*names, *inside], size)
    if len(pooled) != 2:
        raise UnsupportedModel(
            f"{type(model).__name__} returns features of shape {pooled} for one image, not one vector: its pooling is "
            "off (global_pool=''); create it with global_pool='avg', or 'token' where it has a class token."
        )
    blocks = []
    for s, names in enumerate(stages):
        for name in names:
            shape, shape_out = shapes.get(name, (None, None))
            if shape is None or shape_out is None or len(shape) != (3 if family.layout == "NLC" else 4):
                raise UnsupportedModel(
                    f"{type(model).__name__}: block {name} gets input of shape {shape}, not {family.layout}; "
                    f"this {family.name} variant is not supported."
                )
            channels, grid, prefix = _geometry(model, family.layout, shape, size)
            grid_out = _geometry(model, family.layout, shape_out, size)[1]
            block: Any = model.get_submodule(name)
            window = (int(block.window_size[0]), int(block.window_size[1])) if family.windowed else None
            heads = int(getattr(getattr(block, "attn", None), "num_heads", 0))
            # Some blocks read a layer's weight without calling the layer (EVA): a hook there would never run.
            linears = {role: f"{name}.{path}" for role, path in family.linears.items() if f"{name}.{path}" in shapes}
            parts = {role: f"{name}.{path}" for role, path in family.parts.items() if f"{name}.{path}" in shapes}
            geometry = (channels, grid, grid_out, prefix, family.layout, window, heads)
            blocks.append(Block(name, s, *geometry, linears=linears, parts=parts))
    return Backbone(model, family.name, tuple(blocks), pooled[1], classifier_name(model), size)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UnsupportedModel(f"image_size={image_size!r} must be a side, or height and width, in pixels.")
    return sides[0], sides[1]


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: its first convolution's."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((convolution.in_channels for convolution in convolutions), 3)


Shape = tuple[int, ...]


def called(model: nn.Module, names: Sequence[str], size: tuple[int, int]) -> dict[str, tuple[Shape, Shape]]:
    """Input and output shape of those of the named modules that run on a blank image of ``size``.

    Raises:
        UnsupportedModel: The model cannot take such an image.
    """
    return _run_blank(model, names, size)[0]


def _run_blank(
    model: nn.Module, names: Sequence[str], size: tuple[int, int]
) -> tuple[dict[str, tuple[Shape, Shape]], Shape]:
    """As ``called``, and the shape of the pooled features."""
    shapes: dict[str, tuple[Shape, Shape]] = {}

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            shapes[name] = tuple(args[0].shape), tuple(output.shape)

    handles = [model.get_submodule(n).register_forward_hook(partial(record, n)) for n in names]
    reference = next(model.parameters())
    try:
        with evaluating(model):
            blank = torch.zeros(1, input_channels(model), *size, device=reference.device, dtype=reference.dtype)
            pooled = pooled_features(model, blank)  # Norms may sit behind the pooling.
    except (AssertionError, RuntimeError) as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot take an image of {size[0]} x {size[1]} pixels ({error}); "
            "create it for that size, or give the image_size that it was made for."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return shapes, tuple(pooled.shape)


def _geometry(
    model: Any, layout: Layout, shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[int, tuple[int, int], int]:
    if layout == "NCHW":
        return shape[1], (shape[2], shape[3]), 0
    if layout == "NHWC":
        return shape[3], (shape[1], shape[2]), 0
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    patches = shape[1] - prefix
    grid = tuple(model.patch_embed.dynamic_feat_size(size))
    if grid[0] * grid[1] != patches:
        raise UnsupportedModel(
            f"{type(model).__name__} has {patches} patch tokens, not a {grid[0]} x {grid[1]} grid; "
            "tokens that form no grid are not supported."
        )
    return shape[2], grid, prefix


def _has_module(model: nn.Module, path: str, kinds: tuple[type[nn.Module], ...]) -> bool:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return isinstance(module, kinds or nn.Module) and not isinstance(module, nn.Identity)


_CHANNELS_FIRST = (_ConvNd, nn.GroupNorm, _BatchNorm)


def channel_axis(layer: nn.Module) -> int:
    """Axis of the channels in a layer's output: 1 for layers on maps ``(B, C, H, W)``, -1 for all others.

    Norms on maps say so in their name alone: timm's LayerNorm2d is an ``nn.LayerNorm``, its RmsNorm2d is not.
    """
    on_maps = isinstance(layer, _CHANNELS_FIRST) or any(
        "Norm" in c.__name__ and "2d" in c.__name__ for c in type(layer).__mro__
    )
    return 1 if on_maps else -1


def classifier_name(model: Any) -> str:
    """Dotted path of the classifier.

    Raises:
        UnsupportedModel: No single module is the classifier.
    """
    head = model.get_classifier()
    for name, module in model.named_modules():
        if module is head:
            return name
    raise UnsupportedModel(f"{type(model).__name__} has no single classifier module; methods cannot replace its head.")


def pooled_features(model: Any, images: Tensor, states: Iterable[tuple[Any, Any]] = ()) -> Tensor:
    """Pooled, normalised features in front of the classifier.

    It is a pass of its own: called by a hook inside of another pass, it leaves that one as it is.

    Args:
        model: A timm model, adapted or not.
        images: ``(B, 3, H, W)``.
        states: Owner and state of what the method's hooks look for in this pass (``s2a.backbones.state_of``).

    Returns:
        ``(B, C)``.
    """
    with contextlib.ExitStack() as stack:
        # What older passes left is hidden; the model's entry lets the last block leave out what no feature comes from.
        for owner, state in ((None, None), *states, (model, new_pass())):
            stack.enter_context(running(owner, state))
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    # A class token is a slice: the head would keep the whole map for it (of a single image even a contiguous one).
    return features.clone(memory_format=torch.contiguous_format)


def split_tokens(x: Tensor, block: Block) -> tuple[Tensor | None, Tensor]:
    """A block's input as ``(prefix tokens (B, P, c, 1) or None, map (B, c, H, W))``; views where possible."""
    if block.layout == "NCHW":
        return None, x
    if block.layout == "NHWC":
        return None, x.permute(0, 3, 1, 2)
    grid = x[:, block.prefix :].transpose(1, 2).unflatten(2, block.grid)
    return (x[:, : block.prefix] if block.prefix else None), grid
