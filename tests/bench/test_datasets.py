"""The table against the VTAB-1k protocol, and its lookups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.lookup import DATASETS, SUITES
from s2a_bench.data.table.types import PoolRule
from s2a_bench.errors import InputError


def test_vtab_has_the_nineteen_tasks_of_the_protocol():
    rows = [DATASETS[name] for name in SUITES["vtab"].datasets]
    assert len(rows) == 19
    assert [sum(row.group == group for row in rows) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    assert sum(row.classes for row in rows) == 940  # the sum published with the protocol
    assert all(row.counts[:3] == (800, 200, 1000) for row in rows)


def test_caltech101_agrees_with_its_own_recipe():
    row = DATASETS["caltech101"]
    preparation = row.preparation
    assert preparation is not None and isinstance(preparation.rule, PoolRule)
    rule = preparation.rule
    names = list(preparation.class_names)
    assert names == sorted(set(names)) and len(names) == row.classes == 102
    images = 9144  # of the published archive, background included
    assert row.counts.test == images - rule.per_class * row.classes
    assert [stop - start for start, stop in (rule.train, rule.val)] == [800, 200]
    assert rule.train[1] <= rule.val[0] and rule.val[1] <= rule.per_class * row.classes


@pytest.mark.parametrize("row", DATASETS.values(), ids=lambda row: row.name)
def test_every_row_is_complete(row):
    assert DATASETS[row.name] is row
    assert row.name in SUITES[row.suite].datasets
    assert row.source and row.licence and row.where
    assert row.classes >= 2
    if row.counts.train is not None:
        assert row.counts.both == row.counts.train + row.counts.val
    assert row.embedded or not row.synthetic


def test_names_and_aliases_are_unique_within_a_suite():
    for suite in SUITES.values():
        names = [name for member in suite.datasets for name in (member, *DATASETS[member].aliases)]
        assert len(names) == len(set(names))
        assert set(suite.defaults) <= set(suite.datasets)
        for name in names:
            assert name in (
                datasets.get_dataset(suite.name, name).name,
                *datasets.get_dataset(suite.name, name).aliases,
            )


def test_aliases_lead_to_the_row():
    assert datasets.get_dataset("vtab", "cifar100") is DATASETS["cifar"]
    assert datasets.find_dataset("flowers102") is DATASETS["oxford_flowers102"]


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: datasets.get_suite("vtabb"), ["suite 'vtabb'", "did you mean vtab?"]),
        (lambda: datasets.get_suite("imagnet"), ["suite 'imagnet'", "mini", "vtab", "did you mean imagenet"]),
        (lambda: datasets.get_dataset("mini", "digit"), ["'digit'", "did you mean digits?"]),
        (lambda: datasets.get_dataset("mini", "caltech101"), ["'caltech101'", "not in suite 'mini'", "--suite vtab"]),
        (lambda: datasets.find_dataset("calltech"), ["dataset 'calltech'", "did you mean caltech101"]),
    ],
)
def test_unknown_names_say_what_is_near(call, parts):
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


@given(st.text(max_size=20))
def test_lookups_never_fail_otherwise(name):
    for lookup in (datasets.find_dataset, datasets.get_suite, lambda n: datasets.get_dataset("vtab", n)):
        try:
            lookup(name)
        except InputError as error:
            assert repr(name) in str(error) or "/" in name
