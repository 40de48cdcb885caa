"""Images per second: decoded every time, from the cache, and what a training step takes. Prints a Markdown table.

``python benchmarks/loading.py [DATA_DIR]``: with a folder that holds a prepared ``caltech101`` its photographs are
read; without one, made-up JPEGs of the same size (300 x 200) are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import s2a
import torch
from s2a_bench.cells import backbones
from s2a_bench.cells.train import train
from s2a_bench.config import BackboneConfig, TrainConfig
from s2a_bench.data.decoded import ImageList, decode_on_demand, open_pixels
from s2a_bench.data.folder import CACHE, ListedImage, read_list, read_manifest
from s2a_bench.data.loading import Images
from s2a_bench.data.synthetic.pictures import draw_picture, encode_jpeg
from s2a_bench.data.table.lookup import DATASETS

BATCH, COUNT = 32, 512


def entries(folder: Path) -> list[ListedImage]:
    """Made-up photographs."""
    found = []
    for i in range(COUNT):
        path = f"{i:06d}.jpg"
        (folder / path).write_bytes(encode_jpeg(draw_picture(i % 100, i, 100, (300, 200))))
        found.append(ListedImage(path, i % 100, i + 1))
    return found


def speed(images: Images, seconds: float = 3.0) -> float:
    """Images per second of ready batches."""
    generator = torch.Generator().manual_seed(0)
    for indices in torch.randperm(len(images)).split(BATCH):  # warm
        images.batch(indices, generator)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for indices in torch.randperm(len(images)).split(BATCH):
            images.batch(indices, generator)
            done += len(indices)
    return done / (time.perf_counter() - started)


def step_speed(name: str, size: int, steps: int) -> float:
    """Images per second of the training step alone: the batch is there already."""
    config = BackboneConfig(name, random_weights=name not in backbones.MINI_BACKBONES)
    model, _ = backbones.create(config)
    adapted = s2a.attach(model, s2a.method_config("s2a"), 100, image_size=size)
    ready = torch.randn(BATCH, 3, size, size)

    class Ready:
        labels = torch.randint(0, 100, (BATCH * steps,))

        def __len__(self) -> int:
            return len(self.labels)

        def batch(self, indices: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            return ready

    *_, last = train(adapted, Ready(), TrainConfig(epochs=2, warmup_epochs=0, batch_size=BATCH), 0)
    return last["images_per_second"]


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, manifest = Path(scratch), None
        if arguments:
            folder = Path(arguments[0]) / "caltech101"
            manifest = read_manifest(folder)
            listed_entries = read_list(folder, "train800val200", DATASETS["caltech101"], manifest)[:COUNT]
        else:
            listed_entries = entries(folder)
        labels = torch.tensor([entry.label for entry in listed_entries])
        made: list[Path] = []

        def images(size: int, open_it: Callable[[ImageList], object], form: str = "square") -> Images:
            listed = ImageList(folder, manifest, listed_entries, size, "bicubic", form)  # type: ignore[arg-type]
            return Images(labels, open_it(listed), (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]

        def cached(listed: ImageList) -> object:
            found = open_pixels(listed, "benchmark")
            made.extend((folder / CACHE).glob("benchmark-*"))
            return found

        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {len(labels)} images")
        print("\n| backbone, pixels | view | decoded every time | cached | training step | loading / step |")
        print("|---|---|---|---|---|---|")
        for name, size, steps in (("mini_vit", 32, 40), ("vit_base_patch16_224", 224, 2)):
            step = step_speed(name, size, steps)
            for form in ("square", "short"):
                slow = speed(images(size, decode_on_demand, form))
                quick = speed(images(size, cached, form))
                view = "VTAB" if form == "square" else "FGVC"
                print(f"| {name}, {size} | {view} | {slow:,.0f} | {quick:,.0f} | {step:,.1f} | {step / quick:.2%} |")
        for path in set(made):
            path.unlink(missing_ok=True)
        assert np.isfinite(step)


if __name__ == "__main__":
    main(sys.argv[1:])
