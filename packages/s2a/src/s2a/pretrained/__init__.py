"""Adapter folders that explain themselves: trained state, config, model card, class names, image format."""
