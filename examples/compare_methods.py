"""Compares fine-tuning methods on the embedded digits task, from Python.

    python examples/compare_methods.py [--epochs 3] [--images 200] [--output results]

Run it twice: the second time nothing is left to run, because every cell has a record in the output folder.
"""

from __future__ import annotations

import argparse

import s2a_bench


class Progress(s2a_bench.Listener):
    """Prints what happens. ``sweep`` itself prints nothing."""

    def message(self, text: str, level: s2a_bench.Level) -> None:
        """Warnings and other sentences for people."""
        print(f"{level}: {text}")

    def finished(self, record: s2a_bench.Record) -> None:
        """Called once for each cell that ran."""
        print(f"{record.status}: {record.method}, seed {record.seed}")


def main() -> None:
    """Runs the comparison and prints a line per method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--output", default="results")
    given = parser.parse_args()

    records = s2a_bench.sweep(
        datasets="digits",
        methods=["linear", "bias", "s2a", "full"],
        seeds=0,
        epochs=given.epochs,
        limit_train=given.images,
        limit_test=500,
        output=given.output,
        serial=True,  # without Ray, which takes some seconds to start
        listeners=[Progress()],
    )
    print(f"{'method':8} {'accuracy %':>10} {'trainable %':>11} {'memory MB':>9}")
    for record in records:
        if record.error is not None:  # a cell that fails is a record too
            print(f"{record.method:8} failed: {record.error['message']}")
            continue
        print(f"{record.method:8} {record.accuracy:10.1f} {record.params_percent:11.2f} {record.measured_mb:9.1f}")
    print(f"Report: {s2a_bench.report(given.output).html}")


if __name__ == "__main__":
    main()
