"""Adapter folders that explain themselves: trained state, config, model card, class names, image format."""

from s2a.pretrained.load import from_pretrained
from s2a.pretrained.save import save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
