"""Makes the embedded mini backbones: real pretraining on natural images, small enough for a laptop.

The recipe is deliberately plain (supervised, AdamW, cosine, crop/flip/colour/cutout augmentation). Token-based
models see a random half of the patches for most of the schedule (Steiner et al. call the effect regularisation; here
it halves the cost) and all of them in the last epochs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from s2a_bench.cells.backbones import build_mini
from s2a_bench.cells.mini_backbones import MINI_BACKBONES, MiniBackbone
from s2a_bench.cells.pretrain_config import PretrainConfig
from s2a_bench.data.images import decode_rgb, is_image, resize_image
from s2a_bench.data.readers.tree import Tree


def augment(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Random shift, flip, brightness/contrast, greyscale and cutout, drawn per image.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        generator: Source of every random number.
        pad: Largest shift in pixels (reflected borders).

    Returns:
        ``(B, 3, H, W)`` in [0, 1].
    """
    b, _, h, w = images.shape

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    padded = F.pad(images, (pad,) * 4, mode="reflect")
    dy = torch.randint(0, 2 * pad + 1, (b, 1), generator=generator)
    dx = torch.randint(0, 2 * pad + 1, (b, 1), generator=generator)
    rows, cols = dy + torch.arange(h), dx + torch.arange(w)
    cols = torch.where(rand(b, 1) < 0.5, cols.flip(1), cols)
    n = torch.arange(b)
    out = padded[n[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    mean = out.mean(dim=(2, 3), keepdim=True)
    out = (out - mean) * (0.6 + 0.8 * rand(b, 1, 1, 1)) + mean + 0.4 * (rand(b, 3, 1, 1) - 0.5)
    grey = out.mean(dim=1, keepdim=True).expand_as(out)
    out = torch.where(rand(b, 1, 1, 1) < 0.1, grey, out)
    cy, cx = rand(b, 1) * h, rand(b, 1) * w
    half = h / 8
    hole = ((torch.arange(h) - cy).abs() < half)[:, :, None] & ((torch.arange(w) - cx).abs() < half)[:, None, :]
    out = torch.where(hole[:, None] & (rand(b, 1, 1, 1) < 0.5), 0.5, out)
    return out.clamp(0, 1)


def _learning_rate(step: int, total: int, config: PretrainConfig) -> float:
    warmup = max(1, total // 20)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor, normalise: Callable[[Tensor], Tensor]) -> float:
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(normalise(x.float() / 255)).argmax(1) == y).sum())
            for x, y in zip(images.split(512), labels.split(512), strict=True)
        )
    return 100.0 * hits / len(labels)


def pretrain(config: PretrainConfig, data: Path, out: Path) -> Iterator[dict[str, float]]:
    """Trains a mini backbone and writes ``<out>/<backbone>.safetensors`` and its card ``<backbone>.md``.

    Args:
        config: The run.
        data: CIFAR-10 as class folders, ``{train,test}/<class>/*.jpg``: a directory or a ``.tar.gz`` of it.
        out: Folder of the weights and the card.

    Yields:
        ``epoch``, ``loss``, ``accuracy`` (test, percent) and ``seconds`` after every epoch. The test images only
        describe the backbone; nothing is selected by them.

    Raises:
        ValueError: Unknown backbone.
        FileNotFoundError: No images at ``data``.
    """
    if config.backbone not in MINI_BACKBONES:
        raise ValueError(f"No mini backbone {config.backbone!r}; choose from {', '.join(MINI_BACKBONES)}.")
    spec: MiniBackbone = MINI_BACKBONES[config.backbone]
    size = spec.image_size
    images, labels, classes = load_class_folders(data, "train", size)
    test_images, test_labels, _ = load_class_folders(data, "test", size)

    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = build_mini(
        config.backbone, len(classes), **({"patch_drop_rate": config.patch_drop} if spec.drops_patches else {})
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))

    def normalise(x: Tensor) -> Tensor:
        return (x - mean) / std

    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": no_decay, "weight_decay": 0.0}],
        lr=config.lr,
    )
    steps = len(labels) // config.batch_size
    total, step, started = steps * config.epochs, 0, time.monotonic()
    accuracy = 0.0
    for epoch in range(config.epochs):
        model.train()
        if spec.drops_patches:
            hidden = config.patch_drop if epoch < config.epochs - config.full_epochs else 0.0
            model.get_submodule("patch_drop").prob = hidden  # type: ignore
        order = torch.randperm(len(labels), generator=generator)[: steps * config.batch_size]
        loss_sum = 0.0
        for batch in order.split(config.batch_size):
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(step, total, config)
            x = normalise(augment(images[batch].float() / 255, generator))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                loss = F.cross_entropy(model(x), labels[batch], label_smoothing=config.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            loss_sum, step = loss_sum + loss.item(), step + 1
        accuracy = _accuracy(model, test_images, test_labels, normalise)
        yield {
            "epoch": epoch + 1,
            "loss": loss_sum / steps,
            "accuracy": accuracy,
            "seconds": time.monotonic() - started,
        }
    _write(model, config, spec, len(labels), accuracy, time.monotonic() - started, out)


def _write(
    model: nn.Module, config: PretrainConfig, spec: MiniBackbone, n: int, accuracy: float, seconds: float, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    recipe = json.dumps(dataclasses.asdict(config), sort_keys=True)
    path = out / f"{config.backbone}.safetensors"
    metadata = {"backbone": config.backbone, "recipe": recipe, "accuracy": f"{accuracy:.2f}"}
    with tempfile.TemporaryDirectory(dir=out, prefix=".pretrain.") as folder:
        written = Path(folder, path.name)
        save_file(weights, written, metadata=metadata)
        written.chmod(0o644)  # safetensors writes for its owner alone
        written.replace(path)  # Models that have mapped the old file keep it.
    parameters = sum(p.numel() for p in model.parameters())
    flags = " ".join(
        f"--{f.name.replace('_', '-')}" + ("" if f.default is False else f" {getattr(config, f.name)}")
        for f in dataclasses.fields(config)
        if f.name != "backbone" and getattr(config, f.name) != f.default
    )
    command = f"s2a-bench pretrain --backbone {config.backbone} {flags}".strip()
    (out / f"{config.backbone}.md").write_text(
        f"# {config.backbone}\n\n"
        f"{spec.description}\n\n"
        f"| | |\n|---|---|\n"
        f"| architecture | timm `{spec.architecture}` with `{json.dumps(spec.kwargs)}` |\n"
        f"| input | {size_text(spec)}, mean {spec.mean}, std {spec.std} |\n"
        f"| parameters | {parameters:,} with the {10}-class head |\n"
        f"| pretrained on | CIFAR-10 training images ({n:,}), supervised |\n"
        f"| recipe | `{recipe}` |\n"
        f"| upstream test accuracy | {accuracy:.2f} % (last epoch; nothing selected by it) |\n"
        f"| wall time | {seconds / 60:.0f} min on {torch.get_num_threads()} CPU threads |\n"
        f"| torch | {torch.__version__} |\n\n"
        f"    {command} --data cifar10_images.tar.gz\n\n"
        "CIFAR-10: Krizhevsky, 2009. The images used were a JPEG re-encoding of the original arrays.\n"
    )


def size_text(spec: MiniBackbone) -> str:
    """``"3 x 32 x 32"`` for a 32-pixel backbone."""
    return f"3 x {spec.image_size} x {spec.image_size}"


def load_class_folders(source: Path, split: str, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images of ``<split>/<class>/*`` from a folder or archive.

    Args:
        source: Folder or archive.
        split: ``"train"`` or ``"test"``.
        size: Side in pixels; images of another size are resized (bicubic).

    Returns:
        ``(N, 3, size, size)`` uint8 images, ``(N,)`` int64 labels in the order of the sorted class names, those names.

    Raises:
        FileNotFoundError: No such source, or no image of the split in it.
        InputError: A broken archive or image.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder or archive of images.")
    found: list[tuple[str, str, bytes]] = []
    with Tree(source, (source.name,)) as tree:
        wanted = [n for n in tree.names if is_image(n) and n.count("/") >= 2 and n.split("/")[-3] == split]
        found = [(*name.split("/")[-2:], data) for name, data in tree.read_many(wanted)]  # type: ignore[misc]
    if not found:
        raise FileNotFoundError(f"{source} holds no image under {split}/<class>/; expected that layout.")
    found.sort(key=lambda item: item[:2])
    classes = sorted({item[0] for item in found})
    index = {name: i for i, name in enumerate(classes)}
    images = torch.empty(len(found), 3, size, size, dtype=torch.uint8)
    for i, (label, name, data) in enumerate(found):
        images[i] = torch.from_numpy(resize_image(decode_rgb(data, f"{split}/{label}/{name}"), size).copy())
    return images, torch.tensor([index[item[0]] for item in found]), classes
