"""UniPT: a small parallel network on hidden states of a frozen backbone.

Diao et al., UniPT, CVPR 2024, https://arxiv.org/abs/2308.14316; https://github.com/Paranioar/UniPT. The equations are
at ``PatchSum`` and ``Mixer``.

Two forms, after the two of the source: on tokens (ViT), and on the maps of stages (Swin, ConvNeXt, ResNet). A 1 x 1
convolution is a linear layer on the channels of every position; here all of them are computed as that. Activations
inside are functions, not modules: the theoretical calculator's rule R2 does not count them, nor did the sums that the
paper's rows were fitted with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from s2a.backbones import Backbone, Edits, called
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.registry import Method, register_method
from torch import Tensor, nn

from s2a_baselines._frozen import Tap, keep_in_evaluation, run_frozen

EPS = 1e-6
"""Added to a sum of weights before it divides them."""

TARGETS = 6
"""Tapped states in front of the anchor, on tokens, in the preset."""


@dataclasses.dataclass(frozen=True)
class UniPTConfig:
    """Width and inputs of the parallel network; the defaults are those of the S2A paper's UniPT rows.

    Attributes:
        reduction: Divisor of the last block's width C that gives the network's width m; 0: 2 on tokens, 8 on maps.
        taps: The states it reads besides the last block's output, the anchor. Ascending numbers: on tokens 0 is the
            embedding and i the output of block i, counted from 1; on maps k is the output of stage k, counted from 1.
            ``"all"``: all of them. ``"preset"``: on tokens n = min(6, L) at equal spacing, floor(i L / n) for L blocks,
            from the embedding on (0, 2, 4, 6, 8, 10 for L = 12); on maps all stages, but Swin's first where it has
            four or more.
        project: On maps, whether every position is projected to m channels ``"before"`` the positions of a patch are
            summed, or their sum ``"after"`` it (the source's order). ``"preset"``: before on Swin, whose positions are
            tokens; after on convolutional maps.
    """

    reduction: int = 0
    taps: str | tuple[int, ...] = "preset"
    project: Literal["preset", "before", "after"] = "preset"

    def __post_init__(self) -> None:
        if not isinstance(self.reduction, int) or isinstance(self.reduction, bool) or self.reduction < 0:
            raise S2AError(
                f"reduction={self.reduction!r} is not a size; give an integer of 1 or more, or 0 for the preset."
            )
        if self.project not in ("preset", "before", "after"):
            raise S2AError(f"project={self.project!r} is unknown; choose 'preset', 'before' or 'after'.")
        if isinstance(self.taps, list):
            object.__setattr__(self, "taps", tuple(self.taps))
        if self.taps in ("preset", "all"):
            return
        numbers = isinstance(self.taps, tuple) and all(type(tap) is int and tap >= 0 for tap in self.taps)
        if not numbers or not self.taps or sorted(set(self.taps)) != list(self.taps):
            raise S2AError(f"taps={self.taps!r} must be ascending numbers from 0 without repeats, 'preset' or 'all'.")


class Projection(nn.Module):
    """A linear layer on the channels and a norm: ``(..., C)`` to ``(..., m)``.

    Args:
        channels: C.
        width: m.
        batch_norm: Normalise every channel over batch and positions, not every position over channels.
    """

    def __init__(self, channels: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(channels, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """The projected and normalised positions."""
        x = self.layer(x)
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)
        if self.training and x.numel() == x.shape[-1]:
            raise S2AError("UniPT's batch norm has one position of one image to train on; give batches of 2 or more.")
        return self.norm(x.flatten(0, -2)).view_as(x)


class PatchSum(nn.Module):
    """Weighted sums over the patches of a stage's map, with weights by similarity to the last map.

    For position p of the last map h_L, and the Q positions q of the patch of the stage's map h that lies under it:

        u_p = ReLU(W h_L,p + b)
        a_pq = ReLU(u_p . h_pq)
        w_pq = a_pq / (sum over q of a_pq + eps) + 1 / Q
        y_p = sum over q of w_pq v_pq

    Args:
        channels_last: C_L of the last map.
        channels: C of the stage's map.
    """

    def __init__(self, channels_last: int, channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels_last, channels)

    def forward(self, last: Tensor, patches: Tensor, values: Tensor) -> Tensor:
        """Sums ``values`` over each patch.

        Args:
            last: The last map ``(B, P, C_L)``.
            patches: The stage's map by positions of the last, ``(B, P, Q, C)``.
            values: What is summed, ``(B, P, Q, c)``.

        Returns:
            ``(B, P, c)``.
        """
        # a_pq: all positions of a patch share one u, so that the last map need not be upsampled.
        similarity = F.relu((patches @ F.relu(self.layer(last)).unsqueeze(-1)).squeeze(-1))
        # w_pq: normalised within the patch, plus the plain mean, so that a patch without similar positions counts too.
        weights = similarity / (similarity.sum(-1, keepdim=True) + EPS) + 1 / patches.shape[2]
        return (weights.unsqueeze(2) @ values).squeeze(2)


class Mixer(nn.Module):
    """Joins projected targets T_k to the projected anchor A, all ``(B, N, m)``, and goes back to C channels.

        S_k = ReLU(A T_k^T), rows divided by their sums (+ eps), + I
        c_k = softmax over k of (w_g . (mean A * mean T_k) + b_g)
        M = sum over k of c_k S_k T_k
        output = W_u ReLU(A + norm(W_p M + b_p)) + b_u

    Means are over the N positions. With a single target there is no gate: c is 1.

    Args:
        width: m.
        channels: C.
        targets: How many.
        batch_norm: See ``Projection``.
    """

    def __init__(self, width: int, channels: int, targets: int, batch_norm: bool) -> None:
        super().__init__()
        # Softmax cancels b_g; the source has it all the same, and it counts as a parameter.
        self.gate = nn.Linear(width, 1) if targets > 1 else None
        self.merge = Projection(width, width, batch_norm)
        self.up = nn.Linear(width, channels)

    def forward(self, anchor: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """``(B, N, C)``."""
        # c_k, (B, K, 1).
        if self.gate is None:
            shares = anchor.new_ones(anchor.shape[0], 1, 1)
        else:
            means = torch.stack([target.mean(1) for target in targets], 1)
            shares = self.gate(anchor.mean(1, keepdim=True) * means).softmax(1)
        merged = torch.zeros_like(anchor)
        # M, one target after the other. One over a small sum overflows in half precision, so sums are in float32.
        exact = torch.promote_types(anchor.dtype, torch.float32)
        for k, target in enumerate(targets):
            share, similarity = shares[:, k : k + 1], F.relu(anchor @ target.mT)
            scale = share / (similarity.sum(-1, keepdim=True, dtype=exact) + EPS)
            # c_k S_k T_k = (c_k / row sums) * (ReLU(A T_k^T) T_k) + c_k T_k: with c_k and the row sums in one factor
            # fewer tensors are saved for the backward pass, and the identity in S_k needs no product.
            merged = merged + (similarity @ target) * scale + share * target
        return self.up(F.relu(anchor + self.merge(merged)))


def split_patches(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Splits a map into one patch for each position of a smaller map, as nearest-neighbour upsampling assigns them.

    Where a side is not a multiple of the smaller one, patches differ in size. The smaller ones are filled with zeros,
    which add nothing to a weighted sum.

    Args:
        x: ``(B, H, W, C)``.
        grid: Height and width of the smaller map.

    Returns:
        ``(B, P, Q, C)``, contiguous: P positions of the smaller map, Q positions of the largest patch.
    """
    sides = [-(-side // count) for side, count in zip(x.shape[1:3], grid, strict=True)]
    if x.shape[1] % grid[0] or x.shape[2] % grid[1]:
        rows, columns = (_members(x.shape[axis + 1], grid[axis], sides[axis], x.device) for axis in (0, 1))
        # One row and one column of zeros at the end, which the missing members of smaller patches point to.
        x = F.pad(x, (0, 0, 0, 1, 0, 1))[:, rows][:, :, columns]
    # (B, rows, patch rows, columns, patch columns, C) -> (B, rows * columns, patch rows * patch columns, C)
    x = x.unflatten(2, (grid[1], sides[1])).unflatten(1, (grid[0], sides[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).contiguous()


def _members(side: int, count: int, largest: int, device: torch.device) -> Tensor:
    """Members of every of ``count`` intervals of 0 ... side - 1, one after the other, each filled up with ``side``.

    Interval p holds the i with floor(i * count / side) = p, so it starts at ceil(p * side / count).
    """
    edges = [-(-p * side // count) for p in range(count + 1)]
    members = [i if i < edges[p + 1] else side for p in range(count) for i in range(edges[p], edges[p] + largest)]
    return torch.tensor(members, device=device)


@register_method("unipt", UniPTConfig)
class UniPT(Method):
    """A parallel network on tapped states of a backbone that runs without gradient; the head reads it alone.

    Raises:
        UnsupportedModel: Maps of a single stage, or that do not shrink from stage to stage.
        S2AError: A reduction, tap or ``project`` that does not fit the model.
    """

    trains_backbone = False
    paper_rules = frozenset({"R9"})
    card = Card(
        title="Universal Parallel Tuning",
        trains="The head and the parallel network.",
        place="Beside the backbone, which runs without gradient and in evaluation mode: it reads the embedding and the "
        "outputs of every second block (ViT), or the last map of each stage (Swin: but the first). The head reads the "
        "network's output, at the class token where the backbone's own head does, else the mean over patches.",
        count="K taps with the anchor; tokens, m = C / 2: K (C m + 3 m) + (m^2 + 3 m) + (m C + C) + m + 1; maps, "
        "m = C_L / 8: sum over k of (C_k m + 3 m) and over k < L of (C_L C_k + C_k), + (m^2 + 3 m) + (m C_L + C_L) "
        "+ m + 1.",
        keeps="Of the backbone only the tapped states, (N, C) each; its own (N, m) tensors; an N x N map per target.",
        inference="The parallel network runs at inference too; it cannot be merged.",
        source="Diao et al., UniPT, CVPR 2024 (Paranioar/UniPT, VSE-infty/lib).",
        evidence="Weak: the S2A paper states no configuration. Counts are 2.1 % above its ViT row, 0.5 % and 0.7 % "
        "below Swin's and ConvNeXt's. Its memory can only be reached by counting the backbone's GELU inputs (rule R9), "
        "which no backward pass reads.",
        deviations="Pooled as the backbone pools, not by a learned aggregator: the source has no image classifier. "
        "Swin's positions are projected before patches are summed, not after: fitted to its memory (after: 4.2 % below "
        "the row).",
        recipe=Recipe(learning_rate=1e-2),
        style=Style(light="#2a93c4", dark="#95dbf8", shape="left"),
        order=70,
    )

    def __init__(self, config: UniPTConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.layout, self.prefix = backbone.blocks[-1].layout, backbone.blocks[-1].prefix
        self.class_token = backbone.reads_class_token
        self.before = _projects_before(config, self.layout)
        taps = _taps(config, backbone)
        sizes = called(backbone.model, sorted({name for name, _ in taps}), backbone.image_size)
        shapes = [sizes[name][1 if after else 0] for name, after in taps]
        axis = 1 if self.layout == "NCHW" else -1
        channels = [shape[axis] for shape in shapes]
        maps = self.layout != "NLC"
        reduction = config.reduction or (8 if maps else 2)
        if channels[-1] % reduction:
            raise S2AError(
                f"reduction={reduction} does not divide the {channels[-1]} channels of {taps[-1][0]}; "
                f"choose a divisor of {channels[-1]}."
            )
        width = channels[-1] // reduction
        self.feature_dim = channels[-1]
        self._positions = _positions(shapes, taps, self.layout)
        self.reduce = nn.ModuleList(Projection(c, width, maps) for c in channels)
        self.weigh = nn.ModuleList(PatchSum(channels[-1], c) for c in channels[:-1] if maps)
        self.mixer = Mixer(width, channels[-1], len(taps) - 1, maps)
        self.taps = nn.ModuleList()
        for name, after in taps:
            tap = Tap(name)
            (edits.after if after else edits.before)(backbone.module(name), tap.after if after else tap.before)
            self.taps.append(tap)
        keep_in_evaluation(backbone.model, edits)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """The parallel network's output, pooled, ``(B, C)``."""
        _, states = run_frozen(model, images, list(self.taps))  # type: ignore[arg-type]
        if self.layout == "NLC":
            reduced = [project(state) for project, state in zip(self.reduce, states, strict=True)]
        else:
            reduced = self._reduced_maps(states)
        output = self.mixer(reduced[-1], reduced[:-1])
        if self.class_token:
            return output[:, 0].contiguous()  # A view would keep the whole output alive for the head's backward pass.
        return output[:, self.prefix :].mean(1)

    def _reduced_maps(self, states: list[Tensor]) -> list[Tensor]:
        """Every tapped map as m channels at the positions of the last one, ``(B, P, m)``."""
        if self.layout == "NCHW":
            states = [state.permute(0, 2, 3, 1) for state in states]
        grid = (states[-1].shape[1], states[-1].shape[2])
        last = states.pop().flatten(1, 2).contiguous()
        reduced = []
        for project, weigh in zip(self.reduce, self.weigh, strict=False):
            patches = split_patches(states.pop(0), grid)
            if self.before:
                reduced.append(weigh(last, patches, project(patches)))
            else:
                reduced.append(project(weigh(last, patches, patches)))
        return [*reduced, self.reduce[-1](last)]

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of the inputs of layers and norms, the factors of products and the outputs of ReLU."""
        n, q = self._positions[-1][0], [patch for _, patch in self._positions]
        m, k = self.mixer.up.in_features, len(self.weigh) or len(self.reduce) - 1
        elements: dict[str, int] = {}
        fixed: dict[str, int] = {}  # Statistics of batch norms: per channel, whatever the batch.

        def projection(path: str, layer: Projection, positions: int) -> None:
            elements[f"{path}.layer"] = positions * layer.layer.in_features
            elements[f"{path}.norm"] = positions * m
            if isinstance(layer.norm, nn.LayerNorm):
                elements[f"{path}.norm"] += 2 * positions  # Mean and deviation.
            else:
                fixed[f"{path}.norm"] = 2 * m

        for i, layer in enumerate(self.reduce):
            projection(f"reduce.{i}", layer, n * q[i] if self.before else n)  # type: ignore[arg-type]
        for i, weigh in enumerate(self.weigh):
            c: int = weigh.layer.out_features  # type: ignore[union-attr,assignment]
            elements[f"weigh.{i}.layer"] = n * self.feature_dim
            elements[f"weigh.{i}"] = n * c + n * q[i] * c + n * q[i] + n  # u, h, weights and their sum.
            if self.before:
                elements[f"weigh.{i}"] += n * q[i] + n * q[i] * m  # Both factors of the sum.
        elements["mixer"] = (k + 1) * n * m + k * (n * n + n * m + 2 * n) + n * m  # T_k, A; S_k, S_k T_k; ReLU.
        if self.mixer.gate is None:
            elements["mixer"] += 1
        else:
            elements["mixer"] += (k + 1) * m + k
            elements["mixer.gate"] = k * m
        projection("mixer.merge", self.mixer.merge, n)
        elements["mixer.up"] = n * m
        return {path: 4 * (batch_size * size + fixed.get(path, 0)) for path, size in elements.items()}


def _projects_before(config: UniPTConfig, layout: str) -> bool:
    """Whether maps are projected before their patches are summed."""
    if layout == "NLC" and config.project != "preset":
        raise S2AError(f"project={config.project!r} is for maps; this model has tokens: leave project at 'preset'.")
    return config.project == "before" or (config.project == "preset" and layout == "NHWC")


def _taps(config: UniPTConfig, backbone: Backbone) -> list[tuple[str, bool]]:
    """Tapped blocks, the anchor last, and whether it is their output (else their input) that is read."""
    blocks = backbone.blocks
    if blocks[-1].layout == "NLC":
        first, states = 0, [(blocks[0].name, False), *((block.name, True) for block in blocks)]
        count = min(TARGETS, len(blocks))
        preset = [i * len(blocks) // count for i in range(count)]
    else:
        # The last block of a stage overwrites those before it.
        first, states = 1, [(name, True) for name in {block.stage: block.name for block in blocks}.values()]
        preset = list(range(2 if blocks[-1].layout == "NHWC" and len(states) > 3 else 1, len(states)))
    allowed = range(first, first + len(states) - 1)
    if not allowed:
        raise UnsupportedModel(f"This {backbone.family} has one stage; UniPT needs maps of two stages or more.")
    chosen = list(allowed) if config.taps == "all" else preset if config.taps == "preset" else config.taps
    if any(tap not in allowed for tap in chosen):
        raise S2AError(
            f"taps={config.taps!r} does not fit this {backbone.family}; choose from {allowed[0]} to {allowed[-1]} "
            "(the last state is the anchor and needs no mention)."
        )
    return [states[int(tap) - first] for tap in chosen] + [states[-1]]


def _positions(shapes: list[tuple[int, ...]], taps: list[tuple[str, bool]], layout: str) -> list[tuple[int, int]]:
    """Positions of the last state, and the size of each state's largest patch (1 on tokens)."""
    if layout == "NLC":
        return [(shape[1], 1) for shape in shapes]
    grids = [shape[2:] if layout == "NCHW" else shape[1:3] for shape in shapes]
    last = grids[-1]
    for (name, _), grid in zip(taps, grids, strict=True):
        if grid[0] < last[0] or grid[1] < last[1]:
            raise UnsupportedModel(
                f"{name} has a map of {grid[0]} x {grid[1]}, smaller than the last one of {last[0]} x {last[1]}; "
                "UniPT needs maps that shrink from stage to stage."
            )
    return [(math.prod(last), math.prod(-(-a // b) for a, b in zip(grid, last, strict=True))) for grid in grids]
