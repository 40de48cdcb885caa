"""Fuses norm and attention (or MLP) into one autograd function; the norm module is the identity while the block runs.

In a timm block, x + attn(norm1(x)) and x + mlp(norm2(x)) are residual branches. For a fused branch

1. ``block_forward`` notes that the block runs (``LeanRun``, in ``s2a.backbones.calls``: other threads may run the
   same block) and calls the block's own forward;
2. ``norm_forward``, at the norm's place, decides whether this run can be fused (``can_fuse``) and then returns its
   input as it is;
3. ``body_forward``, at the place of attention or MLP, gets that input and runs norm, linear layers and what is between
   them as one function (``attention``, ``mlp``, ``class_attention``), which keeps codes.

Residual sums, layer scales, dropped paths and hooks at the block, in front of the norm and on the branch's output stay
timm's. Whatever else was changed in a branch (``why_not_fusable``) sends that run back to separate layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import timm.layers
import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from s2a.activations.quantize import ACTIVATIONS
from s2a.backbones import Block, BlockRun, running, state_of
from s2a.backbones.number_format import multiplies_bf16
from s2a.lean.again import block_again, can_run_again
from s2a.lean.attention import attention
from s2a.lean.class_token import class_attention, reads_class_token_alone
from s2a.lean.mlp import mlp
from s2a.lean.norm import LAYER_NORMS, lean_norm_forward
from s2a.lean.residual_stream import IN_PLACE, writable
from s2a.lean.spec import BranchOptions, BranchSpec, SavedBits, compute_dtype
from s2a.ops.keeping import in_selective_checkpoint, keeps_for_backward
from s2a.ops.rows import CODED
from s2a.paging import page_of, paged_forward, refuse_trained

_BODIES: dict[type[nn.Module], tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    Attention: ("qkv", "proj", ("attn_drop",), ("q_norm", "k_norm", "norm", "gate")),
    WindowAttention: ("qkv", "proj", ("attn_drop",), ()),
    Mlp: ("fc1", "fc2", ("drop1",), ("norm",)),
}
"""Attention or MLP -> names of the first and last linear layer, of dropouts between them, and of optional layers that
must be absent."""


def activation_key(module: nn.Module) -> str | None:
    """An activation module's name in ``reference.FORWARDS``."""
    if type(module) not in ACTIVATIONS or isinstance(module, nn.LeakyReLU):
        return None
    name = ACTIVATIONS[type(module)][0]
    tanh = getattr(module, "approximate", "none") == "tanh" or isinstance(module, timm.layers.GELUTanh)
    return "gelu_tanh" if name == "gelu" and tanh else name


def low_rank_of(layer: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    """A, U and scale of the low-rank updates that hooks add to a linear layer's output."""
    owners: list[Any] = [getattr(hook, "__self__", None) for hook in layer._forward_hooks.values()]
    return [owner.low_rank() for owner in owners if _is_low_rank(owner)]


def _is_low_rank(owner: Any) -> bool:
    return getattr(owner, "low_rank", None) is not None and owner.low_rank() is not None


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._backward_hooks.values(), *module._backward_pre_hooks.values()]


def _reads_output_only(hook: Any) -> bool:
    return getattr(getattr(hook, "__self__", None), "reads_output_only", False)


class LeanRun(BlockRun):
    """One run of a block with fused branches; a norm that returned its input leaves ``True`` for its branch.

    Attributes:
        class_token_only: The attention returns the class token's row alone.
        saved_bits: Role -> what its branch keeps in this run, in place of its own.
    """

    def __init__(self, class_token_only: bool = False, saved_bits: Mapping[str, SavedBits] | None = None) -> None:
        super().__init__()
        self.class_token_only = class_token_only
        self.saved_bits = saved_bits or {}


@dataclasses.dataclass(eq=False)
class FusedBranch:
    """One residual branch of a block: a norm and the attention or MLP behind it.

    Attributes:
        block: Description of the block that it belongs to.
        role: ``"attn"`` or ``"mlp"``.
        norm: The norm.
        body: Attention or MLP.
        saved_bits: What it keeps; may be changed between two steps.
        levels: Kind of the activation's levels.
        stock_forward: The body's forward without fusion.
        block_module: The block itself.
        windows: Height and width of attention's windows on a map; the map must be whole windows.
        warned: The warning about the fallback to separate layers has been given.
        recompute: See ``LeanOptions``.
    """

    block: Block
    role: str
    norm: nn.Module
    body: nn.Module
    saved_bits: SavedBits
    levels: str
    stock_forward: Any
    block_module: nn.Module
    windows: tuple[int, int] | None = None
    warned: bool = False
    recompute: str = "same"

    @property
    def layers(self) -> tuple[Any, Any]:
        """The first and the last linear layer."""
        first, last, _, _ = _BODIES[type(self.body)]
        return getattr(self.body, first), getattr(self.body, last)

    def why_not_fusable(self) -> str | None:
        """The reason why the branch cannot be fused as it is now; ``None``: it can."""
        for role, module in ((f"{self.role}_norm", self.norm), (self.role, self.body)):
            leaf = self.block.parts[role].removeprefix(f"{self.block.name}.")
            if self.block_module.get_submodule(leaf) is not module:
                return f"{leaf} was replaced"
        # Classes: of norm and body, and nothing between the linear layers that the fused functions do not compute.
        if type(self.norm) not in LAYER_NORMS or type(self.body) not in _BODIES:
            return f"{type(self.norm).__name__} and {type(self.body).__name__} cannot be fused with each other"
        first, last, dropouts, foreign = _BODIES[type(self.body)]
        for name in foreign:
            if not isinstance(getattr(self.body, name, None), nn.Identity | None):  # older timm has no gate
                return f"{name} is {type(getattr(self.body, name)).__name__}"
        for name in dropouts:  # Whatever the mode: it changes every epoch, what a branch keeps should not.
            drop = getattr(self.body, name)
            if type(drop) not in (nn.Dropout, nn.Identity) or getattr(drop, "p", 0) > 0:
                return f"{name} drops between the layers"
        for name, module in self.body.named_children():
            if name not in (first, last, "proj_drop", "drop2") and (module._forward_hooks or _hooks(module)):
                return f"{name} has a hook"
        if isinstance(self.body, Mlp) and activation_key(self.body.act) is None:
            return f"{type(self.body.act).__name__} has no code"
        # Linear layers: plain ones, with at most one low-rank update each, and no hook that needs a separate layer.
        for name in (first, last):
            layer = getattr(self.body, name)
            kind = nn.Conv2d if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) else nn.Linear
            if type(layer) is not kind or (kind is nn.Conv2d and layer.groups != 1):
                return f"{name} is {type(layer).__name__}"
            if (kind is nn.Conv2d) != LAYER_NORMS[type(self.norm)]:
                return f"{name} and the norm take different layouts"
            if _hooks(layer) or not _forwards_are(layer, kind):
                return f"{name} has hooks or a forward of its own"
            updates = low_rank_of(layer)
            others = [h for h in layer._forward_hooks.values() if not _is_low_rank(getattr(h, "__self__", None))]
            if len(updates) > 1 or (updates and name == last and self._codes_alone):
                return f"{name} has updates that need its exact input"
            if others and (name == first or not all(map(_reads_output_only, others))):
                return f"{name} has a hook"
        # Hooks at norm and body: those in front of the norm and on the body's output alone still run.
        if self.norm._forward_hooks or self.norm._backward_hooks or self.norm._backward_pre_hooks:
            return "the norm has a hook"
        if _hooks(self.body) or not all(map(_reads_output_only, self.body._forward_hooks.values())):
            return f"{type(self.body).__name__} has a hook"
        if self.layers[1].weight.requires_grad and self._codes_alone:
            return f"{last} trains and needs its exact input"
        return None

    @property
    def spec(self) -> BranchSpec:
        """Its sizes, for the planner."""
        first, last = self.layers
        near = next(self.norm.parameters(), first.weight)  # Never paged: it is on the device that computes.
        reads = [layer.weight.requires_grad or bool(low_rank_of(layer)) for layer in (first, last)]
        narrow = "s2a_backbone" in self.block_module.__dict__
        bits = 0
        if isinstance(self.body, Mlp):
            key = activation_key(self.body.act)
            bits = 1 if key in ("relu", "relu6") else 0
        inner_tokens = 1 if narrow and self.role == "mlp" else self.block.tokens
        return BranchSpec(
            self.block.name,
            self.role,
            self.block.tokens,
            first.weight.shape[1],
            len(first.weight),
            inner_tokens,
            bits,
            reads_first=reads[0],
            reads_last=reads[1] and self.role == "mlp",
            fixed=narrow,
            narrow=_recompute_dtype(self.recompute, compute_dtype(near, first.weight), near.device) is not None,
        )

    @property
    def _codes_alone(self) -> bool:
        """Whether the last layer's input cannot be recomputed: codes give the activation's derivative alone."""
        return isinstance(self.body, Mlp) and 0 < self.saved_bits.inner <= CODED

    def can_fuse(self, x: Tensor) -> bool:
        """Whether the running block runs fused on ``x``; warns once if something was changed after ``attach``."""
        if not keeps_for_backward() or in_selective_checkpoint():
            return False
        if self.windows and (x.shape[1] % self.windows[0] or x.shape[2] % self.windows[1]):
            return False  # Padding: the norm of a padded zero is its bias, not zero.
        if not (x.requires_grad or any(p.requires_grad for m in (self.norm, self.body) for p in m.parameters())):
            if not any(low_rank_of(layer) for layer in self.layers):
                return False
        why = self.why_not_fusable()
        if getattr(self.body.__dict__.get("forward"), "func", None) is not body_forward:
            why = f"{type(self.body).__name__} has another forward"
        if why is not None and not self.warned:
            self.warned = True
            warnings.warn(
                f"Block {self.block.name} was changed after lean activations were set up ({why}): its layers now "
                "keep their inputs one by one, which takes more memory.",
                stacklevel=2,
            )
        return why is None

    def run_fused(self, x: Tensor, mask: Tensor | None = None, class_token_only: bool = False) -> Tensor:
        """Norm and body as one function: the body's output for the norm's input ``x``.

        Args:
            x: ``(B, ..., C)`` or ``(B, C, H, W)``; for windows ``(B * windows, N, C)``.
            mask: ``(windows, N, N)``, of shifted windows.
            class_token_only: The attention returns the class token's row alone.
        """
        norm: Any = self.norm
        # The tensors of the autograd function: norm, then W, b, A, U of both linear layers.
        first, last = self.layers
        layers, scales = [], []
        for layer in (first, last):
            a, u, scale = next(iter(low_rank_of(layer)), (None, None, 1.0))
            layers += [layer.weight.flatten(1), layer.bias, a, u]
            scales.append(scale)
        tensors = (norm.weight, norm.bias, *layers)
        dtype = compute_dtype(x, first.weight)
        recompute_dtype = _recompute_dtype(self.recompute, dtype, x.device)
        run: LeanRun | None = state_of(self.block_module)
        again = run is not None and bool(run.saved_bits)
        saved_bits = run.saved_bits[self.role] if run is not None and again else self.saved_bits
        common = {
            "scales": tuple(scales),
            "dtype": dtype,
            "recompute_dtype": recompute_dtype,
            "again": again,
            "pages": (page_of(first), page_of(last)),
        }
        for layer in (first, last):
            if page_of(layer) is not None:
                refuse_trained(layer)
        body: Any = self.body
        if isinstance(body, Mlp):
            maps = LAYER_NORMS[type(norm)]
            key = activation_key(body.act)
            assert key is not None
            out = mlp(BranchOptions(saved_bits, norm.eps, maps, key, self.levels, **common), x, tensors)
            drop = body.drop2
        else:
            bias = body._get_rel_pos_bias() if isinstance(body, WindowAttention) else None
            shape = BranchOptions(saved_bits, norm.eps, heads=body.num_heads, scale=body.scale, **common)
            out = class_attention(shape, x, tensors) if class_token_only else attention(shape, x, bias, mask, tensors)
            drop = body.proj_drop
        # The last layer's module is not called; hooks that need its output alone (a bottleneck adapter's) run here.
        for hook in last._forward_hooks.values():
            if _reads_output_only(hook):
                changed = hook(last, (), out)
                out = out if changed is None else changed
        return drop(out)


def _recompute_dtype(recompute: str, dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """The format of ``LeanOptions.recompute`` for a forward pass in ``dtype``; ``None``: the forward pass's own."""
    if recompute == "auto":
        return torch.bfloat16 if dtype == torch.float32 and multiplies_bf16(device) else None
    # A forward pass in float16 or bfloat16 is recomputed in its own format.
    return torch.bfloat16 if recompute == "bf16" and dtype.itemsize > 2 else None


def _forwards_are(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer runs its class's forward, or one that keeps nothing of a frozen layer's input."""
    own = layer.__dict__.get("forward")
    if page_of(layer) is not None:
        return getattr(own, "func", None) is paged_forward
    return own is None or (
        kind is nn.Conv2d and getattr(getattr(own, "func", None), "__module__", "").startswith("s2a.")
    )


def norm_forward(self: Any, x: Tensor) -> Tensor:
    """The norm of a fused branch: the identity in a run that is fused, otherwise a lean norm."""
    branch: FusedBranch = self.s2a_branch
    run: LeanRun | None = state_of(branch.block_module)  # None: called by itself, the norm is an ordinary norm.
    if run is None or not branch.can_fuse(x):
        return lean_norm_forward(self, x)
    run.leave(branch, True)
    return x


def body_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention or MLP of a fused branch: with the norm where that was skipped, otherwise its own forward."""
    branch: FusedBranch = self.s2a_branch
    run: LeanRun | None = state_of(branch.block_module)
    if run is None or not run.take(branch):
        return branch.stock_forward(x, *args, **kwargs)
    if isinstance(self, WindowAttention):
        return branch.run_fused(x, *args, **kwargs)
    if any(value is not None and value is not False for value in (*args, *kwargs.values())):
        return branch.stock_forward(lean_norm_forward(branch.norm, x), *args, **kwargs)  # A mask from outside.
    return branch.run_fused(x, class_token_only=run.class_token_only)


def block_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A block's own forward, during which the norms of its fused branches may be skipped."""
    branches: tuple[FusedBranch, ...] = self.s2a_branches
    alone = len(args) == 1 and not kwargs
    in_place = alone and "s2a_in_place" in self.__dict__ and writable(args[0])
    bits = branches[0].saved_bits.block
    if bits and alone and _can_run_again(self, args[0]):
        width = max(len(branch.layers[0].weight) for branch in branches)
        pages = (page_of(layer) for branch in branches for layer in branch.layers)
        pager = next((page.pager for page in pages if page is not None), None)
        hold = contextlib.nullcontext if pager is None else pager.holding
        return block_again(functools.partial(_run_exactly, self), args[0], bits, width, in_place, hold)
    with running(self, LeanRun()):
        if in_place:
            return IN_PLACE[type(self)](self, args[0])
        return type(self).forward(self, *args, **kwargs)


def _can_run_again(self: Any, x: Tensor) -> bool:
    """Whether a block of two branches can be computed again from its input, and anything asks for its gradients."""
    branches: tuple[FusedBranch, ...] = self.s2a_branches
    if len(branches) < 2 or not len(x) or not (x.requires_grad or any(branch.can_fuse(x) for branch in branches)):
        return False
    for part in self.modules():  # Whoever looks at a part of the block would see chunks, and see them twice.
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values()) if part is not self else ()
        if not all(map(_is_of_a_method, hooks)):
            return False
    # In the second run the input has a gradient.
    return can_run_again(self) and all(branch.can_fuse(x.detach().requires_grad_()) for branch in branches)


def _is_of_a_method(hook: Any) -> bool:
    """Whether a hook belongs to a method's module or to this library."""
    function = getattr(hook, "func", hook)
    return isinstance(getattr(hook, "__self__", None), nn.Module) or function.__module__.startswith("s2a.")


EXACT = {"attn": SavedBits(norm=32, inner=32), "mlp": SavedBits(norm=32, inner=32)}
"""Role -> what a branch keeps in a block's second run, until the backward pass of the same chunk."""


def _run_exactly(self: Any, x: Tensor) -> Tensor:
    """A block's own forward, whose branches keep everything as it is."""
    # The pass is hidden, as the second run comes after it: a block does the same in both.
    with running(None), running(self, LeanRun(saved_bits=EXACT)):
        return type(self).forward(self, x)  # type: ignore[no-any-return]


def last_block_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The last block of a ViT: where only the head's features are asked for, the class token's row ``(B, 1, C)``."""
    asked = any(value is not None and value is not False for value in (*args, *kwargs.values()))
    # Whether both branches could run fused, before anything runs.
    narrow = (
        not asked
        and reads_class_token_alone(self.s2a_backbone[0], self)
        and all(branch.can_fuse(x) for branch in self.s2a_branches)
    )
    if not narrow:
        return block_forward(self, x, *args, **kwargs)
    with running(self, LeanRun(class_token_only=True)):
        # The attention returns one row; the stream it is added to is cut to the same row.
        x = x[:, :1] + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
