"""The model card, ``README.md``: front matter as Hugging Face reads it, then what a person wants to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from s2a.pretrained.backbone import registered
from s2a.pretrained.config import CONFIG_FILE

_SHOWN_CLASSES = 50
_SHOWN_CHARACTERS, _SENTENCE = 80, 400
_HUB_LICENCES = (
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 gemma "
    "apple-ascl apple-amlr openrail unlicense gpl-3.0 agpl-3.0 lgpl-3.0 mpl-2.0 fair-noncommercial-research-license"
).split()
"""Identifiers that the hub knows, of those that backbones come under; others are ``other`` there."""
_RESULTS = {
    "accuracy": ("Accuracy, top-1 (%)", "accuracy"),
    "val_accuracy": ("Accuracy on the validation images (%)", "accuracy"),
    "balanced_accuracy": ("Balanced accuracy (%)", "balanced_accuracy"),
    "macro_f1": ("F1, mean over classes (%)", "f1"),
}
"""Results -> their name in the card, and the hub's type of metric."""
_MEMORY = {
    "peak_mb": "Peak of a training step",
    "simulated_mb": "Peak of a training step, simulated",
    "process_peak_mb": "Peak of the whole process that trained on a CPU, Python and libraries included",
    "measured_mb": "Weights and what the backward pass keeps, measured",
    "theoretical_mb": "The same, calculated",
    "saved_mb": "Of it, what the backward pass keeps",
    "weights_mb": "Of it, weights",
}
"""Results that belong to the card's section on memory, in MB of 1e6 bytes."""
_OF_DATA = {"name": "Name", "data_id": "Hash of the images", "split_id": "Split", "counts": "Images"}


def make_card(config: Mapping[str, Any]) -> str:
    """The text of a config's model card; the same config gives the same text.

    Args:
        config: What ``read_config`` returns, or what ``save_pretrained`` is about to write.
    """
    backbone, classes = config["backbone"], config["num_classes"]
    name, method = escape(backbone["name"]), escape(config["method"])
    does = f"tells {classes} classes of images apart" if classes else "turns images into features"
    lines = [
        "---",
        _front_matter(config).rstrip("\n"),
        "---",
        "",
        f"# {escape(_title(config))}",
        "",
        f"An adapter of the backbone {name} that {does}, trained with the method {method} of the library "
        "[S2A](https://arxiv.org/abs/2503.08154). What was trained is in here; the backbone's own weights are fetched "
        "and compared when it is loaded.",
        "",
        *_section("Classes", _classes(config["labels"], classes)),
        *_section("Data", _data(config["data"])),
        *_section("Metrics", _metrics(config["metrics"])),
        *_section("Memory", _memory(config)),
        *_section("Backbone", _backbone(config)),
        *_section("How to use", _use(config)),
        *_section("Licence", _licence(config)),
        *_section("Limits", _limits(classes)),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def escape(value: Any, limit: int = _SHOWN_CHARACTERS) -> str:
    """Text of somebody's as it stands in Markdown: one line, no markup, shortened to ``limit`` characters."""
    shown = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", one_line(value, limit))
    shown = re.sub(r"(?i)\b(www)\.", r"\1\.", shown.replace("://", "\\://"))  # No links that nobody made.
    for character, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;")):
        shown = shown.replace(character, reference)
    return shown


def one_line(value: Any, limit: int = _SHOWN_CHARACTERS) -> str:
    """Text without line breaks and control characters, shortened to ``limit`` characters."""
    joiner = "\u200d"  # Inside of emoji.
    shown = " ".join("".join(c if c.isprintable() or c == joiner else " " for c in str(value)).split())
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _title(config: Mapping[str, Any]) -> str:
    data = one_line((config["data"] or {}).get("name") or "")
    return f"{config['backbone']['name']}, {config['method']}{f', {data}' if data else ''}"


def _front_matter(config: Mapping[str, Any]) -> str:
    backbone = config["backbone"]
    hub = (backbone["weights"] or {}).get("hub")
    more: dict[str, Any] = {"base_model": hub, "base_model_relation": "adapter"} if hub else {}
    licence = backbone["licence"]
    if licence in _HUB_LICENCES:
        more["license"] = licence
    elif licence:
        more |= {
            "license": "other",
            "license_name": re.sub(r"[^a-z0-9.-]+", "-", one_line(licence).lower()).strip("-."),
        }
    results = _eval_results(config)
    data = ModelCardData(
        library_name="s2a",
        pipeline_tag="image-classification" if config["num_classes"] else "image-feature-extraction",
        tags=["s2a", config["method"], "timm", "parameter-efficient-fine-tuning"],
        model_name=_title(config) if results else None,
        eval_results=results or None,
        **more,
    )
    return data.to_yaml()


def _eval_results(config: Mapping[str, Any]) -> list[EvalResult]:
    metrics, data = config["metrics"] or {}, config["data"] or {}
    tested = metrics.get("evaluated_on")
    split = {"val": "validation"}.get(str(tested), str(tested)) if tested else None
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=one_line(data.get("name") or "images of the author"),
            dataset_split="validation" if key == "val_accuracy" else split,
            metric_type=kind,
            metric_value=metrics[key],
            metric_name=words,
        )
        for key, (words, kind) in _RESULTS.items()
        if _is_number(metrics.get(key))
    ]


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _classes(labels: list[str] | None, classes: int) -> list[str]:
    if not classes:
        return []
    if labels is None:
        return [f"{classes}, whose names were not given."]
    shown = ", ".join(escape(label) for label in labels[:_SHOWN_CLASSES])
    left = len(labels) - _SHOWN_CLASSES
    # Never at the start of a line, where "1." or "-" would make a list.
    return [f"In the order of the outputs: {shown}" + (f", and {left} more, see `{CONFIG_FILE}`." if left > 0 else ".")]


def _data(data: Mapping[str, Any] | None) -> list[str]:
    if not data:
        return ["Not stated."]
    rows = [(_OF_DATA.get(key, key), _value(value)) for key, value in data.items()]
    return _table(("", ""), [(words, value) for words, value in rows if value])


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    results = {key: value for key, value in (metrics or {}).items() if key not in _MEMORY}
    rows = [(_RESULTS.get(key, (key,))[0], _value(value)) for key, value in results.items()]
    rows = [(words, value) for words, value in rows if value]
    return _table(("metric", "value"), rows) if rows else ["Not stated."]


def _memory(config: Mapping[str, Any]) -> list[str]:
    sizes, metrics = config["memory"], config["metrics"] or {}
    share = 100 * sizes["params_trained"] / max(1, sizes["params_total"])
    rows = [
        ("Trained parameters", f"{sizes['params_trained']:,} of {sizes['params_total']:,} ({share:.2f} %)"),
        ("File of the adapter", f"{sizes['adapter_bytes'] / 1e6:,.2f} MB"),
        ("Weights of the backbone", f"{sizes['backbone_bytes'] / 1e6:,.1f} MB"),
    ]
    rows += [(words, f"{metrics[key]:,.1f} MB") for key, words in _MEMORY.items() if _is_number(metrics.get(key))]
    return _table(("", ""), [(words, escape(value)) for words, value in rows])


def _backbone(config: Mapping[str, Any]) -> list[str]:
    backbone, image = config["backbone"], config["image"]
    weights = backbone["weights"] or {}
    arguments = ", ".join(f"{key}={value}" for key, value in backbone["args"].items())
    rows = [
        ("Name in timm" if registered(backbone["name"]) is None else "Name", escape(backbone["name"])),
        ("Arguments", escape(arguments)),
        *((words, escape(weights.get(key) or "")) for key, words in _WEIGHTS.items()),
        ("s2a's id of the weights", escape(backbone["id"])),
    ]
    if image is not None:
        sides = image["size"] if isinstance(image["size"], list) else [image["size"], image["size"]]
        way = "central crop" if image["resize"] == "crop" else "squashed"
        rows.append(("Images", escape(f"{sides[0]} x {sides[1]}, {way}, {image['interpolation']}")))
    return _table(("", ""), [(words, value) for words, value in rows if value])


_WEIGHTS = {"hub": "Weights on the hub", "revision": "Revision", "file": "File", "sha256": "SHA-256"}


def _use(config: Mapping[str, Any]) -> list[str]:
    weights = config["backbone"]["weights"] or {}
    fetched = weights.get("hub") or config["backbone"]["weights"] is None
    note = [] if fetched else ["Where the backbone's weights are not found by themselves, add `weights=FILE`.", ""]
    packages = [{"s2a_baselines": "s2a-baselines"}.get(config["package"] or "", "s2a")]
    if (entry := registered(config["backbone"]["name"])) is not None and entry.dist is not None:
        packages.append(entry.dist.name)  # it brings the backbone
    install = f"pip install {' '.join(packages)}"
    return [
        *note,
        "```python",
        f"# {install}",
        "import s2a, torch",
        "from PIL import Image",
        "",
        'model = s2a.from_pretrained("FOLDER")  # or "owner/name" on the hub',
        'image = model.transform()(Image.open("image.jpg"))',
        "with torch.no_grad():",
        "    probabilities = model(image[None]).softmax(1)[0]",
        *(
            [
                "for p, i in zip(*probabilities.topk(min(5, len(probabilities)))):",
                '    print(f"{float(p):.3f}", model.labels[i] if model.labels else int(i))',
            ]
            if config["num_classes"]
            else []
        ),
        "```",
        "",
        "On the command line: `s2a-bench predict FOLDER image.jpg`.",
    ]


def _licence(config: Mapping[str, Any]) -> list[str]:
    licence = config["backbone"]["licence"]
    of_data = (config["data"] or {}).get("licence")
    lines = [
        f"The backbone's weights come under {escape(licence)}, which binds what is made with them."
        if licence
        else "The licence of the backbone's weights is not known; ask where they come from before passing this on."
    ]
    if of_data:
        lines += ["", f"Licence of the data: {escape(of_data)}."]
    return lines


def _limits(classes: int) -> list[str]:
    lines = [
        "- The metrics hold for images like those it was tested on; other cameras, places or years may give less.",
        "- It works with the backbone's weights named above alone; others are refused.",
    ]
    if classes:
        lines.insert(0, "- It names one of its classes for every image, also where the image shows none of them.")
        lines.insert(1, "- Its probabilities are those of a softmax and were not calibrated.")
    return lines


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    """Rows whose second column is escaped already."""
    return [
        f"| {head[0]} | {head[1]} |",
        "|---|---|",
        *(f"| {escape(words)} | {value} |" for words, value in rows),
    ]


def _value(value: Any) -> str:
    """A value of somebody's mapping in a table; empty where it is too deep for one."""
    if isinstance(value, Mapping) and all(_is_number(v) or isinstance(v, str) for v in value.values()):
        return ", ".join(f"{escape(key)} {_value(v)}" for key, v in list(value.items())[:10])
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return escape(f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}")
    return "" if isinstance(value, Mapping | list) else escape(value, _SENTENCE)  # a note on the metrics, say


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
