"""Data-parallel training, weights replicated or sharded: two gloo processes on one machine."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import s2a
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

KINDS: dict[str, dict[str, Any]] = {
    "paper": {"levels": "paper"},
    "derivative": {"levels": "derivative"},
    "lean": {"activations": "lean", "recompute": "same"},
}
"""What the backward pass keeps, by name."""


def _model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3)
    adapted = s2a.attach(model, s2a.S2AConfig(lrp_rank=4, **KINDS[kind]), 3, image_size=32)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return adapted.train()


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 1])


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """Those of two steps of gradient descent: a second forward pass shows that the first step was complete."""
    adapted = model.module if isinstance(model, DistributedDataParallel) else model
    trainable = s2a.trainable_parameters(adapted)
    optimizer, found = torch.optim.SGD(trainable.values(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        grads = {n: p.grad for n, p in trainable.items() if p.grad is not None}
        found.append({n: g.full_tensor() if isinstance(g, DTensor) else g.clone() for n, g in grads.items()})
        optimizer.step()
    assert all(step.keys() == trainable.keys() for step in found)
    return found


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)  # A process whose partner died ends by itself.
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        for kind in KINDS:
            model = DistributedDataParallel(_model(kind), find_unused_parameters=False)
            found = _gradients(model, *(t[2 * rank : 2 * rank + 2] for t in _batch()))
            torch.save(found, f"{folder}/{kind}.{rank}.pt")
            sharded: Any = _model(kind)
            for block in (*sharded.backbone.blocks, sharded):
                fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
            found = _gradients(sharded, *(t[2 * rank : 2 * rank + 2] for t in _batch()))
            torch.save(found, f"{folder}/{kind}.sharded.{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_two_processes_get_the_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=150) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for kind in KINDS:
        expected = _gradients(_model(kind), *_batch())
        for file in (f"{kind}.0", f"{kind}.1", f"{kind}.sharded.0", f"{kind}.sharded.1"):
            for found, own in zip(torch.load(tmp_path / f"{file}.pt"), expected, strict=True):
                for name, grad in own.items():
                    torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":  # This file is also the program of a worker: spawned ones would have to import the tests.
    _worker(int(sys.argv[1]), sys.argv[2])
