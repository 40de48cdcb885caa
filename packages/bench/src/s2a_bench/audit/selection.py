"""Which records of an output folder are audited. Torch-free: what is asked for is checked before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError, Mistakes


def select_records(
    found: Iterable[Record],
    *,
    datasets: Sequence[str] = (),
    backbones: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Record]:
    """The finished test records that are asked for; empty filters take all.

    Raises:
        InputError: There is none; one sentence for every value that no record has.
    """
    found = list(found)
    scored = [r for r in found if r.status == "done" and r.evaluated_on == "test" and not r.trial and r.epochs]
    if not scored and (selected := sum(r.status == "done" and r.evaluated_on == "select" for r in found)):
        raise InputError(
            f"There is nothing to audit: the epoch of {selected} finished record{'s' * (selected > 1)} was chosen on "
            "validation images (--evaluate select), which adds nothing to a test accuracy; an audit is of records "
            "after the last epoch (--evaluate test)."
        )
    if not scored:
        raise InputError("There is no finished record scored on test to audit; run `s2a-bench sweep` first.")
    wanted = {"dataset": datasets, "backbone": backbones, "method": methods, "seed": seeds}
    mistakes = Mistakes()
    for field, values in wanted.items():
        have = {getattr(record, field) for record in scored}
        for value in values:
            if value not in have:
                known = ", ".join(map(str, sorted(have)))
                mistakes.add(InputError(f"No finished test record has {field} {value}; choose from: {known}."))
    mistakes.raise_all()
    chosen = [
        record
        for record in scored
        if all(not values or getattr(record, field) in values for field, values in wanted.items())
    ]
    if not chosen:
        asked = ", ".join(f"{field} {' '.join(map(str, values))}" for field, values in wanted.items() if values)
        raise InputError(f"No finished test record has all of {asked}; ask for less at a time.")
    return chosen
