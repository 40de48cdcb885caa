"""Adapter folders that explain themselves: trained state, config, model card, class names, image format."""

from s2a.pretrained.hub import push_to_hub
from s2a.pretrained.load import backbone_of, from_pretrained
from s2a.pretrained.save import save_pretrained

__all__ = ["backbone_of", "from_pretrained", "push_to_hub", "save_pretrained"]
