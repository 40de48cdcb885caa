"""``finetune``: from own images to an adapter folder, with metrics and a report."""
