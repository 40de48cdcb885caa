"""Files that run without this library: a timm checkpoint, ONNX, or a ``torch.export`` program."""

from s2a.exporting.export import ExportReport, export

__all__ = ["ExportReport", "export"]
