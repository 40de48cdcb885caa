"""What a trained adapter says about images: ``predict``; and files of it that run elsewhere: ``export``."""
