"""Fine-tunes with the ``Trainer`` of Hugging Face ``transformers``.

    python examples/hf_trainer.py [--epochs 3] [--output trainer]

The backbone may have Hugging Face's weights too: ``s2a.weights.create_with_weights("vit_base_patch16_224", folder)``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import s2a
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments


class WithLoss(nn.Module):
    """What ``Trainer`` expects of a model: a dict of batch entries in, loss and logits out."""

    def __init__(self, model: s2a.Adapted) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits ``(B, K)``, and the loss where labels are given."""
        logits = self.model(pixel_values)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


class SaveAdapter(TrainerCallback):
    """Puts ``adapter.safetensors``, what was trained alone, into each checkpoint's folder."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after ``Trainer`` wrote a checkpoint."""
        if state.is_world_process_zero:
            s2a.save(
                kwargs["model"].model,
                Path(str(args.output_dir), f"checkpoint-{state.global_step}", "adapter.safetensors"),
            )


class Colours(Dataset[dict[str, Tensor]]):
    """Noise with one brighter channel, which is the class: put your own in its place."""

    def __init__(self, images: int) -> None:
        self.labels = torch.arange(images) % 3
        self.pixels = 0.3 * torch.randn(images, 3, 32, 32)
        self.pixels[torch.arange(images), self.labels] += 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def make_backbone() -> nn.Module:
    """With real weights: ``timm.create_model("vit_base_patch16_224", pretrained=True)``."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3)


def main(epochs: int = 3, images: int = 48, output: str | Path = "trainer", resume: bool = False) -> Trainer:
    """Trains, or goes on from the last checkpoint in ``output``."""
    model = s2a.attach(make_backbone(), s2a.S2AConfig(activations="lean"), num_classes=3)
    arguments = TrainingArguments(
        output_dir=str(output), num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=1e-2,
        save_strategy="epoch", logging_strategy="epoch", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        WithLoss(model), arguments, train_dataset=Colours(images), eval_dataset=Colours(24), callbacks=[SaveAdapter()]
    )
    trainer.train(resume_from_checkpoint=resume)
    print(trainer.evaluate())
    s2a.save(model, Path(output) / "adapter.safetensors")  # s2a.load(make_backbone(), ...) gives the model back
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="trainer")
    given = parser.parse_args()
    main(given.epochs, output=given.output)
