"""Synthetic records for tests of the doors: the values are made up, the shape is that of ``run.run``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from s2a_bench.cells.record import Record, cell_id
from s2a_bench.reports.sections import Section, make_sections

GROUPS = {"digits": "natural", "sprite_location": "structured", "sprite_count": "structured", "texture": "specialized"}
COSTS = {  # method: (trainable parameters, theoretical MB, measured MB, images per second)
    "full": (1_200_000, 92.0, 101.5, 610.0),
    "linear": (1_300, 8.1, 9.0, 1900.0),
    "bias": (16_000, 38.0, 41.0, 820.0),
    "lora": (31_000, 55.0, 60.0, 740.0),
    "s2a": (24_000, 21.0, 24.5, 690.0),
}


def make_record(**changes: Any) -> Record:
    """A finished record; its id follows its content, unless ``cell_id`` is given."""
    method = changes.get("method", "s2a")
    trainable, theoretical, measured, speed = COSTS.get(method, (20_000, 30.0, 33.0, 700.0))
    values: dict[str, Any] = {
        "status": "done",
        "suite": "mini",
        "dataset": "digits",
        "backbone": "mini_vit",
        "method": method,
        "method_config": {"lrp_rank": 8, "activations": "paper"} if method == "s2a" else {},
        "train_config": {"epochs": 3, "batch_size": 32, "lr": 0.005, "weight_decay": 1e-4},
        "seed": 0,
        "epochs": 3,
        "evaluated_on": "test",
        "data_id": f"data-{changes.get('dataset', 'digits')}",
        "split_id": "split-1",
        "data_config": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
        "checkpoint_id": "checkpoint-1",
        "classes": 10,
        "train_images": 1000,
        "scored_images": 797,
        "accuracy": 80.0,
        "params_total": 1_201_300,
        "params_backbone": 1_200_000,
        "params_trainable": trainable,
        "params_percent": 100 * trainable / 1_200_000,
        "weights_mb": 4.8,
        "theoretical_mb": theoretical,
        "saved_mb": measured - 4.8,
        "measured_mb": measured,
        "peak_mb": 500.0,
        "images_per_second": speed,
        "seconds": 4.5,
        "curve": [{"epoch": e, "loss": 2.0 / e, "lr": 0.005 / e, "seconds": 1.5} for e in (1, 2, 3)],
        "resumed": 0,
        "notes": [],
        "adapter_id": "",
        "started_at": "2026-01-02T03:04:05+00:00",
        "git_sha": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "versions": {"python": "3.11.7", "torch": "2.11.0"},
        "hardware": {"device": "cpu", "cpu": "Example CPU", "cores": 2, "threads": 1},
    }
    values |= changes
    values.setdefault("group", GROUPS.get(values["dataset"], "natural"))
    values["synthetic"] = changes.get("synthetic", values["dataset"] != "digits")
    if values["status"] == "failed":
        values |= {"accuracy": None, "seconds": None, "curve": []}
        values["error"] = changes.get(
            "error",
            {
                "type": "Diverged",
                "message": "The loss is nan.",
                "traceback": "Traceback ...\nDiverged: The loss is nan.",
            },
        )
    identity = (
        "suite",
        "dataset",
        "backbone",
        "method",
        "method_config",
        "train_config",
        "seed",
        "data_id",
        "checkpoint_id",
    )
    extra = ("split_id", "epochs", "evaluated_on", "data_config", "limit_train")
    values.setdefault("cell_id", cell_id({name: values.get(name) for name in (*identity, *extra)}))
    return Record(**values)


def make_grid(
    methods: Iterable[str] = ("full", "linear", "bias", "lora", "s2a"),
    datasets: Iterable[str] = tuple(GROUPS),
    seeds: Iterable[int] = (0, 1, 2),
    **changes: Any,
) -> list[Record]:
    """Records of every method, dataset and seed; accuracies differ by method first, then by dataset and seed."""
    skill = {"full": 88.0, "linear": 52.0, "bias": 79.0, "lora": 84.0, "s2a": 87.0}
    records = []
    for (m, method), (d, dataset), seed in itertools.product(enumerate(methods), enumerate(datasets), seeds):
        accuracy = skill.get(method, 70.0) - 3.0 * d + 0.25 * ((7 * seed + 3 * d + m) % 5)
        records.append(
            make_record(**{"method": method, "dataset": dataset, "seed": seed, "accuracy": accuracy} | changes)
        )
    return records


def default_options() -> dict[str, object]:
    """Of s2a. Imported here: other tests of reports need no torch."""
    import s2a

    return dataclasses.asdict(s2a.method_config("s2a"))


def only_section(records: Iterable[Record]) -> Section:
    """The one section that records make."""
    (section,) = make_sections(records)
    return section
