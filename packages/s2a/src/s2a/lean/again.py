"""A whole block computed again from codes of its input, in chunks of images.

For a block y = f(x; p) with trained tensors p, the forward pass keeps the codes of x alone (``s2a.ops.rows``, a row per
token) instead of those of every branch. The backward pass, chunk by chunk, with g the gradient of y,

    x' = values of the codes,   y' = f(x'; p),   dx = (dy'/dx')^T g,   dp = sum over chunks of (dy'/dp)^T g

so that what the second run keeps is never more than that of one chunk. It is gradient checkpointing
(https://arxiv.org/abs/1604.06174) with a coded checkpoint, as ``s2a.lean.recompute`` does it for small modules.

Both runs draw the same random numbers, chunk by chunk: with more than one chunk, dropped paths are others than those of
a block that runs on the whole batch with the same seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from s2a.backbones.calls import in_checkpoint
from s2a.lean.linear import image_chunks
from s2a.ops import custom_ops as ops
from s2a.ops.loops import alike
from s2a.ops.offload import load, paused, save


class _Draws:
    """The state of the random number generators before a run, so that a second run drops what the first dropped."""

    def __init__(self, x: Tensor) -> None:
        self.device = None if x.device.type == "cpu" else x.device
        self.states: list[Tensor] = []
        if not isinstance(x, FakeTensor):
            self.states = [torch.get_rng_state()]
            if self.device is not None:
                self.states.append(getattr(torch, self.device.type).get_rng_state(self.device))

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within it random numbers are those that followed when this was made; afterwards they go on as before."""
        if not self.states:
            yield
            return
        kind = "cuda" if self.device is None else self.device.type
        with torch.random.fork_rng([] if self.device is None else [self.device], device_type=kind):
            torch.set_rng_state(self.states[0])
            if self.device is not None:
                getattr(torch, kind).set_rng_state(self.states[1], self.device)
            yield


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What the autograd function takes beside tensors.

    Attributes:
        run: The block's output ``(B, ..., C)`` for its input, a chunk of images.
        bits: Of the input's codes, one of ``rows.WIDTHS``.
        width: Columns of the widest matrix that the block makes.
        in_place: The output is written over the input.
        draws: Random numbers of the first run.
        hold: See ``block_again``.
    """

    run: Callable[[Tensor], Tensor]
    bits: int
    width: int
    in_place: bool
    draws: _Draws
    hold: Callable[[], Any]


class _BlockAgain(torch.autograd.Function):
    """Storage: codes ``(rows, bytes)`` and minimum and step of each row, a row being one token's channels."""

    @staticmethod
    def forward(ctx: Any, options: BlockOptions, x: Tensor, first: Tensor, *trained: Tensor) -> Tensor:
        # 1. The codes of x, before anything is written over it.
        codes = ops.rows_pack(x.reshape(-1, x.shape[-1]), options.bits)
        # 2. The first chunk has run already (``block_again``); the others keep nothing.
        out = x if options.in_place else torch.empty(x.shape, dtype=first.dtype, device=x.device)
        for i, part in enumerate(alike(_parts(x.shape, options.width))):
            out[part] = options.run(x[part]) if i else first
        ctx.options, ctx.input_like, ctx.trained = options, (x.shape, x.dtype), trained
        device = x.device.type
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        save(ctx, (), codes)
        if options.in_place:
            ctx.mark_dirty(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        options: BlockOptions = ctx.options
        codes, numbers = load(ctx)
        shape, dtype = ctx.input_like
        # As they are: a graph's leaves are told apart by identity. Some may have been frozen since.
        trained = [tensor for tensor in ctx.trained if tensor.requires_grad]
        rows = math.prod(shape[1:-1])
        moved = torch.empty(shape, dtype=dtype, device=grad.device) if ctx.needs_input_grad[1] else None
        sums: list[Tensor | None] = [None] * len(trained)
        enabled, autocast = ctx.autocast
        with options.draws.again(), options.hold():
            for part in alike(_parts(shape, options.width)):
                # 1. x' of the chunk, from its codes.
                own = slice(part.start * rows, part.stop * rows)
                numbers_of = numbers[own] if numbers.numel() else numbers
                values = ops.rows_unpack(codes[own], numbers_of, shape[-1], options.bits, dtype)
                # 2. y' = f(x'; p), with gradient and in the number format of the forward pass.
                with torch.enable_grad(), torch.autocast(grad.device.type, autocast, enabled=enabled):
                    leaf = values.view(-1, *shape[1:]).requires_grad_()
                    out = options.run(leaf)
                # 3. dx of the chunk, and its share of every dp; hooks on p run once, when all chunks are summed.
                with without_hooks(trained):
                    found = torch.autograd.grad(out, [leaf, *trained], grad[part], allow_unused=True)
                if moved is not None:
                    moved[part] = found[0]
                for i, more in enumerate(found[1:]):
                    if more is not None:
                        before = sums[i]
                        sums[i] = more if before is None else before + more
                del values, leaf, out, found
        each = dict(zip(map(id, trained), sums, strict=True))
        return None, moved, None, *(each.get(id(tensor)) for tensor in ctx.trained)


@contextlib.contextmanager
def without_hooks(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Within it no tensor hook of these leaves runs: the graph outside runs them, on the whole gradient."""
    hooked = [tensor._backward_hooks for tensor in leaves if tensor._backward_hooks]
    before = [dict(hooks) for hooks in hooked]
    try:
        for hooks in hooked:
            hooks.clear()
        yield
    finally:
        for hooks, each in zip(hooked, before, strict=True):
            hooks.update(each)


def _parts(shape: Sequence[int], width: int) -> list[slice]:
    """Chunks of a batch of that shape."""
    return list(image_chunks(shape[0], math.prod(shape[1:-1]) * width))


def block_again(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    bits: int,
    width: int,
    in_place: bool = False,
    hold: Callable[[], Any] = contextlib.nullcontext,
) -> Tensor:
    """``run(x)``, keeping ``x`` in ``bits`` bits and nothing else.

    Args:
        run: The block's own forward pass, on images of a batch, each independent of the others (``can_run_again``).
        x: ``(B, ..., C)``.
        bits: One of ``s2a.ops.rows.WIDTHS``.
        width: Columns of the widest matrix that the block makes: chunks are made by it (``linear.CHUNK``).
        in_place: Write the output over ``x``.
        hold: Makes a context in which paged weights are fetched once for all chunks.
    """
    # The first chunk runs with gradient: its graph says which trained tensors the block reads, hooks included.
    part, draws = _parts(x.shape, width)[0], _Draws(x)
    with hold():
        leaf = x[part].detach().requires_grad_()
        with paused():  # Its graph is let go at once.
            out = run(leaf)
        trained = [tensor for tensor in _leaves(out) if tensor is not leaf]
        first = out.detach()
        del leaf, out
        options = BlockOptions(run, bits, width, in_place and first.dtype == x.dtype, draws, hold)
        return _BlockAgain.apply(options, x, first, *trained)  # type: ignore[no-any-return]


def _leaves(out: Tensor) -> list[Tensor]:
    """The leaves of a tensor's graph that get gradients, in the order in which a search meets them."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    nodes: list[Any] = [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        nodes += [following for following, _ in node.next_functions]
    return list(found.values())


def can_run_again(block: nn.Module) -> bool:
    """Whether a second run of a block changes nothing: no batch norm counts in it, no checkpoint runs it again too."""
    counts = any(part.training and isinstance(part, _BatchNorm) for part in block.modules())
    return not (counts or torch.compiler.is_compiling() or in_checkpoint())
