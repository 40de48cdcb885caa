"""Fine-tunes in two processes with Hugging Face ``accelerate``: gradients are averaged, one process saves.

    torchrun --nproc-per-node 2 examples/accelerate_two_processes.py

On GPUs ``accelerate launch --num_processes 2 examples/accelerate_two_processes.py`` does the same, and
``--mixed_precision bf16`` works; on CPUs it starts one process.
"""

from __future__ import annotations

import argparse

import s2a
import timm
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


def main(epochs: int = 3, images: int = 48, output: str = "adapter.safetensors") -> None:
    """Trains; prints what the processes agree on."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)  # the same images in all processes; prepare gives each its share of them
    labels = torch.arange(images) % 3
    pixels = 0.3 * torch.randn(images, 3, 32, 32)
    pixels[torch.arange(images), labels] += 1  # a class is a colour

    # With real weights: timm.create_model("vit_base_patch16_224", pretrained=True)
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3)
    model = s2a.attach(backbone, s2a.S2AConfig(activations="lean"), num_classes=3)
    optimizer = torch.optim.AdamW(s2a.trainable_parameters(model).values(), lr=1e-2)
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    for epoch in range(epochs):
        model.train()
        total = 0.0
        for inputs, targets in loader:
            loss = cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            total += loss.item() / len(loader)
        mean = accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean")
        accelerator.print(f"epoch {epoch + 1}: loss {mean.item():.4f}")  # type: ignore[union-attr]

    adapted = accelerator.unwrap_model(model)
    trained = torch.cat([p.detach().flatten() for p in s2a.trainable_parameters(adapted).values()])
    everywhere = accelerator.gather(trained[None])
    spread = (everywhere - everywhere[:1]).abs().max().item()  # type: ignore[operator]
    accelerator.print(f"{len(everywhere)} processes, largest difference of weights {spread}")
    if accelerator.is_main_process:
        s2a.save(adapted, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="adapter.safetensors")
    given = parser.parse_args()
    main(given.epochs, output=given.output)
