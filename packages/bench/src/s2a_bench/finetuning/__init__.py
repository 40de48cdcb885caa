"""From somebody's images to an adapter folder: ``s2a_bench.finetune`` and ``s2a-bench finetune``."""
