"""The page of a fine-tuning, ``report.html``: one file, no requests, no scripts, every text escaped."""

from __future__ import annotations

import importlib.resources
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.finetuning.pictures import Mistake
from s2a_bench.reports.figures import canvas, confusion, epochs, style
from s2a_bench.reports.markup import Markup, element, join, make_table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page may load nothing and run nothing; its pictures are part of it."""

TABLE_CLASSES, MAP_CLASSES, PAIRS = 12, 300, 25
"""Classes up to which the confusion matrix is a table of counts, up to which it is drawn; rows of confused pairs."""

ROW_CHARACTERS, COLUMN_CHARACTERS = 40, 16
"""Characters of a class's name in a table's rows and above its columns; the whole name appears when pointed at."""


def render(metrics: Mapping[str, Any], mistakes: Sequence[Mistake], adapter: Path) -> str:
    """The whole file.

    Args:
        metrics: See ``metrics.build``.
        mistakes: The most confident ones, with their pictures.
        adapter: The adapter folder, for the commands.
    """
    sheets = [
        (importlib.resources.files(package) / name).read_text(encoding="utf-8")
        for package, name in (("s2a_bench.reports", "report.css"), ("s2a_bench.finetuning", "page.css"))
    ]
    title = f"{metrics['data']['name']}: {metrics['method']['name']} on {metrics['backbone']['name']}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", *map(Markup, sheets), style.css([])),
    )
    blocks = [element("h1", title), element("p", _headline(metrics), class_="soft")]
    if metrics["status"] == "interrupted":
        blocks.append(element("p", interrupted_sentence(metrics), class_="bad"))
    if not canvas.is_available():
        blocks.append(element("p", canvas.MISSING))
    blocks += [_numbers(metrics), *_notes(metrics)]
    if canvas.is_available():
        blocks += [element("h2", "Learning curves"), _learning_curves(metrics), *_rate_search(metrics)]
    blocks += [element("h2", "What is named what"), *_confusion(metrics)]
    blocks += [element("h2", "Each class"), _class_table(metrics)]
    blocks += [element("h2", "The most confident mistakes"), *_mistakes(mistakes, metrics)]
    blocks += [element("h2", "Use it"), *_usage(adapter, metrics)]
    blocks += [element("h2", "What was run"), _facts(metrics)]
    body = element("body", element("main", *blocks))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def interrupted_sentence(metrics: Mapping[str, Any]) -> str:
    """That a training did not come to its end."""
    return (
        f"Interrupted after epoch {metrics['epochs_run']} of {metrics['epochs']}: this is the best epoch so far. "
        "The same command goes on from the last checkpoint."
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    counts = metrics["data"]["counts"]
    scored = {"test": "images that took no part in training", "val": "the validation images that chose the epoch"}
    parts = [f"{counts['train']:,} training, {counts['val']:,} validation, {counts['test']:,} test images"]
    parts.append(f"{len(metrics['labels']):,} classes")
    parts.append(f"scored on {scored[metrics['accuracy_on']]}")
    return ", ".join(parts) + "."


def _numbers(metrics: Mapping[str, Any]) -> Markup:
    shown = [
        (f"accuracy on {metrics['accuracy_on']}", _percent(metrics["accuracy"])),
        ("balanced accuracy", _percent(metrics["balanced_accuracy"])),
        ("macro F1", _percent(metrics["macro_f1"])),
        (f"validation, epoch {metrics['best_epoch']}", _percent(metrics["val_accuracy"])),
    ]
    boxes = (element("div", element("span", v, class_="big"), element("span", n, class_="soft")) for n, v in shown)
    return element("div", *boxes, class_="numbers")


def _notes(metrics: Mapping[str, Any]) -> list[Markup]:
    if not metrics["notes"]:
        return []
    listed = (element("li", note, class_="break") for note in metrics["notes"])
    return [element("h3", "What to know"), element("div", element("ul", *listed), class_="notes")]


def _learning_curves(metrics: Mapping[str, Any]) -> Markup:
    def line(name: str, key: str) -> list[epochs.Line]:
        points = tuple((m["epoch"], m[key]) for m in metrics["curve"] if m.get(key) is not None)
        return [epochs.Line(name, points)] if points else []

    best = metrics["best_epoch"]
    panels = [
        (line("training", "loss") + line("validation", "val_loss"), "loss", "", "Loss over the epochs"),
        (line("validation", "val_accuracy"), "accuracy, %", " %", "Validation accuracy over the epochs"),
    ]
    drawn = []
    for lines, label, unit, title in panels:
        if lines:
            figure = epochs.draw_epochs(lines, title=title, y_label=label, unit=unit, best=best)
            drawn.append(element("figure", figure, element("figcaption", title)))
    return element("div", *drawn, class_="figures")


def _rate_search(metrics: Mapping[str, Any]) -> list[Markup]:
    """The range test, where there was one: loss over the learning rate."""
    search = metrics.get("lr_search")
    if not search or not search["points"]:
        return []
    points = tuple((rate, loss) for rate, loss in search["points"])
    title = f"Loss over the learning rate; chosen: {search['rate']:.2g}"
    drawn = epochs.draw_rates(points, title=title, chosen=search["rate"])
    figure = element("figure", drawn, element("figcaption", search["reason"]))
    return [element("h3", "Learning rate"), element("div", figure, class_="figures")]


def _confusion(metrics: Mapping[str, Any]) -> list[Markup]:
    labels: Sequence[str] = metrics["labels"]
    counts = {(true, named): count for true, named, count in metrics["confusion"]["counts"]}
    where = f"Of the {metrics['accuracy_on']} images; rows are true classes, columns what the model names."
    blocks = [element("p", where, class_="soft")]
    if len(labels) <= TABLE_CLASSES:
        head = [
            element("th", "true class", scope="col"),
            *(_class_name("th", each, COLUMN_CHARACTERS, scope="col") for each in labels),
        ]
        body = []
        for true, label in enumerate(labels):
            cells = []
            for named in range(len(labels)):
                count = counts.get((true, named), 0)
                kind = "right" if true == named else "wrong"
                cells.append(element("td", str(count) if count else "·", class_=kind if count else "soft"))
            body.append(element("tr", _class_name("th", label, scope="row"), *cells))
        return [*blocks, make_table(head, body)]
    if len(labels) <= MAP_CLASSES and canvas.is_available():
        drawing = confusion.draw_confusion(counts, labels, title="Confusion matrix")
        words = "Blue: right; red: wrong; the stronger, the larger the share of the row. Point at one for its classes."
        figure = element("figure", element("div", drawing, class_="matrix", tabindex="0"), element("figcaption", words))
        blocks.append(figure)
    wrong = sorted(((n, t, m) for (t, m), n in counts.items() if t != m), key=lambda each: (-each[0], *each[1:]))
    name = dict(enumerate(labels))
    supports = {each["label"]: each["support"] for each in metrics["per_class"]}
    if not wrong:
        return [*blocks, element("p", "No image is named wrongly.")]
    body = [
        element(
            "tr",
            _class_name("th", name[t], scope="row"),
            _class_name("td", name[m]),
            element("td", f"{n} of {supports[name[t]]}"),
        )
        for n, t, m in wrong[:PAIRS]
    ]
    head = [element("th", text, scope="col") for text in ("true class", "named", "images")]
    more = f" The first {PAIRS} of {len(wrong)} pairs." if len(wrong) > PAIRS else ""
    return [*blocks, element("h3", "Most confused"), element("p", more.strip(), class_="soft"), make_table(head, body)]


def _class_table(metrics: Mapping[str, Any]) -> Markup:
    rows = sorted(metrics["per_class"], key=lambda each: (each["f1"], each["recall"], each["label"]))
    body = []
    for row in rows:
        if row["support"]:
            values = [_percent(row[key]) for key in ("precision", "recall", "f1")]
        else:
            values = ["·"] * 3
        cells = (element("td", value) for value in [*values, str(row["support"])])
        body.append(element("tr", _class_name("th", row["label"], scope="row"), *cells))
    head = [element("th", text, scope="col") for text in ("class", "precision", "recall", "F1", "images")]
    table = make_table(head, body)
    words = element("p", "The weakest first.", class_="soft")
    if len(rows) <= 40:
        return join([words, table])
    return join(
        [words, element("details", element("summary", f"All {len(rows)} classes"), table, open=len(rows) <= 150)]
    )


def _mistakes(mistakes: Sequence[Mistake], metrics: Mapping[str, Any]) -> list[Markup]:
    if not mistakes:
        return [element("p", f"None of the {metrics['accuracy_on']} images is named wrongly.")]
    figures = []
    for each in mistakes:
        picture = element("img", src=each.picture, alt=each.path, title=each.path) if each.picture else Markup()
        words = element("b", each.predicted), f" {100 * each.probability:.0f} %, is {each.label}"
        figures.append(element("figure", picture, element("figcaption", *words, title=each.path)))
    return [element("div", *figures, class_="thumbs")]


def predict_command(adapter: Path, metrics: Mapping[str, Any]) -> str:
    """The command that uses an adapter folder; with the weights file where the backbone's are the user's own."""
    words = ["s2a-bench", "predict", str(adapter), "photo.jpg"]
    words += ["--weights", file] if (file := metrics["backbone"].get("weights_file")) else []
    return shlex.join(words)


def _usage(adapter: Path, metrics: Mapping[str, Any]) -> list[Markup]:
    file = metrics["backbone"].get("weights_file")
    arguments = f"{str(adapter)!r}, weights={file!r}" if file else repr(str(adapter))
    code = f"import s2a\nfrom PIL import Image\n\nmodel = s2a.from_pretrained({arguments})\n"
    code += "image = model.transform()(Image.open('photo.jpg'))\n"
    code += "probabilities = model(image[None]).softmax(-1)[0]\nprint(model.labels[probabilities.argmax()])\n"
    return [element("pre", predict_command(adapter, metrics)), element("p", "Or in Python:"), element("pre", code)]


def _facts(metrics: Mapping[str, Any]) -> Markup:
    body = []
    for name, value in facts(metrics):
        body.append(element("tr", element("th", name, scope="row"), element("td", value, class_="text break")))
    return make_table([element("th", "what", scope="col"), element("th", "which", scope="col", class_="text")], body)


def facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, on what, how long, and the memory, as pairs of a name and a text."""
    data, backbone, memory, times = (metrics[key] for key in ("data", "backbone", "memory", "times"))
    train = metrics["config"]["train"]
    options = ", ".join(f"{key}={value}" for key, value in sorted(metrics["method"]["options"].items()))
    on_cpu = metrics["hardware"].get("device") == "cpu"
    peak = "at most in the whole process, Python and libraries included" if on_cpu else "peak"
    sizes = (("measured_mb", "weights and saved tensors"), ("simulated_mb", "simulated peak"), ("peak_mb", peak))
    found = [
        ("data", f"{data['source']} (data {data['data_id']}, split {data['split_id']})"),
        ("backbone", f"{backbone['name']}, weights {backbone['weights']} ({backbone['checkpoint_id']})"),
        ("images", f"{metrics['image']['size']} pixels, {metrics['image']['interpolation']}"),
        ("method", f"{metrics['method']['name']} ({options})" if options else metrics["method"]["name"]),
        ("recipe", ", ".join(f"{key}={value}" for key, value in train.items())),
        ("seed", str(metrics["seed"])),
        ("epochs", f"{metrics['epochs_run']} of {metrics['epochs']} run, epoch {metrics['best_epoch']} kept"),
        ("trainable", f"{metrics['params']['trainable']:,} of {metrics['params']['total']:,} parameters"),
        ("memory of a step", _megabytes(memory, *sizes)),
        ("budget", memory.get("budget") or "none"),
        ("time", f"{_seconds(times.get('training'))} of training, {_seconds(times.get('total'))} in all"),
        ("speed", f"{metrics['images_per_second']:.1f} images/s" if metrics["images_per_second"] else "unknown"),
        ("hardware", _hardware(metrics["hardware"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())),
        ("record", metrics["cell_id"]),
    ]
    return found


def _hardware(found: Mapping[str, Any]) -> str:
    """Device and processor, numbers with what they count."""
    counted = ("cores", "threads")
    words = [str(value) for key, value in found.items() if key not in counted and value]
    return ", ".join([*words, *(f"{key}: {found[key]}" for key in counted if found.get(key))])


def _megabytes(memory: Mapping[str, Any], *names: tuple[str, str]) -> str:
    return (
        ", ".join(f"{memory[key]:,.1f} MB {words}" for key, words in names if memory.get(key) is not None) or "unknown"
    )


def _seconds(value: float | None) -> str:
    return "unknown time" if value is None else f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} %"


def _class_name(tag: str, label: str, most: int = ROW_CHARACTERS, **attributes: str) -> Markup:
    """A class in a table; of a long name the beginning, and all of it where one points at it."""
    if len(label) <= most:
        return element(tag, label, **attributes)
    return element(tag, label[: most - 1].rstrip() + "…", title=label, **attributes)
