"""Scoring: the accuracy of a model on a list of images, in one pass."""

from __future__ import annotations

import torch
from torch import nn

from s2a_bench.cells.train import Images, precision
from s2a_bench.config import TrainConfig


def accuracy(model: nn.Module, images: Images, config: TrainConfig, batch_size: int = 128) -> float:
    """Top-1 accuracy in percent, one pass, in evaluation mode and the recipe's precision."""
    device = next(model.parameters()).device
    model.eval()
    hits = 0
    with torch.inference_mode(), precision(config, device):
        for indices in torch.arange(len(images)).split(batch_size):
            predicted = model(images.batch(indices).to(device)).argmax(1).cpu()
            hits += int((predicted == images.labels[indices]).sum())
    return 100.0 * hits / len(images)
