"""``predict`` and ``export``: what is done with an adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from s2a_bench.api.arguments import FilePath, absolute, path_list, path_or_none
from s2a_bench.errors import InputError, Mistakes

if TYPE_CHECKING:
    from s2a import ExportReport

    from s2a_bench.inference.checks import PredictRequest
    from s2a_bench.inference.prediction import Prediction


def predict(
    folder: FilePath,
    images: FilePath | Sequence[FilePath],
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: FilePath | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Class names and probabilities of images, by a trained adapter.

    Args:
        folder: An adapter folder, the output folder of ``finetune``, or a hub id ``owner/name``.
        images: Files, folders (everything below that has the suffix of an image), patterns (``"photos/**/*.jpg"``).
        top: Classes per image, the most probable ones.
        batch_size: Images at once.
        weights: File of the backbone's weights; ``None``: as the adapter says.
        device: ``cpu``, ``cuda``, ``cuda:0``; ``auto``: a GPU if there is one.
        progress: Called after each batch with the images done and all of them.

    Returns:
        One for each image, in the order in which they are named, each file once. Of a bad image ``error`` says why,
        and ``label`` is ``None``.

    Raises:
        InputError: No adapter, paths that do not exist or hold no image, numbers out of range: one sentence for each.
        S2AError: The adapter cannot be loaded.
    """
    request = prepare_predict(folder, images, top=top, batch_size=batch_size, weights=weights, device=device)
    from s2a_bench.inference.predict import load_adapter, predictions

    adapted = load_adapter(request.adapter, request.weights, request.device)
    return list(predictions(adapted, request.paths, request.top, request.batch_size, progress))


def export(
    folder: FilePath,
    path: FilePath,
    format: Literal["timm", "onnx", "torch"] = "timm",
    *,
    images: FilePath | Sequence[FilePath] = (),
    weights: FilePath | None = None,
) -> ExportReport:
    """Writes an adapter as a file that runs without this library, once it was found to give the same logits.

    Args:
        folder: An adapter folder, the output folder of ``finetune``, or a hub id ``owner/name``.
        path: Of the file (``.onnx``, ``.pt2``, ``.safetensors``) or the folder (``timm``).
        format: See ``s2a.export``.
        images: Files, folders or patterns to compare on, 16 of them at most; rendered images if empty.
        weights: File of the backbone's weights; ``None``: as the adapter says.

    Returns:
        How far the file is from the adapter.

    Raises:
        InputError: No adapter, or paths that do not fit: one sentence for each.
        S2AError: The adapter cannot be loaded, its method does not merge, or the logits differ.
    """
    from s2a_bench.inference.checks import check_export_path, check_weights, find_adapter
    from s2a_bench.inference.paths import find_images

    mistakes = Mistakes()
    given, target = path_or_none(weights, "weights"), Path(absolute(path, "path"))
    adapter, paths = "", []
    with mistakes.collecting():
        adapter = find_adapter(folder)
    with mistakes.collecting():
        check_export_path(target, format)
    with mistakes.collecting():
        check_weights(given)
    with mistakes.collecting():
        paths = find_images(path_list(images))
    mistakes.raise_all()
    from s2a_bench.inference.export import export_adapter

    return export_adapter(adapter, target, format, paths, given)


def prepare_predict(
    folder: FilePath,
    images: FilePath | Sequence[FilePath],
    *,
    listed: Sequence[str] = (),
    top: int,
    batch_size: int,
    weights: FilePath | None,
    device: str,
) -> PredictRequest:
    """Checks the arguments of ``predict`` without torch.

    Args:
        folder: As ``predict``, and so are the others.
        images: Likewise; ``"-"`` stands for ``listed``.
        listed: Names of files and folders; one that does not exist becomes a bad image.
        top: Likewise.
        batch_size: Likewise.
        weights: Likewise.
        device: Likewise.

    Raises:
        InputError: As ``predict``.
    """
    from s2a_bench.inference.checks import PredictRequest, check_count, check_weights, find_adapter
    from s2a_bench.inference.paths import find_images
    from s2a_bench.sweeps.checks.devices import check_device_name

    mistakes = Mistakes()
    given = path_or_none(weights, "weights")
    adapter, paths = "", []
    with mistakes.collecting():
        adapter = find_adapter(folder)
    with mistakes.collecting():
        paths = find_images(path_list(images), listed)
        if not paths:
            raise InputError("There are no images: give files, folders or patterns.")
    for name, value in (("top", top), ("batch_size", batch_size)):
        with mistakes.collecting():
            check_count(name, value)
    with mistakes.collecting():
        check_weights(given)
    if device != "auto":
        with mistakes.collecting():
            check_device_name(device)
    mistakes.raise_all()
    return PredictRequest(adapter, paths, top, batch_size, given, device)
