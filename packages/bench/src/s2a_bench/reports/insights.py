"""What the means of a table hide: a lead, or a distance to the leader, that comes from one task."""

from __future__ import annotations

from collections.abc import Sequence

from s2a_bench.reports.sections import MethodRow, Section

MARGIN, CHANGE, GAP = 1.0, 3.0, 10.0
"""Points of accuracy: what counts as ahead, as a change by one task, and as far below; see ``describe_hidden``."""

MOST, MOST_GAPS = 4, 2
"""Sentences of a section, and of them those about single tasks."""


def describe_hidden(section: Section) -> list[str]:
    """Sentences about what the mean of tasks hides; none where it hides nothing, at most ``MOST``.

    With the mean ``m_r`` of row ``r`` over all ``k`` tasks and ``m_r(-t)`` that over all but task ``t``, compared are
    the leader ``l`` (highest ``m``) and the best row of every other method (all other rows of a section with one
    method), in this order:

    1. The lead comes from one task: without some ``t`` another row is ahead by ``MARGIN`` or more,
       ``m_r(-t) - m_l(-t) >= MARGIN``, and the leader is ahead on at most half of the other tasks. Named are the ``t``
       and row where that is most.
    2. The leader is far below on single tasks: ``GAP`` or more below the best of the rows compared. Largest first, at
       most ``MOST_GAPS``.
    3. A row's distance ``d = m_l - m_r`` comes from one task, or is small through one: without some ``t`` it changes by
       ``CHANGE`` or more and by half of ``d`` or more. Largest change first; rows that 1. already named are left out.

    Points are those of the means that the table shows; noise between seeds is not considered: the sentences describe
    the table. Rows without a mean are left out, and sections of fewer than three tasks or two rows.
    """
    rows = _choose_rows(section)
    if len(section.datasets) < 3 or len(rows) < 2:
        return []
    leader, others = rows[0], rows[1:]
    found, named = _describe_lead(section, leader, others)
    found += _describe_gaps(section, leader, others)[:MOST_GAPS]
    found += _describe_distances(section, leader, [row for row in others if row.label not in named])
    return found[:MOST]


def _choose_rows(section: Section) -> list[MethodRow]:
    """Rows with a mean, highest first; of several methods only the best row of each."""
    rows = sorted((row for row in section.rows if row.averages), key=lambda row: -_mean(section, row))
    if len({row.method for row in rows}) < 2:
        return rows
    best: dict[str, MethodRow] = {}
    for row in rows:
        best.setdefault(row.method, row)
    return list(best.values())


def _describe_lead(
    section: Section, leader: MethodRow, others: Sequence[MethodRow]
) -> tuple[list[str], frozenset[str]]:
    """The sentence of 1., and the labels of the rows that would be ahead without that task."""
    ahead = {
        (task, row.label): _mean(section, row, task) - _mean(section, leader, task)
        for task in section.datasets
        for row in others
        if _count_ahead(section, leader, row, task) <= (len(section.datasets) - 1) / 2
    }
    (task, label), most = max(ahead.items(), key=lambda item: item[1], default=(("", ""), 0.0))
    if most < MARGIN:
        return [], frozenset()
    lead = _mean(section, leader) - max(_mean(section, row) for row in others)
    passing = frozenset(row.label for row in others if ahead.get((task, row.label), 0.0) >= MARGIN)
    also = len(passing) - 1
    words = f" and behind {also} other row{'s' * (also > 1)}" if also else ""
    first = f"{leader.label} leads the mean of {len(section.datasets)} tasks by {lead:.1f} points"
    if f"{lead:.1f}" == "0.0":
        second = max(others, key=lambda row: _mean(section, row))
        first = f"{leader.label} is level with {second.label} in the mean of {len(section.datasets)} tasks"
    sentence = f"{first}; without {task} it would be {most:.1f} below {label}{words}."
    return [sentence], passing


def _count_ahead(section: Section, leader: MethodRow, row: MethodRow, without: str) -> int:
    return sum(_value(leader, task) > _value(row, task) for task in section.datasets if task != without)


def _describe_gaps(section: Section, leader: MethodRow, others: Sequence[MethodRow]) -> list[str]:
    gaps = []
    for task in section.datasets:
        best = max(others, key=lambda row: _value(row, task))
        gaps.append((_value(best, task) - _value(leader, task), task, best.label))
    gaps.sort(key=lambda gap: -gap[0])
    return [
        f"{leader.label}, first by the mean, is {gap:.1f} below {label} on {task}."
        for gap, task, label in gaps
        if gap >= GAP
    ]


def _describe_distances(section: Section, leader: MethodRow, others: Sequence[MethodRow]) -> list[str]:
    found = []
    for row in others:
        distance = _mean(section, leader) - _mean(section, row)
        rest = {task: _mean(section, leader, task) - _mean(section, row, task) for task in section.datasets}
        task = max(rest, key=lambda t: abs(rest[t] - distance))
        change = abs(rest[task] - distance)
        if change >= max(CHANGE, distance / 2):
            far = f"{abs(rest[task]):.1f}"
            there = "level" if far == "0.0" else f"{far} {'below' if rest[task] > 0 else 'above'}"
            here = "level with" if f"{distance:.1f}" == "0.0" else f"{distance:.1f} below"
            sentence = f"{row.label} is {here} {leader.label} in the mean; without {task}: {there}."
            found.append((-change, sentence))
    return [sentence for _, sentence in sorted(found, key=lambda each: each[0])]


def _value(row: MethodRow, task: str) -> float:
    stat = row.cells[task].stat
    assert stat is not None  # rows with a mean have every task
    return stat.mean


def _mean(section: Section, row: MethodRow, without: str | None = None) -> float:
    tasks = [task for task in section.datasets if task != without]
    return sum(_value(row, task) for task in tasks) / len(tasks)
