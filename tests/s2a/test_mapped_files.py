"""What becomes of a weights file and of a model whose memory it is: training, copies, deletion, saving over it."""

from __future__ import annotations

import copy
import io
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mapped_files import (
    VIT,
    copied,
    linux,
    make,
    same,
    write,
    write_as,
)
from s2a import weights
from s2a.weights.mapping import LARGE
from torch import Tensor

SAVE_OVER = """
import sys
from pathlib import Path
import safetensors.torch, timm, torch
from s2a import weights
arguments = {"depth": 1, "img_size": 32}
for path in map(Path, sys.argv[1:]):
    if path.stem == "load":
        model = timm.create_model("vit_tiny_patch16_224", **arguments)
        weights.load_file(model, path, "a ViT")
    else:
        model = weights.create_with_weights("vit_tiny_patch16_224", path, **arguments)
    with torch.no_grad():
        model.cls_token.add_(1)
    state = model.state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    print(path.name, float(sum(value.double().abs().sum() for value in state.values())), flush=True)
"""


@pytest.mark.full
def test_a_model_can_be_saved_over_the_file_that_it_was_loaded_from(tmp_path: Path) -> None:
    """In a process of its own, which writing to a mapped file would end."""
    expected = {key: value.clone() for key, value in make(*VIT).state_dict().items()}
    names = ("load.safetensors", "create.safetensors", "load.pt", "create.pth", "load.bin")
    paths = [write_as(name, expected, tmp_path) for name in names]
    expected["cls_token"] += 1
    done = subprocess.run([sys.executable, "-c", SAVE_OVER, *map(str, paths)], capture_output=True, text=True)
    sums = dict(line.split() for line in done.stdout.splitlines())
    assert (done.returncode, tuple(sums)) == (0, names), done.stderr
    total = float(sum(value.double().abs().sum() for value in expected.values()))
    for path in paths:
        found = weights.read_weights(path)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
        assert float(sums[path.name]) == pytest.approx(total)  # The model itself has its values still.


def test_training_in_place_leaves_the_file_alone(tmp_path: Path) -> None:
    name, arguments = VIT
    path = write(make(name, arguments).state_dict(), tmp_path / "w.safetensors")
    before = path.read_bytes()
    found, expected = weights.create_with_weights(name, path, **arguments), copied(path, name, arguments)
    for model in (found, expected):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(2)
        for _ in range(2):
            F.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.arange(2)).backward()
            optimiser.step()
            optimiser.zero_grad()
    assert same(found, expected) and path.read_bytes() == before
    assert not same(found, make(name, arguments))


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_the_file_may_go_or_be_replaced(fate: str, tmp_path: Path) -> None:
    name, arguments = VIT
    original = make(name, arguments)
    path = write(original.state_dict(), tmp_path / "w.safetensors")
    found: Any = weights.create_with_weights(name, path, **arguments)
    if fate == "deleted":
        path.unlink()
    else:
        write(make(name, arguments, seed=9).state_dict(), tmp_path / "other").replace(path)
    assert same(found, original)


def test_copies_pickles_and_other_processes_have_the_values(tmp_path: Path) -> None:
    name, arguments = VIT
    original = make(name, arguments)
    path = write(original.state_dict(), tmp_path / "w.safetensors")
    found: Any = weights.create_with_weights(name, path, **arguments)
    assert same(copy.deepcopy(found), original)
    stream = io.BytesIO()
    torch.save(found, stream)
    stream.seek(0)
    assert same(torch.load(stream, weights_only=False), original)
    if "fork" in multiprocessing.get_all_start_methods():
        loader = torch.utils.data.DataLoader(
            _Rows(found), batch_size=None, num_workers=1, multiprocessing_context="fork"
        )
        assert torch.equal(torch.stack(list(loader)), original.state_dict()["blocks.0.attn.qkv.weight"][:3])
    found.share_memory()
    assert all(p.is_shared() for p in found.parameters()) and same(found, original)
    path.unlink()
    assert same(found.double().float(), original)


class _Rows(torch.utils.data.Dataset[Tensor]):
    """Three rows of a mapped weight."""

    def __init__(self, model: Any) -> None:
        self.weight = model.blocks[0].attn.qkv.weight.detach()

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        if index >= 3:
            raise IndexError(index)
        return self.weight[index].clone()


@linux
@pytest.mark.full
def test_loading_takes_no_private_memory(tmp_path: Path) -> None:
    """What the system says of a process that has loaded 22 million values, and read them all."""
    state = make("vit_small_patch16_224", {}).state_dict()
    path = write(state, tmp_path / "w.safetensors", 8)
    code = """
import sys
from pathlib import Path
import timm, torch
from s2a.weights import create_with_weights
def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
timm.create_model("vit_tiny_patch16_224")
before = private()
model = create_with_weights("vit_small_patch16_224", Path(sys.argv[1]))
total = sum(float(p.detach().sum()) for p in model.parameters())
print(private() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    small = sum(value.nbytes for n, value in state.items() if value.nbytes < LARGE or n.startswith("head"))
    assert small < 0.03 * path.stat().st_size
    assert int(done.stdout) < 0.1 * path.stat().st_size
