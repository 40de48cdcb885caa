"""Low-rank update of a frozen layer: y = W x + b + s B A x (LoRA; paper equation 15)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2a.backbones import Backbone, Edits, called
from s2a.errors import UnsupportedModel


def gain_of(layer: nn.Module) -> float:
    """The layer's own gain ``|W| / sqrt(out)``: RMS of W x for inputs x whose components are independent, of RMS 1.

    1 for a layer without data (``torch.device("meta")``), where only sizes are asked for.
    """
    weight: Any = layer.weight
    if weight.is_meta:
        return 1.0
    dtype = torch.promote_types(weight.dtype, torch.float32)
    gain = float(torch.linalg.vector_norm(weight.detach(), dtype=dtype)) / len(weight) ** 0.5
    return gain if 0 < gain < math.inf else 1.0


def largest_rank(layer: nn.Module, path: str) -> int:
    """The smaller side of a layer's weight: the largest rank of an update of it.

    Args:
        layer: A linear layer or a convolution without groups.
        path: Its name, for the error.

    Raises:
        UnsupportedModel: Another layer.
    """
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str):
        return min(layer.in_channels, layer.out_channels)
    raise UnsupportedModel(
        f"{path} is {type(layer).__name__}; low-rank updates are for linear layers and convolutions without groups."
    )


class LowRankUpdate(nn.Module):
    """s B A dropout(x), added to the output of a frozen layer. Starts at zero: B is zero.

    Hu et al., LoRA, ICLR 2022, https://arxiv.org/abs/2106.09685. A convolution is updated as in LyCORIS and peft: A is
    one of the same kernel and stride to r channels, B is 1 x 1.

    Args:
        layer: A linear layer or an ungrouped convolution.
        rank: r.
        scale: s; alpha / r in LoRA's terms.
        dropout: Of x.
        keep_scale: Makes s a part of the state, for an s that comes from the layer's weight: whoever loads the state
            gets its s, whatever weight was there before.

    Attributes:
        scale: s.
        scale_bits: With ``keep_scale`` the bits of s, float64, as an integer, which no change of format rounds.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        rank: int,
        scale: float = 1.0,
        dropout: float = 0.0,
        keep_scale: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.a: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            self.b: nn.Module = nn.Linear(rank, layer.out_features, bias=False)
        else:
            geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            self.a = nn.Conv2d(layer.in_channels, rank, *geometry, bias=False)  # type: ignore[arg-type]
            self.b = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))  # type: ignore[arg-type]
        nn.init.zeros_(self.b.weight)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.scale = scale
        if keep_scale:
            self.register_buffer("scale_bits", torch.tensor(scale, dtype=torch.float64).view(torch.int64))
            self.register_load_state_dict_post_hook(_take_scale)

    def forward(self, x: Tensor) -> Tensor:
        """The update of the layer's output: ``(..., in)`` to ``(..., out)``, or ``(B, in, H, W)`` for a convolution."""
        return self.scale * self.b(self.a(self.dropout(x)))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the frozen layer."""
        return output + self(args[0])

    def low_rank(self) -> tuple[Tensor, Tensor, float] | None:
        """A ``(r, in)``, B ``(out, r)`` and the scale of the update of a linear layer or a 1 x 1 convolution.

        A lean block computes the update's input from what its norm keeps, so it needs these instead of the hook.
        ``None`` for other convolutions and while dropout is active.
        """
        dropping = isinstance(self.dropout, nn.Dropout) and self.dropout.training
        plain = isinstance(self.a, nn.Linear) or (
            isinstance(self.a, nn.Conv2d) and self.a.kernel_size == self.a.stride == (1, 1) and not any(self.a.padding)
        )
        if dropping or not plain:
            return None
        return self.a.weight.flatten(1), self.b.weight.flatten(1), self.scale  # type: ignore[operator, return-value]

    def delta(self) -> Tensor:
        """The product scale * B A, ``(out, in * kernel)``: what merging adds to the layer's weight."""
        return self.scale * (self.b.weight.flatten(1) @ self.a.weight.flatten(1))  # type: ignore[operator]


def _take_scale(update: Any, keys: Any) -> None:
    """After a state was loaded, s is the state's."""
    if not update.scale_bits.is_meta:
        update.scale = update.scale_bits.cpu().view(torch.float64).item()


class LowRankUpdates(nn.ModuleList):
    """Low-rank updates of some layers of a backbone, in the layers' order.

    Args:
        backbone: Whose layers are updated.
        edits: Where the hooks go.
        targets: Path of a layer, rank and scale of its update.
        dropout: See ``LowRankUpdate``.
        train_a: Whether A trains.
        keep_scales: See ``LowRankUpdate``.

    Attributes:
        paths: Of the updated layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        edits: Edits,
        targets: Sequence[tuple[str, int, float]],
        dropout: float = 0.0,
        train_a: bool = True,
        keep_scales: bool = False,
    ) -> None:
        super().__init__()
        self.paths = [path for path, _, _ in targets]
        # Elements that each update saves for one image: its input, unless A is frozen, and A's output.
        self._inputs: list[int] = []
        self._hidden: list[int] = []
        shapes = called(backbone.model, self.paths, backbone.image_size)
        for path, rank, scale in targets:
            layer: Any = backbone.module(path)
            update = LowRankUpdate(layer, rank, scale, dropout, keep_scales)
            update.a.requires_grad_(train_a)
            edits.after(layer, update.after)
            self.append(update)
            x, y = shapes[path]
            self._inputs.append(math.prod(x))
            self._hidden.append(math.prod(y) // layer.weight.shape[0] * rank)

    def __getitem__(self, index: Any) -> Any:
        """One update, or a list of some."""
        return list(self)[index]

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of every update's input and A x in fp32, and of dropout's mask where a gradient passes, by module."""
        kept = {}
        for i, update in enumerate(self):
            if update.a.weight.requires_grad:  # type: ignore[union-attr]
                kept[f"{i}.a"] = 4 * batch_size * self._inputs[i]
            kept[f"{i}.b"] = 4 * batch_size * self._hidden[i]
            # On a CPU a mask is float32. The input of the first update has no gradient, so that its mask is not saved.
            if i and isinstance(update.dropout, nn.Dropout):
                width = 4 if next(update.parameters()).device.type == "cpu" else 1
                kept[f"{i}.dropout"] = width * batch_size * self._inputs[i]
        return kept

    def fold(self, model: nn.Module) -> None:
        """Writes W + scale * B A into every updated layer of ``model``, a plain copy of the backbone."""
        for path, update in zip(self.paths, self, strict=True):
            weight: Any = model.get_submodule(path).weight
            weight += update.delta().view_as(weight)  # type: ignore[operator]
