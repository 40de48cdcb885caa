"""``s2a-bench export``: a trained adapter as a file that runs elsewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from s2a_bench import api
from s2a_bench.cli.common import DONE, File, Flag, print_verbatim, say_next

Images = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")]


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes an adapter as a file that runs without this library, once it was found to give the same logits.

    Attributes:
        adapter: An adapter folder, the output folder of finetune, or a hub id owner/name.
        to: The file (.onnx, .pt2, .safetensors) or, for timm, the folder to write.
        format: timm: a plain checkpoint, where the method merges; onnx; torch: a program of torch.export.
        images: Files, folders or quoted patterns to compare on, 16 images at most; rendered ones if left out.
        weights: File of the backbone's weights; as the adapter says if left out.
        json: Print JSON.
    """

    adapter: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ADAPTER")]
    to: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    format: Literal["timm", "onnx", "torch"] = "timm"
    images: Images = ()
    weights: File = None
    json: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Bad input.
        """
        report = api.export(self.adapter, self.to, self.format, images=self.images, weights=self.weights)
        kind = "given" if self.images else "rendered"
        if self.json:
            row = {
                "path": str(self.to),
                "format": report.format,
                "largest_difference": report.largest_difference,
                "tolerance": report.tolerance,
                "images": report.images,
                "image_source": kind,
            }
            print(json.dumps(row, indent=1), file=console.file)
            return DONE
        print_verbatim(
            console,
            f"{self.to}: {report.format}; no logit differs from the adapter's by more than "
            f"{report.largest_difference:.1e} on {report.images} {kind} images.",
        )
        if not self.images:
            print_verbatim(console, "To compare on images of yours: --images DIR.")
        say_next(console, f"Next: in Python {_loading_call(self.to, report.format)} loads it.")
        return DONE


def _loading_call(path: Path, format: str) -> str:
    """The call that loads a file of a format."""
    if format == "onnx":
        return f"onnxruntime.InferenceSession({str(path)!r})"
    if format == "torch":
        return f"torch.export.load({str(path)!r}).module()"
    if path.is_dir():
        return f"timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"
    return f"timm.create_model, with the arguments in its metadata and checkpoint_path={str(path)!r},"
