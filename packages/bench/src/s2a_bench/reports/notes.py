"""What a reader must know before comparing the numbers of a section."""

from __future__ import annotations

from s2a_bench.cells import learning
from s2a_bench.cells.evaluation import NO_TEST
from s2a_bench.experiments.spec import FAMILIES
from s2a_bench.reports.sections import Section
from s2a_bench.reports.text import format_seeds, truncate_list
from s2a_bench.reports.variants import canonical_text, format_option


def list_notes(section: Section) -> list[str]:
    """What a reader must know before comparing numbers of this section with each other or with a paper."""
    done = [record for _, record in section.records if record.status == "done"]
    if not done:
        return ["No cell of this section has finished."]
    found = _describe_unlearned(section)
    if any(r.random_weights for r in done):
        found.append("Backbone weights are random: accuracies say nothing about transfer, only memory and speed count.")
    limits = [f"{k}={v}" for k, v in section.setting.items() if k.startswith("limit_") and v is not None]
    if limits:
        found.append(f"Limited data ({', '.join(limits)}): not comparable with runs on the full lists.")
    if section.setting["evaluated_on"] == "select":
        found.append(
            "Trained without the validation images, which chose the epoch: not comparable with results after the last "
            "epoch of training on both (evaluated on test), as the paper's are."
        )
        if names := sorted({r.dataset for r in done if NO_TEST in r.notes}):
            found.append(
                "Without test images accuracies are those of the validation images that chose the epoch, and so "
                f"optimistic: {', '.join(names)}."
            )
    if section.setting["evaluated_on"] == "val":
        found.append(
            "Scored on the validation images, trained without them: not comparable with published test numbers."
        )
    for flag, text in (
        (
            "synthetic",
            "Synthetic images, made by this package: comparable only with records of the same data id",
        ),
        ("lossy", "Images were stored lossily (JPEG), which alone can move accuracies by points"),
    ):
        names = sorted({r.dataset for r in done if getattr(r, flag)})
        if names:
            found.append(f"{text}: {', '.join(names)}.")
    mini = {small for small, _ in FAMILIES.values()}
    if any(r.dataset == "cifar10" and r.backbone in mini and not r.random_weights for r in done):
        found.append(
            "The mini backbones were pretrained on CIFAR-10's training images: cifar10 says nothing of transfer."
        )
    if all(len(row.seeds) < 2 for row in section.rows):
        found.append("One seed per cell: the spread between seeds is unknown, so no difference is called real.")
    elif len({row.seeds for row in section.rows if row.seeds}) > 1:
        held: dict[str, list[str]] = {}
        for row in section.rows:
            held.setdefault(format_seeds(row.seeds), []).append(row.label)
        found.append(
            "Rows do not share the same seeds: "
            + " | ".join(f"{k} for {truncate_list(v)}" for k, v in held.items())
            + "."
        )
    if short := [row.label for row in section.rows if row.averages is None]:
        found.append(f"No averages for {truncate_list(short)}: not every task counts there.")
    batches = sorted({b for r in done if (b := r.train_config.get("batch_size")) is not None})
    if len(batches) > 1:
        found.append(f"Batch sizes differ ({', '.join(map(str, batches))}): memory and speed do not compare.")
    if len({canonical_text(r.hardware) for r in done}) > 1:
        found.append("Cells ran on different hardware: images/s and peak memory do not compare between them.")
    if (shas := len({r.git_sha for r in done})) > 1:
        found.append(f"Cells ran from {shas} commits; the protocol version is the same.")
    if (kinds := len({canonical_text(r.versions) for r in done})) > 1:
        found.append(f"Cells ran with {kinds} sets of library versions.")
    if any(r.git_dirty for r in done):
        found.append("Some cells ran from a working tree with uncommitted changes.")
    return found + _describe_recipes(section)


def _describe_unlearned(section: Section) -> list[str]:
    cells = [
        f"{label} on {record.dataset}, seed {record.seed}"
        for label, record in section.records
        if learning.find_problems(record)
    ]
    if not cells:
        return []
    return [
        f"{len(cells)} cell{'s' * (len(cells) > 1)} did not learn (marked †): {truncate_list(cells)}. Means marked † "
        "hold such a cell: compare them only after it was trained with another recipe, a lower train.lr most often."
    ]


def _describe_recipes(section: Section) -> list[str]:
    """The training recipe: what all rows share, then what sets them apart."""
    done = [(label, r) for label, r in section.records if r.status == "done"]
    common, apart = [], []
    for key in sorted({k for _, r in done for k in r.train_config}):
        values: dict[str, list[str]] = {}
        for label, record in done:
            text = format_option(record.train_config.get(key))
            if text not in values.setdefault(label, []):
                values[label].append(text)
        if len({tuple(v) for v in values.values()}) == 1 and all(len(v) == 1 for v in values.values()):
            common.append(f"{key}={next(iter(values.values()))[0]}")
        else:
            by_value: dict[str, list[str]] = {}
            for label, several in values.items():
                by_value.setdefault(" or ".join(several), []).append(label)
            shown = (f"{value} ({truncate_list(labels)})" for value, labels in by_value.items())
            apart.append(f"{key}: {truncate_list(list(shown), 10)}")
    found = [f"Recipe of all rows: {', '.join(common)}."] if common else []
    return found + [f"Recipe by row, {text}." for text in apart]
