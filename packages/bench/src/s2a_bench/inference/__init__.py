"""What a trained adapter says about images: ``predict``."""
