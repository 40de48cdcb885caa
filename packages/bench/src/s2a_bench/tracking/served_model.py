"""The model that MLflow loads for an adapter folder. MLflow copies this file into the model and runs it when it loads.

It needs the library ``s2a`` alone, besides what MLflow brings.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

_BATCH = 32


class ImageClassifier(PythonModel):
    """Names images with an adapter folder.

    ``model_config`` may hold ``weights`` (a local file of the backbone's weights) and ``device``.
    """

    def load_context(self, context: Any) -> None:
        """Loads the adapter and its backbone.

        Args:
            context: MLflow's: the artifact ``adapter`` and the ``model_config``.
        """
        import s2a
        import torch

        config = dict(context.model_config or {})
        weights = config.get("weights")
        if weights and not Path(weights).is_file():
            weights = None  # on another machine: the adapter says where else they are
        device = config.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        self.adapted = s2a.from_pretrained(context.artifacts["adapter"], weights=weights, device=device)
        self.transform = self.adapted.transform()
        self.device = device

    # Of all types this one keeps MLflow from making a schema of it: the model's signature has one.
    def predict(self, context: Any, model_input: pandas.DataFrame, params: Mapping[str, Any] | None = None) -> Any:
        """Names images.

        Args:
            context: MLflow's.
            model_input: Paths of images, or the bytes of image files (as text in base64), in a list, a series, or the
                first column of a table.
            params: ``top``: how many classes the column ``top`` holds; 1 without it.

        Returns:
            A pandas table with a row for each image: ``label``, ``probability``, ``top`` (a list of pairs of class and
            probability), and ``error``, which is empty unless the image could not be read.
        """
        top = int((params or {}).get("top", 1))
        given = list(_values(model_input))
        rows: list[dict[str, Any]] = []
        for start in range(0, len(given), _BATCH):
            rows += self._name_batch(given[start : start + _BATCH], top)
        return pandas.DataFrame(rows, columns=["label", "probability", "top", "error"])

    def _name_batch(self, given: list[Any], top: int) -> list[dict[str, Any]]:
        import torch

        images, rows = {}, [{"label": None, "probability": None, "top": [], "error": ""} for _ in given]
        for index, value in enumerate(given):
            try:
                images[index] = self.transform(_open(value))
            except Exception as error:  # whatever Pillow says of a file that is no image
                rows[index]["error"] = " ".join(str(error).split()) or type(error).__name__
        if not images:
            return rows
        with torch.inference_mode():
            logits = self.adapted(torch.stack(list(images.values())).to(self.device))
            found = logits.float().softmax(-1).topk(min(max(top, 1), logits.shape[-1]), -1)
        labels = self.adapted.labels or [str(i) for i in range(logits.shape[-1])]
        for index, values, classes in zip(images, found.values.tolist(), found.indices.tolist(), strict=True):
            pairs = [(labels[c], p) for c, p in zip(classes, values, strict=True)]
            rows[index] |= {"label": pairs[0][0], "probability": pairs[0][1], "top": pairs}
        return rows


def _values(given: Any) -> Iterable[Any]:
    """The images of an input: a table's first column, a series, a list, or one image."""
    if hasattr(given, "columns"):
        return given.iloc[:, 0].tolist()
    if isinstance(given, str | bytes | Path):
        return [given]
    return given.tolist() if hasattr(given, "tolist") else given


def _open(value: Any) -> Any:
    from PIL import Image

    if isinstance(value, str | Path):
        if Path(value).is_file():
            return Image.open(value)
        try:
            value = base64.b64decode(str(value), validate=True)
        except (binascii.Error, ValueError):
            raise FileNotFoundError(f"no file {value}") from None
    return Image.open(io.BytesIO(bytes(value)))


set_model(ImageClassifier())
