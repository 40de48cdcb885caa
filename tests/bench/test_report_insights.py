"""What a report says of what a mean hides, on records with known answers."""

from __future__ import annotations

import pytest
from bench.factories import make_record
from s2a_bench.reports.insights import MOST, describe_hidden
from s2a_bench.reports.sections import make_sections

TASKS = ("a", "b", "c", "d", "e")


def sentences(**rows):
    """Of a table with these accuracies on tasks ``a`` to ``e``."""
    records = [
        make_record(method=method, dataset=task, group="natural", accuracy=float(value))
        for method, values in rows.items()
        for task, value in zip(TASKS, values, strict=False)
    ]
    (section,) = make_sections(records)
    return describe_hidden(section)


def test_a_lead_from_one_task_is_said():
    # Means 58 and 54; without e: 55 and 60, on a: 70 and 95.
    found = sentences(s2a=(70, 55, 50, 45, 70), full=(95, 60, 50, 35, 30))
    assert found[0] == "s2a leads the mean of 5 tasks by 4.0 points; without e it would be 5.0 below full."
    assert found[1] == "s2a, first by the mean, is 25.0 below full on a."
    assert len(found) == 2


def test_others_that_pass_the_leader_are_counted_not_repeated():
    found = sentences(s2a=(50, 50, 50, 50, 100), full=(58, 58, 58, 58, 50), lora=(54, 54, 54, 54, 50))
    assert found == [
        "s2a leads the mean of 5 tasks by 3.6 points; without e it would be 8.0 below full and behind 1 other row."
    ]


def test_a_small_distance_through_one_task_is_said():
    # full 64, s2a 62; without e: 70 and 55.
    found = sentences(full=(70, 70, 70, 70, 40), s2a=(55, 55, 55, 55, 90), bias=(40, 40, 40, 40, 10))
    assert "full leads" not in " ".join(found)
    assert "full, first by the mean, is 50.0 below s2a on e." in found
    assert "s2a is 2.0 below full in the mean; without e: 15.0 below." in found
    assert not any("bias" in sentence for sentence in found)  # 30 below with every task


def test_equal_means_are_level():
    # Both 60.
    found = sentences(full=(60, 60, 60, 60, 60), lora=(55, 55, 55, 55, 80))
    assert "lora is level with full in the mean; without e: 5.0 below." in found
    # Without e full would be 7.5 below, and it is ahead on none of the other tasks.
    found = sentences(full=(60, 60, 60, 60, 90), lora=(67.5, 67.5, 67.5, 67.5, 60))
    assert found[0] == "full is level with lora in the mean of 5 tasks; without e it would be 7.5 below lora."


def test_a_distance_from_one_task_is_said():
    # 6 below, all of it from e.
    assert sentences(full=(70, 70, 70, 70, 70), lora=(70, 70, 70, 70, 40)) == [
        "lora is 6.0 below full in the mean; without e: level."
    ]


@pytest.mark.parametrize(
    "rows",
    [
        {"full": (90, 80, 70, 60, 50), "lora": (88, 78, 68, 58, 48)},  # the same everywhere
        {"full": (90, 80, 70, 60, 50), "lora": (30, 20, 10, 10, 10)},
        {"full": (70, 70, 70, 70, 74), "lora": (70.5, 70.5, 70.5, 70.5, 71)},  # too little to speak of
        {"full": (90, 10), "lora": (20, 70)},  # two tasks: each is half of the mean
        {"full": (90, 80, 70)},
        {"full": (90, 80, 70, 60, 50), "lora": (30, 20, 10)},  # without a mean
    ],
    ids=str,
)
def test_nothing_is_said_where_a_mean_hides_nothing(rows):
    assert sentences(**rows) == []


def test_there_are_at_most_a_few_sentences():
    rows = {f"m{k}": (90 - k, 80, 70, 60, 20 + 7 * k) for k in range(9)}
    assert len(sentences(**rows)) <= MOST
