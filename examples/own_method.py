"""Writes a fine-tuning method (only the norms of the backbone train) and compares it with bias tuning.

    python examples/own_method.py [--epochs 3] [--images 200] [--output results]

A method that is to be found by the command line too is installed as a package with the entry point ``s2a.methods``,
as packages/baselines is.
"""

from __future__ import annotations

import argparse
import dataclasses

import s2a_bench
from s2a.backbones.edits import Edits
from s2a.backbones.view import Backbone
from s2a.registry import Method, register_method
from torch import nn


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """The options of the method; ``--set method.weights=false`` on the command line."""

    weights: bool = True


@register_method("norm", NormConfig)
class Norm(Method):
    """Biases of all layer norms train, and their weights unless ``weights`` is false."""

    def __init__(self, config: NormConfig, backbone: Backbone, edits: Edits) -> None:
        # Everything is frozen when this is called; ``edits.train`` undoes that for a parameter, until ``detach``.
        super().__init__(config, backbone, edits)
        for module in backbone.model.modules():
            if isinstance(module, nn.LayerNorm):
                edits.train(module.bias)
                if config.weights:
                    edits.train(module.weight)


def main() -> None:
    """Runs both methods and prints a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--output", default="results")
    given = parser.parse_args()

    shape = {"epochs": given.epochs, "limit_train": given.images, "limit_test": 500, "set": {"train.lr": 0.01}}
    methods = ["norm", "norm:weights=false", "bias"]
    # Serial: workers of Ray are other processes, which know only methods of installed packages.
    for record in s2a_bench.sweep(
        datasets="digits", methods=methods, seeds=0, output=given.output, serial=True, **shape
    ):
        options = record.method_config if record.method == "norm" else ""
        print(f"{record.method} {options}: {record.accuracy:.1f} %, {record.params_trainable:,} values train")


if __name__ == "__main__":
    main()
