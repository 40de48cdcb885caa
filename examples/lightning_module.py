"""Fine-tunes in PyTorch Lightning; its checkpoints hold what trains, not the frozen backbone.

python examples/lightning_module.py [--epochs 3] [--output lightning]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import s2a
import timm
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """An adapted model with loss and optimiser."""

    def __init__(self, model: s2a.Adapted, lr: float = 1e-2) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.strict_loading = False  # checkpoints lack what is frozen
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Only what trains."""
        return torch.optim.AdamW(s2a.trainable_parameters(self.model).values(), lr=self.lr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes frozen parameters out; buffers (running statistics of norms) stay."""
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                checkpoint["state_dict"].pop(name, None)


def make_model(classes: int) -> s2a.Adapted:
    """With real weights: ``timm.create_model("vit_base_patch16_224", pretrained=True)``."""
    torch.manual_seed(0)
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3)
    return s2a.attach(backbone, s2a.S2AConfig(activations="lean"), num_classes=classes)


def main(epochs: int = 3, images: int = 48, output: str | Path = "lightning", resume: str | None = None) -> Classifier:
    """Trains, or goes on from a checkpoint; writes checkpoints and an adapter into ``output``."""
    module = Classifier(make_model(classes=3))
    labels = torch.arange(images) % 3
    pixels = 0.3 * torch.randn(images, 3, 32, 32)
    pixels[torch.arange(images), labels] += 1  # a class is a colour
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=output, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(module, loader, ckpt_path=resume)
    s2a.save(module.model, Path(output) / "adapter.safetensors")
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="lightning")
    given = parser.parse_args()
    losses = main(given.epochs, output=given.output).losses
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; saved to {given.output}/adapter.safetensors")
