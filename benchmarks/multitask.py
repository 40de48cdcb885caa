"""Many tasks on one backbone: equal logits, bytes per task, time to add, to switch, and of mixed batches.

    python benchmarks/multitask.py [--backbone mini_vit] [--tasks 50] [--batch 16] [--weights FILE] [--image-size 112]

Tasks take the methods in turn and have 2 to 101 classes; what trains in them is moved off its start. One thread;
everything is measured in turn in one process, least of ``--rounds``:

- one task: the whole batch is of one task, whose own adapted model answers; and the same through MultiTask
- mixed: the images of the batch belong to ``--mixed`` tasks, through MultiTask
- models: the same images and tasks, each task's own model on its images, one after the other
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s2a
import torch
from s2a.multitask.share import storages
from s2a_bench.cells import backbones
from s2a_bench.config import BackboneConfig
from torch import Tensor

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "s2a": ("s2a", {}),
    "bias": ("bias", {}),
    "lora": ("lora", {}),
    "s2a plus": ("s2a", {"preset": "plus"}),
    "adapter": ("adapter", {}),
}


def trained(model: Any, name: str, classes: int, side: int, seed: int) -> Any:
    """A copy of the backbone under a method, with values as after training."""
    torch.manual_seed(seed)
    method, options = METHODS[name]
    adapted = s2a.attach(copy.deepcopy(model), s2a.method_config(method, **options), classes, image_size=side).eval()
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return adapted


def least(work: Callable[[], Any], rounds: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini_vit")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--mixed", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = BackboneConfig(args.backbone, weights=args.weights, image_size=args.image_size)
    model, form = backbones.create(config, 0)
    model.eval()
    multi = s2a.MultiTask(model)
    names = [f"task{i}" for i in range(args.tasks)]
    seconds: dict[str, list[float]] = {}
    batch = torch.randn(args.batch, 3, form.size, form.size)
    worst, models = 0.0, {}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            kind = args.methods[i % len(args.methods)]
            adapted = trained(model, kind, 2 + i % 100, form.size, i)
            path = Path(folder, f"{name}.safetensors")
            s2a.save(adapted, path)
            began = time.perf_counter()
            multi.add(name, path)
            seconds.setdefault(kind, []).append(time.perf_counter() - began)
            with torch.no_grad():
                own = adapted(batch[:2])
                worst = max(worst, (multi(batch[:2], name) - own).abs().max().item() / own.abs().max().item())
                models[name] = own
            if i < max(args.mixed):
                models[name] = adapted
            else:
                del adapted
            gc.collect()
    held = sum(storages(model).values())
    print(f"{args.backbone}, {args.tasks} tasks, batch {args.batch}, {form.size} px")
    print(f"largest difference to a task's own model, relative to its largest logit: {worst:.1e}")
    print(f"backbone {held / 1e6:.2f} MB; N copies {args.tasks * held / 1e6:.1f} MB")
    print("\n| method | KB per task | of a copy | ms to add |\n|---|---|---|---|")
    for kind, times in seconds.items():
        sizes = [multi.tasks[n].bytes for i, n in enumerate(names) if args.methods[i % len(args.methods)] == kind]
        mean = statistics.mean(sizes)
        print(f"| {kind} | {mean / 1e3:.1f} | {mean / held:.1%} | {1e3 * statistics.median(times):.0f} |")
    total = sum(task.bytes for task in multi.tasks.values())
    print(
        f"all: {total / 1e6:.2f} MB beside the backbone's; {(total + held) / (args.tasks * held + total):.1%} of copies"
    )
    print("\n| batch | ms | images / s |\n|---|---|---|")

    def row(label: str, work: Callable[[], Any]) -> None:
        work()
        ms = least(work, args.rounds)
        print(f"| {label} | {ms:.1f} | {args.batch / ms * 1e3:.0f} |")

    with torch.no_grad():
        first: Any = models[names[0]]
        row("one task, its own model", lambda: first(batch))
        row("one task", lambda: multi(batch, names[0]))
        row(
            "a task after another, one image each",
            lambda: [multi(batch[i : i + 1], names[i % args.tasks]) for i in range(args.batch)],
        )
        for count in args.mixed:
            tasks = [names[i * count // args.batch] for i in range(args.batch)]
            runs = [(models[n], [i for i, t in enumerate(tasks) if t == n]) for n in dict.fromkeys(tasks)]
            row(f"mixed, {count} tasks", lambda tasks=tasks: multi(batch, tasks))
            row(f"models, {count} tasks", lambda runs=runs: [m(batch[rows]) for m, rows in runs])
    check(multi, models, batch, names, max(args.mixed))


def check(multi: Any, models: Any, batch: Tensor, names: list[str], count: int) -> None:
    """A mixed batch beside each task's own model."""
    tasks = [names[i % count] for i in range(len(batch))]
    with torch.no_grad():
        worst = 0.0
        for i, (name, found) in enumerate(zip(tasks, multi(batch, tasks), strict=True)):
            own = models[name](batch[i : i + 1])[0]
            worst = max(worst, (found - own).abs().max().item() / own.abs().max().item())
    print(f"largest relative difference in a mixed batch: {worst:.1e}")


if __name__ == "__main__":
    main()
