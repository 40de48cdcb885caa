"""Fine-tunes a backbone with S2A in a plain PyTorch loop: no harness, only ``s2a.attach`` and ``s2a.save``.

    python examples/plain_loop.py [--epochs 3] [--images 400] [--output adapter.safetensors]

The backbone and the digits come with s2a_bench, so that this runs offline. With ``timm.create_model`` and a data set
of your own the loop is the same.
"""

from __future__ import annotations

import argparse

import s2a
import torch
from s2a_bench import BackboneConfig, DataConfig
from s2a_bench.cells.backbones import create
from s2a_bench.data.loading import load_data
from torch.nn.functional import cross_entropy


def main() -> None:
    """Trains, scores and saves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=400, help="training images")
    parser.add_argument("--output", default="adapter.safetensors")
    given = parser.parse_args()
    torch.manual_seed(0)

    # The backbone, and images of the size and normalisation that it was trained with.
    backbone, expected = create(BackboneConfig("mini_vit"))
    task = DataConfig(dataset="digits", limit_train=given.images, limit_test=500)
    data = load_data(task, size=expected.size, mean=expected.mean, std=expected.std)

    # From here on the backbone's weights are frozen; what S2A adds trains, and the head.
    model = s2a.attach(backbone, s2a.S2AConfig(activations="lean"), num_classes=data.classes)
    trainable = list(s2a.trainable_parameters(model).values())
    print(f"{sum(p.numel() for p in trainable):,} values train")
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)

    for epoch in range(given.epochs):
        model.train()
        total = 0.0
        for indices in torch.randperm(len(data.train)).split(32):
            loss = cross_entropy(model(data.train.batch(indices)), data.train.labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(indices)
        print(f"epoch {epoch + 1}: loss {total / len(data.train):.3f}")

    model.eval()
    with torch.inference_mode():
        logits = model(data.scored.batch(torch.arange(len(data.scored))))
    print(f"accuracy {100 * (logits.argmax(1) == data.scored.labels).float().mean().item():.1f} %")
    s2a.save(model, given.output)  # only what was trained, some kilobytes
    print(f"saved to {given.output}")


if __name__ == "__main__":
    main()
