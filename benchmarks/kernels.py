"""Time and bandwidth of the lean operators, beside a copy of as many bytes and the stock layers. Prints Markdown.

    python benchmarks/kernels.py                         # a CUDA device: Triton's kernels
    python benchmarks/kernels.py --device cpu --rounds 5 # the reference

A row's bytes are those that have to be read and written once. "of copy" is the time that a copy of as many bytes takes,
in per cent of the operator's: 100 % would be a kernel that costs its traffic and nothing else. Stock layers are given
the same matrix; their backward passes are aten's. Matrices that are changed in place are filled anew, unclocked.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from s2a.ops import custom_ops as ops
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


Case = tuple[Callable[[], object], int, Callable[[], object]]
"""What is timed, the bytes that it has to move, and what comes before each call."""


def nothing() -> None:
    """Comes before calls that change nothing."""


def seconds(
    work: Callable[[], object], device: torch.device, rounds: int, before: Callable[[], object] = nothing
) -> float:
    """Median time of one call, after three that do not count."""
    for _ in range(3):
        before()
        work()
    if device.type == "cpu":
        times = []
        for _ in range(rounds):
            before()
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    flush = torch.empty(1 << 27, dtype=torch.uint8, device=device)  # Larger than any second-level cache.
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in events:
        before()
        flush.zero_()
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def copy_seconds(count: int, device: torch.device, rounds: int) -> float:
    """Time of a copy that reads and writes ``count`` bytes in all."""
    source = torch.empty(max(count // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device, rounds)


def size(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def norms(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, bits: int, ops: Any = ops
) -> dict[str, Case]:
    """Name -> case of what a norm of ``(rows, columns)`` does, stock layers last.

    ``ops`` has the operators: as they are dispatched, or ``s2a.ops.reference``.
    """
    x, grad = torch.randn(rows, columns, device=device).to(dtype), torch.randn(rows, columns, device=device).to(dtype)
    weight, bias = torch.ones(columns, device=device, dtype=dtype), torch.zeros(columns, device=device, dtype=dtype)
    out, codes, numbers, rstd = ops.norm_pack(x, weight, bias, 1e-6, bits)
    kept, moved = (codes, numbers, rstd), torch.empty_like(x)
    _, mean, stock_rstd = torch.native_layer_norm(x, (columns,), weight, bias, 1e-6)
    mask = [True, False, True]
    backward = torch.ops.aten.native_layer_norm_backward
    return {
        f"norm_pack, {bits} bits": (lambda: ops.norm_pack(x, weight, bias, 1e-6, bits), size(x, out, *kept), nothing),
        f"norm_rebuild, {bits} bits": (
            lambda: ops.norm_rebuild(codes, numbers, weight, bias, columns, bits, dtype),
            size(codes, numbers, out),
            nothing,
        ),
        f"norm_backward, {bits} bits": (
            lambda: ops.norm_backward(grad, *kept, weight, bits, False, moved),
            size(grad, moved, *kept),
            nothing,
        ),
        f"rows_pack, {bits} bits": (lambda: ops.rows_pack(x, bits), size(x, codes, numbers), nothing),
        f"rows_unpack, {bits} bits": (
            lambda: ops.rows_unpack(codes, numbers, columns, bits, dtype),
            size(codes, numbers, out),
            nothing,
        ),
        "layer_norm (stock)": (lambda: F.layer_norm(x, (columns,), weight, bias, 1e-6), size(x, out), nothing),
        "layer_norm backward (stock)": (
            lambda: backward(grad, x, (columns,), mean, stock_rstd, weight, bias, mask),
            size(grad, x, moved),
            nothing,
        ),
    }


def activations(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, bits: int, ops: Any = ops
) -> dict[str, Case]:
    """The same of GELU on ``(rows, columns)``; stock backward with the sums for the bias in front."""
    u, grad = torch.randn(rows, columns, device=device).to(dtype), torch.randn(rows, columns, device=device).to(dtype)
    found: dict[str, Case] = {}
    for levels in ("paper", "derivative"):
        codes = ops.act_pack(u.clone(), "gelu", bits, levels)
        found[f"act_pack, {bits} bits, {levels}"] = (
            lambda levels=levels: ops.act_pack(u, "gelu", bits, levels),
            size(u, u, codes),
            lambda: u.normal_(),
        )
        found[f"act_backward, {bits} bits, {levels}"] = (
            lambda levels=levels, codes=codes: ops.act_backward(grad, codes, "gelu", bits, levels),
            size(grad, grad, codes),
            lambda: grad.normal_(),
        )
    found["gelu (stock)"] = (lambda: F.gelu(u), size(u, u), nothing)
    found["gelu backward and sums (stock)"] = (
        lambda: torch.ops.aten.gelu_backward(grad, u).sum(0),
        size(grad, grad, u),
        nothing,
    )
    return found


def main() -> None:
    """Prints one row for every operator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=32 * 197, help="tokens: 32 images of ViT-B/16")
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--rounds", type=int, default=50)
    request = parser.parse_args()
    device = torch.device(request.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu times the reference.")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    print(
        f"{card}, torch {torch.__version__}, {request.rows} tokens, "
        f"{'Triton' if ops.HAS_TRITON and device.type == 'cuda' else 'reference'}\n"
    )
    print("| operator | dtype | columns | us | GB/s | of copy |\n|---|---|---|---|---|---|")
    for name in request.dtype:
        cases = []
        for bits in request.bits:
            cases += [(request.channels, norms, bits), (4 * request.channels, activations, bits)]
        shown = set()
        for columns, kind, bits in cases:
            for title, (work, count, before) in kind(request.rows, columns, DTYPES[name], device, bits).items():
                if title in shown:
                    continue
                shown.add(title)
                own = seconds(work, device, request.rounds, before)
                copied = copy_seconds(count, device, request.rounds)
                print(
                    f"| {title} | {name} | {columns} | {own * 1e6:.0f} | {count / own / 1e9:.0f} | {copied / own:.0%} |"
                )


if __name__ == "__main__":
    main()
