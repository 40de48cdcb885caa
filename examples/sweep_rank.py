"""Runs S2A with several ranks and prints accuracy and memory by rank, from the records.

    python examples/sweep_rank.py [--epochs 3] [--images 200] [--ranks 2 8 30] [--output results]

The ranks are those of the low-rank prompts.
"""

from __future__ import annotations

import argparse

import s2a_bench


def main() -> None:
    """Runs one cell for each rank and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 30])
    parser.add_argument("--output", default="results")
    given = parser.parse_args()

    records = s2a_bench.sweep(
        datasets="digits",
        methods="s2a",
        seeds=0,
        epochs=given.epochs,
        limit_train=given.images,
        limit_test=500,
        set={"method.activations": "lean"},  # the same for all cells
        sweep={"method.lrp_rank": given.ranks},  # one cell for each value
        output=given.output,
        serial=True,
    )
    # The config of a record holds every option of the method, defaults too.
    print(f"{'rank':>4} {'trainable':>9} {'accuracy %':>10} {'memory MB':>9}")
    for record in sorted(records, key=lambda record: record.method_config["lrp_rank"]):
        rank = record.method_config["lrp_rank"]
        print(f"{rank:4} {record.params_trainable:9,} {record.accuracy:10.1f} {record.measured_mb:9.1f}")


if __name__ == "__main__":
    main()
