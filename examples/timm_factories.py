"""Fine-tunes with timm's own parts: dataset, loader, optimiser and schedule from its factories, the model from S2A.

    python examples/timm_factories.py

An adapted model answers to timm as the model itself does (data config, parameter groups, layer decay).
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import s2a
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.nn.functional import cross_entropy


def make_folder(folder: Path, images: int) -> Path:
    """Writes one folder per class with noisy images of a colour: put your own in its place."""
    for label, colour in enumerate(("red", "green", "blue")):
        (folder / colour).mkdir(parents=True)
        for number in range(images // 3):
            pixels = torch.randint(0, 128, (40, 40, 3), dtype=torch.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels.numpy()).save(folder / colour / f"{number}.png")
    return folder


def main(folder: str | Path | None = None, epochs: int = 4, images: int = 48) -> list[float]:
    """Trains on a folder of classes; gives the loss of each epoch."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        root = make_folder(Path(scratch) / "train", images) if folder is None else Path(folder)
        dataset: Any = create_dataset("", root=str(root))

        # With real weights: timm.create_model("vit_base_patch16_224", pretrained=True)
        backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3
        )
        classes = len(dataset.reader.class_to_idx)
        model = s2a.attach(backbone, s2a.S2AConfig(activations="lean"), num_classes=classes)

        # Mean, standard deviation and interpolation of the backbone's weights.
        config = resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
        shared = {key: config[key] for key in ("input_size", "mean", "std", "interpolation")}
        loader = create_loader(
            dataset, batch_size=16, is_training=True, use_prefetcher=False, num_workers=0, color_jitter=0, **shared
        )
        # Only what trains gets into the optimiser's groups; layer decay works as for the plain model.
        optimizer = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=1e-2, layer_decay=0.9)
        schedule: Any = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs, warmup_epochs=0)[0]

        losses = []
        for epoch in range(epochs):
            model.train()
            total = 0.0
            for inputs, labels in loader:
                loss = cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / len(loader)
            schedule.step(epoch + 1)
            losses.append(total)
            print(f"epoch {epoch + 1}: loss {total:.3f}")

        transform: Any = create_transform(**shared, is_training=False)
        image = transform(Image.open(next(root.rglob("*.png"))).convert("RGB"))
        with torch.inference_mode():
            probabilities = model.eval()(image[None]).softmax(1)[0]
            print("first image:", ", ".join(f"{p:.2f}" for p in probabilities.tolist()))
    return losses


if __name__ == "__main__":
    main()
