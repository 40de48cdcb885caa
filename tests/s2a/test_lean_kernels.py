"""Triton's kernels: beside the reference under the interpreter or on a device, and compiled for two of NVIDIA's."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from s2a.ops import custom_ops as ops
from s2a.ops.reference import code_of
from s2a.ops.rows import planes

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")
HERE = Path(__file__).parent


def run_matrices(**environment: str) -> str:
    """Runs ``kernels_on_matrices`` with pytest in a process of its own; its output."""
    outer = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", HERE / "kernels_on_matrices.py"]
    done = subprocess.run(
        command, env={**outer, **environment}, cwd=HERE.parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.long
@needs_triton
def test_kernels_agree_with_the_reference_under_the_interpreter() -> None:
    assert re.search(r"\d\d passed", run_matrices(TRITON_INTERPRET="1", OMP_NUM_THREADS="1"))


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_agree_with_the_reference_on_the_device() -> None:
    assert re.search(r"\d\d passed", run_matrices())


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_operators_on_a_device_give_what_they_give_on_the_cpu() -> None:
    for name, bits in (("gelu", 4), ("relu", 1)):
        u = torch.randn(50, 64)
        far = u.cuda()
        assert torch.equal(ops.act_pack(far, name, bits, "paper").cpu(), ops.act_pack(u, name, bits, "paper"))
        torch.testing.assert_close(far.cpu(), u)


@pytest.mark.full
def test_the_operators_work_where_triton_is_not_installed() -> None:
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch
from s2a.ops import custom_ops as ops
assert not ops.HAS_TRITON
ops.norm_pack(torch.randn(3, 64), None, None, 1e-6, 4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CARDS = (80, 90)


@pytest.fixture
def _compile_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that another run compiled is found, and nothing is left in the home folder."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], card: int, warps: int) -> str:
    """Compiles a kernel for a card that need not be there; its PTX."""
    import triton
    from s2a.ops import triton_launch as launch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {name: constants[name] for name in signature if name not in types})
    options = {"num_warps": warps, **launch.EXACT}
    found = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
    assert len(found.asm["cubin"])
    return found.asm["ptx"]


@needs_triton
@pytest.mark.usefixtures("_compile_anew")
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(("columns", "bits", "element"), [(768, 8, "fp32"), (1024, 3, "bf16"), (4096, 10, "fp16")])
def test_kernels_of_rows_compile(columns: int, bits: int, element: str, card: int) -> None:
    from s2a.ops import triton_kernels as kernels
    from s2a.ops import triton_launch as launch

    number = "*fp32" if bits >= 8 else "*fp16"
    kept = {"codes": "*u8", "numbers": number}
    affine = {"weight": "*fp32", "bias": "*fp32"}
    given = {"HAS_WEIGHT": True, "HAS_BIAS": True}
    unpacked = launch.unpack_sizes(columns, bits)
    out = compiled(
        kernels.pack_rows_kernel,
        {"x": f"*{element}", "stride": "i32", "eps": "fp32", "out": f"*{element}", "rstd": "*fp32", **affine, **kept},
        {"NORM": True, **given, **launch.pack_sizes(columns, bits)},
        card,
        launch.warps(columns),
    )
    # Rounded twice, as the reference rounds: no product is fused into a sum.
    assert "fma.rn" not in out
    compiled(
        kernels.norm_backward_kernel,
        {"grad": f"*{element}", "stride": "i32", "rstd": "*fp32", "weight": "*fp32", "out": f"*{element}", **kept}
        | {"weight_sums": "*fp32", "bias_sums": "*fp32", "rows": "i32", "each": "i32"},
        {"HAS_WEIGHT": True, "WANT_WEIGHT": True, "COLUMNS_TILE": launch.power_of_two(columns), **unpacked},
        card,
        launch.warps(columns),
    )
    compiled(
        kernels.unpack_rows_kernel,
        {"out": f"*{element}", "rows": "i32", **affine, **kept},
        {**given, **unpacked, **launch.tile_sizes(unpacked["LOW_WIDTH"])},
        card,
        4,
    )


@needs_triton
@pytest.mark.usefixtures("_compile_anew")
@pytest.mark.parametrize(
    ("activation", "bits", "levels", "element", "card"),
    [
        ("gelu", 4, "paper", "fp32", 80),
        ("gelu", 4, "derivative", "bf16", 90),
        ("gelu_tanh", 3, "derivative", "bf16", 80),
        ("quick_gelu", 2, "derivative", "fp16", 90),
        ("silu", 8, "derivative", "bf16", 90),
        ("hardswish", 4, "derivative", "fp32", 80),
        ("relu", 1, "paper", "bf16", 90),
        ("relu6", 1, "paper", "fp32", 80),
    ],
)
def test_kernels_of_activations_compile(activation: str, bits: int, levels: str, element: str, card: int) -> None:
    from s2a.ops import triton_kernels as kernels
    from s2a.ops import triton_launch as launch

    columns = 3072
    kind, borders, table, edges, _ = launch._encoding(activation, bits, levels, torch.device("cpu"))
    width = planes(columns, code_of(activation, bits, levels).bits)[-1][1]
    types = {"u": f"*{element}", "codes": "*u8", "low": "fp32", "high": "fp32", "scale": "fp32", "top": "fp32"}
    types |= {"rows": "i32"}
    types |= {} if table is None else {"table": "*u8"}
    types |= {} if edges is None else {"borders": "*fp32"}
    constants = {"ACTIVATION": activation, "KIND": kind, "BORDERS": borders, "COLUMNS": columns, "BITS": bits}
    constants |= {"WIDTH": width, "table": None, "borders": None, **launch.tile_sizes(width)}
    compiled(kernels.act_pack_kernel, types, constants, card, 4)
    where = launch.plane_sizes(columns, bits)
    compiled(
        kernels.act_backward_kernel,
        {"grad": f"*{element}", "codes": "*u8", "values": f"*{element}", "sums": "*fp32", "rows": "i32"},
        {"COLUMNS": columns, "STEPS": launch.STEPS, **where, **launch.tile_sizes(where["LOW_WIDTH"])},
        card,
        4,
    )
