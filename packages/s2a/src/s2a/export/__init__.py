"""Files that run without this library: a timm checkpoint, ONNX, or a ``torch.export`` program."""
