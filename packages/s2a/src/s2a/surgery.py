"""The old name of ``s2a.backbones.edits``, which methods in packages of their own import."""

from s2a.backbones.edits import Edits

__all__ = ["Edits"]
