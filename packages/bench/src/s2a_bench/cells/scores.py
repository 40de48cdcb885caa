"""Scoring: what a model says of a list of images, in one pass, and the numbers that are made of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a_bench.cells.train import Images, precision
from s2a_bench.config import TrainConfig

BATCH = 128
"""Images per forward pass."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What a model says of a list of images, in the order of the list. ``N`` images, ``C`` classes.

    Attributes:
        labels: ``(N,)`` int64.
        probabilities: ``(N, C)`` float32, rows sum to 1.
        loss: Mean cross-entropy in nats, without label smoothing and class weights.
    """

    labels: Tensor
    probabilities: Tensor
    loss: float

    @property
    def predicted(self) -> Tensor:
        """``(N,)`` int64: the most probable class of each image."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100.0 * int((self.predicted == self.labels).sum()) / len(self.labels)

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that have images of the share that was recognised, in percent (mean recall)."""
        recalls = self.per_class
        return float(recalls[~recalls.isnan()].mean())

    @property
    def macro_f1(self) -> float:
        """Mean over classes of ``2 * precision * recall / (precision + recall)``, in percent.

        As ``sklearn.metrics.f1_score(average="macro", zero_division=0)``: over the classes that have an image or were
        predicted for one; 0 for a class of which none is right.
        """
        from sklearn.metrics import f1_score  # here and below: loading it takes a second that most cells can spare

        arrays = self.labels.numpy(), self.predicted.numpy()
        return 100.0 * float(f1_score(*arrays, average="macro", zero_division=0))  # type: ignore[arg-type]

    @property
    def confusion(self) -> Tensor:
        """``(C, C)`` int64: images of class ``i`` (row) that were taken for class ``j`` (column)."""
        from sklearn.metrics import confusion_matrix

        classes = np.arange(self.probabilities.shape[1])
        return torch.from_numpy(confusion_matrix(self.labels.numpy(), self.predicted.numpy(), labels=classes))

    @property
    def per_class(self) -> Tensor:
        """``(C,)`` float64: share of each class's images that was recognised, in percent; NaN where there are none."""
        confusion = self.confusion
        return 100.0 * confusion.diagonal().double() / confusion.sum(1)  # 0 / 0 is NaN


def score(model: nn.Module, images: Images, config: TrainConfig) -> Scored:
    """Scores a list of images in one pass, in evaluation mode and the recipe's precision.

    Args:
        model: Images to logits; it is left in evaluation mode.
        images: At least one. No more of them at once than the recipe trains on: what fits in training fits here.
        config: The recipe.
    """
    device = next(model.parameters()).device
    model.eval()
    parts = []
    with torch.inference_mode(), precision(config, device):
        for indices in torch.arange(len(images)).split(min(BATCH, config.batch_size)):
            parts.append(model(images.batch(indices).to(device)).cpu())
    logits = torch.cat(parts).float()
    return Scored(images.labels, logits.softmax(1), F.cross_entropy(logits, images.labels).item())


def accuracy(model: nn.Module, images: Images, config: TrainConfig, batch_size: int = BATCH) -> float:
    """Top-1 accuracy in percent alone, as ``score`` otherwise: what the model says is not kept."""
    device = next(model.parameters()).device
    model.eval()
    hits = 0
    with torch.inference_mode(), precision(config, device):
        for indices in torch.arange(len(images)).split(batch_size):
            predicted = model(images.batch(indices).to(device)).argmax(1).cpu()
            hits += int((predicted == images.labels[indices]).sum())
    return 100.0 * hits / len(images)
