"""Data-parallel training: two gloo processes on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import s2a
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3)
    adapted = s2a.attach(model, s2a.S2AConfig(lrp_rank=4), 3, image_size=32)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return adapted.train()


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 1])


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model = DistributedDataParallel(_model())
        images, labels = (t[2 * rank : 2 * rank + 2] for t in _batch())
        F.cross_entropy(model(images), labels).backward()
        found = {n: p.grad for n, p in s2a.trainable_parameters(model.module).items()}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_processes_get_the_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    model = _model()
    images, labels = _batch()
    F.cross_entropy(model(images), labels).backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in s2a.trainable_parameters(model).items():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
