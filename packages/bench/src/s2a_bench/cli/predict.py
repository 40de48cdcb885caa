"""``s2a-bench predict``: class names and probabilities of images."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from s2a_bench import api
from s2a_bench.cli.common import DONE, SOME_FAILED, File, Flag, is_alive, make_console, print_verbatim
from s2a_bench.cli.fitted_table import Column, print_table
from s2a_bench.cli.steps import Steps, show_activity
from s2a_bench.data.readers.walk import path_exists
from s2a_bench.errors import InputError
from s2a_bench.files import replacing
from s2a_bench.inference import checks
from s2a_bench.inference.paths import STDIN, read_names

if TYPE_CHECKING:
    from s2a_bench.inference.prediction import Prediction

HEARTBEAT = 30.0
"""Seconds between two signs of life where standard error is no terminal."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Class names and probabilities of images, by a trained adapter. Bad images are named and skipped (exit code 1).

    Attributes:
        adapter: An adapter folder, the output folder of finetune, or a hub id owner/name.
        images: Files, folders (with all below them), quoted patterns ("photos/**/*.jpg"); -: names on standard input.
        top: Classes per image.
        json: Print JSON: a list of objects with path, label, probability, top.
        csv: Write the predictions to this file instead of a table on the terminal.
        null: Names on standard input end with zero bytes (find -print0).
        batch_size: Images at once.
        device: cpu, cuda, cuda:0; auto: a GPU if there is one.
        weights: File of the backbone's weights; as the adapter says if left out.
    """

    adapter: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ADAPTER")]
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH ...")]
    top: int = 5
    json: Flag = False
    csv: File = None
    null: Flag = False
    batch_size: int = 32
    device: str = "auto"
    weights: File = None

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Bad input.
        """
        if self.csv is not None:
            _check_csv(self.csv)
        if self.null and STDIN not in self.images:
            raise InputError("--null has no effect without -, which reads names from standard input; add it.")
        listed = read_names(sys.stdin.buffer, self.null) if STDIN in self.images else []
        request = api.prepare_predict(
            self.adapter,
            self.images,
            listed=listed,
            top=self.top,
            batch_size=self.batch_size,
            weights=self.weights,
            device=self.device,
        )
        if self.csv is not None:
            _check_no_image(self.csv, request.paths)
        found = list(_predictions(request))
        bad = [each for each in found if each.error is not None]
        good = [each for each in found if each.error is None]
        unwritten = self.csv is not None and not _write_csv(self.csv, good)
        if self.json:
            rows = [{k: v for k, v in dataclasses.asdict(each).items() if k != "error"} for each in good]
            print(json.dumps(rows, indent=1), file=console.file)
        elif self.csv is not None and not unwritten:
            print_verbatim(console, f"{len(good)} predictions are in {shown(str(self.csv))}.")
        elif good:
            print_predictions(console, good)
        if bad:
            print(f"s2a-bench: {len(bad)} of {len(found)} images could not be read.", file=sys.stderr)
        return SOME_FAILED if bad or unwritten else DONE


def _check_csv(path: Path) -> None:
    """Refuses a place where the file cannot be, before the work.

    Raises:
        InputError: It is such a place.
    """
    if path.is_dir():
        raise InputError(f"--csv {path} is a folder; give the path of a file.")
    above = next(each for each in path.absolute().parents if path_exists(each))
    if not above.is_dir():
        raise InputError(f"--csv {path} cannot be written ({above} is a file); give another path.")
    if not os.access(above, os.W_OK):
        raise InputError(f"--csv {path} cannot be written (no right to write in {above}); give another path.")


def _check_no_image(path: Path, images: Sequence[str]) -> None:
    """Refuses a place where one of the images is.

    Raises:
        InputError: It is one.
    """
    if path_exists(path) and any(path_exists(Path(each)) and path.samefile(each) for each in images):
        raise InputError(f"--csv {path} is one of the images, which would be lost; give another path.")


def _write_csv(path: Path, found: Sequence[Prediction]) -> bool:
    """Whether the file could be written; if not, why is said."""
    try:
        with replacing(path.absolute()) as file:
            file.write(as_csv(found))
    except OSError as error:
        print(f"s2a-bench: --csv {path} could not be written ({error.strerror or error}).", file=sys.stderr)
        return False
    return True


def _predictions(request: checks.PredictRequest) -> Iterator[Prediction]:
    """Predictions, with progress and bad images on standard error."""
    with show_activity(make_console(sys.stderr), "loading torch and the adapter"):
        from s2a_bench.inference.predict import load_adapter, predictions

        adapted = load_adapter(request.adapter, request.weights, request.device)
    with _progress(len(request.paths)) as (progress, errors):
        for each in predictions(adapted, request.paths, request.top, request.batch_size, progress):
            if each.error is not None:
                print_verbatim(errors, f"s2a-bench: {shown(each.error)}")
            yield each


@contextlib.contextmanager
def _progress(count: int) -> Iterator[tuple[checks.Progress, Console]]:
    """A bar on a terminal, a line now and then elsewhere; with it the console for messages."""
    console = make_console(sys.stderr)
    if is_alive(console):
        steps = Steps(console)
        steps.step("images", 0, count)
        try:
            yield functools.partial(steps.step, "images"), console
        finally:
            steps.close()
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= HEARTBEAT:
            last = time.monotonic()
            print(f"s2a-bench: {done} of {total} images", file=sys.stderr, flush=True)

    yield line, console


def print_predictions(console: Console, found: Sequence[Prediction]) -> None:
    """Path, label and probability, then what else is probable."""
    columns = [Column("path", justify="left"), Column("label", justify="left"), Column("%")]
    further = any(len(each.top) > 1 for each in found)
    columns += [Column("then", 1, "left", wraps=True)] if further else []
    rows = []
    for each in found:
        others = ", ".join(f"{shown(label)}\N{NO-BREAK SPACE}{100 * share:.1f}" for label, share in each.top[1:])
        cells = (shown(each.path), shown(each.label or ""), f"{100 * (each.probability or 0):.1f}", others)
        rows.append(cells[: len(columns)])
    print_table(console, "", columns, rows)


def as_csv(found: Sequence[Prediction]) -> bytes:
    """Path, label, probability, then the further classes; names of files keep their bytes."""
    most = max((len(each.top) for each in found), default=1)
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    further = [name for rank in range(2, most + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    rows.writerow(["path", "label", "probability", *further])
    for each in found:
        rows.writerow([each.path, *(value for pair in each.top for value in pair)])
    return text.getvalue().encode("utf-8", "surrogateescape")


def shown(text: str) -> str:
    """Text on one line of a terminal: what cannot be seen there as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
